"""Prove what choices did: to half-maps, to the map, to 2D images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cryoray.cli import common

Out = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder of the numbers, the figures and the report.")
]


def fsc(
    ctx: typer.Context,
    half1: Annotated[Path, typer.Argument(metavar="HALF1", help="Unfiltered half-map.")],
    half2: Annotated[Path, typer.Argument(metavar="HALF2", help="The other half-map.")],
    out: Out,
    mask: Annotated[
        str | None, typer.Option(metavar="MASK|auto", help="Soft mask, or make one.")
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(
            metavar="CURVE", help="postprocess.star, EMDB's _fsc.xml or a table, to compare with."
        ),
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(metavar="Å", help="Of the maps, over their header's.")
    ] = None,
) -> None:
    """FSC of two half-maps: unmasked, masked, corrected, by direction."""
    settings = common.settings(ctx, proof={"pixel_size": pixel_size})
    from cryoray.inference.validate import validate_fsc

    with common.Show() as show:
        numbers = validate_fsc(
            half1,
            half2,
            out,
            settings,
            mask=mask,
            published=published,
            on_progress=show.progress,
            on_event=show.event,
        )
    common.out.print(common.table("Validated", {**_resolutions(numbers), "folder": out}))
    for warning in numbers["warnings"]:
        common.err.print(f"[yellow]{warning}.[/]", soft_wrap=True)


def _resolutions(numbers: dict[str, Any]) -> dict[str, object]:
    """Rows for the terminal."""
    rows: dict[str, object] = {}
    for threshold, found in numbers["resolution"].items():
        rows[f"resolution at {threshold}, Å"] = found["last_shell"]
        rows[f"resolution at {threshold}, interpolated, Å"] = found["interpolated"]
    for threshold, difference in numbers.get("published", {}).get("difference", {}).items():
        rows[f"less published at {threshold}, Å"] = difference
    return rows
