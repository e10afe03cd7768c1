"""``cryoray ingest``: sources to a prepared set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from cryoray.cli import common

if TYPE_CHECKING:
    from cryoray.settings import Settings


def ingest(
    ctx: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE…",
            help="STAR files, .cs tables, stacks, job folders or folders of those.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="SET", help="Folder of the prepared set.")],
    selection: Annotated[
        Path | None,
        typer.Option(help="Labels: a file or Select job; else the selection beside the source."),
    ] = None,
    kind: Annotated[
        Literal["particle", "class2d"] | None, typer.Option(help="What a row is.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Name of the project; else the source's folder.")
    ] = None,
    box: Annotated[int | None, typer.Option(help="Side of the prepared images, px.")] = None,
    diameter: Annotated[float | None, typer.Option(help="Particle diameter, Å.")] = None,
    contrast: Annotated[
        Literal["auto", "bright", "dark"] | None, typer.Option(help="Protein in the source.")
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME…|none", help="Metadata used; repeated or comma separated."),
    ] = None,
    dtype: Annotated[
        Literal["float16", "float32"] | None,
        typer.Option(help="Pixels on disk; float32 for RELION 3."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be read, and read nothing.")
    ] = False,
) -> None:
    """Prepare images and metadata of past projects, with their selections, for training."""
    settings = common.settings(
        ctx,
        ingest={
            "kind": kind,
            "group": group,
            "selection": selection,
            "dtype": dtype,
            "preparation": {
                "box": box,
                "diameter": diameter,
                "contrast": contrast,
                "features": common.names(features),
            },
        },
    )
    if plan:
        _show_plan(sources, settings)
        return
    from cryoray import ingest as verb
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.records import Books

    with common.Show() as show:
        made = verb.ingest(sources, out, settings, on_progress=show.progress, on_event=show.event)
    prepared = PreparedSet.open(made)
    counts = prepared.counts
    common.finish(
        "Prepared",
        {
            "images": prepared.n,
            "kept": counts["keep"],
            "discarded": counts["discard"],
            "projects": [part["project"] for part in prepared.parts],
            "folder": made,
        },
        Books(counts["rows"], counts["images"], counts["quarantined"]),
    )


def _show_plan(paths: list[Path], settings: Settings) -> None:
    """One row for each source: what would be read, and what would be quarantined and why."""
    from cryoray.ingest import plan_sources
    from cryoray.records import Books

    shown = Table(
        *("source", "rows", "kept", "discarded", "stacks", "tasks", "MiB", "quarantined"),
        title="Plan",
        title_justify="left",
    )
    rows = bad = 0
    for part in plan_sources(paths, settings.ingest):
        planned, lost = part.plan, Counter(reason for _, reason in part.plan.quarantined)
        counts = (
            len(planned.source),
            (part.labels == 1).sum(),
            (part.labels == 0).sum(),
            len(planned.source.stacks),
            len(planned.ranges),
            sum(each.bytes for each in planned.ranges) >> 20,
        )
        reasons = "\n".join(f"{count:,}: {reason}" for reason, count in lost.most_common(3))
        shown.add_row(part.project, *(f"{count:,}" for count in counts), escape(reasons) or "0")
        rows, bad = rows + len(planned.source), bad + len(planned.quarantined)
    common.out.print(shown)
    common.out.print(str(Books(rows, rows - bad, bad)))
