"""Files that appear whole or not at all, and what a file is that is not what its name says."""

from __future__ import annotations

import csv
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryoray.errors import FULL, FormatError, InputError, printable

_FORMULA = re.compile(r"'*[=+\-@]")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]inf")

#: First bytes of what is often found in place of the file that was meant, what it is, the way out.
_IMPOSTORS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (b"\x1f\x8b", "is compressed", "unpack it with `gunzip`"),
    (b"BZh", "is compressed", "unpack it with `bunzip2`"),
    (b"\xfd7zXZ", "is compressed", "unpack it with `unxz`"),
    (b"\x93NUMPY", "is a cryoSPARC or numpy table", "give a RELION .star or an .mrcs stack"),
    (b"\x95CSDAT", "is a cryoSPARC table", "give a RELION .star or an .mrcs stack"),
)


def impostor(start: bytes) -> tuple[str, str] | None:
    """What a file is that begins with ``start``, and the remedy, where it is a known stand-in."""
    return next(((what, way) for magic, what, way in _IMPOSTORS if start.startswith(magic)), None)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` when the block ends well.

    It holds host and process, so that two workers which do the same task do not write into each
    other's file: the last to finish wins, and both wrote the same.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of a full disk say what had no room: writing to an open file names none."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            error.filename = str(path)
        raise


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table with its header, UTF-8 and lines that end in one byte, whole or not at all.

    Text that a spreadsheet would take for a formula gets an apostrophe before it (`without_apostrophe`).
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(map(_cell, columns))
        table.writerows(map(_cell, row) for row in rows)


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def without_apostrophe(text: str) -> str:
    """Text as it was before `write_csv` wrote it."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text[1:]) else text


def identity_of(file: BinaryIO) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns: a reader notices by them that an open file changed."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def changed(path: Path, during: str = "it was being read") -> FormatError:
    """The error of a file that changed under us, as one does that is still being written."""
    return FormatError(
        f"changed while {during}",
        file=path,
        remedy="wait until it is complete and run again",
    )


def is_number(text: str) -> bool:
    """Whether Python reads a text as a number; ``nan`` and ``inf`` are some."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def write_parquet(path: Path, table: pa.Table) -> None:
    """A table as Parquet, whole or not at all; pyarrow itself takes no path that is not UTF-8."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file)


def write_array(file: BinaryIO, array: np.ndarray) -> None:
    """As `numpy.save`, which does not say of a full disk that it is full."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


@contextmanager
def replacing_folder(out: Path, what: str, is_one: Callable[[Path], bool]) -> Iterator[Path]:
    """A new folder ``OUT.partial`` that takes the place of ``out`` when the block ends well.

    Args:
        out: may be absent, empty, or an older folder of the same sort.
        what: the sort, for the message.
        is_one: whether a folder is of that sort.

    Raises:
        InputError: ``out`` is something else, which is not ours to replace.
    """
    check_replaceable(out, what, is_one)
    partial, older = (out.with_name(f"{out.name}.{end}") for end in ("partial", "old"))
    for left_behind in (partial, older):
        shutil.rmtree(left_behind, ignore_errors=True)
    try:
        with naming(out):
            partial.mkdir(parents=True)
            yield partial
            if out.exists():
                out.rename(older)
            partial.rename(out)
    finally:
        for left_behind in (partial, older):
            shutil.rmtree(left_behind, ignore_errors=True)


def check_replaceable(out: Path, what: str, is_one: Callable[[Path], bool]) -> None:
    """Raise where `replacing_folder` would, before the work for it is done.

    An older folder that was moved out of the way, where whoever replaced it was killed then, takes its place
    again, or goes if its successor is there.

    Raises:
        InputError: ``out`` is something else, which is not ours to replace.
    """
    older = out.with_name(f"{out.name}.old")
    if older.is_dir() and is_one(older) and not out.exists():
        older.rename(out)
    elif older.is_dir() and out.is_dir() and is_one(out):
        shutil.rmtree(older)
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or is_one(out))):
        article = "an" if what[0] in "aeiou" else "a"
        raise InputError(
            f"exists and is not {article} {what}", file=out, remedy="give --out another name"
        )
