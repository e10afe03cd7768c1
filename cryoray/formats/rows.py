"""The rows of a source, whichever program wrote it, and what reading every one of them shares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from cryoray.errors import printable
from cryoray.formats.numbered import Numbered
from cryoray.records import Kind

#: What a source is made of: a RELION STAR file, a cryoSPARC table, or stacks that nothing describes.
Format = Literal["star", "cs", "stack"]
STACK_SUFFIXES = (".mrcs", ".mrc", ".st", ".map")
PACKED_SUFFIXES = ("", ".gz", ".bz2")
CS_SUFFIXES = (".cs", ".csg")
FILE_SUFFIXES = (
    ".star",
    *CS_SUFFIXES,
    *(stack + packed for stack in STACK_SUFFIXES for packed in PACKED_SUFFIXES),
)


@dataclass(frozen=True, eq=False)
class Source:
    """The rows of a source; n is their number.

    Attributes:
        path: the STAR file, the table, the stack, or the folder of bare stacks.
        kind: what the rows are.
        images: str objects [n], the images' names as the source has them; those of bare stacks are made
            when they are asked for. They, micrographs and problems are text that every sink takes
            (`printable`).
        stacks: absolute paths of the stacks that rows name; they may be missing.
        stack: int32 [n], index into ``stacks``, -1 where the row names none.
        frame: int64 [n], 0-based position in the stack.
        micrograph: str objects [n], '' where unknown.
        pixel_size: float32 [n], Å/px, NaN where the STAR file does not say; a stack's header may.
        metadata: float64 [n] by RELION's column name; optics values are repeated for their rows.
        problems: reason by 0-based row, for rows that name no image.
        whole: bool [n], rows that name a file without the number of an image in it; None: no row does.
        uid: uint64 [n], what cryoSPARC knows each row by; None in other programs' files.
        format: what ``path`` is.
    """

    path: Path
    kind: Kind
    images: np.ndarray | Numbered
    stacks: tuple[Path, ...]
    stack: np.ndarray
    frame: np.ndarray
    micrograph: np.ndarray
    pixel_size: np.ndarray
    metadata: Mapping[str, np.ndarray] = field(default_factory=dict)
    problems: Mapping[int, str] = field(default_factory=dict)
    whole: np.ndarray | None = None
    uid: np.ndarray | None = None
    format: Format = "star"

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def name(self) -> str:
        """The project's name if nobody gives one: its folder, above RELION's ``TYPE/jobNNN`` or ``JNNN``."""
        folder = self.path.parent if self.path.name.endswith(FILE_SUFFIXES) else self.path
        for inside in (folder, *folder.parents):
            if re.fullmatch(r"job\d+", inside.name) and len(inside.parts) > 3:
                return printable(inside.parent.parent.name)
            if re.fullmatch(r"J\d+", inside.name) and len(inside.parts) > 2:
                return printable(inside.parent.name)
        return printable(folder.name)

    @property
    def is_star(self) -> bool:
        """Whether the rows are those of a STAR file."""
        return self.format == "star"


def resolve(names: Iterable[str], folder: Path, project: Path | None = None) -> list[Path]:
    """Absolute paths of files named in a file of ``folder``.

    Programs name them from the project's folder, which is the file's own or one above it; where the
    project is another's copy or has moved, wherever above the file they are found. The folder in which
    the last one was found is tried first, at first ``project``. What is found nowhere may have been copied
    together with the file: then the file of that name beside it is meant. A file that is not there either
    is given as in the likeliest folder.
    """
    above = [folder, *folder.parents]
    likely = project or folder
    resolved = []
    for name in names:
        if not Path(name).is_absolute():
            tried = (likely, *above)
            likely = next((root for root in tried if exists(root / name)), likely)
        path = likely / name
        beside = folder / path.name
        resolved.append(beside if not exists(path) and exists(beside) else path)
    return resolved


def exists(path: Path) -> bool:
    """Whether a file is there, whatever its name is."""
    try:
        return path.exists()
    except (OSError, ValueError):  # no name of a file: too long, or with a null byte in it
        return False


def unique(paths: list[Path]) -> tuple[tuple[Path, ...], np.ndarray]:
    """Different paths in order of first mention, and the index of each among them."""
    place: dict[Path, int] = {}
    index = np.array([place.setdefault(path, len(place)) for path in paths], dtype=np.int32)
    return tuple(place), index
