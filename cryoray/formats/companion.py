"""Which STAR file describes a stack: one rule, for bulk, service, watcher and sessions alike.

In this order: ``NAME_extract.star`` beside ``NAME.mrcs`` (RELION's extraction writes one for each stack),
``NAME.star`` beside it, then the ``particles.star`` of its folder, or of one of the three above it. The first
that names the stack describes it. Which file a name means is `formats.rows.resolve`'s business: where the
path does not exist any more, the file of that name beside the STAR file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cryoray.errors import FormatError, InputError
from cryoray.formats.rows import Source
from cryoray.formats.source import open_source
from cryoray.records import Kind

#: The STAR file of several stacks, and how many folders above a stack's own it is looked for.
SHARED, _ABOVE = "particles.star", 3

#: Opens a STAR file; raises InputError where it must not be used, or cannot be read.
Open = Callable[[Path], Source]


@dataclass(frozen=True, slots=True, eq=False)
class Companion:
    """The STAR file that describes a stack.

    Attributes:
        star: all of its rows.
        rows: int64 [n], 0-based, those of the stack, in the file's order.
    """

    star: Source
    rows: np.ndarray

    @property
    def alone(self) -> bool:
        """Whether it describes this stack and no other."""
        return len(self.rows) == len(self.star)

    def complete(self, images: int) -> bool:
        """Whether it names each of the stack's ``images`` once."""
        frames = np.sort(self.star.frame[self.rows])
        return np.array_equal(frames, np.arange(images))


@dataclass(frozen=True, slots=True)
class Found:
    """What was found beside a stack.

    Attributes:
        companion: what describes it; None where nothing does.
        unused: STAR files named like the stack that do not describe it, and why not.
    """

    companion: Companion | None
    unused: tuple[tuple[Path, str], ...] = ()


def candidates(stack: Path) -> list[Path]:
    """The STAR files that may describe a stack, the likeliest first, whether or not they are there."""
    return [*dict.fromkeys([*own_names(stack), *(folder / SHARED for folder in _folders(stack))])]


def own_names(stack: Path) -> list[Path]:
    """The STAR files that describe a stack alone, by their names."""
    return [stack.with_name(f"{stack.stem}_extract.star"), stack.with_suffix(".star")]


def stacks_of(star: Path) -> list[Path]:
    """The stacks that a STAR file may describe alone, by its name."""
    stems = [star.stem, *([star.stem.removesuffix("_extract")] if _is_extract(star) else [])]
    return [star.with_name(f"{stem}.mrcs") for stem in stems]


def find(stack: Path, kind: Kind = "particle", open_star: Open | None = None) -> Found:
    """The STAR file that describes a stack.

    Args:
        stack: absolute path.
        kind: what its images are.
        open_star: opens a candidate that is there; by default `open_source`.
    """
    opened, unused = open_star or partial(open_source, kind=kind), []
    own = own_names(stack)
    for file in _there(stack):
        try:
            star = opened(file)
            rows = rows_of(star, stack)
        except InputError as error:
            if file in own:
                unused.append((file, error.what if isinstance(error, FormatError) else str(error)))
            continue
        if len(rows):
            return Found(Companion(star, rows), tuple(unused))
        if file in own:
            unused.append((file, f"names other stacks ({_first_stack(star)})"))
    return Found(None, tuple(unused))


def rows_of(star: Source, stack: Path) -> np.ndarray:
    """int64 [n], 0-based, the rows of a source whose images lie in a stack."""
    named = [at for at, path in enumerate(star.stacks) if path.name == stack.name]
    real = os.path.realpath(stack)
    place = next((at for at in named if os.path.realpath(star.stacks[at]) == real), -2)
    return np.flatnonzero(star.stack == place)


def _folders(stack: Path) -> list[Path]:
    return list(stack.parents)[: 1 + _ABOVE]


def _there(stack: Path) -> Iterator[Path]:
    for file in candidates(stack):
        try:
            if file.is_file():
                yield file
        except OSError:  # a folder that others must not look into
            continue


def _is_extract(star: Path) -> bool:
    return star.stem.endswith("_extract")


def _first_stack(star: Source) -> str:
    return str(star.stacks[0]) if star.stacks else "none"
