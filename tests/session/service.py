"""The service as it is, but for Ray: its own HTTP application, which judges in this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import Embedded, embed_ranges
from cryoray.preparation.prepare import prepare_range
from cryoray.protocol.client import Client
from cryoray.serving.application import create
from cryoray.serving.counts import Counts
from cryoray.serving.judging import JudgedRange, Work, judge_timed
from cryoray.serving.lineup import Lineup, Served
from cryoray.settings import ServeSettings

TOKEN = "the-operator's-own"


class InProcess:
    """Prepares and judges here and now; counts how often each row of each stack was asked about."""

    def __init__(self, ensembles: dict[str, Ensemble]) -> None:
        self.ensembles = ensembles
        self.broken = False
        self.calls = 0

    async def judge(self, work: Work) -> list[JudgedRange]:
        self.calls += 1
        if self.broken:
            raise RuntimeError("a replica died")
        ensemble = self.ensembles[work.served.name].with_profile(work.profile)
        return await asyncio.to_thread(
            lambda: [
                judge_timed(ensemble, [prepare_range(part, work.served.preparation)])[0]
                for part in work.ranges
            ]
        )

    async def embed(self, work: Work) -> list[Embedded]:
        ensemble = self.ensembles[work.served.name]
        return await asyncio.to_thread(lambda: embed_ranges(work.ranges, ensemble))

    async def beside(self, work: Work) -> list[JudgedRange]:
        raise AssertionError("there is no shadow")

    async def hold(self, served: Served) -> None:
        raise AssertionError("nothing is promoted")

    async def attend(self) -> None:
        pass

    async def ready(self) -> bool:
        return not self.broken


async def _nothing(name: str, path: Path) -> Served:
    raise AssertionError("nothing is promoted")


class Service:
    """The application on a real server, which can be stopped and started again on its port."""

    def __init__(
        self, roots: Sequence[Path], ensembles: dict[str, Path], **settings: object
    ) -> None:
        loaded = {name: Ensemble.load(path) for name, path in ensembles.items()}
        self.judging = InProcess(loaded)
        lineup = Lineup(
            {name: Served.of(name, one, ensembles[name]) for name, one in loaded.items()},
            Path("/nowhere"),
            probation=0,
            attempt=_nothing,
            hold=self.judging.hold,
        )
        given = ServeSettings(token=TOKEN, roots=tuple(roots), max_queued=16, **settings)
        self.app = create(given, lineup, self.judging, Counts(given.batch))
        self.port = 0

    def start(self) -> None:
        config = uvicorn.Config(self.app, port=self.port, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, token: str = TOKEN) -> Client:
        return Client(self.url, token)


@contextmanager
def running(
    roots: Sequence[Path], ensembles: dict[str, Path], **settings: object
) -> Iterator[Service]:
    """A service while the block lasts."""
    service = Service(roots, ensembles, **settings)
    service.start()
    try:
        yield service
    finally:
        service.stop()
