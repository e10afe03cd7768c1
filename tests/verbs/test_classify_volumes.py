"""3D classes: which win, what is written of them and of their particles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cryoray.boosting import within_job
from cryoray.errors import SettingsError
from cryoray.formats.class_volumes import open_volumes
from cryoray.formats.star import parse
from cryoray.formats.volume import write_volume
from cryoray.models.ensemble import Calibration, Ensemble
from cryoray.models.registry import shipped
from cryoray.records import Event
from cryoray.settings import ClassifySettings, Settings
from cryoray.verbs.classify import classify
from cryoray.verbs.classify_volumes import TRAITS, judge_volumes
from tests.volumes import (
    COUNTS,
    GOOD,
    NOISE,
    PIXEL_SIZE,
    STREAKY,
    overfitted,
    protein,
    streaky,
    write_volume_job,
)


@pytest.fixture(scope="module")
def undecided(class_ensemble: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble to whom all pictures look alike: what maps and job say decides."""
    loaded = Ensemble.load(class_ensemble)
    nothing = Calibration(slope=1e-9, offset=0.0)
    manifest = loaded.manifest.model_copy(update={"calibration": (nothing,) * 3})
    path = tmp_path_factory.mktemp("ensembles") / "undecided"
    Ensemble(manifest, loaded.networks).save(path, "# Undecided\n")
    return path


def test_overfitted_and_streaky_classes_lose_whatever_resolution_they_claim(
    undecided: Path, tmp_path: Path
) -> None:
    job = open_volumes(write_volume_job(tmp_path))
    said = judge_volumes(job, Ensemble.load(undecided))
    assert said.rows.tolist() == [GOOD, NOISE, STREAKY]
    assert said.verdicts.quarantined == [(3, "no particle belongs to it")]
    # What maps and job say, without pictures, is enough for doubt.
    assert said.verdicts.verdict.tolist() == ["keep", "review", "review"]
    # The over-fitted one states the best resolution and accuracies of all.
    assert np.argmin(said.traits["resolution"]) == NOISE
    assert np.argmax(said.verdicts.score) == GOOD
    folder = shipped("class2d")
    assert folder is not None
    said = judge_volumes(job, Ensemble.load(folder))
    assert said.verdicts.verdict.tolist() == ["keep", "discard", "review"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.long
def test_maps_alone_tell_good_from_bad(undecided: Path, tmp_path: Path, seed: int) -> None:
    for name, volume in (
        ("a", overfitted(seed=seed)),
        ("b", streaky(seed=seed)),
        ("c", protein(seed=seed)),
    ):
        write_volume(tmp_path / f"{name}.mrc", volume, PIXEL_SIZE)
    said = judge_volumes(open_volumes(tmp_path), Ensemble.load(undecided))
    assert np.argmax(said.verdicts.score) == 2
    assert said.verdicts.verdict[0] == "review"


def test_a_jobs_classes_are_compared_with_each_other_alone() -> None:
    for trait in TRAITS:
        alike = trait.evidence(np.full(4, 0.3))
        np.testing.assert_allclose(alike, 0, atol=1e-9)
        assert trait.evidence(np.array([0.3])) == 0
        better = trait.evidence(np.array([0.3, 0.3, np.nan, 0.9]))
        assert better[2] == 0
        assert (better[3] > better[0]) == (trait.step > 0)
        assert np.abs(better).max() <= 2 * trait.weight


def test_every_side_is_written_with_its_particles_and_a_page(
    class_ensemble: Path, tmp_path: Path
) -> None:
    job = write_volume_job(tmp_path)
    chosen = ClassifySettings(ensemble=str(class_ensemble), kind="class3d")
    events: list[Event] = []
    out = classify(job, tmp_path / "out", Settings(classify=chosen), on_event=events.append)
    table = pq.read_table(out / "verdicts.parquet")
    assert table["image"].to_pylist()[0] == "Class3D/job004/run_it025_class001.mrc"
    assert table["particles"].to_pylist() == list(COUNTS[:3])
    counted = events[0].data["particles"]
    assert isinstance(counted, dict)
    assert sum(counted.values()) == sum(COUNTS)
    number = parse(job / "run_it025_data.star")["particles"].numbers("rlnClassNumber")
    for verdict, name in (
        ("keep", "particles.star"),
        ("discard", "particles_discarded.star"),
        ("review", "particles_review.star"),
    ):
        classes = [i + 1 for i, v in enumerate(table["verdict"].to_pylist()) if v == verdict]
        written = parse(out / name)["particles"]
        assert len(written) == counted[verdict] == np.isin(number, classes).sum()
    page = (out / "report.html").read_text()
    assert page.count("<img") == 3 * 6
    assert "12 particles, class distribution 52.0%, 18.0 Å" in page


def test_without_review_every_class_is_kept_or_discarded(
    class_ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = open_volumes(write_volume_job(tmp_path))
    monkeypatch.setattr(within_job, "_DOUBTFUL", (-20.0, 20.0))
    made = Ensemble.load(class_ensemble)
    doubtful, decided = (judge_volumes(job, judge).verdicts for judge in (made, made.decided()))
    assert set(doubtful.verdict) == {"review"}
    np.testing.assert_array_equal(doubtful.score, decided.score)
    kept = decided.score >= np.float32(made.threshold)
    assert decided.verdict.tolist() == np.where(kept, "keep", "discard").tolist()


def test_the_best_class_of_a_job_is_kept_however_low_its_pictures_score(
    class_ensemble: Path, tmp_path: Path
) -> None:
    job = open_volumes(write_volume_job(tmp_path))
    made = Ensemble.load(class_ensemble)
    sceptic = (Calibration(slope=1e-9, offset=-4.0),) * 3
    manifest = made.manifest.model_copy(update={"calibration": sceptic})
    said = judge_volumes(job, Ensemble(manifest, made.networks))
    assert said.verdicts.column("looks").max() < 0.05
    assert said.verdicts.verdict.tolist() == ["keep", "review", "review"]
    assert said.verdicts.score.argmax() == GOOD


def test_no_policy_draws_the_line_among_3d_classes(class_ensemble: Path, tmp_path: Path) -> None:
    chosen = ClassifySettings(ensemble=str(class_ensemble), kind="class3d", policy="share=0.5")
    with pytest.raises(SettingsError, match=r"no policy \(share=0.5\) draws the line"):
        classify(tmp_path, tmp_path / "out", Settings(classify=chosen))
