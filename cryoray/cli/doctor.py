"""``cryoray doctor``: whether this machine can do the work, and what to do where it cannot."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from cryoray import terminal
from cryoray.cli import common

_COLOURS = {"good": "green", "warning": "yellow", "bad": "red"}


def doctor(
    ctx: typer.Context,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also look at every node of the Ray cluster.")
    ] = False,
) -> None:
    """Check packages, cores, memory, GPU, disks and tokens; ends with 2 where something is missing.

    Example: cryoray doctor
    """
    settings = common.settings(ctx)
    from cryoray.diagnostics.machine import examine

    findings = [*examine(settings)]
    if cluster:
        from cryoray.diagnostics.cluster import examine_cluster

        findings += examine_cluster(settings)
    shown = Table("", "found", "what to do", title="cryoray doctor", title_justify="left")
    for one in findings:
        shown.add_row(one.name, f"[{_COLOURS[one.state]}]{one.found}[/]", one.remedy)
    terminal.out.print(shown)
    if any(one.state == "bad" for one in findings):
        raise typer.Exit(2)
