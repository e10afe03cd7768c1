"""Work in this process: on one machine threads are done before Ray has started, and as fast afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from cryoray.models import predict
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import (
    TOGETHER,
    Embedded,
    embed_ranges,
    finished,
    judge_ranges,
    profile_of,
    profiled_rows,
)
from cryoray.models.profile import NO_PROFILE, Profile
from cryoray.preparation.plan import Plan, grouped
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import OnProgress, Progress, RowRange, Verdicts
from cryoray.settings import RuntimeSettings

#: Images in a piece of work: a full batch of the networks many times over, and enough pieces for all cores.
_PIECE = TOGETHER // 2

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def suffices(raw_bytes: int, most_mib: int, runtime: RuntimeSettings) -> bool:
    """Whether this process should do the work: no Ray was named, and it is not too much for one machine."""
    if runtime.address or os.environ.get("RAY_ADDRESS"):
        return False
    return raw_bytes <= most_mib << 20


def cores() -> int:
    """Of this machine, as far as this process may use them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(do: Callable[[Thing], Result], things: Iterable[Thing]) -> Iterator[Result]:
    """Do all things, one on each core at a time; results as they come, in any order.

    numpy, torch and reading let go of Python's lock. Each thread adds up by itself, as a worker of Ray does:
    the order of adding is part of a result.
    """
    before, interrupted = torch.get_num_threads(), False
    pool = ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,))
    try:
        doing = [pool.submit(do, thing) for thing in things]
        for done in as_completed(doing):
            yield done.result()
    except KeyboardInterrupt:  # whoever says stop does not want to wait for what is under way
        interrupted = True
        raise
    finally:
        pool.shutdown(wait=not interrupted, cancel_futures=True)
        torch.set_num_threads(before)


def profiles(plans: Sequence[Plan], ensemble: Ensemble) -> list[Profile | None]:
    """The profile of each plan's source; see `models.predict.profile_plan`.

    Args:
        plans: of whole sources, with ``ensemble.preparation``.
        ensemble: is moved to the best device.
    """
    ensemble = ensemble.to()
    made = []
    for each in plans:
        ranges = [[part] for part in profiled_rows(each.ranges)]
        found: list[Embedded] = []
        for seen in in_threads(partial(embed_ranges, ensemble=ensemble), ranges):
            found += seen
        made.append(profile_of(found, ensemble.digest))
    return made


def with_profiles(plans: Sequence[Plan], ensemble: Ensemble, profile: str | None) -> list[Ensemble]:
    """Who judges each plan: the ensemble within the plan's project, where it can.

    Args:
        plans: of whole sources, with ``ensemble.preparation``.
        ensemble: is moved to the best device.
        profile: file of the project's profile, or `NO_PROFILE`; None: one is made of each plan's source.

    Raises:
        InputError: the profile that is given cannot be read.
        EnsembleError: it is of another ensemble.
    """
    if not ensemble.takes_profile or profile == NO_PROFILE:
        return [ensemble] * len(plans)
    if profile is not None:
        return [ensemble.with_profile(Profile.load(Path(profile)))] * len(plans)
    return [ensemble.with_profile(made) for made in profiles(plans, ensemble)]


def judge_plans(
    plans: Sequence[Plan],
    ensemble: Ensemble | Sequence[Ensemble],
    range_mib: int,
    on_progress: OnProgress,
) -> list[Verdicts]:
    """Judge all rows of some plans; see `models.predict.judge_ranges`.

    Args:
        plans: with ``ensemble.preparation``.
        ensemble: is moved to the best device; or one for each plan, each within its project.
        range_mib: raw MiB that a thread reads at a time, up to twice as many.
        on_progress: called after each piece.

    Returns:
        the verdicts of each plan.
    """
    given = [ensemble] * len(plans) if isinstance(ensemble, Ensemble) else ensemble
    judges = [each.to() for each in given]
    pieces = [
        (number, piece)
        for number, each in enumerate(plans)
        for piece in grouped(each.ranges, range_mib, _PIECE)
    ]

    def do(piece: tuple[int, list[RowRange]]) -> tuple[int, list[Verdicts]]:
        return piece[0], [*judge_ranges(piece[1], judges[piece[0]])]

    parts: list[list[Verdicts]] = [[] for _ in plans]
    total = sum(len(each.wanted) for each in plans)
    done = sum(len(each.quarantined) for each in plans)
    on_progress(Progress("judge", done, total))
    for number, judged in in_threads(do, pieces):
        parts[number] += judged
        done += sum(map(len, judged))
        on_progress(Progress("judge", done, total))
    return [
        finished(each.quarantined, some, judge.about)
        for each, some, judge in zip(plans, parts, judges, strict=True)
    ]


def judge_set(
    examples: PreparedSet,
    rows: np.ndarray,
    ensemble: Ensemble,
    on_progress: OnProgress,
    *,
    everyone: bool = False,
) -> Verdicts:
    """Judge images of a prepared set; see `models.predict.judge_set`.

    Args:
        examples: prepared as ``ensemble.preparation`` says.
        rows: int64 [n], of the set.
        ensemble: is moved to the best device.
        on_progress: called after each piece, of stage ``evaluate``.
        everyone: ask d3 about every image.
    """
    ensemble = ensemble.to()
    pieces = [rows[start : start + _PIECE] for start in range(0, len(rows), _PIECE)]

    def do(some: np.ndarray) -> list[Verdicts]:
        return [*predict.judge_set(examples, some, ensemble, everyone=everyone)]

    parts: list[Verdicts] = []
    for judged in in_threads(do, pieces):
        parts += judged
        done = sum(map(len, parts))
        on_progress(Progress("evaluate", done, len(rows), "images"))
    return Verdicts.together(parts) if parts else Verdicts.none(ensemble.about)
