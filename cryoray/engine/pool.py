"""Work in Ray's actors: one place says how many there are, and what they need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Datasource

from cryoray.engine.datasource import PreparedDatasource, RowRangeDatasource, to_rows
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import TOGETHER, finished, judge_prepared
from cryoray.models.profile import Profile
from cryoray.preparation.plan import Plan
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import OnProgress, Progress, Verdicts


def map_in_actors(
    source: Datasource,
    worker: type,
    arguments: Sequence[Any],
    name: str,
    *,
    batch_size: int | None = TOGETHER,
    batch_format: str = "pyarrow",
) -> Iterator[pa.Table]:
    """Have a pool of actors work on everything that a source reads.

    Args:
        source: also says by `len` in how many tasks it reads.
        worker: made of ``arguments`` once in each actor, and called with each batch.
        arguments: of ``worker``.
        name: in Ray's dashboard.
        batch_size: rows in a batch; None: a whole block.
        batch_format: of what ``worker`` is given: ``pyarrow`` or ``numpy``.

    Yields:
        what came of each batch, in any order.
    """
    resources = ray.cluster_resources()
    gpus, tasks = int(resources.get("GPU", 0)), len(source)
    # Reading costs as much as judging, and a pool that takes all CPUs would wait for its readers for ever.
    most = gpus or max(1, int(resources["CPU"]) // 2)
    dataset = ray.data.read_datasource(source, override_num_blocks=tasks).map_batches(
        worker,
        fn_constructor_args=tuple(arguments),
        batch_size=batch_size,
        batch_format=batch_format,
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, min(most, tasks))),
        num_cpus=0.5,
        num_gpus=1 if gpus else 0,
    )
    dataset.set_name(name)
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


class _Judge:
    """The actor that holds an ensemble: prepared images in, verdicts out.

    Args:
        path: the ensemble's folder.
        review: False: it leaves nothing under review.
        everyone: ask d3 about every image.
        policy: of `Ensemble.with_policy`.
        profiles: of the projects that rows are of (`Ensemble.with_profile`).
        starts: the first row of each, ascending.
    """

    def __init__(
        self,
        path: Path,
        review: bool,
        everyone: bool = False,
        policy: str | None = None,
        profiles: Sequence[Profile | None] = (None,),
        starts: Sequence[int] = (0,),
    ) -> None:
        ensemble = Ensemble.load(path, review=review, policy=policy)
        self.judges = [ensemble.with_profile(profile).to() for profile in profiles]
        self.starts = np.array(starts)
        self.everyone = everyone

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Columns of `RowRangeDatasource`, or of `PreparedDatasource`, to `JUDGED_SCHEMA`."""
        of = np.searchsorted(self.starts, batch["row"], side="right") - 1
        judged = []
        for number in np.unique(of).tolist():
            here = {name: column[of == number] for name, column in batch.items()}
            judged.append(self._judge(here, self.judges[number]))
        return Verdicts.together(judged).table

    def _judge(self, batch: dict[str, np.ndarray], ensemble: Ensemble) -> Verdicts:
        if "reason" in batch:
            (judged,) = judge_prepared([to_rows(batch)], ensemble)
            return judged
        judged = ensemble.judge(batch["image"], batch["features"], everyone=self.everyone)
        return judged.renumbered(batch["row"])


def judge_plans(
    plans: Sequence[Plan],
    ensemble: Ensemble | Sequence[Ensemble],
    review: bool,
    range_mib: int,
    on_progress: OnProgress,
) -> list[Verdicts]:
    """Judge all rows of some plans by Ray's workers; see `models.predict.judge_ranges`.

    Args:
        plans: with ``ensemble.preparation``.
        ensemble: is loaded from its folder by every actor; or one for each plan, the same within the
            project of each.
        review: False: nothing is left under review.
        range_mib: raw MiB of a read task, up to twice as many.
        on_progress: called after each block.

    Returns:
        the verdicts of each plan.
    """
    judges = [ensemble] * len(plans) if isinstance(ensemble, Ensemble) else ensemble
    # One data set over the ranges of all plans; rows are numbered on from plan to plan.
    starts = np.cumsum([0, *(len(each.source) for each in plans)]).tolist()
    ranges = [
        replace(part, rows=part.rows + start)
        for each, start in zip(plans, starts, strict=False)
        for part in each.ranges
    ]
    total = sum(len(each.wanted) for each in plans)
    done = sum(len(each.quarantined) for each in plans)
    on_progress(Progress("judge", done, total))
    parts: list[Verdicts] = []
    if ranges:
        first = judges[0]
        source = RowRangeDatasource(ranges, first.preparation, range_mib)
        name = f"classify {plans[0].source.name}"
        profiles = [each.profile for each in judges]
        arguments = (first.path, review, False, first.policy, profiles, starts[:-1])
        for batch in map_in_actors(source, _Judge, arguments, name, batch_format="numpy"):
            parts.append(Verdicts(batch))
            done += len(batch)
            on_progress(Progress("judge", done, total))
    together = Verdicts.together(parts)
    return [
        finished(each.quarantined, [together.between(start, end).renumbered(-start)], judge.about)
        for each, judge, start, end in zip(plans, judges, starts[:-1], starts[1:], strict=True)
    ]


def judge_set(
    examples: PreparedSet,
    rows: np.ndarray,
    ensemble: Ensemble,
    on_progress: OnProgress,
    *,
    everyone: bool = False,
) -> Verdicts:
    """Judge images of a prepared set by Ray's workers; see `models.predict.judge_set`.

    Args:
        examples: prepared as ``ensemble.preparation`` says.
        rows: int64 [n], of the set, ascending.
        ensemble: is loaded from its folder by every actor.
        on_progress: called after each block, of stage ``evaluate``.
        everyone: ask d3 about every image.
    """
    source = PreparedDatasource([(examples.path, rows)], ensemble.features)
    name, arguments = (
        f"evaluate {ensemble.digest[:10]}",
        (
            ensemble.path,
            True,
            everyone,
            ensemble.policy,
            [ensemble.profile],
        ),
    )
    parts, done = [Verdicts.none(ensemble.about)], 0
    for batch in map_in_actors(source, _Judge, arguments, name, batch_format="numpy"):
        parts.append(Verdicts(batch))
        done += len(batch)
        on_progress(Progress("evaluate", done, len(rows), "images"))
    return Verdicts.together(parts)
