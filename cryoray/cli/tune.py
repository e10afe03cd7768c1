"""``cryoray tune``: which networks and settings learn best from some prepared sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryoray import terminal
from cryoray.cli import common


def tune(
    ctx: typer.Context,
    sets: Annotated[list[Path], typer.Argument(metavar="SET…", help="Prepared sets with labels.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the table and the report.")],
    samples: Annotated[int | None, typer.Option(help="Number of trials.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of a trial, at most.")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at a time.")] = None,
    gpu: Annotated[bool | None, typer.Option("--gpu", help="A GPU for each trial.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    replace: common.Replace = None,
) -> None:
    """Search depth, width, activation, learning rate and augmentation, and show what each buys.

    Example: cryoray tune sets/past --samples 24 --out tuned
    """
    settings = common.settings(
        ctx,
        tune={"samples": samples, "replace": replace},
        train={"fit": {"epochs": epochs}, "workers": workers, "gpu": gpu, "seed": seed},
    )
    from rich.table import Table

    from cryoray.models.search import AXES, bought
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.report.tuning import TABLE
    from cryoray.verbs.tune import tune as run

    with terminal.Show() as show:
        best = run(sets, out, settings, on_progress=show.progress, on_event=show.event)
    from pyarrow import csv

    trials = csv.read_csv(out / TABLE).to_pylist()
    table = Table("axis", "value", "trials", "median, first rung", "best loss", "accuracy")
    for axis in AXES:
        for row in bought(trials, axis):
            table.add_row(axis, *map(terminal.text, row.values()))
    terminal.out.print(table)
    opened = [PreparedSet.open(prepared) for prepared in sets]
    rows = sum(prepared.n for prepared in opened)
    labelled = sum(int((prepared.labels >= 0).sum()) for prepared in opened)
    terminal.finish(
        "Tuned",
        {"trials": len(trials), **best, "folder": out},
        terminal.balance(rows, {"with a label": labelled, "without": rows - labelled}),
    )
