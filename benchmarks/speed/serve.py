"""How much of what two cores can judge the service delivers, and how soon: at 1, 8 and 32 clients at once.

The limit is read, preparation and forward pass of the same members in one process per core, with nothing
between them: one micrograph at a time, as requests bring them, and as many together as a judge takes.
Clients take their answers as watchers do. Beside the rate there is the processor time of all processes,
clients included: rates suffer from whatever else the machine does, and that hardly, where
``CRYORAY_BENCH_SECONDS`` (12 by default) are enough of them.
``python -m benchmarks.speed.serve``; ``alone`` for the service in one process and no other.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import serve as ray_serve

from benchmarks.common import Row, main, result
from cryoray.boosting.voting import decide, disagree, score
from cryoray.engine import runtime
from cryoray.formats.source import open_source
from cryoray.models.ensemble import Calibration, Ensemble
from cryoray.models.networks import logits
from cryoray.models.predict import judge_ranges
from cryoray.preparation.plan import grouped, plan
from cryoray.preparation.prepare import prepare_range
from cryoray.protocol.client import Client
from cryoray.records import MEMBERS, Verdicts
from cryoray.serving import local
from cryoray.serving.app import Arguments, build, start
from cryoray.serving.ensembles import find_ensembles
from cryoray.serving.ingress import Ingress
from cryoray.serving.judging import Held, JudgedRange
from cryoray.serving.lineup import Served
from cryoray.serving.preparer import Prepared, Preparer
from cryoray.serving.supervisor import Supervisor
from cryoray.settings import RuntimeSettings, ServeSettings, Settings
from tests.examples import particles, save_ensemble, write_stack, write_star

BOX, PER_STACK, STACKS = 256, 128, 12
CLIENTS = (1, 8, 32)
SECONDS = float(os.environ.get("CRYORAY_BENCH_SECONDS", "12"))
#: As among trained members: about one image in ten goes to d3.
DISAGREE = 0.95


def collection(folder: Path) -> Path:
    """Micrographs of raw 256 px images with their metadata, as RELION's extraction writes them."""
    rows = []
    for stack in range(STACKS):
        name = f"Extract/mic_{stack}.mrcs"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_stack(folder / name, particles(PER_STACK, BOX, seed=stack))
        rows += [
            f"{frame + 1:06d}@{name} mic_{stack}.mrc 1 {9000 + 50 * frame} {8800 + 50 * frame} 4"
            for frame in range(PER_STACK)
        ]
    return write_star(folder / "particles.star", rows)


def ensemble_for(star: Path, path: Path) -> Path:
    """Members of the size that ships, untrained, which disagree as often as trained ones do."""
    made = save_ensemble(path, box=64)
    source = open_source(star)
    given = made.preparation
    part = prepare_range(plan(source, given, 64, rows=np.arange(PER_STACK)).ranges[0], given)
    images, features = torch.from_numpy(part.images), torch.from_numpy(part.features)
    calibration = []
    for network in made.networks:
        said = logits(network, images, features)
        slope = float(2 / said.std())
        calibration.append(Calibration(slope=slope, offset=-slope * float(said.quantile(DISAGREE))))
    manifest = made.manifest.model_copy(update={"calibration": tuple(calibration)})
    Ensemble(manifest, made.networks).save(path, "# Untrained\n")
    return path


def _limit(star: Path, path: Path, together: int, barrier: Any, answers: Any) -> None:
    """One process of the limit: all it can do for some seconds, on one thread."""
    torch.set_num_threads(1)
    ensemble = Ensemble.load(path)
    planned = plan(open_source(star), ensemble.preparation, 64)
    groups = grouped(planned.ranges, 256, together)

    def judge(ranges: Any) -> int:
        judged = Verdicts.together(judge_ranges(ranges, ensemble))
        answers_of.append(float((~np.isnan(judged.d3)).mean()))
        return len(judged.rows)

    answers_of: list[float] = []
    judge(groups[0])
    barrier.wait()
    begun, used, images = time.perf_counter(), time.process_time(), 0
    for ranges in itertools.cycle(groups):
        images += judge(ranges)
        if time.perf_counter() - begun >= SECONDS:
            break
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    answers.put((images / seconds, used / images, float(np.mean(answers_of))))


def limit(star: Path, path: Path, together: int) -> tuple[float, float, float]:
    """Images a second of one process per core, processor time of one, and how many d3 was asked about."""
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0))
    barrier, answers = context.Barrier(cores), context.Queue()
    processes = [
        context.Process(target=_limit, args=(star, path, together, barrier, answers))
        for _ in range(cores)
    ]
    for process in processes:
        process.start()
    rates = [answers.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    each, used, asked = zip(*rates, strict=True)
    return sum(each), float(np.mean(used)), float(np.mean(asked))


def processor_time() -> float:
    """Seconds that this process and all below it have used, those that have ended included."""
    ticks = os.sysconf("SC_CLK_TCK")
    parents, used = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = sum(map(int, fields[11:15])) / ticks
    mine = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sum(used[one] for one in mine)


def load(url: str, token: str, star: Path, clients: int) -> Row:
    """What so many clients get that ask for one micrograph after the other."""
    latencies: list[float] = []
    stop = threading.Event()
    turns = itertools.count()

    def client(_: int) -> None:
        with Client(url, token) as service:
            while not stop.is_set():
                first = next(turns) % STACKS * PER_STACK
                begun = time.perf_counter()
                answer = service.judge(star, (first, first + PER_STACK))
                latencies.append(time.perf_counter() - begun)
                assert len(answer) == PER_STACK

    with ThreadPoolExecutor(clients) as pool:
        working = pool.map(client, range(clients))
        while (
            len(latencies) < 2 * clients
        ):  # until all are under way, and all that starts has started
            time.sleep(0.1)
        latencies.clear()
        begun, used = time.perf_counter(), processor_time()
        time.sleep(SECONDS)
        done, seconds = list(latencies), time.perf_counter() - begun
        used = processor_time() - used
        stop.set()
        list(working)
    p50, p99 = np.percentile(done, [50, 99])
    return {
        "images/s": len(done) * PER_STACK / seconds,
        "ms of processor": 1e3 * used / (len(done) * PER_STACK),
        "p50 s": float(p50),
        "p99 s": float(p99),
    }


class Member:
    """One member in a process of its own, for comparison."""

    def __init__(self, served: Served, member: int) -> None:
        self.held, self.served, self.member = Held(), served, member
        self.held.load(served)
        self._together.set_max_batch_size(512)

    async def __call__(self, refs: list[ray.ObjectRef], rows: np.ndarray) -> np.ndarray:
        """Probabilities of some rows of (images, features), which lie in the object store."""
        images, features = await refs[0]
        return await self._together((images[rows], features[rows]))

    @ray_serve.batch(
        max_batch_size=512,
        batch_wait_timeout_s=0.02,
        batch_size_fn=lambda parts: sum(len(i) for i, _ in parts),
    )
    async def _together(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        ensemble = await self.held.get(self.served)

        def work() -> list[np.ndarray]:
            images, features = (
                torch.tensor(np.concatenate(one)) for one in zip(*parts, strict=True)
            )
            said = ensemble._probability(self.member, images, features)
            return np.split(said, np.cumsum([len(part) for part, _ in parts])[:-1])

        return await asyncio.to_thread(work)


class Voter:
    """Asks d1 and d2 at the same time, and d3 on their disagreements."""

    def __init__(self, served: Served, *members: Any) -> None:
        self.ensemble = Ensemble.load(served.path)
        self.members = members

    async def __call__(self, given: Prepared, served: Served) -> JudgedRange:
        """Judge a range, as `cryoray.serving.replica.Judge` does."""
        part = given.rows
        refs = [ray.put((part.images, part.features))]
        rows = np.arange(len(part.rows))
        first, second = (member.remote(refs, rows) for member in self.members[:2])
        d1, d2 = await first, await second
        asked = np.flatnonzero(disagree(d1, d2, self.ensemble.threshold))
        d3 = np.full(len(rows), np.nan, np.float32)
        if len(asked):
            d3[asked] = await self.members[2].remote(refs, asked)
        said = score(d1, d2, d3)
        columns = {
            "score": said,
            "verdict": decide(said, self.ensemble.review),
            "d1": d1,
            "d2": d2,
            "d3": d3,
        }
        judged = Verdicts.of(part.rows, columns, part.quarantined, self.ensemble.about)
        return JudgedRange(judged, prepare_seconds=given.seconds)

    async def attend(self, served: Served, queued: int) -> str:
        """Answer that all is well."""
        return served.digest

    async def ready(self, served: Served) -> None:
        """Answer that all is well."""


def build_apart(args: Arguments) -> ray_serve.Application:
    """The application with one deployment per member and a voter, all else alike."""
    ((name, served),) = find_ensembles(args.ensembles, args.registry).items()
    share = {"ray_actor_options": {"num_cpus": 0.25}, "max_ongoing_requests": 512}
    replicas = args.judges or len(os.sched_getaffinity(0))
    members = [
        ray_serve.deployment(name=member, num_replicas=replicas, **share)(Member).bind(served, at)
        for at, member in enumerate(MEMBERS)
    ]
    voter = ray_serve.deployment(name="voter", **share)(Voter).bind(served, *members)
    preparers = ray_serve.deployment(
        name="preparer", num_replicas=args.preparers or len(os.sched_getaffinity(0)), **share
    )(Preparer).bind()
    settings = ServeSettings(**args.model_dump(exclude={"registry"}))
    bound = (settings, {name: served}, args.registry)
    supervisor = ray_serve.deployment(name="supervisor", ray_actor_options={"num_cpus": 0.1})(
        Supervisor
    ).bind(*bound, preparers, {name: voter})
    return ray_serve.deployment(
        name="ingress", ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=80
    )(ray_serve.ingress()(Ingress)).bind(*bound, supervisor, preparers, {name: voter})


def service(
    star: Path, path: Path, clients: Sequence[int], build: Callable[[Arguments], Any] | None
) -> list[Row]:
    """A row for each number of clients; one service for all of them; without ``build`` in this process."""
    settings = Settings(
        registry=star.parent / "registry",
        runtime=RuntimeSettings(dashboard=False, gpus=0),
        serve=ServeSettings(
            ensembles=(str(path),), roots=(star.parent,), port=0, token="of-the-benchmark"
        ),
    )
    rows = []
    with local.start(settings) if build is None else start(settings, build) as running:
        for one in clients:
            rows.append({"clients": one, **load(running.url, running.token, star, one)})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def measure() -> dict[str, Any]:
    """Limit, service and the service with its members apart, one after the other."""
    folder = Path(tempfile.mkdtemp(prefix="cryoray-bench-"))
    load_before = os.getloadavg()[0]
    try:
        star = collection(folder)
        path = ensemble_for(star, folder / "ensemble")
        limits = [limit(star, path, PER_STACK)]
        here = service(star, path, CLIENTS, None)
        together, apart = [], []
        if sys.argv[1:] != ["alone"]:
            together = service(star, path, CLIENTS, build)
            apart = service(star, path, CLIENTS[-1:], build_apart)
            runtime.disconnect()
        # Before and after, and the better one: somebody else's load must not make the service shine.
        limits.append(limit(star, path, PER_STACK))
        best, used, asked = max(limits)
        # Networks see batches of 64: what d3 is asked about in one micrograph fills a quarter of one.
        batch = ServeSettings.model_fields["batch"].default
        full, used_full, _ = limit(star, path, batch)
    finally:
        shutil.rmtree(folder)
    nothing = {"clients": None, "p50 s": None, "p99 s": None}
    rows: list[Row] = [
        {
            "what": "limit: one process per core",
            "images/s": best,
            "ms of processor": 1e3 * used,
            **nothing,
        },
        {
            "what": f"the same, {batch} images together",
            "images/s": full,
            "ms of processor": 1e3 * used_full,
            **nothing,
        },
        *({"what": "in one process", **row} for row in here),
        *({"what": "service, members together", **row} for row in together),
        *({"what": "service, one deployment per member", **row} for row in apart),
    ]
    return result(
        f"Judging {PER_STACK} images of {BOX} px a request (one micrograph), prepared to 64 px",
        rows,
        ratios=("images/s", "ms of processor"),
        notes=[
            f"d3 was asked about {100 * asked:.0f} % of the images.",
            f"The limit before and after: {limits[0][0]:.0f} and {limits[1][0]:.0f} images a second; "
            f"the load of the machine before: {load_before:.1f}.",
            "Clients, HTTP and Ray run on the same cores.",
        ],
    )


if __name__ == "__main__":
    main(measure)
