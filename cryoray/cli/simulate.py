"""``cryoray simulate``: collections of particles with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryoray import terminal
from cryoray.cli import common


def simulate(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write the collections into.")
    ],
    projects: Annotated[
        int | None, typer.Option(help="Number of collections, each of another protein.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Images in each collection.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same images.")] = None,
    micrographs: Annotated[
        bool | None, typer.Option("--micrographs", help="Simulate whole micrographs and pick them.")
    ] = None,
) -> None:
    """Simulate collections of particles and junk, with a person's selection and the truth.

    Example: cryoray simulate past --projects 3 --images 1000
    """
    chosen = {"projects": projects, "images": images, "seed": seed, "micrographs": micrographs}
    settings = common.settings(ctx, simulate=chosen)
    from cryoray import simulation
    from cryoray.records import RowCounts

    with terminal.Show() as show:
        simulation.simulate(out, settings, on_progress=show.progress, on_event=show.event)
    made = settings.simulate.projects * settings.simulate.images
    terminal.finish(
        "Simulated",
        {"collections": settings.simulate.projects, "images": made, "folder": out},
        RowCounts(made, made, 0),
    )
