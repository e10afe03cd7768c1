"""Reconstruction in parts: particles to sums, sums to one sum, sums to maps; by threads here, or on Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from cryoray.engine import each, local
from cryoray.maps import reconstruct
from cryoray.maps.particles import Particles, summed
from cryoray.settings import RuntimeSettings

#: Fewer particles than this are not worth a part of their own: its sums have to be held and added.
_FEWEST = 500


class Reducer(Protocol):
    """Makes sums and maps somewhere; what it calls sums only it can read."""

    def accumulate(self, particles: Particles) -> Any | None:
        """The sums of particles; None where there are none."""

    def total(self, sums: Sequence[Any | None]) -> Any | None:
        """Sums of sums; what is None counts nothing."""

    def maps(self, sums: Sequence[Any], box: int, operators: np.ndarray) -> list[np.ndarray]:
        """The maps of sums, each float32 [box, box, box]; ``operators``: see `reconstruct.invert`."""


class ByThreads:
    """A `Reducer` in this process: quicker than starting Ray for a few thousand particles."""

    def accumulate(self, particles: Particles) -> np.ndarray | None:
        """See `Reducer`."""
        parts = min(local.cores(), max(1, len(particles) // _FEWEST))
        return self.total(list(each.by_threads(summed, _split(particles, parts))))

    def total(self, sums: Sequence[np.ndarray | None]) -> np.ndarray | None:
        """See `Reducer`."""
        known = [one for one in sums if one is not None]
        return sum(known[1:], start=known[0]) if known else None

    def maps(self, sums: Sequence[np.ndarray], box: int, operators: np.ndarray) -> list[np.ndarray]:
        """See `Reducer`."""
        return list(each.by_threads(_inverted, sums, box, operators))


class OnRay:
    """A `Reducer` on the Ray that the settings name: tasks over ranges of particles, added up in pairs.

    Args:
        settings: of the Ray that is started or joined.
        per_task: particles of a task; None: shared out over the cluster's CPUs.
    """

    def __init__(self, settings: RuntimeSettings, per_task: int | None = None) -> None:
        import ray

        from cryoray.engine import runtime

        runtime.connect(settings)
        self._ray, self._per_task = ray, per_task
        self._summed, self._added, self._inverted = (
            ray.remote(function) for function in (_summed_alone, _added, _inverted_alone)
        )

    def accumulate(self, particles: Particles) -> Any | None:
        """See `Reducer`."""
        n, there = len(particles), self._ray.cluster_resources()
        cpus = max(1, int(there.get("CPU", 1)))
        tasks = -(-n // self._per_task) if self._per_task else min(cpus, max(1, n // _FEWEST))
        task = self._summed.options(num_gpus=1 if there.get("GPU", 0) else 0)
        return self.total([task.remote(part) for part in _split(particles, tasks)])

    def total(self, sums: Sequence[Any | None]) -> Any | None:
        """See `Reducer`."""
        level = [one for one in sums if one is not None]
        while len(level) > 1:
            pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
            level = [self._added.remote(*pair) if len(pair) > 1 else pair[0] for pair in pairs]
        return level[0] if level else None

    def maps(self, sums: Sequence[Any], box: int, operators: np.ndarray) -> list[np.ndarray]:
        """See `Reducer`."""
        made = self._ray.get([self._inverted.remote(one, box, operators) for one in sums])
        return [one.copy() for one in made]  # Ray's arrays are read-only


def _split(particles: Particles, parts: int) -> list[Particles]:
    """In ranges as long as each other; none where there are no particles."""
    ranges = np.array_split(np.arange(len(particles)), parts) if len(particles) else []
    return [particles[rows] for rows in ranges]


def _inverted(sums: np.ndarray, box: int, operators: np.ndarray) -> np.ndarray:
    return reconstruct.invert(torch.from_numpy(sums), box, operators).numpy()


def _summed_alone(particles: Particles) -> np.ndarray:
    torch.set_num_threads(1)  # a task for each core
    return summed(particles)


def _added(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first + second


def _inverted_alone(sums: np.ndarray, box: int, operators: np.ndarray) -> np.ndarray:
    torch.set_num_threads(1)
    # Ray's arrays are read-only, and torch warns of that; nothing is written into them.
    return _inverted(sums.copy(), box, operators)
