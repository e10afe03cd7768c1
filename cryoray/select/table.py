"""What the page knows of each image that was judged: its score and verdict, and what its source says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryoray.boosting.expected import weights
from cryoray.errors import FormatError, InputError
from cryoray.formats import rln
from cryoray.formats.names import QUARANTINE_TABLE, VERDICTS_TABLE
from cryoray.formats.opening import way_out
from cryoray.formats.relion import known
from cryoray.formats.source import Source, open_source
from cryoray.preparation.features import chosen_features, source_features
from cryoray.records import KINDS, REASON_WORDS, VERDICTS, Kind, Verdicts, quarantine_words

#: A particle's reason may be its class; those the line does not bring back.
_BY_CLASS = "its class is discarded"
_NO_SCORE = "its score is not a number from 0 to 1"


@dataclass(frozen=True, eq=False)
class Table:
    """Verdicts and their source; n is the number of images judged.

    Attributes:
        folder: of the verdicts.
        source: whose rows were judged.
        verdicts: on them, in the source's order; quarantined rows are in it, too.
        digest: of the images and their scores.
    """

    folder: Path
    source: Source
    verdicts: Verdicts
    digest: str

    def __len__(self) -> int:
        return len(self.verdicts.rows)

    @property
    def kind(self) -> Kind:
        """What the images are."""
        return self.source.kind

    @property
    def threshold(self) -> float:
        """Where the verdicts had the line."""
        given = self.verdicts.about.get("threshold", "")
        try:
            line = float(given)
        except ValueError:
            line = np.nan
        if not np.isfinite(line):
            kept = self.verdicts.score[self.verdicts.verdict == "keep"]
            line = float(kept.min(initial=1.0))
        return line

    @cached_property
    def reasons(self) -> tuple[list[str], np.ndarray]:
        """The reasons in words, and for each image a place among them, uint8 [n], 255 for none."""
        given = self.verdicts.reason
        words = [REASON_WORDS.get(one, _BY_CLASS) if one else "" for one in given]
        names = sorted({word for word in words if word})
        place = {name: at for at, name in enumerate(names)}
        return names, np.array([place.get(word, 255) for word in words], np.uint8)

    @cached_property
    def held(self) -> np.ndarray:
        """Bool [n]: discarded for their class, so that no line keeps them."""
        names, of = self.reasons
        if _BY_CLASS not in names:
            return np.zeros(len(self), bool)
        return (of == names.index(_BY_CLASS)) & (self.verdicts.verdict == "discard")

    @cached_property
    def micrographs(self) -> tuple[list[str], np.ndarray]:
        """Their names without folders, and for each image a place among them, uint32 [n]."""
        names, of = np.unique(self.source.micrograph[self.verdicts.rows], return_inverse=True)
        return [name.rpartition("/")[2] for name in names.tolist()], of.astype(np.uint32)

    @cached_property
    def weights(self) -> np.ndarray:
        """Particles that each image stands for, float64 [n] (`boosting.expected.weights`)."""
        return weights(self.particles)

    @cached_property
    def particles(self) -> np.ndarray:
        """Particles of each class by hard assignment, float32 [n]; NaN where that is not known."""
        return self._feature("particle_number")

    @cached_property
    def resolution(self) -> np.ndarray:
        """Å, float32 [n]: of a class its own, of a particle its micrograph's CTF; NaN where not known."""
        if self.kind == "particle":
            values = self.source.metadata.get(rln.CTF_MAX_RESOLUTION)
            return self._of_rows(None if values is None else known(values))
        return self._feature("estimated_resolution")

    @cached_property
    def number(self) -> np.ndarray:
        """Class numbers, int32 [n]: RELION's from 1, cryoSPARC's from 0; -1 where there is none."""
        if self.kind == "class2d":
            return (self.source.frame + (self.source.format != "cs"))[self.verdicts.rows].astype(
                "i4"
            )
        values = self._of_rows(self.source.metadata.get(rln.CLASS_NUMBER))
        return np.where(np.isfinite(values), values, -1).astype(np.int32)

    def lost(self, most: int) -> list[tuple[str, str]]:
        """Name and reason of rows without a verdict, at most so many, in the order of the source."""
        some = sorted(self.verdicts.quarantined)[:most]
        if self.kind == "class2d":
            first = self.source.format != "cs"
            return [(f"class {self.source.frame[row] + first}", why) for row, why in some]
        return [(str(self.source.images[row]), why) for row, why in some]

    def _of_rows(self, values: np.ndarray | None) -> np.ndarray:
        if values is None:
            return np.full(len(self), np.nan, np.float32)
        return np.asarray(values, np.float32)[self.verdicts.rows]

    def _feature(self, name: str) -> np.ndarray:
        try:
            (feature,) = chosen_features(self.kind, (name,))
        except InputError:  # this kind of image has none
            return np.full(len(self), np.nan, np.float32)
        values = source_features(self.source, (name,))[self.verdicts.rows, 0]
        return np.asarray(feature.in_units(values), np.float32)

    def packed(self, scores: np.ndarray) -> bytes:
        """All columns as the page reads them: the length of a JSON head, the head, the columns.

        Args:
            scores: float32 [n], as they are now.
        """
        verdict = np.zeros(len(self), np.uint8)
        for place, name in enumerate(VERDICTS):
            verdict[self.verdicts.verdict == name] = place
        reasons, reason = self.reasons
        micrographs, micrograph = self.micrographs
        columns: dict[str, np.ndarray] = {
            "score": np.asarray(scores, np.float32),
            "verdict": verdict,
            "reason": reason,
            "held": self.held.astype(np.uint8),
            "micrograph": micrograph,
            "number": self.number,
            "particles": self.particles,
            "resolution": self.resolution,
            "row": self.verdicts.rows.astype(np.uint32),
            # The best first: it spares the page half the time until it shows anything.
            "order": np.argsort(-scores, kind="stable").astype(np.uint32),
        }
        head: dict[str, Any] = {
            "n": len(self),
            "kind": self.kind,
            "verdicts": VERDICTS,
            "reasons": reasons,
            "micrographs": micrographs,
            "columns": [(name, values.dtype.str[1:]) for name, values in columns.items()],
        }
        text = json.dumps(head).encode()
        text += b" " * (-(4 + len(text)) % 8)
        parts = [len(text).to_bytes(4, "little"), text]
        for values in columns.values():
            data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
            parts += [data, b"\0" * (-len(data) % 8)]
        return b"".join(parts)


def open_table(folder: Path, source: Path | None = None) -> Table:
    """A folder of verdicts with the source that they are about.

    Args:
        folder: where ``verdicts.parquet`` is.
        source: where the verdicts do not name it, or it has moved.

    Raises:
        InputError: there are no verdicts, those of several sources, or the source is gone.
        FormatError: a table is damaged, or the source is another than was judged.
    """
    folder = Path(folder).absolute()
    file = folder / VERDICTS_TABLE
    if not folder.exists():
        raise InputError("there is no such folder", file=folder, remedy=way_out(folder))
    if not file.is_file():
        inside = sorted(one.parent.name for one in folder.glob(f"*/{VERDICTS_TABLE}"))
        if inside:
            raise InputError(
                f"holds the verdicts of {len(inside)} sources ({', '.join(inside[:3])}"
                f"{', …' if inside[3:] else ''})",
                file=folder,
                remedy="give one of these folders",
            )
        raise InputError(
            "holds no verdicts.parquet",
            file=folder,
            remedy="give a folder that `cryoray classify` made",
        )
    table, lost = _read(file), _read(folder / QUARANTINE_TABLE)
    for name in ("image", "score", "verdict"):
        if name not in table.column_names:
            raise FormatError(f"has no column {name!r}", file=file, remedy="classify again")
    about = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    path = source or (Path(about["source"]) if "source" in about else None)
    if path is None:
        raise InputError(
            "was written by an older cryoray and does not name the source of its verdicts",
            file=file,
            remedy="give it with --source",
        )
    if not path.exists():
        raise InputError(
            "is no longer there, and the verdicts are of its images",
            file=path,
            remedy="give --source",
        )
    images = table["image"].to_pylist()
    opened, rows = _matched(path, images, about.get("kind"), file)
    missing = np.setdiff1d(np.arange(len(opened)), rows)
    if len(missing) != len(lost):
        raise _other(opened.path, file)
    columns = {
        name: _plain(table[name])
        for name in table.column_names
        if name not in ("image", "uid") and not pa.types.is_nested(table[name].type)
    }
    good = _scored(columns, file)
    quarantined = [
        *(
            (row, quarantine_words(why, opened.kind))
            for row, why in zip(missing.tolist(), lost["reason"].to_pylist(), strict=True)
        ),
        *((row, _NO_SCORE) for row in rows[~good].tolist()),
    ]
    if not good.all():
        rows, columns = rows[good], {name: values[good] for name, values in columns.items()}
        images = [image for image, one in zip(images, good.tolist(), strict=True) if one]
    verdicts = Verdicts.of(rows, columns, quarantined, about)
    digest = hashlib.sha256("\n".join(images).encode(errors="surrogateescape"))
    digest.update(np.ascontiguousarray(columns["score"]).tobytes())
    return Table(folder, opened, verdicts, digest.hexdigest()[:32])


def _scored(columns: dict[str, np.ndarray], file: Path) -> np.ndarray:
    """Bool [n]: rows whose score is a number of 0 to 1; those of others are damaged.

    Raises:
        FormatError: none of them is one.
    """
    score = columns["score"]
    numbers = np.issubdtype(score.dtype, np.number)
    good: np.ndarray = (score >= 0) & (score <= 1) if numbers else np.zeros(len(score), bool)
    if len(good) and not good.any():
        raise FormatError(
            "has no score that is a number of 0 to 1", file=file, remedy="classify again"
        )
    return good


def _matched(
    path: Path, images: Sequence[str], kind: str | None, file: Path
) -> tuple[Source, np.ndarray]:
    """The source, and the row of each image, which are in its order."""
    problem: InputError | None = None
    for wanted in [kind] if kind in KINDS else KINDS:
        try:
            source = open_source(path, wanted)
        except InputError as error:
            problem = problem or error
            continue
        rows, at = np.full(len(images), -1, np.int64), 0
        for row, name in enumerate(source.images.tolist()):
            if at < len(images) and name == images[at]:
                rows[at] = row
                at += 1
        if at == len(images):
            return source, rows
        problem = _other(path, file)
    assert problem is not None
    raise problem


def _other(source: Path, file: Path) -> FormatError:
    return FormatError(
        "has other images than were judged",
        file=source,
        remedy=f"classify it again, or give --source the one that {file} is about",
    )


def _read(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise FormatError(
            f"cannot be read ({str(error).splitlines()[0]})", file=file, remedy="classify again"
        ) from error


def _plain(column: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = column.to_numpy()
    return values
