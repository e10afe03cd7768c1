"""The ledger's sessions: opened and closed, their settings, and the tokens that open them to readers."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from hmac import compare_digest
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Row

from cryoray.errors import InputError, SettingsError
from cryoray.session.database import Database
from cryoray.session.ledger_events import write_events
from cryoray.session.ledger_records import Happened
from cryoray.session.schema import sessions

#: Seconds of silence after which another machine may take an SQLite file over.
_GIVEN_UP = 600.0
#: An operator's token reads everything; nothing else has this scope.
OPERATOR = "*"


def hash_token(token: str) -> str:
    """What the ledger keeps of a token; tokens are random, so no salt is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def open_session(
    database: Database,
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
    with database.writing() as connection:
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


def new_token(database: Database, session: str) -> str:
    """Another token for a session; the one before is worth nothing from now on."""
    token = secrets.token_urlsafe(32)
    _set(database, session, token_hash=hash_token(token))
    return token


def close_session(database: Database, session: str) -> None:
    """Mark it as ended; it can be opened again."""
    _set(database, session, state="closed", closed=time.time())


def alive(database: Database, session: str) -> None:
    """The watcher's sign of life."""
    _set(database, session, seen=time.time())


def set_baseline(database: Database, session: str, baseline: Mapping[str, object]) -> None:
    """What the ensemble says of its training."""
    _set(database, session, baseline=dict(baseline))


def set_trainable(database: Database, session: str, *, trainable: bool) -> None:
    """Whether overrides become training labels; the owner's choice."""
    _set(database, session, trainable=trainable)


def set_profile(
    database: Database,
    session: str,
    profile: Mapping[str, object] | None,
    seen: int = 0,
    happened: Iterable[Happened] = (),
) -> None:
    """By which profile the session judges from now on; None: each image alone.

    Args:
        database: of the ledger.
        session: its name.
        profile: as `profile.json` has it.
        seen: images that the session had when it was made.
        happened: events that go with it.
    """
    body, images = (dict(profile), seen) if profile is not None else (None, None)
    with database.writing() as connection:
        connection.execute(
            sessions.update()
            .where(sessions.c.name == session)
            .values(profile=body, profiled=images)
        )
        write_events(connection, session, happened, time.time())


def want_merge(database: Database, session: str) -> None:
    """Ask the watcher for merged files now."""
    _set(database, session, merge_wanted=time.time())


def merged(database: Database, session: str, at: float) -> None:
    """The merged files hold everything until ``at``; later wishes stay."""
    with database.writing() as connection:
        row = connection.execute(
            sql.select(sessions.c.merge_wanted).where(sessions.c.name == session)
        ).scalar()
        left = row if row is not None and row > at else None
        connection.execute(
            sessions.update().where(sessions.c.name == session).values(merged=at, merge_wanted=left)
        )


def _set(database: Database, session: str, **values: object) -> None:
    with database.writing() as connection:
        connection.execute(sessions.update().where(sessions.c.name == session).values(**values))


def find_session(database: Database, name: str) -> Row[Any] | None:
    """One session's row, None where there is no such."""
    with database.reading() as connection:
        return connection.execute(sql.select(sessions).where(sessions.c.name == name)).first()


def find_sessions(database: Database) -> Sequence[Row[Any]]:
    """All sessions, the newest first."""
    with database.reading() as connection:
        return connection.execute(sql.select(sessions).order_by(sessions.c.opened.desc())).all()


def check_host(database: Database) -> None:
    """Refuse an SQLite file that another machine's watcher writes: its locks do not reach here.

    Raises:
        SettingsError: a session in it is open on another machine.
    """
    if not database.is_sqlite:
        return
    now = time.time()
    for row in find_sessions(database):
        alive = row.state == "open" and now - row.seen < _GIVEN_UP
        if alive and row.host != socket.gethostname():
            raise SettingsError(
                f"the ledger is an SQLite file, and the session {row.name!r} is written by {row.host}",
                file=database.url.database,
                remedy="use a PostgreSQL for both (--ledger postgresql://…), or one machine",
            )


def scope(database: Database, token: str) -> str | None:
    """The session that a token is for, None where it is for none; compared in constant time."""
    given, found = hash_token(token), None
    for row in find_sessions(database):
        if compare_digest(row.token_hash, given):
            found = row.name
    return found
