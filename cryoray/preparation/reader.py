"""Read what a plan says: a bad file or a bad pixel becomes a reason, never a stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryoray.errors import FormatError
from cryoray.formats.mrc import read_frames, read_header
from cryoray.records import RowRange, Stack

#: Grey values beyond this overflow when they are squared in float32; no detector has such.
_LARGEST = 1e15


class Headers:
    """The headers of a source's stacks, each read once and only when it is asked for."""

    def __init__(self, stacks: tuple[Path, ...]) -> None:
        self.stacks = stacks
        self._known: dict[int, Stack | str] = {}

    def __getitem__(self, index: int) -> Stack | str:
        """The stack, or the reason why it cannot be read."""
        if index not in self._known:
            try:
                self._known[index] = read_header(self.stacks[index])
            except FormatError as error:
                self._known[index] = reason(error)
        return self._known[index]


def read_range(rows: RowRange) -> np.ndarray | str:
    """float32 [n, H, W], or the reason why none of these rows can be read."""
    try:
        return read_frames(rows.stack, rows.frames)
    except FormatError as error:
        return reason(error)


def defects(images: np.ndarray) -> dict[int, str]:
    """Which of the images [n, H, W] are no images, and why."""
    # Of a sum with NaN or infinity in it nothing finite remains; only then is a second look needed.
    with np.errstate(invalid="ignore", over="ignore"):
        suspect = ~np.isfinite(images.sum((1, 2), dtype=np.float64))
    found: dict[int, str] = {}
    for i in np.flatnonzero(suspect).tolist():
        bad = int(np.count_nonzero(~np.isfinite(images[i])))
        found[i] = f"{bad:,} of {images[i].size:,} pixels are NaN or infinite"
    lowest, highest = images.min((1, 2)), images.max((1, 2))
    for i in np.flatnonzero(np.maximum(highest, -lowest) > _LARGEST).tolist():
        found.setdefault(i, f"pixels run from {lowest[i]:g} to {highest[i]:g}")
    for i in np.flatnonzero(lowest == highest).tolist():
        found.setdefault(i, f"all pixels are {lowest[i]:g}")
    return found


def reason(error: FormatError) -> str:
    """The error's sentence as an entry of a list."""
    return str(error).removesuffix(".")
