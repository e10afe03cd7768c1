"""The bearer token that service and client share: a variable, or a file that only its owner reads."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryoray.errors import SettingsError

#: Characters of a token, at least: what is shorter can be guessed.
LEAST = 16


def token_file() -> Path:
    """Where the token is kept: ``CRYORAY_TOKEN_FILE``, else `~/.config/cryoray/token`."""
    given = os.environ.get("CRYORAY_TOKEN_FILE")
    return Path(given).expanduser() if given else Path("~/.config/cryoray/token").expanduser()


def find_token(given: str | None = None, *, create: bool = False) -> str:
    """The token: ``given``, else ``CRYORAY_TOKEN``, else the file's.

    Args:
        given: a token that is already known.
        create: make the file, mode 0600, where there is none.

    Raises:
        SettingsError: there is no token, the file with it is empty, or somebody else's, or open to others
            and not ours to close.
    """
    token = given or os.environ.get("CRYORAY_TOKEN")
    if token:
        return token
    file = token_file()
    if create and not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}")
        part.touch(0o600)
        part.write_text(secrets.token_urlsafe(32) + "\n", encoding="ascii")
        part.replace(file)
    remedy = "set CRYORAY_TOKEN, or copy the file from where `cryoray serve` runs"
    try:
        with file.open(encoding="utf-8") as opened:
            _close_to_others(file, opened.fileno())
            token = opened.read(4096).strip()
    except FileNotFoundError:
        raise SettingsError("there is no token for the service", file=file, remedy=remedy) from None
    if not token:
        raise SettingsError("the file for the service's token is empty", file=file, remedy=remedy)
    return token


def check_strength(token: str | None) -> str:
    """A token that is good enough to guard a service.

    Raises:
        SettingsError: there is none, or it is too short.
    """
    if not token:
        raise SettingsError("a service needs a token", remedy="set CRYORAY_TOKEN")
    if len(token) < LEAST:
        raise SettingsError(
            f"the service's token has {len(token)} characters, and fewer than {LEAST} can be guessed",
            remedy=f"remove it, and `cryoray serve` makes one at {token_file()}",
        )
    return token


def _close_to_others(file: Path, descriptor: int) -> None:
    """Take from others what rights they have to a file with a token."""
    status = os.fstat(descriptor)
    if status.st_uid not in (os.getuid(), 0):
        raise SettingsError(
            "belongs to somebody else, who may know the token or change it",
            file=file,
            remedy="name a file of yours in CRYORAY_TOKEN_FILE",
        )
    if not status.st_mode & 0o077:
        return
    try:
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        if status.st_mode & 0o007 or status.st_mode & 0o020:
            raise SettingsError(
                "holds the service's token, and others may read or change it",
                file=file,
                remedy=f"`chmod 600 {file}`",
            ) from error
