"""``cryoray select``: a page of pictures, a line and clicks, and what RELION and cryoSPARC take of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryoray import terminal
from cryoray.cli import common


def select(
    ctx: typer.Context,
    verdicts: Annotated[
        Path, typer.Argument(metavar="VERDICTS", help="A folder that `cryoray classify` made.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder that *save* writes; by default VERDICTS/selected."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="Source, where it has moved or the verdicts do not name it."),
    ] = None,
    ensemble: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="Ensemble that judged, where it is not found."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port on this machine; by default a free one.")
    ] = None,
    browser: Annotated[
        bool | None, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = None,
    replace: Annotated[
        bool | None,
        typer.Option("--replace", help="Save in DIR also where it holds a selection on others."),
    ] = None,
) -> None:
    """Make a selection by eye, on a page with pictures and a line to drag; saved for RELION and cryoSPARC.

    Example: cryoray select verdicts
    """
    settings = common.settings(ctx, select={"port": port, "browser": browser, "replace": replace})
    import webbrowser
    from contextlib import suppress

    from rich.markup import escape

    from cryoray.select.link import private
    from cryoray.select.saving import saved
    from cryoray.verbs.select import select as open_page

    with open_page(verdicts, settings, source=source, ensemble=ensemble, out=out) as opened:
        terminal.out.print(f"The page, until you press Ctrl+C:\n{opened.url}", soft_wrap=True)
        with private(opened.url) as address, suppress(KeyboardInterrupt):
            if settings.select.browser:
                terminal.out.print("If no browser shows it, open this link yourself.")
                webbrowser.open(address)
            opened.serve()
        record = saved(opened.page.out)
        clicks = opened.page.selection.clicks
        if record is None or record["revision"] != clicks.revision:
            say = "Not saved yet; every click is kept, and `cryoray select` goes on from there."
        else:
            say = f"Saved in {record['folder']}."
        terminal.out.print(escape(say), soft_wrap=True)
