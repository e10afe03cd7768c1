"""What can go wrong, and whose move it is.

CryorayError              anything cryoray raises on purpose
├── InputError            exit 2: something that was given cannot be used; names file, row, way out
│   ├── FormatError       a file is not what its name says, or is damaged
│   ├── SelectionError    labels that are missing, empty or of one kind only
│   ├── SettingsError     an option, variable or TOML entry that makes no sense
│   ├── EnsembleError     an ensemble that is damaged, of another kind, or cannot judge this
│   └── QuarantineError   more rows were quarantined than a healthy source would lose
└── InternalError         exit 1: our own row counts do not balance; never the user's fault
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

#: What cryoray imports and a machine may be without, and the extra that brings it.
EXTRAS = {
    "PIL": "report",
    "anyio": "session",
    "fastapi": "session",
    "jinja2": "report",
    "markupsafe": "report",
    "matplotlib": "report",
    "pandas": "notebook",
    "prometheus_client": "serve",
    "ray": "train",
    "sqlalchemy": "session",
    "starlette": "serve",
    "uvicorn": "serve",
}

#: Entries of a folder among which one of a similar name is looked for, and how many are named.
_LOOKED_AT, _NAMED_ALIKE = 10_000, 3
#: Numbers of the `OSError` of a disk on which nothing more has room, and of one that is closed to us.
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, one after the other; what a Ray worker raised arrives wrapped.

    Each is met once: Ray has errors that name themselves as their cause.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        wrapped = getattr(cause, "cause", None)
        cause = wrapped if isinstance(wrapped, BaseException) else cause.__cause__


def printable(text: str | Path) -> str:
    r"""A text as one harmless line: control characters, and bytes that are not UTF-8, become escapes.

    What comes out can go into a terminal, a database, JSON, a table and a page (``\xe9`` for such a byte,
    ``\n`` for a line end); what has no such characters comes out as it is.
    """
    return "".join(one if one.isprintable() else _escape(one) for one in str(text))


def _escape(one: str) -> str:
    byte = ord(one) - 0xDC00  # how Python holds a byte of a file's name that is not UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else one.encode("unicode_escape").decode()


def nearby(path: str | Path) -> str:
    """The way out where a path leads nowhere: how far it leads, and what is named alike there.

    Not for a service, which would tell strangers what else there is (`formats.opening.way_out`).
    """
    path = Path(path).absolute()
    try:
        folder = next(above for above in path.parents if above.is_dir())
        wanted = path.relative_to(folder).parts[0]
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _LOOKED_AT)]
    except (OSError, ValueError, StopIteration):
        return "check the path"
    alike = get_close_matches(wanted, names, _NAMED_ALIKE)
    if alike:
        return printable(f"in {folder} there is {' and '.join(alike)}")
    return printable(f"{folder} is there, and nothing in it is named like {wanted}")


def not_ours(error: BaseException | None) -> bool:
    """Whether somebody can mend it who is not us: a useless input, a disk, an extra that is not installed."""
    if isinstance(error, OSError):
        return error.errno in (*FULL, *CLOSED)
    if isinstance(error, ModuleNotFoundError):
        return _module(error) in EXTRAS
    return isinstance(error, CryorayError) and not isinstance(error, InternalError)


def _module(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


def missing(error: ModuleNotFoundError) -> InputError:
    """What to say where a module of `EXTRAS` is not installed."""
    name = _module(error)
    return InputError(
        f"this needs {name}, which is not installed here",
        remedy=f"pip install 'cryoray[{EXTRAS[name]}]'",
    )


class CryorayError(Exception):
    """Anything cryoray raises on purpose."""

    exit_code = 1


class InputError(CryorayError):
    """Something that was given cannot be used.

    Reads as one sentence: ``FILE, row ROW: WHAT; REMEDY.`` Rows are counted from 1, as people and
    RELION's image names count them.

    Args:
        what: what is wrong, without a full stop.
        file: the file that it is wrong with.
        row: the row of that file, counted from 1.
        remedy: what the person can do about it, without a full stop.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        file: str | Path | None = None,
        row: int | None = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.file, self.row, self.remedy = what, file, row, remedy
        where = "" if file is None else printable(file)
        if row is not None:
            where += f", row {row}" if where else f"row {row}"
        super().__init__(
            (f"{where}: " if where else "") + what + (f"; {remedy}" if remedy else "") + "."
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from a Ray worker: the default would call ``__init__`` with the sentence."""
        return (_rebuild, (type(self), self.what, self.file, self.row, self.remedy))


def _rebuild(
    kind: type[InputError], what: str, file: str | Path | None, row: int | None, remedy: str | None
) -> InputError:
    return kind(what, file=file, row=row, remedy=remedy)


class FormatError(InputError):
    """A file is not what its name says, or is damaged."""


class SelectionError(InputError):
    """Labels that are missing, empty or of one kind only."""


class SettingsError(InputError):
    """An option, variable or TOML entry that makes no sense."""


class EnsembleError(InputError):
    """An ensemble that is damaged, of another kind, or cannot judge what it was given."""


class QuarantineError(InputError):
    """More rows were quarantined than a healthy source would lose."""


class InternalError(CryorayError):
    """Our own row counts do not balance; never the user's fault."""
