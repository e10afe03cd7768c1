"""Maps to test with: a phantom, and its half-maps with noise of a stated spectrum."""

from __future__ import annotations

import numpy as np
import torch

from cryoray.maps import fsc
from cryoray.simulation.phantom import density, random_structure

PIXEL = 4.0


def phantom(side: int = 32, seed: int = 3, family: str = "multi-domain") -> torch.Tensor:
    """float32 [side, side, side] of unit deviation, band-limited well inside Nyquist."""
    structure = random_structure(np.random.default_rng(seed), 0.55 * side * PIXEL, family)
    volume = torch.from_numpy(density(structure, side, PIXEL))
    return _unit(fsc.low_passed(volume, PIXEL, 2.6 * PIXEL))


def half_maps(
    volume: torch.Tensor, noise: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The map with two independent white noises of the given deviation."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(volume.shape, generator=generator) for _ in range(2))
    return volume + noise * first, volume + noise * second


def _unit(volume: torch.Tensor) -> torch.Tensor:
    return volume / volume.std()
