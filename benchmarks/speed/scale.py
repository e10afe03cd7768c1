"""How planning, scheduling and the ledger grow: 200 thousand to 20 million particles, without a pixel.

Sixteen sessions, each with its STAR file and its share of the stacks, whose headers are real and whose
images are holes in a file. What runs is the real thing up to the pixels:

- *plan*: `plan_sources` of all sessions in one process, and the division into tasks;
- *schedule*: Ray Data hands out all tasks, as many at once as a facility of ``CORES`` has, to workers that
  answer at once with the row counts of the rows they would have prepared;
- *nodes*: what those tasks would take on many nodes, with work as long as was measured and handed out no
  faster than Ray did;
- *ledger*: sixteen watchers, each a process, tell one SQLite file of their stacks; then what a page asks.

``CRYORAY_BENCH_PARTICLES`` gives the sizes, 200000,2000000,20000000 by default.
"""

from __future__ import annotations

import heapq
import json
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from benchmarks.common import Row, in_process, main, result
from benchmarks.speed.plan import BOX, HEADER, write_sparse
from cryoray.engine import runtime
from cryoray.engine.datasource import ShardDatasource
from cryoray.preparation.shards import Shard, Work, divide
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Happened, Micrograph, Outcome, Seen
from cryoray.settings import IngestSettings, load
from cryoray.verbs.ingest import plan_sources

SIZES = tuple(
    int(float(one))
    for one in os.environ.get("CRYORAY_BENCH_PARTICLES", "200000,2000000,20000000").split(",")
)
PER_STACK, SESSIONS = 2000, 16
#: Of the facility whose tasks are scheduled, as nodes of sixteen; and how many this machine acts out.
CORES, PER_NODE, HERE = 256, 16, 4
#: Micrographs in a stack, and candidates and sample that a watcher takes from one.
MICROGRAPHS, CANDIDATES, SAMPLE = 8, 4, 8
#: A size is tried where so many times the memory that its plan takes are free.
_SPARE = 1.2
_RATES = Path(__file__).parents[2] / "cluster" / "rates.json"


def write_sessions(folder: Path, stacks: int) -> list[Path]:
    """A project for each session, with its share of so many sparse stacks; their STAR files."""
    rng = np.random.default_rng(0)
    lines = "".join(
        f"{row + 1:06d}@Extract/mic_NUMBER.mrcs mic_NUMBER.mrc 1"
        f" {x:.1f} {y:.1f} {u:.1f} {u - 300:.1f} 12.5 4.2 0.11\n"
        for row, (x, y, u) in enumerate(rng.uniform(5000, 25000, (PER_STACK, 3)).tolist())
    )
    stars = []
    for session, numbers in enumerate(np.array_split(np.arange(stacks), SESSIONS)):
        project = folder / f"session-{session:02d}"
        (project / "Extract").mkdir(parents=True)
        stars.append(project / "particles.star")
        names = [f"mic_{number:05d}.mrcs" for number in numbers.tolist()]
        write_sparse([project / "Extract" / name for name in names], PER_STACK)
        with stars[-1].open("w") as star:
            star.write(HEADER)
            for number in numbers.tolist():
                star.write(lines.replace("NUMBER", f"{number:05d}"))
    return stars


def planned(stars: Sequence[Path], kept: Path) -> dict[str, Any]:
    """Plan and divide; the work is left in a file for the next stage."""
    settings = load().ingest
    begun = time.perf_counter()
    parts = plan_sources(stars, settings)
    middle = time.perf_counter()
    work = divide(parts, kept.parent / "set", settings)
    done = time.perf_counter()
    with kept.open("wb") as file:
        pickle.dump(work, file)
    return {
        "rows": sum(part.plan.rows for part in parts),
        "tasks": len(work),
        "plan": middle - begun,
        "divide": done - middle,
    }


def scheduled(kept: Path) -> dict[str, Any]:
    """Have Ray hand out the work in as many tasks as `CORES` would get; nobody reads a pixel."""

    def row_counts(
        work: Work,
    ) -> pa.Table:  # in here, it travels to workers, who know nothing of benchmarks
        """What a worker would say of its work had all gone well."""
        images = sum(len(rows.rows) for rows in work.ranges)
        shard = Shard(work.part, str(work.path), images, 0, work.bytes)
        return pa.Table.from_pylist([asdict(shard)])

    with kept.open("rb") as file:
        work = pickle.load(file)
    settings = load(runtime={"cpus": HERE, "gpus": 0, "dashboard": False})
    runtime.connect(settings.runtime)
    ray.data.range(64, override_num_blocks=64).materialize()  # the workers are there
    begun = time.perf_counter()
    datasource = _Books(work, settings.ingest, CORES, row_counts)
    dataset = ray.data.read_datasource(datasource, override_num_blocks=len(datasource))
    rows, first = 0, 0.0
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        first = first or time.perf_counter() - begun
        rows += sum(batch["images"].to_pylist()) + sum(batch["quarantined"].to_pylist())
    took = time.perf_counter() - begun
    runtime.disconnect()
    return {"rows": rows, "handed out": len(datasource), "first": first, "all": took}


class _Books(ShardDatasource):
    """Does something else with each work."""

    def __init__(
        self,
        work: Sequence[Work],
        settings: IngestSettings,
        cores: float,
        do: Callable[[Work], pa.Table],
    ) -> None:
        super().__init__(work, settings, cores)
        self._do = do


def on_nodes(tasks: int, particles: int, nodes: int, hand_out: float) -> tuple[float, float]:
    """Seconds that tasks take on so many nodes, and the share of it in which their cores are busy.

    A core takes the next task as soon as it is free and the driver has handed it out.

    Args:
        tasks: as Ray hands them out.
        particles: in all of them.
        nodes: of `PER_NODE` cores.
        hand_out: seconds between one task and the next.
    """
    rates, gib = _rates(), particles * BOX * BOX * 4 / 2**30
    work = gib * rates["ingest_cpu_s_per_gib"] * rates["ingest_wall_over_cpu"] / tasks
    free = [0.0] * (nodes * PER_NODE)
    clock = 0.0
    for _ in range(tasks):
        clock = max(clock + hand_out, free[0])
        heapq.heapreplace(free, clock + work)
    return max(free), tasks * work / (max(free) * len(free))


def told(folder: Path, stacks: int) -> dict[str, Any]:
    """All sessions at once tell one ledger of their stacks; then a page asks."""
    file = folder / "ledger.sqlite"
    Ledger(file).close()
    context = multiprocessing.get_context("spawn")
    shares = [len(some) for some in np.array_split(np.arange(stacks), SESSIONS)]
    with context.Pool(SESSIONS, maxtasksperchild=1) as pool:
        said = pool.starmap(_watch, [(file, f"s{i:02d}", n) for i, n in enumerate(shares)], 1)
    commits = np.concatenate([np.asarray(one["times"]) for one in said])
    ledger = Ledger(file)
    begun = time.perf_counter()
    totals = [ledger.totals(f"s{i:02d}") for i in range(SESSIONS)]
    asked = (time.perf_counter() - begun) / SESSIONS
    begun = time.perf_counter()
    known = sum(len(ledger.micrographs(f"s{i:02d}")) for i in range(SESSIONS))
    charted = (time.perf_counter() - begun) / SESSIONS
    ledger.close()
    rows = sum(one["particle/judged"]["rows"] for one in totals)
    assert (rows, known) == (stacks * PER_STACK, stacks * MICROGRAPHS), "the row counts balance"
    return {
        "all": max(one["end"] for one in said) - min(one["begin"] for one in said),
        "median": float(np.median(commits)),
        "p99": float(np.quantile(commits, 0.99)),
        "mib": sum(one.stat().st_size for one in folder.glob("ledger.sqlite*")) / 2**20,
        "totals": asked,
        "charts": charted,
    }


def _watch(file: Path, session: str, stacks: int) -> dict[str, Any]:
    """What a watcher of a session writes while its stacks are judged; when, and seconds of each commit."""
    begin = time.perf_counter()
    ledger, rng = Ledger(file), np.random.default_rng(1)
    root = file.parent / session
    ledger.open_session(session, root=root, folder=root)
    times = []
    for number in range(stacks):
        digest = f"{number:032x}"
        path = str(root / f"mic_{number:05d}.mrcs")
        seen = Seen(path, None, "particle", digest, 1 << 29, number, time.time())
        (key,) = ledger.expect(session, [seen])
        each = PER_STACK // MICROGRAPHS
        outcome = Outcome(
            digest=digest, state="judged", rows=PER_STACK, kept=1200, discarded=700, review=100,
            quarantined=0, score=0.6, ensemble="e" * 64, at=time.time(),
            micrographs=tuple(
                Micrograph(f"mic_{number}_{at}.mrc", f"square-{number // 40}", None, each - 90, 80, 10, 0,
                           0.6, 1.5, 4.0)
                for at in range(MICROGRAPHS)
            ),
            candidates=tuple((row, 0.5) for row in range(CANDIDATES)),
            sample=tuple(
                (row, f"{row:06d}@{path}", float(draw)) for row, draw in enumerate(rng.random(SAMPLE))
            ),
        )  # fmt: skip
        begun = time.perf_counter()
        happened = [Happened(f"{key}:{digest}", "stack.judged", {"stack": path, "kept": 1200})]
        assert ledger.commit(session, key, outcome, happened)
        times.append(time.perf_counter() - begun)
    ledger.close()
    return {
        "times": times,
        "begin": begin,
        "end": time.perf_counter(),
    }


def _rates() -> dict[str, float]:
    return {name: one["value"] for name, one in json.loads(_RATES.read_text()).items()}


def _available() -> float:
    """MiB that this machine can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


def _by_stage(rows: Sequence[Row]) -> list[Row]:
    """A line for each number, a column for each size, and how much more it is than at the size before."""
    lines = []
    for name in rows[0]:
        line: Row = {"": name}
        for before, row in zip([None, *rows], rows, strict=False):
            line[f"{row['particles']:,}"] = row[name]
            if before is not None:
                more = row[name] / before[name] if before[name] else None
                line[f"× {before['particles']:,}"] = more
        lines.append(line)
    return lines[1:]


def measure() -> dict[str, Any]:
    rows: list[Row] = []
    left_out = []
    for particles in SIZES:
        stacks = particles // PER_STACK
        needed, free = (
            _SPARE * particles / 1e6 * _rates()["plan_mib_per_million_rows"],
            _available(),
        )
        if needed > free:
            left_out.append(
                f"{particles:,} left out: the plan takes {needed:,.0f} MiB, {free:,.0f} are free."
            )
            continue
        with tempfile.TemporaryDirectory(prefix="cryoray-scale-") as name:
            folder = Path(name)
            stars = write_sessions(folder, stacks)
            kept = folder / "work.pickle"
            plan_cost, plan = in_process(planned, stars, kept)
            cost, handed = in_process(scheduled, kept)
            ledger = told(folder, stacks)
        assert plan["rows"] == handed["rows"] == particles, "the row counts balance"
        each = handed["all"] / handed["handed out"]
        far = {nodes: on_nodes(handed["handed out"], particles, nodes, each) for nodes in (1, 16)}
        rows.append(
            {
                "particles": particles,
                "stacks": stacks,
                "plan, s": plan["plan"],
                "divide, s": plan["divide"],
                "plan, MiB": plan_cost.mib,
                "tasks": plan["tasks"],
                "handed out": handed["handed out"],
                "first, s": handed["first"],
                "schedule, s": handed["all"],
                "driver, MiB": cost.mib,
                "1 node, s": far[1][0],
                "16 nodes, s": far[16][0],
                "of them busy": far[16][1],
                "ledger, s": ledger["all"],
                "commit, ms": 1e3 * ledger["median"],
                "99%, ms": 1e3 * ledger["p99"],
                "file, MiB": ledger["mib"],
                "totals, ms": 1e3 * ledger["totals"],
                "charts, ms": 1e3 * ledger["charts"],
            }
        )
    return result(
        f"Planning, scheduling and the ledger of {SESSIONS} sessions, ten times as much and again",
        _by_stage(rows),
        ratios=(),
        notes=[
            *left_out,
            f"Stacks of {PER_STACK} images of {BOX} px; sparse files, so headers come from the page cache.",
            "Memory is beyond that of a process which has imported cryoray; the sources' text is in plan, s.",
            f"Scheduled here with {HERE} workers that do nothing, in as many tasks as {CORES} cores get.",
            f"Nodes of {PER_NODE} cores are simulated: work as in rates.json, handed out as fast as here.",
            f"One SQLite file for {SESSIONS} watchers, which write as fast as they can, each in turn.",
        ],
    )


if __name__ == "__main__":
    main(measure)
