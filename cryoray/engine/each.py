"""One function, called for each of many items: by threads of this process, or by tasks on Ray.

Ray is imported where it is used alone: a small job is done before it would have been.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from cryoray.settings import RuntimeSettings

T = TypeVar("T")
R = TypeVar("R")


def threads() -> int:
    """How many threads work side by side: one for each core that this process may use."""
    return len(os.sched_getaffinity(0))


def by_threads(function: Callable[..., R], items: Sequence[T], *shared: object) -> Iterator[R]:
    """Results in the order of ``items``; each call gets one torch thread."""
    with _one_torch_thread(), ThreadPoolExecutor(threads()) as pool:
        waiting = [pool.submit(function, item, *shared) for item in items]
        try:
            for one in waiting:
                yield one.result()
        finally:
            for one in waiting:
                one.cancel()


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


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
