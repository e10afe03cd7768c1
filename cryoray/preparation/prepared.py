"""The prepared set: ordinary stacks and a table whose rows line up with them.

    images-00000.mrcs …   a part's images in its source's order; every part begins a new stack
    particles.parquet     one row per image, all parts one after the other
    quarantine.parquet    what could not be prepared, and why
    set.json              parts, settings, digests, counts

Workers write shards, one per row range and named after its first row; `write_set` merges them. So the
bytes of a set depend on sources and settings alone, not on who did what when.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from cryoray.errors import FormatError, InputError, InternalError
from cryoray.formats.files import replacing
from cryoray.formats.mrc import StackWriter, read_frames, read_header
from cryoray.preparation.features import chosen_features
from cryoray.preparation.plan import Plan
from cryoray.records import (
    QUARANTINE_SCHEMA,
    Books,
    Kind,
    OnProgress,
    PreparedRows,
    Progress,
    ignore,
    particles_schema,
)
from cryoray.settings import IngestSettings, PreparationSettings

FORMAT = 1
_SET, _TABLE, _QUARANTINE = "set.json", "particles.parquet", "quarantine.parquet"
#: Where workers write, in the folder in which a set is built.
SHARDS = "shards"
_REMEDY = "make one with `cryoray ingest`"
#: Images merged at a time.
_CHUNK = 4096


class PreparedSet:
    """A prepared set on disk, read on demand.

    Attributes:
        path: its folder.
        kind: what its images are.
        settings: how they were prepared.
        features: names of the feature columns.
        digest: over settings and parts; equal digests mean equal images, labels and features.
        n: number of images.
        parts: of `set.json`, as they stand there.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.kind: Kind = description["kind"]
        self.settings = PreparationSettings(**description["settings"]["preparation"])
        self.features = tuple(feature["name"] for feature in description["features"])
        self.digest = str(description["digest"])
        self.parts: list[dict[str, Any]] = description["parts"]
        self.counts: dict[str, int] = description["counts"]
        self.n = self.counts["images"]

    @classmethod
    def open(cls, path: Path) -> PreparedSet:
        """The set in a folder.

        Raises:
            InputError: there is none.
            FormatError: it is damaged, or of a later format.
        """
        path = Path(path).absolute()
        file = path / _SET
        if not file.is_file():
            raise InputError("is no prepared set: it holds no set.json", file=path, remedy=_REMEDY)
        try:
            description = json.loads(file.read_text())
            if description["format"] != FORMAT:
                raise FormatError(
                    f"is of format {description['format']}, which this cryoray does not know",
                    file=file,
                    remedy="use the cryoray that made it, or ingest again",
                )
            return cls(path, description)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise FormatError(
                f"is damaged ({type(error).__name__}: {str(error).splitlines()[0]})",
                file=file,
                remedy="ingest again",
            ) from error

    def __len__(self) -> int:
        return self.n

    @cached_property
    def table(self) -> pa.Table:
        """`particles.parquet`, one row per image (`records.particles_schema`).

        Raises:
            FormatError: it is missing, damaged or of another length than the images.
        """
        file = self.path / _TABLE
        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise FormatError("cannot be read", file=file, remedy="ingest again") from error
        if len(table) != self.n:
            raise FormatError(
                f"has {len(table):,} rows for {self.n:,} images", file=file, remedy="ingest again"
            )
        return table

    @cached_property
    def _stacks(self) -> tuple[np.ndarray, list[Any]]:
        files = [file for part in self.parts for file in part["files"]]
        stacks = [read_header(self.path / file["name"]) for file in files]
        for stack, file in zip(stacks, files, strict=True):
            if stack.count != file["images"]:
                raise FormatError(
                    f"holds {stack.count:,} images, not {file['images']:,}",
                    file=stack.path,
                    remedy="copy the set again, or ingest again",
                )
        return np.cumsum([0, *(stack.count for stack in stacks)]), stacks

    def images(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, box, box] of rows (int64 [n], 0-based, in any order).

        Raises:
            FormatError: a stack is missing, damaged, or changed.
        """
        rows = np.asarray(rows, np.int64)
        order = np.argsort(rows, kind="stable")
        images = np.empty((len(rows), self.settings.box, self.settings.box), np.float32)
        starts, stacks = self._stacks
        if len(rows) and not 0 <= rows[order[0]] <= rows[order[-1]] < self.n:
            raise InternalError(f"rows asked for that {self.path} does not have")
        which = np.searchsorted(starts, rows[order], side="right") - 1
        for index in np.unique(which).tolist():
            here = order[which == index]
            images[here] = read_frames(stacks[index], rows[here] - starts[index])
        return images

    @property
    def labels(self) -> np.ndarray:
        """int8 [n]: 1 keep, 0 discard, -1 no label."""
        column = self.table["label"].cast(pa.int8()).fill_null(-1)
        return column.to_numpy().astype(np.int8)

    def groups(self, level: Literal["project", "micrograph"]) -> np.ndarray:
        """What belongs together, str objects [n]: the project, or ``project/micrograph``."""
        project = self.table["project"].to_numpy()
        if level == "project":
            return project
        return project + "/" + self.table["micrograph"].to_numpy()

    def feature_matrix(self, names: Sequence[str]) -> np.ndarray:
        """float32 [n, F], transformed, not standardised; NaN where missing, or not in this set.

        Raises:
            SettingsError: there is no such feature.
        """
        matrix = np.full((self.n, len(names)), np.nan, np.float32)
        for i, feature in enumerate(chosen_features(self.kind, names)):
            if feature.name in self.features:
                matrix[:, i] = self.table[feature.name].to_numpy()
        return matrix


@dataclass(frozen=True, slots=True)
class Shard:
    """What a worker says of the row range that it wrote: where, and how many rows went which way."""

    path: str
    images: int
    quarantined: int


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One source on its way into a set.

    Attributes:
        plan: what was to be read.
        project: name of the group.
        labels: int8 [n] by source row: 1 keep, 0 discard, -1 no label.
        selection: the file that the labels came from.
        shards: what came of the plan's ranges.
    """

    plan: Plan
    project: str
    labels: np.ndarray
    selection: Path | None
    shards: Sequence[Shard]

    def content(self, rows: np.ndarray, features: np.ndarray, quarantine: pa.Table) -> bytes:
        """All that a set keeps of its ``rows`` besides pixels, for its digest."""
        plan = self.plan
        names = (plan.source.images[rows], plan.source.micrograph[rows])
        texts = [self.project, *plan.features, *(name for column in names for name in column)]
        numbers = (self.labels[rows], plan.pixel_size[rows], features)
        listed = quarantine.drop_columns("file").to_pydict()
        return json.dumps([texts, listed]).encode() + b"".join(x.tobytes() for x in numbers)


def write_shard(folder: Path, rows: PreparedRows, dtype: Literal["float16", "float32"]) -> Shard:
    """Write what came of one row range; doing it again replaces it with the same."""
    reasons = dict(rows.quarantined)
    first = min([*rows.rows[:1].tolist(), *list(reasons)[:1]])
    path = folder / f"{first:012d}.npz"
    if len(rows.rows):
        with replacing(path.with_suffix(".npy")) as temporary, temporary.open("wb") as file:
            np.save(file, rows.images.astype(dtype))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            rows=rows.rows,
            features=rows.features,
            bad=np.array(list(reasons), np.int64),
            reasons=np.array(list(reasons.values()), np.str_),
        )
    return Shard(str(path), len(rows.rows), len(reasons))


def partial_folder(out: Path) -> Path:
    """A new folder beside ``out``, to build the set in; workers write to its ``shards``.

    Raises:
        InputError: ``out`` exists and is neither empty nor a prepared set.
    """
    out = Path(out).absolute()
    if out.exists() and not (out / _SET).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            "exists and is no prepared set", file=out, remedy="give --out another name"
        )
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    (partial / SHARDS).mkdir(parents=True)
    return partial


def write_set(
    out: Path,
    partial: Path,
    parts: Sequence[Part],
    settings: IngestSettings,
    *,
    on_progress: OnProgress = ignore,
) -> Books:
    """Merge shards into a set in ``partial`` and rename it to ``out``, in place of an older set.

    Raises:
        InternalError: rows of a plan are in no shard.
        QuarantineError: too many rows were quarantined; their list is in ``partial``.
    """
    try:
        books = _merge(partial, parts, settings, on_progress)
    finally:
        shutil.rmtree(partial / SHARDS)
    _put_in_place(partial, Path(out).absolute())
    return books


def _merge(
    partial: Path, parts: Sequence[Part], settings: IngestSettings, on_progress: OnProgress
) -> Books:
    collected = [_collect(part) for part in parts]
    quarantine = pa.concat_tables(rows.quarantine for rows in collected)
    _write_table(partial / _QUARANTINE, quarantine)
    books = Books(
        rows_in=sum(len(part.plan.source) for part in parts),
        rows_out=sum(len(rows.row) for rows in collected),
        quarantined=len(quarantine),
    ).check(max_quarantined=settings.max_quarantined, listed_in=partial / _QUARANTINE)
    described: list[dict[str, Any]] = []
    files = done = 0
    for part, rows in zip(parts, collected, strict=True):
        digest = hashlib.sha256()
        written: list[dict[str, Any]] = []
        for start in range(0, len(rows.row), settings.images_per_file):
            some = slice(start, start + settings.images_per_file)
            with _stack(partial, files + len(written), part, rows.row[some], settings) as writer:
                for images in rows.images(some):
                    writer.append(images)
                    digest.update(images.data)
                    done += len(images)
                    on_progress(Progress("merge", done, books.rows_out, "images"))
            written.append({"name": writer.path.name, "images": writer.count})
        files += len(written)
        digest.update(part.content(rows.row, rows.features, rows.quarantine))
        described.append(
            {
                "project": part.project,
                "source": str(part.plan.source.path),
                "selection": part.selection and str(part.selection),
                "digest": digest.hexdigest(),
                "contrast": "dark" if part.plan.invert else "bright",
                "counts": _counts(part, rows),
                "files": written,
            }
        )
    tables = [_particles(part, rows, settings) for part, rows in zip(parts, collected, strict=True)]
    _write_table(partial / _TABLE, pa.concat_tables(tables))
    kind = parts[0].plan.source.kind
    used = settings.model_dump(mode="json", include={"preparation", "dtype"})
    digests = [part["digest"] for part in described]
    counted = [part["counts"] for part in described]
    description = {
        "format": FORMAT,
        "kind": kind,
        "digest": _digest([FORMAT, kind, used, digests]),
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
    with replacing(partial / _SET) as temporary:
        temporary.write_text(json.dumps(description, indent=1))
    return books


def _stack(
    folder: Path, index: int, part: Part, rows: np.ndarray, settings: IngestSettings
) -> StackWriter:
    pixel_size = part.plan.prepared_pixel_size[rows]
    known = pixel_size[np.isfinite(pixel_size)].astype(np.float64)
    box, mean = settings.preparation.box, float(known.mean()) if len(known) else None
    return StackWriter(folder / f"images-{index:05d}.mrcs", box, box, settings.dtype, mean)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _counts(part: Part, rows: _Collected) -> dict[str, int]:
    labels = part.labels[rows.row]
    return {
        "rows": len(part.plan.source),
        "images": len(rows.row),
        "quarantined": len(rows.quarantine),
        "keep": int(np.count_nonzero(labels == 1)),
        "discard": int(np.count_nonzero(labels == 0)),
        "unlabelled": int(np.count_nonzero(labels < 0)),
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Collected:
    """A part's rows in the order of its source, and where each lies.

    Attributes:
        row: int64 [n], source rows, ascending.
        shard: int64 [n], index into ``paths``.
        place: int64 [n], position in that shard.
        features: float32 [n, F].
        paths: of the shards.
        quarantine: in QUARANTINE_SCHEMA.
    """

    row: np.ndarray
    shard: np.ndarray
    place: np.ndarray
    features: np.ndarray
    paths: list[Path]
    quarantine: pa.Table

    def images(self, some: slice) -> Iterator[np.ndarray]:
        """Images [<= 4096, box, box] as the shards have them, in order."""
        rows = np.arange(len(self.row))[some]
        for chunk in np.split(rows, range(_CHUNK, len(rows), _CHUNK)):
            shards, at = np.unique(self.shard[chunk], return_inverse=True)
            stacks = [np.load(self.paths[i].with_suffix(".npy"), mmap_mode="r") for i in shards]
            merged = np.empty((len(chunk), *stacks[0].shape[1:]), stacks[0].dtype)
            for i, stack in enumerate(stacks):
                merged[at == i] = stack[self.place[chunk[at == i]]]
            yield merged


def _collect(part: Part) -> _Collected:
    source, plan = part.plan.source, part.plan
    paths = [Path(shard.path) for shard in sorted(part.shards, key=lambda shard: shard.path)]
    loaded = [_load(path) for path in paths]
    row = np.concatenate([np.empty(0, np.int64), *(shard["rows"] for shard in loaded)])
    order = np.argsort(row, kind="stable")
    bad = dict(plan.quarantined)
    for shard in loaded:
        bad |= zip(shard["bad"].tolist(), shard["reasons"].tolist(), strict=True)
    everything = np.sort(np.concatenate([row, np.array(sorted(bad), np.int64)]))
    if not np.array_equal(everything, np.arange(len(source))):
        raise InternalError(f"rows of {source.path} are in no shard, or in two")
    sizes = [len(shard["rows"]) for shard in loaded]
    features = [np.empty((0, len(plan.features)), np.float32), *(s["features"] for s in loaded)]
    return _Collected(
        row=row[order],
        shard=np.repeat(np.arange(len(paths)), sizes)[order],
        place=np.concatenate([np.empty(0, np.int64), *(np.arange(size) for size in sizes)])[order],
        features=np.concatenate(features)[order],
        paths=paths,
        quarantine=_quarantine_table(plan, bad),
    )


def _load(shard: Path) -> dict[str, np.ndarray]:
    with np.load(shard) as arrays:
        return dict(arrays)


def _quarantine_table(plan: Plan, reasons: dict[int, str]) -> pa.Table:
    """Reasons by 0-based source row, as `quarantine.parquet` has them."""
    source, rows = plan.source, sorted(reasons)
    return pa.table(
        {
            "image": [str(source.images[row]) for row in rows],
            "file": [str(source.path)] * len(rows),
            "row": [row + 1 for row in rows],
            "reason": [reasons[row] for row in rows],
        },
        schema=QUARANTINE_SCHEMA,
    )


def _particles(part: Part, rows: _Collected, settings: IngestSettings) -> pa.Table:
    source, plan, n = part.plan.source, part.plan, len(rows.row)
    labels, pixel_size = part.labels[rows.row], plan.pixel_size[rows.row]
    columns = {
        "image": pa.array(source.images[rows.row], pa.string()),
        "project": pa.array([part.project] * n, pa.string()),
        "micrograph": pa.array(source.micrograph[rows.row], pa.string()),
        "label": pa.array(labels == 1, pa.bool_(), mask=labels < 0),
        "pixel_size": pa.array(pixel_size, pa.float32(), mask=~np.isfinite(pixel_size)),
        "diameter": pa.array([settings.preparation.diameter] * n, pa.float32()),
    }
    for name, column in zip(plan.features, rows.features.T, strict=True):
        columns[name] = pa.array(column, pa.float32(), mask=np.isnan(column))
    return pa.table(columns, schema=particles_schema(plan.features))


def _write_table(path: Path, table: pa.Table) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename; an older set steps aside first, so that ``out`` is never half of each."""
    aside = out.with_name(f"{out.name}.old")
    if aside.exists():
        shutil.rmtree(aside)
    if out.exists():
        out.rename(aside)
    partial.rename(out)
    if aside.exists():
        shutil.rmtree(aside)
