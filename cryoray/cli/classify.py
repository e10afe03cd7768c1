"""``cryoray classify``: a source to verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cryoray.cli import common


def classify(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="A STAR file, a stack, a job folder or a folder of those.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the verdicts.")],
    ensemble: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help="Folder, or name in the registry.")
    ] = None,
    kind: Annotated[
        Literal["particle", "class2d"] | None,
        typer.Option(help="What a row is; else the ensemble's kind."),
    ] = None,
) -> None:
    """Judge every image of a source: keep, discard or review."""
    settings = common.settings(ctx, classify={"ensemble": ensemble, "kind": kind})
    from cryoray import inference

    with common.Show() as show:
        made = inference.classify(
            source, out, settings, on_progress=show.progress, on_event=show.event
        )
    print(made)
