"""RELION's own programs are the judge of our curves and masks, on the same simulated half-maps."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoray.formats.star import parse
from cryoray.formats.volume import read_volume, write_volume
from cryoray.maps import fsc
from tests.half_maps import PIXEL, half_maps, phantom

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not shutil.which("relion_postprocess"), reason="no RELION here"),
]

SEEDS = range(1, 11)
COLUMNS = {
    "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "masked": "rlnFourierShellCorrelationMaskedMaps",
    "phase_randomised": "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
    "corrected": "rlnFourierShellCorrelationCorrected",
}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A folder with two half-maps, and these."""
    folder = tmp_path_factory.mktemp("halves")
    first, second = half_maps(phantom(64, seed=5), noise=1.2)
    for number, half in enumerate((first, second), 1):
        write_volume(folder / f"half{number}_unfil.mrc", half.numpy(), PIXEL)
    return folder, first, second


@pytest.fixture(scope="module")
def mask(halves: tuple[Path, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    folder, first, second = halves
    made, _ = fsc.automatic_mask((first + second) / 2, PIXEL)
    write_volume(folder / "mask.mrc", made.numpy(), PIXEL)
    return made


@pytest.fixture(scope="module")
def relion(
    halves: tuple[Path, torch.Tensor, torch.Tensor], mask: torch.Tensor
) -> tuple[list[dict[str, np.ndarray]], list[float]]:
    """RELION's curves with each seed, and its resolutions."""
    curves, limits = [], []
    for seed in SEEDS:
        (halves[0] / f"job{seed}").mkdir()
        run(
            halves[0],
            "relion_postprocess --i half1_unfil.mrc --i2 half2_unfil.mrc --mask mask.mrc --force_mask"
            f" --angpix {PIXEL} --o job{seed}/post --random_seed {seed}",
        )
        star = parse(halves[0] / f"job{seed}/post.star")
        curves.append({ours: star["fsc"].numbers(theirs) for ours, theirs in COLUMNS.items()})
        limits.append(float(star["general"].numbers("rlnFinalResolution")[0]))
    return curves, limits


def run(folder: Path, command: str) -> None:
    done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_unmasked_and_masked_curves_are_relions_in_every_shell(halves, mask, relion) -> None:
    ours = fsc.half_map_fsc(halves[1], halves[2], PIXEL, mask)
    for name in ("unmasked", "masked"):
        assert np.abs(ours.curves[name] - relion[0][0][name]).max() < 0.002


def test_random_phases_and_correction_are_within_relions_own_spread(halves, mask, relion) -> None:
    ours = fsc.half_map_fsc(halves[1], halves[2], PIXEL, mask, draws=20)
    for name in ("phase_randomised", "corrected"):
        theirs = np.stack([curves[name] for curves in relion[0]])
        spread = theirs.max(0) - theirs.min(0)
        assert spread.max() > 0.01  # the seeds do differ, so the band means something
        assert (ours.curves[name] >= theirs.min(0) - 0.002).all()
        assert (ours.curves[name] <= theirs.max(0) + 0.002).all()


def test_one_draw_differs_from_relion_no_more_than_its_seeds_among_themselves(
    halves, mask, relion
) -> None:
    theirs = np.stack([curves["phase_randomised"] for curves in relion[0]])
    ours = np.stack(
        [
            fsc.half_map_fsc(halves[1], halves[2], PIXEL, mask, draws=1, seed=seed).curves[
                "phase_randomised"
            ]
            for seed in SEEDS
        ]
    )
    assert ours.std(0).mean() == pytest.approx(theirs.std(0).mean(), rel=0.25)


def test_the_resolution_is_relions(halves, mask, relion) -> None:
    ours = fsc.half_map_fsc(halves[1], halves[2], PIXEL, mask).resolution()
    assert ours.last_shell is not None
    assert ours.interpolated is not None
    shell = 1 / (len(mask) * PIXEL)
    assert min(relion[1]) - 0.01 <= ours.last_shell <= max(relion[1]) + 0.01
    assert 0 <= 1 / ours.interpolated - 1 / ours.last_shell < shell


def test_the_mask_is_relions(halves, mask) -> None:
    folder, first, second = halves
    mean = (first + second) / 2
    write_volume(folder / "mean.mrc", mean.numpy(), PIXEL)
    _, level = fsc.automatic_mask(mean, PIXEL)
    ours, _ = fsc.automatic_mask(mean, PIXEL, level, lowpass=20)
    run(
        folder,
        f"relion_mask_create --i mean.mrc --o theirs.mrc --ini_threshold {level:.9f}"
        f" --extend_inimask 3 --width_soft_edge 6 --lowpass 20 --angpix {PIXEL}",
    )
    theirs, _ = read_volume(folder / "theirs.mrc")
    assert np.abs(ours.numpy() - theirs).max() < 0.01


@pytest.mark.parametrize("force", [False, True])
def test_a_mask_that_cuts_into_the_protein_counts_as_in_relion(halves, force: bool) -> None:
    folder, first, second = halves
    side = len(first)
    z, y, x = torch.meshgrid(*[torch.arange(side) - side // 2] * 3, indexing="ij")
    cutting = ((x > 10) & (x**2 + y**2 + z**2 < (side / 2 - 2) ** 2)).float()
    write_volume(folder / "cutting.mrc", cutting.numpy(), PIXEL)
    (folder / f"cut{force}").mkdir()
    run(
        folder,
        f"relion_postprocess --i half1_unfil.mrc --i2 half2_unfil.mrc --o cut{force}/post --mask cutting.mrc"
        f" --angpix {PIXEL} --adhoc_bfac 0 {'--force_mask' if force else ''}",
    )
    theirs = float(
        parse(folder / f"cut{force}/post.star")["general"].numbers("rlnFinalResolution")[0]
    )
    ours = fsc.half_map_fsc(first, second, PIXEL, cutting, force_mask=force)
    assert ours.resolution().last_shell == pytest.approx(theirs, abs=0.01)
    assert "the mask cuts into the protein" in " ".join(ours.warnings)
