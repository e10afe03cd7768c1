"""Which rows a request means: confined to a scope, with the metadata that lie beside a stack."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoray.errors import InputError
from cryoray.formats.opening import Scope, current
from cryoray.formats.rows import exists
from cryoray.formats.source import Source, open_source
from cryoray.preparation.described import describe
from cryoray.preparation.plan import grouped, plan, protein_is_dark
from cryoray.records import Kind, RowRange
from cryoray.session.cache import Cache
from cryoray.settings import PreparationSettings

#: Raw MiB that a preparer reads at once, up to twice as many.
_RANGE_MIB = 32
#: Sources that are kept open between requests; a million rows take about 200 MB.
_KEPT = 8


class AbsentError(InputError):
    """A source under one of the roots is not there."""


class TooMuchError(InputError):
    """A request is larger than the service takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """What a request asked for, found and planned.

    Attributes:
        rows: how many rows were asked for.
        first: the first of them, 0-based; the others follow it.
        images: str objects [rows], the names of their images.
        ranges: what can be read, at most as many rows in each as are judged together.
        quarantined: (row, reason) of the others.
    """

    rows: int
    first: int
    images: np.ndarray
    ranges: tuple[RowRange, ...]
    quarantined: tuple[tuple[int, str], ...]


class Catalogue:
    """Opens what requests ask for, in a scope; may be used from several threads.

    Args:
        max_rows: rows in one request.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._sources: Cache[Source] = Cache(_KEPT)
        self._dark: Cache[bool] = Cache(16 * _KEPT)

    def choose(
        self,
        source: str | Path,
        rows: tuple[int, int] | None,
        kind: Kind,
        preparation: PreparationSettings,
        together: int,
        scope: Scope,
    ) -> Chosen:
        """Find the rows of a request and plan their reading, as `classify` would.

        Args:
            source: path of a STAR file, a cryoSPARC table or a stack.
            rows: first, end; None for all.
            kind: of the ensemble that will judge.
            preparation: of the ensemble that will judge.
            together: images in a range.
            scope: in which everything must lie.

        Raises:
            OutsideError: the source, or a stack that it names, lies outside the scope.
            AbsentError: there is no such file.
            TooMuchError: more rows than ``max_rows``.
            InputError: it is no source, or has no such rows.
        """
        with scope.reading():
            return self._choose(source, rows, kind, preparation, together, scope)

    def _choose(
        self,
        source: str | Path,
        rows: tuple[int, int] | None,
        kind: Kind,
        preparation: PreparationSettings,
        together: int,
        scope: Scope,
    ) -> Chosen:
        path = scope.confine(source)
        if not path.is_file():
            raise AbsentError("there is no such file", file=source)
        opened, whole, _ = describe(
            self._open(path, kind),
            lambda file: self._open(scope.confine(file), kind),
            by_frame=True,
        )
        first, end = rows or (0, len(opened))
        if end > len(opened):
            raise InputError(
                f"has {len(opened):,} rows, and [{first:,}, {end:,}] were requested", file=source
            )
        if end - first > self.max_rows:
            raise TooMuchError(
                f"{end - first:,} rows are more than the {self.max_rows:,} of one request",
                file=source,
                remedy="ask for fewer at a time",
            )
        wanted = np.arange(first, end)
        for index in np.unique(opened.stack[wanted]).tolist():
            if index >= 0:
                scope.confine(opened.stacks[index])
        # Decided over the whole, as `classify` does, so that it is the same for every request.
        dark = self._dark.get(
            (scope, _identity(whole.path), kind, preparation),
            lambda: protein_is_dark(whole, preparation),
            keep=all(map(exists, whole.stacks)),
        )
        planned = plan(opened, preparation, _RANGE_MIB, rows=wanted, invert=dark)
        return Chosen(
            rows=len(wanted),
            first=first,
            images=opened.images[first:end],
            ranges=tuple(
                part for few in grouped(planned.ranges, _RANGE_MIB, together) for part in few
            ),
            quarantined=planned.quarantined,
        )

    def _open(self, path: Path, kind: Kind) -> Source:
        scope = current()

        def read() -> Source:
            source = open_source(path, kind)
            for stack in source.stacks:
                scope.confine(stack)
            return source

        # What one scope may see of a source is no answer to what another may.
        return self._sources.get((scope, _identity(path), kind), read)


def _identity(path: Path) -> Hashable:
    """Changes when the file does."""
    status = path.stat()
    return (path, status.st_mtime_ns, status.st_size, status.st_ino)
