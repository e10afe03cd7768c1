"""``cryoray classify``: a source to verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cryoray import terminal
from cryoray.boosting.promise import aim
from cryoray.cli import common

if TYPE_CHECKING:
    from cryoray.records import Event

_NOT_REASONS = ("rows", "source")
_ROWS = ("rows_in", "rows_out", "quarantined")
_MORE = (*_ROWS, "review_kept")

_JUDGE, _LINE, _FILES = "Which ensemble judges", "How the line is drawn", "What is written"


def classify(
    ctx: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A STAR file, a .cs table, a stack, a job folder or a folder of those.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the verdicts.")],
    ensemble: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Folder, or name in the registry; by default the one promoted or shipped for this kind.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    class_ensemble: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Also judge the job's 2D classes: a particle is kept only if its class is kept.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    kind: Annotated[
        Literal["particle", "class2d", "class3d"] | None,
        typer.Option(
            help="What a row is; by default the ensemble's kind. class3d: maps of a Class3D job.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="expected|each|threshold=X|share=X",
            help=f"How the line is drawn. expected: so that {aim('expected')}; each: so that {aim('each')}; "
            "or a score, or a share of the images to keep. The report says what was measured of it.",
            rich_help_panel=_LINE,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|none",
            help="The project's profile.json, beside earlier verdicts; none: judge without; by default one "
            "is made of the source's own images.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    review: Annotated[
        bool | None,
        typer.Option(
            "--review/--no-review",
            help="Send doubtful images to review, or let the threshold decide.",
            rich_help_panel=_LINE,
        ),
    ] = None,
    score_column: Annotated[
        bool | None,
        typer.Option(
            "--score-column", help="Add rlnCryorayScore to STAR files.", rich_help_panel=_FILES
        ),
    ] = None,
    also_star: Annotated[
        bool | None,
        typer.Option(
            "--also-star",
            help="Also write STAR files for RELION, of a .cs source.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    max_quarantined: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the rows that may be unreadable before the run counts as failed.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    replace: Annotated[
        bool | None,
        typer.Option(
            "--replace",
            help="Replace what DIR holds, also verdicts on another source.",
            rich_help_panel=_FILES,
        ),
    ] = None,
) -> None:
    """Judge every image of a source: keep, discard or review.

    Example: cryoray classify Extract/job020 --out verdicts
    """
    settings = common.settings(
        ctx,
        classify={
            "ensemble": ensemble,
            "class_ensemble": class_ensemble,
            "kind": kind,
            "policy": policy,
            "profile": profile if profile in (None, "none") else str(Path(profile).absolute()),
            "review": review,
            "score_column": score_column,
            "also_star": also_star,
            "max_quarantined": max_quarantined,
            "replace": replace,
        },
    )
    from cryoray.records import VERDICTS, RowCounts
    from cryoray.verbs import classify as verb

    with terminal.Show(_words) as show:
        made = verb.classify(source, out, settings, on_progress=show.progress, on_event=show.event)
    for sentence in _warnings(show.events):
        common.warn(sentence)
    each: list[Mapping[str, Any]] = [
        happened.data for happened in show.events if happened.name == "classify.done"
    ]
    total = {name: sum(one.get(name, 0) for one in each) for name in (*VERDICTS, *_MORE)}
    drawn = {f"{one['policy']}, {one['threshold']:.4g}" for one in each if "policy" in one}
    known = [one for one in each if one.get("prevalence") is not None]
    judged = sum(one["rows_out"] for one in known)
    terminal.finish(
        "Judged",
        {
            "sources": len(each),
            **{verdict: total[verdict] for verdict in VERDICTS},
            **({"of review, kept by the threshold": total["review_kept"]} if drawn else {}),
            **({"policy and threshold": "; ".join(sorted(drawn))} if drawn else {}),
            **({"good images, estimated": _estimated(known, judged)} if judged else {}),
            **({"seconds": f"{each[-1]['seconds']:.1f}"} if each else {}),
            "folder": made,
        },
        RowCounts(*(total[name] for name in _ROWS)),
    )


def _estimated(known: Sequence[Mapping[str, Any]], judged: int) -> str:
    """The share of good images of all sources where it is known, with what chance alone may do to it."""
    low, estimate, high = (
        sum(one["prevalence"][end] * one["rows_out"] for one in known) / judged
        for end in ("low", "estimate", "high")
    )
    return f"{estimate:.1%} ({low:.0%} to {high:.0%} by chance alone)"


def _words(happened: Event) -> str | None:
    """An event as a person reads it; None where the table at the end says the same."""
    data = happened.data
    if happened.name == "companion.used":
        return f"{data['stack']}: described by {data['file']}."
    if happened.name == "companion.unused":
        return f"{data['file']} is not used: {data['because']}."
    if happened.name == "classify.planned":
        return f"{data['source']}: {data['rows']:,} images, protein {data['contrast']}."
    if happened.name == "classify.profiled" and data["familiar"]:
        if "given" in data:
            return f"{data['source']}: judged by the profile {data['given']}."
        return (
            f"{data['source']}: judged within its project, by a profile measured on"
            f" {data['images']:,} images."
        )
    return None


def _warnings(events: Sequence[Event]) -> Iterator[str]:
    """Sentences without a full stop about what a person should know before the verdicts are used."""
    for happened in events:
        data: Mapping[str, Any] = happened.data
        if happened.name == "classify.planned" and "RELION would report" in data:
            yield f"{data['source']}: RELION would report: {data['RELION would report']}"
        if happened.name == "classify.profiled" and not data["familiar"]:
            yield (
                f"{data['source']} is unlike any project that the ensemble was trained on: each image was"
                " judged by itself, which is less certain"
            )
        if happened.name == "classify.profiled" and data.get("unlike"):
            yield (
                f"the profile {data['given']} looks like that of another project than {data['source']}:"
                " leave out --profile if it is, and one is made of the source's own images"
            )
        elif happened.name == "classify.profiled" and data.get("of another project"):
            yield (
                f"the profile {data['given']} was measured on {data['of another project']}: make sure that"
                f" {data['source']} is of the same project"
            )
        if happened.name == "classify.quarantined":
            reasons = [f"{why} ({n:,})" for why, n in data.items() if why not in _NOT_REASONS]
            rows = "1 row" if data["rows"] == 1 else f"{data['rows']:,} rows"
            yield f"{rows} of {data['source']} could not be read: {', '.join(reasons)}"
        if happened.name == "classify.done" and data.get("optics not known"):
            from cryoray.report.verdicts import optics_words

            yield f"Not known: {optics_words(data['optics not known'])}"
