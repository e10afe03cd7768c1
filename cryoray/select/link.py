"""How a browser gets the page's link without other users of the machine seeing it among its arguments."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def private(url: str) -> Iterator[str]:
    """An address to open in place of a link that holds a token, while the block lasts.

    It is that of a file which its owner alone can read, and which leads on to the link: what a browser
    is started with, everybody on the machine can read.
    """
    with tempfile.TemporaryDirectory(prefix="cryoray-select-") as folder:
        file = Path(folder) / "open.html"
        file.touch(0o600)
        file.write_text(leading_to(url, "cryoray select"))
        yield file.as_uri()


def leading_to(url: str, title: str) -> str:
    """A page that leads on to another at once; a browser takes that for a step of the page's own."""
    to = html.escape(url)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f'<meta http-equiv="refresh" content="0; url={to}"><title>{html.escape(title)}</title>'
        f'<p><a href="{to}">Open the page</a>'
    )
