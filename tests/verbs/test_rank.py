"""Classes ranked and selected as relion_class_ranker does, and what they mean for their particles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import starfile

from cryoray.errors import EnsembleError, FormatError, QuarantineError
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from cryoray.models.ensemble import Ensemble
from cryoray.records import VERDICTS, Event, Verdicts
from cryoray.settings import ClassifySettings, RankSettings, Settings
from cryoray.verbs.rank import (
    Choice,
    ClassVerdicts,
    judge_classes,
    judge_classes_of,
    rank,
    with_classes,
)
from tests.classes import COUNTS, write_class_job
from tests.examples import verdicts_of

SCORE = np.array([0.9, 0.2, 0.0, 0.6, 0.4], np.float32)
RANKED = np.array(COUNTS) > 0


def chosen(**options: float | bool | None) -> list[int]:
    """The classes, from 1, that the options select; at RELION's threshold where they name none."""
    choice = Choice(**{"min_score": 0.5, **options})  # type: ignore[arg-type]
    keep = choice(SCORE, np.array(COUNTS), RANKED, threshold=0.3)
    return (np.flatnonzero(keep) + 1).tolist()


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({}, [1, 4]),
        ({"min_score": 0.0}, [1, 2, 4, 5]),  # never the empty one, whatever the threshold
        ({"min_score": 0.6}, [1, 4]),  # a threshold is inclusive
        (
            {"min_score": float(f"{np.float32(0.6):.9g}")},
            [1, 4],
        ),  # also as read from rank_model.star
        ({"min_score": None}, [1, 4, 5]),  # the ensemble's own
        ({"min_score": None, "relative": True}, [1, 4]),  # RELION's default, of 0.9
        ({"max_score": 0.6}, [4]),
        ({"relative": True, "min_score": 0.5}, [1, 4]),  # of 0.9
        ({"relative": True, "min_score": 0.7}, [1]),
        ({"min_particles": 16}, [1, 4]),
        ({"min_particles": 17}, [1, 4, 5]),
        ({"min_particles": 19}, [1, 2, 4, 5]),
        ({"min_score": 2.0, "min_classes": 3}, [1, 4, 5]),
        ({"min_score": 2.0, "min_particles": 5, "min_classes": 2}, [1, 4]),  # both hold
        ({"max_score": 0.6, "min_classes": 2}, [1, 4]),  # the best left, regardless of its score
        ({"min_score": 2.0, "min_classes": 99}, [1, 2, 4, 5]),
        ({"min_score": 2.0}, []),
    ],
)
def test_classes_are_chosen_as_the_manual_says(
    options: dict[str, float | bool | None], classes: list[int]
) -> None:
    assert chosen(**options) == classes


@pytest.fixture
def settings(class_ensemble: Path) -> Settings:
    return Settings(rank=RankSettings(ensemble=str(class_ensemble)))


def test_a_ranked_job_has_all_files_and_an_empty_class_scores_nothing(
    settings: Settings, class_ensemble: Path, tmp_path: Path
) -> None:
    job = write_class_job(tmp_path)
    out, events = tmp_path / "Select/job003", list[Event]()
    row_counts = rank(
        job / "run_it025_optimiser.star",
        out,
        settings,
        Choice(min_score=0.0, max_score=1.0),
        names="Select/job003/",
        on_event=events.append,
    )
    assert (row_counts.rows_in, row_counts.rows_out, row_counts.quarantined) == (5, 4, 1)
    assert sorted(path.name for path in out.iterdir()) == [
        "backup_selection.star",
        "class_averages.star",
        "cryoray",
        "particles.star",
        "rank_data.star",
        "rank_model.star",
        "rank_optimiser.star",
    ]
    said = judge_classes(open_source(job, "class2d"), Ensemble.load(class_ensemble))
    assert [(row, why) for row, why in said.verdicts.quarantined] == [
        (2, "run_it025_classes.mrcs, image 3: all pixels are 0")
    ]
    written = parse(out / "rank_model.star")["model_classes"].numbers("rlnClassScore")
    np.testing.assert_array_equal(written.astype(np.float32), np.nan_to_num(said.score))
    assert written[2] == 0
    selected = parse(out / "backup_selection.star")[""].column("rlnSelected").tolist()
    assert selected == ["1", "1", "0", "1", "1"]
    assert len(parse(out / "particles.star")["particles"]) == sum(COUNTS)
    assert events[0].data["particles_selected"] == sum(COUNTS)
    assert events[0].data["empty"] == 1
    table = pq.read_table(out / "cryoray/verdicts.parquet")
    np.testing.assert_array_equal(table["score"].to_numpy(), said.score[[0, 1, 3, 4]])


def test_scores_alone_select_nothing(settings: Settings, tmp_path: Path) -> None:
    job = write_class_job(tmp_path)
    rank(job / "run_it025_optimiser.star", tmp_path / "out", settings, None)
    selected = parse(tmp_path / "out/backup_selection.star")[""].column("rlnSelected").tolist()
    assert selected == ["0"] * 5
    assert not (tmp_path / "out/particles.star").exists()


def test_what_cannot_be_ranked_is_refused(
    settings: Settings, tiny_ensemble: Path, tmp_path: Path
) -> None:
    optimiser = write_class_job(tmp_path) / "run_it025_optimiser.star"
    of_particles = Settings(classify=ClassifySettings(ensemble=str(tiny_ensemble)))
    with pytest.raises(EnsembleError, match="judges particle images, this holds class2d"):
        rank(optimiser, tmp_path / "out", of_particles, None)
    (optimiser.parent / "run_it025_classes.mrcs").unlink()
    with pytest.raises(QuarantineError, match=r"out/cryoray/quarantine\.parquet: 5 of 5"):
        rank(optimiser, tmp_path / "out", settings, None)


def verdicts(own: list[str]) -> Verdicts:
    """Verdicts of particles in the order of their rows, the first row quarantined."""
    return Verdicts.together([verdicts_of(["quarantined", *own])])


def test_a_particle_is_kept_only_with_its_class_and_says_why_not(tmp_path: Path) -> None:
    job = write_class_job(tmp_path)
    particles, classes = open_source(job), open_source(job, "class2d")
    of_class = np.array(["keep", "review", "", "discard", "keep"], object)
    score = np.array([0.9, 0.5, np.nan, 0.1, 0.8], np.float32)
    numbers = particles.metadata["rlnClassNumber"].astype(int)
    own = [VERDICTS[i % 3] for i in range(1, len(numbers))]
    said = ClassVerdicts(classes, Verdicts.none(), of_class, score)
    found = with_classes(verdicts(own), particles, said)
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


@pytest.mark.real
def test_a_relion_5_job_is_ranked(real_data: Path, settings: Settings, tmp_path: Path) -> None:
    job = real_data / "relion5-project/Class2D/job010"
    events: list[Event] = []
    row_counts = rank(
        job / "run_it025_optimiser.star",
        tmp_path,
        settings,
        Choice(min_score=2.0, min_particles=1000),
        on_event=events.append,
    )
    assert row_counts.rows_in == 50
    # Classes 16, 17, 25 and 45 have a distribution of zero.
    scores = parse(tmp_path / "rank_model.star")["model_classes"].numbers("rlnClassScore")
    assert (np.flatnonzero(scores == 0) + 1).tolist() == [16, 17, 25, 45]
    numbers = np.array(
        [
            int(line.split()[3])
            for line in (job / "run_it025_data.star").read_text().splitlines()
            if "@Extract" in line
        ]
    )
    selected = parse(tmp_path / "backup_selection.star")[""].numbers("rlnSelected") == 1
    particles = parse(tmp_path / "particles.star")["particles"]
    assert len(particles) == selected[numbers - 1].sum() == events[0].data["particles_selected"]
    assert len(particles) >= 1000
    smallest = min(np.sum(numbers == n + 1) for n in np.flatnonzero(selected))
    assert len(particles) - smallest < 1000
    assert scores[selected].min() >= scores[~selected].max()
    assert len(parse(tmp_path / "rank_data.star")["particles"]) == 2374

    # As facilities' automation reads them: an unnamed table of its own, tables by name, by another reader.
    averages = starfile.read(tmp_path / "class_averages.star")
    assert (
        averages["rlnReferenceImage"].str[:6].astype(int).tolist()
        == (np.flatnonzero(selected) + 1).tolist()
    )
    assert averages["rlnParticleNr"].sum() == len(particles)
    assert set(averages) >= {
        *("rlnReferenceImage", "rlnPredictedClassScore", "rlnClassDistribution"),
        *("rlnAccuracyRotations", "rlnAccuracyTranslationsAngst", "rlnEstimatedResolution"),
    }
    assert len(starfile.read(tmp_path / "particles.star")["particles"]) == len(particles)
    before, after = (
        starfile.read(file) for file in (job / "run_it025_data.star", tmp_path / "rank_data.star")
    )
    for name in ("optics", "particles"):
        pandas.testing.assert_frame_equal(before[name], after[name])
    ranked = starfile.read(tmp_path / "rank_optimiser.star")
    assert ranked["rlnModelStarFile"].endswith("/rank_model.star")
