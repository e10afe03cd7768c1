"""What the ledger knows of stacks, micrographs and grid squares, for pages and merged files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Row

from cryoray.session.database import Database
from cryoray.session.schema import (
    FATES,
    State,
    audit,
    candidates,
    micrographs,
    overrides,
    stacks,
)

_FATE_OF = {"keep": "kept", "discard": "discarded", "review": "review"}


def find_stack(database: Database, key: str) -> Row[Any] | None:
    """One stack's row, None where there is no such."""
    with database.reading() as connection:
        return connection.execute(sql.select(stacks).where(stacks.c.id == key)).first()


def find_stacks(
    database: Database,
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
    with database.reading() as connection:
        return connection.execute(wanted).all()


def totals(database: Database, session: str) -> dict[str, dict[str, int]]:
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
    with database.reading() as connection:
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


def find_micrographs(database: Database, session: str, *, since: float = 0.0) -> Sequence[Row[Any]]:
    """What is known of each micrograph, in the order in which they were judged."""
    wanted = (
        sql.select(micrographs)
        .where(micrographs.c.session == session, micrographs.c.judged >= since)
        .order_by(micrographs.c.judged, micrographs.c.stack, micrographs.c.ordinal)
    )
    with database.reading() as connection:
        return connection.execute(wanted).all()


def square(database: Database, session: str, square: str) -> Row[Any]:
    """Sums over one grid square: micrographs, fates, mean score and CTF resolution."""
    judged = micrographs.c.kept + micrographs.c.discarded + micrographs.c.review
    with_ctf = sql.case((micrographs.c.ctf_resolution.is_not(None), judged), else_=0)
    wanted = sql.select(
        sql.func.count().label("micrographs"),
        *(sql.func.sum(micrographs.c[name]).label(name) for name in FATES),
        (
            sql.func.sum(micrographs.c.score * judged) / sql.func.nullif(sql.func.sum(judged), 0)
        ).label("score"),
        (
            sql.func.sum(micrographs.c.ctf_resolution * judged)
            / sql.func.nullif(sql.func.sum(with_ctf), 0)
        ).label("ctf_resolution"),
    ).where(micrographs.c.session == session, micrographs.c.square == square)
    with database.reading() as connection:
        return connection.execute(wanted).one()


def find_candidates(
    database: Database, session: str, limit: int, offset: int = 0
) -> Sequence[Row[Any]]:
    """Images by the expected information gain of a label, but those that have one, here or blind."""
    labelled = sql.exists().where(
        overrides.c.stack == candidates.c.stack, overrides.c.row == candidates.c.row
    )
    blind = sql.exists().where(audit.c.stack == candidates.c.stack, audit.c.row == candidates.c.row)
    wanted = (
        sql.select(candidates, stacks.c.path)
        .join(stacks, stacks.c.id == candidates.c.stack)
        .where(candidates.c.session == session, ~labelled, ~blind)
        .order_by(candidates.c.information.desc(), candidates.c.stack, candidates.c.row)
        .limit(limit)
        .offset(offset)
    )
    with database.reading() as connection:
        return connection.execute(wanted).all()


def under_review(database: Database, session: str) -> Sequence[Row[Any]]:
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
    with database.reading() as connection:
        return connection.execute(wanted).all()
