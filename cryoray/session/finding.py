"""What settled files mean: which are judged, which describe others, which belong to nothing here.

* A stack ``NAME.mrcs`` is judged with its own rows where ``NAME_extract.star`` (RELION's extraction, with
  or without an optics table) or ``NAME.star`` lies beside it and names it alone; else with those of a
  ``particles.star`` in its folder or above; else bare.
* Another STAR file, or a cryoSPARC table, is judged where the stacks that it names are not watched
  themselves; otherwise it would be judged twice.
* ``*_model.star`` of a 2D classification is judged by an ensemble for classes, the last iteration alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cryoray.errors import CryorayError, FormatError
from cryoray.formats.companion import rows_of
from cryoray.formats.rows import Source
from cryoray.formats.source import find_sources, open_source
from cryoray.formats.star import parse
from cryoray.records import Kind
from cryoray.session.judging import Unit, digest
from cryoray.session.settling import Scanner

_ITERATION = re.compile(r"_it(\d+)(?=_)")
#: Stacks of averages and of references, which are nobody's particles.
_AVERAGES = re.compile(r"(classes|class_averages|templates|autopick.*)\.mrcs$")
_SHARED = "particles.star"
#: Columns by which a STAR file is known to name particles.
_IMAGE = "rlnImageName"


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
                    found[one] = unit
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
        own = [stack for stack in _stacks_of(file) if self.scanner.is_there(stack)]
        if own:
            return own
        if file.name == _SHARED:
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
        for star in (path.with_name(f"{path.stem}_extract.star"), path.with_suffix(".star")):
            if not self.scanner.is_there(str(star)):
                continue
            settled = self.scanner.get(str(star))
            if settled is None:
                return None  # the pair settles when both have
            if self._alone(star, path):
                return Unit(path, "particle", star, None, digest(identity, settled.identity))
        self._bare.add(str(path))
        for folder in path.parents:
            star = folder / _SHARED
            if self.scanner.get(str(star)):
                described = self._rows_digest(star, path)
                if described:
                    return Unit(path, "particle", None, star, digest(identity, described))
            if folder == self.scanner.root:
                break
        return Unit(path, "particle", None, None, digest(identity))

    def _alone(self, star: Path, stack: Path) -> bool:
        """Whether a STAR file names this stack and no other."""
        try:
            source = open_source(star)
        except FormatError:
            return False
        return len(rows_of(source, stack)) == len(source) > 0

    def _rows_digest(self, star: Path, stack: Path) -> str | None:
        """Of the rows that a shared STAR file has of one stack: other stacks' rows may come and go."""
        source = self._opened(star)
        if source is None:
            return None
        rows = rows_of(source, stack)
        if not len(rows):
            return None
        state = hashlib.blake2b(str(star).encode(), digest_size=12)
        state.update("\0".join(source.images[rows].tolist()).encode())
        for name in sorted(source.metadata):
            state.update(np.ascontiguousarray(source.metadata[name][rows]).tobytes())
        return state.hexdigest()

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
        inside = stack.is_relative_to(self.scanner.root)
        return inside and stack.suffix == ".mrcs" and not _AVERAGES.search(stack.name)


def _stacks_of(star: Path) -> list[str]:
    """The stacks whose own STAR file this would be, by its name."""
    names = [star.with_suffix(".mrcs")]
    if star.stem.endswith("_extract"):
        names.append(star.with_name(star.stem.removesuffix("_extract") + ".mrcs"))
    return [str(name) for name in names]


def _is_table(path: Path) -> bool:
    """Whether a cryoSPARC table is a source of particles, not what goes with one."""
    try:
        return path in find_sources(path.parent)
    except CryorayError:
        return False
