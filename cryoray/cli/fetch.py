"""``cryoray fetch``: a public entry's particles to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryoray import terminal

if TYPE_CHECKING:
    from cryoray.integrations.empiar import Remote


def fetch(
    ctx: typer.Context,
    entry: Annotated[str, typer.Argument(help="An entry of EMPIAR, such as EMPIAR-10812.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of its files.")],
    pattern: Annotated[
        list[str] | None,
        typer.Option(help="Which files; else *.star, *.mrcs, *.cs and *.csv. May be repeated."),
    ] = None,
    mirror: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Holds the entry already: its files are linked."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before downloading.")] = False,
) -> None:
    """Download an EMPIAR entry's particles and STAR files; interrupted, it goes on when run again."""
    from cryoray.integrations import empiar as verb

    def confirm(files: Sequence[Remote]) -> bool:
        shown = {file.path: size(file.size) for file in files[:_SHOWN]}
        if len(files) > _SHOWN:
            shown[f"and {len(files) - _SHOWN:,} more"] = size(sum(f.size for f in files[_SHOWN:]))
        total = size(sum(file.size for file in files))
        terminal.out.print(terminal.table(f"{len(files):,} files, {total}", shown))
        return yes or typer.confirm(f"Download {total} into {out}?")

    with terminal.Show() as show:
        files = verb.fetch(
            entry,
            out,
            patterns=pattern or verb.PATTERNS,
            mirror=mirror,
            confirm=confirm,
            on_progress=show.progress,
            on_event=show.event,
        )
    if not files:
        terminal.out.print("Nothing was fetched.")
        return
    total = sum(file.size for file in files)
    terminal.out.print(
        terminal.table("Fetched", {"files": len(files), "size": size(total), "folder": out})
    )


_SHOWN = 20


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
