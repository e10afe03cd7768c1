"""Verdicts on disk: a table of every judged row, and each partition in the source's own format.

Rows of a STAR file are copied byte for byte, in their order, with every other table of the file around
them, so that nothing a program wrote into it is lost and optics groups keep their numbers. So are rows
of cryoSPARC's tables, what was passed through too, with a group file for its Import Result Group job.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryoray.errors import FormatError, InternalError, printable
from cryoray.formats import mrc, rln
from cryoray.formats.conversion import write_star
from cryoray.formats.cryosparc import Joined, group_text, open_joined
from cryoray.formats.files import Inputs, changed, replacing, write_parquet
from cryoray.formats.names import QUARANTINE_TABLE, VERDICTS_TABLE
from cryoray.formats.relion import (
    IMAGE_COLUMNS,
    NECESSARY_OPTICS,
    VERSION,
    field_texts,
    image_table,
    loop,
    quoted,
)
from cryoray.formats.rows import Source
from cryoray.formats.star import Block, StarFile, as_objects, parse
from cryoray.records import (
    QUARANTINE_SCHEMA,
    VERDICTS_SCHEMA,
    Kind,
    RowCounts,
    Verdicts,
    quarantine_words,
)

#: What verdicts are made of, as the metadata of their table name it.
_INPUTS = ("source", "kind", "ensemble")
#: The file of each verdict, and that of the rows without one.
PARTITIONS = {
    "keep": "kept",
    "discard": "discarded",
    "review": "review",
    "quarantined": "quarantined",
}


def write_verdicts(
    out: Path,
    source: Source,
    verdicts: Verdicts,
    *,
    star_columns: Sequence[str] = (),
    also_star: bool = False,
) -> RowCounts:
    """Write ``verdicts.parquet``, ``quarantine.parquet`` and the four partitions in the source's format.

    A partition without rows is written too. Tables of classes are written as RELION's Select job writes
    ``class_averages.star``: one table without a name, since the rest of a model is about classes that
    are no longer in it. A file of RELION 3.0 or older stays one: with a version of 3.1 above it, RELION
    would not convert it. Of a cryoSPARC table, each partition is a table of the same form, columns and
    dtypes, a ``passthrough_`` table for each that was joined, and a ``.csg`` that names them. Of a bare
    stack, the STAR file has what the header tells, and absolute paths. Voltage and spherical aberration,
    which no header tells, are left out, and a comment above the table says so: RELION 3.1.3 stops with
    "not all necessary variables defined" until they are added, where it would take a 0 in silence.

    Args:
        out: folder, made where it is missing.
        source: whose rows were judged.
        verdicts: on its rows, in any order; further float32 columns follow the others in
            ``verdicts.parquet``.
        star_columns: columns of the verdicts that STAR files get after their own, ``score`` as
            ``rlnCryorayScore``, ``class_score`` as ``rlnCryorayClassScore``.
        also_star: of a cryoSPARC table, write the partitions as STAR files for RELION too.

    Returns:
        the row counts, not yet checked.

    Raises:
        InternalError: a row has two fates.
        FormatError: the source is gone or changed since it was opened.
    """
    verdicts = Verdicts.together([verdicts])
    table, quarantined = verdicts.judged, verdicts.quarantined
    rows = verdicts.rows
    lost = np.array([row for row, _ in quarantined], np.int64)
    fates = np.concatenate([rows, lost])
    if len(np.unique(fates)) != len(fates):
        raise InternalError(f"a row of {source.path} was judged twice, or judged and quarantined")
    verdict = as_objects(table["verdict"])
    partitions = {name: rows[verdict == name] for name in PARTITIONS} | {"quarantined": lost}
    about = {**verdicts.about, "source": printable(source.path), "kind": source.kind}
    made = _verdicts(source, table).replace_schema_metadata(about)
    write_parquet(out / VERDICTS_TABLE, made)
    write_parquet(out / QUARANTINE_TABLE, quarantine_table(source, quarantined))
    if source.format == "cs":
        _write_cs(out, source, partitions)
        for name, side in partitions.items() if also_star else ():
            further = _further(table, side, star_columns)
            write_star(out / f"{PARTITIONS[name]}.star", source, side, further)
        return RowCounts(rows_in=len(source), rows_out=len(rows), quarantined=len(lost))
    star = _reopened(source) if source.is_star else None
    for name, side in partitions.items():
        with replacing(out / f"{PARTITIONS[name]}.star") as temporary, temporary.open("wb") as file:
            further = _further(table, side, star_columns)
            if star is None:
                _write_bare(file, source, side, further)
            else:
                write_partition(file, star, source.kind, side, further)
    return RowCounts(rows_in=len(source), rows_out=len(rows), quarantined=len(lost))


def inputs_of(table: Path) -> Inputs:
    """Source, kind and ensemble of a ``verdicts.parquet``, as far as it names them."""
    try:
        with table.open("rb") as file:
            said = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
    named = {name: said[name.encode()].decode() for name in _INPUTS if name.encode() in said}
    return {name: [value] for name, value in named.items()}


def quarantine_table(source: Source, quarantined: Sequence[tuple[int, str]]) -> pa.Table:
    """Rows without a verdict, in ``QUARANTINE_SCHEMA``: where a person finds each, counted from 1.

    Args:
        source: whose rows they are.
        quarantined: 0-based row and reason.
    """
    rows = np.array([row for row, _ in quarantined], np.int64)
    if source.format != "stack":
        files, numbers = [printable(source.path)] * len(rows), rows + 1
    else:
        files = [printable(source.stacks[n] if n >= 0 else source.path) for n in source.stack[rows]]
        numbers = np.where(source.stack[rows] >= 0, source.frame[rows], 0) + 1
    return pa.table(
        {
            "image": pa.array(source.images[rows], pa.string()),
            "file": files,
            "row": numbers,
            "reason": [
                printable(quarantine_words(reason, source.kind)) for _, reason in quarantined
            ],
        },
        schema=QUARANTINE_SCHEMA,
    )


def _reopened(source: Source) -> StarFile:
    star = parse(source.path)
    column = IMAGE_COLUMNS[source.kind]
    images = image_table(star, source.kind)
    same, done = len(images) == len(source), 0
    for names in images.chunks(column) if same else ():
        same &= names.equals(pa.array(source.images[done : done + len(names)], pa.string()))
        done += len(names)
    if not same:
        raise changed(source.path, "its rows were judged")
    return star


def _verdicts(source: Source, table: pa.Table) -> pa.Table:
    """The columns of ``verdicts.parquet``: cryoSPARC's uid after the image, further ones at the end."""
    further = [name for name in table.column_names if name not in (*VERDICTS_SCHEMA.names, "row")]
    images = pa.array(source.images[table["row"].to_numpy()], pa.string())
    made = table.drop_columns("image") if "image" in table.column_names else table
    made = made.append_column("image", images).select(VERDICTS_SCHEMA.names)
    for name in further:
        made = made.append_column(pa.field(name, pa.float32()), table[name].cast(pa.float32()))
    if source.uid is not None:
        uid = pa.array(source.uid[table["row"].to_numpy()], pa.uint64())
        made = made.add_column(1, pa.field("uid", pa.uint64()), uid)
    return made


def _further(table: pa.Table, side: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Values of some columns for the rows of a side, by RELION's kind of name; NaN without verdict."""
    rows = table["row"].to_numpy()  # ascending
    at = np.searchsorted(rows, side).clip(max=max(len(rows) - 1, 0))
    judged = rows[at] == side if len(rows) else np.zeros(len(side), bool)
    further = {}
    for name in names:
        label = "rlnCryoray" + "".join(word.capitalize() for word in name.split("_"))
        values = table[name].cast(pa.float64()).to_numpy()
        further[label] = np.where(judged, values[at] if len(rows) else np.nan, np.nan)
    return further


def _write_cs(out: Path, source: Source, partitions: dict[str, np.ndarray]) -> None:
    joined = open_joined(source.path)
    if source.uid is None or not np.array_equal(joined.uid, source.uid):
        raise changed(source.path, "its rows were judged")
    for verdict, rows in partitions.items():
        name = PARTITIONS[verdict]
        written = [name]
        for number, table in enumerate(joined.tables):
            if number:
                written.append(f"passthrough_{number if number > 1 else ''}{name}")
            table.write_rows(joined.cut(table, rows), out / f"{written[-1]}.cs")
        group = group_text(joined, [f"{each}.cs" for each in written], name, source.kind, len(rows))
        with replacing(out / f"{name}.csg") as temporary:
            temporary.write_text(group)
    _link(out, source, joined)


def _link(out: Path, source: Source, joined: Joined) -> None:
    """Links to what ``>`` names from a table's own folder, so that it is found from the new one too."""
    fields = [name for name in ("blob/path", "location/micrograph_path") if name in joined]
    for paths in joined.read(fields).values():
        for path in np.unique(paths).tolist():
            first = PurePosixPath(path.removeprefix(">")).parts[:1]
            if path.startswith(">") and first and first[0] not in ("/", ".."):
                target, link = source.path.parent / first[0], out / first[0]
                if target.exists() and not link.is_symlink() and not link.exists():
                    link.symlink_to(target)


def write_partition(
    file: BinaryIO,
    star: StarFile,
    kind: Kind,
    rows: np.ndarray,
    further: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    """Write some rows of a STAR file verbatim, with all else that is in it.

    Args:
        file: where to.
        star: the file they come from.
        kind: which of its tables they are rows of.
        rows: int64 [k], 0-based, ascending.
        further: columns [k] by name, which follow the file's own.
    """
    images = image_table(star, kind)
    if kind == "class2d":
        file.write(b"\n")
        images.copy_head(file, name="")
        _copy_images(file, images, rows, further)
        file.write(b"\n")
        return
    for block in star.blocks:
        file.write(VERSION if "optics" in star else b"\n")
        if block is images:
            block.copy_head(file)
            _copy_images(file, block, rows, further)
        else:
            block.copy(file)
        file.write(b"\n")


def _copy_images(
    file: BinaryIO, images: Block, rows: np.ndarray, further: Mapping[str, np.ndarray]
) -> None:
    """Rows verbatim and further fields after them; one that an earlier run left keeps its name."""
    for number, label in enumerate(further, start=len(images.columns) + 1):
        taken = sum(name.startswith(label) for name in images.columns)
        file.write(f"_{label}{taken + 1 if taken else ''} #{number}\n".encode())
    also = [" ".join(["", *values]).encode() for values in field_texts(further, rows)]
    images.copy_rows(rows, file, also if further else None)


def unknown_optics(columns: Container[str]) -> tuple[str, ...]:
    """The columns without which RELION 3.1 to 5 read no optics table, and that this one lacks."""
    return tuple(
        names[0] for names in NECESSARY_OPTICS if not any(name in columns for name in names)
    )


def optics_comment(unknown: Sequence[str]) -> bytes:
    """A line above a STAR file's tables for whoever opens it; RELION skips it."""
    if not unknown:
        return b""
    names = " ".join(unknown)
    return f"# Not known, and RELION stops until it is added to data_optics: {names}\n".encode()


def without_optics(source: Source) -> tuple[str, ...]:
    """Columns of the optics table that the partitions of a source lack, and that RELION asks for.

    None of a STAR file, whose rows and tables are copied as they are.
    """
    if source.format != "stack" or source.kind == "class2d":
        return ()
    return unknown_optics(_columns(_groups(source, np.arange(len(source)))[0]))


def _groups(source: Source, rows: np.ndarray) -> tuple[dict[tuple[float, int], int], np.ndarray]:
    """Optics groups by pixel size (Å/px, 0: unknown) and box, counted from 1, and that of each stack."""
    groups: dict[tuple[float, int], int] = {}
    group_of = np.ones(len(source.stacks) + 1, np.int64)
    for number in np.unique(source.stack[rows[source.stack[rows] >= 0]]).tolist():
        try:
            stack = mrc.read_header(source.stacks[number])
        except FormatError:
            continue  # its rows are quarantined, and belong to no group in particular
        optics = (stack.pixel_size or 0.0, stack.width)
        group_of[number] = groups.setdefault(optics, len(groups) + 1)
    return groups, group_of


def _columns(groups: Iterable[tuple[float, int]]) -> list[str]:
    """Those of the optics table of bare stacks."""
    columns = [rln.OPTICS_GROUP, rln.OPTICS_GROUP_NAME, rln.IMAGE_SIZE, rln.IMAGE_DIMENSIONALITY]
    return columns + ([rln.IMAGE_PIXEL_SIZE] if all(pixel for pixel, _ in groups) else [])


def _write_bare(
    file: BinaryIO, source: Source, rows: np.ndarray, further: Mapping[str, np.ndarray]
) -> None:
    """A STAR file of some images of bare stacks, with an optics group per size of pixel and box."""
    names = [
        quoted(f"{source.frame[row] + 1:06d}@{source.stacks[source.stack[row]]}")
        if source.stack[row] >= 0
        else quoted(str(source.images[row]))
        for row in rows.tolist()
    ]
    column = IMAGE_COLUMNS[source.kind]
    if source.kind == "class2d":
        lines = [
            [name, *values] for name, values in zip(names, field_texts(further, rows), strict=True)
        ]
        file.write(b"\n" + loop("", [column, *further], lines))
        return
    groups, group_of = _groups(source, rows)
    columns = _columns(groups)
    lines = [[f"{n}", f"opticsGroup{n}", f"{side}", "2"] for (_, side), n in groups.items()]
    if rln.IMAGE_PIXEL_SIZE in columns:
        lines = [[*line, f"{pixel:.6f}"] for line, (pixel, _) in zip(lines, groups, strict=True)]
    file.write(optics_comment(unknown_optics(columns)) + VERSION + loop("optics", columns, lines))
    numbers = group_of[source.stack[rows]].tolist()
    lines = [
        [name, f"{number}", *values]
        for name, number, values in zip(names, numbers, field_texts(further, rows), strict=True)
    ]
    file.write(VERSION + loop("particles", [column, rln.OPTICS_GROUP, *further], lines))
