"""gzip and bzip2 files read as if they were not, forwards, a megabyte at a time."""

from __future__ import annotations

import bz2
import gzip
import logging
import zlib
from collections.abc import Iterator
from functools import cache, lru_cache
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast

from cryoray.errors import FormatError
from cryoray.formats.files import changed, identity_of
from cryoray.formats.opening import open_file
from cryoray.records import Compression

_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"BZh": "bzip2"}
_UNPACK: dict[Compression, str] = {"gzip": "gunzip", "bzip2": "bunzip2"}
_CHUNK = 1 << 20  # bytes unpacked at a time
#: Images of noise become a half or a third; even masked ones in float32 not a hundredth. Small files may.
_MOST_EXPANSION, _SMALL = 100, 256 << 20

_log = logging.getLogger(__name__)


def compression(start: bytes) -> Compression | None:
    """How a file that begins with ``start`` is compressed, if it is."""
    return next((how for magic, how in _MAGIC.items() if start.startswith(magic)), None)


class CompressedFile:
    """A compressed file; it stays open where reading stopped, so that ranges in order cost one pass.

    Going back begins at the start again. Use :func:`opened`, which keeps some of them.

    Args:
        path: the file.
        how: as :func:`compression` found it.
        identity: its size in bytes and time of change in ns.
    """

    def __init__(self, path: Path, how: Compression, identity: tuple[int, int]) -> None:
        self.path, self.how, self.identity = path, how, identity
        self._file: BinaryIO | None = None
        self._raw: FileIO | None = None
        self._lock = Lock()

    def __del__(self) -> None:
        self._close()

    def fill(self, at: int, into: memoryview) -> None:
        """Unpacked bytes from ``at`` on, as many as fit.

        Raises:
            FormatError: there are not so many, or they are damaged, or the file changed.
        """
        with self._lock:
            for part in self._parts(at, len(into)):
                into[: len(part)] = part
                into = into[len(part) :]
        if into:
            raise FormatError("ended before its last image", file=self.path)

    def start(self, size: int) -> bytes:
        """Its first unpacked bytes, fewer where it has no more.

        Raises:
            FormatError: they are damaged, or the file changed.
        """
        with self._lock:
            return b"".join(self._parts(0, size))

    def length(self, most: int) -> int:
        """Unpacked bytes that are there, counted no further than ``most``; their checksum is verified.

        Raises:
            FormatError: they are damaged, or the file changed.
        """
        with self._lock:
            # A little further than asked: the checksum comes after the last byte.
            most_of_images = _MOST_EXPANSION * self.identity[0] + _SMALL
            size = sum(map(len, self._parts(0, min(most + _CHUNK, most_of_images))))
            if size >= most_of_images < most:
                raise FormatError(
                    f"unpacks to more than {_MOST_EXPANSION} times its size, which no images do",
                    file=self.path,
                    remedy="copy or extract the stack again",
                )
            return min(most, size)

    def _parts(self, at: int, size: int) -> Iterator[bytes]:
        """Unpacked bytes in pieces, until ``size`` of them or the end, be it regular or not."""
        try:
            file = self._opened()
            if file.tell() != at:
                file.seek(at)
            while size and (part := file.read1(min(size, _CHUNK))):  # type: ignore[attr-defined]
                size -= len(part)
                yield part
        except EOFError:  # cut short; what came before is good
            self._close()
        except (OSError, zlib.error) as error:
            self._close()
            if isinstance(error, OSError) and error.errno is not None:
                raise FormatError(f"cannot be read: {error.strerror}", file=self.path) from error
            raise FormatError(
                f"is damaged: its {self.how} data do not unpack",
                file=self.path,
                remedy="copy the file again",
            ) from error

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._raw = open_file(self.path)
            if identity_of(self._raw) != self.identity:
                self._close()
                raise changed(self.path)
            unpacked = (
                gzip.GzipFile(fileobj=self._raw) if self.how == "gzip" else bz2.BZ2File(self._raw)
            )
            self._file = cast(BinaryIO, unpacked)
        return self._file

    def _close(self) -> None:
        for file in (self._file, self._raw):
            if file is not None:
                file.close()
        self._file = self._raw = None


@lru_cache(maxsize=4)
def opened(path: Path, how: Compression, identity: tuple[int, int]) -> CompressedFile:
    """The compressed file, the same one for some time."""
    return CompressedFile(path, how, identity)


@lru_cache(maxsize=1 << 16)
def unpacked_bytes(path: Path, how: Compression, identity: tuple[int, int], most: int) -> int:
    """As :meth:`CompressedFile.length`, and remembered: it is a pass over the file."""
    _mention(how)
    return opened(path, how, identity).length(most)


@cache
def _mention(how: Compression) -> None:
    """Warns once, not for each of a thousand files."""
    _log.warning("%s files are slower to read; `%s` them where time matters", how, _UNPACK[how])
