"""The names of the images of bare stacks, ``000001@file.mrcs``: made for the rows that are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

#: Names that are made at a time where all are wanted.
_TOGETHER = 100_000


class Numbered:
    """Used as an array of str objects [n]: a header promises any number of images, and these take no room.

    Args:
        names: of the stacks, one after the other.
        counts: images in each.
        own: int64 [k], rows that have a name of their own, ascending.
        given: str objects [k], these names.
    """

    def __init__(
        self,
        names: Sequence[str],
        counts: Sequence[int],
        own: np.ndarray | None = None,
        given: np.ndarray | None = None,
    ) -> None:
        self._names, self._counts = tuple(names), np.array(counts, np.int64)
        self._ends = np.cumsum(self._counts)
        self._own = np.empty(0, np.int64) if own is None else own
        self._given = np.empty(0, object) if given is None else given

    def but(self, own: np.ndarray, given: np.ndarray) -> Numbered:
        """The same with other names, str objects [k], of some rows, int64 [k] ascending."""
        return Numbered(self._names, self._counts.tolist(), own, given)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, at: Any) -> Any:
        """The name of a row, or those of several: by a number, a slice, or an array of rows or of bools.

        Raises:
            IndexError: there is no such row.
        """
        if isinstance(at, slice):
            return self._of(np.arange(*at.indices(len(self))))
        rows = np.asarray(at)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if ((rows < 0) | (rows >= len(self))).any():
            raise IndexError(f"there are {len(self):,} rows")
        found = self._of(rows.ravel())
        return found.reshape(rows.shape) if rows.ndim else found[0]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _TOGETHER):
            yield from self[first : first + _TOGETHER].tolist()

    def tolist(self) -> list[str]:
        """All of them."""
        return list(self)

    def _of(self, rows: np.ndarray) -> np.ndarray:
        of = np.searchsorted(self._ends, rows, side="right")
        frames = rows - (self._ends - self._counts)[of] + 1
        made = np.empty(len(rows), object)
        made[:] = [
            f"{frame:06d}@{self._names[stack]}"
            for frame, stack in zip(frames.tolist(), of.tolist(), strict=True)
        ]
        if len(self._own):
            place = np.searchsorted(self._own[:-1], rows)
            own = self._own[place] == rows
            made[own] = self._given[place[own]]
        return made
