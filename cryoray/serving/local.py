"""The service in this process: the same HTTP application, whose judges are threads and not replicas.

A session on one machine needs no more: the two cores of a laptop keep up with a microscope, and Ray, which
takes a minute to start and a gigabyte of memory, adds nothing until there are several machines or GPUs.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import uvicorn

from cryoray.engine.local import cores
from cryoray.errors import CryorayError, SettingsError
from cryoray.formats.opening import Scope
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import Embedded, embed_prepared
from cryoray.protocol.client import Client
from cryoray.protocol.token import check_strength, find_token
from cryoray.records import RowRange
from cryoray.serving.application import create
from cryoray.serving.counts import Counts
from cryoray.serving.ensembles import find_ensembles
from cryoray.serving.judging import (
    Held,
    JudgedRange,
    JudgesFailedError,
    Work,
    judge_timed,
)
from cryoray.serving.lineup import Lineup, Served, attempt, sentence
from cryoray.serving.preparer import prepared
from cryoray.settings import ServeSettings, Settings
from cryoray.web.server import config

Made = TypeVar("Made")

_START_SECONDS = 60.0
#: For requests that are being answered at the end.
_DRAIN_SECONDS = 10


class Threads:
    """Prepares and judges in threads of this process, one for each core (`serving.judging.Judging`)."""

    def __init__(self) -> None:
        self._held = Held()
        # Each adds up by itself, as a replica does: the order of adding is part of a result.
        self._pool = ThreadPoolExecutor(
            cores(), "judge", initializer=torch.set_num_threads, initargs=(1,)
        )

    async def judge(self, work: Work) -> list[JudgedRange]:
        """Have ranges prepared and judged.

        Raises:
            JudgesFailedError: that cannot be done.
        """
        return await self._each(_judge, work)

    async def embed(self, work: Work) -> list[Embedded]:
        """What the ensemble's members see in ranges.

        Raises:
            JudgesFailedError: that cannot be done.
        """
        return await self._each(_embed, work)

    async def _each(
        self,
        do_one: Callable[[Ensemble, Scope, RowRange], Made],
        work: Work,
    ) -> list[Made]:
        loop = asyncio.get_running_loop()
        try:
            ensemble = await self._held.get(work.served, work.profile)
            do = partial(do_one, ensemble, work.scope)
            return list(
                await asyncio.gather(
                    *(loop.run_in_executor(self._pool, do, one) for one in work.ranges)
                )
            )
        except (CryorayError, OSError, RuntimeError) as error:  # torch raises the last
            raise JudgesFailedError(
                f"The judges of {work.served.name} failed, try again: {sentence(error).rstrip('.')}."
            ) from error

    async def beside(self, work: Work) -> list[JudgedRange]:
        """The same: there is no shadow here."""
        return await self.judge(work)

    async def ready(self) -> bool:
        """Whether a request would be judged now: where this is asked, it would."""
        return True

    async def attend(self) -> None:
        """Nothing is to be done."""

    async def hold(self, served: Served) -> None:
        """Load an ensemble that is promoted.

        Raises:
            EnsembleError: it is damaged.
        """
        await self._held.get(served)

    def close(self) -> None:
        """Finish what is being judged, and no more."""
        self._pool.shutdown(cancel_futures=True)


def _judge(ensemble: Ensemble, scope: Scope, rows: RowRange) -> JudgedRange:
    given = prepared(rows, ensemble.preparation, scope)
    (judged,) = judge_timed(ensemble, [given.rows])
    return replace(judged, prepare_seconds=given.seconds)


def _embed(ensemble: Ensemble, scope: Scope, rows: RowRange) -> Embedded:
    return embed_prepared(prepared(rows, ensemble.preparation, scope).rows, ensemble)


@dataclass(frozen=True, slots=True)
class Here:
    """A service that runs in this process.

    Attributes:
        url: where it answers.
        token: that it wants.
        ensembles: digests by name.
    """

    url: str
    token: str
    ensembles: Mapping[str, str]

    def client(self, patience: float = 600.0) -> Client:
        """A client of this service."""
        return Client(self.url, self.token, patience=patience)


@contextmanager
def start(settings: Settings) -> Iterator[Here]:
    """A service in this process while the block lasts.

    Args:
        settings: ``registry`` and ``serve`` are used. Where the port was not chosen and is taken, as by
            another session, it is any free one.

    Raises:
        SettingsError: no ensemble is named, or the port that was chosen is taken.
        EnsembleError: an ensemble cannot be loaded.
    """
    serve = settings.serve
    token = check_strength(find_token(serve.token, create=True))
    ensembles = find_ensembles(serve.ensembles, settings.registry)
    given = serve.model_copy(
        update={
            "ensembles": tuple(ensembles),
            "roots": serve.roots or (Path.cwd(),),
            "token": token,
        }
    )
    threads = Threads()
    lineup = Lineup(
        ensembles,
        settings.registry,
        probation=serve.probation,
        attempt=_attempt,
        hold=threads.hold,
    )
    server = uvicorn.Server(
        config(
            create(given, lineup, threads, Counts(given.batch)),
            log_config=None,
            log_level="critical",
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
    )
    with _listening(given) as listener:  # last: whoever connects before waits for an answer
        thread = threading.Thread(target=server.run, args=([listener],), name="service")
        thread.start()
        try:
            _wait(server, thread)
            url = f"http://{given.host}:{listener.getsockname()[1]}"
            yield Here(url, token, {name: one.digest for name, one in ensembles.items()})
        finally:
            server.should_exit = True
            thread.join()
            threads.close()


async def _attempt(name: str, path: Path) -> Served:
    return await asyncio.to_thread(attempt, name, path)


def _wait(server: uvicorn.Server, thread: threading.Thread) -> None:
    until = time.monotonic() + _START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until:
            raise SettingsError("the service in this process does not start")
        time.sleep(0.01)


@contextmanager
def _listening(serve: ServeSettings) -> Iterator[socket.socket]:
    """A socket on the service's port, or on a free one where that was not chosen and is taken."""
    chosen = "port" in serve.model_fields_set
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((serve.host, serve.port))
            made.listen(128)
        except OSError as error:
            if chosen:
                raise SettingsError(
                    f"cannot listen on {serve.host}:{serve.port}: {error.strerror}",
                    remedy="give another port in serve.port, or stop what runs there",
                ) from error
        else:
            yield made
            return
    with socket.socket() as made:
        made.bind((serve.host, 0))
        made.listen(128)
        yield made
