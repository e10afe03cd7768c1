"""The small things that cross floors: stacks, row ranges, verdicts, progress, and the tables on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cryoray.errors import InternalError, QuarantineError

Kind = Literal["particle", "class2d"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Verdict = Literal["keep", "discard", "review"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

#: Why an image may be discarded: ice stands for any contamination, carbon for the film and its edge,
#: broken for denatured too.
Reason = Literal["empty", "ice", "carbon", "aggregate", "off_centre", "broken", "blurred"]
REASONS: tuple[Reason, ...] = get_args(Reason)
#: As a person reads them.
REASON_WORDS: Mapping[str, str] = {
    **{reason: reason for reason in REASONS},
    "ice": "ice or contamination",
    "carbon": "carbon edge",
    "off_centre": "off-centre",
    "broken": "broken or denatured",
}

#: How a reason ends where an image holds nothing; and what that is of a class.
BLANK, EMPTY_CLASS = "all pixels are 0", "empty class, no particles"


def quarantine_words(reason: str, kind: str) -> str:
    """Why a row has no verdict, as a person reads it.

    A class average of zeros is that of a class without particles: RELION writes it so, and nothing is
    wrong with the file.
    """
    return EMPTY_CLASS if kind == "class2d" and reason.endswith(BLANK) else reason


MEMBERS = ("d1", "d2", "d3")

#: How many rows a source may always lose, however small the fraction allowed (`errors.QuarantineError`). Not
#: of a session's stacks, which may be smaller (`settings.WatchSettings.max_quarantined`).
QUARANTINE_FLOOR = 100

Compression = Literal["gzip", "bzip2"]

#: In place of a numpy dtype: two pixels in a byte, the low half first (MRC mode 101); each line of an
#: image begins with a byte of its own.
NIBBLES = "4-bit"


@dataclass(frozen=True, slots=True)
class Stack:
    """One image stack as its header describes it; nothing of its pixels is held.

    ``dtype`` is a numpy dtype string with byte order (``"<f2"``) or ``NIBBLES``, ``offset`` the byte
    at which image 0 begins, ``pixel_size`` in Å/px or None where the header has none. ``size`` (bytes)
    and ``mtime_ns`` let a reader notice that the file changed under it. Where ``compression`` is not
    None, ``offset`` counts the bytes of what is unpacked, and ``size`` those of the file.
    """

    path: Path
    count: int
    height: int
    width: int
    dtype: str
    offset: int
    pixel_size: float | None
    size: int
    mtime_ns: int
    compression: Compression | None = None

    @property
    def image_bytes(self) -> int:
        """Bytes of one image on disk, or unpacked."""
        if self.dtype == NIBBLES:
            return self.height * ((self.width + 1) // 2)
        return self.height * self.width * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, eq=False)
class RowRange:
    """Rows of one stack that one task reads and prepares.

    Attributes:
        index: position in the plan.
        stack: the stack they lie in.
        frames: int64 [n], 0-based positions in the stack, ascending.
        rows: int64 [n], the 0-based rows of the source that these are.
        pixel_size: float32 [n], Å/px, NaN where unknown.
        features: float32 [n, F], transformed and not yet standardised, NaN where missing.
        invert: whether protein is dark in this source, so that pixels change sign.
        window: px, of 2D classes whose job decides it; None: what the settings say.
    """

    index: int
    stack: Stack
    frames: np.ndarray
    rows: np.ndarray
    pixel_size: np.ndarray
    features: np.ndarray
    invert: bool = False
    window: int | None = None

    @property
    def bytes(self) -> int:
        """Bytes that reading this range touches."""
        return len(self.frames) * self.stack.image_bytes

    def __getitem__(self, some: slice | np.ndarray) -> RowRange:
        """Some of the rows, by a slice or their places in the range."""
        columns = ("frames", "rows", "pixel_size", "features")
        return replace(self, **{name: getattr(self, name)[some] for name in columns})


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRows:
    """What came of a row range: network input for the good rows, a reason for each of the others.

    Attributes:
        rows: int64 [n], 0-based source rows that came through.
        images: float32 [n, box, box], protein bright, background at zero mean and unit variance.
        features: float32 [n, F], NaN where missing.
        quarantined: (source row, reason) of each row that did not come through.
    """

    rows: np.ndarray
    images: np.ndarray
    features: np.ndarray
    quarantined: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage has come. ``total`` is None where it is not known beforehand."""

    stage: str
    done: int
    total: int | None
    unit: str = "rows"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth a line in a log: a name in ``noun.verb`` form and plain JSON data."""

    name: str
    data: Mapping[str, object] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]
OnEvent = Callable[[Event], None]


def ignore(_: object) -> None:
    """The callback of a caller who needs none."""


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Rows in = rows out + quarantined, checked at the end of every verb."""

    rows_in: int
    rows_out: int
    quarantined: int

    def check(
        self,
        *,
        max_quarantined: float,
        listed_in: Path | None = None,
        why: str = "",
        remedy: str = "look at the reasons listed there and correct the source",
    ) -> RowCounts:
        """Raise where rows are unaccounted for, or where too many were quarantined.

        Args:
            max_quarantined: fraction of rows that may be quarantined; never fewer than 100 rows.
            listed_in: the file with the list of quarantined rows, already written.
            why: what most of them are quarantined for, for the message.
            remedy: what can be done about it.

        Raises:
            InternalError: rows in differ from rows out + quarantined.
            QuarantineError: the bound is exceeded, or nothing at all came through.
        """
        if self.rows_in != self.rows_out + self.quarantined:
            raise InternalError(f"the row counts do not balance: {self}")
        allowed = max(QUARANTINE_FLOOR, int(max_quarantined * self.rows_in))
        if self.quarantined > allowed or (self.quarantined and not self.rows_out):
            what = f"{self.quarantined:,} of {self.rows_in:,} rows could not be read"
            if self.rows_out:  # with none that can be read there is nothing to go on with
                what += f" ({allowed:,} allowed)"
                remedy += ", or allow more with --max-quarantined"
            raise QuarantineError(f"{what}, {why}" if why else what, file=listed_in, remedy=remedy)
        return self

    def __str__(self) -> str:
        return (
            f"{self.rows_in:,} rows in = {self.rows_out:,} out + {self.quarantined:,} quarantined"
        )


#: `quarantine.parquet`: rows count from 1 here, as in the file that a person will open.
QUARANTINE_SCHEMA = pa.schema(
    [("image", pa.string()), ("file", pa.string()), ("row", pa.int64()), ("reason", pa.string())]
)

#: `verdicts.parquet`, in input order; a `.cs` source has `uid` uint64 after `image`.
VERDICTS_SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("score", pa.float32()),
        ("verdict", pa.string()),
        ("d1", pa.float32()),
        ("d2", pa.float32()),
        ("d3", pa.float32()),
        ("reason", pa.string()),
    ]
)

#: One row of `Verdicts`: `row` counts from 0 in its source; `quarantined` says why a row has no verdict.
JUDGED_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        *(VERDICTS_SCHEMA.field(name) for name in VERDICTS_SCHEMA.names[1:]),
        ("quarantined", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False, repr=False)
class Verdicts:
    """What became of some rows of a source: each has a verdict, or a reason why it has none.

    The only form that a judged row has, from the networks to the wire and the disk.

    Attributes:
        table: `JUDGED_SCHEMA`, and further columns after it: `image`, and float32 ones. A row with a
            verdict has null as `quarantined`, every other column of a quarantined row but `row` and
            `image` is null. The schema's metadata say who judged: see `about`.
    """

    table: pa.Table

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        columns: Mapping[str, np.ndarray],
        quarantined: Iterable[tuple[int, str]] = (),
        about: Mapping[str, str] | None = None,
    ) -> Verdicts:
        """Put verdicts and quarantined rows together.

        Args:
            rows: int64 [n], 0-based, those with a verdict.
            columns: [n] each: `score`, `verdict`, `d1`, `d2`, `d3` (NaN where it was not asked), and
                `reason` (None where there is none) where any is known; further float columns, NaN where
                not known.
            quarantined: (0-based row, why) of the others.
            about: of `about`.
        """
        bad = list(quarantined)
        nothing = {"reason": np.full(len(rows), None, object)}
        made: dict[str, pa.Array | pa.ChunkedArray] = {"row": pa.array(rows, pa.int64())}
        for name, values in {**nothing, **columns}.items():
            text = name in ("verdict", "reason")
            made[name] = (
                pa.array(values, pa.string())
                if text
                else pa.array(np.asarray(values, np.float32), pa.float32(), from_pandas=True)
            )
        table = pa.table(made).append_column("quarantined", pa.nulls(len(rows), pa.string()))
        if bad:
            where, why = zip(*bad, strict=True)
            lost = {"row": pa.array(where, pa.int64()), "quarantined": pa.array(why, pa.string())}
            table = pa.concat_tables([table, pa.table(lost)], promote_options="default")
        further = [name for name in table.column_names if name not in JUDGED_SCHEMA.names]
        table = table.select([*JUDGED_SCHEMA.names, *further])
        return cls(table.replace_schema_metadata(dict(about) if about else None))

    @classmethod
    def none(cls, about: Mapping[str, str] | None = None) -> Verdicts:
        """Those of no row."""
        return cls(JUDGED_SCHEMA.empty_table().replace_schema_metadata(dict(about or {}) or None))

    @classmethod
    def together(cls, parts: Iterable[Verdicts]) -> Verdicts:
        """Those of several parts, by row; who judged is taken from the first."""
        tables = [part.table for part in parts]
        if not tables:
            return cls.none()
        about = tables[0].schema.metadata
        bare = [table.replace_schema_metadata(None) for table in tables]
        joined = pa.concat_tables(bare, promote_options="default").sort_by("row").combine_chunks()
        return cls(joined.replace_schema_metadata(about))

    def __len__(self) -> int:
        """The number of rows, quarantined ones included."""
        return len(self.table)

    def __repr__(self) -> str:
        counted = ", ".join(f"{count:,} {name}" for name, count in self.counts().items() if count)
        return f"Verdicts({counted or 'of no row'})"

    @property
    def about(self) -> dict[str, str]:
        """Who judged and how, as far as it is known: `models.ensemble.Ensemble.about`."""
        given = self.table.schema.metadata or {}
        return {key.decode(): value.decode() for key, value in given.items()}

    @property
    def ensemble(self) -> str:
        """Digest of the ensemble that judged, '' where it is not known."""
        return self.about.get("ensemble", "")

    @cached_property
    def judged(self) -> pa.Table:
        """The rows that have a verdict, without the column `quarantined`."""
        there = pc.is_null(self.table["quarantined"])
        return self.table.filter(there).drop_columns("quarantined").combine_chunks()

    @property
    def quarantined(self) -> list[tuple[int, str]]:
        """0-based row, and why, of each that has no verdict."""
        lost = self.table.filter(pc.is_valid(self.table["quarantined"]))
        return list(zip(lost["row"].to_pylist(), lost["quarantined"].to_pylist(), strict=True))

    @property
    def rows(self) -> NDArray[np.int64]:
        """int64 [n], 0-based, the rows that have a verdict."""
        return self.judged["row"].to_numpy()

    def column(self, name: str) -> np.ndarray:
        """Of the rows that have a verdict, [n]: float32 with NaN for null, or str objects with None."""
        return self.judged[name].to_numpy(zero_copy_only=False)

    @property
    def score(self) -> NDArray[np.float32]:
        """float32 [n], see `boosting.voting`."""
        return self.column("score")

    @property
    def verdict(self) -> NDArray[np.object_]:
        """Objects [n], of `VERDICTS`."""
        return self.column("verdict")

    @property
    def d1(self) -> NDArray[np.float32]:
        """Calibrated probability of keep by the first member, float32 [n]."""
        return self.column("d1")

    @property
    def d2(self) -> NDArray[np.float32]:
        """The same of the second member."""
        return self.column("d2")

    @property
    def d3(self) -> NDArray[np.float32]:
        """The same of the third, NaN where d1 and d2 agreed."""
        return self.column("d3")

    @property
    def reason(self) -> NDArray[np.object_]:
        """Objects [n], None where there is none."""
        return self.column("reason")

    def members(self) -> NDArray[np.float32]:
        """float32 [3, n], calibrated probabilities of keep, NaN where d1 and d2 agreed."""
        return np.stack([self.column(name) for name in MEMBERS])

    def with_column(self, name: str, values: np.ndarray) -> Verdicts:
        """A column that is added, or takes an older one's place; ``values`` are of the judged rows."""
        there = pc.is_null(self.table["quarantined"]).to_numpy(zero_copy_only=False)
        text = values.dtype.kind in "OU"
        column = np.full(len(self), None if text else np.nan, object if text else np.float32)
        column[there] = values
        made = pa.array(column, pa.string() if text else pa.float32(), from_pandas=True)
        at = self.table.schema.get_field_index(name)
        if at >= 0:
            return Verdicts(self.table.set_column(at, name, made))
        return Verdicts(self.table.append_column(name, made))

    def with_about(self, about: Mapping[str, str]) -> Verdicts:
        """The same, with another word of who judged."""
        return Verdicts(self.table.replace_schema_metadata(dict(about)))

    def with_images(self, names: np.ndarray, first: int = 0) -> Verdicts:
        """With the column `image`; ``names`` are of the source's rows from ``first`` on."""
        images = pa.array(names[self.table["row"].to_numpy() - first], pa.string())
        return Verdicts(self.table.append_column("image", images))

    def and_quarantined(self, others: Iterable[tuple[int, str]]) -> Verdicts:
        """With further rows, which have no verdict: (0-based row, why)."""
        bad = list(others)
        return Verdicts.together([self, Verdicts.of(*_NOTHING, bad)]) if bad else self

    def renumbered(self, numbers: np.ndarray | int) -> Verdicts:
        """The same of other rows: row i becomes ``numbers[i]``, or i + ``numbers``; in any order."""
        rows = self.table["row"].to_numpy()
        new = rows + numbers if isinstance(numbers, int) else numbers[rows]
        at = self.table.schema.get_field_index("row")
        return Verdicts(self.table.set_column(at, "row", pa.array(new, pa.int64())))

    def between(self, first: int, end: int) -> Verdicts:
        """Those of rows ``first`` to ``end``, which is excluded."""
        row = self.table["row"]
        return Verdicts(self.table.filter(pc.and_(pc.greater_equal(row, first), pc.less(row, end))))

    def counts(self) -> dict[str, int]:
        """How many rows have each verdict, and how many were quarantined."""
        verdict = self.table["verdict"]
        found: dict[str, int] = {
            name: pc.sum(pc.equal(verdict, name)).as_py() or 0 for name in VERDICTS
        }
        return {**found, "quarantined": len(self) - sum(found.values())}

    def verdict_counts(self) -> dict[str, int]:
        """How many rows have each verdict."""
        return {name: count for name, count in self.counts().items() if name != "quarantined"}

    def review_kept(self) -> int:
        """How many of those under review a forced decision keeps, by score and class score."""
        review = self.verdict == "review"
        for name, line in (("score", "threshold"), ("class_score", "class_threshold")):
            if name in self.judged.column_names and line in self.about:
                score_of_line = self.column(name)
                review &= np.isnan(score_of_line) | (score_of_line >= np.float32(self.about[line]))
        return int(review.sum())

    def row_counts(self) -> RowCounts:
        """Rows in and out."""
        lost = self.counts()["quarantined"]
        return RowCounts(rows_in=len(self), rows_out=len(self) - lost, quarantined=lost)


_NOTHING: tuple[np.ndarray, dict[str, np.ndarray]] = (
    np.empty(0, np.int64),
    {
        "verdict": np.empty(0, object),
        **{name: np.empty(0, np.float32) for name in ("score", *MEMBERS)},
    },
)


def particles_schema(features: tuple[str, ...]) -> pa.Schema:
    """The schema of `particles.parquet`: one row per image; a null feature is a missing one.

    ``reason`` is one of `REASONS` where the label is discard and somebody gave a reason. Sets made before
    there were reasons have no such column.
    """
    return pa.schema(
        [
            ("image", pa.string()),
            ("project", pa.string()),
            ("micrograph", pa.string()),
            ("label", pa.bool_()),
            ("reason", pa.string()),
            ("pixel_size", pa.float32()),
            ("diameter", pa.float32()),
            *((name, pa.float32()) for name in features),
        ]
    )
