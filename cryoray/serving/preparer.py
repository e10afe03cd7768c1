"""The deployment that reads and prepares rows: on CPUs, beside the disks."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np

from cryoray.formats.opening import OutsideError, Scope
from cryoray.preparation.prepare import prepare_range
from cryoray.records import PreparedRows, RowRange
from cryoray.serving.scaling import Queue
from cryoray.settings import PreparationSettings


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Network input, and the seconds that reading and preparing it took."""

    rows: PreparedRows
    seconds: float


def prepared(rows: RowRange, settings: PreparationSettings, scope: Scope) -> Prepared:
    """Read and prepare, files of a scope alone; see `preparation.prepare.prepare_range`."""
    begun = time.perf_counter()
    try:
        with scope.reading():
            made = prepare_range(rows, settings)
    except OutsideError as error:  # a link that was not there when the request was planned
        made = unprepared(rows, settings, str(error))
    return Prepared(made, time.perf_counter() - begun)


def unprepared(rows: RowRange, settings: PreparationSettings, why: str) -> PreparedRows:
    """What comes of a range none of which can be read."""
    return PreparedRows(
        rows=np.empty(0, np.int64),
        images=np.empty((0, settings.box, settings.box), np.float32),
        features=rows.features[:0],
        quarantined=tuple((row, why.removesuffix(".")) for row in rows.rows.tolist()),
    )


class Preparer(Queue):
    """Turns row ranges into network input.

    What it returns stays in the object store until a judge takes it: pixels cross processes once.
    """

    def __init__(self) -> None:
        super().__init__()
        # One range is read while another is computed; more would only take memory.
        self._at_once = asyncio.Semaphore(2)

    async def __call__(
        self, rows: RowRange, settings: PreparationSettings, scope: Scope
    ) -> Prepared:
        """Read and prepare, files of a scope alone; see `preparation.prepare.prepare_range`."""
        async with self._at_once:
            return await asyncio.to_thread(prepared, rows, settings, scope)

    async def ready(self) -> None:
        """Answers where it can."""

    async def attend(self, queued: int) -> None:
        """Hear how many images wait."""
        self.heard(queued)
