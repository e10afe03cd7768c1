"""Is the right 3D class first? On maps reconstructed from simulated projections, of proteins never seen.

Each job is of another random structure and has four classes of as many projections, seen with the same
noise: *good* (poses a few degrees off), *few sides* (from six directions), *misaligned* (poses far off), and
*over-fitted*: noise alone, each image turned as it correlates best with a map of the structure. They are no
jobs of RELION, and there are as many particles in each class, so that neither share, resolution nor
completeness can help.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import torch

from benchmarks.common import main, result
from cryoray.boosting.within_job import evidence
from cryoray.maps import reconstruct
from cryoray.preparation.volume_features import MEASURED
from cryoray.preparation.volume_features import measure as look
from cryoray.simulation.microscope import Projector, random_angles
from cryoray.simulation.phantom import Structure, families, random_structure

JOBS, PARTICLES, SIDE, PIXEL_SIZE, SNR = 30, 300, 48, 5.0, 0.1
KINDS = ("good", "few sides", "misaligned", "over-fitted")
#: Poses that a noise image may take.
_POSES = 60


def measure() -> dict[str, Any]:
    first = dict.fromkeys(KINDS, 0)
    margins = []
    for number, family in enumerate(islice(families(7), JOBS)):
        rng = np.random.default_rng(number)
        structure = random_structure(rng, float(rng.uniform(100, 170)), family)
        maps = [_map(structure, kind, rng) for kind in KINDS]
        radius = 0.55 * structure.diameter / (SIDE * PIXEL_SIZE)
        seen = [look(_masked(volume, radius * SIDE), radius) for volume in maps]
        traits = {name: np.array([one[name] for one in seen]) for name in MEASURED}
        odds = evidence(traits, len(KINDS))
        first[KINDS[int(np.argmax(odds))]] += 1
        margins.append(float(odds[0] - odds[1:].max()))
    rows = [
        {"class": kind, "ranked first, jobs": count, "share": round(count / JOBS, 3)}
        for kind, count in first.items()
    ]
    return result(
        "In how many jobs is the class with good poses ranked first, by its map alone?",
        rows,
        notes=[f"{JOBS} jobs; median margin of the good class {np.median(margins):.2f} log-odds"],
    )


def _map(structure: Structure, kind: str, rng: np.random.Generator) -> np.ndarray:
    projector = Projector(structure, SIDE, PIXEL_SIZE)
    angles = random_angles(rng, PARTICLES).astype(np.float64)
    if kind == "few sides":
        angles = angles[:6][rng.integers(6, size=PARTICLES)] + rng.normal(0, 3, angles.shape)
    images = _images(projector, angles)
    images *= np.sqrt(SNR) / float(images.std())
    noise = torch.from_numpy(rng.normal(size=tuple(images.shape)).astype(np.float32))
    if kind == "over-fitted":
        tried = random_angles(rng, _POSES).astype(np.float64)
        templates = _images(projector, tried).flatten(1)
        best = (noise.flatten(1) @ (templates / templates.norm(dim=1, keepdim=True)).T).argmax(1)
        images, angles = noise, tried[best.numpy()]
    else:
        images = images + noise
        angles = angles + rng.normal(0, 35 if kind == "misaligned" else 4, angles.shape)
    sums = reconstruct.empty(SIDE)
    nowhere = np.zeros((PARTICLES, 2))
    reconstruct.insert(sums, images, reconstruct.Poses(angles, nowhere, None, PIXEL_SIZE))
    # Without iterations, which diverge where no view was.
    return reconstruct.invert(sums, SIDE, iterations=0).numpy()


def _images(projector: Projector, angles: np.ndarray) -> torch.Tensor:
    return torch.fft.fftshift(torch.fft.irfft2(projector.slices(angles), s=(SIDE, SIDE)), (1, 2))


def _masked(volume: np.ndarray, radius: float) -> np.ndarray:
    z, y, x = np.indices(volume.shape) - SIDE // 2
    return np.asarray(volume * (z**2 + y**2 + x**2 < radius**2), np.float32)


if __name__ == "__main__":
    main(measure)
