"""``cryoray watch``: a session, judged while the microscope collects it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cryoray import terminal
from cryoray.cli import common

if TYPE_CHECKING:
    from cryoray.protocol.client import Client
    from cryoray.records import Event


def watch(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that the microscope's data come into.")
    ],
    session: Annotated[str, typer.Option(metavar="NAME", help="The session; it goes on if known.")],
    service: Annotated[
        str | None, typer.Option(metavar="URL", help="A running service; else one is started here.")
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|DIR", help="For a service that is started here; repeatable, by kind."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of sessions; else DIR/cryoray.")
    ] = None,
    ledger: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="SQLite file or postgresql:// URL.")
    ] = None,
    settle: Annotated[
        float | None, typer.Option(help="Seconds without a change before a file is taken.")
    ] = None,
    trainable: Annotated[
        bool | None, typer.Option("--trainable", help="Let overrides become training labels.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Judge what is there, and end.")] = False,
) -> None:
    """Judge stacks as they settle, until interrupted; each once, whatever restarts in between."""
    settings = common.settings(
        ctx,
        watch={
            "out": out,
            "ledger": ledger,
            "service": service,
            "settle": settle,
            "trainable": trainable,
        },
    )
    from cryoray.session.watcher import Watcher, places
    from cryoray.verbs.watch import service_of

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    where = places(folder, session, settings.watch)
    with service_of(settings, where, ensemble) as client:
        watcher = Watcher(folder, session, settings.watch, client, on_event=_say)
        try:
            _say_where(watcher.token_file, client)
            watcher.run(stop, once=once)
            books = watcher.books()
        finally:
            watcher.close()
    rows = {name: int(str(books[name])) for name in ("kept", "discarded", "review", "quarantined")}
    terminal.finish(
        "Session", {**books, "folder": where.folder}, terminal.balance(_rows(books), rows)
    )


def _rows(books: dict[str, object]) -> int:
    return int(str(books["rows"]))


def _say_where(token_file: Path, client: Client) -> None:
    terminal.out.print(escape(f"session page {client.url}/ token {token_file}"), soft_wrap=True)


def _say(happened: Event) -> None:
    """One line for each thing that happens."""
    data = " ".join(
        f"{key}={terminal.text(value)}" for key, value in happened.data.items() if value is not None
    )
    terminal.out.print(escape(f"{happened.name} {data}"), soft_wrap=True)
