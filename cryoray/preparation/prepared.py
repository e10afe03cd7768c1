"""The prepared set: ordinary stacks and a table whose rows line up with them.

    images-00000.mrcs …   a part's images in its source's order; every part begins a new stack
    particles.parquet     one row per image, all parts one after the other
    quarantine.parquet    what could not be prepared, and why
    set.json              parts, settings, digests, counts

Workers write shards beside it, in ``OUT.shards``, each named after all that its content depends on:
what is there already need not be done again. `write_set` merges them. So the bytes of a set depend on
sources and settings alone, not on who did what when, nor on how often it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError

from cryoray.errors import FormatError, InputError, InternalError, QuarantineError
from cryoray.formats.files import check_replaceable, replacing, replacing_folder, write_array
from cryoray.formats.mrc import read_frames, read_header, stack_header
from cryoray.preparation.features import chosen_features
from cryoray.preparation.plan import Plan, grouped
from cryoray.preparation.prepare import prepare_range
from cryoray.preparation.reader import by_reason
from cryoray.records import (
    QUARANTINE_SCHEMA,
    REASONS,
    Books,
    Kind,
    OnProgress,
    Progress,
    RowRange,
    ignore,
    particles_schema,
)
from cryoray.settings import IngestSettings, PreparationSettings

FORMAT = 1
_SET, _TABLE, _QUARANTINE = "set.json", "particles.parquet", "quarantine.parquet"
_REMEDY = "make one with `cryoray ingest`"
_HEADER_BYTES = 1024
#: Images looked at together when a shard is summed up: they stay in a core's cache.
_TOGETHER = 64
#: What a shard knows of each image besides its pixels: for the set's digest and its stacks' headers.
_ROW = np.dtype(
    [
        ("row", "<i8"),
        ("digest", "u1", 32),
        ("low", "<f4"),
        ("high", "<f4"),
        ("sum", "<f8"),
        ("squares", "<f8"),
    ]
)


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
        used: the settings of `set.json`: the preparation's, and dtype.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.kind: Kind = description["kind"]
        self.used: dict[str, Any] = description["settings"]
        self.settings = PreparationSettings(**self.used["preparation"])
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
        table = _read_table(file)
        if len(table) != self.n:
            raise FormatError(
                f"has {len(table):,} rows for {self.n:,} images", file=file, remedy="ingest again"
            )
        return table

    @cached_property
    def quarantine(self) -> pa.Table:
        """`quarantine.parquet`, one row for each that was not prepared (`records.QUARANTINE_SCHEMA`).

        Raises:
            FormatError: it is missing or damaged.
        """
        return _read_table(self.path / _QUARANTINE)

    def check(self) -> None:
        """See whether all of the set is there, by its table and the headers of its stacks.

        Raises:
            FormatError: some of it is missing, damaged, of another length, or no file.
        """
        rows, images = len(self.table), int(self._stacks[0][-1])
        if rows != images:
            raise FormatError(
                f"has {rows:,} rows, and its stacks {images:,} images",
                file=self.path / _TABLE,
                remedy="ingest again",
            )

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

    @property
    def reasons(self) -> np.ndarray:
        """int8 [n]: a place in `records.REASONS`, why an image was discarded; -1 where nobody said."""
        if "reason" not in self.table.column_names:
            return np.full(self.n, -1, np.int8)
        at = pc.index_in(self.table["reason"], pa.array(REASONS)).fill_null(-1)
        return at.to_numpy().astype(np.int8)

    def images_of(self, source: Path) -> set[str]:
        """Names of the images that came from a source, those that were quarantined included."""
        listed = self.quarantine.filter(pc.equal(self.quarantine["file"], str(source)))
        names, start = set(listed["image"].to_pylist()), 0
        for part in self.parts:
            count = part["counts"]["images"]
            if part["source"] == str(source):
                names.update(self.table["image"].slice(start, count).to_pylist())
            start += count
        return names

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


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One source on its way into a set.

    Attributes:
        plan: what is to be read.
        project: name of the group.
        labels: int8 [n] by source row: 1 keep, 0 discard, -1 no label.
        selection: the file that the labels came from.
        reasons: int8 [n] by source row, a place in `records.REASONS` or -1; None where none is known.
    """

    plan: Plan
    project: str
    labels: np.ndarray
    selection: Path | None
    reasons: np.ndarray | None = None

    def content(self, rows: np.ndarray, features: np.ndarray, quarantine: pa.Table) -> bytes:
        """All that a set keeps of its ``rows`` besides pixels, for its digest."""
        plan = self.plan
        names = (plan.source.images[rows], plan.source.micrograph[rows])
        texts = [self.project, *plan.features, *(name for column in names for name in column)]
        numbers = [self.labels[rows], plan.pixel_size[rows], features]
        if (
            self.reasons is not None
        ):  # without any, sets made before there were reasons are the same
            numbers.append(self.reasons[rows])
        listed = quarantine.drop_columns("file").to_pydict()
        return json.dumps([texts, listed]).encode() + b"".join(x.tobytes() for x in numbers)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What one task does: the ranges that it reads and prepares, and the shard that it makes of them.

    Attributes:
        part: index of the part that the rows belong to.
        path: of the shard, without a suffix: ``.npy`` is added for images, ``.rows.npy`` for the rest,
            which is written last, ``.json`` for reasons, where any row was quarantined.
        ranges: without features, which the plan keeps.
    """

    part: int
    path: Path
    ranges: tuple[RowRange, ...]

    @property
    def bytes(self) -> int:
        """Raw bytes to read."""
        return sum(rows.bytes for rows in self.ranges)

    @property
    def done(self) -> Shard | None:
        """The shard, where somebody made it already, and nobody was killed while removing it."""
        try:
            good = np.load(_rows_file(self.path), mmap_mode="r")
            images = np.load(self.path.with_suffix(".npy"), mmap_mode="r")
        except (OSError, ValueError):
            return None
        lost = self._rows - len(good)
        if len(images) != len(good) or (lost and not self.path.with_suffix(".json").is_file()):
            return None
        return Shard(self.part, str(self.path), len(good), lost, self.bytes)

    @property
    def _rows(self) -> int:
        return sum(len(rows.rows) for rows in self.ranges)


@dataclass(frozen=True, slots=True)
class Shard:
    """What a worker says of its work: which part, where, how many rows went which way, bytes read."""

    part: int
    path: str
    images: int
    quarantined: int
    bytes: int

    @property
    def reasons(self) -> dict[int, str]:
        """Why rows of the source, 0-based, were quarantined."""
        if not self.quarantined:
            return {}
        return dict(json.loads(Path(self.path).with_suffix(".json").read_text()))


def shards_folder(out: Path) -> Path:
    """Where the shards of a set on its way to ``out`` are kept until it is complete."""
    return out.with_name(f"{out.name}.shards")


def divide(parts: Sequence[Part], out: Path, settings: IngestSettings) -> list[Work]:
    """The work on some parts, in tasks of `settings.range_mib` to twice as many raw MiB."""
    folder, dtype = shards_folder(out), settings.dtype
    # What the shard's bytes depend on, and nothing else: features and labels are added by the merge.
    preparation = settings.preparation.model_dump(mode="json", exclude={"features", "contrast"})
    common = json.dumps([FORMAT, preparation, dtype], sort_keys=True).encode()
    work = []
    for number, part in enumerate(parts):
        for group in grouped(part.plan.ranges, settings.range_mib):
            key = hashlib.sha256(common)
            for rows in group:
                stack = rows.stack
                file = (str(stack.path), stack.size, stack.mtime_ns, stack.dtype, stack.offset)
                key.update(json.dumps([*file, stack.height, stack.width, rows.invert]).encode())
                for numbers in (rows.frames, rows.rows, rows.pixel_size):
                    key.update(np.ascontiguousarray(numbers).data)
            name = f"{number:04d}-{int(group[0].rows[0]):09d}-{key.hexdigest()[:24]}"
            bare = (
                replace(rows, features=np.empty((len(rows.rows), 0), np.float32)) for rows in group
            )
            work.append(Work(number, folder / name, tuple(bare)))
    return work


def prepare_shard(work: Work, settings: IngestSettings, device: str = "cpu") -> Shard:
    """Read, prepare and write the rows of one task; doing it again replaces them with the same."""
    made = [prepare_range(rows, settings.preparation, device) for rows in work.ranges]
    reasons = dict(bad for rows in made for bad in rows.quarantined)
    rows = np.concatenate([rows.rows for rows in made])
    # Half precision by torch: by numpy it takes as long as a tenth of the preparation.
    precision = torch.float16 if settings.dtype == "float16" else torch.float32
    images = np.concatenate([torch.from_numpy(rows.images).to(precision).numpy() for rows in made])
    written = np.zeros(len(rows), _ROW)
    written["row"] = rows
    for start in range(0, len(images), _TOGETHER):
        here, some = written[start : start + _TOGETHER], images[start : start + _TOGETHER]
        here["digest"] = [list(hashlib.sha256(image.data).digest()) for image in some]
        pixels = torch.from_numpy(some.reshape(len(some), -1)).float().numpy()
        here["low"], here["high"], here["sum"] = pixels.min(1), pixels.max(1), pixels.sum(1)
        here["squares"] = np.einsum("ij,ij->i", pixels, pixels)
    work.path.parent.mkdir(parents=True, exist_ok=True)
    if reasons:
        with replacing(work.path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(list(reasons.items())))
    for path, array in ((work.path.with_suffix(".npy"), images), (_rows_file(work.path), written)):
        with replacing(path) as temporary, temporary.open("wb") as file:
            write_array(file, array)
    raw = sum(rows.bytes for rows in work.ranges)
    return Shard(work.part, str(work.path), len(rows), len(reasons), raw)


def _rows_file(shard: Path) -> Path:
    return shard.with_suffix(".rows.npy")


def check_out(out: Path) -> None:
    """Raise where no set can be written to ``out``.

    Raises:
        InputError: it exists and is neither empty nor a prepared set.
    """
    check_replaceable(out, "prepared set", _is_set)


def _is_set(folder: Path) -> bool:
    return (folder / _SET).is_file()


def write_set(
    out: Path,
    parts: Sequence[Part],
    shards: Sequence[Shard],
    settings: IngestSettings,
    *,
    base: PreparedSet | None = None,
    on_progress: OnProgress = ignore,
) -> Books:
    """Merge shards into a set that takes the place of an older one in ``out``; the shards go.

    Args:
        out: the set's folder.
        parts: what is to be in it.
        shards: of all of the parts' work, in any order.
        settings: the preparation's, dtype, images_per_file and max_quarantined are used.
        base: a set whose parts come first, their files as they are.
        on_progress: while images are written.

    Returns:
        The books of the parts, without those of ``base``.

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
    books = _audit(out, parts, collected, quarantine, settings)
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
                on_progress(Progress("merge", done, books.rows_out, "images"))
            files += len(stacks.files)
            described.append(_describe(part, rows, stacks))
            tables.append(_particles(part, rows, settings))
        _write_table(partial / _QUARANTINE, quarantine)
        # A set that is added to may be older than the column of reasons.
        _write_table(partial / _TABLE, pa.concat_tables(tables, promote_options="default"))
        with replacing(partial / _SET) as temporary:
            temporary.write_text(json.dumps(_description(parts, described, settings), indent=1))
    shutil.rmtree(shards_folder(out), ignore_errors=True)
    return books


def _audit(
    out: Path,
    parts: Sequence[Part],
    collected: Sequence[_Collected],
    quarantine: pa.Table,
    settings: IngestSettings,
) -> Books:
    """The books of some parts, and the list of quarantined rows where there are too many."""
    books = Books(
        rows_in=sum(len(part.plan.wanted) for part in parts),
        rows_out=sum(len(rows.row) for rows in collected),
        quarantined=len(quarantine),
    )
    listed = shards_folder(out) / _QUARANTINE
    if books.quarantined:
        _write_table(listed, quarantine)
    books.check(max_quarantined=settings.max_quarantined, listed_in=listed)
    for part, rows in zip(parts, collected, strict=True):
        if len(rows.quarantine) and not len(rows.row):
            why = next(iter(by_reason(rows.quarantine["reason"].to_pylist())))
            raise QuarantineError(
                f"none of its {len(rows.quarantine):,} rows could be read ({why})",
                file=part.plan.source.path,
                remedy=f"look at the reasons in {listed}, mend the source or leave it out",
            )
    return books


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
        written: _ROW [n], by source row, ascending.
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
    written = np.concatenate([np.empty(0, _ROW), *(np.load(_rows_file(path)) for path in paths)])
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
        rows = np.load(_rows_file(shard))["row"]
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
            "file": [str(source.path)] * len(rows),
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


def _read_table(file: Path) -> pa.Table:
    try:
        if not file.is_file():  # a pipe would be waited for, for ever
            raise FileNotFoundError
        return pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise FormatError("cannot be read", file=file, remedy="ingest again") from error


def _write_table(path: Path, table: pa.Table) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
