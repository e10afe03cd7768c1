"""The small things that cross floors: stacks, row ranges, verdicts, progress, and the tables on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

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

MEMBERS = ("d1", "d2", "d3")

#: How many rows a source may always lose, however small the fraction allowed (contracts: exit codes).
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
    """

    index: int
    stack: Stack
    frames: np.ndarray
    rows: np.ndarray
    pixel_size: np.ndarray
    features: np.ndarray
    invert: bool = False

    @property
    def bytes(self) -> int:
        """Bytes that reading this range touches."""
        return len(self.frames) * self.stack.image_bytes

    def __getitem__(self, some: slice) -> RowRange:
        """Some of the rows."""
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
    """The callback of a caller who does not want to be told."""


@dataclass(frozen=True, slots=True)
class Books:
    """Rows in = rows out + quarantined, checked at the end of every verb."""

    rows_in: int
    rows_out: int
    quarantined: int

    def check(self, *, max_quarantined: float, listed_in: Path | None = None) -> Books:
        """Raise where rows are unaccounted for, or where too many were quarantined.

        Args:
            max_quarantined: fraction of rows that may be quarantined; never fewer than 100 rows.
            listed_in: the file with the list of quarantined rows, already written.

        Raises:
            InternalError: rows in differ from rows out + quarantined.
            QuarantineError: the bound is exceeded, or nothing at all came through.
        """
        if self.rows_in != self.rows_out + self.quarantined:
            raise InternalError(f"the books do not balance: {self}")
        allowed = max(QUARANTINE_FLOOR, int(max_quarantined * self.rows_in))
        if self.quarantined > allowed or (self.quarantined and not self.rows_out):
            raise QuarantineError(
                f"{self.quarantined:,} of {self.rows_in:,} rows could not be read ({allowed:,} allowed)",
                file=listed_in,
                remedy="look at the reasons listed there, mend the source or raise max_quarantined",
            )
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


def particles_schema(features: tuple[str, ...]) -> pa.Schema:
    """The schema of `particles.parquet`: one row per image; a null feature is a missing one.

    ``reason`` is one of `REASONS` where the label is discard and somebody said why. Sets made before
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
