"""The micrograph around an image: drawn from its own file, with every pick and what became of it.

What is known of the picks is in the three STAR files of a stack's verdicts, whose rows are those of
`verdicts.parquet` in the same order, each file those with its verdict. The micrograph itself is opened
beneath the session's folders, as its stacks are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoray.errors import FormatError, InputError
from cryoray.formats import mrc, rln
from cryoray.formats.opening import OutsideError, Scope
from cryoray.formats.relion import image_table
from cryoray.formats.star import parse
from cryoray.formats.verdicts import PARTITIONS
from cryoray.imaging import pictures
from cryoray.records import VERDICTS, Stack
from cryoray.session.cache import Cache
from cryoray.session.judging import place
from cryoray.session.page.pictures import Pictures

#: px of the longer side: of a thumbnail, and of a micrograph as it is shown.
SIDES_PX = (128, 1024)
_SHOWN, _ROWS = 48, 16
#: A larger image is none of a camera that exists, and would fill the memory.
_LARGEST = 130_000_000
_NAME, _X, _Y = rln.MICROGRAPH_NAME, rln.COORDINATE_X, rln.COORDINATE_Y


@dataclass(frozen=True, slots=True)
class Micrograph:
    """A micrograph's file, as far as its header tells.

    Attributes:
        path: of the file.
        width: px.
        height: px.
        pixel_size: Å/px, None where the header does not know.
    """

    path: Path
    width: int
    height: int
    pixel_size: float | None


@dataclass(frozen=True, eq=False)
class Picks:
    """The judged images of one micrograph.

    Attributes:
        rows: int64 [n], of ``verdicts.parquet``.
        x, y: float64 [n], px of the micrograph; NaN where not known.
    """

    rows: np.ndarray
    x: np.ndarray
    y: np.ndarray


class Micrographs:
    """Finds and draws micrographs of judged stacks.

    Args:
        pictures: knows the verdicts of stacks, and what may be read for a session.
    """

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._reduced: Cache[tuple[np.ndarray, float | None]] = Cache(_SHOWN)
        self._drawn: Cache[bytes] = Cache(1000)
        self._columns: Cache[dict[str, np.ndarray]] = Cache(_ROWS)
        self._one_at_once = threading.Lock()  # each is read whole

    def columns(self, session: Any, stack: Any) -> dict[str, np.ndarray]:
        """What a stack's STAR files say of the rows of ``verdicts.parquet``, as far as it is shown.

        Returns:
            object [n] of strings and float64 [n] of numbers, by column; none where the files have none.

        Raises:
            InputError: the verdicts, or the files beside them, are not there now.
        """
        key = stack.id, stack.digest, stack.judged
        return self._columns.get(key, lambda: self._read_columns(session, stack))

    def _read_columns(self, session: Any, stack: Any) -> dict[str, np.ndarray]:
        verdict = np.array(self._pictures.table(session, stack)["verdict"].to_pylist(), object)
        folder = place(Path(session.root), Path(session.folder), Path(stack.path))
        found: dict[str, np.ndarray] = {}
        with Scope((Path(session.folder),)).reading():
            for side in VERDICTS:
                rows = np.flatnonzero(verdict == side)
                if not len(rows):
                    continue
                table = image_table(parse(folder / f"{PARTITIONS[side]}.star"), stack.kind)
                if len(table) != len(rows):
                    raise InputError(
                        "is not what was judged", file=folder / f"{PARTITIONS[side]}.star"
                    )
                texts = [name for name in (_NAME,) if name in table.columns]
                numbers = [name for name in _NUMBERS[stack.kind] if name in table.columns]
                columns = table.read(texts, numbers)
                for name in texts:
                    values = found.setdefault(name, np.full(len(verdict), "", object))
                    values[rows] = np.array(columns.strings[name].to_pylist(), object)
                for name in numbers:
                    values = found.setdefault(name, np.full(len(verdict), np.nan))
                    values[rows] = columns.numbers[name]
        return found

    def picks(self, session: Any, stack: Any, name: str, alone: bool) -> Picks:
        """The judged images of a micrograph of a stack.

        Args:
            session: the session.
            stack: the stack.
            name: of the micrograph.
            alone: whether it is the only one of the stack.

        Raises:
            InputError: nothing says where on a micrograph the images are.
        """
        columns = self.columns(session, stack)
        if _X not in columns or _Y not in columns:
            raise InputError(
                "where on the micrograph its images are is not known: no STAR file with coordinates"
                " describes the stack",
                file=stack.path,
            )
        here = np.ones(len(columns[_X]), bool)
        if not alone and _NAME in columns:
            here = columns[_NAME] == name
        rows = np.flatnonzero(here & np.isfinite(columns[_X]) & np.isfinite(columns[_Y]))
        return Picks(rows, columns[_X][rows], columns[_Y][rows])

    def name_of(self, session: Any, stack: Any, row: int) -> str | None:
        """The micrograph of a row, None where the files do not say."""
        names = self.columns(session, stack).get(_NAME)
        return str(names[row]) if names is not None and 0 <= row < len(names) else None

    def find(self, session: Any, stack: Any, name: str) -> Micrograph:
        """The file of a micrograph, from its header.

        Raises:
            InputError: it is not in the session's folders, or is none that can be shown.
        """
        path, scope = self._locate(session, stack, name)
        with scope.reading():
            header = _header(path)
        return Micrograph(path, header.width, header.height, header.pixel_size)

    def is_there(self, session: Any, stack: Any, name: str) -> bool:
        """Whether a file of this name is in the session's folders."""
        try:
            self._locate(session, stack, name)
        except InputError:
            return False
        return True

    def png(
        self, session: Any, stack: Any, name: str, longest: int, low_pass: float, cut: float
    ) -> bytes:
        """A micrograph as a picture.

        Args:
            session: the session.
            stack: a stack with images of it.
            name: of the micrograph.
            longest: px, of `SIDES_PX`.
            low_pass: Å, 0 for none; where the pixel size is not known, none is applied.
            cut: percent of the pixels that are black, and as many white.

        Raises:
            InputError: it is not in the session's folders, or is none that can be shown.
        """
        key = stack.id, stack.digest, name, longest, low_pass, cut
        return self._drawn.get(
            key, lambda: self._draw(session, stack, name, longest, low_pass, cut)
        )

    def _draw(
        self, session: Any, stack: Any, name: str, longest: int, low_pass: float, cut: float
    ) -> bytes:
        path, scope = self._locate(session, stack, name)
        with scope.reading():
            header = _header(path)
            image, pixel = self._reduced.get(
                (path, header.size, header.mtime_ns), lambda: self._reduce(header)
            )
        shown = image.astype(np.float32)
        if pixel is not None:
            (shown,) = pictures.low_passed(shown[None], pixel, low_pass)
        if longest < max(shown.shape):
            shown = pictures.reduced(shown, longest)
        return pictures.png(pictures.greys(shown[None], cut=cut)[0], small=False)

    def _reduce(self, header: Stack) -> tuple[np.ndarray, float | None]:
        """The micrograph at the largest size that is shown, float16, and its Å/px then."""
        with self._one_at_once:
            (whole,) = mrc.read_frames(header, np.array([0]))
            small = pictures.reduced(whole, SIDES_PX[-1])
        # Numbers of any camera fit into float16 once their mean is gone and they are scaled.
        small = (small - small.mean()) / (float(small.std()) or 1.0)
        pixel = header.pixel_size
        return (
            small.astype(np.float16),
            None if pixel is None else pixel * header.width / small.shape[1],
        )

    def _locate(self, session: Any, stack: Any, name: str) -> tuple[Path, Scope]:
        """The file of a micrograph, and the scope in which it may be opened.

        Only places in the session's folders are looked at, so that nobody learns what else there is.

        Raises:
            InputError: no such file is there.
        """
        for path in _candidates(session, stack, name):
            try:
                scope = self._pictures.scope_of(session, path)
            except OutsideError:
                continue
            if _is_file(path):
                return path, scope
        raise InputError(
            "the micrograph's file is not in the session's folders",
            file=name,
            remedy="watch with --root for its folder",
        )


def _candidates(session: Any, stack: Any, name: str) -> Iterator[Path]:
    """Where a micrograph may be that a STAR file names, the likeliest place first."""
    roots = [Path(one) for one in (session.root, *(session.roots or ()))]
    star = Path(stack.described_by or stack.path)
    if "\0" in name:
        return
    if Path(name).is_absolute():
        yield Path(name)
        return
    for folder in (*star.parents, *roots):
        if any(folder.is_relative_to(root) for root in roots):
            yield folder / name
    yield star.parent / Path(name).name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name of a file
        return False


def _header(path: Path) -> Stack:
    """The header of a micrograph.

    Raises:
        InputError: it is no micrograph in MRC format, or far too large for one.
    """
    if path.suffix not in (".mrc", ".mrcs"):
        raise FormatError(
            "is not an MRC file, and only those are shown", file=path, remedy="look at it elsewhere"
        )
    header = mrc.read_header(path)
    if header.count > 1:
        raise FormatError(f"is a movie of {header.count:,} frames, no micrograph", file=path)
    if header.width * header.height > _LARGEST:
        raise FormatError(f"has {header.width} × {header.height} px, too many to show", file=path)
    return header


#: Columns of numbers that are shown of each kind.
_NUMBERS = {
    "particle": (_X, _Y),
    "class2d": (rln.CLASS_DISTRIBUTION, rln.ESTIMATED_RESOLUTION),
    "class3d": (),
}
