"""The ledger: what became of every stack of every session, and how people labelled its images.

A database through SQLAlchemy: SQLite beside the session, or PostgreSQL by URL. It holds a row for each
stack and for each micrograph, never one for each image: a session of 36 million images has some
100,000 rows here, and the verdicts lie in files beside it.

**The states of a stack.**

::

    pending ──► judged          verdict files with this digest are on disk, counts are here
       │  ▲ ╲
       │  │   ─► rejected       cannot be used: unreadable, or too much of it was quarantined
       ▼  └──── (rewritten: another digest)
    vanished ─► pending         its file is gone; it may come back

*Invariant.* A stack is ``judged`` or ``rejected`` under a digest only after the verdict files of that digest
were written, each by rename, with their record last; and one transaction then replaces all that this
ledger holds of the stack. So whoever is killed when: either the record is missing, and the stack is
judged anew into the same files; or it is there and the ledger does not know, and learns it again from
the record. Every id is derived from content or position, so what is done twice is done once.

*Profiles.* Where the ensemble judges within a project, the verdicts of a stack rest on a profile, whose
digest is beside them here and in the record. When the session has another one, the stack stays ``judged``,
and counts, until its new verdicts take the place of the old ones in the same way; when it was judged first
and what people said of its images are left as they were. Which stacks are left to be judged again is seen
from their profiles, so a watcher that is killed goes on with those.

Images are named by a stack and a ``row``: the 0-based row of the stack's `verdicts.parquet`.

The watcher alone writes stacks, micrographs and events; the page alone writes overrides, labels and
wishes (``trainable``, ``merge_wanted``).
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from hmac import compare_digest
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine, Row, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)

from cryoray.errors import CryorayError, InputError, SettingsError
from cryoray.session import schema
from cryoray.session.names import recordable
from cryoray.session.schema import (
    FATES,
    State,
    audit,
    candidates,
    events,
    micrographs,
    overrides,
    sessions,
    stacks,
)

#: Of PostgreSQL's advisory locks, ours: taken while tables are made or changed.
_LOCK = 1_668_446_575
_FATE_OF = {"keep": "kept", "discard": "discarded", "review": "review"}
#: Seconds for which a label of the blind sample can be taken back; the verdict is shown afterwards.
SECOND_THOUGHTS = 60.0
#: For how long a write waits for another connection's, ms.
_BUSY_MS = 15_000
#: Ids in one question.
_BATCH = 500
#: Draws kept beyond the blind sample, for images of it that are rewritten or vanish.
_RESERVE = 4
#: Seconds of silence after which another machine may take an SQLite file over.
_GIVEN_UP = 600.0
#: An operator's token reads everything; nothing else has this scope.
OPERATOR = "*"


class LedgerAwayError(CryorayError):
    """The ledger cannot be had now: locked by another program, or its server does not answer."""

    exit_code = 2


class UnstorableError(InputError):
    """What was to be noted has text that the database cannot hold."""


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


def hash_token(token: str) -> str:
    """What the ledger keeps of a token; tokens are random, so no salt is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


class Ledger:
    """One database; may be used from several threads, and by watcher and page at the same time.

    What opens or writes raises OSError where the disk of an SQLite file is full; nothing is written then.
    Any method raises LedgerAwayError where the database stays locked for 15 s, or its server is away:
    nothing is written then either, and the same call may be made again. An SQLite file is for its owner
    alone (mode 0600).

    Args:
        url: ``sqlite:///FILE``, the path of an SQLite file, or ``postgresql://…``.

    Raises:
        SettingsError: the database cannot be opened.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = _url(url)
        if self.url.drivername.startswith("sqlite") and self.url.database:
            _make_private(Path(self.url.database))
        try:
            self.engine = sql.create_engine(self.url, pool_pre_ping=True)
            if self.is_sqlite:
                _prepare_sqlite(self.engine)
            try:
                self._bring_up_to_date()
            except BaseException:
                self.engine.dispose()
                raise
        except (SQLAlchemyError, ImportError, LedgerAwayError) as error:
            self._complain_of_room(error)
            cause = error.__cause__ if isinstance(error, LedgerAwayError) else None
            raise SettingsError(
                f"the ledger {self.url.render_as_string()} cannot be opened: {_first_line(cause or error)}",
                remedy="give a path that can be written, or the URL of a PostgreSQL that runs"
                " (`pip install cryoray[postgres]` brings its driver)",
            ) from error

    def _bring_up_to_date(self) -> None:
        """Read first: a ledger that is as it should be is opened though another program writes."""
        with self._reading() as connection:
            if schema.is_current(connection):
                return
        with self._writing() as connection:
            if not self.is_sqlite:  # SQLite has one writer; here two watchers may come at once
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            if not schema.is_current(connection):
                schema.bring_up_to_date(connection)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file, which one machine alone may use."""
        return self.url.get_backend_name() == "sqlite"

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self.engine.connect() as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            self._complain(error)
            raise

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        # SQLite takes its lock at once: two readers that both want to write later would deadlock.
        try:
            with (
                self.engine.connect().execution_options(cryoray_writes=True) as connection,
                connection.begin(),
            ):
                yield connection
        except UnicodeError as error:
            raise UnstorableError(f"has text that the ledger cannot hold: {error}") from error
        except DBAPIError as error:
            self._complain(error)
            raise

    def _complain(self, error: DBAPIError) -> None:
        """Raise what somebody can do something about, where the error is such."""
        self._complain_of_room(error)
        if isinstance(error, DataError):
            raise UnstorableError(
                f"has text that the ledger cannot hold: {_first_line(error)}"
            ) from error
        code = getattr(error.orig, "sqlite_errorcode", None)
        busy = code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        if busy or (code is None and isinstance(error, OperationalError)):
            why = "another program holds its lock" if busy else _first_line(error)
            raise LedgerAwayError(
                f"the ledger {self.url.render_as_string()} cannot be used now: {why}."
            ) from error

    def _complain_of_room(self, error: Exception) -> None:
        """Raise OSError where what failed is that the disk of an SQLite file is full."""
        code = getattr(getattr(error, "orig", None), "sqlite_errorcode", 0)
        file = Path(self.url.database or "")
        # Of the file that connections share, SQLite says only that something failed.
        full = code & 0xFF == sqlite3.SQLITE_IOERR and not shutil.disk_usage(file.parent).free
        if full or code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error

    def _insert(self, table: sql.Table) -> Any:
        """An INSERT that leaves what is there already."""
        make = sqlite.insert if self.is_sqlite else postgresql.insert
        return make(table).on_conflict_do_nothing()

    # --- sessions

    def open_session(
        self,
        name: str,
        *,
        root: Path,
        folder: Path,
        roots: Sequence[Path] = (),
        trainable: bool = False,
        audit_size: int = 50,
    ) -> str | None:
        """Begin a session, or go on with it.

        Returns:
            its token where it is new: nobody can ask for it again.

        Raises:
            InputError: the session of this name watches another folder.
            SettingsError: it is kept in an SQLite file of another machine.
        """
        token, now = secrets.token_urlsafe(32), time.time()
        with self._writing() as connection:
            there = connection.execute(sql.select(sessions).where(sessions.c.name == name)).first()
            if there is None:
                connection.execute(
                    sessions.insert().values(
                        name=name,
                        root=str(root),
                        folder=str(folder),
                        roots=[str(one) for one in roots],
                        state="open",
                        trainable=trainable,
                        token_hash=hash_token(token),
                        salt=secrets.token_hex(16),
                        host=socket.gethostname(),
                        opened=now,
                        seen=now,
                        audit=audit_size,
                        baseline={},
                    )
                )
                return token
            # Earlier versions noted the path by which it was reached, perhaps a link.
            if os.path.realpath(there.root) != os.path.realpath(root):
                raise InputError(
                    f"the session {name!r} watches {there.root}",
                    file=root,
                    remedy="give another --session, or that folder",
                )
            connection.execute(
                sessions.update()
                .where(sessions.c.name == name)
                .values(
                    state="open",
                    closed=None,
                    seen=now,
                    root=str(root),
                    folder=str(folder),
                    roots=[str(one) for one in roots],
                    host=socket.gethostname(),
                )
            )
            return None

    def new_token(self, session: str) -> str:
        """Another token for a session; the one before is worth nothing from now on."""
        token = secrets.token_urlsafe(32)
        self._set(session, token_hash=hash_token(token))
        return token

    def close_session(self, session: str) -> None:
        """Mark it as ended; it can be opened again."""
        self._set(session, state="closed", closed=time.time())

    def alive(self, session: str) -> None:
        """The watcher's sign of life."""
        self._set(session, seen=time.time())

    def set_baseline(self, session: str, baseline: Mapping[str, object]) -> None:
        """What the ensemble says of its training."""
        self._set(session, baseline=dict(baseline))

    def set_trainable(self, session: str, *, trainable: bool) -> None:
        """Whether overrides become training labels; the owner's choice."""
        self._set(session, trainable=trainable)

    def want_merge(self, session: str) -> None:
        """Ask the watcher for merged files now."""
        self._set(session, merge_wanted=time.time())

    def merged(self, session: str, at: float) -> None:
        """The merged files hold everything until ``at``; later wishes stay."""
        with self._writing() as connection:
            row = connection.execute(
                sql.select(sessions.c.merge_wanted).where(sessions.c.name == session)
            ).scalar()
            left = row if row is not None and row > at else None
            connection.execute(
                sessions.update()
                .where(sessions.c.name == session)
                .values(merged=at, merge_wanted=left)
            )

    def _set(self, session: str, **values: object) -> None:
        with self._writing() as connection:
            connection.execute(sessions.update().where(sessions.c.name == session).values(**values))

    def session(self, name: str) -> Row[Any] | None:
        """One session's row, None where there is no such."""
        with self._reading() as connection:
            return connection.execute(sql.select(sessions).where(sessions.c.name == name)).first()

    def sessions(self) -> Sequence[Row[Any]]:
        """All sessions, the newest first."""
        with self._reading() as connection:
            return connection.execute(sql.select(sessions).order_by(sessions.c.opened.desc())).all()

    def check_host(self) -> None:
        """Refuse an SQLite file that another machine's watcher writes: its locks do not reach here.

        Raises:
            SettingsError: a session in it is open on another machine.
        """
        if not self.is_sqlite:
            return
        now = time.time()
        for row in self.sessions():
            alive = row.state == "open" and now - row.seen < _GIVEN_UP
            if alive and row.host != socket.gethostname():
                raise SettingsError(
                    f"the ledger is an SQLite file, and the session {row.name!r} is written by {row.host}",
                    file=self.url.database,
                    remedy="use a PostgreSQL for both (--ledger postgresql://…), or one machine",
                )

    def scope(self, token: str) -> str | None:
        """The session that a token is for, None where it is for none; compared in constant time."""
        given, found = hash_token(token), None
        for row in self.sessions():
            if compare_digest(row.token_hash, given):
                found = row.name
        return found

    # --- stacks: the watcher's

    def expect(self, session: str, seen: Iterable[Seen]) -> list[str]:
        """Note settled stacks; one whose digest is new is pending from now on.

        Returns:
            ids of those that are pending now.
        """
        by_key = {
            stack_id(session, one.path): replace(one, path=recordable(one.path)) for one in seen
        }
        pending = []
        with self._writing() as connection:
            for keys in batched(by_key, _BATCH):
                there = {
                    row.id: row
                    for row in connection.execute(
                        sql.select(stacks.c.id, stacks.c.digest, stacks.c.state).where(
                            stacks.c.id.in_(keys)
                        )
                    )
                }
                for key in keys:
                    values = asdict(by_key[key])
                    known = there.get(key)
                    if known is None:
                        new = {"id": key, "session": session, "state": "pending"}
                        connection.execute(stacks.insert().values(**new, **values))
                    elif known.digest != by_key[key].digest or known.state == "vanished":
                        self._forget(connection, key)
                        connection.execute(
                            stacks.update()
                            .where(stacks.c.id == key)
                            .values(state="pending", attempts=0, **values)
                        )
                    elif known.state != "pending":
                        continue
                    pending.append(key)
        return pending

    def _forget(self, connection: Connection, key: str) -> None:
        """Drop what was known of a stack's images; what people said stays, under the old digest."""
        for table in (micrographs, candidates):
            connection.execute(table.delete().where(table.c.stack == key))
        connection.execute(audit.delete().where(audit.c.stack == key, audit.c.keep.is_(None)))
        connection.execute(
            stacks.update()
            .where(stacks.c.id == key)
            .values(
                rows=0,
                score=None,
                reason=None,
                judged=None,
                ensemble=None,
                profile=None,
                **dict.fromkeys(FATES, 0),
            )
        )

    def vanish(self, keys: Iterable[str]) -> None:
        """Note that the files of these stacks are gone; their images count no longer."""
        with self._writing() as connection:
            for key in keys:
                self._forget(connection, key)
                connection.execute(
                    stacks.update()
                    .where(stacks.c.id == key)
                    .values(state="vanished", reason="the file is no longer there")
                )

    def attempt(self, key: str, reason: str | None = None) -> None:
        """Count an attempt, with what went wrong."""
        with self._writing() as connection:
            connection.execute(
                stacks.update()
                .where(stacks.c.id == key)
                .values(attempts=stacks.c.attempts + 1, reason=reason)
            )

    def commit(
        self,
        session: str,
        key: str,
        outcome: Outcome,
        happened: Iterable[Happened] = (),
        verdict_of: VerdictOf | None = None,
    ) -> bool:
        """Replace all that is known of a stack by its outcome, in one transaction.

        What was judged before, by another profile, keeps the time at which it was judged first, and what
        people said of it.

        Args:
            session: its name.
            key: of the stack.
            outcome: of it.
            happened: events that go with it.
            verdict_of: the new verdicts of images that people decided about.

        Returns:
            False, and nothing is changed, where the stack was rewritten or vanished meanwhile.
        """
        counts = {name: getattr(outcome, name) for name in FATES}
        with self._writing() as connection:
            there = connection.execute(
                sql.select(stacks.c.digest, stacks.c.state, stacks.c.judged).where(
                    stacks.c.id == key
                )
            ).first()
            if there is None or there.digest != outcome.digest or there.state == "vanished":
                return False
            again = there.state == "judged" and there.judged is not None
            at = there.judged if again else outcome.at
            self._forget(connection, key)
            connection.execute(
                stacks.update()
                .where(stacks.c.id == key)
                .values(
                    state=outcome.state,
                    rows=outcome.rows,
                    score=outcome.score,
                    ensemble=outcome.ensemble,
                    judged=at,
                    profile=outcome.profile,
                    reason=outcome.reason,
                    **counts,
                )
            )
            if outcome.state == "judged":
                self._fill(connection, session, key, outcome, at)
                if verdict_of is not None:
                    _renew_overrides(connection, key, outcome.digest, verdict_of)
            self._note(connection, session, happened, outcome.at)
        return True

    def _fill(
        self, connection: Connection, session: str, key: str, outcome: Outcome, judged: float
    ) -> None:
        if outcome.micrographs:
            connection.execute(
                micrographs.insert(),
                [
                    {
                        "stack": key,
                        "ordinal": at,
                        "session": session,
                        "judged": judged,
                        **asdict(one),
                    }
                    for at, one in enumerate(outcome.micrographs)
                ],
            )
        if outcome.candidates:
            connection.execute(
                candidates.insert(),
                [
                    {"stack": key, "row": row, "session": session, "information": information}
                    for row, information in outcome.candidates
                ],
            )
        size = connection.execute(
            sql.select(sessions.c.audit).where(sessions.c.name == session)
        ).scalar_one()
        bound = connection.execute(
            sql.select(audit.c.draw)
            .where(audit.c.session == session)
            .order_by(audit.c.draw)
            .offset(max(0, _RESERVE * size - 1))
            .limit(1)
        ).scalar()
        drawn = [one for one in outcome.sample if bound is None or one[2] <= bound]
        for row, image, draw in drawn:
            values = {
                "session": session,
                "digest": outcome.digest,
                "image": image,
                "draw": draw,
            }
            # One that is there was labelled: of other content, that label is worth nothing.
            connection.execute(
                audit.update()
                .where(audit.c.stack == key, audit.c.row == row)
                .where(audit.c.digest != outcome.digest)
                .values(keep=None, who=None, at=None, **values)
            )
            connection.execute(self._insert(audit).values(stack=key, row=row, **values))

    def set_profile(
        self,
        session: str,
        profile: Mapping[str, object] | None,
        seen: int = 0,
        happened: Iterable[Happened] = (),
    ) -> None:
        """By which profile the session judges from now on; None: each image alone.

        Args:
            session: its name.
            profile: as `profile.json` has it.
            seen: images that the session had when it was made.
            happened: events that go with it.
        """
        body, images = (dict(profile), seen) if profile is not None else (None, None)
        with self._writing() as connection:
            connection.execute(
                sessions.update()
                .where(sessions.c.name == session)
                .values(profile=body, profiled=images)
            )
            self._note(connection, session, happened, time.time())

    def outdated(self, session: str, profile: str) -> list[str]:
        """Ids of the judged stacks of particles whose verdicts rest on another profile, the oldest first."""
        wanted = (
            sql.select(stacks.c.id)
            .where(stacks.c.session == session, stacks.c.state == "judged")
            .where(stacks.c.kind == "particle", stacks.c.profile.is_distinct_from(profile))
            .order_by(stacks.c.judged, stacks.c.id)
        )
        with self._reading() as connection:
            return list(connection.execute(wanted).scalars())

    # --- events: the watcher's

    def note(self, session: str, happened: Iterable[Happened]) -> None:
        """Note that something happened; an id that is known has happened already."""
        with self._writing() as connection:
            self._note(connection, session, happened, time.time())

    def _note(
        self, connection: Connection, session: str, happened: Iterable[Happened], at: float
    ) -> None:
        for one in happened:
            connection.execute(
                self._insert(events).values(
                    id=one.id, session=session, name=one.name, at=at, data=dict(one.data)
                )
            )

    def events(
        self,
        session: str,
        *,
        unwritten: bool = False,
        unposted: bool = False,
        names: Sequence[str] = (),
        latest: int | None = None,
        limit: int = 1000,
    ) -> Sequence[Row[Any]]:
        """Events in the order in which they were noted; the ``latest`` ones come newest first."""
        wanted = sql.select(events).where(events.c.session == session)
        if unwritten:
            wanted = wanted.where(events.c.written.is_(False))
        if unposted:
            wanted = wanted.where(events.c.posted.is_(False))
        if names:
            wanted = wanted.where(events.c.name.in_(names))
        order = events.c.number if latest is None else events.c.number.desc()
        with self._reading() as connection:
            return connection.execute(wanted.order_by(order).limit(latest or limit)).all()

    def mark(self, numbers: Sequence[int], *, written: bool = False, posted: bool = False) -> None:
        """Say that events were written as lines, or posted."""
        values = {**({"written": True} if written else {}), **({"posted": True} if posted else {})}
        with self._writing() as connection:
            connection.execute(
                events.update().where(events.c.number.in_(list(numbers))).values(**values)
            )

    # --- questions

    def stack(self, key: str) -> Row[Any] | None:
        """One stack's row, None where there is no such."""
        with self._reading() as connection:
            return connection.execute(sql.select(stacks).where(stacks.c.id == key)).first()

    def stacks(
        self,
        session: str,
        *states: State,
        kind: str | None = None,
        newest: int | None = None,
        before: float | None = None,
    ) -> Sequence[Row[Any]]:
        """Stacks in the order of their paths, or the newest judged ones first."""
        wanted = sql.select(stacks).where(stacks.c.session == session)
        if states:
            wanted = wanted.where(stacks.c.state.in_(states))
        if kind:
            wanted = wanted.where(stacks.c.kind == kind)
        if before is not None:
            wanted = wanted.where(stacks.c.judged < before)
        if newest is None:
            wanted = wanted.order_by(stacks.c.path)
        else:
            wanted = wanted.order_by(stacks.c.judged.desc(), stacks.c.id).limit(newest)
        with self._reading() as connection:
            return connection.execute(wanted).all()

    def totals(self, session: str) -> dict[str, dict[str, int]]:
        """Stacks, rows and fates by kind and state: ``totals["particle/judged"]["kept"]``.

        What a person said of an image counts in place of its verdict, as in the merged files.
        ``overridden`` is how many images somebody said something of.
        """
        wanted = (
            sql.select(
                stacks.c.kind,
                stacks.c.state,
                sql.func.count().label("stacks"),
                *(
                    sql.func.coalesce(sql.func.sum(stacks.c[name]), 0).label(name)
                    for name in ("rows", *FATES)
                ),
            )
            .where(stacks.c.session == session)
            .group_by(stacks.c.kind, stacks.c.state)
        )
        overridden = (
            sql.select(
                stacks.c.kind,
                overrides.c.before,
                overrides.c.keep,
                sql.func.count().label("images"),
            )
            .join(stacks, stacks.c.id == overrides.c.stack)
            .where(overrides.c.session == session, overrides.c.digest == stacks.c.digest)
            .where(stacks.c.state == "judged")
            .group_by(stacks.c.kind, overrides.c.before, overrides.c.keep)
        )
        with self._reading() as connection:
            totals = {
                f"{row.kind}/{row.state}": {
                    name: int(row._mapping[name]) for name in ("stacks", "rows", *FATES)
                }
                | {"overridden": 0}
                for row in connection.execute(wanted)
            }
            for row in connection.execute(overridden):
                counts = totals[f"{row.kind}/judged"]
                counts[_FATE_OF[row.before]] -= row.images
                counts["kept" if row.keep else "discarded"] += row.images
                counts["overridden"] += row.images
        return totals

    def micrographs(self, session: str, *, since: float = 0.0) -> Sequence[Row[Any]]:
        """What is known of each micrograph, in the order in which they were judged."""
        wanted = (
            sql.select(micrographs)
            .where(micrographs.c.session == session, micrographs.c.judged >= since)
            .order_by(micrographs.c.judged, micrographs.c.stack, micrographs.c.ordinal)
        )
        with self._reading() as connection:
            return connection.execute(wanted).all()

    def square(self, session: str, square: str) -> Row[Any]:
        """Sums over one grid square: micrographs, fates, mean score and CTF resolution."""
        judged = micrographs.c.kept + micrographs.c.discarded + micrographs.c.review
        with_ctf = sql.case((micrographs.c.ctf_resolution.is_not(None), judged), else_=0)
        wanted = sql.select(
            sql.func.count().label("micrographs"),
            *(sql.func.sum(micrographs.c[name]).label(name) for name in FATES),
            (
                sql.func.sum(micrographs.c.score * judged)
                / sql.func.nullif(sql.func.sum(judged), 0)
            ).label("score"),
            (
                sql.func.sum(micrographs.c.ctf_resolution * judged)
                / sql.func.nullif(sql.func.sum(with_ctf), 0)
            ).label("ctf_resolution"),
        ).where(micrographs.c.session == session, micrographs.c.square == square)
        with self._reading() as connection:
            return connection.execute(wanted).one()

    def candidates(self, session: str, limit: int, offset: int = 0) -> Sequence[Row[Any]]:
        """Images by the expected information gain of a label, but those that have one, here or blind."""
        labelled = sql.exists().where(
            overrides.c.stack == candidates.c.stack, overrides.c.row == candidates.c.row
        )
        blind = sql.exists().where(
            audit.c.stack == candidates.c.stack, audit.c.row == candidates.c.row
        )
        wanted = (
            sql.select(candidates, stacks.c.path)
            .join(stacks, stacks.c.id == candidates.c.stack)
            .where(candidates.c.session == session, ~labelled, ~blind)
            .order_by(candidates.c.information.desc(), candidates.c.stack, candidates.c.row)
            .limit(limit)
            .offset(offset)
        )
        with self._reading() as connection:
            return connection.execute(wanted).all()

    def under_review(self, session: str) -> Sequence[Row[Any]]:
        """Stacks that have images under review, by path, with ``decided``: how many have an override."""
        wanted = (
            sql.select(stacks, sql.func.count(overrides.c.row).label("decided"))
            .outerjoin(
                overrides,
                (overrides.c.stack == stacks.c.id)
                & (overrides.c.digest == stacks.c.digest)
                & (overrides.c.before == "review"),
            )
            .where(stacks.c.session == session, stacks.c.state == "judged", stacks.c.review > 0)
            .group_by(stacks.c.id)
            .order_by(stacks.c.path)
        )
        with self._reading() as connection:
            return connection.execute(wanted).all()

    # --- what people said: the page's

    def override(
        self,
        session: str,
        key: str,
        row: int,
        keep: bool | None,
        *,
        image: str,
        before: str,
        score: float,
        digest: str,
        who: str,
    ) -> None:
        """Say what an image is, or (None) take back what was said; each saying is an event too."""
        now = time.time()
        with self._writing() as connection:
            connection.execute(
                overrides.delete().where(overrides.c.stack == key, overrides.c.row == row)
            )
            if keep is not None:
                connection.execute(
                    overrides.insert().values(
                        stack=key,
                        row=row,
                        session=session,
                        digest=digest,
                        image=image,
                        keep=keep,
                        before=before,
                        score=score,
                        who=who,
                        at=now,
                    )
                )
            decision = {True: "keep", False: "discard", None: None}[keep]
            data = {"image": image, "row": row, "before": before, "said": decision, "who": who}
            happened = Happened(f"{key}:{row}:{now:.6f}", "verdict.overridden", data)
            self._note(connection, session, [happened], now)

    def overrides(self, session: str) -> Sequence[Row[Any]]:
        """What people said of images that are still what they were, with their stacks' paths."""
        wanted = (
            sql.select(overrides, stacks.c.path, stacks.c.described_by, stacks.c.kind)
            .join(stacks, stacks.c.id == overrides.c.stack)
            .where(overrides.c.session == session, overrides.c.digest == stacks.c.digest)
            .where(stacks.c.state == "judged")
            .order_by(stacks.c.path, overrides.c.row)
        )
        with self._reading() as connection:
            return connection.execute(wanted).all()

    def audit_sample(self, session: str) -> Sequence[Row[Any]]:
        """The blind sample: the images with the lowest draws, in the order of their draws.

        Draws are uniform and depend on an image's place alone, so at any time this is a uniform
        sample without replacement of all images judged so far, however they came in.
        """
        row = self.session(session)
        wanted = (
            sql.select(audit, stacks.c.path, stacks.c.described_by, stacks.c.kind)
            .join(stacks, stacks.c.id == audit.c.stack)
            .where(audit.c.session == session, audit.c.digest == stacks.c.digest)
            .where(stacks.c.state == "judged")
            .order_by(audit.c.draw)
            .limit(row.audit if row else 0)
        )
        with self._reading() as connection:
            return connection.execute(wanted).all()

    def take_back_blind(self, session: str, key: str, row: int) -> bool:
        """Take the label of a blind image back, while its verdict has not been shown to anybody.

        Returns:
            whether there was one that could still be taken back.
        """
        with self._writing() as connection:
            done = connection.execute(
                audit.update()
                .where(audit.c.session == session, audit.c.stack == key, audit.c.row == row)
                .where(audit.c.keep.is_not(None), audit.c.at > time.time() - SECOND_THOUGHTS)
                .values(keep=None, who=None, at=None)
            )
            return done.rowcount == 1

    def label_blind(self, session: str, key: str, row: int, *, keep: bool, who: str) -> bool:
        """Label an image of the blind sample; the first label stands.

        Returns:
            whether this one does.
        """
        with self._writing() as connection:
            done = connection.execute(
                audit.update()
                .where(audit.c.session == session, audit.c.stack == key, audit.c.row == row)
                .where(audit.c.keep.is_(None))
                .values(keep=keep, who=who, at=time.time())
            )
            return done.rowcount == 1


def _renew_overrides(connection: Connection, key: str, digest: str, verdict_of: VerdictOf) -> None:
    """What people said stands; what it counts in place of is the verdict that there is now."""
    mine = (overrides.c.stack == key) & (overrides.c.digest == digest)
    rows = list(connection.execute(sql.select(overrides.c.row).where(mine)).scalars())
    for row, (verdict, score) in verdict_of(rows).items() if rows else ():
        connection.execute(
            overrides.update()
            .where(mine, overrides.c.row == row)
            .values(before=verdict, score=score)
        )


def _url(given: str | Path) -> sql.URL:
    text = str(given)
    if "://" not in text:
        return sql.URL.create("sqlite", database=str(Path(text).expanduser().absolute()))
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise SettingsError(f"the ledger is no URL: {_first_line(error)}") from error
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and url.database not in (None, "", ":memory:"):
        return url
    raise SettingsError(
        f"a ledger of kind {url.drivername} is not known",
        remedy="give the path of an SQLite file, or postgresql://USER@HOST/DATABASE",
    )


def _make_private(file: Path) -> None:
    """An SQLite file for its owner alone, made or tightened; what SQLite lays beside it follows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):  # another user's: theirs to decide
        file.touch(0o600)
        file.chmod(file.stat().st_mode & 0o700)


def _prepare_sqlite(engine: Engine) -> None:
    """Transactions begin when we say, writers wait for one another, readers for nobody."""

    @sql.event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own
        for pragma in (
            f"busy_timeout = {_BUSY_MS}",
            "journal_mode = WAL",
            "synchronous = FULL",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sql.event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("cryoray_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def batched(items: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    """The items in tuples of at most ``size``."""
    left = iter(items)
    while some := tuple(islice(left, size)):
        yield some


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0].rstrip(".")
