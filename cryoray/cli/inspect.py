"""``cryoray inspect``: what is in a source or a prepared set, and how its images look."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from cryoray.cli import common

if TYPE_CHECKING:
    import numpy as np

    from cryoray.formats.source import Source
    from cryoray.records import Kind
    from cryoray.settings import PreparationSettings

#: Images side by side on a contact sheet, and the white pixels between kept, discarded, unlabelled.
_COLUMNS = 16
_BAND = 6


def inspect(
    ctx: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="SOURCE|SET", help="A source, or a prepared set.")
    ],
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Write a contact sheet: kept, discarded, unlabelled."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of each on the sheet.")] = 96,
    kind: Annotated[
        Literal["particle", "class2d"] | None, typer.Option(help="What a row of a source is.")
    ] = None,
) -> None:
    """Show counts, labels, pixel sizes and metadata of a source or a prepared set."""
    if (path / "set.json").is_file():
        _inspect_set(path, sheet, images)
    else:
        _inspect_sources(ctx, path, kind, sheet, images)


def _inspect_set(path: Path, sheet: Path | None, images: int) -> None:
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.records import Books

    prepared = PreparedSet.open(path)
    common.out.print(_features(prepared.features, prepared.feature_matrix(prepared.features)))
    if sheet is not None:
        _write_sheet(sheet, [prepared.images(rows) for rows in _samples(prepared.labels, images)])
    counts = prepared.counts
    common.finish(
        f"Prepared set {path}",
        {
            "kind": prepared.kind,
            "images": prepared.n,
            **_counts(prepared.labels),
            "projects": sorted(set(prepared.groups("project"))),
            "micrographs": len(set(prepared.groups("micrograph"))),
            "pixel size, Å": _spread(prepared.table["pixel_size"].to_numpy()),
            "box, px": prepared.settings.box,
            "digest": prepared.digest,
        },
        Books(counts["rows"], counts["images"], counts["quarantined"]),
    )


def _inspect_sources(
    ctx: typer.Context, path: Path, kind: Kind | None, sheet: Path | None, images: int
) -> None:
    import numpy as np

    from cryoray.formats.relion import complaint
    from cryoray.formats.selection import find_selection, read_selection
    from cryoray.formats.source import find_sources, open_source
    from cryoray.preparation.plan import plan
    from cryoray.records import Books

    chosen = common.settings(ctx, ingest={"kind": kind}).ingest
    for found in find_sources(path, chosen.kind):
        source = open_source(found, chosen.kind)
        selection = find_selection(found)
        labels = (
            np.full(len(source), -1) if selection is None else read_selection(selection, source)
        )
        planned = plan(source, chosen.preparation, chosen.range_mib)
        features = [
            np.empty((0, len(planned.features))),
            *(part.features for part in planned.ranges),
        ]
        common.out.print(_features(planned.features, np.concatenate(features)))
        if sheet is not None:
            parts = [
                look_at(source, rows, chosen.preparation)[1] for rows in _samples(labels, images)
            ]
            _write_sheet(sheet, parts)
            sheet = None  # of the first source alone
        bad = len(planned.quarantined)
        reasons = Counter(reason for _, reason in planned.quarantined).most_common(5)
        common.finish(
            f"Source {found}",
            {
                "project": source.name,
                "kind": source.kind,
                "images": len(source),
                **_counts(labels),
                "selection": selection,
                "stacks": len(source.stacks),
                "micrographs": len({name for name in source.micrograph if name}),
                "pixel size, Å": _spread(planned.pixel_size),
                "protein in it": "dark" if planned.invert else "bright",
                **({"RELION would say": said} if (said := complaint(source)) else {}),
                **{f"unusable: {reason}": count for reason, count in reasons},
            },
            Books(len(source), len(source) - bad, bad),
        )


def look_at(
    source: Source, rows: np.ndarray, settings: PreparationSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of a source as the network would see them.

    Args:
        source: where they are.
        rows: int64, 0-based.
        settings: how to prepare them.

    Returns:
        the rows that could be read, int64 [n] in another order, and float32 [n, box, box].
    """
    import numpy as np

    from cryoray.preparation.plan import plan
    from cryoray.preparation.prepare import prepare_range

    seen = [prepare_range(part, settings) for part in plan(source, settings, 64, rows=rows).ranges]
    if not seen:
        return np.empty(0, np.int64), np.empty((0, settings.box, settings.box), np.float32)
    return np.concatenate([one.rows for one in seen]), np.concatenate([one.images for one in seen])


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
    low, high = common.text(float(known.min())), common.text(float(known.max()))
    missing = f", {len(values) - len(known):,} unknown" if len(known) < len(values) else ""
    return (low if low == high else f"{low} to {high}") + missing


def _features(names: tuple[str, ...], values: np.ndarray) -> Table:
    """Which metadata there are (as the network sees them: transformed, not yet standardised)."""
    import numpy as np

    made = Table("feature", "present", "lowest", "highest", title="Metadata", title_justify="left")
    for name, column in zip(names, values.T, strict=True):
        known = column[np.isfinite(column)]
        share = f"{len(known) / max(len(column), 1):.0%}"
        ends = (known.min(), known.max()) if len(known) else (np.nan, np.nan)
        made.add_row(name, share, *(common.text(float(end)) for end in ends))
    return made


def _samples(labels: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows spread evenly over the kept, the discarded and the unlabelled ones."""
    import numpy as np

    found = (np.flatnonzero(labels == label) for label in (1, 0, -1))
    return [
        rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]
        for rows in found
        if len(rows)
    ]


def _write_sheet(path: Path, parts: list[np.ndarray]) -> None:
    """Write the images [n, box, box] of each part below one another, white between parts."""
    import numpy as np
    from matplotlib.image import imsave

    bands: list[np.ndarray] = []
    for images in (part for part in parts if len(part)):
        side = images.shape[-1]
        rows = -(-len(images) // _COLUMNS)
        filled = np.zeros((rows * _COLUMNS, side, side), np.float32)
        low, high = np.percentile(images, (0.5, 99.5), axis=(1, 2), keepdims=True)
        filled[: len(images)] = np.clip((images - low) / np.maximum(high - low, 1e-6), 0, 1)
        grid = filled.reshape(rows, _COLUMNS, side, side).swapaxes(1, 2).reshape(rows * side, -1)
        bands += [grid, np.ones((_BAND, grid.shape[1]), np.float32)]
    if bands:
        imsave(path, np.concatenate(bands[:-1]), cmap="gray", vmin=0, vmax=1)
        common.out.print(f"contact sheet: {path}")
