"""What settled files mean: which are judged, which describe others, which belong to nothing here.

* A stack ``NAME.mrcs`` is judged with the rows that the STAR file which describes it has of it
  (`formats.companion`), else bare.
* Another STAR file, or a cryoSPARC table, is judged where the stacks that it names are not watched
  themselves; otherwise it would be judged twice.
* ``*_model.star`` of a 2D classification is judged by an ensemble for classes, the last iteration alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from cryoray.errors import CryorayError, FormatError
from cryoray.formats import rln
from cryoray.formats.companion import SHARED, find, own_names, stacks_of
from cryoray.formats.rows import Source
from cryoray.formats.source import find_sources, open_source
from cryoray.formats.star import parse
from cryoray.records import Kind
from cryoray.session.judging import Unit, digest, images_of
from cryoray.session.settling import Scanner

_ITERATION = re.compile(r"_it(\d+)(?=_)")
#: Stacks of averages and of references, which are nobody's particles.
_AVERAGES = re.compile(r"(classes|class_averages|templates|autopick.*)\.mrcs$")
#: Columns by which a STAR file is known to name particles.
_IMAGE = rln.IMAGE_NAME


class _UnsettledError(Exception):
    """What describes a stack is still written."""


class Finder:
    """Makes units of the files that a scanner sees.

    Args:
        scanner: sees the files.
        kinds: what can be judged.
    """

    def __init__(self, scanner: Scanner, kinds: Iterable[Kind]) -> None:
        self.scanner, self.kinds = scanner, frozenset(kinds)
        self._stars: dict[str, tuple[tuple[int, int], Source | None]] = {}
        self._bare: set[str] = set()

    def units(self, paths: Iterable[str]) -> list[Unit]:
        """Units that settled files make, or that they change."""
        found: dict[str, Unit] = {}
        for path in paths:
            for one in self._affected(path):
                unit = self._unit(Path(one))
                if unit is not None:
                    found[one] = replace(unit, images=images_of(unit))
        return list(found.values())

    def superseded(self, model: Path) -> list[str]:
        """Models of earlier iterations of the same run."""
        found = _ITERATION.search(model.name)
        if not found:
            return []
        run = _ITERATION.sub("_it*", model.name, count=1)
        return [
            str(other)
            for other in model.parent.glob(run)
            if (at := _ITERATION.search(other.name)) and int(at[1]) < int(found[1])
        ]

    def _affected(self, path: str) -> list[str]:
        """The paths of units that a settled file is, or is part of."""
        file = Path(path)
        if file.suffix != ".star":
            return [path]
        own = [str(one) for one in stacks_of(file) if self.scanner.is_there(str(one))]
        if own:
            return own
        if file.name == SHARED:
            below = str(file.parent) + "/"
            return [path, *(stack for stack in sorted(self._bare) if stack.startswith(below))]
        return [path]

    def _unit(self, path: Path) -> Unit | None:
        file = self.scanner.get(str(path))
        if file is None:
            return None
        if path.suffix == ".mrcs":
            return self._stack(path, file.identity)
        if path.name.endswith("_model.star"):
            if "class2d" not in self.kinds:
                return None
            return Unit(path, "class2d", None, None, digest(file.identity))
        if "particle" not in self.kinds or path.name.endswith("_extract.star"):
            return None
        if path.suffix == ".cs" and not _is_table(path):
            return None
        source = self._opened(path)
        if source is None or any(self._watched(stack) for stack in source.stacks):
            return None
        return Unit(path, "particle", None, None, digest(file.identity))

    def _stack(self, path: Path, identity: tuple[int, int]) -> Unit | None:
        if "particle" not in self.kinds or _AVERAGES.search(path.name):
            return None
        self._bare.discard(str(path))
        own = own_names(path)

        def opened(star: Path) -> Source:
            if self.scanner.get(str(star)) is None:
                if star in own and self.scanner.is_there(str(star)):
                    raise _UnsettledError  # the pair settles when both have
                raise FormatError("is not watched, or is still written", file=star)
            source = self._opened(star)
            if source is None:
                raise FormatError("names no particles", file=star)
            return source

        try:
            found = find(path, open_star=opened)
        except _UnsettledError:
            return None
        unused = tuple((star.name, why) for star, why in found.unused)
        described = found.companion
        star = None if described is None else described.star.path
        if star not in own:  # a STAR file of several stacks may come to describe it, or change
            self._bare.add(str(path))
        if described is None or star is None:
            return Unit(path, "particle", None, None, digest(identity), unused)
        settled = self.scanner.get(str(star))
        if described.alone and star in own and settled is not None:
            alone = digest(identity, settled.identity)
            return Unit(path, "particle", star, None, alone, unused)
        rows = digest(identity, _rows_digest(described.star, described.rows, star))
        return Unit(path, "particle", None, star, rows, unused)

    def _opened(self, path: Path) -> Source | None:
        """A source that several units need, read once for each state of its file; None if it is none."""
        file = self.scanner.get(str(path))
        if file is None:
            return None
        known = self._stars.get(str(path))
        if known is None or known[0] != file.identity:
            source: Source | None = None
            try:
                if path.suffix != ".star" or parse(path).with_column(_IMAGE) is not None:
                    source = open_source(path)
            except CryorayError:
                source = None
            self._stars.clear()  # one is held at a time: they may be large
            self._stars[str(path)] = known = (file.identity, source)
        return known[1]

    def _watched(self, stack: Path) -> bool:
        """Whether a stack will be judged by itself."""
        if stack.suffix != ".mrcs" or _AVERAGES.search(stack.name):
            return False
        return stack.is_relative_to(self.scanner.root) or self.scanner.seen_as(stack) is not None


def _rows_digest(source: Source, rows: np.ndarray, star: Path) -> str:
    """Of the rows that a shared STAR file has of one stack: other stacks' rows may come and go."""
    state = hashlib.blake2b(str(star).encode(errors="surrogateescape"), digest_size=12)
    state.update("\0".join(source.images[rows].tolist()).encode(errors="surrogateescape"))
    for name in sorted(source.metadata):
        state.update(np.ascontiguousarray(source.metadata[name][rows]).tobytes())
    return state.hexdigest()


def _is_table(path: Path) -> bool:
    """Whether a cryoSPARC table is a source of particles, not what goes with one."""
    try:
        return path in find_sources(path.parent)
    except CryorayError:
        return False
