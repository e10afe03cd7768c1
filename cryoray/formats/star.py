"""STAR files of every RELION dialect: tables by name, columns on demand, rows verbatim.

A file is never held whole: reading it once finds its tables, a table's first use finds its rows, and
columns are parsed a few megabytes at a time. So a million particles cost little more than the columns
that are wanted, and a model.star of thousands of tables costs one look at each. Grammar after RELION's
metadata_table.cpp (1.x to 5) and S. R. Hall, J. Chem. Inf. Comput. Sci. 31, 326 (1991).
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

from cryoray.errors import FormatError
from cryoray.formats.files import changed, identity_of, impostor, is_number
from cryoray.formats.opening import open_file, way_out

_PIECE = 2 << 20  # bytes worked on at a time
_LONGEST_LINE = 64 << 20
_SAMPLED = 33  # rows by which a column is known to hold numbers
_COMMA = re.compile(r"[-+]?\d+,\d+")  # a number as German or French programs write it
_MOST_COLUMNS = 2000  # RELION knows some three hundred
_THREADS = 2
_AHEAD = 2  # portions parsed beyond the one that is waited for
#: A quote ends a field only where a blank or the line's end follows, as in RELION's nextTokenInSTAR.
_FIELD = re.compile(rb"""'([^']*)'(?!\S)|"([^"]*)"(?!\S)|(\S+)""")
_END_OF = {quote: re.compile(rb"%c(?!\S)" % quote) for quote in b"'\""}
_PLAIN = re.compile(rb"\S+")
#: Where a field in quotes may have the same quote inside.
_QUOTE_INSIDE = re.compile(rb"""'[^']*'\S|"[^"]*"\S""")
_MISSING = [
    "",
    "nan",
    "-nan",
    "NaN",
    "-NaN",
    "NAN",
    "None",
    "none",
    "null",
    "NULL",
    "NA",
    "<NA>",
    "N/A",
    "n/a",
    "<null>",
    "-",
    "?",
    ".",
]
#: What no field can hold: line ends, NUL, and the bell, which is an escape to RELION.
_NEVER = re.compile(r"[\n\r\0\a\x0b\x0c\x1c-\x1e\x85\u2028\u2029]|[\ud800-\udfff]")
_NEWLINE, _HASH, _SPACE, _UNDERSCORE, _QUOTES = 10, 35, 32, 95, (34, 39)


MALFORMED = ", and its table "  # in the reason of every row with too few or too many fields
_BLANKS = ": a name with blanks must stand in quotes"


class Columns(NamedTuple):
    r"""Columns of one table.

    Attributes:
        strings: string arrays [n] by column name.
        numbers: float64 [n] by column name; NaN where a value is missing or no number, and in
            malformed rows.
        malformed: 0-based rows that have fewer or more fields than the table has columns, and the
            reason; their strings are what stands in the column's place.
        undecoded: 0-based rows by column of strings, where bytes are not UTF-8; they stand as ``\xe9``.
        texts: by column of numbers, the first row and text that is neither a number nor a word for a
            missing one.
    """

    strings: dict[str, pa.ChunkedArray]
    numbers: dict[str, np.ndarray]
    malformed: dict[int, str]
    undecoded: dict[str, list[int]]
    texts: dict[str, tuple[int, str]]


@dataclass
class _Oddities:
    """What a portion of rows has that a table should not have; rows count from its first."""

    malformed: dict[int, str] = field(default_factory=dict)
    undecoded: dict[str, list[int]] = field(default_factory=dict)


class _Header(NamedTuple):
    columns: tuple[str, ...]
    loop: bool
    body: int  # byte at which the rows begin
    values: tuple[bytes, ...]  # of a table that is no loop
    row: bytes = b""  # the same in one line, with whatever stands beside them
    malformed: str = ""  # what is wrong with these


class _Rows(NamedTuple):
    starts: np.ndarray  # int64 [n], byte at which each row's line begins
    lengths: np.ndarray  # int32 [n], bytes without the line end
    indents: np.ndarray  # int32 [n], blanks before the first field


@dataclass(frozen=True, eq=False)
class Block:
    """One table (``data_NAME``) of a STAR file, a loop or a single row of named values.

    Column names are without the leading underscore. Nothing but its place in the file is known until
    something is asked of it.
    """

    name: str
    path: Path
    start: int
    end: int
    _identity: tuple[int, int]
    _carriage_returns: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in file order."""
        return self._header.columns

    @property
    def is_loop(self) -> bool:
        """Whether the table is a loop, which may have any number of rows."""
        return self._header.loop

    def __len__(self) -> int:
        return len(self._rows.starts) if self.is_loop else int(bool(self.columns))

    def read(self, strings: Sequence[str] = (), numbers: Sequence[str] = ()) -> Columns:
        """Several columns in one pass over the file.

        Raises:
            FormatError: the table has no such column, or the file changed.
        """
        self._check((*strings, *numbers))
        strings, numbers = list(dict.fromkeys(strings)), list(dict.fromkeys(numbers))
        parts: dict[str, list[pa.Array]] = {name: [] for name in strings}
        values = {name: np.empty(len(self)) for name in numbers}
        malformed: dict[int, str] = {}
        undecoded: dict[str, list[int]] = {}
        texts: dict[str, tuple[int, str]] = {}
        done = 0
        for table, odd in self._parsed(strings, numbers):
            for name in strings:
                parts[name].append(table[name].combine_chunks())
            for name in numbers:
                floats, text = _floats(table[name].combine_chunks(), odd.malformed)
                values[name][done : done + len(table)] = floats
                if text is not None:
                    texts.setdefault(name, (done + text[0], text[1]))
            malformed |= {done + row: why for row, why in odd.malformed.items()}
            for name, rows in odd.undecoded.items():
                undecoded.setdefault(name, []).extend(done + row for row in rows)
            done += len(table)
        return Columns(
            {name: pa.chunked_array(some, pa.string()) for name, some in parts.items()},
            values,
            malformed,
            undecoded,
            texts,
        )

    def numeric(self, names: Sequence[str]) -> list[str]:
        """Those of some columns that hold numbers, by rows from all over the table.

        One that has nothing but words for a missing number in these rows counts, too; of one that has
        both numbers and text, `read` names the text.
        """
        self._check(names)
        rows = np.unique(np.linspace(0, len(self) - 1, _SAMPLED).astype(np.int64))
        found = self._sample(rows)
        whole = [fields for fields in found if len(fields) == len(self.columns)]
        kept = []
        for name in names:
            at = self.columns.index(name)
            words = {fields[at] for fields in whole} - set(_MISSING)
            if not words or any(is_number(word) or _COMMA.fullmatch(word) for word in words):
                kept.append(name)
        return kept

    def chunks(self, name: str) -> Iterator[pa.Array]:
        """One column as consecutive string arrays, for those who need not hold all of it.

        Raises:
            FormatError: as :meth:`read`.
        """
        self._check((name,))
        for table, _ in self._parsed([name], ()):
            yield table[name].combine_chunks()

    def column(self, name: str) -> np.ndarray:
        """One column as str objects [n]; a field that a short row lacks is empty."""
        return as_objects(self.read(strings=[name]).strings[name])

    def numbers(self, name: str) -> np.ndarray:
        """One column as float64 [n]: NaN where it is missing or no number, infinities as they are."""
        return self.read(numbers=[name]).numbers[name]

    def _sample(self, rows: np.ndarray) -> list[list[str]]:
        """The fields of some rows, in one look at the file."""
        if not self.is_loop or not len(self):
            return [self.fields(0)] if len(self) else []
        starts, lengths = self._rows.starts[rows], self._rows.lengths[rows]
        with self._open() as file:
            lines = [
                _read(file, start, start + length)
                for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
            ]
        width = len(self.columns)
        return [
            [field.decode(errors="replace") for field in _without_comment(_split(line), width)]
            for line in lines
        ]

    def fields(self, row: int) -> list[str]:
        """The fields of one row, as they stand."""
        if not self.is_loop:
            return [value.decode(errors="replace") for value in self._header.values]
        text = self.row_text(row).encode(errors="surrogateescape")
        return [field.decode(errors="replace") for field in _split(text)]

    def with_field(self, row: int, column: int, text: str) -> bytes:
        """One row with another text in a column, its other fields as they are, without a line end.

        Raises:
            ValueError: no STAR file can hold the text.
        """
        fields = _split(self.row_text(row).encode(errors="surrogateescape"))
        fields += [b""] * (column + 1 - len(fields))
        before, after = (
            map(_quoted_bytes, some) for some in (fields[:column], fields[column + 1 :])
        )
        return b" ".join([*before, quoted(text).encode(), *after])

    def row_text(self, row: int) -> str:
        """One row, verbatim, without its line end; of a table that is no loop, as a loop has it."""
        if not self.is_loop:
            return self._header.row.decode(errors="surrogateescape")
        start, length = int(self._rows.starts[row]), int(self._rows.lengths[row])
        with self._open() as file:
            return _read(file, start, start + length).rstrip(b"\r").decode(errors="surrogateescape")

    def copy_rows(
        self, rows: np.ndarray, out: BinaryIO, also: Sequence[bytes] | None = None
    ) -> None:
        """Write rows verbatim, each ended by LF; that of a table that is no loop as a loop has it.

        Args:
            rows: int64 [k], 0-based, ascending.
            out: where to.
            also: [k], text of further fields to put after each row's own.
        """
        if not self.is_loop:
            for at in range(len(rows)):
                out.write(self._header.row + (b"" if also is None else also[at]) + b"\n")
            return
        starts, lengths = self._rows.starts[rows], self._rows.lengths[rows]
        with self._open() as file:
            for first, last in _portions(starts):
                base = int(starts[first])
                text = _read(file, base, int(starts[last - 1]) + int(lengths[last - 1]))
                begins = (starts[first:last] - base).tolist()
                ends = (starts[first:last] - base + lengths[first:last]).tolist()
                lines = [text[a:b].rstrip(b"\r") for a, b in zip(begins, ends, strict=True)]
                if also is not None:
                    lines = [a + b for a, b in zip(lines, also[first:last], strict=True)]
                out.write(b"\n".join([*lines, b""]))

    def copy_head(self, out: BinaryIO, name: str | None = None) -> None:
        """Write what comes before rows: the table's name (another, if given) and column names."""
        if self.is_loop:
            with self._open() as file:
                head = _read(file, self.start, self._header.body)
            lines = [line.rstrip() for line in head.splitlines()[1:]]
            lines = [line for line in lines if line and not line.startswith(b"#")]
        else:
            names = enumerate(self.columns, 1)
            lines = [b"loop_", *(f"_{name} #{number}".encode() for number, name in names)]
        title = b"data_" + (self.name if name is None else name).encode()
        out.write(b"\n".join([title, b"", *lines, b""]))

    def copy(self, out: BinaryIO) -> None:
        """Write the whole table verbatim but for line ends and the comments around it."""
        if self.is_loop:
            self.copy_head(out)
            self.copy_rows(np.arange(len(self)), out)
            return
        with self._open() as file:
            lines = _read(file, self.start, self.end).splitlines()[1:]
        kept = [
            line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith(b"#")
        ]
        out.write(b"\n".join([b"data_" + self.name.encode(), b"", *kept, b""]))

    def _check(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.columns:
                raise FormatError(
                    f"has no column {name} in its table data_{self.name}", file=self.path
                )

    def _open(self) -> FileIO:
        file = _open(self.path, self._carriage_returns)
        if identity_of(file) != self._identity:
            file.close()
            raise changed(self.path)
        return file

    @cached_property
    def _header(self) -> _Header:
        names: list[str] = []
        values: list[bytes] = []
        row: list[bytes] = []
        loop, malformed = False, ""
        with self._open() as file:
            for offset, line in _lines(file, self.start, self.end):
                text = line.strip()
                if offset == self.start or not text or text.startswith(b"#"):
                    continue
                if text.startswith(b"_"):
                    fields = _split(text)
                    if len(names) == _MOST_COLUMNS:
                        raise FormatError(
                            f"has more than {_MOST_COLUMNS:,} columns in its table data_{self.name}",
                            file=self.path,
                            remedy="remove those that no program needs",
                        )
                    names.append(fields[0][1:].decode(errors="replace"))
                    if loop:
                        continue
                    given = _without_comment(fields[1:], 1)
                    values.append(given[0] if given else b"")
                    row += given or [b""]
                    if len(given) > 1 and not malformed:
                        malformed = f"has {len(given)} values for {names[-1]}{_BLANKS}"
                elif loop:
                    return _Header(tuple(names), True, offset, ())
                elif text.split()[0] == b"loop_":
                    if names:
                        raise FormatError(
                            f"has a loop after single values in its table data_{self.name}, which"
                            " RELION does not write",
                            file=self.path,
                            remedy="give the loop a data_ line of its own",
                        )
                    loop = True
        line = b" ".join(map(_quoted_bytes, row))
        return _Header(tuple(names), loop, self.end, tuple(values), line, malformed)

    @cached_property
    def _rows(self) -> _Rows:
        parts = []
        with self._open() as file:
            for base, piece in _pieces(file, self._header.body, self.end, self.path):
                text = np.frombuffer(piece, np.uint8)
                ends = np.flatnonzero(text == _NEWLINE)
                if not piece.endswith(b"\n"):
                    ends = np.append(ends, len(text))
                starts = np.append(0, ends[:-1] + 1)
                first = _first_field(text, starts, ends)
                full = first < ends
                full[full] = text[first[full]] != _HASH
                if (text[first[full]] == _UNDERSCORE).any():
                    raise FormatError(
                        f"has a second loop in its table data_{self.name}, which RELION does not write",
                        file=self.path,
                        remedy="give the second one a data_ line of its own",
                    )
                parts.append(
                    _Rows(
                        base + starts[full],
                        (ends - starts)[full].astype(np.int32),
                        (first - starts)[full].astype(np.int32),
                    )
                )
        if not parts:
            return _Rows(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int32))
        return _Rows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _parsed(
        self, strings: Sequence[str], numbers: Sequence[str]
    ) -> Iterator[tuple[pa.Table, _Oddities]]:
        """Tables of consecutive rows, numbers as float64 or string, and what is odd about them."""
        names = list(dict.fromkeys((*strings, *numbers)))
        if not names:
            return
        if not self.is_loop:
            if len(self):
                odd = _Oddities({0: self._header.malformed} if self._header.malformed else {})
                yield self._made([list(self._header.values)], names, odd), odd
            return
        wanted = set(numbers) - set(strings)
        with self._open() as file, ThreadPoolExecutor(_THREADS) as threads:

            def begun(portion: tuple[int, int]) -> Future[tuple[pa.Table, _Oddities]]:
                rows = _Rows(*(each[slice(*portion)] for each in self._rows))
                base = int(rows.starts[0])
                piece = _read(file, base, int(rows.starts[-1]) + int(rows.lengths[-1]))
                return threads.submit(self._parse, piece, base, rows, names, wanted)

            # Read here and parsed by threads, a few portions ahead: both let go of Python's lock.
            tasks = map(begun, _portions(self._rows.starts))
            ahead = deque(islice(tasks, _AHEAD))
            while ahead:
                ahead.extend(islice(tasks, 1))
                yield ahead.popleft().result()

    def _parse(
        self,
        piece: bytes,
        base: int,
        rows: _Rows,
        names: list[str],
        numbers: set[str],
    ) -> tuple[pa.Table, _Oddities]:
        """Some rows of a loop: by Arrow where every field is plain and every row full, else by hand."""
        starts, lengths, indents = rows.starts - base, rows.lengths, rows.indents
        compact = _compact(piece, starts, lengths, indents)
        if compact is not None:
            keys = [f"{index}" for index in range(len(self.columns))]
            wanted = {keys[self.columns.index(name)]: name for name in names}
            for types in (
                {
                    key: pa.float64() if name in numbers else pa.string()
                    for key, name in wanted.items()
                },
                dict.fromkeys(wanted, pa.string()),
            ):
                try:
                    table = csv.read_csv(
                        pa.BufferReader(pa.py_buffer(compact)),
                        csv.ReadOptions(
                            use_threads=False, block_size=len(compact) + 1, column_names=keys
                        ),
                        csv.ParseOptions(delimiter=" ", quote_char=False),
                        csv.ConvertOptions(
                            include_columns=list(wanted), column_types=types, null_values=_MISSING
                        ),
                    )
                except (
                    pa.ArrowInvalid
                ):  # a number that is none, a malformed row, or other text than UTF-8
                    continue
                if len(table) == len(starts):
                    return table.rename_columns(names), _Oddities()
        begins, ends = starts.tolist(), (starts + lengths).tolist()
        width, odd = len(self.columns), _Oddities()
        split = [_split(piece[a:b]) for a, b in zip(begins, ends, strict=True)]
        for row in np.flatnonzero([len(fields) != width for fields in split]).tolist():
            fields = split[row] = _without_comment(split[row], width)
            if len(fields) != width:
                many = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
                odd.malformed[row] = f"has {many}{MALFORMED}{width} columns"
                odd.malformed[row] += _BLANKS if len(fields) > width else ""
                fields += [b""] * (width - len(fields))
        return self._made(split, names, odd), odd

    def _made(self, rows: list[list[bytes]], names: list[str], odd: _Oddities) -> pa.Table:
        """Columns of fields; of several with one name, the first."""
        made = {}
        for name in names:
            at = self.columns.index(name)
            try:
                texts = [fields[at].decode() for fields in rows]
            except UnicodeDecodeError:
                texts = [fields[at].decode(errors="backslashreplace") for fields in rows]
                odd.undecoded[name] = [
                    row for row, fields in enumerate(rows) if _undecodable(fields[at])
                ]
            made[name] = pa.array(texts, pa.string())
        return pa.table(made)


class StarFile(Mapping[str, Block]):
    """The tables of a STAR file; of several with one name, the first is found by it.

    Attributes:
        path: the file.
        blocks: all tables in file order.
    """

    def __init__(self, path: Path, blocks: tuple[Block, ...]) -> None:
        self.path, self.blocks = path, blocks
        self._by_name = {block.name: block for block in reversed(blocks)}

    def __getitem__(self, name: str) -> Block:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(block.name for block in self.blocks))

    def __len__(self) -> int:
        return len(self._by_name)

    def with_column(self, *names: str, prefer: Sequence[str] = ()) -> Block | None:
        """The first table with one of these columns, looked for in the preferred ones first.

        It may be no loop but single values: so some programs write a table of one row.
        """
        likely = [self[name] for name in prefer if name in self]
        return next(
            (
                block
                for block in (*likely, *self.blocks)
                if any(name in block.columns for name in names)
            ),
            None,
        )


def parse(path: Path) -> StarFile:
    """The tables of a STAR file, in one look over its bytes.

    Lines may end as on any platform: LF, CR LF, or CR alone.

    Raises:
        FormatError: there is no such file, or no table in it, or it is something else.
    """
    with _open(path) as file:
        identity = identity_of(file)
        start = _read(file, 0, min(identity[0], _PIECE))
    known = impostor(start)
    if known:
        raise FormatError(known[0], file=path, remedy=known[1])
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FormatError(
            "is text in UTF-16", file=path, remedy="convert it with `iconv -f UTF-16 -t UTF-8`"
        )
    if b"\0" in start[:4096]:
        raise FormatError("is not a STAR file: it is not text", file=path)
    carriage_returns = _lone_returns(start) > 0
    marks = _marks(path, identity, carriage_returns)
    if marks is None:
        carriage_returns = True
        marks = _marks(path, identity, carriage_returns)
    if not marks:
        raise FormatError("is not a STAR file: it has no line that begins with data_", file=path)
    ends = [start for start, _ in marks[1:]] + [identity[0]]
    return StarFile(
        path,
        tuple(
            Block(name, path, start, end, identity, carriage_returns)
            for (start, name), end in zip(marks, ends, strict=True)
        ),
    )


def _marks(
    path: Path, identity: tuple[int, int], carriage_returns: bool
) -> list[tuple[int, str]] | None:
    """Where tables begin and their names; None where lines end in CR alone and that was not known."""
    marks: list[tuple[int, str]] = []
    with _open(path, carriage_returns) as file:
        for base, piece in _pieces(file, 0, identity[0], path):
            if _lone_returns(piece):
                return None
            at = piece.find(b"data_")
            while at >= 0:
                line_end = piece.find(b"\n", at)
                line_end = len(piece) if line_end < 0 else line_end
                line_start = piece.rfind(b"\n", 0, at) + 1
                before = piece[line_start:at].removeprefix(b"\xef\xbb\xbf").strip()
                words = piece[at:line_end].split(b"#")[0].split()
                if not before and len(words) == 1:
                    marks.append((base + line_start, words[0][5:].decode(errors="replace")))
                at = piece.find(b"data_", line_end)
    return marks


def _lone_returns(text: bytes) -> int:
    """Carriage returns that end a line on their own, but for a last one, which may not be alone."""
    found = text.count(b"\r")
    return found and found - text.count(b"\r\n") - text.endswith(b"\r") - text.count(b"\r\r\n")


def quoted(text: str) -> str:
    """A field as RELION reads it, in quotes where it needs them.

    Raises:
        ValueError: no STAR file can hold it (`unwritable` says why).
    """
    reason = unwritable(text)
    if reason is not None:
        raise ValueError(reason)
    return _quoted_bytes(text.encode()).decode()


def unwritable(text: str) -> str | None:
    """Why a STAR file cannot hold a field, as the end of a sentence; None where it can."""
    found = _NEVER.search(text)
    if found:
        if "\ud800" <= found[0] <= "\udfff":
            return "holds bytes that are not UTF-8, and a STAR file is UTF-8 text"
        return f"holds the character {found[0]!r}, which no field of a STAR file can hold"
    if all(re.search(rf"{mark}\s", text) for mark in "'\""):
        return "holds both kinds of quotes before blanks, which no field of a STAR file can hold"
    return None


def _quoted_bytes(text: bytes) -> bytes:
    if text.split() == [text] and not text.startswith((b"'", b'"', b"#", b"_", b"data_", b"loop_")):
        return text
    mark = b'"' if re.search(rb"'\s", text) else b"'"
    return mark + text + mark


def as_objects(strings: pa.ChunkedArray) -> np.ndarray:
    """Strings as str objects [n]; equal ones are one object, so a million rows of few names are cheap."""
    objects = np.empty(len(strings), object)
    seen: dict[str, str] = {}
    done = 0
    for chunk in strings.chunks:
        encoded = chunk.dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        if len(texts) < len(chunk) // 2:
            texts = [seen.setdefault(text, text) for text in texts]
        known = np.array([*texts, None], dtype=object)
        objects[done : done + len(chunk)] = known[encoded.indices.to_numpy()]
        done += len(chunk)
    return objects


class _ReturnsAsNewlines(FileIO):
    """A file in which CR stands for LF: of the same length, so that every offset holds."""

    def read(self, size: int | None = -1, /) -> bytes:
        return (super().read(-1 if size is None else size) or b"").replace(b"\r", b"\n")


def _open(path: Path, carriage_returns: bool = False) -> FileIO:
    try:
        file = open_file(path)
        if not carriage_returns:
            return file
        with file:
            return _ReturnsAsNewlines(os.dup(file.fileno()))
    except FileNotFoundError:
        raise FormatError("there is no such file", file=path, remedy=way_out(path)) from None
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", file=path) from error


def _read(file: FileIO, start: int, end: int) -> bytes:
    file.seek(start)
    parts = []
    while start < end and (part := file.read(end - start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _pieces(file: FileIO, start: int, end: int, path: Path) -> Iterator[tuple[int, bytes]]:
    """The bytes from ``start`` to ``end`` in portions of whole lines, each with its offset."""
    rest = b""
    while start < end:
        piece = _read(file, start, min(end, start + _PIECE))
        start += len(piece)
        if not piece:
            raise FormatError("ended while it was being read", file=path)
        cut = len(piece) if start >= end else piece.rfind(b"\n") + 1
        whole = rest + piece[:cut]
        if whole and cut:
            yield start - len(piece) - len(rest), whole
            rest = piece[cut:]
        else:
            rest += piece
        if len(rest) > _LONGEST_LINE:
            raise FormatError("is not a STAR file: it has no line ends", file=path)


def _lines(file: FileIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Lines with their offsets, reading a little at a time: a table's head is short."""
    rest = b""
    at, size = start, 16384
    while at < end:
        text = _read(file, at, min(end, at + size))
        at += len(text)
        size *= 2  # so that a long line is not put together from many pieces
        lines = (rest + text).split(b"\n")
        rest = lines.pop() if at < end and text else b""
        for line in lines:
            yield start, line
            start += len(line) + 1
        if not text:
            return


def _portions(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows that span some megabytes of the file each."""
    first = 0
    while first < len(starts):
        last = int(np.searchsorted(starts, starts[first] + _PIECE))
        yield first, last
        first = last


def _split(line: bytes) -> list[bytes]:
    """The fields of a line; quotes around one are dropped, and may hold blanks."""
    single, double = line.count(b"'"), line.count(b'"')
    if not single and not double:
        return line.split()
    if (single > 2 or double > 2) and _QUOTE_INSIDE.search(line):
        return list(_split_with_care(line))
    return [single or double or plain for single, double, plain in _FIELD.findall(line)]


def _split_with_care(line: bytes) -> Iterator[bytes]:
    """As `_split`, one field after the other; a quote that does not end begins a plain field."""
    endless: set[int] = set()
    at = 0
    while (start := _PLAIN.search(line, at)) is not None:
        at, quote = start.start(), line[start.start()]
        end = None
        if quote in _END_OF and quote not in endless:
            end = _END_OF[quote].search(line, at + 1)
            if end is None:
                endless.add(quote)
        if end is None:
            yield start[0]
            at = start.end()
        else:
            yield line[at + 1 : end.start()]
            at = end.end()


def _undecodable(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False


def _without_comment(fields: list[bytes], width: int) -> list[bytes]:
    """Fields without a comment that follows as many as there should be."""
    return fields[:width] if fields[width : width + 1] and fields[width][:1] == b"#" else fields


def _first_field(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Where the first field of each line begins, or the line's end if it has none."""
    first = starts.copy()
    blank = np.flatnonzero(first < ends)
    while (blank := blank[text[first[blank]] <= _SPACE]).size:
        first[blank] += 1
        blank = blank[first[blank] < ends[blank]]
    return first


def _compact(
    piece: bytes, starts: np.ndarray, lengths: np.ndarray, indents: np.ndarray
) -> np.ndarray | None:
    """Rows with one blank between fields and one LF between rows, or None where a field is quoted."""
    text = np.frombuffer(piece, np.uint8)
    ends = starts + lengths
    between = np.flatnonzero(starts[1:] != ends[:-1] + 1)
    if between.size:  # comments between rows
        text = text.copy()
        for row in between.tolist():
            text[ends[row] : starts[row + 1]] = _SPACE
    field = text > _SPACE
    begins = field.copy()
    begins[1:] &= ~field[:-1]
    if (
        any(quote in piece for quote in _QUOTES)
        and (begins & ((text == _QUOTES[0]) | (text == _QUOTES[1]))).any()
    ):
        return None
    text = np.maximum(text, _SPACE)
    text[(starts + indents)[1:] - 1] = _NEWLINE
    field[:-1] |= begins[1:]
    field[: indents[0]] = False
    return text[field]


def _floats(
    values: pa.Array, malformed: Mapping[int, str]
) -> tuple[np.ndarray, tuple[int, str] | None]:
    """float64 [n], and the first row and text that is neither a number nor a word for none."""
    if not pa.types.is_string(values.type):
        return values.to_numpy(zero_copy_only=False), None
    texts = [text or "" for text in values.to_pylist()]
    floats = np.array([_float(text) for text in texts], np.float64)
    floats[list(malformed)] = np.nan
    suspects = set(np.flatnonzero(np.isnan(floats)).tolist()) - malformed.keys()
    odd = min((row for row in suspects if texts[row] not in _MISSING), default=None)
    return floats, None if odd is None else (odd, texts[odd])


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
