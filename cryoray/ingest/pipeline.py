"""Sources to a prepared set: planned here, read and prepared by Ray's workers, merged here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray.data

from cryoray import runtime
from cryoray.errors import InputError, QuarantineError
from cryoray.formats.selection import find_selection, read_selection
from cryoray.formats.source import Source, find_sources, open_source
from cryoray.ingest.source import RowRangeDatasource, to_rows
from cryoray.preparation.plan import Plan, plan
from cryoray.preparation.prepared import (
    SHARDS,
    Part,
    PreparedSet,
    Shard,
    partial_folder,
    write_set,
    write_shard,
)
from cryoray.records import Event, OnEvent, OnProgress, Progress, RowRange, ignore
from cryoray.settings import IngestSettings, Settings


def ingest(
    sources: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> Path:
    """Prepare all images of some sources, with their labels and features, as a set in ``out``.

    Each source becomes a part of the set and a project (``settings.ingest.group`` names one for all,
    else each has its folder's name). Labels come from ``settings.ingest.selection``, else from the
    selection beside each source, else there are none.

    Args:
        sources: STAR files, stacks, or folders of those.
        out: the set's folder. An older set there is replaced when the new one is complete.
        settings: ``runtime`` and ``ingest`` are used.
        on_progress: after each row range, and while the set is put together.
        on_event: ``ingest.planned`` for each source, ``ingest.done`` with the books at the end.

    Returns:
        ``out``, absolute.

    Raises:
        InputError: nothing can be read, or ``out`` is something else than a prepared set.
        SelectionError: the labels make no sense.
        QuarantineError: too many rows could not be read; their list is written.
        SettingsError: no Ray, or no such feature.
    """
    runtime.connect(settings.runtime)
    out, chosen = Path(out).absolute(), settings.ingest
    planned = plan_sources(sources, chosen, on_event=on_event)
    partial = partial_folder(out)
    try:
        shards = _prepare(planned, partial / SHARDS, out.name, chosen, on_progress)
        parts = [replace(part, shards=made) for part, made in zip(planned, shards, strict=True)]
        books = write_set(out, partial, parts, chosen, on_progress=on_progress)
    except QuarantineError:
        raise  # the list of what was quarantined stays in the folder
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    made = PreparedSet.open(out)
    on_event(
        Event(
            "ingest.done",
            {
                "out": str(out),
                "digest": made.digest,
                "books": str(books),
                **asdict(books),
                **{name: made.counts[name] for name in ("keep", "discard", "unlabelled")},
            },
        )
    )
    return out


def plan_sources(
    sources: Sequence[Path], settings: IngestSettings, *, on_event: OnEvent = ignore
) -> list[Part]:
    """What would be ingested: every source found, its labels and its plan; no shards yet.

    Raises:
        InputError: nothing is there, or something is there twice.
        SelectionError: the labels make no sense.
    """
    paths = [found for source in sources for found in find_sources(Path(source), settings.kind)]
    if not paths:
        raise InputError("no source was given", remedy="name a .star, an .mrcs or a folder")
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise InputError("is given twice", file=path, remedy="name it once")
    opened = [open_source(path, settings.kind) for path in paths]
    parts = []
    for source, project in zip(opened, _projects(opened, settings), strict=True):
        selection = settings.selection or find_selection(source.path)
        labels = np.full(len(source), -1, np.int8)
        if selection is not None:
            labels = read_selection(selection, source)
        planned = plan(source, settings.preparation, settings.range_mib)
        parts.append(Part(planned, project, labels, selection, ()))
        on_event(
            Event(
                "ingest.planned",
                {
                    "source": str(source.path),
                    "project": project,
                    "rows": len(source),
                    "ranges": len(planned.ranges),
                    "quarantined": len(planned.quarantined),
                    "contrast": "dark" if planned.invert else "bright",
                    "selection": selection and str(selection),
                    "keep": int(np.count_nonzero(labels == 1)),
                    "discard": int(np.count_nonzero(labels == 0)),
                },
            )
        )
    return parts


def _projects(sources: Sequence[Source], settings: IngestSettings) -> list[str]:
    """A name for each source: its folder's, its file's too where that is not enough, else its path.

    Two sources of one name would be one group, which is never split.
    """
    if settings.group is not None:
        return [settings.group] * len(sources)
    ways = [
        [source.name for source in sources],
        [f"{source.name}/{source.path.stem}" for source in sources],
        [str(source.path) for source in sources],
    ]
    return [
        next(names[i] for names in ways if names.count(names[i]) == 1 or names is ways[-1])
        for i in range(len(sources))
    ]


def _prepare(
    parts: Sequence[Part],
    folder: Path,
    name: str,
    settings: IngestSettings,
    on_progress: OnProgress,
) -> list[list[Shard]]:
    """Have every range read, prepared and written; what was written, by part."""
    for i in range(len(parts)):
        (folder / f"{i:04d}").mkdir()
    shards: list[list[Shard]] = [[] for _ in parts]
    total = sum(len(part.plan.source) for part in parts)
    done = sum(len(part.plan.quarantined) for part in parts)
    on_progress(Progress("prepare", done, total))
    for part, shard in _shards([part.plan for part in parts], folder, name, settings):
        shards[part].append(shard)
        done += shard.images + shard.quarantined
        on_progress(Progress("prepare", done, total))
    return shards


def _shards(
    plans: Sequence[Plan], folder: Path, name: str, settings: IngestSettings
) -> Iterator[tuple[int, Shard]]:
    """Run one Ray data set over the ranges of all parts: (part, shard) as they are written."""
    starts = np.cumsum([0, *(len(each.source) for each in plans)])[:-1]
    ranges: list[RowRange] = [
        replace(rows, rows=rows.rows + start)
        for each, start in zip(plans, starts.tolist(), strict=True)
        for rows in each.ranges
    ]
    if not ranges:
        return
    datasource = RowRangeDatasource(ranges, settings.preparation)
    dataset = ray.data.read_datasource(datasource, override_num_blocks=len(datasource))
    written = dataset.map_batches(
        _write,
        batch_size=None,
        batch_format="numpy",
        fn_kwargs={"folder": folder, "starts": starts, "dtype": settings.dtype},
    )
    written.set_name(f"ingest {name}")
    for batch in written.iter_batches(batch_size=None, batch_format="numpy"):
        for i, part in enumerate(batch["part"].tolist()):
            yield (
                part,
                Shard(str(batch["path"][i]), int(batch["images"][i]), int(batch["quarantined"][i])),
            )


def _write(
    batch: dict[str, np.ndarray], folder: Path, starts: np.ndarray, dtype: Any
) -> dict[str, np.ndarray]:
    """Write a block where it was made; only the shards' names and sizes travel on."""
    # A block is a range, unless Ray chose to join small ones; then it may even span parts.
    which = np.searchsorted(starts, batch["row"], side="right") - 1
    parts = np.unique(which).tolist()
    shards = []
    for part in parts:
        some = {name: column[which == part] for name, column in batch.items()}
        some["row"] = some["row"] - starts[part]
        shards.append(write_shard(folder / f"{part:04d}", to_rows(some), dtype))
    return {
        "part": np.array(parts),
        "path": np.array([shard.path for shard in shards], object),
        "images": np.array([shard.images for shard in shards]),
        "quarantined": np.array([shard.quarantined for shard in shards]),
    }
