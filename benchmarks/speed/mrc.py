"""Reading images of a stack: pread as cryoray does, against a memory map, mrcfile and compressed files.

In order: all images in ranges of 64 MiB, as ingestion does. Scattered: one image in eight, ascending,
as after a selection. Warm: the file is in the page cache; cold: the system was told to forget it, which
a disk or a network file system feels more than the solid-state disk of a virtual machine.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

from benchmarks.common import Cost, Row, in_process, main, result, typical
from cryoray.formats.mrc import StackWriter, read_frames, read_header

COUNT, SIDE, REPEATS = 16_384, 128, 5
RANGE = 64 << 20
_IMAGE = SIDE * SIDE * 2


def write_stack(path: Path) -> Path:
    """A float16 stack of 512 MiB."""
    draw = np.random.default_rng(0)
    with StackWriter(path, SIDE, SIDE, "float16", 3.54) as writer:
        for _ in range(0, COUNT, 512):
            writer.append(draw.normal(size=(512, SIDE, SIDE)).astype(np.float32))
    return path


def in_order() -> list[np.ndarray]:
    """Ranges of images that follow each other."""
    return np.array_split(np.arange(COUNT), COUNT * _IMAGE // RANGE)


def scattered() -> list[np.ndarray]:
    """Ranges of images of which most are left out."""
    chosen = np.sort(np.random.default_rng(1).choice(COUNT, COUNT // 8, replace=False))
    return np.array_split(chosen, max(1, len(chosen) * _IMAGE // RANGE))


Ranges = Callable[[], list[np.ndarray]]


def by_pread(path: Path, ranges: Ranges) -> float:
    stack = read_header(path)
    return sum(float(read_frames(stack, some)[:, 0, 0].sum()) for some in ranges())


def by_memmap(path: Path, ranges: Ranges) -> float:
    stack = read_header(path)
    total = 0.0
    for some in ranges():  # mapped anew, as every task does
        shape = (stack.count, stack.height, stack.width)
        pixels = np.memmap(path, stack.dtype, "r", stack.offset, shape)
        total += float(pixels[some].astype(np.float32)[:, 0, 0].sum())
    return total


def by_mrcfile(path: Path, ranges: Ranges) -> float:
    total = 0.0
    for some in ranges():
        with mrcfile.mmap(path) as peer:
            total += float(peer.data[some].astype(np.float32)[:, 0, 0].sum())
    return total


def forget(path: Path) -> None:
    """Drop a file from the page cache, as far as the system listens."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(repeats: int = REPEATS) -> dict[str, Any]:
    """Costs of each way, the median of some repeats."""
    lines: list[Row] = []
    with tempfile.TemporaryDirectory() as made:
        path = write_stack(Path(made) / "stack.mrcs")
        packed = path.with_suffix(".mrcs.gz")
        with path.open("rb") as plain, gzip.open(packed, "wb", 1) as out:
            shutil.copyfileobj(plain, out, 1 << 20)
        ways: list[tuple[str, Path, Callable[[Path, Ranges], float]]] = [
            ("pread (cryoray)", path, by_pread),
            ("np.memmap", path, by_memmap),
            ("mrcfile.mmap", path, by_mrcfile),
            ("gzip, count and pass (cryoray)", packed, by_pread),
        ]
        for order, ranges in (("in order", in_order), ("scattered", scattered)):
            size = sum(map(len, ranges())) * _IMAGE / 2**20
            for state in ("warm", "cold"):
                costs: dict[str, list[Cost]] = {name: [] for name, _, _ in ways}
                for _ in range(repeats):
                    for name, file, way in ways:
                        if state == "cold":
                            forget(file)
                        costs[name].append(in_process(way, file, ranges)[0])
                for name, each in costs.items():
                    cost = typical(each)
                    line: Row = {"what": f"{order}, {state}", "by": name}
                    line |= {"seconds": round(cost.seconds, 3), "CPU s": round(cost.cpu_seconds, 3)}
                    line |= {"MiB/s": round(size / cost.seconds), "MiB": round(cost.mib)}
                    lines.append(line)
    return result(
        f"{COUNT:,} float16 images of {SIDE} px ({COUNT * _IMAGE >> 20} MiB) to float32",
        lines,
        ratios=("seconds", "CPU s"),
        among="what",
        notes=[f"the median of {repeats} runs, taken in turn, each in a fresh process"],
    )


if __name__ == "__main__":
    main(measure)
