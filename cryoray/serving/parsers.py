"""Processes that open what requests ask for, with limits: a file made to be hard to read ends one of them.

The service's own process parses nothing that a user wrote. A request whose file takes too long or too much
memory is refused; one whose client has gone stops the work at once. The processes are forked from one that
has imported all they need, so that another takes the place of one that ended within moments.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cryoray.errors import CryorayError, InternalError, printable
from cryoray.formats.opening import Scope
from cryoray.records import Kind
from cryoray.serving.sources import Catalogue, Chosen, TooMuchError
from cryoray.settings import PreparationSettings

#: Processor time of a file that is hard to read, as a share of the time that it took: with less, whoever
#: reads it waited for the machine or the disk, and the same file may be read at once another time.
_HARD_SHARE = 0.5
#: Of one process, beyond what Python and its libraries take: a table of ten million rows takes 2 GB.
_MEMORY_MIB = 4096
_PARENT_DIES = 1  # PR_SET_PDEATHSIG of prctl(2)
_LENGTH, _ORDER, _NUMBER = struct.Struct("<Q"), struct.Struct("<QQ"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Question:
    """What `Catalogue.choose` takes."""

    source: str
    rows: tuple[int, int] | None
    kind: Kind
    preparation: PreparationSettings
    together: int
    scope: Scope


class BusyError(CryorayError):
    """A source could not be opened now, which is not its fault."""


class _Worker:
    """A process that answers one question at a time, and what it opened and so holds ready."""

    def __init__(self, number: int, process: int, connection: int) -> None:
        # Descriptors: of the process, and of the connection to it.
        self._number, self._process, self._connection = number, process, connection
        self.knows: set[Hashable] = set()

    def processor_time(self) -> float:
        """Seconds that it has used; 0 where it has ended."""
        try:
            stat = Path(f"/proc/{self._number}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return 0.0
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, question: Question) -> tuple[bool, Any]:
        """Whether it went well, and the answer or the error.

        Raises:
            OSError: it ended, or was ended.
        """
        body = memoryview(pickle.dumps(question))
        for part in (memoryview(_LENGTH.pack(len(body))), body):
            while part:
                part = part[os.write(self._connection, part) :]
        (size,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        answer: tuple[bool, Any] = pickle.loads(self._exactly(size))
        return answer

    def _exactly(self, size: int) -> bytearray:
        held = bytearray(size)
        rest = memoryview(held)
        while rest:
            got = os.readv(self._connection, [rest])
            if not got:
                raise ConnectionResetError
            rest = rest[got:]
        return held

    def end(self) -> None:
        """End it, whatever it does; a thread that waits for it gets an error."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def __del__(self) -> None:
        """Lets go of it when nobody can ask it any more, which ends it too."""
        os.close(self._connection)
        os.close(self._process)


class Parsers:
    """Answers questions in processes of its own, one at a time in each; used in one event loop.

    Args:
        max_rows: rows in one request.
        processes: how many, at most.
        seconds: for one question.
        memory_mib: of one process, beyond what it takes without work.
    """

    def __init__(
        self, max_rows: int, processes: int, seconds: float, memory_mib: int = _MEMORY_MIB
    ) -> None:
        self._max_rows, self._seconds, self._memory = max_rows, seconds, memory_mib
        self._free = asyncio.Semaphore(processes)
        self._threads = ThreadPoolExecutor(processes, "parsers")
        self._idle: list[_Worker] = []
        self._closed = False

    async def choose(self, question: Question) -> Chosen:
        """As `Catalogue.choose`.

        Raises:
            TooMuchError: reading the source takes more time or memory than there is for it.
            BusyError: it took too long because the machine or the disk has other work.
            InputError: as there.
        """
        async with self._free:
            worker = await self._worker(question.source)
            try:
                good, answer = await self._ask(worker, question)
            except OSError:
                # It was killed: alone, by whoever is short of memory, or with the one that forked it. Only
                # what ends a new one, too, is the file's fault.
                worker = await self._worker(question.source, new=True)
                try:
                    good, answer = await self._ask(worker, question)
                except OSError:
                    raise _too_large(question.source, self._memory) from None
            if self._closed:
                worker.end()
            else:
                worker.knows.add(question.source)
                self._idle.append(worker)
        if good:
            chosen: Chosen = answer
            return chosen
        if isinstance(answer, MemoryError):
            raise _too_large(question.source, self._memory)
        raise answer

    async def _ask(self, worker: _Worker, question: Question) -> tuple[bool, Any]:
        """What a process answers; whatever goes wrong ends it.

        Raises:
            OSError: it ended by itself.
            TooMuchError: it had all the time that there is for a file.
            BusyError: it did not, and still took too long.
        """
        before = worker.processor_time()
        asked = asyncio.get_running_loop().run_in_executor(self._threads, worker.ask, question)
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(asked)
        except TimeoutError:
            hard = worker.processor_time() - before >= _HARD_SHARE * self._seconds
            worker.end()
            asked.add_done_callback(lambda done: done.exception())
            if not hard:
                raise BusyError(
                    f"{printable(question.source)}: could not be opened in {self._seconds:g} seconds, in"
                    " which the machine or the disk was busy; try again later."
                ) from None
            raise TooMuchError(
                f"takes longer than {self._seconds:g} seconds to open",
                file=question.source,
                remedy="give a smaller file",
            ) from None
        except BaseException:  # whoever asked has gone, or it ended
            worker.end()
            asked.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    def close(self) -> None:
        """End the processes that have nothing to do, and the others as soon as they have answered."""
        self._closed = True
        while self._idle:
            self._idle.pop().end()

    async def _worker(self, source: str, *, new: bool = False) -> _Worker:
        """One that has nothing to do: the one that opened this source before, if there is such."""
        if self._idle and not new:
            knowing = [one for one in self._idle if source in one.knows]
            chosen = (knowing or self._idle)[-1]
            self._idle.remove(chosen)
            return chosen
        task = asyncio.ensure_future(asyncio.to_thread(_fork, self._max_rows, self._memory))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_end_unused)
            raise


def _end_unused(forked: asyncio.Future[_Worker]) -> None:
    if not forked.cancelled() and forked.exception() is None:
        forked.result().end()


def prepare() -> None:
    """Start the process from which the others are forked; `Parsers` does it where nobody has."""
    with _starting:
        _origin()


_starting = threading.Lock()
_started: tuple[subprocess.Popen[bytes], socket.socket] | None = None


def _origin() -> socket.socket:
    """The connection to the process from which the others are forked; one for this process."""
    global _started
    if _started is not None and _started[0].poll() is None:
        return _started[1]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "cryoray.serving.parsers", str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    theirs.close()
    _started = (process, ours)
    atexit.register(_finish, process, ours)
    return ours


def _lose() -> None:
    global _started
    if _started is not None:
        atexit.unregister(_finish)
        _started[1].close()
        _started[0].kill()
        _started[0].wait()
    _started = None


def _finish(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()  # which ends it, and it those that were forked from it
    process.wait()


def _fork(max_rows: int, memory_mib: int) -> _Worker:
    with _starting:
        for _ in range(2):
            origin = _origin()
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    socket.send_fds(origin, [_ORDER.pack(max_rows, memory_mib)], [theirs.fileno()])
                answer, descriptors, _, _ = socket.recv_fds(origin, _NUMBER.size, 1)
            except OSError:
                answer = b""
            if answer:
                (number,) = _NUMBER.unpack(answer)
                return _Worker(number, descriptors[0], ours.detach())
            ours.close()
            _lose()  # it was killed, perhaps for memory: another takes its place
    raise InternalError("the process that opens sources could not start")


def _too_large(source: str, memory_mib: int) -> TooMuchError:
    return TooMuchError(
        f"takes more than {memory_mib:,} MiB of memory to open",
        file=source,
        remedy="give a smaller file",
    )


class InThisProcess:
    """The same without processes, for a source that is ours: an upload, whose size is known.

    Args:
        max_rows: rows in one request.
    """

    def __init__(self, max_rows: int) -> None:
        self._catalogue = Catalogue(max_rows)

    async def choose(self, question: Question) -> Chosen:
        """As `Catalogue.choose`."""
        return await asyncio.to_thread(answer, self._catalogue, question)


def answer(catalogue: Catalogue, question: Question) -> Chosen:
    """What `Parsers.choose` has a process do."""
    return catalogue.choose(
        question.source,
        question.rows,
        question.kind,
        question.preparation,
        question.together,
        question.scope,
    )


def main(control: int) -> None:
    """Fork a process for each order, until whoever gives them is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, meant for whoever gives orders
    orders = socket.socket(fileno=control)
    # What was imported stays as it is, so that the processes share its memory.
    gc.collect()
    gc.freeze()
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, _ORDER.size, 1)
        if len(order) != _ORDER.size:
            os._exit(0)
        process = os.fork()
        if not process:
            orders.close()
            _answer_all(socket.socket(fileno=descriptors[0]), *_ORDER.unpack(order))
            os._exit(0)
        os.close(descriptors[0])
        pidfd = os.pidfd_open(process)
        socket.send_fds(orders, [_NUMBER.pack(process)], [pidfd])
        os.close(pidfd)


def _answer_all(connection: socket.socket, max_rows: int, memory_mib: int) -> None:
    """Answer questions on a connection, until there are no more."""
    ctypes.CDLL(None).prctl(_PARENT_DIES, signal.SIGKILL)
    _limit(memory_mib)
    catalogue = Catalogue(max_rows)
    with connection.makefile("rb") as questions, connection.makefile("wb") as answers:
        while (head := questions.read(_LENGTH.size)) and len(head) == _LENGTH.size:
            question = pickle.loads(questions.read(*_LENGTH.unpack(head)))
            _put(answers, _answered(catalogue, question))


def _answered(catalogue: Catalogue, question: Question) -> bytes:
    try:
        return pickle.dumps((True, answer(catalogue, question)))
    except MemoryError:
        return pickle.dumps((False, MemoryError()))
    except (CryorayError, OSError) as error:
        return pickle.dumps((False, error))
    except Exception as error:
        return pickle.dumps((False, InternalError(f"{type(error).__name__}: {error}")))


def _put(file: BinaryIO, body: bytes) -> None:
    file.write(_LENGTH.pack(len(body)) + body)
    file.flush()


def _limit(memory_mib: int) -> None:
    """Let this process have so much more memory than it has now."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        now = int(file.read().split()[5]) * resource.getpagesize()
    most = now + (memory_mib << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(int(sys.argv[1]))
