"""3D classes: which win by what their pictures, maps and job say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.boosting import within_job
from cryoray.formats.class_volumes import open_volumes
from cryoray.formats.volume import write_volume
from cryoray.models.class_volumes import judge_volumes
from cryoray.models.ensemble import Calibration, Ensemble
from cryoray.models.registry import shipped
from tests.volumes import (
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
    judged = judge_volumes(job, Ensemble.load(undecided))
    assert judged.rows.tolist() == [GOOD, NOISE, STREAKY]
    assert judged.verdicts.quarantined == [(3, "no particle belongs to it")]
    # What maps and job say, without pictures, is enough for doubt.
    assert judged.verdicts.verdict.tolist() == ["keep", "review", "review"]
    # The over-fitted one states the best resolution and accuracies of all.
    assert np.argmin(judged.traits["resolution"]) == NOISE
    assert np.argmax(judged.verdicts.score) == GOOD
    folder = shipped("class2d")
    assert folder is not None
    judged = judge_volumes(job, Ensemble.load(folder))
    assert judged.verdicts.verdict.tolist() == ["keep", "discard", "review"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.long
def test_maps_alone_tell_good_from_bad(undecided: Path, tmp_path: Path, seed: int) -> None:
    for name, volume in (
        ("a", overfitted(seed=seed)),
        ("b", streaky(seed=seed)),
        ("c", protein(seed=seed)),
    ):
        write_volume(tmp_path / f"{name}.mrc", volume, PIXEL_SIZE)
    judged = judge_volumes(open_volumes(tmp_path), Ensemble.load(undecided))
    assert np.argmax(judged.verdicts.score) == 2
    assert judged.verdicts.verdict[0] == "review"


def test_without_review_every_class_is_kept_or_discarded(
    class_ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = open_volumes(write_volume_job(tmp_path))
    monkeypatch.setattr(within_job, "_DOUBTFUL", (-20.0, 20.0))
    made = Ensemble.load(class_ensemble)
    doubtful, decided = (
        judge_volumes(job, judge).verdicts for judge in (made, made.without_review())
    )
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
    judged = judge_volumes(job, Ensemble(manifest, made.networks))
    assert judged.verdicts.column("looks").max() < 0.05
    assert judged.verdicts.verdict.tolist() == ["keep", "review", "review"]
    assert judged.verdicts.score.argmax() == GOOD
