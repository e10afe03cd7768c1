"""Sources to a prepared set: planned here, read and prepared by workers, merged here."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from cryoray.engine import local
from cryoray.engine.meter import Meter
from cryoray.errors import FormatError, InputError, SettingsError
from cryoray.formats.files import check_same
from cryoray.formats.names import SET
from cryoray.formats.selection import find_selection, read_reasons, read_selection
from cryoray.formats.source import Source, find_sources, open_source
from cryoray.preparation.described import describe
from cryoray.preparation.plan import plan
from cryoray.preparation.prepare import prepare_range
from cryoray.preparation.prepared import PreparedSet
from cryoray.preparation.reader import by_reason
from cryoray.preparation.shards import Part, Shard, Work, divide, prepare_shard, shards_folder
from cryoray.preparation.writing import check_out, used_settings, write_set
from cryoray.records import Event, OnEvent, OnProgress, ignore
from cryoray.settings import IngestSettings, Settings

#: Raw bytes read and prepared to learn how long all of them will take.
_SAMPLE_BYTES = 64 << 20


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

    What was prepared is kept in ``OUT.shards`` until the set is complete: the same call after one that
    was interrupted goes on where that stopped. With ``settings.ingest.add`` the set in ``out`` is kept
    as it is, and images that it does not have yet become new parts.

    A local source of up to ``settings.ingest.local_max_mib`` is prepared in threads of this process,
    which are done sooner than Ray on one machine; the set is the same to the last bit.

    Args:
        sources: STAR files, stacks, or folders of those.
        out: the set's folder. An older set there is replaced when the new one is complete.
        settings: ``runtime`` and ``ingest`` are used.
        on_progress: after each task, and while the set is put together.
        on_event: ``ingest.planned`` for each source, ``ingest.resumed``, ``ingest.quarantined`` with
            counts by reason, ``ingest.done`` with the row counts at the end.

    Returns:
        ``out``, absolute.

    Raises:
        InputError: nothing can be read, or ``out`` is something else than a prepared set, or one of other
            sources.
        SelectionError: the labels make no sense.
        QuarantineError: too many rows could not be read; their list is written.
        SettingsError: no Ray, no GPU, no such feature, or the set in ``out`` was made otherwise.
    """
    out, chosen = Path(out).absolute(), settings.ingest
    check_out(out)
    base = _base(out, chosen) if chosen.add else None
    parts = plan_sources(sources, chosen, base=base, on_event=on_event)
    if base is None and (out / SET).is_file():
        _check_same(out, parts, chosen)
    # What Arrow took to read the tables, and keeps for later: 43 MiB for 65,536 rows.
    pa.default_memory_pool().release_unused()
    if not parts:  # what an earlier call left behind when it was killed at its very end
        shutil.rmtree(shards_folder(out), ignore_errors=True)
        return out
    work = divide(parts, out, chosen)
    shards = [shard for each in work if (shard := each.done) is not None]
    made = {shard.path for shard in shards}
    todo = [each for each in work if str(each.path) not in made]
    if shards:
        on_event(Event("ingest.resumed", {"tasks": len(work), "done": len(shards)}))
    meter = Meter(parts, work, shards, out.name, on_progress)
    for shard in _prepared(todo, settings, out.name):
        shards.append(shard)
        meter.add(shard)
    reasons = [why for part in parts for _, why in part.plan.quarantined]
    reasons += [why for shard in shards for why in shard.reasons.values()]
    if reasons:
        on_event(Event("ingest.quarantined", {"rows": len(reasons), **by_reason(reasons)}))
    row_counts = write_set(out, parts, shards, chosen, base=base, on_progress=on_progress)
    result = PreparedSet.open(out)
    on_event(
        Event(
            "ingest.done",
            {
                "out": str(out),
                "digest": result.digest,
                "row_counts": str(row_counts),
                **asdict(row_counts),
                **{name: result.counts[name] for name in ("keep", "discard", "unlabelled")},
            },
        )
    )
    return out


def _check_same(out: Path, parts: Sequence[Part], chosen: IngestSettings) -> None:
    """Refuse to lose a set of other sources or of another kind; one that is damaged is no loss."""
    try:
        there = PreparedSet.open(out)
    except FormatError:
        return
    check_same(
        out,
        "prepared set",
        {"source": [part["source"] for part in there.parts], "kind": [there.kind]},
        {"source": [str(part.plan.source.path) for part in parts], "kind": [chosen.kind]},
        replace=chosen.replace,
        remedy="choose another folder, add --add to keep what it has, or --replace to lose it",
    )


def plan_sources(
    sources: Sequence[Path],
    settings: IngestSettings,
    *,
    base: PreparedSet | None = None,
    on_event: OnEvent = ignore,
) -> list[Part]:
    """What would be ingested: every source found, its labels and its plan.

    Args:
        sources: STAR files, stacks, or folders of those.
        settings: of the ingestion.
        base: a set; images that it has from the same source are left out, and a source without any
            others too.
        on_event: ``ingest.planned`` for each source.

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
    described = [describe(open_source(path, settings.kind), by_frame=True) for path in paths]
    opened = [each.source for each in described]
    parts = []
    for each, project in zip(described, _projects(opened, settings), strict=True):
        source = each.source
        rows = None if base is None else _new_rows(source, base)
        known = 0 if rows is None else len(source) - len(rows)
        event = {"source": str(source.path), "project": project, "rows": len(source) - known}
        if known:
            event["already there"] = known
        if each.used is not None:
            event["described by"] = str(each.used.star.path)
        if rows is not None and not len(rows):
            on_event(Event("ingest.planned", event))
            continue
        selection = settings.selection or find_selection(source.path)
        labels, reasons = np.full(len(source), -1, np.int8), None
        if selection is not None:
            labels = read_selection(selection, source)
            reasons = read_reasons(selection, source)
        planned = plan(
            source,
            settings.preparation,
            settings.range_mib,
            rows=rows,
            invert=each.is_dark(settings.preparation),
        )
        parts.append(Part(planned, project, labels, selection, reasons))
        on_event(
            Event(
                "ingest.planned",
                {
                    **event,
                    "stacks": len({part.stack.path for part in planned.ranges}),
                    "bytes": planned.bytes,
                    "quarantined": len(planned.quarantined),
                    "contrast": "dark" if planned.invert else "bright",
                    "selection": selection and str(selection),
                    "keep": int(np.count_nonzero(labels[planned.wanted] == 1)),
                    "discard": int(np.count_nonzero(labels[planned.wanted] == 0)),
                },
            )
        )
    return parts


@dataclass(frozen=True, slots=True)
class Expected:
    """What an ingestion will take.

    Attributes:
        files: stacks to read.
        rows: of the sources.
        bytes: raw ones to read.
        set_bytes: of the set's images.
        seconds: of reading and preparing; None where nothing can be read.
        how: the measurement behind ``seconds``, in words.
    """

    files: int
    rows: int
    bytes: int
    set_bytes: int
    seconds: float | None
    how: str


def expected(parts: Sequence[Part], settings: IngestSettings) -> Expected:
    """Size and time of what was planned; the time from a few images, read and prepared now."""
    ranges = [rows for part in parts for rows in part.plan.ranges]
    raw = sum(rows.bytes for rows in ranges)
    pixel = np.dtype(settings.dtype).itemsize
    images = sum(len(rows.rows) for rows in ranges)
    seconds, how = None, "nothing can be read"
    if ranges:
        some = ranges[len(ranges) // 2]
        some = some[: max(1, _SAMPLE_BYTES // some.stack.image_bytes)]
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            prepare_range(some[:32], settings.preparation)  # what happens once does not count
            began = time.perf_counter()
            prepare_range(some, settings.preparation)
            rate = some.bytes / (time.perf_counter() - began)
        finally:
            torch.set_num_threads(before)
        seconds = raw / rate / local.cores()
        how = (
            f"{some.stack.path.name}: {some.bytes / 1e6:,.0f} MB read and prepared by one core of this "
            f"machine at {rate / 1e9:.2f} GB/s, taken {local.cores()} times"
        )
    return Expected(
        files=len({rows.stack.path for rows in ranges}),
        rows=sum(len(part.plan.wanted) for part in parts),
        bytes=raw,
        set_bytes=images * settings.preparation.box**2 * pixel,
        seconds=seconds,
        how=how,
    )


def _base(out: Path, settings: IngestSettings) -> PreparedSet:
    """The set that is added to.

    Raises:
        InputError: there is none.
        SettingsError: it was made with other settings.
    """
    base = PreparedSet.open(out)
    wanted, there = used_settings(settings), base.used
    if base.kind != settings.kind:
        raise SettingsError(
            f"holds images of kind {base.kind}", file=out, remedy=f"give --kind {base.kind}"
        )
    flat = [{**used["preparation"], "dtype": used["dtype"]} for used in (wanted, there)]
    for name, value in flat[1].items():
        if flat[0][name] != value:
            raise SettingsError(
                f"was made with {name} {value}, and {flat[0][name]} is requested",
                file=out,
                remedy="leave that option out, or make another set",
            )
    return base


def _new_rows(source: Source, base: PreparedSet) -> np.ndarray:
    """int64 [n]: the rows of a source whose images a set does not have from it yet."""
    known = base.images_of(source.path)
    return np.array([i for i, name in enumerate(source.images) if name not in known], np.int64)


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


def _prepared(work: Sequence[Work], settings: Settings, name: str) -> Iterator[Shard]:
    """Have all work done: the shards as they come, in any order."""
    if not work:
        return
    size = sum(each.bytes for each in work)
    if local.suffices(size, settings.ingest.local_max_mib, settings.runtime):
        yield from _in_threads(work, settings.ingest)
        return
    from cryoray.engine import runtime
    from cryoray.engine.datasource import shards_by_ray

    runtime.connect(settings.runtime)
    yield from shards_by_ray(work, settings.ingest, name)


def _in_threads(work: Sequence[Work], settings: IngestSettings) -> Iterator[Shard]:
    """Each core takes one task after the other."""
    if settings.gpu and not torch.cuda.is_available():
        raise SettingsError("a GPU is requested, and torch finds none", remedy="leave out --gpu")
    device = "cuda" if settings.gpu else "cpu"
    yield from local.in_threads(lambda each: prepare_shard(each, settings, device), work)
