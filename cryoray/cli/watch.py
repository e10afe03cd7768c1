"""``cryoray watch``: a session, judged while the microscope collects it."""

from __future__ import annotations

import re
import signal
import threading
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cryoray import terminal
from cryoray.cli import common

if TYPE_CHECKING:
    from cryoray.protocol.client import Client
    from cryoray.records import Event

_DIGEST = re.compile(r"[0-9a-f]{24,}")

_JUDGE = "Which service judges"


def watch(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that the microscope's data come into.")
    ],
    session: Annotated[
        str,
        typer.Option(metavar="NAME", help="Name of the session; a session of this name goes on."),
    ],
    service: Annotated[
        str | None,
        typer.Option(
            metavar="URL|start",
            help="Service that judges, or start one on Ray; by default this process judges.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Where no service runs yet; repeatable, by kind.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of sessions; by default DIR/cryoray.")
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Another folder that links and STAR files may lead to; repeatable."
        ),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(metavar="FILE|URL", help="SQLite file or postgresql:// URL of the ledger."),
    ] = None,
    settle: Annotated[
        float | None, typer.Option(help="Seconds without a change before a file is taken.")
    ] = None,
    max_quarantined: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Share of a stack that may be unreadable before it is rejected."
        ),
    ] = None,
    trainable: Annotated[
        bool | None, typer.Option("--trainable", help="Let overrides become training labels.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Judge what is there, then end.")] = False,
) -> None:
    """Judge the stacks of a session as they are written, each exactly once, until interrupted.

    Example: cryoray watch /data/session7 --session session7
    """
    settings = common.settings(
        ctx,
        watch={
            "out": out,
            "roots": root or None,
            "ledger": ledger,
            "service": service,
            "settle": settle,
            "max_quarantined": max_quarantined,
            "trainable": trainable,
        },
    )
    from cryoray.session.folder import places
    from cryoray.session.watcher import Watcher
    from cryoray.verbs.watch import service_of

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    where = places(folder, session, settings.watch)
    _say(f"Watches {where.root} and writes into {where.folder}; --out DIR has it write elsewhere.")
    with service_of(settings, where, ensemble, on_event=_print) as client:
        watcher = Watcher(folder, session, settings.watch, client, on_event=_print)
        try:
            _print(_page_of(watcher.token_file, client))
            _say(f"The session page: {client.url}/sessions/{session}")
            _say(f"It asks for the token in {watcher.token_file}")
            watcher.run(stop, once=once)
            counts = watcher.row_counts()
        finally:
            watcher.close()
    rows = {name: int(str(counts[name])) for name in ("kept", "discarded", "review", "quarantined")}
    terminal.finish(
        "Session", {**counts, "folder": where.folder}, terminal.balance(_rows(counts), rows)
    )


def _rows(counts: dict[str, object]) -> int:
    return int(str(counts["rows"]))


def _say(sentence: str) -> None:
    """Print a line; addresses and paths stand at its end, where terminals make links of them."""
    from cryoray.errors import printable

    terminal.out.print(escape(printable(sentence)), soft_wrap=True)


def _page_of(token_file: Path, client: Client) -> Event:
    from cryoray.records import Event

    return Event("page.ready", {"url": f"{client.url}/", "token_file": str(token_file)})


def _print(happened: Event) -> None:
    """One line for each thing that happens: the time here, what it is, and what is known of it."""
    from cryoray.errors import printable

    data = " ".join(
        f"{key}={_short(value)}" for key, value in happened.data.items() if value is not None
    )
    line = f"{datetime.now().astimezone():%H:%M:%S} {happened.name} {data}"
    terminal.out.print(escape(printable(line)), soft_wrap=True)


def _short(value: object) -> str:
    """A value as people read it; of a digest, as much as tells it from the others."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items())
    text = terminal.text(value)
    return text[:12] if _DIGEST.fullmatch(text) else text
