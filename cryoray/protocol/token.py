"""The bearer token that service and client share: a variable, or a file that only its owner reads."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryoray.errors import SettingsError


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
        SettingsError: there is no token, or the file with it is empty.
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
        token = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise SettingsError("there is no token for the service", file=file, remedy=remedy) from None
    if not token:
        raise SettingsError("the file for the service's token is empty", file=file, remedy=remedy)
    return token
