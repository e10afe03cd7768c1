"""``cryoray train``: prepared sets to an ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cryoray import terminal
from cryoray.cli import common


def train(
    ctx: typer.Context,
    sets: Annotated[list[Path], typer.Argument(metavar="SET…", help="Prepared sets with labels.")],
    out: Annotated[Path, typer.Option(metavar="ENSEMBLE", help="Folder of the ensemble.")],
    hold_out: Annotated[
        str | None,
        typer.Option(metavar="GROUP,…|FRACTION", help="Groups that training must not see."),
    ] = None,
    split_by: Annotated[
        Literal["project", "micrograph"] | None, typer.Option(help="What a group is.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each member.")] = None,
    workers: Annotated[int | None, typer.Option(help="Training workers.")] = None,
    gpu: Annotated[bool | None, typer.Option("--gpu", help="Train on GPUs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME…|none", help="Metadata used; repeated or comma separated."),
    ] = None,
) -> None:
    """Train d1, d2 and d3 by boosting by filtering, calibrate them, and choose the threshold."""
    settings = common.settings(
        ctx,
        train={
            "hold_out": hold_out,
            "split_by": split_by,
            "workers": workers,
            "gpu": gpu,
            "seed": seed,
            "features": common.names(features),
            "fit": {"epochs": epochs},
        },
    )
    from cryoray.models.ensemble import Ensemble
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.report.label_errors import report_labels
    from cryoray.verbs import train as verb

    with terminal.Show() as show:
        made = verb.train(sets, out, settings, on_progress=show.progress, on_event=show.event)
    labels = made.with_name(f"{made.name}-labels")
    suspected = report_labels(made, sets, labels)
    manifest = Ensemble.load(made).manifest
    known = set(manifest.training_groups)
    rows = trained = 0
    for prepared in map(PreparedSet.open, sets):
        groups = prepared.groups(manifest.split_by)
        rows += prepared.n
        trained += sum(group in known for group in groups[prepared.labels >= 0])
    terminal.finish(
        "Trained",
        {
            "trained on": f"{len(known):,} groups, each a {manifest.split_by}",
            "threshold": manifest.threshold,
            "review": manifest.review,
            **{
                f"operating point: {name}": value
                for name, value in manifest.operating_point.items()
            },
            "labels that look wrong": f"{suspected:,}, in {labels}",
            "digest": manifest.digest,
            "folder": made,
        },
        terminal.balance(
            rows, {"trained on": trained, "held out or without label": rows - trained}
        ),
    )
