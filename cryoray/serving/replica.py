"""The deployment that judges: the three members of one ensemble together, over several requests at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ray import serve

from cryoray.errors import CryorayError
from cryoray.formats.opening import Scope
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import Embedded, embed_prepared
from cryoray.models.profile import Profile
from cryoray.records import PreparedRows, RowRange
from cryoray.serving.judging import Held, JudgedRange, judge_timed
from cryoray.serving.lineup import Served
from cryoray.serving.preparer import Prepared, prepared
from cryoray.serving.scaling import Queue


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

    async def __call__(
        self, given: Prepared, served: Served, profile: Profile | None = None
    ) -> JudgedRange:
        """Judge a range, together with what other requests of the project bring meanwhile."""
        ensemble = await self._held.get(served, profile)
        judged: JudgedRange | Exception
        if len(given.rows.rows) > self._batch:
            # While a service is deployed anew with smaller batches, older ingresses cut larger ranges.
            (judged,) = await asyncio.to_thread(judge_timed, ensemble, [given.rows])
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

    async def embed(self, given: Prepared, served: Served) -> Embedded:
        """What the members see in a range, for a profile."""
        return await asyncio.to_thread(embed_prepared, given.rows, await self._held.get(served))

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
    """Judge ranges, those of one ensemble and project together: while one is swapped in there are two.

    If one fails, so do its own ranges alone.
    """
    judged: dict[int, JudgedRange | Exception] = {}
    for ensemble in {id(ensemble): ensemble for ensemble, _ in parts}.values():
        at = [index for index, (whose, _) in enumerate(parts) if whose is ensemble]
        try:
            judged |= zip(at, judge_timed(ensemble, [parts[i][1] for i in at]), strict=True)
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
        (judged,) = await asyncio.to_thread(judge_timed, ensemble, [given.rows])
        return judged

    async def attend(self, served: Served, queued: int) -> str:
        """Have an ensemble ready; its digest.

        Raises:
            EnsembleError: the ensemble is damaged.
        """
        return (await self._held.get(served)).digest
