"""``cryoray evaluate``: an ensemble's numbers on groups that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryoray import terminal
from cryoray.cli import common
from cryoray.cli import cross_validate as verb


def evaluate(
    ctx: typer.Context,
    ensemble: Annotated[
        str, typer.Argument(metavar="ENSEMBLE", help="Folder, or name in the registry.")
    ],
    prepared: Annotated[Path, typer.Argument(metavar="SET", help="A prepared set with labels.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the numbers and the report.")
    ],
    cross_validate: Annotated[int | None, typer.Option(metavar="K", hidden=True)] = None,
    repeats: Annotated[int | None, typer.Option(metavar="R", hidden=True)] = None,
    ablate: Annotated[
        bool | None,
        typer.Option(
            "--ablate",
            help="Also measure what images and each column of metadata are worth.",
        ),
    ] = None,
    replace: common.Replace = None,
) -> None:
    """Measure an ensemble on the groups of a set that it has not seen.

    Example: cryoray evaluate ensembles/ours sets/past --out evaluation
    """
    settings = common.settings(
        ctx,
        evaluate={
            "cross_validate": cross_validate,
            "repeats": repeats,
            "ablate": ablate,
            "replace": replace,
        },
    )
    if settings.evaluate.cross_validate is not None:
        from cryoray.verbs.cross_validate import asked_of_evaluate

        common.renamed(
            "`cryoray evaluate --cross-validate K`", "`cryoray cross-validate SET --folds K`"
        )
        verb.run([prepared], out, asked_of_evaluate(settings) or settings)
        return
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.verbs.evaluate import measure

    with terminal.Show() as show:
        metrics = measure(ensemble, prepared, out, settings, show.progress, show.event)
    verb.show("Evaluated", metrics, out, PreparedSet.open(prepared).n)
