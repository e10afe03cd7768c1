"""The records that a ledger takes: of stacks found, judged and rejected, and of events."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from cryoray.session.schema import State


@dataclass(frozen=True, slots=True)
class Seen:
    """A settled stack, as the watcher found it.

    Attributes:
        path: absolute, of what is judged: a stack, a STAR file, a table.
        described_by: the STAR file that has its rows, None for itself or a bare stack.
        kind: ``particle`` or ``class2d``.
        digest: of the content that is to be judged; another one means that it is judged again.
        size: bytes.
        mtime_ns: of the file.
        settled: when it had been unchanged for the settle time.
    """

    path: str
    described_by: str | None
    kind: str
    digest: str
    size: int
    mtime_ns: int
    settled: float


@dataclass(frozen=True, slots=True)
class Micrograph:
    """What became of one micrograph's images, and where it was taken; None where unknown."""

    name: str
    square: str | None
    hole: str | None
    kept: int
    discarded: int
    review: int
    quarantined: int
    score: float | None
    defocus: float | None
    ctf_resolution: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that the ledger learns when a stack was judged; the record beside the verdicts holds the same.

    Attributes:
        digest: of what was judged.
        state: ``judged``, or ``rejected`` with its reason.
        rows: kept + discarded + review + quarantined.
        score: mean over the judged.
        ensemble: digest of the ensemble that judged.
        at: when.
        micrographs: in order of first mention.
        candidates: (row of `verdicts.parquet`, expected information gain of its label, bits), the best
            of this stack.
        sample: (row of `verdicts.parquet`, image, draw), the lowest draws of this stack.
        profile: digest of the profile that the verdicts rest on; None where it is none.
        changed: images whose verdict was another one by the profile before.
    """

    digest: str
    state: State
    rows: int
    kept: int
    discarded: int
    review: int
    quarantined: int
    score: float | None
    ensemble: str | None
    at: float
    reason: str | None = None
    micrographs: tuple[Micrograph, ...] = ()
    candidates: tuple[tuple[int, float], ...] = ()
    sample: tuple[tuple[int, str, float], ...] = ()
    profile: str | None = None
    changed: int = 0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Outcome:
        """What `dataclasses.asdict` made of one, after a trip through JSON."""
        known = {one.name: record[one.name] for one in fields(cls) if one.name in record}
        if known["state"] == "aside":  # what earlier versions called it
            known["state"] = "rejected"
        known["micrographs"] = tuple(Micrograph(**one) for one in record["micrographs"])
        known["candidates"] = tuple((int(row), float(t)) for row, t in record["candidates"])
        known["sample"] = tuple((int(r), str(i), float(d)) for r, i, d in record["sample"])
        return cls(**known)


#: Verdict and score of some rows of a stack's `verdicts.parquet`.
VerdictOf = Callable[[Sequence[int]], Mapping[int, tuple[str, float]]]


@dataclass(frozen=True, slots=True)
class Happened:
    """An event with the id under which it happens once."""

    id: str
    name: str
    data: Mapping[str, object] = field(default_factory=dict)


def stack_id(session: str, path: str) -> str:
    """The id of a stack: derived from where it is, so that it is the same after every restart."""
    named = f"{session}\0{path}".encode(errors="surrogateescape")
    return hashlib.blake2b(named, digest_size=12).hexdigest()
