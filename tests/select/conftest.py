"""Verdicts on small projects, as `classify` leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.formats.source import Source, open_source
from cryoray.formats.verdicts import write_verdicts
from cryoray.records import Kind, Verdicts
from tests import examples
from tests.classes import write_class_job

THRESHOLD = 0.4


def judged(
    source: Source,
    out: Path,
    quarantined: tuple[int, ...] = (),
    about: dict[str, str] | None = None,
) -> Path:
    """Write verdicts on a source whose scores fall from row to row, and give their folder."""
    rows = np.setdiff1d(np.arange(len(source)), quarantined)
    score = np.linspace(0.98, 0.02, len(rows), dtype=np.float32)
    verdict = np.where(score >= 0.5, "keep", np.where(score >= 0.3, "review", "discard"))
    reason = np.where(verdict == "discard", "empty", None)  # type: ignore[call-overload]
    columns = {
        "score": score,
        "verdict": verdict.astype(object),
        "d1": np.clip(score + 0.01, 0, 1),
        "d2": np.clip(score - 0.01, 0, 1),
        "d3": np.full(len(rows), np.nan, np.float32),
        "reason": reason,
    }
    lost = [(row, "cannot be read") for row in quarantined]
    told = {"ensemble": "0" * 64, "threshold": repr(THRESHOLD), **(about or {})}
    write_verdicts(out, source, Verdicts.of(rows, columns, lost, told))
    return out


@pytest.fixture
def particles(tmp_path: Path) -> Path:
    """A folder of verdicts on 42 particles of two micrographs, two of which could not be read."""
    star = examples.write_project(tmp_path / "project", (30, 12))
    return judged(open_source(star), tmp_path / "verdicts", quarantined=(3, 17))


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A folder of verdicts on the five classes of a job whose particles are beside them."""
    job = write_class_job(tmp_path / "project")
    kind: Kind = "class2d"
    return judged(open_source(job / "run_it025_model.star", kind), tmp_path / "verdicts")
