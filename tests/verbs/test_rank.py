"""Classes ranked and selected in place of relion_class_ranker: the files that it would write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import starfile

from cryoray.boosting.class_choice import Choice
from cryoray.errors import EnsembleError, QuarantineError
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from cryoray.models.class_verdicts import judge_classes
from cryoray.models.ensemble import Ensemble
from cryoray.records import Event
from cryoray.settings import ClassifySettings, RankSettings, Settings
from cryoray.verbs.rank import rank
from tests.classes import COUNTS, write_class_job


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
    judged = judge_classes(open_source(job, "class2d"), Ensemble.load(class_ensemble))
    assert [(row, why) for row, why in judged.verdicts.quarantined] == [
        (2, "run_it025_classes.mrcs, image 3: all pixels are 0")
    ]
    written = parse(out / "rank_model.star")["model_classes"].numbers("rlnClassScore")
    np.testing.assert_array_equal(written.astype(np.float32), np.nan_to_num(judged.score))
    assert written[2] == 0
    selected = parse(out / "backup_selection.star")[""].column("rlnSelected").tolist()
    assert selected == ["1", "1", "0", "1", "1"]
    assert len(parse(out / "particles.star")["particles"]) == sum(COUNTS)
    assert events[0].data["particles_selected"] == sum(COUNTS)
    assert events[0].data["empty"] == 1
    table = pq.read_table(out / "cryoray/verdicts.parquet")
    np.testing.assert_array_equal(table["score"].to_numpy(), judged.score[[0, 1, 3, 4]])


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
