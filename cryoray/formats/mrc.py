"""MRC image stacks: read the header, read some of the images, write a stack image by image.

The format is MRC2014 (Cheng et al., J. Struct. Biol. 192, 2015) with modes 12 (float16) and 101
(4 bit) as IMOD and RELION have them. Files of older programs, without the word ``MAP`` or a machine
stamp, are read where their header makes sense in one byte order and no image is missing.
"""

from __future__ import annotations

import math
import os
import struct
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from cryoray.errors import FormatError, InternalError
from cryoray.formats.files import impostor, replacing
from cryoray.records import NIBBLES, Stack

_HEADER_BYTES = 1024
_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 101: NIBBLES}
_MODES = {np.dtype("f2"): 12, np.dtype("f4"): 2}
_STAMPS = {b"DD": "<", b"DA": "<", b"\x11\x11": ">"}
_LARGEST_SIDE = 1 << 20  # px; beyond this the header is not one


def read_header(path: Path) -> Stack:
    """The stack that ``path`` holds, from its header alone.

    A file that is shorter than its header says is a stack of the images that are wholly there:
    ``count`` is theirs, and :func:`absence` says why the others are missing. So the rows that a
    truncated stack lost are quarantined, and those before them are not.

    Raises:
        FormatError: there is no such file, it is no MRC file, or one of complex numbers or permuted
            axes, or not one whole image is there.
    """
    stack, expected = _describe(path)
    if not stack.count:
        raise FormatError(
            _shortfall(stack, expected), file=path, remedy="copy or extract the stack again"
        )
    return stack


def absence(stack: Stack) -> str:
    """Why an image after the last of ``stack`` is not there: a truncated file, or no such image.

    Raises:
        FormatError: the file is gone or damaged by now.
    """
    described, expected = _describe(stack.path)
    if expected > described.count:
        return f"{stack.path.name} {_shortfall(described, expected)}"
    return f"{stack.path.name} holds {stack.count:,} images"


def promised(stack: Stack) -> int:
    """Images that the header of ``stack`` promises; more than ``count`` where the file is shorter.

    Raises:
        FormatError: the file is gone or damaged by now.
    """
    return _describe(stack.path)[1]


def _shortfall(stack: Stack, images: int) -> str:
    expected = stack.offset + images * stack.image_bytes
    return f"is shorter than its header says: {stack.size:,} bytes, {expected:,} expected"


def _describe(path: Path) -> tuple[Stack, int]:
    """The stack, and the number of images that its header promises."""
    try:
        with path.open("rb", buffering=0) as file:
            header, status = file.read(_HEADER_BYTES), os.fstat(file.fileno())
    except FileNotFoundError:
        raise FormatError("there is no such stack", file=path) from None
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", file=path) from error
    known = impostor(header)
    if known:
        raise FormatError(known[0], file=path, remedy=known[1])
    if len(header) < _HEADER_BYTES:
        raise FormatError(
            f"is no MRC file: {len(header)} bytes, and the header alone has {_HEADER_BYTES:,}",
            file=path,
            remedy="copy or extract the stack again",
        )
    has_map = header[208:211] == b"MAP"
    stamp = _STAMPS.get(header[212:214])
    for order in ("<", ">") if stamp != ">" else (">", "<"):
        nx, ny, nz, mode = struct.unpack_from(f"{order}4i", header, 0)
        mx = struct.unpack_from(f"{order}i", header, 28)[0]
        cell = struct.unpack_from(f"{order}f", header, 40)[0]
        axes = struct.unpack_from(f"{order}3i", header, 64)
        extended = struct.unpack_from(f"{order}i", header, 92)[0]
        if all(0 < side <= _LARGEST_SIDE for side in (nx, ny)) and nz > 0 and 0 <= mode <= 101:
            break
    else:
        raise _not_mrc(path)
    if mode not in _DTYPES:
        if has_map:
            raise FormatError(
                f"has MRC mode {mode}, which is not one of real images (0, 1, 2, 6, 12, 101)",
                file=path,
            )
        raise _not_mrc(path)
    if axes not in ((1, 2, 3), (0, 0, 0)):
        if has_map:
            raise FormatError(
                f"has its axes in the order {axes[0]} {axes[1]} {axes[2]}, which a stack never has",
                file=path,
                remedy="give a stack of images, not a map",
            )
        raise _not_mrc(path)
    if mode == 101 and nx % 2:
        raise FormatError(
            f"holds 4-bit images of odd width {nx}, which programs do not agree on", file=path
        )
    pixel = cell / mx if mx > 0 and math.isfinite(cell) else 0.0
    dtype = _DTYPES[mode]
    offset = _HEADER_BYTES + max(extended, 0)
    image_bytes = nx * ny // 2 if dtype == NIBBLES else nx * ny * np.dtype(dtype).itemsize
    there = min(nz, max(0, status.st_size - offset) // image_bytes)
    if there < nz and not has_map:
        raise _not_mrc(path)
    stack = Stack(
        path=path,
        count=there,
        height=ny,
        width=nx,
        dtype=dtype if dtype == NIBBLES else order + dtype,
        offset=offset,
        pixel_size=pixel if 0.01 < pixel < 1000 else None,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )
    return stack, nz


def _not_mrc(path: Path) -> FormatError:
    return FormatError("is no MRC file: its header makes no sense", file=path)


def read_frames(stack: Stack, frames: np.ndarray) -> np.ndarray:
    """Images of a stack, in the order asked for; neighbours are read in one go.

    Args:
        stack: as :func:`read_header` described it.
        frames: int64 [n], 0-based.

    Returns:
        float32 [n, height, width].

    Raises:
        FormatError: the file changed since, is gone, or has no such image.
    """
    frames = np.asarray(frames, dtype=np.int64)
    beyond = frames[(frames < 0) | (frames >= stack.count)]
    if beyond.size:
        raise FormatError(
            f"has no image {int(beyond[0]) + 1:,}: it holds {stack.count:,}", file=stack.path
        )
    raw = np.empty((len(frames), stack.image_bytes), np.uint8)
    ends = np.flatnonzero(np.diff(frames, append=-2) != 1) + 1
    try:
        with stack.path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (stack.size, stack.mtime_ns):
                raise FormatError(
                    "changed while it was being read",
                    file=stack.path,
                    remedy="wait until it is complete and run again",
                )
            start = 0
            for end in ends.tolist():
                file.seek(stack.offset + int(frames[start]) * stack.image_bytes)
                _fill(file, raw[start:end].data.cast("B"), stack.path)
                start = end
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", file=stack.path) from error
    shape = (len(frames), stack.height, stack.width)
    if stack.dtype == NIBBLES:  # the low half of a byte comes first
        return np.stack([raw & 15, raw >> 4], axis=-1).reshape(shape).astype(np.float32)
    return raw.view(stack.dtype).reshape(shape).astype(np.float32, copy=False)


def _fill(file: FileIO, into: memoryview, path: Path) -> None:
    """Read until ``into`` is full: one call returns at most 2 GiB, and less over a network."""
    while into:
        got = file.readinto(into)
        if not got:
            raise FormatError("ended before its last image", file=path)
        into = into[got:]


class StackWriter:
    """Writes an MRC stack image by image under a temporary name; the name it is for at the end.

    Use as a context manager: a block that raises leaves no file, and neither does an empty stack,
    which MRC cannot hold.

    Args:
        path: the stack to write.
        height: of every image, px.
        width: of every image, px.
        dtype: ``float16`` (MRC mode 12, which RELION reads since 4) or ``float32`` (mode 2).
        pixel_size: Å/px for the header; NaN or None where unknown.
    """

    def __init__(
        self,
        path: Path,
        height: int,
        width: int,
        dtype: Literal["float16", "float32"] = "float16",
        pixel_size: float | None = None,
    ) -> None:
        self.path, self.height, self.width = path, height, width
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.pixel_size = pixel_size if pixel_size and math.isfinite(pixel_size) else 0.0
        self.count = 0
        self._low, self._high, self._sum, self._squares = math.inf, -math.inf, 0.0, 0.0

    def __enter__(self) -> StackWriter:
        with ExitStack() as undo:
            temporary = undo.enter_context(replacing(self.path))
            self._file = undo.enter_context(temporary.open("wb"))
            self._file.write(bytes(_HEADER_BYTES))
            undo.push(self._finish)
            self._undo = undo.pop_all()
        return self

    def append(self, images: np.ndarray) -> None:
        """Write ``images``, real [n, height, width]."""
        if images.shape[1:] != (self.height, self.width):
            raise InternalError(
                f"images of {images.shape[1:]} do not fit {self.path}: {(self.height, self.width)}"
            )
        if not len(images):
            return
        written = np.ascontiguousarray(images, dtype=self.dtype)
        self._file.write(written.view(np.uint8).data)
        self.count += len(written)
        self._low = min(self._low, float(written.min()))
        self._high = max(self._high, float(written.max()))
        self._sum += float(written.sum(dtype=np.float64))
        self._squares += float(np.square(written, dtype=np.float64).sum())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.__exit__(kind, error, trace)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            if not self.count:
                raise InternalError(f"no image was written to {self.path}")
            self._file.seek(0)
            self._file.write(self._header())

    def _header(self) -> bytes:
        header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
        pixels = self.count * self.height * self.width
        mean = self._sum / pixels
        header["nx"], header["ny"], header["nz"] = self.width, self.height, self.count
        header["mode"] = _MODES[self.dtype.newbyteorder("=")]
        header["mx"], header["my"], header["mz"] = self.width, self.height, 1
        header["cella"] = tuple(self.pixel_size * side for side in (self.width, self.height, 1))
        header["cellb"] = (90.0, 90.0, 90.0)
        header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
        header["dmin"], header["dmax"], header["dmean"] = self._low, self._high, mean
        header["rms"] = math.sqrt(max(0.0, self._squares / pixels - mean * mean))
        header["nversion"], header["map"], header["machst"] = 20141, b"MAP ", (0x44, 0x44, 0, 0)
        header["nlabl"] = 1
        header["label"][0] = b"cryoray"
        return header.tobytes()
