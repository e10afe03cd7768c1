"""Simulated 2D classification jobs: what a class shows follows from its particles, and files can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from cryoray.errors import InputError
from cryoray.formats.selection import find_selection, read_selection
from cryoray.formats.source import find_sources, open_source
from cryoray.preparation.features import source_features
from cryoray.simulation.classes import ClassJob, Subject, simulate_classes, simulate_job
from cryoray.simulation.junk import PARTICLE, Stage
from cryoray.simulation.microscope import Projector, canvas_side
from cryoray.simulation.phantom import Structure

_BOX, _PIXEL_SIZE = 32, 6.0


def subject(program: str = "relion") -> Subject:
    """A small protein of a few lobes, and half of it."""
    rng = np.random.default_rng(4)
    points = rng.normal(size=(40, 3)) * [14, 22, 30]
    whole = Structure(
        "lobes", points.astype(np.float32), np.ones(40, np.float32), np.zeros(40, np.int32), 5.0
    )
    half = Structure("half", whole.points[:20], whole.weights[:20], whole.domains[:20], 5.0)
    canvas = canvas_side(_BOX)
    intact, broken = (Projector(s, canvas, _PIXEL_SIZE) for s in (whole, half))
    stage = Stage(_BOX, canvas, whole.diameter / _PIXEL_SIZE, _PIXEL_SIZE, 0.0)
    return Subject(intact, (broken, broken), stage, program, shares=True)


@pytest.fixture(scope="module")
def jobs() -> list[ClassJob]:
    protein = subject()
    return [simulate_job(protein, np.random.default_rng(seed)) for seed in range(4)]


@pytest.mark.long
def test_what_a_person_keeps_shows_the_protein(jobs: list[ClassJob]) -> None:
    for job in jobs:
        assert np.mean(job.shown[job.selected]) > np.mean(job.shown[~job.selected]) + 0.2
    kept_junk = [job.selected[job.kind != PARTICLE].mean() for job in jobs]
    assert np.mean(kept_junk) < 0.03  # slips of the hand alone


def test_more_particles_resolve_more(jobs: list[ClassJob]) -> None:
    correlations = []
    for job in jobs:
        real = (job.kind == PARTICLE) & np.isfinite(job.resolution)
        if real.sum() >= 8:
            correlations.append(spearmanr(job.share[real], -job.resolution[real]).statistic)
    assert np.mean(correlations) > 0.3


def test_nothing_is_outside_the_mask_and_shares_add_up(jobs: list[ClassJob]) -> None:
    for job in jobs:
        assert np.isfinite(job.images).all()
        assert not job.images[:, 0, :3].any()
        assert job.share.sum() == pytest.approx(1, abs=0.02)  # of the least, some may be emptied


def test_an_empty_class_has_no_image_no_share_and_no_resolution(jobs: list[ClassJob]) -> None:
    empty = [(job, i) for job in jobs for i in np.flatnonzero(job.share == 0).tolist()]
    assert empty
    for job, i in empty:
        assert not job.images[i].any()
        assert not job.selected[i]
        assert np.isinf(job.resolution[i])
        assert job.rotations[i] == 999


def test_cryosparc_shows_the_largest_class_first() -> None:
    job = simulate_job(subject("cryosparc"), np.random.default_rng(0))
    assert (np.diff(job.share) <= 0).all()


@pytest.mark.long
def test_a_project_is_a_folder_that_ingest_reads(tmp_path: Path) -> None:
    folder = simulate_classes(tmp_path / "out", 0, 2, seed=3)
    models = find_sources(folder, "class2d")
    assert [path.name for path in models] == ["job001_model.star", "job002_model.star"]
    source = open_source(models[1], "class2d")
    selection = find_selection(models[1])
    assert selection is not None
    labels = read_selection(selection, source)
    assert set(labels.tolist()) == {0, 1}
    features = source_features(source, ["estimated_resolution_rank", "protein_area"])
    assert np.isfinite(features).mean() > 0.8
    before = (folder / "job001_classes.mrcs").stat().st_mtime_ns
    assert simulate_classes(tmp_path / "out", 0, 2, seed=3) == folder
    assert (folder / "job001_classes.mrcs").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds another simulation"):
        simulate_classes(tmp_path / "out", 1, 2, seed=3)
