"""What ``cryoray validate reconstruct`` leaves on disk, here and on Ray, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cryoray.errors import InputError
from cryoray.formats.source import open_source
from cryoray.formats.volume import read_volume
from cryoray.maps.particles import particles_of
from cryoray.settings import RuntimeSettings, Settings, ValidationSettings
from cryoray.verbs.validate_reconstruct import _stays_here, validate_reconstruct
from tests import without_ray

pytestmark = pytest.mark.long


def test_maps_of_the_choices_and_what_they_prove(day: Path, tmp_path: Path) -> None:
    out = tmp_path / "validation"
    settings = Settings(validation=ValidationSettings(random_subsets=2))
    numbers = validate_reconstruct(day, day / "verdicts", out, settings, mask=None)
    assert (numbers["used"], numbers["left_out"]) == (236, 4)
    sets = numbers["sets"]
    assert list(sets) == ["kept", "discarded", "review", "all", "random 1", "random 2"]
    parts = sum(sets[name]["particles"] for name in ("kept", "discarded", "review"))
    assert parts == sets["all"]["particles"] == 236
    assert sets["random 1"]["particles"] == sets["kept"]["particles"]
    # junk has no map: what was kept agrees far better, and so with the truth
    mean = {name: np.mean(found["fsc"]["unmasked"][1:8]) for name, found in sets.items()}
    assert mean["kept"] > mean["all"] > mean["discarded"]
    assert (
        np.mean(sets["kept"]["fsc_true"][1:8]) > np.mean(sets["discarded"]["fsc_true"][1:8]) + 0.2
    )
    assert numbers["reslog"]["kept"]["particles"][-1] == sets["kept"]["particles"]
    assert np.all(np.diff(numbers["reslog"]["all"]["particles"]) > 0)
    half, _ = read_volume(out / "kept_half1.mrc")
    assert half.shape == (32, 32, 32)
    page = (out / "report.html").read_text()
    for said in ("resembling a reference", "Against the truth", "Went in", "236", "random"):
        assert said in page


@pytest.mark.ray
def test_ray_makes_the_maps_that_threads_make(
    day: Path, tmp_path: Path, ray_cluster: RuntimeSettings
) -> None:
    few = {"random_subsets": 1, "random_phases": 1}
    here = validate_reconstruct(
        day, day / "verdicts", tmp_path / "here", Settings(validation=ValidationSettings(**few))
    )
    on_ray = ValidationSettings(**few, local_max_mib=0, particles=50)
    there = validate_reconstruct(
        day, day / "verdicts", tmp_path / "there", Settings(runtime=ray_cluster, validation=on_ray)
    )
    assert list(here["sets"]) == list(there["sets"])
    for name, mine in here["sets"].items():
        theirs = there["sets"][name]
        assert mine["particles"] == theirs["particles"]
        # sums of float32 in another order
        assert mine["fsc"]["unmasked"] == pytest.approx(theirs["fsc"]["unmasked"], abs=2e-4)
        assert mine["fsc_true"] == pytest.approx(theirs["fsc_true"], abs=2e-4)
    first, second = (read_volume(tmp_path / at / "kept_half1.mrc")[0] for at in ("here", "there"))
    assert first == pytest.approx(second, abs=1e-4 * float(np.abs(first).max()))


def test_a_small_job_starts_no_ray(day: Path, tmp_path: Path) -> None:
    words = ("reconstruct", day, day / "verdicts", "--mask", "none", "--out", tmp_path / "out")
    without_ray.cryoray("validate", *words)
    assert (tmp_path / "out" / "kept_half1.mrc").is_file()


def test_half_sets_are_never_drawn_anew(day: Path, tmp_path: Path) -> None:
    text = (day / "particles.star").read_text().replace("_rlnRandomSubset", "_rlnSomethingElse")
    project = tmp_path / "project"
    project.mkdir()
    (project / "Extract").symlink_to(day / "Extract")
    (project / "particles.star").write_text(text)
    with pytest.raises(InputError, match=r"no half-sets \(rlnRandomSubset\).*refinement"):
        validate_reconstruct(project, day / "verdicts", tmp_path / "out", Settings())
    (project / "particles.star").write_text(text.replace("_rlnAngleRot", "_rlnWhatever"))
    with pytest.raises(InputError, match="no poses"):
        validate_reconstruct(project, day / "verdicts", tmp_path / "out", Settings())
    with pytest.raises(InputError, match="no verdicts"):
        validate_reconstruct(day, tmp_path / "nowhere", tmp_path / "out", Settings())


def test_maps_too_large_for_this_process_are_rays(day: Path) -> None:
    particles = particles_of(open_source(day / "particles.star"))[np.arange(20)]
    large = replace(particles, stacks=tuple(replace(one, height=400) for one in particles.stacks))
    assert _stays_here(particles, Settings())
    assert not _stays_here(large, Settings())
    assert not _stays_here(particles, Settings(validation=ValidationSettings(local_max_mib=0)))
