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
    entry: Annotated[
        str, typer.Argument(metavar="ENTRY", help="An entry of EMPIAR, such as EMPIAR-10812.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to download into.")],
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            help="Files to download; by default *.star, *.mrcs, *.cs and *.csv. Repeatable."
        ),
    ] = None,
    mirror: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder that holds the entry already: its files are linked."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before downloading.")] = False,
) -> None:
    """Download the particles and STAR files of an EMPIAR entry; an interrupted download goes on.

    Example: cryoray fetch EMPIAR-10812 --out empiar
    """
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
