"""Stacks that nothing describes, as a source: every image that is there or should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryoray.errors import FormatError, printable
from cryoray.formats import mrc
from cryoray.formats.numbered import Numbered
from cryoray.formats.rows import Source
from cryoray.formats.star import unwritable
from cryoray.records import Kind

#: More absent images than this are a header that lies, not a stack that was cut short.
_MOST_ABSENT = 1_000_000
#: Images of one stack: each row takes some 100 bytes of memory, whether or not its pixels are there.
MOST_IMAGES = 10_000_000


def open_stacks(path: Path, stacks: list[Path], kind: Kind) -> Source:
    """Every image of some stacks, those that a truncated one lost included.

    The verdicts of bare stacks are STAR files with absolute paths, so the images of a stack whose path no
    STAR file can hold are quarantined.

    Args:
        path: the stack, or the folder in which all of them lie.
        stacks: absolute paths.
        kind: what an image is.

    Raises:
        FormatError: none of them can be read.
    """
    folder = path if path.is_dir() else path.parent
    names = [_name(stack.relative_to(folder)) for stack in stacks]
    counts: list[int] = []
    problems: dict[int, str] = {}
    for stack, name in zip(stacks, names, strict=True):
        first, why = sum(counts), unwritable(str(stack))
        try:
            counts.append(_rows(stack))
        except FormatError as error:
            if len(stacks) == 1:
                raise
            counts.append(1)
            why = error.what
        if why is not None:
            problems |= dict.fromkeys(range(first, sum(counts)), f"{name} {why}")
    n = sum(counts)
    if len(problems) == n:
        raise FormatError(f"holds no stack that can be read: {problems[0]}", file=path)
    index = np.repeat(np.arange(len(stacks), dtype=np.int32), counts)
    index[list(problems)] = -1
    return Source(
        path=path,
        format="stack",
        kind=kind,
        images=Numbered(names, counts),
        stacks=tuple(stacks),
        stack=index,
        frame=np.concatenate([np.arange(count) for count in counts]),
        # Each one value, as often as there are rows, that takes no room.
        micrograph=np.broadcast_to(np.array("", object), n),
        pixel_size=np.broadcast_to(np.float32(np.nan), n),
        problems=problems,
    )


def _name(stack: Path) -> str:
    """A name that a STAR file can hold, since quarantined rows are written, too."""
    name = printable(stack.as_posix())
    return name if unwritable(name) is None else name.replace("'", r"\x27")


def _rows(stack: Path) -> int:
    """Images that a stack has or should have."""
    header = mrc.read_header(stack)
    promised = mrc.promised(header)
    if header.count > MOST_IMAGES:
        raise FormatError(
            f"holds {header.count:,} images, and more than {MOST_IMAGES:,} are not opened together",
            file=stack,
            remedy="divide it into several",
        )
    if promised - header.count > _MOST_ABSENT:
        raise FormatError(mrc.absence(header).removeprefix(f"{printable(stack.name)} "), file=stack)
    return promised
