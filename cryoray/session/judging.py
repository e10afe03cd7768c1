"""One stack, from settled files to verdicts on disk and what the ledger is to learn of them.

Verdicts lie under the session's folder in the order of the watched one: ``verdicts/PATH/OF/stack.mrcs/``
with ``verdicts.parquet``, the four sides as STAR files, ``quarantine.parquet``, and last ``record.json``,
whose being there says that the others are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryoray.boosting.information import information_gain
from cryoray.errors import CryorayError, FormatError, InputError, printable
from cryoray.formats import mrc, rln
from cryoray.formats.companion import rows_of
from cryoray.formats.files import replacing, replacing_folder
from cryoray.formats.names import QUARANTINE_TABLE, VERDICTS_TABLE
from cryoray.formats.opening import OutsideError, Scope
from cryoray.formats.relion import known
from cryoray.formats.rows import Source
from cryoray.formats.source import open_source
from cryoray.formats.verdicts import write_verdicts
from cryoray.records import EMPTY_CLASS, Kind, Verdicts, quarantine_words
from cryoray.session.grid import Grid
from cryoray.session.ledger_records import Micrograph, Outcome
from cryoray.session.profiling import SessionProfile

RECORD = "record.json"
#: Rows of a request; the service takes 100,000 by default.
_ROWS = 20_000
#: Images of each stack that may come into the review queue, and how little is not worth it (bits).
_CANDIDATES, _WORTH = 4, 0.01
#: Larger images are movies or micrographs, px.
_LARGEST_BOX = 2048


class JudgeClient(Protocol):
    """What is asked of a service: `protocol.client.Client` does it."""

    def judge(
        self,
        source: str | Path,
        rows: tuple[int, int] | None = None,
        *,
        ensemble: str | None = None,
        profile: Mapping[str, Any] | None = None,
    ) -> Verdicts:
        """Judge rows of a source."""

    def profile(
        self, source: str | Path | Sequence[str | Path], *, ensemble: str | None = None
    ) -> dict[str, Any]:
        """The profile of a source."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is judged together: a stack with its own STAR file, a bare stack, a STAR file, a table.

    Attributes:
        path: of the stack, or of the STAR file or table whose stacks are not watched.
        kind: what its rows are.
        own: the STAR file that has the rows of this stack and no others.
        shared: a STAR file that has the rows of several stacks, this one among them.
        digest: of everything the verdicts depend on but the ensemble and the profile.
        unused: names of STAR files that lie beside the stack and do not describe it, and why not.
        images: how many particles it has; 0 where that cannot be seen.
    """

    path: Path
    kind: Kind
    own: Path | None
    shared: Path | None
    digest: str
    unused: tuple[tuple[str, str], ...] = ()
    images: int = 0

    @property
    def asked(self) -> Path:
        """What the service is asked about."""
        return self.own or self.path


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What stays the same for all stacks of a session.

    Attributes:
        root: the watched folder.
        roots: folders beside it that its links and STAR files may lead to.
        folder: the session's.
        salt: of the blind sample.
        sample: its size.
        grid: reads places from names.
        max_quarantined: fraction of a stack's rows.
        ensembles: names of the service's, by kind; None for its first.
        swapping: held while the verdicts of a stack take the place of older ones.
    """

    root: Path
    roots: tuple[Path, ...]
    folder: Path
    salt: str
    sample: int
    grid: Grid
    max_quarantined: float
    ensembles: dict[Kind, str | None]
    swapping: threading.Lock = field(default_factory=threading.Lock)

    @property
    def scope(self) -> Scope:
        """What the session may read."""
        return Scope((self.root, *self.roots))

    def place(self, path: Path) -> Path:
        """The folder of a unit's verdicts."""
        return place(self.root, self.folder, path)


def place(root: Path, folder: Path, path: Path) -> Path:
    """The folder of the verdicts of what lies at ``path``, in the session's ``folder``."""
    if path.is_relative_to(root):
        return folder / "verdicts" / path.relative_to(root)
    name = hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()
    return folder / "verdicts" / "elsewhere" / f"{name}-{path.name}"


def incomplete(path: Path, own: Path | None) -> str | None:
    """Why a stack that has settled is still not whole, None where it is.

    Its header may promise more than is there, or its STAR file may name images that are not.

    Raises:
        FormatError: it is no stack of particles at all.
    """
    if path.suffix != ".mrcs":
        return None
    stack = mrc.read_header(path)
    if max(stack.height, stack.width) > _LARGEST_BOX:
        raise FormatError(
            f"its images have {stack.width} × {stack.height} px: a movie, not particles", file=path
        )
    promised = mrc.promised(stack)
    if stack.count < promised:
        return f"{stack.count:,} of {promised:,} images are there"
    if own is not None:
        last = int(open_source(own).frame.max(initial=-1))
        if last >= stack.count:
            return f"{own.name} names image {last + 1:,} of {stack.count:,}"
    return None


def images_of(unit: Unit) -> int:
    """How many images of a unit a profile may rest on; 0 where it cannot be read."""
    if unit.kind != "particle":
        return 0
    try:
        if unit.path.suffix != ".mrcs":
            return len(open_source(unit.path))
        stack = mrc.read_header(unit.path)
    except InputError:
        return 0
    return stack.count if max(stack.height, stack.width) <= _LARGEST_BOX else 0


def judge(
    unit: Unit,
    context: SessionContext,
    service: JudgeClient,
    profile: SessionProfile | None = None,
    *,
    within: frozenset[Kind] = frozenset(),
) -> Outcome:
    """Have a unit judged, unless its verdicts are there already, and write them.

    Args:
        unit: which.
        context: of the session.
        service: judges.
        profile: of the session, for particles; a job of classes is a project by itself.
        within: kinds whose ensemble judges within projects, by their profiles.

    Raises:
        InputError: the unit cannot be read, or the service refuses it.
        CryorayError: the service failed; trying again may help.
    """
    folder = context.place(unit.path)
    there = recorded(folder, unit.digest)
    if there is not None and (profile is None or there.profile == profile.digest):
        return there
    source, rows, by_frame = _rows_in_scope(unit, context)
    body = None if profile is None else profile.body
    if unit.kind == "class2d" and unit.kind in within:
        body = service.profile(unit.asked, ensemble=context.ensembles.get(unit.kind))
    count = len(by_frame) if by_frame is not None else len(source)
    verdicts = _ask(unit, count, context, service, body)
    if by_frame is not None:
        verdicts = Verdicts.together([verdicts.renumbered(by_frame)])
    if body is None and unit.kind in within:
        verdicts = verdicts.with_about({**verdicts.about, "provisional": "yes"})
    outcome = replace(
        _outcome(unit, context, source, rows, verdicts),
        profile=None if body is None else str(body["digest"]),
        changed=0 if there is None else _changed(folder, verdicts),
    )
    # Held last and let go when the folder is in its place: whoever reads sees the old one, or the new one.
    with ExitStack() as swap, replacing_folder(folder, "folder of verdicts", _is_ours) as made:
        # What is merged are STAR files, also where a cryoSPARC table is the source.
        write_verdicts(made, source, verdicts, also_star=True)
        with replacing(made / RECORD) as temporary:
            temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        _durable(made)
        swap.enter_context(context.swapping)
    _sync(folder.parent)
    return outcome


def _is_ours(folder: Path) -> bool:
    """Whether a folder may be replaced: it is in the place of a unit's verdicts, so it holds them."""
    return folder.is_dir() and not folder.is_symlink()


def _changed(folder: Path, verdicts: Verdicts) -> int:
    """How many of the images have another verdict than in the table that is there."""
    before = pq.read_table(folder / VERDICTS_TABLE, columns=["verdict"])["verdict"].to_numpy()
    now = verdicts.verdict
    same = len(before) == len(now)
    return int(np.count_nonzero(before != now)) if same else len(now)


def verdict_of(folder: Path, rows: Sequence[int]) -> dict[int, tuple[str, float]]:
    """Verdict and score of some rows of a unit's `verdicts.parquet`."""
    table = pq.read_table(folder / VERDICTS_TABLE, columns=["verdict", "score"])
    some = [row for row in rows if row < len(table)]
    columns = (table[name].take(some).to_pylist() for name in ("verdict", "score"))
    return dict(zip(some, zip(*columns, strict=True), strict=True))


def _rows_in_scope(
    unit: Unit, context: SessionContext
) -> tuple[Source, np.ndarray, np.ndarray | None]:
    """What `_rows` gives, where all of it lies in the session's folders, whoever the service reads for.

    Raises:
        InputError: something lies elsewhere, or cannot be read.
    """
    scope = context.scope
    try:
        with scope.reading():
            found = _rows(unit)
            for stack in found[0].stacks:
                scope.confine(stack)
    except OutsideError as error:
        raise InputError(
            f"leads to {printable(str(error.file))}, outside of the session's folders",
            file=unit.asked,
            remedy="allow its folder with --root, or take it out",
        ) from error
    return found


def recorded(folder: Path, digest: str) -> Outcome | None:
    """What a record says of verdicts with this digest, None where they are not there, or not whole."""
    try:
        outcome = Outcome.from_record(json.loads((folder / RECORD).read_text(encoding="utf-8")))
        if outcome.digest != digest:
            return None
        lost = pq.read_metadata(folder / QUARANTINE_TABLE).num_rows
        judged = pq.read_metadata(folder / VERDICTS_TABLE).num_rows
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    whole = lost == outcome.quarantined and judged + lost == outcome.rows
    return outcome if whole else None


def _rows(unit: Unit) -> tuple[Source, np.ndarray, np.ndarray | None]:
    """The source of the verdicts, its rows, and the row of each frame where the service says frames."""
    if unit.shared is not None:
        star = open_source(unit.shared, unit.kind)
        rows = rows_of(star, unit.path)
        count = mrc.read_header(unit.path).count
        frames = star.frame[rows]
        if np.array_equal(np.unique(frames), np.arange(count)) and len(frames) == count:
            return star, rows, rows[np.argsort(frames)]
    source = open_source(unit.asked, unit.kind)
    return source, np.arange(len(source)), None


def _ask(
    unit: Unit,
    rows: int,
    context: SessionContext,
    service: JudgeClient,
    profile: Mapping[str, Any] | None,
) -> Verdicts:
    """The service's verdicts on ``rows`` rows of what it is asked about."""
    ensemble = context.ensembles.get(unit.kind)
    some = [(first, min(first + _ROWS, rows)) for first in range(0, rows, _ROWS)]
    parts = [
        service.judge(unit.asked, part, ensemble=ensemble, profile=profile)
        for part in (some if len(some) > 1 else [None])
    ]
    if len({part.ensemble for part in parts}) > 1:
        raise CryorayError("The ensemble was replaced while a stack was judged.")
    verdicts = Verdicts.together(parts)
    if not np.array_equal(verdicts.table["row"].to_numpy(), np.arange(rows)):
        raise CryorayError(
            f"{unit.asked}: {rows:,} rows were sent and {len(verdicts):,} came back."
        )
    return verdicts


def _outcome(
    unit: Unit,
    context: SessionContext,
    source: Source,
    rows: np.ndarray,
    verdicts: Verdicts,
) -> Outcome:
    verdict, score = verdicts.verdict, verdicts.score.astype(float)
    judged, quarantined = verdicts.rows, verdicts.quarantined
    allowed = int(context.max_quarantined * len(rows))
    # An empty class is no fault of its file.
    faults = [why for _, why in quarantined if quarantine_words(why, unit.kind) != EMPTY_CLASS]
    rejected = len(faults) > allowed
    reason = (
        f"{len(faults):,} of {len(rows):,} rows could not be read ({allowed:,} allowed): {faults[0]}"
        if rejected
        else None
    )
    outcome = Outcome(
        digest=unit.digest,
        state="rejected" if rejected else "judged",
        rows=len(rows),
        kept=int(np.count_nonzero(verdict == "keep")),
        discarded=int(np.count_nonzero(verdict == "discard")),
        review=int(np.count_nonzero(verdict == "review")),
        quarantined=len(quarantined),
        score=_mean(score),
        ensemble=verdicts.ensemble,
        at=time.time(),
        reason=reason,
    )
    if rejected or unit.kind != "particle":
        return outcome
    return replace(
        outcome,
        micrographs=tuple(_micrographs(unit, context, source, rows, judged, verdict, score)),
        candidates=_candidates(verdicts),
        sample=_sample(unit, context, verdicts, np.searchsorted(np.sort(rows), judged)),
    )


def _micrographs(
    unit: Unit,
    context: SessionContext,
    source: Source,
    rows: np.ndarray,
    judged: np.ndarray,
    verdict: np.ndarray,
    score: np.ndarray,
) -> list[Micrograph]:
    names = np.where(source.micrograph[rows] == "", unit.path.stem, source.micrograph[rows])
    nothing = np.full(len(source), np.nan)
    columns = {
        name: known(source.metadata.get(name, nothing))
        for name in (rln.DEFOCUS_U, rln.DEFOCUS_V, rln.CTF_MAX_RESOLUTION)
    }
    defocus = (columns[rln.DEFOCUS_U] + columns[rln.DEFOCUS_V]) / 2e4
    _, first, which = np.unique(names.astype(str), return_index=True, return_inverse=True)
    made = []
    for group in np.argsort(first).tolist():
        here = rows[which == group]
        of = np.isin(judged, here)
        place = context.grid.place(str(names[first[group]]))
        here_verdict = verdict[of]
        made.append(
            Micrograph(
                name=str(names[first[group]]),
                square=place.square,
                hole=place.hole,
                kept=int(np.count_nonzero(here_verdict == "keep")),
                discarded=int(np.count_nonzero(here_verdict == "discard")),
                review=int(np.count_nonzero(here_verdict == "review")),
                quarantined=len(here) - len(here_verdict),
                score=_mean(score[of]),
                defocus=_mean(defocus[here]),
                ctf_resolution=_mean(columns[rln.CTF_MAX_RESOLUTION][here]),
            )
        )
    return made


def _mean(values: np.ndarray) -> float | None:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else None


def _candidates(verdicts: Verdicts) -> tuple[tuple[int, float], ...]:
    if not len(verdicts.rows):
        return ()
    worth = information_gain(verdicts.members())
    best = np.argsort(-worth, kind="stable")[:_CANDIDATES].tolist()
    return tuple((at, float(worth[at])) for at in best if worth[at] >= _WORTH)


def _sample(
    unit: Unit, context: SessionContext, verdicts: Verdicts, position: np.ndarray
) -> tuple[tuple[int, str, float], ...]:
    """The lowest draws: uniform numbers that depend on where an image is, and on nothing else.

    Args:
        unit: it lies in.
        context: with the salt.
        verdicts: on its rows.
        position: int64 [n] of each among all rows of the unit, those included that were quarantined.
    """
    key = hashlib.blake2b(f"{context.salt}\0{unit.path}".encode(), digest_size=16).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(key)))
    draws = random.random(int(position.max(initial=-1)) + 1)[position]
    lowest = np.argsort(draws, kind="stable")[: context.sample]
    images = verdicts.column("image")[lowest].tolist()
    return tuple(
        (at, image, float(draws[at])) for at, image in zip(lowest.tolist(), images, strict=True)
    )


def digest(*parts: object) -> str:
    """Of what a unit's verdicts depend on."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


def refuse(error: InputError, digest: str) -> Outcome:
    """The outcome of a unit that cannot be judged, with the reason."""
    return Outcome(
        digest=digest,
        state="rejected",
        rows=0,
        kept=0,
        discarded=0,
        review=0,
        quarantined=0,
        score=None,
        ensemble=None,
        at=time.time(),
        reason=str(error),
    )


def _durable(folder: Path) -> None:
    """Have all files of a folder on the disk itself, so that a record never outlives them.

    They are for their owner alone: what is decided about unpublished images is nobody else's.
    """
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.is_symlink() and not file.name.startswith("."):
            file.chmod(0o600)
            _sync(file)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
