"""How many images are under way at once, and which of them are judged together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from cryoray.models.ensemble import Ensemble
from cryoray.records import PreparedRows
from cryoray.serving.judging import JudgedRange

#: Judges ranges with an ensemble, in one go.
Together = Callable[[Ensemble, Sequence[PreparedRows]], Awaitable[Sequence[JudgedRange]]]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A range, since when it waits (seconds of the event loop's clock), and for what."""

    ensemble: Ensemble
    rows: PreparedRows
    since: float
    judged: asyncio.Future[JudgedRange]

    def __len__(self) -> int:
        return len(self.rows.rows)


class Room:
    """How many images may be under way; who comes first goes first. Used in one event loop.

    Args:
        limit: images. A range that has more waits until nothing else is under way.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self._taken = limit, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, images: int) -> AsyncIterator[None]:
        """Room for so many images while the block lasts."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((images, turn))
        self._let_in()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._taken -= images
            self._let_in()

    def resize(self, limit: int) -> None:
        """Change the limit; what is under way stays."""
        self.limit = limit
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            images, turn = self._waiting[0]
            if not turn.done():  # else whoever waited has gone
                if self._taken and self._taken + images > self.limit:
                    return
                self._taken += images
                turn.set_result(None)
            self._waiting.popleft()


class Batches:
    """Judges together what several requests bring: networks see full batches, however small the stacks.

    A batch is closed when the judge is free to take it, so that the next one gathers while one is judged.
    (`ray.serve.batch` closes it after ``wait``, whether it can be judged then or not: under load all of its
    batches are of one range.) Used in one event loop.

    Args:
        together: judges ranges of one ensemble and project.
        most: images of a batch; a range that has more is judged by itself.
        wait: seconds that a batch which is not full waits for more, counted from its first range.
        at_once: batches that are judged side by side.
    """

    def __init__(self, together: Together, most: int, wait: float, at_once: int = 1) -> None:
        self._together, self._most, self._wait = together, most, wait
        self._at_once, self._running = at_once, set[asyncio.Task[None]]()
        self._waiting: deque[_Waiting] = deque()
        self._more = asyncio.Event()

    async def judged(self, ensemble: Ensemble, rows: PreparedRows) -> JudgedRange:
        """The verdicts on a range. Whoever is cancelled before its batch begins is left out of it.

        Raises:
            Exception: whatever its batch failed with.
        """
        loop = asyncio.get_running_loop()
        mine = _Waiting(ensemble, rows, loop.time(), loop.create_future())
        self._waiting.append(mine)
        self._more.set()
        if len(self._running) < self._at_once:
            task = loop.create_task(self._run())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return await mine.judged

    async def _run(self) -> None:
        while self._waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._waiting[0].since + self._wait):
                    while sum(map(len, self._waiting)) < self._most:
                        self._more.clear()
                        await self._more.wait()
            if batch := self._next():
                await self._judge(batch)

    def _next(self) -> list[_Waiting]:
        """The first that waits, and as many of the same ensemble and project as go with it."""
        batch: list[_Waiting] = []
        others: deque[_Waiting] = deque()
        for one in self._waiting:
            if one.judged.done():  # whoever waited has gone
                continue
            room = self._most - sum(map(len, batch))
            goes = not batch or (one.ensemble is batch[0].ensemble and len(one) <= room)
            (batch if goes else others).append(one)
        self._waiting = others
        return batch

    async def _judge(self, batch: Sequence[_Waiting]) -> None:
        try:
            found = await self._together(batch[0].ensemble, [one.rows for one in batch])
        except Exception as error:
            for one in batch:
                if not one.judged.done():
                    one.judged.set_exception(error)
            return
        for one, judged in zip(batch, found, strict=True):
            if not one.judged.done():
                one.judged.set_result(judged)
