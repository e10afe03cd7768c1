"""A shadow ensemble judges, in spare time, what the active ones have answered; their agreement is counted."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import numpy as np

from cryoray.formats.opening import Scope
from cryoray.protocol.messages import Agreement, ShadowReport
from cryoray.records import VERDICTS, Verdicts
from cryoray.serving.counts import Counts
from cryoray.serving.judging import JudgedRange, Work
from cryoray.serving.lineup import Active, Served
from cryoray.serving.sources import Chosen

_log = logging.getLogger("ray.serve.cryoray")

#: Requests that may wait for the shadow; what comes while they do is skipped, never queued.
_WAITING = 4


@dataclass
class _Tally:
    """Two ensembles' verdicts on the same images, counted."""

    images: int = 0
    agreed: int = 0
    difference: float = 0.0
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)


Plan = Callable[[Served], Awaitable[Chosen]]
Judge = Callable[[Work], Awaitable[list[JudgedRange]]]


class Comparison:
    """One shadow beside the active ensembles of its kind.

    Args:
        name: of the shadow in the lineup; None where there is none.
        lineup: whose ensembles answer.
        judge: has the shadow judge ranges.
        counts: where agreement is counted for Prometheus.

    Attributes:
        others: what other ingresses have compared, as `own` there.
    """

    def __init__(
        self,
        name: str | None,
        lineup: Active,
        judge: Judge,
        counts: Counts,
    ) -> None:
        self.name, self._lineup, self._judge, self._counts = name, lineup, judge, counts
        self.others: Sequence[ShadowReport] = ()
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tallies: dict[tuple[str, str, str], _Tally] = {}
        self._skipped = self._failed = 0
        self._last_failure: str | None = None

    def see(
        self,
        active: Served,
        answer: Verdicts,
        plan: Plan,
        scope: Scope,
        keep: AsyncExitStack | None = None,
    ) -> None:
        """Have the shadow judge the same later, if it has time; returns at once.

        Args:
            active: whose answer it was.
            answer: it.
            plan: finds the rows again, for the shadow's own preparation and features.
            scope: in which files are opened.
            keep: what holds an upload; it is taken over, and closed when the shadow has read it.
        """
        shadow = self._lineup[self.name] if self.name is not None else None
        if shadow is None or shadow.kind != active.kind:
            return
        if len(self._tasks) >= _WAITING:
            self._skip(answer)
            return
        held = keep.pop_all() if keep is not None else AsyncExitStack()
        task = asyncio.create_task(self._compare(active, shadow, answer, plan, scope, held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(
        self,
        active: Served,
        shadow: Served,
        answer: Verdicts,
        plan: Plan,
        scope: Scope,
        held: AsyncExitStack,
    ) -> None:
        images = len(answer.rows)
        try:
            async with held, self._turn:
                chosen = await plan(shadow)
                shadowed = await self._judge(Work(shadow, chosen.ranges, scope))
            await asyncio.to_thread(
                self._tally,
                active,
                shadow,
                answer,
                Verdicts.together(one.verdicts for one in shadowed),
            )
        except Exception as error:  # of the shadow, which nobody asked
            _log.warning("the shadow failed: %r", error)
            self._failed += images
            self._last_failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            self._counts.shadow_failed.inc(images)

    def _skip(self, answer: Verdicts) -> None:
        images = len(answer.rows)
        self._skipped += images
        self._counts.shadow_skipped.inc(images)

    def _tally(self, active: Served, shadow: Served, ours: Verdicts, theirs: Verdicts) -> None:
        _, a, b = np.intersect1d(ours.rows, theirs.rows, return_indices=True)
        score, verdict = ours.score, ours.verdict
        its_score, its_verdict = theirs.score, theirs.verdict
        tally = self._tallies.setdefault((active.name, active.digest, shadow.digest), _Tally())
        pairs = Counter(zip(verdict[a].tolist(), its_verdict[b].tolist(), strict=True))
        tally.verdicts += pairs
        tally.images += len(a)
        tally.agreed += int(
            np.count_nonzero((score[a] >= active.threshold) == (its_score[b] >= shadow.threshold))
        )
        tally.difference += float(np.abs(score[a] - its_score[b]).sum())
        for (one, other), images in pairs.items():
            self._counts.shadow_images.labels(active.name, one, other).inc(images)

    def report(self) -> ShadowReport:
        """What was compared by all ingresses since the service started."""
        return together([self.own(), *self.others])

    def own(self) -> ShadowReport:
        """What this ingress compared."""
        return ShadowReport(
            shadow=self.name,
            agreements=[
                Agreement(
                    ensemble=name,
                    active=active,
                    shadow=shadow,
                    images=tally.images,
                    agreement=tally.agreed / tally.images if tally.images else None,
                    score_difference=tally.difference / tally.images if tally.images else None,
                    verdicts={
                        one: {other: tally.verdicts[one, other] for other in VERDICTS}
                        for one in VERDICTS
                    },
                )
                for (name, active, shadow), tally in self._tallies.items()
            ],
            skipped=self._skipped,
            failed=self._failed,
            last_failure=self._last_failure,
        )


def together(reports: Sequence[ShadowReport]) -> ShadowReport:
    """What several ingresses compared."""
    alike: dict[tuple[str, str, str], list[Agreement]] = {}
    for one in (each for report in reports for each in report.agreements):
        alike.setdefault((one.ensemble, one.active, one.shadow), []).append(one)
    return ShadowReport(
        shadow=reports[0].shadow,
        agreements=[_sum(some) for some in alike.values()],
        skipped=sum(one.skipped for one in reports),
        failed=sum(one.failed for one in reports),
        last_failure=next((one.last_failure for one in reports if one.last_failure), None),
    )


def _sum(some: Sequence[Agreement]) -> Agreement:
    images = sum(one.images for one in some)

    def mean(name: str) -> float | None:
        total = sum(one.images * (getattr(one, name) or 0.0) for one in some)
        return total / images if images else None

    return some[0].model_copy(
        update={
            "images": images,
            "agreement": mean("agreement"),
            "score_difference": mean("score_difference"),
            "verdicts": {
                one: {other: sum(each.verdicts[one][other] for each in some) for other in VERDICTS}
                for one in VERDICTS
            },
        }
    )
