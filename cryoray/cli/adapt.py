"""``cryoray adapt``: an ensemble set right for a new project, from a few labels or none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryoray import terminal
from cryoray.cli import common


def adapt(
    ctx: typer.Context,
    ensemble: Annotated[
        str, typer.Argument(metavar="ENSEMBLE", help="Folder, or name in the registry.")
    ],
    prepared: Annotated[
        Path, typer.Argument(metavar="SET", help="A prepared set of the new project.")
    ],
    out: Annotated[Path, typer.Option(metavar="ENSEMBLE", help="Folder of the adapted ensemble.")],
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A selection that labels some of its images, twenty or more; without it only the"
            " share of good images is estimated.",
        ),
    ] = None,
) -> None:
    """Recalibrate an ensemble for one project, from a few labels or none.

    Example: cryoray adapt particle sets/new --labels labels.csv --out ensembles/new
    """
    settings = common.settings(ctx)
    from rich.table import Table

    from cryoray.models import registry
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.verbs.adapt import adapt as run

    judge = registry.resolve(ensemble, settings.registry)
    with terminal.Show() as show:
        record = run(
            judge,
            prepared,
            out,
            settings,
            labels=labels,
            on_progress=show.progress,
            on_event=show.event,
        )
    for title, columns in record["tables"].items():
        table = Table("", *columns, title=f"On {title}", title_justify="left")
        for name in columns["before"]:
            table.add_row(name, *(terminal.text(side[name]) for side in columns.values()))
        terminal.out.print(table)
    labelled, n = record["labels"], PreparedSet.open(prepared).n
    share = record["prevalence"]
    terminal.finish(
        "Adapted",
        {
            "keeps, estimated": f"{share['estimate']:.1%} ({share['low']:.1%} to {share['high']:.1%}), in"
            f" training {share['training']:.1%}",
            "threshold": record["threshold"],
            "promise": record["operating_point"]["method"],
            "folder": out,
        },
        terminal.balance(n, {**labelled, "without a label": n - sum(labelled.values())}),
    )
