"""The work of making a set, in tasks, and the shards that workers write on the way.

Shards lie beside the set, in ``OUT.shards``, each named after all that its content depends on: what is
there already need not be done again. `cryoray.preparation.writing` merges them into the set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from cryoray.formats.files import replacing, write_array
from cryoray.preparation.plan import Plan, grouped
from cryoray.preparation.prepare import prepare_range
from cryoray.preparation.prepared import FORMAT
from cryoray.records import RowRange
from cryoray.settings import IngestSettings

#: Images looked at together when a shard is summed up: they stay in a core's cache.
_TOGETHER = 64
#: What a shard knows of each image besides its pixels: for the set's digest and its stacks' headers.
ROW = np.dtype(
    [
        ("row", "<i8"),
        ("digest", "u1", 32),
        ("low", "<f4"),
        ("high", "<f4"),
        ("sum", "<f8"),
        ("squares", "<f8"),
    ]
)


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
            good = np.load(rows_file(self.path), mmap_mode="r")
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
    written = np.zeros(len(rows), ROW)
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
    for path, array in ((work.path.with_suffix(".npy"), images), (rows_file(work.path), written)):
        with replacing(path) as temporary, temporary.open("wb") as file:
            write_array(file, array)
    raw = sum(rows.bytes for rows in work.ranges)
    return Shard(work.part, str(work.path), len(rows), len(reasons), raw)


def rows_file(shard: Path) -> Path:
    """Where a shard keeps what it knows of its images: ROW [n]."""
    return shard.with_suffix(".rows.npy")
