"""What is judged together, and how much is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, cast

import numpy as np
import pytest

from cryoray.models.ensemble import Ensemble
from cryoray.records import PreparedRows, Verdicts
from cryoray.serving.batches import Batches, Room
from cryoray.serving.judging import JudgedRange

ONE, OTHER = (cast(Ensemble, object()) for _ in range(2))


def rows(first: int, count: int) -> PreparedRows:
    """Prepared rows, of which only the numbers matter here."""
    return PreparedRows(
        rows=np.arange(first, first + count),
        images=np.zeros((count, 8, 8), np.float32),
        features=np.empty((count, 0), np.float32),
    )


class Networks:
    """Keeps what was judged together; each batch takes until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.ensembles: list[Ensemble] = []
        self.go = asyncio.Semaphore(0)
        self.broken = False

    async def together(
        self, ensemble: Ensemble, parts: Sequence[PreparedRows]
    ) -> list[JudgedRange]:
        """Each part's first row as its verdicts."""
        self.ensembles.append(ensemble)
        self.batches.append([len(part.rows) for part in parts])
        await self.go.acquire()
        if self.broken:
            raise RuntimeError("no such kernel")
        return [JudgedRange(Verdicts.none({"first": str(part.rows[0])})) for part in parts]


def in_loop(do: Coroutine[Any, Any, None]) -> None:
    """Run until it is done, or fail instead of hanging."""
    asyncio.run(asyncio.wait_for(do, 30))


async def settled() -> None:
    """Until everything has gone as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_next_batch_is_filled_while_one_is_judged() -> None:
    async def judge() -> None:
        networks = Networks()
        batches = Batches(networks.together, most=64, wait=0.0)
        first = asyncio.create_task(batches.judged(ONE, rows(0, 16)))
        await asyncio.sleep(0.01)
        later = []
        for at in range(1, 7):  # one after the other, each later than any wait
            later.append(asyncio.create_task(batches.judged(ONE, rows(16 * at, 16))))
            await asyncio.sleep(0.01)
        for _ in range(3):
            networks.go.release()
        answers = await asyncio.gather(first, *later)
        assert networks.batches == [[16], [16] * 4, [16] * 2]
        assert [one.verdicts.about["first"] for one in answers] == [str(16 * n) for n in range(7)]

    in_loop(judge())


def test_a_batch_waits_to_be_filled_and_no_longer_than_that() -> None:
    async def judge() -> None:
        networks = Networks()
        networks.go.release()
        networks.go.release()
        batches = Batches(networks.together, most=32, wait=3600.0)
        both = [asyncio.create_task(batches.judged(ONE, rows(n, 16))) for n in (0, 16)]
        await asyncio.gather(*both)  # full: the wait is over
        batches = Batches(networks.together, most=32, wait=0.01)
        await batches.judged(ONE, rows(0, 16))
        assert networks.batches == [[16, 16], [16]]

    in_loop(judge())


def test_ensembles_are_judged_apart_and_none_is_passed_over() -> None:
    async def judge() -> None:
        networks = Networks()
        batches = Batches(networks.together, most=64, wait=0.0)
        order = [ONE, ONE, OTHER, ONE, OTHER]
        asked = [asyncio.create_task(batches.judged(e, rows(0, 8))) for e in order]
        for _ in range(2):
            networks.go.release()
        await asyncio.gather(*asked)
        assert networks.batches == [[8, 8, 8], [8, 8]]
        assert networks.ensembles == [ONE, OTHER]

    in_loop(judge())


def test_a_range_larger_than_a_batch_is_judged_by_itself() -> None:
    async def judge() -> None:
        networks = Networks()
        batches = Batches(networks.together, most=32, wait=0.0)
        asked = [asyncio.create_task(batches.judged(ONE, rows(0, n))) for n in (16, 100, 16)]
        for _ in range(2):
            networks.go.release()
        await asyncio.gather(*asked)
        assert networks.batches == [[16, 16], [100]]

    in_loop(judge())


def test_whoever_has_gone_is_not_judged_and_keeps_nobody() -> None:
    async def judge() -> None:
        networks = Networks()
        batches = Batches(networks.together, most=64, wait=0.0)
        first = asyncio.create_task(batches.judged(ONE, rows(0, 8)))
        await asyncio.sleep(0.01)
        gone, stays = (asyncio.create_task(batches.judged(ONE, rows(n, n))) for n in (9, 10))
        await settled()
        gone.cancel()
        first.cancel()  # too late for its batch, which goes on
        await settled()
        networks.go.release()
        networks.go.release()
        assert (await stays).verdicts.about == {"first": "10"}
        assert networks.batches == [[8], [10]]

    in_loop(judge())


def test_what_fails_fails_for_its_own_batch_alone() -> None:
    async def judge() -> None:
        networks = Networks()
        batches = Batches(networks.together, most=16, wait=0.0)
        first = asyncio.create_task(batches.judged(ONE, rows(0, 16)))
        second = asyncio.create_task(batches.judged(ONE, rows(16, 16)))
        networks.broken = True
        networks.go.release()
        with pytest.raises(RuntimeError, match="no such kernel"):
            await first
        networks.broken = False
        networks.go.release()
        assert (await second).verdicts.about == {"first": "16"}

    in_loop(judge())


def test_images_under_way_are_bounded_and_who_comes_first_goes_first() -> None:
    async def enter() -> None:
        room, inside, let_go = Room(100), [], asyncio.Event()

        async def stay(name: str, images: int) -> None:
            async with room.of(images):
                inside.append(name)
                await let_go.wait()

        names = {"small": 60, "large": 80, "later": 10}
        tasks = {name: asyncio.create_task(stay(name, size)) for name, size in names.items()}
        await settled()
        assert inside == ["small"]  # there would be room for the last, whose turn it is not
        tasks["large"].cancel()
        await settled()
        assert inside == ["small", "later"]
        huge = asyncio.create_task(stay("huge", 500))
        await settled()
        assert "huge" not in inside
        let_go.set()
        await asyncio.gather(huge, tasks["small"], tasks["later"])  # alone, it goes in

    in_loop(enter())


def test_room_is_free_again_whenever_somebody_is_cancelled() -> None:
    async def enter() -> None:
        room = Room(10)

        async def stay() -> None:
            async with room.of(10):
                await asyncio.sleep(3600)

        inside, waiting, let_in = (asyncio.create_task(stay()) for _ in range(3))
        await settled()
        waiting.cancel()
        inside.cancel()
        await asyncio.sleep(0)  # `let_in` has its turn now, and does not know yet
        let_in.cancel()
        await settled()
        async with asyncio.timeout(10), room.of(10):
            pass
        room.resize(30)
        async with asyncio.timeout(10), room.of(10), room.of(20):
            pass

    in_loop(enter())
