"""The deployment that reads and prepares rows: on CPUs, beside the disks."""

from __future__ import annotations

import asyncio

from cryoray.preparation.prepare import prepare_range
from cryoray.records import PreparedRows, RowRange
from cryoray.settings import PreparationSettings


class Preparer:
    """Turns row ranges into network input.

    What it returns stays in the object store until a judge takes it: pixels cross processes once.
    """

    def __init__(self) -> None:
        # One range is read while another is computed; more would only take memory.
        self._at_once = asyncio.Semaphore(2)

    async def __call__(self, rows: RowRange, settings: PreparationSettings) -> PreparedRows:
        """Read and prepare; see `preparation.prepare.prepare_range`."""
        async with self._at_once:
            return await asyncio.to_thread(prepare_range, rows, settings)

    async def ready(self) -> None:
        """Answers when it can work."""
