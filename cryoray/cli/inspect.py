"""``cryoray inspect``: what is in a source or a prepared set, and how its images look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from cryoray import terminal
from cryoray.cli import common
from cryoray.formats.names import SET

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cryoray.records import Kind

#: Images side by side on a contact sheet.
_COLUMNS = 16
#: Bars of a histogram, from empty to full, and the percentiles they reach to.
_BARS, _REACH = " ▁▂▃▄▅▆▇█", (0.5, 99.5)
#: Fewest and most bars of a histogram; between them as many as the terminal has room for.
_FEWEST, _MOST = 6, 24
_GAP = 2


def inspect(
    ctx: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="SOURCE|SET", help="A source, or a prepared set.")
    ],
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Write a contact sheet of kept, discarded and unlabelled images.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of each label on the sheet.")] = 96,
    kind: Annotated[
        Literal["particle", "class2d"] | None, typer.Option(help="What a row of a source is.")
    ] = None,
) -> None:
    """Show what a source or a prepared set holds: counts, box, pixel size, labels, metadata.

    Example: cryoray inspect Extract/job012 --sheet sheet.png
    """
    if (path / SET).is_file():
        _inspect_set(path, sheet, images)
    else:
        _inspect_sources(ctx, path, kind, sheet, images)


def _inspect_set(path: Path, sheet: Path | None, images: int) -> None:
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.preparation.reader import by_reason
    from cryoray.records import RowCounts

    prepared = PreparedSet.open(path)
    labels = prepared.labels
    _show_features(prepared.features, prepared.feature_matrix(prepared.features), labels)
    if sheet is not None:
        parts = {title: prepared.images(rows) for title, rows in _samples(labels, images).items()}
        _write_sheet(sheet, parts)
    counts = prepared.counts
    reasons = by_reason(prepared.quarantine["reason"].to_pylist())
    size = sum((path / file["name"]).stat().st_size for p in prepared.parts for file in p["files"])
    _print_path(str(path))
    terminal.finish(
        "Prepared set",
        {
            "kind": prepared.kind,
            "images": prepared.n,
            **_counts(labels),
            "parts": len(prepared.parts),
            "projects": sorted(set(prepared.groups("project"))),
            "micrographs": len(set(prepared.groups("micrograph"))),
            "pixel size, Å": _spread(prepared.table["pixel_size"].to_numpy()),
            "box, px": prepared.settings.box,
            "size, MB": size / 1e6,
            "digest": prepared.digest,
            **{f"quarantined: {why}": count for why, count in list(reasons.items())[:5]},
        },
        RowCounts(counts["rows"], counts["images"], counts["quarantined"]),
    )


def _inspect_sources(
    ctx: typer.Context, path: Path, kind: Kind | None, sheet: Path | None, images: int
) -> None:
    import numpy as np

    from cryoray.errors import printable
    from cryoray.formats.relion import complaint
    from cryoray.formats.selection import find_selection, read_selection
    from cryoray.formats.source import find_sources, open_source
    from cryoray.preparation.described import describe
    from cryoray.preparation.features import source_features
    from cryoray.preparation.look import look_at
    from cryoray.preparation.plan import plan
    from cryoray.preparation.reader import by_reason
    from cryoray.records import RowCounts

    chosen = common.settings(ctx, ingest={"kind": kind}).ingest
    for found in find_sources(path, chosen.kind):
        described = describe(open_source(found, chosen.kind), by_frame=True)
        source = described.source
        selection = find_selection(found)
        labels = (
            np.full(len(source), -1) if selection is None else read_selection(selection, source)
        )
        planned = plan(
            source,
            chosen.preparation,
            chosen.range_mib,
            invert=described.is_dark(chosen.preparation),
        )
        # Of all rows, whether or not their stacks are there: the source has them.
        values = source_features(
            source,
            planned.features,
            diameter=chosen.preparation.diameter,
            invert=planned.invert,
        )
        _show_features(planned.features, values, labels)
        if sheet is not None:
            parts = {
                title: look_at(source, rows, chosen.preparation).images
                for title, rows in _samples(labels, images).items()
            }
            _write_sheet(sheet, parts)
            sheet = None  # of the first source alone
        bad = len(planned.quarantined)
        reasons = by_reason(reason for _, reason in planned.quarantined)
        stacks = {part.stack.path: part.stack for part in planned.ranges}.values()
        named = {name for name in source.micrograph if name}
        _print_path(str(found))
        terminal.finish(
            "Source",
            {
                "project": source.name,
                "kind": source.kind,
                "images": len(source),
                **({"described by": described.used.star.path} if described.used else {}),
                **(_counts(labels) if selection else {}),
                "selection": selection or "none beside it",
                "stacks": len(source.stacks),
                **(
                    {
                        "box, px": sorted({f"{stack.width} × {stack.height}" for stack in stacks}),
                        "pixels": sorted({np.dtype(stack.dtype).name for stack in stacks}),
                        "size, MB": planned.bytes / 1e6,
                        "protein in it": "dark" if planned.invert else "bright",
                    }
                    if stacks
                    else {"images": f"{len(source):,}, none of which could be read"}
                ),
                "micrographs": len(named) if named else "not named",
                "pixel size, Å": _spread(planned.pixel_size),
                **({"RELION would report": words} if (words := complaint(source)) else {}),
                **{f"unusable: {why}": count for why, count in list(reasons.items())[:5]},
            },
            RowCounts(len(source), len(source) - bad, bad),
        )
        for row, why in _firsts(planned.quarantined):
            at = int(source.stack[row])
            where = source.stacks[at] if at >= 0 else source.images[row]
            _print_path(f"{why}, the first: {printable(where)}")


def _counts(labels: np.ndarray) -> dict[str, int]:
    return {
        "kept": int((labels == 1).sum()),
        "discarded": int((labels == 0).sum()),
        "without label": int((labels < 0).sum()),
    }


def _spread(values: np.ndarray) -> str:
    """The smallest and largest known value, and how many are unknown."""
    import numpy as np

    known = values[np.isfinite(values)]
    if not len(known):
        return "unknown"
    low, high = terminal.text(float(known.min())), terminal.text(float(known.max()))
    missing = f", {len(values) - len(known):,} unknown" if len(known) < len(values) else ""
    return (low if low == high else f"{low} to {high}") + missing


def _firsts(quarantined: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The first row of each sort of reason, and the sort; at most five."""
    from cryoray.preparation.reader import by_reason

    found: dict[str, int] = {}
    for row, reason in sorted(quarantined):
        (why,) = by_reason([reason])
        found.setdefault(why, row)
    return [(row, why) for why, row in found.items()][:5]


def _print_path(line: str) -> None:
    """Print a line with a path in it, which no terminal's width breaks or cuts."""
    terminal.out.print(line, markup=False, soft_wrap=True)


def _show_features(names: tuple[str, ...], values: np.ndarray, labels: np.ndarray) -> None:
    """Which metadata there are, and how they are spread among kept and discarded images.

    Values are shown in the field's units, as the source has them.

    Args:
        names: of the columns of ``values``.
        values: float32 [n, F] as the networks have them: transformed, not standardised, NaN where missing.
        labels: int8 [n]: 1 keep, 0 discard, -1 no label.
    """
    import numpy as np

    from cryoray.preparation.features import FEATURES

    features = {feature.name: feature for feature in FEATURES}
    groups = {"kept": labels == 1, "discarded": labels == 0}
    if not all(some.any() for some in groups.values()):
        groups = {"images": np.ones(len(labels), bool)}
    rows: list[tuple[str, ...]] = []
    columns, missing, ranked = [], [], 0
    for name, column in zip(names, values.T, strict=True):
        known = np.isfinite(column)
        if not known.any():
            missing.append(name)
        elif name.endswith(("_rank", "_z")):  # the same, relative to the job
            ranked += 1
        else:
            own = features[name].in_units(column)
            low, high = (float(end) for end in np.percentile(own[known], _REACH))
            reach = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
            rows.append((name, f"{known.mean():.0%}", reach, features[name].unit))
            columns.append((own, known, low, high))
    if rows:
        heads = ("metadata", "known", "values", "unit")
        taken = sum(max(map(len, cells)) + _GAP for cells in zip(heads, *rows, strict=True))
        room = terminal.out.width - taken
        bins = min(_MOST, max(_FEWEST, (room - _GAP * (len(groups) - 1)) // len(groups)))
        made = Table(*heads, *groups, box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
        for place in made.columns:
            place.no_wrap = True
        for cells, (own, known, low, high) in zip(rows, columns, strict=True):
            bars = [_histogram(own[known & some], low, high, bins) for some in groups.values()]
            made.add_row(*cells, *bars)
        terminal.out.print(made)
        if any(unit == "grey" for _, _, _, unit in rows):
            terminal.out.print("grey: in standard deviations of the job's class averages")
        if ranked:
            terminal.out.print(f"and {ranked} of the same, as ranks and z-scores in their job")
    if missing:
        terminal.out.print(f"missing: {', '.join(missing)}")
    terminal.out.print()


def _histogram(values: np.ndarray, low: float, high: float, bins: int) -> str:
    """Bars as high as values are many, from ``low`` to ``high``; what lies beyond is in the last."""
    import numpy as np

    if low == high:
        return ""
    counts, _ = np.histogram(values.clip(low, high), bins, (low, high))
    steps = np.ceil(counts / max(counts.max(), 1) * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[step] for step in steps)


def _samples(labels: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Rows spread evenly over the kept, the discarded and the unlabelled ones, under their titles."""
    import numpy as np

    samples = {}
    for title, label in (("kept", 1), ("discarded", 0), ("without label", -1)):
        rows = np.flatnonzero(labels == label)
        if len(rows):
            some = rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]
            samples[f"{title}: {len(some):,} of {len(rows):,}"] = some
    return samples


def _write_sheet(path: Path, parts: dict[str, np.ndarray]) -> None:
    """Write the images [n, box, box] of each part below one another, each part under its title."""
    import numpy as np
    from matplotlib.figure import Figure

    from cryoray.imaging.pictures import greys

    parts = {title: images for title, images in parts.items() if len(images)}
    if not parts:
        return
    heights = [-(-len(images) // _COLUMNS) for images in parts.values()]
    figure = Figure(figsize=(_COLUMNS, sum(heights) + 0.4 * len(parts)), layout="constrained")
    places = figure.subplots(len(parts), height_ratios=heights, squeeze=False)[:, 0]
    for place, rows, (title, images) in zip(places, heights, parts.items(), strict=True):
        side = images.shape[-1]
        filled = np.full((rows * _COLUMNS, side, side), 255, np.uint8)
        filled[: len(images)] = greys(images)
        grid = filled.reshape(rows, _COLUMNS, side, side).swapaxes(1, 2).reshape(rows * side, -1)
        place.imshow(grid, cmap="gray", vmin=0, vmax=255)
        place.set_title(title, loc="left")
        place.set_axis_off()
    figure.savefig(path, dpi=72)
    terminal.out.print(f"contact sheet: {path}")
