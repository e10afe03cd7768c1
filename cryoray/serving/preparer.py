"""The deployment that reads and prepares rows: on CPUs, beside the disks."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from cryoray.preparation.prepare import prepare_range
from cryoray.records import PreparedRows, RowRange
from cryoray.serving.scaling import Queue
from cryoray.settings import PreparationSettings


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Network input, and the seconds that reading and preparing it took."""

    rows: PreparedRows
    seconds: float


def prepared(rows: RowRange, settings: PreparationSettings) -> Prepared:
    """Read and prepare; see `preparation.prepare.prepare_range`."""
    begun = time.perf_counter()
    return Prepared(prepare_range(rows, settings), time.perf_counter() - begun)


class Preparer(Queue):
    """Turns row ranges into network input.

    What it returns stays in the object store until a judge takes it: pixels cross processes once.
    """

    def __init__(self) -> None:
        super().__init__()
        # One range is read while another is computed; more would only take memory.
        self._at_once = asyncio.Semaphore(2)

    async def __call__(self, rows: RowRange, settings: PreparationSettings) -> Prepared:
        """Read and prepare; see `preparation.prepare.prepare_range`."""
        async with self._at_once:
            return await asyncio.to_thread(prepared, rows, settings)

    async def attend(self, queued: int) -> None:
        """Hear how many images wait."""
        self.heard(queued)
