"""What a small job costs beside its work: commands against the same work in one script.

Each case is a process of its own, three times in turn with its peer; the least of each counts, by the
clock and in seconds of processors. The peer imports torch and pyarrow and calls the function that does the
work, as a person would in a script. ``CRYORAY_BENCH_IMAGES=100000`` sets the images of the bulk cases, which
are judged from a prepared set, against the networks alone on images in memory.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Row, main, result
from cryoray.engine import local
from cryoray.formats.volume import write_volume
from cryoray.models.ensemble import Ensemble
from cryoray.models.registry import shipped
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import ignore
from cryoray.settings import IngestSettings, RuntimeSettings, Settings, SimulateSettings
from cryoray.simulation import simulate
from cryoray.simulation.classes import simulate_classes
from cryoray.verbs.ingest import ingest

TIMES = 3
PARTICLES, SIDE = 3388, 128
IMAGES = int(os.environ.get("CRYORAY_BENCH_IMAGES", 100_000))

_JUDGE = """
import sys, torch, pyarrow
from pathlib import Path
from cryoray.formats.source import open_source
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import judge_source
from cryoray.models.registry import shipped
source = open_source(Path(sys.argv[1]), sys.argv[2])
print(judge_source(source, Ensemble.load(shipped(sys.argv[2]))))
"""
_FSC = """
import sys, torch, pyarrow
from pathlib import Path
from cryoray.maps.fsc import directional_fsc, half_map_fsc
from cryoray.maps.halves import read_halves
from cryoray.report import fsc_section, directions_section, render
halves, size = read_halves(Path(sys.argv[1]), Path(sys.argv[2]), None)
curves, views = half_map_fsc(*halves, size), directional_fsc(*halves, size)
sections = [fsc_section(curves), directions_section({"this map": views}, curves.frequency)]
render(Path(sys.argv[3]) / "report.html", "FSC", sections, pictures=True)
"""


def took(arguments: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of processors that a process takes."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{arguments[:4]} failed: {done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu


def beside(case: str, command: list[str], peer: list[str] | None, goal: float) -> Row:
    """A command and its peer in turn; the least of each."""
    mine, its = [], []
    for _ in range(TIMES):
        mine.append(took(command))
        if peer is not None:
            its.append(took(peer))
    seconds, cpu = (min(column) for column in zip(*mine, strict=True))
    row: Row = {"case": case, "seconds": seconds, "cpu_seconds": cpu}
    if peer is None:
        return row | {"script_s": None, "ratio": None, "ratio_cpu": None, "goal": goal}
    its_seconds, its_cpu = (min(column) for column in zip(*its, strict=True))
    ratios = {"ratio": seconds / its_seconds, "ratio_cpu": cpu / its_cpu}
    return row | {"script_s": its_seconds, **ratios, "goal": goal}


def small_jobs(folder: Path) -> list[Row]:
    """The command line against the same in one script."""
    job = simulate_classes(folder / "classes", 0, 1, seed=5) / "job001_model.star"
    chosen = SimulateSettings(projects=1, images=PARTICLES, box=96, seed=5)
    (project,) = simulate(folder / "particles", Settings(simulate=chosen))
    rng = np.random.default_rng(5)
    blob = np.exp(-(((np.indices((SIDE,) * 3) - SIDE / 2) / 20) ** 2).sum(0))
    halves = [
        str(write_volume(folder / f"half{i}.mrc", blob + rng.normal(0, 0.1, blob.shape), 1.5))
        for i in (1, 2)
    ]
    python, cli = [sys.executable], [sys.executable, "-m", "cryoray.cli.main"]
    classify = [*cli, "classify", "--replace", "--out", str(folder / "out")]
    star = str(project / "particles.star")
    return [
        beside(
            "classify the 2D classes of a job",
            [*classify, str(job), "--kind", "class2d"],
            [*python, "-c", _JUDGE, str(job), "class2d"],
            1.5,
        ),
        beside(
            f"classify {PARTICLES:,} particles",
            [*classify, star, "--kind", "particle"],
            [*python, "-c", _JUDGE, star, "particle"],
            1.3,
        ),
        beside(
            f"validate fsc, {SIDE}³",
            [*cli, "validate", "fsc", *halves, "--out", str(folder / "fsc")],
            [*python, "-c", _FSC, *halves, str(folder)],
            1.3,
        ),
        beside("import cryoray, s", [*python, "-c", "import cryoray"], None, 0.2),
        beside("cryoray --help, s of processors", [*cli, "--help"], None, 0.5),
    ]


def bulk(folder: Path) -> list[Row]:
    """Images a second of a prepared set, by threads and by Ray, against the networks alone."""
    judge = shipped("particle")
    assert judge is not None
    ensemble = Ensemble.load(judge)
    prepared = _prepared(folder)
    rows, limit = np.arange(IMAGES) % prepared.n, _limit(ensemble, prepared)
    begun = time.perf_counter()
    local.judge_set(prepared, rows, ensemble, ignore)
    here = IMAGES / (time.perf_counter() - begun)
    by_ray = _by_ray(prepared, rows, ensemble)
    return [
        {"case": f"{IMAGES:,} prepared images, {how}", "images_s": rate, "limit_s": limit}
        | {"ratio": rate / limit, "goal": goal}
        for how, rate, goal in (("threads", here, 0.9), ("Ray, two workers", by_ray, 0.85))
    ]


def _prepared(folder: Path) -> PreparedSet:
    """Images that are read again and again."""
    chosen = SimulateSettings(projects=1, images=5000, box=64, seed=6)
    sources = simulate(folder / "bulk", Settings(simulate=chosen))
    return PreparedSet.open(ingest(sources, folder / "set", Settings(ingest=IngestSettings())))


def _limit(ensemble: Ensemble, prepared: PreparedSet) -> float:
    """Images a second of all cores: d1 and d2 on each, d3 on as many as are asked, and nothing else."""
    images = prepared.images(np.arange(2048))
    features = np.full((len(images), len(ensemble.features)), np.nan, np.float32)
    ensemble.judge(images[:512], features[:512])

    def work(_: int) -> int:
        ensemble.judge(images, features)
        return len(images)

    begun, done = time.perf_counter(), 0
    for each in local.in_threads(work, range(4 * local.cores())):
        done += each
    return done / (time.perf_counter() - begun)


def _by_ray(prepared: PreparedSet, rows: np.ndarray, ensemble: Ensemble) -> float:
    """Images a second once actors have started: the difference of a whole and a quarter."""
    from cryoray.engine import pool, runtime

    runtime.connect(RuntimeSettings(cpus=4, dashboard=False))
    few, seconds = rows[: len(rows) // 4], []
    for some in (few, rows):
        begun = time.perf_counter()
        pool.judge_set(prepared, some, ensemble, ignore)
        seconds.append(time.perf_counter() - begun)
    runtime.disconnect()
    return (len(rows) - len(few)) / (seconds[1] - seconds[0])


def measure() -> dict[str, Any]:
    """Small jobs, and bulk."""
    torch.set_num_threads(local.cores())
    with tempfile.TemporaryDirectory() as temporary:
        rows = small_jobs(Path(temporary))
        many = bulk(Path(temporary)) if IMAGES else []
    keys = dict.fromkeys(key for row in (*rows, *many) for key in row)
    return result(
        "What does a small job cost beside its work, and what does judging in bulk?",
        [{key: row.get(key) for key in keys} for row in (*rows, *many)],
        ratios=(),
        notes=[
            "ratio: of the command to the script, or of the rate to the networks alone on all cores.",
            "Commands also write verdicts and a page with pictures; the scripts write nothing (FSC: a page).",
        ],
    )


if __name__ == "__main__":
    main(measure)
