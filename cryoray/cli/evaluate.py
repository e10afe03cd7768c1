"""``cryoray evaluate``: an ensemble's numbers on groups that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryoray.cli import common


def evaluate(
    ctx: typer.Context,
    ensemble: Annotated[
        str, typer.Argument(metavar="ENSEMBLE", help="Folder, or name in the registry.")
    ],
    prepared: Annotated[Path, typer.Argument(metavar="SET", help="A prepared set with labels.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the numbers and the report.")],
    cross_validate: Annotated[
        int | None,
        typer.Option(metavar="K", help="Train anew K times, so that each group is judged once."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(metavar="R", help="Cross-validations, each of another seed.")
    ] = None,
    ablate: Annotated[
        bool | None, typer.Option("--ablate", help="Image alone, metadata alone, and both.")
    ] = None,
) -> None:
    """Judge the groups that the ensemble has not seen, and report how often it was right."""
    settings = common.settings(
        ctx, evaluate={"cross_validate": cross_validate, "repeats": repeats, "ablate": ablate}
    )
    from cryoray import inference, training
    from cryoray.models import registry
    from cryoray.preparation.prepared import PreparedSet

    with common.Show() as show:
        told = {"on_progress": show.progress, "on_event": show.event}
        if settings.evaluate.cross_validate:
            metrics = inference.cross_validate(
                prepared,
                out,
                settings,
                train=training.train,
                folds=settings.evaluate.cross_validate,
                repeats=settings.evaluate.repeats,
                **told,
            )
        else:
            judge = registry.resolve(ensemble, settings.registry)
            metrics = inference.evaluate(judge, prepared, out, settings, **told)
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    fates = {"judged": metrics["n"], "left out": metrics["left_out"]}
    common.finish(
        "Evaluated",
        {**numbers, "folder": out},
        common.balance(PreparedSet.open(prepared).n, fates),
    )
