"""FSC of two half-maps: time beside torch-fourier-shell-correlation and RELION, and how far curves differ."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import Row, command, main, result
from cryoray.formats.star import parse
from cryoray.formats.volume import write_volume
from cryoray.maps import fsc
from cryoray.simulation.phantom import blurred_density, random_structure

SIDE, PIXEL, REPEATS = 128, 2.0, 3


def halves() -> tuple[torch.Tensor, torch.Tensor]:
    structure = random_structure(np.random.default_rng(1), 0.55 * SIDE * PIXEL, "multi-domain")
    volume = torch.from_numpy(blurred_density(structure, SIDE, PIXEL))
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(volume.shape, generator=generator) for _ in range(2))
    return volume / volume.std() + first, volume / volume.std() + second


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """The median of some runs, after one that fills caches."""
    found, seconds = work(), []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return median(seconds), found


def measure() -> dict[str, Any]:
    """Unmasked FSC, and all curves with a mask."""
    first, second = halves()
    rows: list[Row] = []

    def add(what: str, seconds: float, difference: float | None) -> None:
        rows.append({"what": what, "seconds": seconds, "largest difference to RELION": difference})

    mask, _ = fsc.automatic_mask((first + second) / 2, PIXEL)
    theirs: dict[str, np.ndarray] = {}
    relion = 0.0
    if shutil.which("relion_postprocess"):
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            for name, volume in (("half1", first), ("half2", second), ("mask", mask)):
                write_volume(folder / f"{name}.mrc", volume.numpy(), PIXEL)
            (folder / "job").mkdir()
            words = "relion_postprocess --i half1.mrc --i2 half2.mrc --mask mask.mrc --force_mask"
            relion = median(
                command(*f"{words} --angpix {PIXEL} --o job/post".split(), cwd=folder).seconds
                for _ in range(REPEATS)
            )
            table = parse(folder / "job" / "post.star")["fsc"]
            theirs = {
                "unmasked": table.numbers("rlnFourierShellCorrelationUnmaskedMaps"),
                "masked": table.numbers("rlnFourierShellCorrelationMaskedMaps"),
            }

    def beside(curve: np.ndarray, name: str) -> float | None:
        return float(np.abs(curve - theirs[name]).max()) if theirs else None

    seconds, curve = timed(lambda: fsc.correlation(first, second))
    add("unmasked curve: cryoray", seconds, beside(curve, "unmasked"))
    if find_spec("torch_fourier_shell_correlation"):
        peer = import_module("torch_fourier_shell_correlation")
        seconds, curve = timed(lambda: peer.fourier_shell_correlation(first, second).numpy())
        add("unmasked curve: torch-fourier-shell-correlation", seconds, beside(curve, "unmasked"))
    for draws in (1, 5):
        seconds, found = timed(
            lambda draws=draws: fsc.half_map_fsc(first, second, PIXEL, mask, draws=draws)  # type: ignore[misc]
        )
        add(
            f"all curves, {draws} draws of phases: cryoray", seconds, beside(found.masked, "masked")
        )
    if theirs:
        add("all curves, sharpening, plots: relion_postprocess", relion, 0.0)
    return result(
        f"FSC of two half-maps of {SIDE}³ voxels",
        rows,
        notes=[
            f"the median of {REPEATS} runs, on {torch.get_num_threads()} threads; RELION on one",
            "RELION's time has its start, sharpening and plots in it",
        ],
    )


if __name__ == "__main__":
    main(measure)
