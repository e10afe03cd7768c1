"""Small files that tests of the readers share: stacks and STAR files as programs write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryoray.formats.mrc import StackWriter

OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnImagePixelSize #3
_rlnVoltage #4
first 1 1.500000 300.000000
'second group' 2 2.500000 200.000000

"""


def write_stack(path: Path, count: int, side: int = 8, pixel_size: float | None = 1.5) -> Path:
    """A float32 stack in which every pixel of image i is i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with StackWriter(path, side, side, "float32", pixel_size) as writer:
        writer.append(np.repeat(np.arange(count), side * side).reshape(count, side, side))
    return path


def write_particles(
    path: Path, names: Sequence[str], groups: Sequence[int] | None = None, end: str = "\n"
) -> Path:
    """A RELION 3.1 particles STAR file of image names, with micrographs, classes and a defocus."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{1000 + i:12.3f} {name} {group} mic{i % 2}.mrc {i % 3 + 1} "
        for i, (name, group) in enumerate(zip(names, groups or [1] * len(names), strict=True))
    ]
    columns = ["DefocusU", "ImageName", "OpticsGroup", "MicrographName", "ClassNumber"]
    head = [f"_rln{name} #{i}" for i, name in enumerate(columns, 1)]
    text = OPTICS + "\n".join(
        ["", "# version 30001", "", "data_particles", "", "loop_", *head, *rows, " ", ""]
    )
    path.write_bytes(text.replace("\n", end).encode())
    return path
