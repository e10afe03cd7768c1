"""The deployment that judges: the three members of one ensemble together, over several requests at once."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ray import serve

from cryoray.errors import CryorayError, EnsembleError
from cryoray.formats.opening import Scope
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import judge_prepared
from cryoray.records import PreparedRows, RowRange, Verdicts
from cryoray.serving.lineup import Served
from cryoray.serving.preparer import Prepared, prepared
from cryoray.serving.scaling import Queue

#: The active ensemble, the one before it, and one that is promoted next.
_HELD = 3


@dataclass(frozen=True, slots=True, eq=False)
class JudgedRange:
    """What became of a row range, and how long it took.

    Attributes:
        verdicts: by source row.
        prepare_seconds: that reading and preparing took.
        judge_seconds: that the networks took, for the whole batch.
        batch: images in that batch; 0 for all but one of its ranges, so that it counts once.
    """

    verdicts: Verdicts
    prepare_seconds: float = 0.0
    judge_seconds: float = 0.0
    batch: int = 0


def judge_together(ensemble: Ensemble, parts: Sequence[PreparedRows]) -> list[JudgedRange]:
    """Judge the images of several ranges in one go."""
    begun = time.perf_counter()
    judged = judge_prepared(parts, ensemble)
    seconds = time.perf_counter() - begun
    images = sum(len(part.rows) for part in parts)
    return [
        JudgedRange(verdicts, judge_seconds=seconds, batch=0 if at else images)
        for at, verdicts in enumerate(judged)
    ]


class Held:
    """The ensembles that a process has loaded, the latest few.

    Loading another while requests are judged is what lets one be promoted without a pause.
    """

    def __init__(self) -> None:
        self._by_digest: OrderedDict[str, Ensemble] = OrderedDict()
        self._loading = asyncio.Lock()

    def load(self, served: Served) -> Ensemble:
        """The ensemble, from its files.

        Raises:
            EnsembleError: it is damaged, or another one by now.
        """
        ensemble = Ensemble.load(served.path).to()
        if ensemble.digest != served.digest:
            raise EnsembleError(
                f"is another ensemble than the one that is served, {served.digest}",
                file=served.path,
                remedy="promote it by name, or start the service again",
            )
        self._by_digest[served.digest] = ensemble
        while len(self._by_digest) > _HELD:
            self._by_digest.popitem(last=False)
        return ensemble

    async def get(self, served: Served) -> Ensemble:
        """The ensemble, loaded where it was not yet.

        Raises:
            EnsembleError: it is damaged, or another one by now.
        """
        if served.digest not in self._by_digest:
            async with self._loading:
                if served.digest not in self._by_digest:
                    return await asyncio.to_thread(self.load, served)
        self._by_digest.move_to_end(served.digest)
        return self._by_digest[served.digest]


class Judge(Queue):
    """Judges with the ensembles of one name, on one device.

    Args:
        first: the ensemble that is active at the start.
        batch: images judged together; a range that has more is judged by itself.
        wait: seconds that a batch waits to be filled.
    """

    def __init__(self, first: Served, batch: int, wait: float) -> None:
        super().__init__()
        self._held = Held()
        # Another may be active by now, and this one's files gone: each request names what it wants.
        with suppress(CryorayError):
            self._held.load(first)
        self._batch = batch
        self._together.set_max_batch_size(batch)
        self._together.set_batch_wait_timeout_s(wait)

    async def __call__(self, given: Prepared, served: Served) -> JudgedRange:
        """Judge a range, together with what other requests bring meanwhile."""
        ensemble = await self._held.get(served)
        judged: JudgedRange | Exception
        if len(given.rows.rows) > self._batch:
            # While a service is deployed anew with smaller batches, older ingresses cut larger ranges.
            (judged,) = await asyncio.to_thread(judge_together, ensemble, [given.rows])
        else:
            judged = await self._together((ensemble, given.rows))
        if isinstance(judged, Exception):
            raise judged
        return replace(judged, prepare_seconds=given.seconds)

    @serve.batch(
        max_batch_size=512,
        batch_wait_timeout_s=0.02,
        batch_size_fn=lambda parts: sum(len(part.rows) for _, part in parts),
    )
    async def _together(
        self, parts: list[tuple[Ensemble, PreparedRows]]
    ) -> list[JudgedRange | Exception]:
        # In a thread, so that the replica keeps answering, and the next batch gathers meanwhile.
        return await asyncio.to_thread(_by_ensemble, parts)

    async def attend(self, served: Served, queued: int) -> str:
        """Have an ensemble ready, and hear how many images wait; the digest.

        Raises:
            EnsembleError: the ensemble is damaged.
        """
        self.heard(queued)
        return (await self._held.get(served)).digest

    async def ready(self, served: Served) -> None:
        """Answers where it can judge with an ensemble."""
        await self._held.get(served)


def _by_ensemble(
    parts: Sequence[tuple[Ensemble, PreparedRows]],
) -> list[JudgedRange | Exception]:
    """Judge ranges, those of one ensemble together: while one is swapped in there are two.

    If one fails, so do its own ranges alone.
    """
    judged: dict[int, JudgedRange | Exception] = {}
    for ensemble in {id(ensemble): ensemble for ensemble, _ in parts}.values():
        at = [index for index, (whose, _) in enumerate(parts) if whose is ensemble]
        try:
            judged |= zip(at, judge_together(ensemble, [parts[i][1] for i in at]), strict=True)
        except Exception as error:
            judged |= dict.fromkeys(at, error)
    return [judged[index] for index in range(len(parts))]


class Shadow:
    """Prepares and judges by itself, in what the machine has left: nobody waits for it.

    Args:
        first: the ensemble that is active at the start.
    """

    def __init__(self, first: Served) -> None:
        os.nice(19)
        self._held = Held()
        with suppress(CryorayError):
            self._held.load(first)

    async def __call__(self, rows: RowRange, served: Served, scope: Scope) -> JudgedRange:
        """Read, prepare and judge a range, files of a scope alone."""
        ensemble = await self._held.get(served)
        given = await asyncio.to_thread(prepared, rows, served.preparation, scope)
        (judged,) = await asyncio.to_thread(judge_together, ensemble, [given.rows])
        return judged

    async def attend(self, served: Served, queued: int) -> str:
        """Have an ensemble ready; its digest.

        Raises:
            EnsembleError: the ensemble is damaged.
        """
        return (await self._held.get(served)).digest
