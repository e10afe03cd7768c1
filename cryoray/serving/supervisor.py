"""The one deployment that looks after the others: which ensemble is active, what waits, who is there.

There are several ingresses, so that one may be lost; each reports here every few seconds and learns which
ensembles answer and what the other ingresses have counted. While this one is away, they go on with what
they know.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from prometheus_client.metrics_core import Metric
from ray.serve.handle import DeploymentHandle

from cryoray.errors import EnsembleError
from cryoray.protocol.messages import ServiceEvent, ShadowReport
from cryoray.serving.lineup import Lineup, Served, active, attempt
from cryoray.settings import ServeSettings

_log = logging.getLogger("ray.serve.cryoray")

_ATTEMPT_SECONDS = 120.0
_ATTEND_SECONDS = 10.0
#: An ingress that has not reported for so long is gone; what it had counted still counts.
_GONE_SECONDS = 15.0
_REMEMBERED = 100


@dataclass(frozen=True, slots=True)
class Report:
    """What an ingress says of itself.

    Attributes:
        queued: images that wait there, by ensemble.
        counts: what it has counted.
        shadow: how the shadow compares.
    """

    queued: Mapping[str, int]
    counts: Sequence[Metric]
    shadow: ShadowReport


@dataclass(frozen=True, slots=True)
class Standing:
    """What an ingress has to know of the rest.

    Attributes:
        served: the active ensembles by name, the shadow's among them.
        before: by name, what takes the place of one on probation, and the seconds that it still is.
        events: the latest of what happened.
        replicas: preparers and judges that answer.
        ingresses: that report.
        others: what the other ingresses reported last, those that are gone included.
    """

    served: Mapping[str, Served]
    before: Mapping[str, tuple[Served, float]]
    events: tuple[ServiceEvent, ...]
    replicas: int
    ingresses: int
    others: tuple[Report, ...]


class Supervisor:
    """Follows the registry for all ingresses, and tells the replicas what waits and what is active.

    Args:
        settings: ``poll`` and ``probation`` are used.
        ensembles: by name; the first is the default.
        root: of the registry.
        preparer: the deployment of preparers.
        judges: the deployment of judges, by name of ensemble.
        shadow: the ensemble that judges beside them, and its deployment.
    """

    def __init__(
        self,
        settings: ServeSettings,
        ensembles: Mapping[str, Served],
        root: Path,
        preparer: DeploymentHandle,
        judges: Mapping[str, DeploymentHandle],
        shadow: tuple[Served, DeploymentHandle] | None = None,
    ) -> None:
        self._poll, self._preparer = settings.poll, preparer
        self._shadow = shadow[0].name if shadow is not None else None
        served, self._judges = active(root, ensembles, judges, shadow)
        self._lineup = Lineup(
            served, root, probation=settings.probation, attempt=_attempt_elsewhere, hold=self._hold
        )
        self._reports: OrderedDict[str, tuple[float, Report]] = OrderedDict()
        self._replicas: Counter[str] = Counter()
        self._following: asyncio.Task[None] | None = None

    async def heard(self, ingress: str, report: Report) -> Standing:
        """Take an ingress's report, and answer with what it has to know."""
        self._start()
        self._reports[ingress] = (time.monotonic(), report)
        self._reports.move_to_end(ingress)
        while len(self._reports) > _REMEMBERED:
            self._reports.popitem(last=False)
        return self._standing(ingress)

    async def failed(self, served: Served, reason: str) -> Served | None:
        """What answers instead of an ensemble whose judges failed; None where there is nothing."""
        return await self._lineup.failed(served, EnsembleError(reason.rstrip(".")))

    def _start(self) -> None:
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow())

    def _standing(self, ingress: str) -> Standing:
        lineup = self._lineup
        return Standing(
            served=dict(lineup),
            before={name: kept for name in lineup if (kept := lineup.probation(name))},
            events=tuple(lineup.events),
            replicas=sum(self._replicas.values()),
            ingresses=max(1, len(self._present())),
            others=tuple(report for who, (_, report) in self._reports.items() if who != ingress),
        )

    def _present(self) -> list[Report]:
        now = time.monotonic()
        return [report for at, report in self._reports.values() if now - at < _GONE_SECONDS]

    def _queued(self) -> Counter[str]:
        waiting: Counter[str] = Counter()
        for report in self._present():
            waiting.update(report.queued)
        return waiting

    async def _follow(self) -> None:
        while True:
            try:
                await self._attend()
                await self._lineup.follow()
            except Exception:  # this loop must not end
                _log.exception("the lineup could not be followed")
            await asyncio.sleep(self._poll)

    async def _hold(self, served: Served) -> None:
        """Have all judges of its name load an ensemble.

        Raises:
            EnsembleError: there is none.
            RayError: one of them failed to.
        """
        judges = self._judges[served.name]
        asked = judges.broadcast("attend", served, self._queued()[served.name])
        if not await asked.results_async(timeout_s=_ATTEMPT_SECONDS):
            raise RuntimeError(f"No judge of {served.name} answers.")

    async def _attend(self) -> None:
        """Tell all replicas what waits and which ensemble is active, and count them."""
        queued = self._queued()
        asked = {
            name: judges.broadcast("attend", self._lineup[name], queued[name])
            for name, judges in self._judges.items()
            if name != self._shadow  # nobody waits for it
        }
        asked[""] = self._preparer.broadcast("attend", sum(queued.values()))
        for name, responses in asked.items():
            results = await responses.results_async(
                timeout_s=_ATTEND_SECONDS, return_exceptions=True
            )
            self._replicas[name] = sum(not isinstance(result, Exception) for result in results)


async def _attempt_elsewhere(name: str, path: Path) -> Served:
    """Try an ensemble in a process of its own, which may die of it."""
    remote = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(attempt)
    return await asyncio.wait_for(remote.remote(name, path), _ATTEMPT_SECONDS)
