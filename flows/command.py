"""A flow as a command: what goes wrong is one sentence and an exit code, as of every verb."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cryoray import terminal
from cryoray.diagnostics.cluster import prefect_server
from cryoray.errors import SettingsError


@contextmanager
def command(*, debug: bool = False) -> Iterator[None]:
    """What a flow's command does; ends the process with a command's exit code where it fails.

    Prefect's server is asked first: a flow that cannot reach the one that it was told of says so in a
    hundred lines.
    """
    try:
        with terminal.complaints(debug=debug):
            check_server(os.environ.get("PREFECT_API_URL"))
            yield
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


def check_server(url: str | None) -> None:
    """See whether Prefect's server answers, where one is named.

    Raises:
        SettingsError: it does not.
    """
    found = prefect_server(url)
    if found.state == "bad":
        raise SettingsError(
            f"Prefect's server at {url}, which PREFECT_API_URL names, does not answer",
            remedy="start it (`prefect server start`), or unset PREFECT_API_URL: then a flow starts its own",
        )
