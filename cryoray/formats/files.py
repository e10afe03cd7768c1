"""Files that appear whole or not at all, and what a file is that is not what its name says."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryoray.errors import FULL, FormatError, InputError, printable
from cryoray.formats.names import MADE_OF

#: What a folder is made of: texts (paths, digests) by what they are.
Inputs = Mapping[str, Sequence[str]]

_FORMULA = re.compile(r"'*[=+\-@]")
_DIGEST = re.compile(r"[0-9a-f]{64}")
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
def replacing_folder(
    out: Path,
    what: str,
    is_one: Callable[[Path], bool],
    of: Inputs | None = None,
    *,
    replace: bool = False,
) -> Iterator[Path]:
    """A new folder ``OUT.partial`` that takes the place of ``out`` when the block ends well.

    Args:
        out: may be absent, empty, or an older folder of the same sort, made of the same.
        what: the sort, for the message.
        is_one: whether a folder is of that sort.
        of: what the new folder is made of, which it then says in `MADE_OF`; None: whoever calls compares
            that (`check_same`).
        replace: whether an older folder that is made of something else may be replaced.

    Raises:
        InputError: ``out`` is something else, or made of something else, which is not ours to replace.
    """
    check_replaceable(out, what, is_one)
    if of is not None and out.exists() and any(out.iterdir()):
        check_same(out, what, _made_of(out), of, replace=replace)
    partial, older = (out.with_name(f"{out.name}.{end}") for end in ("partial", "old"))
    for left_behind in (partial, older):
        shutil.rmtree(left_behind, ignore_errors=True)
    try:
        with naming(out):
            partial.mkdir(parents=True)
            yield partial
            if of is not None:
                written = {name: list(values) for name, values in of.items()}
                (partial / MADE_OF).write_text(json.dumps(written, indent=1) + "\n", "utf-8")
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
        raise InputError(
            f"exists and is not {_article(what)} {what}", file=out, remedy="give --out another name"
        )


def check_same(
    out: Path,
    what: str,
    before: Inputs,
    now: Inputs,
    *,
    replace: bool = False,
    remedy: str = "choose another folder, or add --replace if it is no longer needed",
) -> None:
    """Refuse to replace a folder where that loses work on something else; the one rule of every verb.

    The same inputs again replace it, and so do the same and more: a job that has grown, a further source.
    Paths are the same where they lead to the same place.

    Args:
        out: the older folder.
        what: its sort, for the message.
        before: what it is made of, as far as it says so: texts by what they are (``source``).
        now: what would take its place.
        replace: whether that was asked for.
        remedy: the way out, for the message.

    Raises:
        InputError: it is made of something that is not among ``now``, or does not say what it is made of.
    """
    if replace:
        return
    for name, values in now.items():
        if name not in before:
            raise InputError(
                f"is {_article(what)} {what} that does not say of which {name} it is, and it would be"
                " replaced",
                file=out,
                remedy=remedy,
            )
        known = {_place(value) for value in values}
        lost = [value for value in before[name] if _place(value) not in known]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise InputError(
                f"is {_article(what)} {what} of another {name} ({_short(lost[0])}{more}), and it would be"
                " replaced",
                file=out,
                remedy=remedy,
            )


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _place(value: str) -> str:
    """Where a path leads; what is no absolute path, as it is."""
    return printable(os.path.realpath(value)) if value.startswith("/") else value


def _short(value: str) -> str:
    """A digest as people compare it; everything else in full."""
    return value[:12] if _DIGEST.fullmatch(value) else value


def _made_of(folder: Path) -> Inputs:
    """What a folder says that it is made of, {} where it says nothing."""
    try:
        said = json.loads((folder / MADE_OF).read_text("utf-8"))
        return {name: [str(value) for value in values] for name, values in said.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
