"""The ledger's stacks, as the watcher writes them: found, judged, judged again, vanished."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import islice

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from cryoray.session.database import Database, insert_new
from cryoray.session.ledger_events import write_events
from cryoray.session.ledger_records import Happened, Outcome, Seen, VerdictOf, stack_id
from cryoray.session.names import recordable
from cryoray.session.schema import (
    FATES,
    audit,
    candidates,
    micrographs,
    overrides,
    sessions,
    stacks,
)

#: Ids in one question.
_BATCH = 500
#: Draws kept beyond the blind sample, for images of it that are rewritten or vanish.
_RESERVE = 4


def expect(database: Database, session: str, seen: Iterable[Seen]) -> list[str]:
    """Note settled stacks; one whose digest is new is pending from now on.

    Returns:
        ids of those that are pending now.
    """
    by_key = {stack_id(session, one.path): replace(one, path=recordable(one.path)) for one in seen}
    pending = []
    with database.writing() as connection:
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
                    _forget(connection, key)
                    connection.execute(
                        stacks.update()
                        .where(stacks.c.id == key)
                        .values(state="pending", attempts=0, **values)
                    )
                elif known.state != "pending":
                    continue
                pending.append(key)
    return pending


def _forget(connection: Connection, key: str) -> None:
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


def vanish(database: Database, keys: Iterable[str]) -> None:
    """Note that the files of these stacks are gone; their images count no longer."""
    with database.writing() as connection:
        for key in keys:
            _forget(connection, key)
            connection.execute(
                stacks.update()
                .where(stacks.c.id == key)
                .values(state="vanished", reason="the file is no longer there")
            )


def attempt(database: Database, key: str, reason: str | None = None) -> None:
    """Count an attempt, with what went wrong."""
    with database.writing() as connection:
        connection.execute(
            stacks.update()
            .where(stacks.c.id == key)
            .values(attempts=stacks.c.attempts + 1, reason=reason)
        )


def commit(
    database: Database,
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
        database: of the ledger.
        session: its name.
        key: of the stack.
        outcome: of it.
        happened: events that go with it.
        verdict_of: the new verdicts of images that people decided about.

    Returns:
        False, and nothing is changed, where the stack was rewritten or vanished meanwhile.
    """
    counts = {name: getattr(outcome, name) for name in FATES}
    with database.writing() as connection:
        there = connection.execute(
            sql.select(stacks.c.digest, stacks.c.state, stacks.c.judged).where(stacks.c.id == key)
        ).first()
        if there is None or there.digest != outcome.digest or there.state == "vanished":
            return False
        again = there.state == "judged" and there.judged is not None
        at = there.judged if again else outcome.at
        _forget(connection, key)
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
            _fill(connection, session, key, outcome, at)
            if verdict_of is not None:
                _renew_overrides(connection, key, outcome.digest, verdict_of)
        write_events(connection, session, happened, outcome.at)
    return True


def _fill(connection: Connection, session: str, key: str, outcome: Outcome, judged: float) -> None:
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
        connection.execute(insert_new(connection, audit).values(stack=key, row=row, **values))


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


def outdated(database: Database, session: str, profile: str) -> list[str]:
    """Ids of the judged stacks of particles whose verdicts rest on another profile, the oldest first."""
    wanted = (
        sql.select(stacks.c.id)
        .where(stacks.c.session == session, stacks.c.state == "judged")
        .where(stacks.c.kind == "particle", stacks.c.profile.is_distinct_from(profile))
        .order_by(stacks.c.judged, stacks.c.id)
    )
    with database.reading() as connection:
        return list(connection.execute(wanted).scalars())


def batched(items: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    """The items in tuples of at most ``size``."""
    left = iter(items)
    while some := tuple(islice(left, size)):
        yield some
