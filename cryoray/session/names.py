"""Names and texts that others chose: shown without control characters, refused where no file holds them."""

from __future__ import annotations

import unicodedata

from cryoray.errors import printable


def recordable(path: str) -> str:
    """A file's path as a database and a line can hold it: as it is, or escaped where it is hostile."""
    return path if unwritable(path) is None else printable(path)


def unwritable(path: str) -> str | None:
    """Why a file of this name cannot be named in a STAR file or a table, None where it can."""
    if any(unicodedata.category(one) == "Cs" for one in path):
        return "its name is no UTF-8"
    if any(unicodedata.category(one) == "Cc" for one in path):
        return "its name has control characters"
    if "'" in path and '"' in path:
        return "its name has both kinds of quotes, which no STAR file can hold"
    return None
