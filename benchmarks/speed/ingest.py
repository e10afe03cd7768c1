"""How near `cryoray ingest` comes to the limit of the machine, and how far other programs stay from it.

Of 256 px float32 images it makes 64 px ones, from the page cache. ``CRYODRGN`` may name the program of
that name where it is not on the path; a peer that is not there is left out, and said so.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import in_process, main, result
from cryoray.formats.mrc import StackWriter
from cryoray.preparation.plan import grouped
from cryoray.preparation.prepare import prepare_images, prepare_range
from cryoray.preparation.reader import read_blocks
from cryoray.records import RowRange
from cryoray.settings import PreparationSettings, Settings
from cryoray.verbs.ingest import ingest, plan_sources

RAW, BOX, PIXEL_SIZE = 256, 64, 1.0625
#: Images in a stack, and stacks in a GiB.
PER_STACK, PER_GIB = 1024, 4
SIZES = (1, 4, 16)
_CORES = len(os.sched_getaffinity(0))
_PREPARATION = PreparationSettings(box=BOX, contrast="bright", features=())
_LIMIT = "limit: read and prepare, a process per core"
#: Seconds between two looks at memory.
_LOOK = 0.03

_HEADER = f"""
data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnImagePixelSize #3
_rlnImageSize #4
_rlnImageDimensionality #5
_rlnVoltage #6
_rlnSphericalAberration #7
_rlnAmplitudeContrast #8
1 grid {PIXEL_SIZE} {RAW} 2 300 2.7 0.1

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
"""


def write_sources(folder: Path) -> dict[int, Path]:
    """A GiB of noise and blobs, and larger sources of the same stacks under many names."""
    rng = np.random.default_rng(0)
    axis = np.arange(RAW) - RAW // 2
    blob = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * (RAW / 10) ** 2)).astype(np.float32)
    (folder / "first").mkdir()
    for number in range(PER_GIB):
        path = folder / "first" / f"{number}.mrcs"
        with StackWriter(path, RAW, RAW, "float32", PIXEL_SIZE) as writer:
            for _ in range(0, PER_STACK, 128):
                writer.append(rng.standard_normal((128, RAW, RAW), np.float32) + blob)
    stars = {}
    for size in SIZES:
        (folder / f"{size}").mkdir()
        lines = []
        for number in range(size * PER_GIB):
            name = f"mic_{number:03d}.mrcs"
            there = folder / "first" / f"{number % PER_GIB}.mrcs"
            (folder / f"{size}" / name).hardlink_to(there)
            lines += [f"{i:06d}@{name} mic_{number:03d}.mrc 1" for i in range(1, PER_STACK + 1)]
        stars[size] = folder / f"{size}" / "particles.star"
        stars[size].write_text(_HEADER + "\n".join(lines) + "\n")
    return stars


def _settings(workers: int | None) -> Settings:
    """Of an ingestion by so many of Ray's workers, or by none."""
    alone = 1 << 20 if workers is None else 0
    return Settings(
        runtime={"cpus": workers, "gpus": 0, "dashboard": False, "object_store_mib": 256},
        ingest={"preparation": _PREPARATION, "local_max_mib": alone},
    )


def _one_thread(_: int = 0) -> None:
    torch.set_num_threads(1)
    _arithmetic(64)


def _reads(ranges: list[RowRange]) -> int:
    return sum(len(block) for rows in ranges for block in read_blocks(rows, 32))


@lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((32, RAW, RAW), np.float32)


def _arithmetic(images: int) -> int:
    for _ in range(0, images, 32):
        prepare_images(_noise(), np.full(32, PIXEL_SIZE, np.float32), False, _PREPARATION)
    return images


def _both(ranges: list[RowRange]) -> int:
    return sum(len(prepare_range(rows, _PREPARATION).rows) for rows in ranges)


def limit(task: Callable[[Any], int], items: list[Any], rounds: int = 3) -> dict[str, float]:
    """Seconds that one warm process for each core take together; the median of some rounds."""
    with multiprocessing.get_context("spawn").Pool(_CORES, _one_thread) as pool:
        pool.map(_one_thread, range(4 * _CORES), 1)
        times = []
        used = _cpu_seconds()
        for _ in range(rounds):
            began = time.perf_counter()
            pool.map(task, items, 1)
            times.append(time.perf_counter() - began)
        used = _cpu_seconds() - used
    return {"warm": median(times), "cpu": used / rounds}


def ingested(star: Path, workers: int | None, rounds: int = 3) -> dict[str, Any]:
    """Seconds of the first of some ingestions, and the median of the others.

    Runs in a process of its own.
    """
    times = [_once(star, workers)]
    used = _cpu_seconds()
    times += [_once(star, workers) for _ in range(rounds - 1)]
    used = _cpu_seconds() - used
    _disconnect(workers)
    return {"first": times[0], "warm": median(times[1:]), "cpu": used / (rounds - 1)}


def remembered(star: Path, workers: int | None) -> dict[str, float]:
    """Peak memory of an ingestion, in a process of its own, as by the command; looking takes time."""
    with watched() as peaks:
        _once(star, workers)
    _disconnect(workers)
    return peaks


def _once(star: Path, workers: int | None) -> float:
    out, began = star.with_name("set"), time.perf_counter()
    ingest([star], out, _settings(workers))
    took = time.perf_counter() - began
    shutil.rmtree(out)
    return took


def _disconnect(workers: int | None) -> None:
    if workers is not None:
        from cryoray.engine import runtime

        runtime.disconnect()


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Peak unique set size, MiB, of this process and of the largest of Ray's workers under it."""
    peaks = {"driver MiB": 0.0, "worker MiB": 0.0}
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK):
            peaks["driver MiB"] = max(peaks["driver MiB"], _unique(os.getpid()))
            for pid, (name, _) in _family().items():
                if name.startswith("ray::"):
                    peaks["worker MiB"] = max(peaks["worker MiB"], _unique(pid))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def _unique(pid: int) -> float:
    """MiB that no other process shares; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def _family() -> dict[int, tuple[str, float]]:
    """This process and all under it: name, and processor seconds so far."""
    parents: dict[int, int] = {}
    said: dict[int, tuple[str, float]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            rest = (folder / "stat").read_text().rsplit(")", 1)[1]
            name = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        words = rest.split()
        ticks = int(words[11]) + int(words[12])
        parents[int(folder.name)] = int(words[1])
        said[int(folder.name)] = (name, ticks / os.sysconf("SC_CLK_TCK"))

    def mine(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return {pid: known for pid, known in said.items() if mine(pid)}


def _cpu_seconds() -> float:
    return sum(seconds for _, seconds in _family().values())


def relion(star: Path) -> dict[str, float] | None:
    """What `relion_image_handler` takes, one process for each core, each on its stacks."""
    program = shutil.which("relion_image_handler")
    if program is None:
        return None
    stacks = sorted(star.parent.glob("mic_*.mrcs"))
    out = star.with_name("relion")
    out.mkdir()

    def rescale(stack: Path) -> int:
        words = ["--rescale_angpix", str(PIXEL_SIZE * RAW / BOX), "--new_box", str(BOX)]
        words += ["--i", str(stack), "--o", str(out / stack.name)]
        return subprocess.run([program, *words], check=False, capture_output=True).returncode

    used, began = _ended(), time.perf_counter()
    with ThreadPoolExecutor(_CORES) as pool:
        failed = any(list(pool.map(rescale, stacks)))
    took = {"warm": time.perf_counter() - began, "cpu": _ended() - used}
    shutil.rmtree(out)
    return None if failed else took


def cryodrgn(star: Path) -> dict[str, float] | None:
    """What `cryodrgn downsample` takes, which uses all cores by itself."""
    program = os.environ.get("CRYODRGN") or shutil.which("cryodrgn")
    if program is None:
        return None
    out = star.with_name("cryodrgn.mrcs")
    used, began = _ended(), time.perf_counter()
    done = subprocess.run(
        [
            program,
            "downsample",
            str(star),
            "-D",
            str(BOX),
            "-o",
            str(out),
            "--datadir",
            str(star.parent),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    took = {"warm": time.perf_counter() - began, "cpu": _ended() - used}
    out.unlink(missing_ok=True)
    if done.returncode:
        print(f"cryodrgn ended with {done.returncode}: {done.stderr[-500:]}")
    return None if done.returncode else took


def _ended() -> float:
    """Processor seconds of processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _row(name: str, gib: int, said: dict[str, float]) -> dict[str, Any]:
    images, seconds = gib * PER_GIB * PER_STACK, said["warm"]
    print(f"{name}, {gib} GiB: {seconds:.2f} s", file=sys.stderr, flush=True)
    return {
        "what": name,
        "GiB": gib,
        "first, s": said.get("first"),
        "seconds": seconds,
        "CPU s": said["cpu"],
        "images/s": images / seconds,
        "GB/s": images * RAW * RAW * 4 / seconds / 1e9,
        "driver MiB": said.get("driver MiB"),
        "worker MiB": said.get("worker MiB"),
    }


def measure() -> dict[str, Any]:
    notes = [
        "GB/s and images/s are of raw images. `seconds` is the median of warm runs, `first` includes "
        "starting Ray and its workers; CPU s are those of all processes together. Memory is the peak "
        "of the unique set size.",
        f"Input from the page cache; each program uses the {_CORES} cores unless the row says otherwise.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        stars = write_sources(Path(folder))
        rows = []
        # Each beside the limit of its size: machines that are shared are not always as fast.
        for size in SIZES:
            rows += _limits(stars[size], size)
            for workers in (None, 1, 2, 4) if size == 1 else (None, 2):
                name = "no Ray" if workers is None else f"{workers} of Ray"
                _, said = in_process(ingested, stars[size], workers, 3 if size == 1 else 2)
                said |= in_process(remembered, stars[size], workers)[1]
                rows.append(_row(f"cryoray ingest, {name}", size, said))
            if size > 1:
                continue
            for name, peer in (("relion_image_handler", relion), ("cryodrgn downsample", cryodrgn)):
                took = peer(stars[1])
                if took is None:
                    notes.append(f"{name} is not here, or failed.")
                else:
                    rows.append(_row(f"peer: {name}", 1, took))
    answer = result(
        f"{RAW} px float32 images to a set of {BOX} px, by the limit, by cryoray, and by its peers",
        rows,
        ratios=(),
        notes=[*notes, *_findings(rows)],
    )
    limits = {row["GiB"]: row["GB/s"] for row in rows if row["what"] == _LIMIT}
    for row in answer["rows"]:
        row["of the limit"] = row["GB/s"] / limits[row["GiB"]]
    return answer


def _limits(star: Path, size: int) -> list[dict[str, Any]]:
    """What nothing can be faster than, and for the smallest size what that is made of."""
    settings = _settings(None).ingest
    (part,) = plan_sources([star], settings)
    groups = grouped(part.plan.ranges, settings.range_mib)
    rows = [_row(_LIMIT, size, limit(_both, groups))]
    if size == 1:
        portions = [256] * (len(part.plan.wanted) // 256)
        rows += [
            _row("  only the reads", size, limit(_reads, groups)),
            _row("  only the arithmetic", size, limit(_arithmetic, portions)),
        ]
    return rows


def _findings(rows: list[dict[str, Any]]) -> list[str]:
    """The goals in numbers: what a person has to know of Ray's fixed cost, memory and linearity."""
    ray = {row["GiB"]: row for row in rows if row["what"] == "cryoray ingest, 2 of Ray"}
    alone = {row["GiB"]: row for row in rows if row["what"] == "cryoray ingest, no Ray"}
    fixed = ray[1]["first, s"] - ray[1]["seconds"]
    per_gib = ray[SIZES[-1]]["seconds"] / SIZES[-1]
    memory = [
        f"{name} {ray[1][f'{name} MiB']:.0f} to {ray[SIZES[-1]][f'{name} MiB']:.0f} MiB"
        for name in ("driver", "worker")
    ]
    return [
        f"Ray's first ingestion takes {fixed:.1f} s longer than a warm one: less than a tenth of the "
        f"time from {9 * fixed / per_gib:.0f} GiB on.",
        f"Peak memory with Ray from {SIZES[0]} to {SIZES[-1]} GiB: {', '.join(memory)}.",
        f"Seconds per GiB at {', '.join(map(str, SIZES))} GiB: with Ray "
        + ", ".join(f"{ray[size]['seconds'] / size:.2f}" for size in SIZES)
        + "; without "
        + ", ".join(f"{alone[size]['seconds'] / size:.2f}" for size in SIZES)
        + ".",
    ]


if __name__ == "__main__":
    main(measure)
