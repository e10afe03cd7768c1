"""Sources are opened in processes with limits, and what is hard to read costs nobody else anything."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cryoray.errors import InputError
from cryoray.formats.opening import OutsideError, Scope
from cryoray.serving import parsers
from cryoray.serving.parsers import BusyError, Parsers, Question
from cryoray.serving.sources import TooMuchError
from cryoray.settings import PreparationSettings
from tests.examples import sparse_stack, write_project

pytestmark = pytest.mark.long

PREPARATION = PreparationSettings(box=32, contrast="bright")


def question(root: Path, source: str, rows: tuple[int, int] | None = (0, 3)) -> Question:
    return Question(source, rows, "particle", PREPARATION, 16, Scope((root,)))


def asking(work: Callable[[Parsers], Awaitable[None]], **limits: float) -> None:
    async def run() -> None:
        given = {"processes": 1, "seconds": 60.0, "memory_mib": 1024, **limits}
        made = Parsers(100, **given)  # type: ignore[arg-type]
        try:
            await work(made)
        finally:
            made.close()

    asyncio.run(run())


def test_it_answers_as_the_catalogue_does(tmp_path: Path) -> None:
    write_project(tmp_path, (10,))

    async def work(parsers: Parsers) -> None:
        chosen = await parsers.choose(question(tmp_path, "particles.star", (2, 5)))
        assert (chosen.rows, chosen.first, len(chosen.images)) == (3, 2, 3)
        assert [part.rows.tolist() for part in chosen.ranges] == [[2, 3, 4]]
        with pytest.raises(InputError, match="has 10 rows"):
            await parsers.choose(question(tmp_path, "particles.star", (2, 50)))
        with pytest.raises(OutsideError):
            await parsers.choose(question(tmp_path, "/etc/passwd"))

    asking(work)


def test_two_thousand_million_images_of_a_pixel_take_no_memory(tmp_path: Path) -> None:
    sparse_stack(tmp_path / "huge.mrcs", 2**31 - 1, 1, 1)

    async def work(parsers: Parsers) -> None:
        with pytest.raises(InputError, match=r"2,147,483,647 images"):
            await parsers.choose(question(tmp_path, "huge.mrcs", (0, 5)))

    asking(work)


def test_an_image_of_absurd_size_is_quarantined_from_its_header(tmp_path: Path) -> None:
    sparse_stack(tmp_path / "wide.mrcs", 1, 65536, 32768)

    async def work(parsers: Parsers) -> None:
        chosen = await parsers.choose(question(tmp_path, "wide.mrcs", None))
        assert chosen.ranges == ()
        ((row, why),) = chosen.quarantined
        assert row == 0
        assert "65,536 × 32,768 px" in why

    asking(work)


def test_fifty_thousand_columns_are_refused_and_not_read(tmp_path: Path) -> None:
    labels = "\n".join(f"_rln{n}" for n in range(50_000))
    row = " ".join(["1"] * 50_000)
    (tmp_path / "wide.star").write_text(
        f"data_particles\n\nloop_\n_rlnImageName\n{labels}\n{row}\n"
    )

    async def work(parsers: Parsers) -> None:
        with pytest.raises(InputError, match="more than 2,000 columns"):
            await parsers.choose(question(tmp_path, "wide.star"))

    asking(work)


def test_what_takes_too_much_memory_ends_the_work_and_not_the_service(tmp_path: Path) -> None:
    rows = "\n".join(f"{n + 1}@a.mrcs" for n in range(1_500_000))
    (tmp_path / "long.star").write_text(f"data_particles\n\nloop_\n_rlnImageName\n{rows}\n")
    write_project(tmp_path / "small", (10,))

    async def work(parsers: Parsers) -> None:
        with pytest.raises(TooMuchError, match="more than 64 MiB of memory"):
            await parsers.choose(question(tmp_path, "long.star"))
        assert (await parsers.choose(question(tmp_path / "small", "particles.star"))).rows == 3

    asking(work, memory_mib=64)


def test_a_process_that_was_killed_is_not_the_fault_of_a_file(tmp_path: Path) -> None:
    """By the kernel, which was short of memory, or with the process that forked it."""
    write_project(tmp_path, (10,))

    async def work(given: Parsers) -> None:
        await given.choose(question(tmp_path, "particles.star"))
        given._idle[0].end()
        assert (await given.choose(question(tmp_path, "particles.star"))).rows == 3

    asking(work)


def test_a_busy_machine_is_not_the_fault_of_a_file_either(tmp_path: Path) -> None:
    write_project(tmp_path, (10,))

    async def work(given: Parsers) -> None:
        await given.choose(question(tmp_path, "particles.star"))
        given._seconds = 1.0  # from now on: the first takes what a busy machine needs
        # As good as a disk that does not answer: no processor time, and no end.
        os.kill(given._idle[0]._number, signal.SIGSTOP)
        with pytest.raises(BusyError, match="try again later"):
            await given.choose(question(tmp_path, "particles.star"))

    asking(work)


def test_what_takes_too_long_is_given_up_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it counts as hard to read however little of the processor this machine has for it.
    monkeypatch.setattr(parsers, "_HARD_SHARE", 0.0)
    rows = "\n".join(f"{n + 1}@a.mrcs" for n in range(1_500_000))
    (tmp_path / "long.star").write_text(f"data_particles\n\nloop_\n_rlnImageName\n{rows}\n")
    write_project(tmp_path / "small", (10,))

    async def work(parsers: Parsers) -> None:
        with pytest.raises(TooMuchError, match=r"longer than 0\.05 seconds"):
            await parsers.choose(question(tmp_path, "long.star"))

    asking(work, seconds=0.05)


def test_work_ends_with_the_request_that_wanted_it(tmp_path: Path) -> None:
    """Eight clients that went away leave nothing behind that the ninth would wait for."""
    rows = "\n".join(f"{n + 1}@a.mrcs" for n in range(1_500_000))
    (tmp_path / "long.star").write_text(f"data_particles\n\nloop_\n_rlnImageName\n{rows}\n")
    write_project(tmp_path / "small", (10,))
    others = workers()  # of services that other tests in this process have not closed

    async def work(parsers: Parsers) -> None:
        await parsers.choose(question(tmp_path / "small", "particles.star"))
        for _ in range(8):
            task = asyncio.create_task(parsers.choose(question(tmp_path, "long.star")))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await parsers.choose(question(tmp_path / "small", "particles.star"))).rows == 3
        # What was killed is gone as soon as the system gets to it.
        async with asyncio.timeout(20):
            while len(workers() - others) > 1:
                await asyncio.sleep(0.05)

    asking(work)


def test_a_process_that_answers_while_its_parsers_are_closed_ends_too(tmp_path: Path) -> None:
    write_project(tmp_path, (10,))
    others = workers()

    async def work(parsers: Parsers) -> None:
        await parsers.choose(question(tmp_path, "particles.star"))
        task = asyncio.create_task(parsers.choose(question(tmp_path, "particles.star")))
        await asyncio.sleep(0)  # it has taken the process
        parsers.close()
        assert (await task).rows == 3
        async with asyncio.timeout(20):
            while workers() - others:
                await asyncio.sleep(0.05)
        assert not parsers._idle

    asking(work)


def test_where_the_process_that_forks_was_killed_another_takes_its_place(tmp_path: Path) -> None:
    write_project(tmp_path, (10,))
    parsers.prepare()
    assert parsers._started is not None
    origin, _ = parsers._started
    os.kill(origin.pid, signal.SIGSTOP)  # so that it is asked, and ends without an answer

    async def work(given: Parsers) -> None:
        asked = asyncio.create_task(given.choose(question(tmp_path, "particles.star")))
        await asyncio.sleep(0.2)
        os.kill(origin.pid, signal.SIGKILL)
        assert (await asked).rows == 3

    asking(work)
    assert parsers._started is not None
    assert parsers._started[0].pid != origin.pid


def workers() -> set[int]:
    """Processes that were forked to open sources, and still run."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            above = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if b"cryoray.serving.parsers" in command and above == os.getpid():
            found.add(int(entry.name))
    return found
