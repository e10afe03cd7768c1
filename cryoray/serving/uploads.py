"""Stacks that come as the body of a request: a file while they are judged, and no longer."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from fastapi import Request

from cryoray.serving.admission import FullError
from cryoray.serving.sources import TooMuchError

_PREFIX = "cryoray-upload-"
#: Of all places for uploads, the share that the holders of one token may take.
_SHARE = 4
#: What another machine left is nobody's after so long, seconds.
_OLD = 24 * 3600.0


class Places:
    """Uploads that are received at once, which take nothing from what is judged meanwhile.

    Args:
        most: of all tokens together; of one, a quarter of them.
    """

    def __init__(self, most: int) -> None:
        self._most, self._each = most, max(1, most // _SHARE)
        self._taken: Counter[str | None] = Counter()

    @contextmanager
    def place(self, session: str | None) -> Iterator[None]:
        """A place for as long as the block lasts.

        Args:
            session: whose token it is; None for the operator's.

        Raises:
            FullError: there is none, or the token has its share of them.
        """
        if self._taken.total() >= self._most or self._taken[session] >= self._each:
            raise FullError("So many uploads are under way that no other is taken now.")
        self._taken[session] += 1
        try:
            yield
        finally:
            self._taken[session] -= 1
            self._taken += Counter()  # a session that has none is forgotten


@asynccontextmanager
async def uploaded(request: Request, most: int) -> AsyncIterator[Path]:
    """The body as a file, removed afterwards.

    It lies in the temporary folder (``TMPDIR``), which preparers on other machines must share.

    Args:
        request: whose body it is.
        most: bytes.

    Raises:
        TooMuchError: it is, or says that it is, longer.
    """
    owner = f"{socket.gethostname()}-{os.getpid()}-"
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{owner}"))
    try:
        stack = folder / "upload.mrcs"
        with stack.open("wb") as file:
            async for chunk in _chunks(request, most):
                file.write(chunk)
        yield stack
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove what processes left that are no more."""
    here = f"{_PREFIX}{socket.gethostname()}-"
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
                continue
            process = folder.name.removeprefix(here).partition("-")[0]
            if folder.name.startswith(here) and process.isdecimal():
                gone = not Path(f"/proc/{process}").exists()
            else:
                gone = time.time() - status.st_mtime > _OLD
            if gone:
                shutil.rmtree(folder, ignore_errors=True)


async def _chunks(request: Request, most: int) -> AsyncIterator[bytes]:
    too_much = TooMuchError(f"the body is larger than {most:,} bytes")
    length = request.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > most:
        raise too_much
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise too_much
        yield chunk
