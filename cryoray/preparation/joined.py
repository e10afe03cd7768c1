"""Several prepared sets, read as one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cryoray.errors import InputError
from cryoray.preparation.prepared import PreparedSet


class JoinedSets(PreparedSet):
    """Prepared sets one after the other: rows of the first come first; features are those of all.

    Attributes:
        sets: as they were given.
        start: int64 [sets + 1], the first row of each, and the end.

    Raises:
        InputError: their images differ in kind or box.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.sets = [PreparedSet.open(path) for path in paths]
        check_together(self.sets)
        first = self.sets[0]
        self.path, self.kind, self.used, self.settings = (
            first.path,
            first.kind,
            first.used,
            first.settings,
        )
        self.features = tuple(
            name for name in first.features if all(name in one.features for one in self.sets)
        )
        digests = [one.digest for one in self.sets]
        alone = len(digests) == 1
        self.digest = first.digest if alone else hashlib.sha256(repr(digests).encode()).hexdigest()
        self.parts = [part for one in self.sets for part in one.parts]
        self.counts = {name: sum(one.counts[name] for one in self.sets) for name in first.counts}
        self.start = np.cumsum([0, *(one.n for one in self.sets)])
        self.n = int(self.start[-1])

    @cached_property
    def table(self) -> pa.Table:
        """`particles.parquet` of each, one after the other; columns that some lack are null there."""
        return pa.concat_tables((one.table for one in self.sets), promote_options="default")

    @cached_property
    def quarantine(self) -> pa.Table:
        """`quarantine.parquet` of each, one after the other."""
        return pa.concat_tables(one.quarantine for one in self.sets)

    def check(self) -> None:
        """See whether all of each is there; see `PreparedSet.check`."""
        for one in self.sets:
            one.check()

    @cached_property
    def _stacks(self) -> tuple[np.ndarray, list[Any]]:
        own = [one._stacks for one in self.sets]
        counts = np.concatenate([np.diff(starts) for starts, _ in own])
        return np.cumsum([0, *counts]), [stack for _, stacks in own for stack in stacks]


def check_together(sets: Sequence[PreparedSet]) -> None:
    """Raise where images of several sets cannot be learned from, or judged, together.

    Raises:
        InputError: they differ in kind or box.
    """
    first = sets[0]
    for other in sets[1:]:
        if other.kind != first.kind or other.settings.box != first.settings.box:
            raise InputError(
                f"holds {other.kind} images of {other.settings.box} px, {first.path} "
                f"{first.kind} images of {first.settings.box} px",
                file=other.path,
                remedy="ingest both with the same --kind and --box",
            )
