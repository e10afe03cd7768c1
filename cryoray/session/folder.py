"""A session's folder: where it is, whose it is, and that one process at a time writes there."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryoray.errors import InputError, SettingsError, printable
from cryoray.formats.files import naming, replacing
from cryoray.formats.opening import way_out
from cryoray.session.names import recordable, unwritable
from cryoray.settings import WatchSettings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True, slots=True)
class Places:
    """Where a session's things are.

    Attributes:
        root: the watched folder.
        folder: the session's files.
        ledger: its URL or path.
    """

    root: Path
    folder: Path
    ledger: str

    @property
    def token_file(self) -> Path:
        """Where the session's token is, mode 0600."""
        return self.folder / "token"

    @property
    def events(self) -> Path:
        """Where everything that happens is a line of JSON."""
        return self.folder / "events.jsonl"


def places(root: Path, session: str, settings: WatchSettings) -> Places:
    """Where the things of a session are that watches ``root``.

    Raises:
        InputError: there is no such folder.
        SettingsError: the session's name is no file's name.
    """
    # By its real path: reached by a link too, a session is one, and STAR files name real paths.
    root = Path(root).resolve()
    if not root.is_dir():
        raise InputError(
            "there is no such folder", file=recordable(str(root)), remedy=way_out(root)
        )
    if reason := unwritable(str(root)):
        raise InputError(
            f"cannot be watched: {reason}", file=recordable(str(root)), remedy="rename it"
        )
    if not _NAME.fullmatch(session):
        raise SettingsError(
            f"a session cannot be named {session!r}",
            remedy="use letters, digits, dots, dashes and underscores, at most 80",
        )
    out = (settings.out or root / "cryoray").resolve()
    return Places(root, out / session, settings.ledger or str(out / "ledger.sqlite"))


def make_folder(folder: Path) -> None:
    """Make a session's folder, for its owner alone, unless it is there.

    Raises:
        SettingsError: it is somebody else's.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True)
        folder.chmod(0o700)  # who wants others to read it opens it, and we leave it so
    elif folder.stat().st_uid != os.geteuid():
        raise SettingsError(
            f"the session's folder {folder} is somebody else's",
            remedy="give another --session or --out, or watch as its owner",
        )


def write_token(file: Path, token: str) -> None:
    """Write a session's token, for its owner alone."""
    with replacing(file) as temporary:
        temporary.touch(0o600)
        temporary.write_text(token + "\n", encoding="ascii")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While the block lasts, no other process watches the session of this folder.

    Raises:
        SettingsError: another one does.
    """
    with naming(folder), open(folder / ".lock", "a", opener=no_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                "the session is watched by another process already",
                file=folder,
                remedy="stop that one first, or give another --session",
            ) from None
        yield


def no_link(path: str, flags: int) -> int:
    """Opens a file of the session's folder (as ``opener``): never what somebody laid a link to there.

    Raises:
        SettingsError: it is a link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise SettingsError(
            f"{printable(path)} is a link, and may lead to a file of yours", remedy="remove it"
        ) from error
