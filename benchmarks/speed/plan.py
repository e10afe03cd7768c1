"""How long it takes, and how much memory, to plan reading ten thousand stacks whose rows are shuffled."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import in_process, main, result
from cryoray.formats.mrc import StackWriter
from cryoray.formats.source import open_source
from cryoray.preparation.plan import grouped, plan
from cryoray.settings import IngestSettings

STACKS, PER_STACK, BOX = 10_000, 100, 256

#: A STAR file of particles up to its rows.
HEADER = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
1 1.25

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
_rlnCoordinateX #4
_rlnCoordinateY #5
_rlnDefocusU #6
_rlnDefocusV #7
_rlnDefocusAngle #8
_rlnCtfMaxResolution #9
_rlnCtfFigureOfMerit #10
"""


def write_sparse(paths: Sequence[Path], images: int) -> None:
    """Stacks of so many images of `BOX` px: their headers are real, their pixels holes in a file."""
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first.mrcs"
        with StackWriter(first, BOX, BOX, "float32", 1.25) as writer:
            writer.append(np.zeros((1, BOX, BOX), np.float32))
        header = bytearray(first.read_bytes()[:1024])
    for field in (8, 36):  # images, and sections of the cell
        header[field : field + 4] = images.to_bytes(4, "little")
    for path in paths:
        with path.open("wb") as file:
            file.write(header)
            file.truncate(1024 + images * BOX * BOX * 4)


def write_project(folder: Path, stacks: int) -> Path:
    """Sparse stacks of ``PER_STACK`` images, and a `particles.star` of all of them, shuffled."""
    (folder / "Extract").mkdir()
    write_sparse(
        [folder / "Extract" / f"mic_{number:05d}.mrcs" for number in range(stacks)], PER_STACK
    )
    rng = np.random.default_rng(0)
    lines = [
        f"{row % PER_STACK + 1:06d}@Extract/mic_{row // PER_STACK:05d}.mrcs"
        f" mic_{row // PER_STACK:05d}.mrc 1 {x:.1f} {y:.1f} {u:.1f} {u - 300:.1f} 12.5 4.2 0.11"
        for row, (x, y, u) in zip(
            rng.permutation(stacks * PER_STACK).tolist(),
            rng.uniform(5000, 25000, (stacks * PER_STACK, 3)).tolist(),
            strict=True,
        )
    ]
    star = folder / "particles.star"
    star.write_text(HEADER + "\n".join(lines) + "\n")
    return star


def read_and_plan(star: Path) -> dict[str, Any]:
    """What the plan holds, and the seconds of its two steps."""
    settings = IngestSettings()
    begun = time.perf_counter()
    source = open_source(star)
    read = time.perf_counter()
    planned = plan(source, settings.preparation, settings.range_mib)
    tasks = grouped(planned.ranges, settings.range_mib)
    done = time.perf_counter()
    return {
        "rows": planned.rows,
        "tasks": len(tasks),
        "STAR, s": read - begun,
        "plan, s": done - read,
    }


def measure() -> dict[str, Any]:
    rows = []
    for stacks in (STACKS // 4, STACKS // 2, STACKS):
        with tempfile.TemporaryDirectory() as folder:
            star = write_project(Path(folder), stacks)
            cost, said = in_process(read_and_plan, star)
            rows.append({"stacks": stacks, **said, "seconds": cost.seconds, "peak MiB": cost.mib})
    return result(
        f"Planning to read {PER_STACK} images of each of many stacks, in shuffled order",
        rows,
        ratios=("seconds", "peak MiB"),
        notes=[
            "Headers come from the page cache; over a network each costs a round trip, 32 at a time.",
            "Linear means that the ratios follow the stacks: 1, 2, 4.",
        ],
    )


if __name__ == "__main__":
    main(measure)
