"""``cryoray extract-picks``: picks and micrographs to labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryoray import terminal
from cryoray.cli import common


def extract_picks(
    ctx: typer.Context,
    picks: Annotated[
        Path,
        typer.Argument(metavar="PICKS", help="STAR file of picks: micrographs and coordinates."),
    ],
    micrographs: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the micrographs.")],
    diameter: Annotated[
        float, typer.Option(metavar="Å", help="Diameter of the particle.", min=1.0)
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for images and labels.")],
    box: Annotated[
        int | None,
        typer.Option(metavar="PX", help="Box of the images; by default 1.8 diameters.", min=8),
    ] = None,
    negatives: Annotated[float, typer.Option(help="Negatives for each pick.", min=0.0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the negatives' positions.")] = 0,
    replace: common.Replace = None,
) -> None:
    """Extract labelled images from micrographs: particles at picks, negatives away from them.

    Example: cryoray extract-picks picks.star --micrographs Micrographs --diameter 180 --out picked
    """
    from cryoray.preparation import mining

    with terminal.Show() as show:
        made = mining.mine(
            picks,
            micrographs,
            out,
            diameter,
            box=box,
            negatives=negatives,
            seed=seed,
            replace=bool(replace),
            on_progress=show.progress,
        )
    picked = made.positives + made.outside
    terminal.finish(
        "Cut out",
        {
            "micrographs": made.micrographs,
            "particles": made.positives,
            "negatives": made.negatives,
            "folder": out,
        },
        terminal.balance(picked, {"cut out": made.positives, "too near an edge": made.outside}),
    )
