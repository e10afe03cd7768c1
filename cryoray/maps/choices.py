"""Maps of choices of particles: which random sets they are compared with, and what their half-maps say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoray.errors import InputError
from cryoray.formats.volume import read_volume
from cryoray.maps import fsc
from cryoray.maps.numbers import directional_numbers, fsc_numbers
from cryoray.maps.reconstruct import b_factor
from cryoray.settings import ValidationSettings

#: Parts of a set, each as large as all before it together, for resolution against number of particles.
LEVELS = 5


@dataclass(frozen=True, slots=True, eq=False)
class HalfMaps:
    """Two half-maps and the particles in them."""

    halves: tuple[torch.Tensor, torch.Tensor]
    particles: int


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredSet:
    """What half-maps of a set of particles say about it."""

    particles: int
    curves: fsc.HalfMapFsc
    views: fsc.Directional
    truth: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        found: HalfMaps,
        pixel_size: float,
        mask: torch.Tensor | None,
        truth: torch.Tensor | None,
        chosen: ValidationSettings,
    ) -> MeasuredSet:
        """Measure half-maps, inside a mask where there is one, and against the true map where it is known."""
        curves = fsc.half_map_fsc(
            *found.halves, pixel_size, mask, draws=chosen.random_phases, seed=chosen.seed
        )
        weight = torch.ones(()) if mask is None else mask
        first, second = (half * weight for half in found.halves)
        views = fsc.directional_fsc(first, second, pixel_size)
        against = None if truth is None else fsc.correlation((first + second) / 2, truth * weight)
        return cls(found.particles, curves, views, against)

    @property
    def resolution(self) -> float | None:
        """Å at 0.143, interpolated."""
        return self.curves.resolution().interpolated

    @property
    def true_resolution(self) -> float | None:
        """Å at 0.5 against the true map, interpolated."""
        if self.truth is None:
            return None
        return fsc.resolution(self.curves.frequency, self.truth, 0.5).interpolated


def levels(rows: np.ndarray, half: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int8 [n]: the level at which each row comes in, a sixteenth, an eighth, … all; -1 outside ``rows``."""
    level = np.full(len(rows), -1, np.int8)
    for number in (1, 2):
        mine = rng.permutation(np.flatnonzero(rows & (half == number)))
        for i in reversed(range(LEVELS)):
            level[mine[: -(-len(mine) // 2 ** (LEVELS - 1 - i))]] = i
    return level


def as_many(rows: np.ndarray, half: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many random rows of each half as ``rows`` has there: bool [n]."""
    drawn = np.zeros(len(rows), bool)
    for number in (1, 2):
        mine = np.flatnonzero(half == number)
        drawn[rng.choice(mine, int((rows & (half == number)).sum()), replace=False)] = True
    return drawn


def true_map(truth: Path | None, source: Path, box: int) -> torch.Tensor | None:
    """The true map of simulated particles, float32 [box, box, box]: as given, or beside the source.

    Raises:
        InputError: it has another size.
    """
    path = truth or source.parent / "truth.mrc"
    if truth is None and not path.is_file():
        return None
    volume, _ = read_volume(path)
    if len(volume) != box:
        raise InputError(f"has {len(volume)}³ voxels where the particles have {box} px", file=path)
    return torch.from_numpy(volume)


def validation_numbers(
    measured: Mapping[str, MeasuredSet], reslog: Mapping[str, Sequence[MeasuredSet]]
) -> dict[str, Any]:
    """What ``metrics.json`` says: each set, resolution against number, the spread of random sets."""
    numbers: dict[str, Any] = {"sets": {}, "reslog": {}}
    for name, one in measured.items():
        numbers["sets"][name] = {
            "particles": one.particles,
            **fsc_numbers(one.curves),
            "directional": directional_numbers(one.views),
        }
        if one.truth is not None:
            numbers["sets"][name]["fsc_true"] = one.truth.tolist()
            numbers["sets"][name]["resolution_true_0.5"] = one.true_resolution
    for name, series in reslog.items():
        count = np.array([one.particles for one in series], float)
        limit = np.array([one.resolution or np.nan for one in series])
        numbers["reslog"][name] = {
            "particles": count.tolist(),
            "resolution": limit.tolist(),
            "b_factor": b_factor(count, limit),
        }
    random = random_of(measured)
    numbers["random_spread"] = {
        "resolution": _range([one.resolution for one in random]),
        "area_ratio": _range([one.views.area_ratio for one in random]),
        "resolution_true_0.5": _range([one.true_resolution for one in random]),
    }
    least = numbers["random_spread"]["area_ratio"]
    whole, kept = (measured[name].views.area_ratio for name in ("all", "kept"))
    numbers["more_anisotropic"] = bool(kept < whole and (least is None or kept < least["min"]))
    return numbers


def random_of(measured: Mapping[str, MeasuredSet]) -> list[MeasuredSet]:
    """Those of random subsets."""
    return [one for name, one in measured.items() if name.startswith("random ")]


def _range(values: Sequence[float | None]) -> dict[str, float] | None:
    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return None
    std = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return {
        "mean": float(known.mean()),
        "std": std,
        "min": float(known.min()),
        "max": float(known.max()),
    }
