"""A session's merged sides: ``kept.star``, ``discarded.star`` and ``review.star`` of all its stacks.

Each is made anew from the stacks' own files, streaming, and renamed into place, so that a reader never
sees half of one. There is one optics table: groups with the same contents become one, numbers are given
anew, and what RELION's extraction leaves out of ``_extract.star`` is taken from the job's
``particles.star``, from the micrographs' STAR file, or from the stack's header, in this order. Columns
that not all stacks have are left out, as RELION does when it joins STAR files. Bare stacks, whose rows
have but a name, do not take columns from the others: where a session has both, they are in
``kept-bare.star`` and so on. What a person said of an image overrides the verdict here.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq

from cryoray.errors import CryorayError, InternalError
from cryoray.formats import mrc
from cryoray.formats.files import replacing
from cryoray.formats.relion import IMAGE_COLUMNS, VERSION, image_table, quoted
from cryoray.formats.star import Block, parse
from cryoray.formats.verdicts import SIDES

_IMAGE = IMAGE_COLUMNS["particle"]
_GROUP, _GROUP_NAME = "rlnOpticsGroup", "rlnOpticsGroupName"
_VERDICTS = ("keep", "discard", "review")


@dataclass(frozen=True, slots=True)
class Part:
    """One judged stack.

    Attributes:
        folder: of its verdicts.
        path: of the stack.
        bare: whether no STAR file described it.
        said: what people said of its images: keep, by the row of `verdicts.parquet`.
        rows: kept, discarded and review together.
        digest: of what was judged: with it, what is in the folder changes.
    """

    folder: Path
    path: Path
    bare: bool
    said: Mapping[int, bool]
    rows: int
    digest: str


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

    def text(self) -> str:
        """The table: a number that a group lacks is 0, and text that one lacks is left out of all."""
        named = dict.fromkeys(name for row in self.rows for name in row)
        columns = [_GROUP, *(name for name in named if self._can_be_filled(name))]
        lines = [f"_{name} #{number}" for number, name in enumerate(columns, 1)]
        for number, row in enumerate(self.rows, 1):
            values = {_GROUP: str(number), **row}
            lines.append(" ".join(quoted(values.get(name, "0")) for name in columns))
        return "\n".join([f"{VERSION.decode()}data_optics\n\nloop_", *lines, "\n"])

    def _can_be_filled(self, name: str) -> bool:
        there = [row[name] for row in self.rows if name in row]
        return len(there) == len(self.rows) or all(map(_is_number, there))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is known of a part without its rows: its columns, and the optics groups that they name."""

    columns: tuple[str, ...]
    groups: frozenset[str]


class Merger:
    """Merges a session again and again, and remembers of each stack what takes time to find out.

    Args:
        out: the session's folder.
        root: the watched folder.
    """

    def __init__(self, out: Path, root: Path) -> None:
        self._out, self._root = out, root
        self._shapes: dict[tuple[Path, str], _Shape] = {}

    def merge(self, parts: Iterable[Part]) -> dict[str, int]:
        """Write the merged sides of the judged stacks.

        Returns:
            rows by verdict, of all files together.

        Raises:
            InternalError: rows are unaccounted for.
        """
        given = list(parts)
        known = ((part.folder, part.digest) for part in given)
        self._shapes = {key: self._shapes[key] for key in known if key in self._shapes}
        described = [part for part in given if not part.bare]
        bare = [part for part in given if part.bare]
        total = dict.fromkeys(_VERDICTS, 0)
        main, aside = (described, bare) if described else (bare, [])
        for name, some in (("", main), ("-bare", aside)):
            if not some and name:
                for verdict in _VERDICTS:
                    (self._out / f"{SIDES[verdict]}{name}.star").unlink(missing_ok=True)
                continue
            counts = self._merge(name, some)
            for verdict in _VERDICTS:
                total[verdict] += counts[verdict]
        judged = sum(part.rows for part in given)
        if sum(total.values()) != judged:
            raise InternalError(f"{judged:,} rows were judged, {sum(total.values()):,} merged")
        return total

    def _merge(self, suffix: str, parts: Sequence[Part]) -> dict[str, int]:
        shapes = [self._shape(part) for part in parts]
        columns, verbatim = _shared_columns([shape.columns for shape in shapes])
        optics, groups = Optics(), _Groups(self._root)
        counts = dict.fromkeys(_VERDICTS, 0)
        with ExitStack() as stack:
            bodies: dict[str, BinaryIO] = {}
            for verdict in _VERDICTS:
                # The optics table comes first and is known last: rows wait in a file of their own.
                body = self._out / f".{SIDES[verdict]}{suffix}.star.rows"
                stack.callback(body.unlink, missing_ok=True)
                bodies[verdict] = stack.enter_context(body.open("wb+"))
            for part, shape in zip(parts, shapes, strict=True):
                numbers = groups.numbers(part, shape.groups, optics)
                for verdict, rows in _sides(part, columns, numbers, verbatim):
                    bodies[verdict].write(rows)
                    counts[verdict] += rows.count(b"\n")
            head = [f"_{name} #{number}" for number, name in enumerate(columns, 1)]
            lines = [f"{VERSION.decode()}data_particles\n\nloop_", *head, ""]
            for verdict, rows_file in bodies.items():
                rows_file.seek(0)
                final = self._out / f"{SIDES[verdict]}{suffix}.star"
                with replacing(final) as temporary, temporary.open("wb") as file:
                    if optics.rows:
                        file.write(optics.text().encode())
                    file.write("\n".join(lines).encode())
                    shutil.copyfileobj(rows_file, file, 1 << 20)
                    file.write(b"\n")
        return counts

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
    return image_table(parse(part.folder / f"{SIDES[verdict]}.star"), "particle")


def _sides(
    part: Part,
    columns: Sequence[str],
    numbers: Mapping[str, int],
    verbatim: Mapping[tuple[str, ...], bool],
) -> Iterator[tuple[str, bytes]]:
    """Rows of a stack by verdict, as they go into the merged files."""
    same_groups = all(str(new) == old for old, new in numbers.items())
    said = _said_by_image(part)
    for verdict in _VERDICTS:
        table = _table(part, verdict)
        if not len(table):
            continue
        if not said and same_groups and verbatim[table.columns]:
            yield verdict, _copied(table)
            continue
        at = [table.columns.index(name) if name in table.columns else -1 for name in columns]
        image = table.columns.index(_IMAGE)
        group = columns.index(_GROUP)
        by_side: dict[str, list[str]] = defaultdict(list)
        for row in range(len(table)):
            fields = table.fields(row)
            made = [fields[place] if place >= 0 else "1" for place in at]
            made[group] = str(numbers.get(made[group], 1))
            by_side[said.get(fields[image], verdict)].append(" ".join(map(quoted, made)))
        for side, lines in by_side.items():
            yield side, ("\n".join(lines) + "\n").encode()


def _said_by_image(part: Part) -> dict[str, str]:
    if not part.said:
        return {}
    images = pq.read_table(part.folder / "verdicts.parquet", columns=["image"])["image"]
    return {
        str(images[row]): "keep" if keep else "discard"
        for row, keep in part.said.items()
        if row < len(images)
    }


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

    def numbers(self, part: Part, used: frozenset[str], optics: Optics) -> dict[str, int]:
        """The new number of each optics group that a stack's rows name."""
        star = parse(part.folder / f"{SIDES['keep']}.star")
        own = {row.get(_GROUP, "1"): row for row in _groups_in(star.get("optics"))}
        return {
            number: optics.number(own[number] if number in own else self._elsewhere(part, number))
            for number in sorted(used)
        }

    def _elsewhere(self, part: Part, number: str) -> dict[str, str]:
        """A group that the stack's own STAR file names and does not describe."""
        header = mrc.read_header(part.path) if part.path.suffix == ".mrcs" else None
        size = (
            {
                "rlnImagePixelSize": f"{header.pixel_size:.6f}",
                "rlnImageSize": str(header.width),
                "rlnImageDimensionality": "2",
            }
            if header and header.pixel_size
            else {}
        )
        for folder in part.path.parents:
            for row in self._groups(folder / "particles.star"):
                if row.get(_GROUP) == number:
                    return row
            if folder == self.root:
                break
        for star in self._micrographs(part):
            for row in self._groups(star):
                if row.get(_GROUP) == number:
                    kept = {k: v for k, v in row.items() if k != "rlnMicrographPixelSize"}
                    return {**kept, **size}
        return {_GROUP_NAME: f"opticsGroup{number}", **size}

    def _micrographs(self, part: Part) -> Iterator[Path]:
        """STAR files of the job that made the stack's micrographs."""
        for verdict in _VERDICTS:
            table = _table(part, verdict)
            if len(table) and "rlnMicrographName" in table.columns:
                name = table.fields(0)[table.columns.index("rlnMicrographName")]
                for folder in part.path.parents:
                    if (
                        len(Path(name).parts) > 2
                        and (folder / Path(*Path(name).parts[:2])).is_dir()
                    ):
                        yield from sorted((folder / Path(*Path(name).parts[:2])).glob("*.star"))
                        return
                return

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
