"""What people decided about images: overrides of verdicts, and labels of the blind sample."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Row

from cryoray.session.database import Database
from cryoray.session.ledger_events import write_events
from cryoray.session.ledger_records import Happened
from cryoray.session.ledger_sessions import find_session
from cryoray.session.schema import audit, overrides, stacks

#: Seconds for which a label of the blind sample can be taken back; the verdict is shown afterwards.
SECOND_THOUGHTS = 60.0


def override(
    database: Database,
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
    with database.writing() as connection:
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
        write_events(connection, session, [happened], now)


def find_overrides(database: Database, session: str) -> Sequence[Row[Any]]:
    """What people said of images that are still what they were, with their stacks' paths."""
    wanted = (
        sql.select(overrides, stacks.c.path, stacks.c.described_by, stacks.c.kind)
        .join(stacks, stacks.c.id == overrides.c.stack)
        .where(overrides.c.session == session, overrides.c.digest == stacks.c.digest)
        .where(stacks.c.state == "judged")
        .order_by(stacks.c.path, overrides.c.row)
    )
    with database.reading() as connection:
        return connection.execute(wanted).all()


def audit_sample(database: Database, session: str) -> Sequence[Row[Any]]:
    """The blind sample: the images with the lowest draws, in the order of their draws.

    Draws are uniform and depend on an image's place alone, so at any time this is a uniform
    sample without replacement of all images judged so far, however they came in.
    """
    row = find_session(database, session)
    wanted = (
        sql.select(audit, stacks.c.path, stacks.c.described_by, stacks.c.kind)
        .join(stacks, stacks.c.id == audit.c.stack)
        .where(audit.c.session == session, audit.c.digest == stacks.c.digest)
        .where(stacks.c.state == "judged")
        .order_by(audit.c.draw)
        .limit(row.audit if row else 0)
    )
    with database.reading() as connection:
        return connection.execute(wanted).all()


def take_back_blind(database: Database, session: str, key: str, row: int) -> bool:
    """Take the label of a blind image back, while its verdict has not been shown to anybody.

    Returns:
        whether there was one that could still be taken back.
    """
    with database.writing() as connection:
        done = connection.execute(
            audit.update()
            .where(audit.c.session == session, audit.c.stack == key, audit.c.row == row)
            .where(audit.c.keep.is_not(None), audit.c.at > time.time() - SECOND_THOUGHTS)
            .values(keep=None, who=None, at=None)
        )
        return done.rowcount == 1


def label_blind(
    database: Database, session: str, key: str, row: int, *, keep: bool, who: str
) -> bool:
    """Label an image of the blind sample; the first label stands.

    Returns:
        whether this one does.
    """
    with database.writing() as connection:
        done = connection.execute(
            audit.update()
            .where(audit.c.session == session, audit.c.stack == key, audit.c.row == row)
            .where(audit.c.keep.is_(None))
            .values(keep=keep, who=who, at=time.time())
        )
        return done.rowcount == 1
