"""Measure what a selection did to half-maps, to the map and to class averages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cryoray import terminal
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
        str | None, typer.Option(metavar="MASK|auto", help="Soft mask, or auto to make one.")
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(
            metavar="CURVE",
            help="Published curve: postprocess.star, EMDB's _fsc.xml or a table, to compare with.",
        ),
    ] = None,
    pixel_size: Annotated[
        float | None,
        typer.Option(metavar="Å", help="Pixel size of the maps, in place of their header's."),
    ] = None,
    replace: common.Replace = None,
) -> None:
    """FSC of two half-maps: unmasked, masked, corrected and by direction.

    Example: cryoray validate fsc half1.mrc half2.mrc --mask auto --out fsc
    """
    settings = common.settings(ctx, validation={"pixel_size": pixel_size, "replace": replace})
    from cryoray.verbs.validate_fsc import validate_fsc

    with terminal.Show() as show:
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
    terminal.out.print(terminal.table("Validated", {**_resolutions(numbers), "folder": out}))
    for warning in numbers["warnings"]:
        terminal.err.print(f"[yellow]{warning}.[/]", soft_wrap=True)


def reconstruct(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Particles of a 3D refinement, with half-sets.")
    ],
    verdicts: Annotated[
        Path, typer.Argument(metavar="VERDICTS", help="Folder of verdicts about these images.")
    ],
    out: Out,
    mask: Annotated[
        str, typer.Option(metavar="MASK|auto|none", help="Soft mask, auto to make one, or none.")
    ] = "auto",
    symmetry: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Cn, Dn, T, O or I, as RELION has it.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(metavar="MAP", help="True map of simulated particles.")
    ] = None,
    replace: common.Replace = None,
) -> None:
    """Reconstruct maps of the kept, of all, of the discarded and of random subsets, and their FSC.

    Example: cryoray validate reconstruct Refine3D/job030 verdicts --out maps
    """
    settings = common.settings(ctx, validation={"symmetry": symmetry, "replace": replace})
    from cryoray.verbs.validate_reconstruct import validate_reconstruct

    with terminal.Show() as show:
        numbers = validate_reconstruct(
            source,
            verdicts,
            out,
            settings,
            mask=None if mask == "none" else mask,
            truth=truth,
            on_progress=show.progress,
            on_event=show.event,
        )
    rows = {
        f"{name}, {found['particles']:,} particles, Å": found["resolution"]["0.143"]["interpolated"]
        for name, found in numbers["sets"].items()
    }
    fates = {"used": numbers["used"], "left out": numbers["left_out"]}
    terminal.finish(
        "Resolution at 0.143", {**rows, "folder": out}, terminal.balance(numbers["rows"], fates)
    )
    if numbers["more_anisotropic"]:
        terminal.err.print(
            "[yellow]The kept make a more anisotropic map than all: views may have been lost.[/]"
        )


def similarity(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Particles of a 2D classification.")
    ],
    verdicts: Annotated[
        Path, typer.Argument(metavar="VERDICTS", help="Folder of verdicts about these images.")
    ],
    out: Out,
    selection: Annotated[
        Path | None, typer.Option(metavar="FILE|DIR", help="What a person selected.")
    ] = None,
    map_: Annotated[
        Path | None,
        typer.Option(
            "--map", metavar="MAP", help="Also compare projections of this map with the averages."
        ),
    ] = None,
    diameter: Annotated[
        float | None, typer.Option(metavar="Å", help="Diameter of the mask round the particle.")
    ] = None,
    replace: common.Replace = None,
) -> None:
    """Compare class averages of what cryoray kept with those of what a person kept.

    Example: cryoray validate similarity Class2D/job010 verdicts --selection Select/job015 --out similarity
    """
    settings = common.settings(ctx, validation={"diameter": diameter, "replace": replace})
    from cryoray.verbs.validate_similarity import validate_similarity

    with terminal.Show() as show:
        numbers = validate_similarity(
            source,
            verdicts,
            out,
            settings,
            selection=selection,
            volume=map_,
            on_progress=show.progress,
            on_event=show.event,
        )
    names = {"ours": "ours", "chance": "as many removed at random", "floor": "two halves"}
    rows = {
        f"{measure.upper()}, {title}, median": numbers[name][measure]["median"]
        for measure in ("mse", "ssim", "frc")
        for name, title in names.items()
    }
    fates = {"used": numbers["used"], "left out": numbers["left_out"]}
    terminal.finish(
        f"Similarity of {numbers['classes'] - numbers['classes_left_out']} classes",
        {**rows, "folder": out},
        terminal.balance(numbers["rows"], fates),
    )


def _resolutions(numbers: dict[str, Any]) -> dict[str, object]:
    """Rows for the terminal."""
    rows: dict[str, object] = {}
    for threshold, found in numbers["resolution"].items():
        rows[f"resolution at {threshold}, Å"] = found["last_shell"]
        rows[f"resolution at {threshold}, interpolated, Å"] = found["interpolated"]
    for threshold, difference in numbers.get("published", {}).get("difference", {}).items():
        rows[f"less published at {threshold}, Å"] = difference
    return rows
