"""``cryoray cross-validate``: how good a training is, by training again without each fold of groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryoray import terminal
from cryoray.cli import common

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from cryoray.settings import Settings


def cross_validate(
    ctx: typer.Context,
    sets: Annotated[list[Path], typer.Argument(metavar="SET…", help="Prepared sets with labels.")],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for the numbers, the report and the ensembles."),
    ],
    folds: Annotated[
        int | None, typer.Option(metavar="K", help="Folds of groups; one training for each.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(metavar="R", help="Cross-validations, each of another seed.")
    ] = None,
    ablate: Annotated[
        bool | None,
        typer.Option("--ablate", help="Also train each fold without metadata, and without images."),
    ] = None,
) -> None:
    """Measure a training: train without each fold of groups, and judge the fold.

    Example: cryoray cross-validate sets/past --folds 5 --out folds
    """
    settings = common.settings(
        ctx, cross_validate={"folds": folds, "repeats": repeats, "ablate": ablate}
    )
    run(sets, out, settings)


def run(sets: Sequence[Path], out: Path, settings: Settings) -> None:
    """Do it, and show what came out."""
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.verbs.cross_validate import cross_validate as verb

    with terminal.Show() as bars:
        metrics = verb(sets, out, settings, on_progress=bars.progress, on_event=bars.event)
    show("Cross-validated", metrics, out, sum(PreparedSet.open(one).n for one in sets))


def show(title: str, metrics: Mapping[str, Any], out: Path, rows: int) -> None:
    """The numbers of an evaluation or a cross-validation, and what became of the rows."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    if "ablation" in metrics:
        terminal.out.print(_ablation(metrics["ablation"]))
    fates = {"judged": metrics["n"], "left out": metrics["left_out"]}
    terminal.finish(title, {**numbers, "folder": out}, terminal.balance(rows, fates))


def _ablation(ablation: Mapping[str, Any]) -> Table:
    """With what it was trained or judged, and what each column is worth."""
    from rich.table import Table

    keys = ("accuracy", "false_negative_rate", "auroc")
    made = Table("", *keys, title="What image and metadata are worth", title_justify="left")
    names = {"both": "image and metadata", "image": "image only", "metadata": "metadata only"}
    for how, word in (("retrained", "trained with"), ("hidden", "given")):
        for name, numbers in ablation.get(how, {}).items():
            made.add_row(f"{word} {names[name]}", *(terminal.text(numbers[key]) for key in keys))
    columns = ablation["permutation"]["columns"]
    for name in sorted(columns, key=lambda name: -columns[name]["auroc"])[:12]:
        lost = columns[name]
        made.add_row(
            f"shuffled {name}: lost", f"{lost['accuracy']:.4f}", "", f"{lost['auroc']:.4f}"
        )
    return made
