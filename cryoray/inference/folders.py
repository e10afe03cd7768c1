"""A folder of results appears whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryoray.errors import InputError


@contextmanager
def replacing_folder(out: Path, what: str, is_one: Callable[[Path], bool]) -> Iterator[Path]:
    """A new folder ``OUT.partial`` that takes the place of ``out`` when the block ends well.

    Args:
        out: may be absent, empty, or an older folder of the same sort.
        what: the sort, for the message.
        is_one: whether a folder is of that sort.

    Raises:
        InputError: ``out`` is something else, which is not ours to replace.
    """
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or is_one(out))):
        raise InputError(f"exists and is no {what}", file=out, remedy="give --out another name")
    partial, aside = (out.with_name(f"{out.name}.{end}") for end in ("partial", "old"))
    for left_behind in (partial, aside):
        shutil.rmtree(left_behind, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rename(aside)
        partial.rename(out)
    finally:
        for left_behind in (partial, aside):
            shutil.rmtree(left_behind, ignore_errors=True)
