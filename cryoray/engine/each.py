"""One function, called for each of many items: by threads of this process, or by tasks on Ray.

Ray is imported where it is used alone: a small job is done before it would have been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from cryoray.engine import local
from cryoray.settings import RuntimeSettings

T = TypeVar("T")
R = TypeVar("R")


def by_threads(function: Callable[..., R], items: Sequence[T], *shared: object) -> Iterator[R]:
    """Results in the order of ``items``; each call gets one torch thread."""

    def call(item: tuple[int, T]) -> tuple[int, R]:
        return item[0], function(item[1], *shared)

    early: dict[int, R] = {}
    following = 0
    for number, result in local.in_threads(call, enumerate(items)):
        early[number] = result
        while following in early:
            yield early.pop(following)
            following += 1


def by_ray(
    settings: RuntimeSettings, function: Callable[..., R], items: Sequence[T], *shared: object
) -> Iterator[R]:
    """The same by tasks on the Ray that the settings name; ``shared`` travels once."""
    import ray

    from cryoray.engine import runtime

    runtime.connect(settings)

    def run(item: T, *shared: Any) -> R:
        torch.set_num_threads(1)  # a task for each core
        return function(item, *shared)

    task = ray.remote(run)
    references = [ray.put(one) for one in shared]
    for one in [task.remote(item, *references) for item in items]:
        yield ray.get(one)
