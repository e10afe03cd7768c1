"""The deployment that judges: the three members of one ensemble together, over several requests at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from cryoray.errors import CryorayError
from cryoray.formats.opening import Scope
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import Embedded, embed_prepared
from cryoray.models.profile import Profile
from cryoray.records import PreparedRows, RowRange
from cryoray.serving.batches import Batches
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
        self._batches = Batches(_in_thread, batch, wait)

    async def __call__(
        self, given: Prepared, served: Served, profile: Profile | None = None
    ) -> JudgedRange:
        """Judge a range, together with what other requests of the project bring meanwhile."""
        ensemble = await self._held.get(served, profile)
        judged = await self._batches.judged(ensemble, given.rows)
        return replace(judged, prepare_seconds=given.seconds)

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


async def _in_thread(ensemble: Ensemble, parts: Sequence[PreparedRows]) -> list[JudgedRange]:
    """Judge while the replica keeps answering."""
    return await asyncio.to_thread(judge_timed, ensemble, parts)


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
