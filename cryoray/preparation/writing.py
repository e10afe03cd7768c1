"""A prepared set, written: shards are merged into stacks, tables and ``set.json``.

The bytes of a set depend on sources and settings alone, not on who did what when, nor on how often it was
interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cryoray.errors import InternalError, QuarantineError, printable
from cryoray.formats.files import (
    check_replaceable,
    replacing,
    replacing_folder,
    write_parquet,
)
from cryoray.formats.mrc import stack_header
from cryoray.formats.names import PARTICLES_TABLE, QUARANTINE_TABLE, SET
from cryoray.preparation.features import chosen_features
from cryoray.preparation.plan import Plan
from cryoray.preparation.prepared import FORMAT, PreparedSet
from cryoray.preparation.reader import explained
from cryoray.preparation.shards import ROW, Part, Shard, rows_file, shards_folder
from cryoray.records import (
    QUARANTINE_SCHEMA,
    REASONS,
    OnProgress,
    Progress,
    RowCounts,
    ignore,
    particles_schema,
)
from cryoray.settings import IngestSettings

_HEADER_BYTES = 1024


def check_out(out: Path) -> None:
    """Raise where no set can be written to ``out``.

    Raises:
        InputError: it exists and is neither empty nor a prepared set.
    """
    check_replaceable(out, "prepared set", _is_set)


def _is_set(folder: Path) -> bool:
    return (folder / SET).is_file()


def write_set(
    out: Path,
    parts: Sequence[Part],
    shards: Sequence[Shard],
    settings: IngestSettings,
    *,
    base: PreparedSet | None = None,
    on_progress: OnProgress = ignore,
) -> RowCounts:
    """Merge shards into a set that takes the place of an older one in ``out``; the shards go.

    Args:
        out: the set's folder.
        parts: what is to be in it.
        shards: of all of the parts' work, in any order.
        settings: the preparation's, dtype, images_per_file and max_quarantined are used.
        base: a set whose parts come first, their files as they are.
        on_progress: while images are written.

    Returns:
        The row counts of the parts, without those of ``base``.

    Raises:
        InputError: ``out`` is something else than a prepared set.
        InternalError: rows of a plan are in no shard.
        QuarantineError: too many rows were quarantined, or all of a part; their list is written, and
            the shards stay.
    """
    out = Path(out).absolute()
    collected = [
        _collect(part, [shard for shard in shards if shard.part == number])
        for number, part in enumerate(parts)
    ]
    quarantine = pa.concat_tables(rows.quarantine for rows in collected)
    row_counts = _audit(out, parts, collected, quarantine, settings)
    with replacing_folder(out, "prepared set", _is_set) as partial:
        described: list[dict[str, Any]] = []
        tables: list[pa.Table] = []
        if base is not None:
            _keep(base, partial)
            described += base.parts
            tables.append(base.table)
            quarantine = pa.concat_tables([base.quarantine, quarantine])
        done, files = 0, sum(len(part["files"]) for part in described)
        for part, rows in zip(parts, collected, strict=True):
            stacks = _Stacks(partial, files, part, rows, settings)
            for written in stacks.write():
                done += written
                on_progress(Progress("merge", done, row_counts.rows_out, "images"))
            files += len(stacks.files)
            described.append(_describe(part, rows, stacks))
            tables.append(_particles(part, rows, settings))
        write_parquet(partial / QUARANTINE_TABLE, quarantine)
        # A set that is added to may be older than the column of reasons.
        write_parquet(
            partial / PARTICLES_TABLE, pa.concat_tables(tables, promote_options="default")
        )
        with replacing(partial / SET) as temporary:
            temporary.write_text(json.dumps(_description(parts, described, settings), indent=1))
    shutil.rmtree(shards_folder(out), ignore_errors=True)
    return row_counts


def _audit(
    out: Path,
    parts: Sequence[Part],
    collected: Sequence[_Collected],
    quarantine: pa.Table,
    settings: IngestSettings,
) -> RowCounts:
    """The row counts of some parts, and the list of quarantined rows where there are too many."""
    row_counts = RowCounts(
        rows_in=sum(len(part.plan.wanted) for part in parts),
        rows_out=sum(len(rows.row) for rows in collected),
        quarantined=len(quarantine),
    )
    listed = shards_folder(out) / QUARANTINE_TABLE
    if row_counts.quarantined:
        write_parquet(listed, quarantine)
        worst = max(range(len(parts)), key=lambda number: len(collected[number].quarantine))
        why, remedy = explained(
            collected[worst].quarantine["reason"].to_pylist(), parts[worst].plan.source
        )
        row_counts.check(
            max_quarantined=settings.max_quarantined, listed_in=listed, why=why, remedy=remedy
        )
    for part, rows in zip(parts, collected, strict=True):
        if len(rows.quarantine) and not len(rows.row):
            why, remedy = explained(rows.quarantine["reason"].to_pylist(), part.plan.source)
            raise QuarantineError(
                f"none of its {len(rows.quarantine):,} rows could be read, {why}",
                file=part.plan.source.path,
                remedy=f"{remedy}, or leave it out; all reasons are in {listed}",
            )
    return row_counts


def _keep(base: PreparedSet, partial: Path) -> None:
    """The stacks of a set under the same names in another folder: the same files, where that can be."""
    for part in base.parts:
        for file in part["files"]:
            there, here = base.path / file["name"], partial / file["name"]
            try:
                os.link(there, here)
            except OSError:  # not every file system has links
                shutil.copy2(there, here)


def _describe(part: Part, rows: _Collected, stacks: _Stacks) -> dict[str, Any]:
    """A part as `set.json` has it."""
    digest = hashlib.sha256(rows.written["digest"].tobytes())
    digest.update(part.content(rows.row, rows.features, rows.quarantine))
    return {
        "project": part.project,
        "source": str(part.plan.source.path),
        "selection": part.selection and str(part.selection),
        "digest": digest.hexdigest(),
        "contrast": "dark" if part.plan.invert else "bright",
        "counts": _counts(part, rows),
        "files": stacks.files,
    }


def _description(
    parts: Sequence[Part], described: list[dict[str, Any]], settings: IngestSettings
) -> dict[str, Any]:
    kind = parts[0].plan.source.kind
    used = used_settings(settings)
    counted = [part["counts"] for part in described]
    return {
        "format": FORMAT,
        "kind": kind,
        "digest": _digest([FORMAT, kind, used, [part["digest"] for part in described]]),
        "settings": used,
        "features": [
            {
                "name": feature.name,
                "columns": feature.columns,
                "unit": feature.unit,
                "transform": feature.transform,
            }
            for feature in chosen_features(kind, settings.preparation.features)
        ],
        "counts": {name: sum(counts[name] for counts in counted) for name in counted[0]},
        "parts": described,
    }


def used_settings(settings: IngestSettings) -> dict[str, Any]:
    """The settings that decide what is in a set, as `set.json` has them."""
    return settings.model_dump(mode="json", include={"preparation", "dtype"})


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _counts(part: Part, rows: _Collected) -> dict[str, int]:
    labels = part.labels[rows.row]
    return {
        "rows": len(part.plan.wanted),
        "images": len(rows.row),
        "quarantined": len(rows.quarantine),
        "keep": int(np.count_nonzero(labels == 1)),
        "discard": int(np.count_nonzero(labels == 0)),
        "unlabelled": int(np.count_nonzero(labels < 0)),
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Collected:
    """A part's rows in the order of its source.

    Attributes:
        written: ROW [n], by source row, ascending.
        features: float32 [n, F].
        paths: of the shards.
        quarantine: in QUARANTINE_SCHEMA.
    """

    written: np.ndarray
    features: np.ndarray
    paths: list[Path]
    quarantine: pa.Table

    @property
    def row(self) -> np.ndarray:
        """int64 [n], source rows, ascending."""
        return self.written["row"]


def _collect(part: Part, shards: Sequence[Shard]) -> _Collected:
    plan = part.plan
    shards = sorted(shards, key=lambda shard: shard.path)
    paths = [Path(shard.path) for shard in shards]
    written = np.concatenate([np.empty(0, ROW), *(np.load(rows_file(path)) for path in paths)])
    written = written[np.argsort(written["row"], kind="stable")]
    bad = dict(plan.quarantined)
    for shard in shards:
        bad |= shard.reasons
    everything = np.sort(np.append(written["row"], np.array(sorted(bad), np.int64)))
    if not np.array_equal(everything, plan.wanted):
        raise InternalError(f"rows of {plan.source.path} are in no shard, or in two")
    features = np.full((len(plan.source), len(plan.features)), np.nan, np.float32)
    for rows in plan.ranges:
        features[rows.rows] = rows.features
    return _Collected(written, features[written["row"]], paths, _quarantine_table(plan, bad))


class _Stacks:
    """A part's images on their way from the shards to the set's stacks.

    Every shard is read once, and what lies together in a stack is written together, several shards
    at a time: so it takes no memory worth the name, also where the source is in random order.

    Attributes:
        files: name and number of images of each stack.
    """

    def __init__(
        self, folder: Path, first: int, part: Part, rows: _Collected, settings: IngestSettings
    ) -> None:
        self._rows, self._per_file = rows, settings.images_per_file
        self._dtype = np.dtype(settings.dtype).newbyteorder("<")
        self._box = settings.preparation.box
        pixel_size = part.plan.prepared_pixel_size[rows.row]
        self._paths: list[Path] = []
        self.files: list[dict[str, Any]] = []
        self._headers: list[bytes] = []
        for start in range(0, len(rows.row), self._per_file):
            some = slice(start, start + self._per_file)
            known = pixel_size[some][np.isfinite(pixel_size[some])].astype(np.float64)
            here = rows.written[some]
            self._paths.append(folder / f"images-{first + len(self.files):05d}.mrcs")
            self.files.append({"name": self._paths[-1].name, "images": len(here)})
            self._headers.append(
                stack_header(
                    (len(here), self._box, self._box),
                    self._dtype,
                    float(known.mean()) if len(known) else 0.0,
                    float(here["low"].min()),
                    float(here["high"].max()),
                    float(here["sum"].sum()),
                    float(here["squares"].sum()),
                )
            )

    def write(self) -> Iterator[int]:
        """Write all, and say after each shard how many images it held."""
        with ExitStack() as stay:
            opened = [stay.enter_context(path.open("wb", buffering=0)) for path in self._paths]
            for file, header in zip(opened, self._headers, strict=True):
                file.write(header)
            numbers = [file.fileno() for file in opened]
            pool = stay.enter_context(ThreadPoolExecutor(min(4, os.cpu_count() or 1)))
            yield from pool.map(lambda shard: self._scatter(shard, numbers), self._rows.paths)

    def _scatter(self, shard: Path, files: Sequence[int]) -> int:
        rows = np.load(rows_file(shard))["row"]
        images = np.load(shard.with_suffix(".npy"))
        places = np.searchsorted(self._rows.row, rows)
        order = np.argsort(places, kind="stable")
        places = places[order]
        if (np.diff(order) != 1).any():
            images = images[order]
        size = images[:1].nbytes
        # A run ends where the next image's place is not the next, or in the next file.
        ends = np.flatnonzero((np.diff(places) != 1) | (places[1:] % self._per_file == 0)) + 1
        for run in np.split(np.arange(len(places)), ends):
            if len(run):
                file, place = divmod(int(places[run[0]]), self._per_file)
                pixels = images[run[0] : run[-1] + 1].view(np.uint8).reshape(-1).data
                at = _HEADER_BYTES + place * size
                while pixels:
                    written = os.pwrite(files[file], pixels, at)
                    pixels, at = pixels[written:], at + written
        return len(rows)


def _quarantine_table(plan: Plan, reasons: dict[int, str]) -> pa.Table:
    """Reasons by 0-based source row, as `quarantine.parquet` has them."""
    source, rows = plan.source, sorted(reasons)
    return pa.table(
        {
            "image": [str(source.images[row]) for row in rows],
            "file": [printable(source.path)] * len(rows),
            "row": [row + 1 for row in rows],
            "reason": [reasons[row] for row in rows],
        },
        schema=QUARANTINE_SCHEMA,
    )


def _particles(part: Part, rows: _Collected, settings: IngestSettings) -> pa.Table:
    source, plan, n = part.plan.source, part.plan, len(rows.row)
    labels, pixel_size = part.labels[rows.row], plan.pixel_size[rows.row]
    reasons = np.full(n, -1) if part.reasons is None else part.reasons[rows.row]
    columns = {
        "image": pa.array(source.images[rows.row], pa.string()),
        "project": pa.array([part.project] * n, pa.string()),
        "micrograph": pa.array(source.micrograph[rows.row], pa.string()),
        "label": pa.array(labels == 1, pa.bool_(), mask=labels < 0),
        "reason": pa.array(
            np.array([*REASONS, ""], object)[reasons], pa.string(), mask=reasons < 0
        ),
        "pixel_size": pa.array(pixel_size, pa.float32(), mask=~np.isfinite(pixel_size)),
        "diameter": pa.array([settings.preparation.diameter] * n, pa.float32()),
    }
    for name, column in zip(plan.features, rows.features.T, strict=True):
        columns[name] = pa.array(column, pa.float32(), mask=np.isnan(column))
    return pa.table(columns, schema=particles_schema(plan.features))
