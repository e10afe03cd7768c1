"""Sends row ranges to preparers and judges on Ray Serve, and again where a replica was lost."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter as Tally
from collections.abc import Callable, Mapping
from typing import Any

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cryoray.errors import CryorayError
from cryoray.models.predict import Embedded
from cryoray.records import RowRange
from cryoray.serving.batches import Room
from cryoray.serving.counts import Counts
from cryoray.serving.judging import JudgedRange, JudgesFailedError, Work
from cryoray.serving.lineup import Followed, Served, sentence
from cryoray.serving.shadow import Comparison
from cryoray.serving.supervisor import Report, Standing

#: Health is answered within two seconds, whatever the replicas do.
_HEALTH_SECONDS = 1.5
#: How long a good answer of the replicas stands for one that is late.
_HEALTHY_SECONDS = 2.0
_ATTEND_SECONDS = 10.0
#: Seconds before a range is sent again whose replica was lost; a new one takes some to start.
_AGAIN_SECONDS = (0.1, 0.5, 2.0, 5.0)
#: Batches that may be under way before it is known how many replicas there are.
_FEWEST = 4
#: A smaller range counts as so many images, for what it costs to send it around.
_SMALL = 32

#: What a replica or a node that is gone looks like from here.
_LOST = (RayActorError, NodeDiedError, ObjectLostError, RayServeException)


class Dispatcher:
    """Judges with the deployments of one application.

    Args:
        lineup: the ensembles that are active, as the supervisor says.
        supervisor: its deployment.
        preparer: the deployment of preparers.
        judges: the deployment of judges, by name of ensemble; the shadow's among them.
        counts: where it is counted.
        comparison: with the shadow.
        batch: images that a judge takes together.
    """

    def __init__(
        self,
        lineup: Followed,
        supervisor: DeploymentHandle,
        preparer: DeploymentHandle,
        judges: Mapping[str, DeploymentHandle],
        counts: Counts,
        comparison: Comparison,
        batch: int,
    ) -> None:
        self.lineup, self.supervisor, self.preparer = lineup, supervisor, preparer
        self.judges, self.counts, self.comparison = dict(judges), counts, comparison
        self._name = uuid.uuid4().hex
        self._queued: Tally[str] = Tally()
        self._batch = batch
        self._room = Room(_FEWEST * batch)
        self._healthy_at = -float("inf")
        self._asking: asyncio.Task[bool] | None = None

    async def embed(self, work: Work) -> list[Embedded]:
        """What the ensemble's members see in ranges, for a profile.

        Raises:
            JudgesFailedError: it failed, or replica after replica was lost.
        """
        embed = self.judges[work.served.name].embed.remote
        return list(
            await asyncio.gather(
                *(
                    self._one(work, part, lambda given: embed(given, work.served))
                    for part in work.ranges
                )
            )
        )

    async def judge(self, work: Work) -> list[JudgedRange]:
        """Have ranges prepared and judged; a range whose replica was lost goes to another.

        Raises:
            JudgesFailedError: judging failed, or replica after replica was lost.
        """
        served = work.served
        images = sum(len(part.rows) for part in work.ranges)
        self._wait(served.name, images)
        # So that a request of a few rows need not wait for all of one with a million.
        mine = Room(self._room.limit)

        async def one(part: RowRange) -> JudgedRange:
            nonlocal images
            size = max(len(part.rows), _SMALL)
            async with mine.of(size), self._room.of(size):
                begun = time.perf_counter()
                judged: JudgedRange = await self._one(
                    work,
                    part,
                    lambda given: self.judges[served.name].remote(given, served, work.profile),
                )
                self.counts.measured(judged, time.perf_counter() - begun)
            self._wait(served.name, -len(part.rows))
            images -= len(part.rows)
            return judged

        tasks = [asyncio.ensure_future(one(part)) for part in work.ranges]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            self._wait(served.name, -images)

    async def _one(self, work: Work, part: RowRange, ask: Callable[[Any], Any]) -> Any:
        """What a judge answers who is asked about a range that was prepared."""
        served = work.served
        # An ensemble that takes its judges down must not do so for long.
        again = _AGAIN_SECONDS[: 1 if self.lineup.before(served) else None]
        for pause in (*again, None):
            # The response is handed on unread: its pixels go from preparer to judge directly.
            prepared = self.preparer.remote(part, served.preparation, work.scope)
            judged = ask(prepared)
            try:
                return await judged
            except asyncio.CancelledError:
                judged.cancel()
                prepared.cancel()
                raise
            except _LOST as error:
                self.counts.lost.inc()
                if pause is None:
                    raise _failed(served, error) from error
                await asyncio.sleep(pause)
            except (RayError, CryorayError) as error:
                raise _failed(served, error) from error
        raise AssertionError

    async def beside(self, work: Work) -> list[JudgedRange]:
        """Have the shadow judge ranges, one after the other."""
        shadow = self.judges[work.served.name]
        return [await shadow.remote(part, work.served, work.scope) for part in work.ranges]

    async def attend(self) -> None:
        """Exchange with the supervisor what each has to know; while it is away, all stays as it was."""
        queued = {name: self._queued[name] for name in self.judges}
        mine = Report(queued, self.counts.collected(), self.comparison.own())
        standing: Standing = await asyncio.wait_for(
            self.supervisor.heard.remote(self._name, mine), _ATTEND_SECONDS
        )
        self.lineup.update(standing)
        self.counts.others = [one.counts for one in standing.others]
        self.comparison.others = [one.shadow for one in standing.others]
        # One full batch is worked on in each replica while the next gathers; more would only fill the
        # object store. Images count and not ranges, or those of small stacks never fill a batch.
        batches = max(_FEWEST, -(-2 * standing.replicas // standing.ingresses))
        self._room.resize(batches * self._batch)

    def _wait(self, name: str, images: int) -> None:
        self._queued[name] += images
        self.counts.queued.labels(name).set(self._queued[name])

    async def ready(self) -> bool:
        """Whether the preparers and all ensembles' judges answer, with the ensemble that is active.

        Those that are too busy to answer at once, and did so moments ago, are taken to be there. Whoever asks
        while they are being asked gets the same answer: anybody may ask, and replicas have other work.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> bool:
        asked = [
            self.preparer.ready.remote(),
            *(
                self.judges[name].ready.remote(served)
                for name, served in self.lineup.items()
                if name != self.comparison.name
            ),
        ]
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                await asyncio.gather(*asked)
        except TimeoutError:
            return time.monotonic() - self._healthy_at < _HEALTHY_SECONDS
        except Exception:
            return False
        self._healthy_at = time.monotonic()
        return True


def _failed(served: Served, error: BaseException) -> JudgesFailedError:
    return JudgesFailedError(
        f"The judges of {served.name} failed, try again: {sentence(error).rstrip('.')}."
    )
