"""Files that appear whole or not at all, and what a file is that is not what its name says."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
