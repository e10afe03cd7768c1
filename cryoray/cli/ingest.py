"""``cryoray ingest``: sources to a prepared set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from cryoray import terminal
from cryoray.cli import common

if TYPE_CHECKING:
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.settings import Settings

_LABELS, _IMAGES = "Labels and groups", "How images are prepared"


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
        typer.Option(
            help="Labels: a file or Select job; by default the selection beside the source.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    kind: Annotated[
        Literal["particle", "class2d"] | None,
        typer.Option(help="What a row is.", rich_help_panel=_LABELS),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Name of the project; by default the source's folder.", rich_help_panel=_LABELS
        ),
    ] = None,
    box: Annotated[
        int | None, typer.Option(help="Box of the prepared images, px.", rich_help_panel=_IMAGES)
    ] = None,
    diameter: Annotated[
        float | None, typer.Option(help="Particle diameter, Å.", rich_help_panel=_IMAGES)
    ] = None,
    contrast: Annotated[
        Literal["auto", "bright", "dark"] | None,
        typer.Option(
            help="Whether protein is bright or dark in the source.", rich_help_panel=_IMAGES
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME…|none",
            help="Metadata to prepare; repeatable or comma separated.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float16", "float32"] | None,
        typer.Option(help="Pixels on disk; float32 for RELION 3.", rich_help_panel=_IMAGES),
    ] = None,
    add: Annotated[
        bool,
        typer.Option("--add", help="Keep the set, and add images that it does not have."),
    ] = False,
    replace: Annotated[
        bool | None,
        typer.Option("--replace", help="Replace what SET holds, also of other sources."),
    ] = None,
    max_quarantined: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the rows that may be unreadable before nothing is written.",
        ),
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Prepare on GPUs.")] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only show what would be read, and how long it would take."),
    ] = False,
) -> None:
    """Prepare images, metadata and selections of past projects for training.

    Example: cryoray ingest Extract/job012 --selection Select/job015 --diameter 180 --out sets/past
    """
    preparation = {
        "box": box,
        "diameter": diameter,
        "contrast": contrast,
        "features": common.names(features),
    }
    if add:
        from cryoray.preparation.prepared import PreparedSet

        there = PreparedSet.open(out)  # what is not said again is as in the set
        kind, dtype = kind or there.kind, dtype or there.used["dtype"]
        given = {name: value for name, value in preparation.items() if value is not None}
        preparation = {**there.used["preparation"], **given}
    settings = common.settings(
        ctx,
        ingest={
            "kind": kind,
            "group": group,
            "selection": selection,
            "dtype": dtype,
            "preparation": preparation,
            "add": add or None,
            "replace": replace,
            "max_quarantined": max_quarantined,
            "gpu": gpu or None,
        },
    )
    if plan:
        _show_plan(sources, out, settings)
        return
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.records import RowCounts
    from cryoray.verbs import ingest as verb

    with terminal.Show() as show:
        made = verb.ingest(sources, out, settings, on_progress=show.progress, on_event=show.event)
    prepared = PreparedSet.open(made)
    counts = prepared.counts
    terminal.finish(
        "Prepared",
        {
            "images": prepared.n,
            "kept": counts["keep"],
            "discarded": counts["discard"],
            "projects": [part["project"] for part in prepared.parts],
            "folder": made,
            **_reasons(prepared),
        },
        RowCounts(counts["rows"], counts["images"], counts["quarantined"]),
    )


def _reasons(prepared: PreparedSet) -> dict[str, int]:
    """Why rows of the set were quarantined: how often each of the most frequent reasons."""
    from cryoray.preparation.reader import by_reason

    counted = by_reason(prepared.quarantine["reason"].to_pylist())
    return {f"quarantined: {why}": count for why, count in list(counted.items())[:5]}


def _show_plan(paths: list[Path], out: Path, settings: Settings) -> None:
    """What would be read of each source, what would be quarantined and why; size and time of all."""
    from cryoray.engine.meter import duration
    from cryoray.preparation.plan import grouped
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.preparation.reader import by_reason
    from cryoray.records import RowCounts
    from cryoray.verbs.ingest import expected, plan_sources

    shown = Table(
        *("source", "rows", "kept", "discarded", "stacks", "tasks", "MiB", "quarantined"),
        title="Plan",
        title_justify="left",
    )
    chosen = settings.ingest
    parts = plan_sources(paths, chosen, base=PreparedSet.open(out) if chosen.add else None)
    rows = bad = 0
    for part in parts:
        planned, lost = part.plan, by_reason(reason for _, reason in part.plan.quarantined)
        labels = part.labels[planned.wanted]
        counts = (
            len(planned.wanted),
            (labels == 1).sum(),
            (labels == 0).sum(),
            len({each.stack.path for each in planned.ranges}),
            len(grouped(planned.ranges, chosen.range_mib)),
            planned.bytes >> 20,
        )
        reasons = "\n".join(f"{count:,}: {reason}" for reason, count in list(lost.items())[:3])
        shown.add_row(part.project, *(f"{count:,}" for count in counts), escape(reasons) or "0")
        rows, bad = rows + len(planned.wanted), bad + len(planned.quarantined)
    terminal.out.print(shown)
    takes = expected(parts, chosen)
    seconds = "–" if takes.seconds is None else duration(takes.seconds)
    terminal.out.print(
        terminal.table(
            "Expected",
            {
                "files": takes.files,
                "rows": takes.rows,
                "to read, GB": takes.bytes / 1e9,
                "images of the set, GB": takes.set_bytes / 1e9,
                "time": f"{seconds} ({takes.how})",
            },
        )
    )
    terminal.out.print(str(RowCounts(rows, rows - bad, bad)))
