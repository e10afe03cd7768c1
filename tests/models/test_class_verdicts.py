"""Verdicts on 2D classes, and what they mean for the particles of those classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cryoray.errors import FormatError
from cryoray.formats.source import open_source
from cryoray.models.class_verdicts import ClassVerdicts, judge_classes_of, with_classes
from cryoray.models.ensemble import Ensemble
from cryoray.records import VERDICTS, Verdicts
from tests.classes import write_class_job
from tests.examples import verdicts_of


def verdicts(own: Sequence[str]) -> Verdicts:
    """Verdicts of particles in the order of their rows, the first row quarantined."""
    return Verdicts.together([verdicts_of(["quarantined", *own])])


def test_a_particle_is_kept_only_with_its_class_and_says_why_not(tmp_path: Path) -> None:
    job = write_class_job(tmp_path)
    particles, classes = open_source(job), open_source(job, "class2d")
    of_class = np.array(["keep", "review", "", "discard", "keep"], object)
    score = np.array([0.9, 0.5, np.nan, 0.1, 0.8], np.float32)
    numbers = particles.metadata["rlnClassNumber"].astype(int)
    own = [VERDICTS[i % 3] for i in range(1, len(numbers))]
    judged = ClassVerdicts(classes, Verdicts.none(), of_class, score)
    found = with_classes(verdicts(own), particles, judged)
    table = found.judged

    truth = {
        ("keep", "keep"): "keep",
        ("review", "keep"): "keep",
        ("keep", "review"): "review",
        ("review", "review"): "review",
    }
    expected = [
        word if n == 0 else truth.get((word, of_class[n - 1]), "discard")
        for word, n in zip(own, numbers[1:], strict=True)
    ]
    assert table["verdict"].to_pylist() == expected
    assert set(zip(own, of_class[numbers[1:] - 1], strict=True)) >= {
        (mine, its) for mine in VERDICTS for its in VERDICTS
    }
    for mine, n, verdict, reason, its in zip(
        own,
        numbers[1:],
        expected,
        table["reason"].to_pylist(),
        table["class_score"].to_pylist(),
        strict=True,
    ):
        assert its == (pytest.approx(score[n - 1]) if n else None)
        by_class = verdict == "discard" and mine != "discard"
        assert reason == (f"its class {n} is discarded" if by_class else None)
    np.testing.assert_array_equal(found.score, verdicts(own).score)


def test_particles_without_class_numbers_have_no_classes(
    project: Path, class_ensemble: Path
) -> None:
    with pytest.raises(FormatError, match="has no column rlnClassNumber"):
        judge_classes_of(open_source(project), Ensemble.load(class_ensemble))
