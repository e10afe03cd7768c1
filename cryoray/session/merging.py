"""A session's merged files: ``kept.star``, ``discarded.star`` and ``review.star`` of all its stacks.

Each is made anew from the stacks' own files, streaming, and renamed into place, so that a reader never
sees half of one. There is one optics table: groups with the same contents become one and are numbered
anew. What RELION's extraction leaves out of ``_extract.star`` is taken from the job's ``particles.star``
or from the micrographs' STAR file, in this order. Columns that not all stacks have are left out, as
RELION does when it joins STAR files.

**Nothing is made up.** RELION stops at an optics group without voltage, spherical aberration or pixel
size, and takes a wrong one without a word. So stacks whose optics groups are described nowhere, and bare
stacks, whose rows have but a name, do not share files with the others, nor take columns from them: where
a session has several of these sorts, the second and third are in ``kept-no-optics.star`` and
``kept-bare.star`` and so on. What is unknown of a file is in a comment above its tables.

**Which row is which.** What people said of an image is kept by its row in ``verdicts.parquet``. The
stack's three STAR files hold these rows in the same order, each those with its verdict: the third row of
``kept.star`` is the third *keep* of ``verdicts.parquet``. Names are never compared, since the service,
the table and the STAR file may spell them differently.
"""

from __future__ import annotations

import shutil
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from cryoray.errors import CryorayError, InternalError
from cryoray.formats import mrc, rln
from cryoray.formats.companion import SHARED
from cryoray.formats.files import replacing
from cryoray.formats.names import VERDICTS_TABLE
from cryoray.formats.relion import IMAGE_COLUMNS, VERSION, image_table, quoted
from cryoray.formats.source import open_source
from cryoray.formats.star import Block, parse
from cryoray.formats.verdicts import PARTITIONS, optics_comment, unknown_optics

_IMAGE = IMAGE_COLUMNS["particle"]
_GROUP, _GROUP_NAME = rln.OPTICS_GROUP, rln.OPTICS_GROUP_NAME
_VERDICTS = ("keep", "discard", "review")
_NOT_IN_HEADERS = (rln.VOLTAGE, rln.SPHERICAL_ABERRATION)
#: By which rows of RELION 3.0 and older tell their optics; the last two make the pixel size.
_OLD_OPTICS = (
    *_NOT_IN_HEADERS,
    rln.AMPLITUDE_CONTRAST,
    rln.DETECTOR_PIXEL_SIZE,
    rln.MAGNIFICATION,
)


@dataclass(frozen=True, slots=True)
class Part:
    """One judged stack.

    Attributes:
        folder: of its verdicts.
        path: of the stack.
        bare: whether no STAR file described it.
        overrides: what people said of its images: keep, by the row of `verdicts.parquet`.
        rows: kept, discarded and review together.
        digest: of what was judged, and by which profile: with it, what is in the folder changes.
    """

    folder: Path
    path: Path
    bare: bool
    overrides: Mapping[int, bool]
    rows: int
    digest: str


class Merged(NamedTuple):
    """What was written.

    Attributes:
        counts: rows by verdict, of all files together.
        unknown: by the name of the file with the kept images, what RELION needs and nobody knows of
            them, as columns of its optics table.
    """

    counts: dict[str, int]
    unknown: dict[str, tuple[str, ...]]


@dataclass
class Optics:
    """The one optics table that grows as stacks are joined."""

    rows: list[dict[str, str]] = field(default_factory=list)
    _names: list[str | None] = field(default_factory=list)  # as they were given

    def number(self, row: Mapping[str, str]) -> int:
        """The number of the group with these contents, counted from 1."""
        content = {name: value for name, value in row.items() if name not in (_GROUP, _GROUP_NAME)}
        given = row.get(_GROUP_NAME)
        for number, (known, name) in enumerate(zip(self.rows, self._names, strict=True), 1):
            if name == given and {**known, _GROUP_NAME: ""} == {**content, _GROUP_NAME: ""}:
                return number
        name = given or f"opticsGroup{len(self.rows) + 1}"
        while any(known[_GROUP_NAME] == name for known in self.rows):
            name += "b"  # RELION takes groups with the same name for one
        self.rows.append({**content, _GROUP_NAME: name})
        self._names.append(given)
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        """What is known of every group, in order of first mention."""
        named = dict.fromkeys(name for row in self.rows for name in row)
        return [_GROUP, *(name for name in named if all(name in row for row in self.rows))]

    def text(self) -> str:
        """The table; empty where there are no groups."""
        if not self.rows:
            return ""
        lines = [f"_{name} #{number}" for number, name in enumerate(self.columns, 1)]
        for number, row in enumerate(self.rows, 1):
            values = {_GROUP: str(number), **row}
            lines.append(" ".join(quoted(values[name]) for name in self.columns))
        return "\n".join([f"{VERSION.decode()}data_optics\n\nloop_", *lines, "\n"])


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is known of a part without its rows: its columns, and the optics groups that they name."""

    columns: tuple[str, ...]
    groups: frozenset[str]


class _Described(NamedTuple):
    """A part, and the optics of each group that its rows name; None where nothing describes one."""

    part: Part
    shape: _Shape
    optics: dict[str, dict[str, str] | None]


class Merger:
    """Merges a session again and again, and remembers of each stack what takes time to find out.

    Args:
        out: the session's folder.
        root: the watched folder.
        swapping: held while the verdicts of a stack are replaced by others, and while they are read.
    """

    def __init__(self, out: Path, root: Path, swapping: threading.Lock | None = None) -> None:
        self._out, self._root = out, root
        self._swapping = swapping or threading.Lock()
        self._shapes: dict[tuple[Path, str], _Shape] = {}

    def merge(self, parts: Iterable[Part]) -> Merged:
        """Write the merged files of the judged stacks.

        Raises:
            InternalError: rows are unaccounted for.
        """
        given = list(parts)
        known = ((part.folder, part.digest) for part in given)
        self._shapes = {key: self._shapes[key] for key in known if key in self._shapes}
        groups = _Groups(self._root)
        sorts: dict[str, list[_Described]] = {"": [], "-no-optics": [], "-bare": []}
        for part in given:
            with self._swapping:
                shape = self._shape(part)
                optics = {number: groups.find(part, number) for number in sorted(shape.groups)}
            described = not any(row is None or unknown_optics(row) for row in optics.values())
            sort = "-bare" if part.bare else "" if described else "-no-optics"
            sorts[sort].append(_Described(part, shape, optics))
        there = [sort for sort, some in sorts.items() if some] or [""]
        files = {"" if sort == there[0] else sort: sorts[sort] for sort in there}
        counts, unknown = dict.fromkeys(_VERDICTS, 0), {}
        for suffix in sorts:
            if suffix not in files:
                for verdict in _VERDICTS:
                    (self._out / f"{PARTITIONS[verdict]}{suffix}.star").unlink(missing_ok=True)
                continue
            written, missing = self._merge(suffix, files[suffix])
            for verdict in _VERDICTS:
                counts[verdict] += written[verdict]
            if missing:
                unknown[f"{PARTITIONS['keep']}{suffix}.star"] = missing
        judged = sum(part.rows for part in given)
        if sum(counts.values()) != judged:
            raise InternalError(f"{judged:,} rows were judged, {sum(counts.values()):,} merged")
        return Merged(counts, unknown)

    def _merge(
        self, suffix: str, parts: Sequence[_Described]
    ) -> tuple[dict[str, int], tuple[str, ...]]:
        """Write the files of one sort; their rows by verdict, and what RELION would miss in them."""
        columns, verbatim = _shared_columns([one.shape.columns for one in parts])
        optics = Optics()
        # With one group that nobody describes, no table can be right: rows keep the numbers they have.
        numbered = all(row is not None for one in parts for row in one.optics.values())
        counts = dict.fromkeys(_VERDICTS, 0)
        with ExitStack() as stack:
            bodies: dict[str, BinaryIO] = {}
            for verdict in _VERDICTS:
                # The optics table comes first and is known last: rows wait in a file of their own.
                body = self._out / f".{PARTITIONS[verdict]}{suffix}.star.rows"
                stack.callback(body.unlink, missing_ok=True)
                bodies[verdict] = stack.enter_context(body.open("wb+"))
            for one in parts:
                numbers = {
                    old: str(optics.number(row)) if numbered and row is not None else old
                    for old, row in one.optics.items()
                }
                with self._swapping:
                    sides = list(_sides(one.part, columns, numbers, verbatim))
                for verdict, rows in sides:
                    bodies[verdict].write(rows)
                    counts[verdict] += rows.count(b"\n")
            missing = unknown_optics(optics.columns) if parts else ()
            head = [f"_{name} #{number}" for number, name in enumerate(columns, 1)]
            lines = [f"{VERSION.decode()}data_particles\n\nloop_", *head, ""]
            for verdict, rows_file in bodies.items():
                rows_file.seek(0)
                final = self._out / f"{PARTITIONS[verdict]}{suffix}.star"
                with replacing(final) as temporary, temporary.open("wb") as file:
                    file.write(optics_comment(missing) + optics.text().encode())
                    file.write("\n".join(lines).encode())
                    shutil.copyfileobj(rows_file, file, 1 << 20)
                    file.write(b"\n")
        return counts, missing

    def _shape(self, part: Part) -> _Shape:
        key = (part.folder, part.digest)
        if key not in self._shapes:
            used: set[str] = set()
            for verdict in _VERDICTS:
                table = _table(part, verdict)
                if _GROUP in table.columns:
                    values = table.read(strings=[_GROUP]).strings[_GROUP]
                    used |= set(values.unique().to_pylist())
                elif len(table):
                    used.add("1")
            self._shapes[key] = _Shape(table.columns, frozenset(used))
        return self._shapes[key]


def _shared_columns(
    orders: Iterable[tuple[str, ...]],
) -> tuple[list[str], dict[tuple[str, ...], bool]]:
    """Columns that all have, in the order of the first; and which orders are just these."""
    seen = list(dict.fromkeys(orders))
    columns = [name for name in seen[0] if all(name in one for one in seen)] if seen else []
    if columns and _GROUP not in columns:
        columns.append(_GROUP)
    return columns or [_IMAGE, _GROUP], {one: list(one) == columns for one in seen}


def _table(part: Part, verdict: str) -> Block:
    return image_table(parse(part.folder / f"{PARTITIONS[verdict]}.star"), "particle")


def _sides(
    part: Part,
    columns: Sequence[str],
    numbers: Mapping[str, str],
    verbatim: Mapping[tuple[str, ...], bool],
) -> Iterator[tuple[str, bytes]]:
    """Rows of a stack by verdict, as they go into the merged files."""
    same_groups = all(new == old for old, new in numbers.items())
    verdicts = _overridden(part)
    for verdict in _VERDICTS:
        table = _table(part, verdict)
        if not len(table):
            continue
        if verdicts is None and same_groups and verbatim[table.columns]:
            yield verdict, _copied(table)
            continue
        final = verdicts[verdict] if verdicts is not None else [verdict] * len(table)
        if len(final) != len(table):
            raise InternalError(
                f"{table.name} of {part.folder}: {len(final):,} verdicts, {len(table):,} rows"
            )
        at = [table.columns.index(name) if name in table.columns else -1 for name in columns]
        group = columns.index(_GROUP)
        lines: dict[str, list[str]] = defaultdict(list)
        for row, side in enumerate(final):
            fields = table.fields(row)
            made = [fields[place] if place >= 0 else "1" for place in at]
            made[group] = numbers.get(made[group], made[group])
            lines[side].append(" ".join(map(quoted, made)))
        for side, some in lines.items():
            yield side, ("\n".join(some) + "\n").encode()


def _overridden(part: Part) -> dict[str, list[str]] | None:
    """Where each row of the three files goes, by verdict and in their order; None: where it is."""
    if not part.overrides:
        return None
    final: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    table = pq.read_table(part.folder / VERDICTS_TABLE, columns=["verdict"])
    for row, verdict in enumerate(table["verdict"].to_pylist()):
        keep = part.overrides.get(row)
        final[verdict].append(verdict if keep is None else "keep" if keep else "discard")
    return final


class _Bytes:
    """Takes what is copied."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.parts.append(bytes(data))
        return len(data)


def _copied(table: Block) -> bytes:
    taken: Any = _Bytes()
    table.copy_rows(np.arange(len(table)), taken)
    return b"".join(taken.parts)


class _Groups:
    """Finds the optics of a stack's rows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[Path, list[dict[str, str]]] = {}
        self._stacks: dict[Path, frozenset[str]] = {}

    def find(self, part: Part, number: str) -> dict[str, str] | None:
        """The group that a stack's rows name, None where it is described nowhere."""
        # The table of a bare stack describes the rows of its own file alone.
        for verdict in _VERDICTS:
            star = parse(part.folder / f"{PARTITIONS[verdict]}.star")
            for row in _groups_in(star.get("optics")):
                if row.get(_GROUP, "1") == number:
                    # Earlier versions wrote zeros of bare stacks, whose headers do not tell.
                    zeros = [name for name in _NOT_IN_HEADERS if part.bare and row.get(name) == "0"]
                    return {name: value for name, value in row.items() if name not in zeros}
        for folder in part.path.parents:
            # Numbers mean nothing in a file that is about other stacks.
            if self._names(folder / SHARED, part.path):
                for row in self._groups(folder / SHARED):
                    if row.get(_GROUP) == number:
                        return row
            if folder == self.root:
                break
        for path in self._micrographs(part):
            for row in self._groups(path):
                if row.get(_GROUP) == number:
                    kept = {k: v for k, v in row.items() if k != rln.MICROGRAPH_PIXEL_SIZE}
                    return {**kept, **_of_header(part.path)}
        return _of_rows(part)

    def _micrographs(self, part: Part) -> Iterator[Path]:
        """STAR files of the job that made the stack's micrographs."""
        for verdict in _VERDICTS:
            table = _table(part, verdict)
            if len(table) and rln.MICROGRAPH_NAME in table.columns:
                name = table.fields(0)[table.columns.index(rln.MICROGRAPH_NAME)]
                for folder in part.path.parents:
                    if (
                        len(Path(name).parts) > 2
                        and (folder / Path(*Path(name).parts[:2])).is_dir()
                    ):
                        yield from sorted((folder / Path(*Path(name).parts[:2])).glob("*.star"))
                        return
                return

    def _names(self, star: Path, stack: Path) -> bool:
        """Whether a STAR file has rows of a stack."""
        if star not in self._stacks:
            try:
                named = open_source(star).stacks if star.is_file() else ()
            except CryorayError:
                named = ()
            self._stacks[star] = frozenset(path.name for path in named)
        return stack.name in self._stacks[star]

    def _groups(self, star: Path) -> list[dict[str, str]]:
        if star not in self._known:
            try:
                self._known[star] = _groups_in(parse(star).get("optics"))
            except CryorayError:
                self._known[star] = []
        return self._known[star]


def _groups_in(table: Block | None) -> list[dict[str, str]]:
    if table is None:
        return []
    return [dict(zip(table.columns, table.fields(row), strict=False)) for row in range(len(table))]


def _of_header(path: Path) -> dict[str, str]:
    """What a stack's header knows of its optics group."""
    header = mrc.read_header(path) if path.suffix == ".mrcs" else None
    if header is None or not header.pixel_size:
        return {}
    return {
        rln.IMAGE_PIXEL_SIZE: f"{header.pixel_size:.6f}",
        rln.IMAGE_SIZE: str(header.width),
        rln.IMAGE_DIMENSIONALITY: "2",
    }


def _of_rows(part: Part) -> dict[str, str] | None:
    """The group of rows of RELION 3.0 or older, which hold their optics themselves, all the same."""
    values: dict[str, set[str]] = defaultdict(set)
    for verdict in _VERDICTS:
        table = _table(part, verdict)
        if len(table) and (_GROUP in table.columns or not set(_OLD_OPTICS) <= set(table.columns)):
            return None
        if len(table):
            for name, column in table.read(strings=_OLD_OPTICS).strings.items():
                values[name].update(column.unique().to_pylist())
    if not values or any(len(some) > 1 for some in values.values()):
        return None
    own = {name: next(iter(some)) for name, some in values.items()}
    detector, magnification = (float(own.pop(name)) for name in _OLD_OPTICS[-2:])
    if not (detector > 0 and magnification > 0):
        return None
    pixel = {rln.IMAGE_PIXEL_SIZE: f"{detector / magnification * 1e4:.6f}"}
    return {**own, **_of_header(part.path), **pixel}
