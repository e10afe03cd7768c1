"""Read what a plan says: a bad file or a bad pixel becomes a reason, never a stop."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np

from cryoray.errors import FormatError, InputError, printable
from cryoray.formats.mrc import NO_STACK, read_frames, read_header
from cryoray.formats.opening import in_scope, open_file
from cryoray.formats.rows import Source
from cryoray.records import RowRange, Stack

#: Grey values beyond this overflow when they are squared in float32; no detector has such.
_LARGEST = 1e15
#: px; a virus in a box of 2,048 is among the largest particles that there are.
_LARGEST_SIDE = 4096
#: Headers asked for at once: a file system across a network answers each late, and many together.
_AT_ONCE = 32
#: What a reason says of this one row rather than of its sort: where it lies, how many of what.
_WHERE = re.compile(r"^.*?\.(?:mrcs?|st|star|cs)(?:, (?:image|row) [\d,]+)?: |^image [\d,]+ ")
_ONES_OWN = re.compile(r"\S+\.mrcs?\b|(?<![\w.])-?(?:\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?|inf)(?!\w)")


class Headers:
    """The headers of a source's stacks, each read once and only when it is asked for."""

    def __init__(self, stacks: tuple[Path, ...]) -> None:
        self.stacks = stacks
        self._known: dict[int, Stack | str] = {}

    def __getitem__(self, index: int) -> Stack | str:
        """The stack, or the reason why it cannot be read."""
        if index not in self._known:
            try:
                self._known[index] = image_header(self.stacks[index])
            except FormatError as error:
                self._known[index] = reason(error)
        return self._known[index]

    def read(self, indices: Iterable[int]) -> None:
        """Read these headers side by side, so that asking for one later costs nothing."""
        missing = [index for index in indices if index not in self._known]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(_AT_ONCE, len(missing))) as pool:
                list(pool.map(in_scope(self.__getitem__), missing))


def image_header(path: Path) -> Stack:
    """The stack of a particle's or a class's images, from its header alone.

    Raises:
        FormatError: it cannot be read, or its images are larger than any of these are.
    """
    stack = read_header(path)
    if max(stack.height, stack.width) > _LARGEST_SIDE:
        raise FormatError(
            f"has images of {stack.width:,} × {stack.height:,} px, and no particle or class has more"
            f" than {_LARGEST_SIDE:,}",
            file=path,
        )
    return stack


def read_blocks(rows: RowRange, size: int) -> Iterator[np.ndarray]:
    """The images of a range, float32 [<= size, H, W], block after block.

    Before a block is returned the system is asked to fetch the next one, so that a disk or network
    works while the caller does.

    Raises:
        FormatError: the stack cannot be read, or changed since it was planned or while it was read.
    """
    stack, cuts = rows.stack, [*range(0, len(rows.frames), size), len(rows.frames)]
    with ExitStack() as stay:
        ahead = None
        with suppress(OSError, InputError):  # reading says better what is wrong
            ahead = stay.enter_context(open_file(stack.path))
        for start, end in pairwise(cuts):
            following = rows.frames[end : end + size]
            if ahead is not None and len(following):
                _fetch(ahead.fileno(), stack, following)
            yield read_frames(stack, rows.frames[start:end])
    read_frames(stack, rows.frames[:0])  # for its look at size and time, after the last pixel


def _fetch(file: int, stack: Stack, frames: np.ndarray) -> None:
    """Ask for the span of some ascending frames, unless most of it is not wanted."""
    first, count = int(frames[0]), int(frames[-1] - frames[0]) + 1
    if count <= 2 * len(frames) and not stack.compression and hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # it is advice; some file systems take none
            os.posix_fadvise(
                file,
                stack.offset + first * stack.image_bytes,
                count * stack.image_bytes,
                os.POSIX_FADV_WILLNEED,
            )


def defects(images: np.ndarray) -> dict[int, str]:
    """Which of the images [n, H, W] are no images, and why."""
    flat = images.reshape(len(images), -1)
    with np.errstate(invalid="ignore"):  # the extremes of an image with a NaN are NaN
        lowest, highest = flat.min(1), flat.max(1)
    found: dict[int, str] = {}
    for i in np.flatnonzero(~np.isfinite(lowest) | ~np.isfinite(highest)).tolist():
        bad = int(np.count_nonzero(~np.isfinite(images[i])))
        found[i] = f"{bad:,} of {images[i].size:,} pixels are NaN or infinite"
    for i in np.flatnonzero(np.maximum(highest, -lowest) > _LARGEST).tolist():
        found.setdefault(i, f"pixels run from {lowest[i]:g} to {highest[i]:g}")
    for i in np.flatnonzero(lowest == highest).tolist():
        found.setdefault(i, f"all pixels are {lowest[i]:g}")
    return found


def reason(error: FormatError) -> str:
    """The error's sentence as an entry of a list."""
    return str(error).removesuffix(".")


def explained(reasons: Sequence[str], source: Source) -> tuple[str, str]:
    """Why most of some rows cannot be read, with the first of them, and what can be done about it.

    Args:
        reasons: of each, in order; at least one.
        source: whose rows they are.
    """
    sorts: dict[str, list[str]] = {}
    for why in reasons:
        (sort,) = by_reason([why])
        sorts.setdefault(sort, []).append(why)
    sort, alike = max(sorts.items(), key=lambda one: len(one[1]))
    like = f"{len(alike):,} of them like the first: {alike[0]}"
    if sort != NO_STACK:
        return like, "look at the reasons listed there and correct the source"
    name = str(source.images[0]).rpartition("@")[2]
    if source.format == "stack" or name.startswith("/"):
        return like, "bring the stacks back, or correct their paths"
    file = printable(source.path.name)
    return like, (
        f"{file} names them from the project's folder, which was looked for from {source.path.parent}"
        f" upwards: put {file} into its project, or bring the stacks back"
    )


def by_reason(reasons: Iterable[str]) -> dict[str, int]:
    """How many rows have each sort of reason, most first: without file, image and numbers."""
    sorts = Counter(_ONES_OWN.sub("…", _WHERE.sub("", why)) for why in reasons)
    return dict(sorts.most_common())
