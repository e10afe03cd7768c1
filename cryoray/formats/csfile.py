"""cryoSPARC's .cs tables in both forms, NPY and CSDAT: columns on demand, rows verbatim.

NPY is numpy's structured array (numpy.lib.format). CSDAT (cryosparc-tools 4.2 and later, dataset.py)
is the magic word, the length of a JSON header (uint32) and the header; for each column its bytes'
length (uint32) and its bytes, as LZ4 block where the header says so; then a heap of strings ended by
NUL, which columns of strings point into by uint64 offsets. Both are read here without cryosparc-tools,
which keeps neither the widths of strings nor its hold on memory: its C code follows any offset, so
that a damaged CSDAT file ends the process. Nothing is ever unpickled.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa

from cryoray.errors import FormatError
from cryoray.formats.files import changed, identity_of, impostor, replacing
from cryoray.formats.opening import open_file, way_out

Form = Literal["npy", "csdat"]

_NPY, _CSDAT = b"\x93NUMPY", b"\x95CSDAT"
_LONGEST_HEADER = 16 << 20  # bytes; a table of a hundred 3D classes has some 100 kB
_PIECE = 1 << 16  # rows worked on at a time
#: LZ4 makes of a byte at most 255 (lz4 block format: the length of a match goes up by 255 a byte).
_MOST_EXPANSION = 255
#: A column's type as numpy writes it: byte order, kind, bytes; O is Python objects, or strings in CSDAT.
_TYPE = re.compile(r"[<>|=]?(?:[biufcSUV]\d{1,9}|O)")
#: All that a literal, a dtype or a nesting too deep can raise.
_NONSENSE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
_RECOPY = "copy it again, or export it from cryoSPARC again"


@dataclass(frozen=True, eq=False)
class CsTable:
    """The rows of a .cs file; n is their number. Nothing but the header is held.

    Attributes:
        path: the file.
        form: how it is written.
        fields: the dtype of one row of each column, in file order; of strings ``S`` of some width, or
            object in CSDAT, which has no width.
        n: rows.
    """

    path: Path
    form: Form
    fields: Mapping[str, np.dtype]
    n: int
    _identity: tuple[int, int]
    _offset: int = 0  # NPY: byte at which the rows begin
    _row: np.dtype = field(default_factory=lambda: np.dtype([]))  # NPY: of a row
    _columns: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # CSDAT: start, length
    _header: Mapping[str, Any] = field(default_factory=dict)  # CSDAT
    _heap: int = 0  # CSDAT: byte at which the strings begin

    def __len__(self) -> int:
        return self.n

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some columns: numbers as they are stored, [n] or [n, …]; strings as str objects [n].

        Bytes of strings that are not UTF-8 are as in `os.fsdecode`, so that they still name a file.

        Raises:
            FormatError: the file changed or is damaged.
        """
        if self.form == "csdat":
            return {
                name: self._strings(self._column(name))
                if self.fields[name].hasobject
                else self._column(name)
                for name in names
            }
        made = {name: np.empty((self.n, *self._shape(name)), self._base(name)) for name in names}
        for start, rows in self._pieces():
            for name in names:
                made[name][start : start + len(rows)] = rows[name]
        return {
            name: _decoded(column) if column.dtype.kind == "S" else column
            for name, column in made.items()
        }

    def column(self, name: str) -> np.ndarray:
        """One column, as :meth:`read` gives it."""
        return self.read([name])[name]

    def numeric(self, name: str) -> bool:
        """Whether there is such a column, of one real number in each row."""
        kind = self.fields.get(name)
        return kind is not None and not kind.shape and kind.kind in "fiub"

    def write_rows(self, rows: np.ndarray, path: Path) -> None:
        """Write some rows as a table of the same form, columns and dtypes.

        Args:
            rows: int64 [k], 0-based, ascending.
            path: replaced when all is written.

        Raises:
            FormatError: the file changed or is damaged.
        """
        with replacing(path) as temporary, temporary.open("wb") as file:
            if self.form == "csdat":
                for part in self._csdat_rows(rows):
                    file.write(part)
                return
            file.write(_npy_header(self._row, len(rows)))
            for start, piece in self._pieces():
                first, last = np.searchsorted(rows, (start, start + len(piece)))
                file.write(piece[rows[first:last] - start].tobytes())

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.fields[name].shape

    def _base(self, name: str) -> np.dtype:
        return self.fields[name].base

    def _open(self) -> io.BufferedReader:
        try:
            file = cast(io.BufferedReader, io.BufferedReader(open_file(self.path)))
        except OSError as error:
            raise FormatError(f"cannot be read: {error.strerror}", file=self.path) from error
        if identity_of(file) != self._identity:
            file.close()
            raise changed(self.path)
        return file

    def _pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """Rows of an NPY file, some at a time, each portion with its first row's number."""
        with self._open() as file:
            file.seek(self._offset)
            for start in range(0, self.n, _PIECE):
                count = min(_PIECE, self.n - start)
                piece = file.read(count * self._row.itemsize)
                if len(piece) < count * self._row.itemsize:
                    raise FormatError("ended while it was being read", file=self.path)
                yield start, np.frombuffer(piece, self._row)

    def _column(self, name: str) -> np.ndarray:
        """A column of a CSDAT file as it is stored; of strings, their offsets."""
        shape, base = self._shape(name), self._base(name)
        stored = np.dtype("<u8") if base.hasobject else base
        if not self.n:
            return np.empty((0, *shape), stored)
        start, length = self._columns[name]
        size = self.n * math.prod(shape) * stored.itemsize
        with self._open() as file:
            file.seek(start)
            data = file.read(length)
        if name in self._header["compressed_fields"]:
            data = _unpacked(data, size)
        if len(data) != size:
            raise _damaged(self.path, name)
        return np.frombuffer(data, stored).reshape(self.n, *shape)

    def _strings(self, offsets: np.ndarray) -> np.ndarray:
        different, which = np.unique(offsets, return_inverse=True)
        texts = np.empty(len(different), object)
        texts[:] = [text.decode(errors="surrogateescape") for text in self._texts(different)]
        return texts[which.reshape(offsets.shape)]

    def _texts(self, offsets: np.ndarray) -> list[bytes]:
        """The strings at some places in the heap."""
        with self._open() as file:
            file.seek(self._heap)
            heap = file.read()
        if len(offsets) and int(offsets.max()) >= len(heap):
            raise _damaged(self.path, "of strings")
        return [heap[at : heap.find(b"\0", at) % (len(heap) + 1)] for at in offsets.tolist()]

    def _csdat_rows(self, rows: np.ndarray) -> Iterator[bytes]:
        """The parts of a CSDAT file of some rows; of its strings, those that they use."""
        columns = {name: self._column(name)[rows] for name in self._columns if len(rows)}
        strings = [name for name in columns if self.fields[name].hasobject]
        heap, place = [b""], {b"": 0}
        end = 1
        for name in strings:
            different, which = np.unique(columns[name], return_inverse=True)
            moved = np.empty(len(different), "<u8")
            for i, text in enumerate(self._texts(different)):
                if text not in place:
                    place[text] = end
                    heap.append(text)
                    end += len(text) + 1
                moved[i] = place[text]
            columns[name] = moved[which.reshape(columns[name].shape)]
        header = json.dumps({**self._header, "length": len(rows)}).encode()
        yield _CSDAT + struct.pack("<I", len(header)) + header
        codec = pa.Codec("lz4_raw")
        for name, column in columns.items():
            data = column.tobytes()
            if name in self._header["compressed_fields"]:
                data = codec.compress(data, asbytes=True)
            yield struct.pack("<I", len(data)) + data
        yield b"\0".join([*heap, b""])


def read_table(path: Path) -> CsTable:
    """The table that a .cs file holds, from its header alone.

    Raises:
        FormatError: there is no such file, it is no .cs file or damaged, or only unpickling could
            read it.
    """
    try:
        with cast(io.BufferedReader, io.BufferedReader(open_file(path))) as file:
            identity = identity_of(file)
            magic = file.read(6)
            if magic == _NPY:
                return _npy(path, file, identity)
            if magic == _CSDAT:
                return _csdat(path, file, identity)
            known = impostor(magic + file.read(64))
    except FileNotFoundError:
        raise FormatError("there is no such file", file=path, remedy=way_out(path)) from None
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", file=path) from error
    if known:
        raise FormatError(known[0], file=path, remedy=known[1])
    if magic[:1] == b"\x80":
        raise _pickled(path)
    raise FormatError(
        "is not a cryoSPARC table: it begins like neither NPY nor CSDAT", file=path, remedy=_RECOPY
    )


def _npy(path: Path, file: io.BufferedReader, identity: tuple[int, int]) -> CsTable:
    start = file.read(6)
    wide = len(start) == 6 and start[0] in (2, 3)
    if len(start) < 6 or start[0] not in (1, 2, 3):
        raise FormatError("is not an NPY file: its header is cut short", file=path, remedy=_RECOPY)
    length = struct.unpack_from("<I" if wide else "<H", start, 2)[0]
    offset = (12 if wide else 10) + length
    if length > _LONGEST_HEADER or offset > identity[0]:
        raise FormatError("is not an NPY file: its header is cut short", file=path, remedy=_RECOPY)
    file.seek(12 if wide else 10)
    try:
        # Whatever a header says, evaluating it as a literal makes nothing but plain values.
        header = ast.literal_eval(file.read(length).decode("utf-8" if start[0] == 3 else "latin-1"))
        descr, shape = header["descr"], header["shape"]
        kinds = [descr] if isinstance(descr, str) else [kind for _, kind, *_ in descr]
        if any("O" in _known(kind) for kind in kinds):
            raise _pickled(path)
        row = np.dtype(np.lib.format.descr_to_dtype(descr))
        n = shape[0] if len(shape) == 1 else -1
        fits = isinstance(n, int) and n >= 0 and not header["fortran_order"]
    except _NONSENSE as error:
        raise FormatError("has an NPY header that makes no sense", file=path) from error
    if not fits or not row.names:
        raise FormatError(
            "is an array of numbers, not a table of named columns",
            file=path,
            remedy="give a .cs file of particles or of 2D classes",
        )
    expected = offset + n * row.itemsize
    if expected > identity[0]:
        raise FormatError(
            f"is shorter than its header says: {identity[0]:,} bytes, {expected:,} expected",
            file=path,
            remedy=_RECOPY,
        )
    fields = {name: row.fields[name][0] for name in row.names} if row.fields else {}
    return _checked(CsTable(path, "npy", fields, n, identity, _offset=offset, _row=row))


def _csdat(path: Path, file: io.BufferedReader, identity: tuple[int, int]) -> CsTable:
    start = file.read(4)
    length = struct.unpack("<I", start)[0] if len(start) == 4 else 0
    if length > min(_LONGEST_HEADER, identity[0] - 10) or len(start) < 4:
        raise FormatError("is cut short in its header", file=path, remedy=_RECOPY)
    try:
        header = json.loads(file.read(length))
        n, compressed = header["length"], header["compressed_fields"]
        listed = [
            (str(name), np.dtype((_known(kind), tuple(shape[0]) if shape else ())))
            for name, kind, *shape in header["dtype"]
        ]
        fits = (
            type(n) is int
            and n >= 0
            and header["compression"] in (None, "lz4")
            and all(isinstance(name, str) for name in compressed)
            and len(dict(listed)) == len(listed)
            and all(kind.base.kind in "fiucbO" and kind.itemsize for _, kind in listed)
        )
    except _NONSENSE as error:
        raise FormatError("has a CSDAT header that makes no sense", file=path) from error
    if not fits:
        raise FormatError("has a CSDAT header that makes no sense", file=path)
    header["compressed_fields"] = list(compressed)
    columns, at = {}, 10 + length
    for name, kind in listed if n else ():
        file.seek(at)
        size = file.read(4)
        stored = struct.unpack("<I", size)[0] if len(size) == 4 else 0
        row = math.prod(kind.shape) * (8 if kind.base.hasobject else kind.base.itemsize)
        whole = stored * _MOST_EXPANSION if name in compressed else stored
        if len(size) < 4 or at + 4 + stored > identity[0] or n * row > whole:
            raise _damaged(path, name)
        columns[name] = (at + 4, stored)
        at += 4 + stored
    return _checked(
        CsTable(
            path,
            "csdat",
            dict(listed),
            n,
            identity,
            _columns=columns,
            _header=header,
            _heap=at,
        )
    )


def _known(kind: str) -> str:
    if not _TYPE.fullmatch(kind):
        raise ValueError(kind)
    return kind


def _checked(table: CsTable) -> CsTable:
    if table.fields.get("uid") != np.dtype("<u8"):
        raise FormatError(
            "has no column uid of 64-bit numbers, so it is not a cryoSPARC table",
            file=table.path,
            remedy="give a .cs file of particles or of 2D classes",
        )
    return table


def _unpacked(data: bytes, size: int) -> bytes:
    """An LZ4 block of ``size`` bytes, or nothing where it is damaged."""
    codec = pa.Codec("lz4_raw")
    try:
        whole = codec.decompress(data, decompressed_size=size, asbytes=True)
    except (OSError, ValueError):  # pa.ArrowException is one of these
        return b""
    try:  # Arrow does not say when there was less, and leaves the rest as it found it
        codec.decompress(data, decompressed_size=size - 1)
    except (OSError, ValueError):
        return whole
    return b""


def _npy_header(row: np.dtype, n: int) -> bytes:
    header = {"descr": np.lib.format.dtype_to_descr(row), "fortran_order": False, "shape": (n,)}
    made = io.BytesIO()
    try:
        np.lib.format.write_array_header_1_0(made, header)
    except ValueError:  # longer than 64 kB
        made = io.BytesIO()
        np.lib.format.write_array_header_2_0(made, header)
    return made.getvalue()


def _decoded(column: np.ndarray) -> np.ndarray:
    """Strings of fixed width as str objects; equal ones are one object."""
    different, which = np.unique(column, return_inverse=True)
    decoded = (text.decode(errors="surrogateescape") for text in different.tolist())
    texts = np.array([*decoded, None], object)
    return texts[which.reshape(column.shape)]


def _pickled(path: Path) -> FormatError:
    return FormatError(
        "holds Python objects, which only unpickling could read, and unpickling runs whatever program"
        " a file holds",
        file=path,
        remedy="save it again with `Dataset.load(…).save(…)` of cryosparc-tools where you trust it, or"
        " export the job from cryoSPARC again",
    )


def _damaged(path: Path, column: str) -> FormatError:
    return FormatError(f"is damaged in its column {column}", file=path, remedy=_RECOPY)
