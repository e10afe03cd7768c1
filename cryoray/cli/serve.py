"""``cryoray serve``: the service that judges stacks while the microscope collects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cryoray import terminal
from cryoray.cli import common

if TYPE_CHECKING:
    from cryoray.records import Event


def serve(
    ctx: typer.Context,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Folder, or name in the registry; repeatable. By default those promoted as particle and"
            " class2d, or those that ship.",
        ),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="An ensemble that judges unseen, for comparison."),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder under which sources must lie; repeatable."),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(metavar="FILE|URL", help="Show the sessions of this ledger on the page at /."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Serve ensembles over HTTP until interrupted.

    Example: cryoray serve --root /data --ledger /data/cryoray/ledger.sqlite
    """
    settings = common.settings(
        ctx,
        serve={
            "ensembles": ensemble or None,
            "shadow": shadow,
            "roots": root or None,
            "ledger": ledger,
            "host": host,
            "port": port,
        },
    )
    from cryoray.serving.app import serve

    serve(settings, on_event=_say)


def _say(happened: Event) -> None:
    """One line for each thing that happens: what it is, and plain data."""
    terminal.out.print(escape(f"{happened.name} {dict(happened.data)}"), soft_wrap=True)
