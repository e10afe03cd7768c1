"""``cryoray evaluate``: an ensemble's numbers on groups that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryoray import terminal
from cryoray.cli import common

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table


def evaluate(
    ctx: typer.Context,
    ensemble: Annotated[
        str,
        typer.Argument(
            metavar="ENSEMBLE",
            help="Folder, or name in the registry; with --cross-validate it is not looked at: give -.",
        ),
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
        bool | None,
        typer.Option(
            "--ablate",
            help="What image and metadata are worth: each hidden, each column shuffled; with"
            " --cross-validate each alone, trained anew.",
        ),
    ] = None,
) -> None:
    """Judge the groups that the ensemble has not seen, and report how often it was right."""
    settings = common.settings(
        ctx, evaluate={"cross_validate": cross_validate, "repeats": repeats, "ablate": ablate}
    )
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.verbs.evaluate import measure

    with terminal.Show() as show:
        metrics = measure(ensemble, prepared, out, settings, show.progress, show.event)
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    if "ablation" in metrics:
        terminal.out.print(_ablation(metrics["ablation"]))
    fates = {"judged": metrics["n"], "left out": metrics["left_out"]}
    terminal.finish(
        "Evaluated",
        {**numbers, "folder": out},
        terminal.balance(PreparedSet.open(prepared).n, fates),
    )


def _ablation(ablation: Mapping[str, Any]) -> Table:
    """With what it was trained or judged, and what each column is worth."""
    from rich.table import Table

    keys = ("accuracy", "false_negative_rate", "auroc")
    made = Table("", *keys, title="What image and metadata are worth", title_justify="left")
    said = {"both": "image and metadata", "image": "image only", "metadata": "metadata only"}
    for how, word in (("retrained", "trained with"), ("hidden", "given")):
        for name, numbers in ablation.get(how, {}).items():
            made.add_row(f"{word} {said[name]}", *(terminal.text(numbers[key]) for key in keys))
    columns = ablation["permutation"]["columns"]
    for name in sorted(columns, key=lambda name: -columns[name]["auroc"])[:12]:
        lost = columns[name]
        made.add_row(
            f"shuffled {name}: lost", f"{lost['accuracy']:.4f}", "", f"{lost['auroc']:.4f}"
        )
    return made
