"""The ledger's events: each happens once, and is marked when it was written as a line and posted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection, Row

from cryoray.session.database import Database, insert_new
from cryoray.session.ledger_records import Happened
from cryoray.session.schema import events


def note(database: Database, session: str, happened: Iterable[Happened]) -> None:
    """Note that something happened; an id that is known has happened already."""
    with database.writing() as connection:
        write_events(connection, session, happened, time.time())


def write_events(
    connection: Connection, session: str, happened: Iterable[Happened], at: float
) -> None:
    """Note events within a transaction of somebody else, so that both are written or neither is."""
    for one in happened:
        connection.execute(
            insert_new(connection, events).values(
                id=one.id, session=session, name=one.name, at=at, data=dict(one.data)
            )
        )


def find_events(
    database: Database,
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
    with database.reading() as connection:
        return connection.execute(wanted.order_by(order).limit(latest or limit)).all()


def mark(
    database: Database, numbers: Sequence[int], *, written: bool = False, posted: bool = False
) -> None:
    """Say that events were written as lines, or posted."""
    values = {**({"written": True} if written else {}), **({"posted": True} if posted else {})}
    with database.writing() as connection:
        connection.execute(
            events.update().where(events.c.number.in_(list(numbers))).values(**values)
        )
