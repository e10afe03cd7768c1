"""``cryoray train``: prepared sets to an ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cryoray import terminal
from cryoray.cli import common

_RUN = "How it runs"


def train(
    ctx: typer.Context,
    sets: Annotated[list[Path], typer.Argument(metavar="SET…", help="Prepared sets with labels.")],
    out: Annotated[Path, typer.Option(metavar="ENSEMBLE", help="Folder of the ensemble.")],
    hold_out: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP,…|FRACTION",
            help="Groups, or a fraction of them, that training must not see.",
        ),
    ] = None,
    split_by: Annotated[
        Literal["project", "micrograph"] | None,
        typer.Option(help="What a group is: never on both sides of a split."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of each network.", rich_help_panel=_RUN)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Training workers.", rich_help_panel=_RUN)
    ] = None,
    gpu: Annotated[
        bool | None, typer.Option("--gpu", help="Train on GPUs.", rich_help_panel=_RUN)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of everything random.", rich_help_panel=_RUN)
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME…|none",
            help="Metadata that the networks see; repeatable or comma separated.",
        ),
    ] = None,
) -> None:
    """Train an ensemble on prepared sets: three networks, their calibration and the threshold.

    Example: cryoray train sets/past --hold-out 0.2 --out ensembles/ours
    """
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
