"""MRC image stacks: read the header, read some of the images, write a stack image by image.

The format is MRC2014 (Cheng et al., J. Struct. Biol. 192, 2015) with modes 12 (float16) and 101
(4 bit) as IMOD and RELION have them. Files of older programs, without the word ``MAP`` or a machine
stamp, are read where their header makes sense in one byte order. What readers have to decide for
themselves:

- Whatever ``ispg`` says (0, 1, 401), a section is an image: many programs declare their stacks volumes.
- Bytes (mode 0) are signed, as MRC2014 and RELION have them, unless IMOD's flag says that they are
  not or the header's own extremes lie in 0 to 255 and beyond 127.
- 4-bit lines of odd width end with half a byte that is not used, as in IMOD. RELION takes no odd
  number of pixels; a file whose size is that of lines without it is refused.
- Programs that copy a header and not the extended header with it leave its length in the file. Where the
  file's size is that of header and pixels alone, the pixels begin after the header.
- A pixel size of exactly 1 Å/px is what programs write who do not know it, so it is none. A STAR file
  that says 1 Å/px is believed.
- The pixel size that a header lacks is looked for in extended headers of FEI (FEI1, FEI2, AGAR). Those
  of SerialEM (SERI) and CCP4 have none.
- gzip and bzip2 are unpacked while they are read, which is slower. To learn how many images are there,
  the whole file is unpacked once, into nothing.
"""

from __future__ import annotations

import math
import os
import struct
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE, get_ext_header_dtype

from cryoray.errors import FormatError, InternalError, printable
from cryoray.formats.compressed import compression, opened, unpacked_bytes
from cryoray.formats.files import changed, identity_of, impostor, replacing
from cryoray.formats.opening import open_file, way_out
from cryoray.records import NIBBLES, Stack

#: What is wrong with a stack that a source names and nobody finds.
NO_STACK = "there is no such stack"
_HEADER_BYTES = 1024
_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 101: NIBBLES}
_MODES = {np.dtype("f2"): 12, np.dtype("f4"): 2}
_STAMPS = {b"DD": "<", b"DA": "<", b"\x11\x11": ">"}
_LARGEST_SIDE = 1 << 20  # px; beyond this the header is not one
_IMOD_STAMP, _SIGNED_BYTES = 1146047817, 1
_AGARD_PIXEL_SIZE = 11  # 0-based place among the real numbers of a section
_SPIDER_FORMS = (1, 3, -11, -12, -21, -22)


def read_header(path: Path) -> Stack:
    """The stack that ``path`` holds, from its header alone; a compressed one is unpacked once for it.

    A file that is shorter than its header says is a stack of the images that are wholly there:
    ``count`` is theirs, and :func:`absence` says why the others are missing. So the rows that a
    truncated stack lost are quarantined, and those before them are not.

    Raises:
        FormatError: there is no such file, it is not an MRC file, or one of complex numbers or permuted
            axes, or not one whole image is there, or its compressed data are damaged.
    """
    stack, expected, _ = _describe(path)
    if not stack.count:
        raise FormatError(
            _shortfall(stack, expected), file=path, remedy="copy or extract the stack again"
        )
    return stack


def read_map(path: Path) -> tuple[np.ndarray, float | None]:
    """A volume, whatever the order of its axes in the file.

    Returns:
        float32 [z, y, x]; and Å/px, None where the header has none.

    Raises:
        FormatError: as `read_header`, or it is cut short.
    """
    stack, expected, axes = _describe(path, "map")
    if stack.count < expected:
        raise FormatError(_shortfall(stack, expected), file=path, remedy="copy the map again")
    # Sections, rows and columns are the axes maps, mapr and mapc, of which 3 is z.
    volume = read_frames(stack, np.arange(stack.count))
    order = [axes[::-1].index(axis) for axis in (3, 2, 1)]
    return np.ascontiguousarray(volume.transpose(order)), stack.pixel_size


def absence(stack: Stack) -> str:
    """Why an image after the last of ``stack`` is not there: a truncated file, or no such image.

    Raises:
        FormatError: the file is gone or damaged by now.
    """
    described, expected, _ = _describe(stack.path)
    if expected > described.count:
        return f"{printable(stack.path.name)} {_shortfall(described, expected)}"
    return f"{printable(stack.path.name)} holds {stack.count:,} images"


def promised(stack: Stack) -> int:
    """Images that the header of ``stack`` promises; more than ``count`` where the file is shorter.

    Raises:
        FormatError: the file is gone or damaged by now.
    """
    return _describe(stack.path)[1]


def _shortfall(stack: Stack, images: int) -> str:
    expected = stack.offset + images * stack.image_bytes
    if stack.compression:
        identity = stack.size, stack.mtime_ns
        held = unpacked_bytes(stack.path, stack.compression, identity, expected)
        return f"unpacks to less than its header says: {held:,} bytes, {expected:,} expected"
    return f"is shorter than its header says: {stack.size:,} bytes, {expected:,} expected"


def _describe(
    path: Path, what: Literal["stack", "map"] = "stack"
) -> tuple[Stack, int, tuple[int, int, int]]:
    """The stack or map, the number of sections that its header promises, and its axes."""
    try:
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            start = file.read(2 * _HEADER_BYTES)
    except FileNotFoundError:
        if what == "stack":  # one of many, whose source is what was given
            raise FormatError(NO_STACK, file=path) from None
        raise FormatError("there is no such map", file=path, remedy=way_out(path)) from None
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", file=path) from error
    identity = status.st_size, status.st_mtime_ns
    packed = compression(start)
    if packed:
        start = opened(path, packed, identity).start(2 * _HEADER_BYTES)
    known = impostor(start)
    if known:
        raise FormatError(known[0], file=path, remedy=known[1])
    if len(start) < _HEADER_BYTES:
        raise FormatError(
            f"is not an MRC file: {len(start)} bytes, and the header alone has {_HEADER_BYTES:,}",
            file=path,
            remedy="copy the map again" if what == "map" else "copy or extract the stack again",
        )
    header, order, axes = _header(start, path, what, None if packed else status.st_size)
    nx, ny, nz, mode = (int(header[name]) for name in ("nx", "ny", "nz", "mode"))
    dtype = _DTYPES[mode]
    if mode == 0 and not _signed(header, order):
        dtype = "u1"
    stack = Stack(
        path=path,
        count=nz,
        height=ny,
        width=nx,
        dtype=dtype if dtype == NIBBLES else order + dtype,
        offset=_HEADER_BYTES + max(int(header["nsymbt"]), 0),
        pixel_size=_pixel_size(header, start[_HEADER_BYTES:], order),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        compression=packed,
    )
    expected = stack.offset + nz * stack.image_bytes
    held = unpacked_bytes(path, packed, identity, expected) if packed else status.st_size
    if stack.offset > _HEADER_BYTES and held == _HEADER_BYTES + nz * stack.image_bytes:
        stack = replace(stack, offset=_HEADER_BYTES)
    if dtype == NIBBLES and nx % 2 and held == stack.offset + nz * ny * nx // 2:
        raise FormatError(
            f"holds 4-bit images of odd width {nx} whose lines do not begin with a byte of their own",
            file=path,
            remedy="convert it to 8 bit with the program that wrote it",
        )
    there = min(nz, max(0, held - stack.offset) // stack.image_bytes)
    if not there and header["map"][:3] != b"MAP":
        raise _not_mrc(path, start)
    return replace(stack, count=there), nz, axes


def _header(
    start: bytes, path: Path, what: Literal["stack", "map"], size: int | None
) -> tuple[np.void, str, tuple[int, int, int]]:
    """The header, its byte order and axes, checked to be that of a stack or a map.

    Where a file without a machine stamp makes sense in both byte orders (256 × 256 px is 65536 × 65536
    in the other), that one holds of which ``size`` bytes have an image.
    """
    has_map = start[208:211] == b"MAP"
    if not has_map and _is_spider(start):
        raise _not_mrc(path, start)
    sensible = []
    for order in ("<", ">") if _STAMPS.get(start[212:214]) != ">" else (">", "<"):
        header = np.frombuffer(start, HEADER_DTYPE.newbyteorder(order), 1)[0]
        nx, ny, nz, mode = (int(header[name]) for name in ("nx", "ny", "nz", "mode"))
        if all(0 < side <= _LARGEST_SIDE for side in (nx, ny)) and nz > 0 and 0 <= mode <= 101:
            sensible.append((header, order, mode, nx * ny // 2 <= (size or math.inf)))
    if not sensible:
        raise _not_mrc(path, start)
    stamped = start[212:214] in _STAMPS
    header, order, mode, _ = next((each for each in sensible if each[3] or stamped), sensible[0])
    if mode not in _DTYPES:
        if has_map:
            raise FormatError(
                f"has MRC mode {mode}, which is not one of real images (0, 1, 2, 6, 12, 101)",
                file=path,
            )
        raise _not_mrc(path, start)
    axes = tuple(int(header[name]) for name in ("mapc", "mapr", "maps"))
    if axes == (0, 0, 0):
        axes = (1, 2, 3)
    if sorted(axes) != [1, 2, 3] or (axes != (1, 2, 3) and not has_map):
        if not has_map:
            raise _not_mrc(path, start)
        raise FormatError(
            f"has its axes numbered {axes[0]}, {axes[1]} and {axes[2]}, which are not x, y and z",
            file=path,
            remedy="write it again with the program that made it",
        )
    if axes != (1, 2, 3) and what == "stack":
        raise FormatError(
            f"has its axes in the order {axes[0]} {axes[1]} {axes[2]}, which a stack never has",
            file=path,
            remedy="give a stack of images, not a map",
        )
    return header, order, (axes[0], axes[1], axes[2])


def _not_mrc(path: Path, start: bytes) -> FormatError:
    if _is_spider(start):
        return FormatError(
            "is a SPIDER file, which cryoray does not read",
            file=path,
            remedy="convert it with `relion_image_handler --i FILE.spi --o FILE.mrcs`",
        )
    return FormatError("is not an MRC file: its header makes no sense", file=path)


def _is_spider(start: bytes) -> bool:
    """Whether the sizes in a SPIDER header agree with each other (spider.wadsworth.org/spider_doc)."""
    for order in "<>":
        words = np.frombuffer(start, f"{order}f4", 23)
        form, width, records, header, line = (float(words[at]) for at in (4, 11, 12, 21, 22))
        if form in _SPIDER_FORMS and 0 < width == line / 4 and header == records * line:
            return True
    return False


def _signed(header: np.void, order: str) -> bool:
    """Whether bytes are signed: as IMOD's flag says, else by the extremes, else as in MRC2014."""
    stamp, flags = struct.unpack_from(f"{order}2i", header.tobytes(), 152)
    if stamp == _IMOD_STAMP:
        return bool(flags & _SIGNED_BYTES)
    low, high = float(header["dmin"]), float(header["dmax"])
    return not (low >= 0 and 127 < high <= 255)


def _pixel_size(header: np.void, extended: bytes, order: str) -> float | None:
    """Å/px: of the header, else of the first section's entry in an extended header, else None."""
    columns = int(header["mx"])
    if columns > 0:
        size = float(header["cella"]["x"]) / columns
        if _plausible(size):
            return size
    kind = bytes(header["exttyp"])
    metres = math.nan
    if kind in (b"FEI1", b"FEI2"):
        dtype = get_ext_header_dtype(kind, order)
        if int(header["nsymbt"]) >= dtype.itemsize <= len(extended):
            metres = float(np.frombuffer(extended, dtype, 1)[0]["Pixel size X"])
    elif kind == b"AGAR":  # for each section some integers, then some real numbers
        integers, reals = struct.unpack_from(f"{order}2h", header.tobytes(), 128)
        at = 4 * (integers + _AGARD_PIXEL_SIZE)
        if integers >= 0 and reals > _AGARD_PIXEL_SIZE and at + 4 <= len(extended):
            metres = float(struct.unpack_from(f"{order}f", extended, at)[0])
    size = metres * 1e10
    return size if _plausible(size) else None


def _plausible(size: float) -> bool:
    return 0.01 < size < 1000 and not math.isclose(size, 1, abs_tol=1e-6)


def read_frames(stack: Stack, frames: np.ndarray) -> np.ndarray:
    """Images of a stack, in the order asked for; neighbours are read in one go.

    Of a compressed stack, ranges in ascending order cost one pass over the file as long as one process
    reads them; going back begins again.

    Args:
        stack: as :func:`read_header` described it.
        frames: int64 [n], 0-based.

    Returns:
        float32 [n, height, width].

    Raises:
        FormatError: the file changed since, is gone or damaged, or has no such image.
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
        with open_file(stack.path) as file:
            identity = identity_of(file)
            if identity != (stack.size, stack.mtime_ns):
                raise changed(stack.path)
            start = 0
            for end in ends.tolist():
                at = stack.offset + int(frames[start]) * stack.image_bytes
                into = raw[start:end].data.cast("B")
                if stack.compression:
                    opened(stack.path, stack.compression, identity).fill(at, into)
                else:
                    file.seek(at)
                    _fill(file, into, stack.path)
                start = end
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", file=stack.path) from error
    shape = (len(frames), stack.height, stack.width)
    if stack.dtype == NIBBLES:  # the low half of a byte comes first
        halves = np.stack([raw & 15, raw >> 4], axis=-1).reshape(*shape[:2], -1)
        return halves[..., : stack.width].astype(np.float32)
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
        shape = (self.count, self.height, self.width)
        grey = (self._low, self._high, self._sum, self._squares)
        return stack_header(shape, self.dtype, self.pixel_size, *grey)


def stack_header(
    shape: tuple[int, int, int],
    dtype: np.dtype,
    pixel_size: float,
    low: float,
    high: float,
    total: float,
    squares: float,
) -> bytes:
    """The 1,024 bytes before the pixels of a stack: images, height and width, Å/px, sums of greys."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    count, height, width = shape
    pixels = count * height * width
    mean = total / pixels
    header["nx"], header["ny"], header["nz"] = width, height, count
    header["mode"] = _MODES[dtype.newbyteorder("=")]
    header["mx"], header["my"], header["mz"] = width, height, 1
    header["cella"] = tuple(pixel_size * side for side in (width, height, 1))
    header["cellb"] = (90.0, 90.0, 90.0)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"], header["dmean"] = low, high, mean
    header["rms"] = math.sqrt(max(0.0, squares / pixels - mean * mean))
    header["nversion"], header["map"], header["machst"] = 20141, b"MAP ", (0x44, 0x44, 0, 0)
    header["nlabl"] = 1
    header["label"][0] = b"cryoray"
    return header.tobytes()
