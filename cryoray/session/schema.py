"""The tables of a ledger, and how a ledger of an earlier version becomes one of this.

The version is in a table of its own, `schema_version`. A change of the tables is a new entry in
`MIGRATIONS`, plain SQL that SQLite and PostgreSQL both take, and never a change of an old one. All that a
ledger lacks is applied in order when it is opened, in one transaction, by whoever comes first. Version 1 is
that of commit 0956c88, whose ledgers have no such table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from cryoray.errors import SettingsError

State = Literal["pending", "judged", "rejected", "vanished"]
STATES: tuple[State, ...] = get_args(State)

#: The four fates of a row, as columns of counts.
FATES = ("kept", "discarded", "review", "quarantined")

#: By the version that they lead to.
MIGRATIONS: Mapping[int, Sequence[str]] = {
    2: (
        # Folders beyond the watched one that a session may read.
        "ALTER TABLE sessions ADD COLUMN roots JSON",
        "UPDATE stacks SET state = 'rejected' WHERE state = 'aside'",
        "UPDATE events SET name = 'stack.rejected' WHERE name = 'stack.aside'",
        # Bits: the expected information gain of a label.
        "ALTER TABLE candidates RENAME COLUMN teaches TO information",
    ),
    3: (
        # By which profile a session judges, of how many images it was made; and of each stack's verdicts.
        "ALTER TABLE sessions ADD COLUMN profile JSON",
        "ALTER TABLE sessions ADD COLUMN profiled INTEGER",
        "ALTER TABLE stacks ADD COLUMN profile VARCHAR(64)",
    ),
    4: (
        # The session page made this table by itself, in some ledgers of version 2 or 3.
        "CREATE TABLE IF NOT EXISTS exposure_limits (session VARCHAR(80) NOT NULL,"
        ' "column" VARCHAR(20) NOT NULL, low FLOAT, high FLOAT, who VARCHAR(80) NOT NULL,'
        ' at FLOAT NOT NULL, PRIMARY KEY (session, "column"))',
    ),
}
VERSION = max(MIGRATIONS)

_tables = sql.MetaData()


def _counts() -> list[sql.Column[Any]]:
    return [sql.Column(name, sql.Integer, nullable=False, default=0) for name in FATES]


#: Times are seconds since 1970 in UTC everywhere.
sessions = sql.Table(
    "sessions",
    _tables,
    sql.Column("name", sql.String(80), primary_key=True),
    sql.Column("root", sql.Text, nullable=False),  # the folder that is watched
    sql.Column("folder", sql.Text, nullable=False),  # where its files are written
    sql.Column("state", sql.String(10), nullable=False),  # open, closed
    sql.Column("trainable", sql.Boolean, nullable=False),
    sql.Column("token_hash", sql.String(64), nullable=False),
    sql.Column("salt", sql.String(32), nullable=False),  # of the blind sample
    sql.Column("host", sql.String(255), nullable=False),
    sql.Column("opened", sql.Float, nullable=False),
    sql.Column("closed", sql.Float),
    sql.Column("seen", sql.Float, nullable=False),  # the watcher's last sign of life
    sql.Column("merged", sql.Float),
    sql.Column("merge_wanted", sql.Float),
    sql.Column("audit", sql.Integer, nullable=False),  # size of the blind sample
    sql.Column("baseline", sql.JSON, nullable=False),  # what the ensemble says of its training
    sql.Column("roots", sql.JSON),  # folders beyond root that it may read
    sql.Column("profile", sql.JSON(none_as_null=True)),  # by which its particles are judged
    sql.Column("profiled", sql.Integer),  # images that the session had when it was made
)
stacks = sql.Table(
    "stacks",
    _tables,
    sql.Column("id", sql.String(24), primary_key=True),
    sql.Column("session", sql.String(80), nullable=False),
    sql.Column("path", sql.Text, nullable=False),  # absolute
    sql.Column("described_by", sql.Text),  # the STAR file with its rows
    sql.Column("kind", sql.String(10), nullable=False),
    sql.Column("state", sql.String(10), nullable=False),
    sql.Column("digest", sql.String(32), nullable=False),
    sql.Column("size", sql.BigInteger, nullable=False),
    sql.Column("mtime_ns", sql.BigInteger, nullable=False),
    sql.Column("rows", sql.Integer, nullable=False, default=0),
    *_counts(),
    sql.Column("score", sql.Float),  # mean
    sql.Column("ensemble", sql.String(64)),
    sql.Column("attempts", sql.Integer, nullable=False, default=0),
    sql.Column("reason", sql.Text),
    sql.Column("settled", sql.Float, nullable=False),
    sql.Column("judged", sql.Float),  # for the first time, whatever profile came since
    sql.Column("profile", sql.String(64)),  # digest of the one that its verdicts rest on
    sql.Index("stacks_by_state", "session", "state"),
    sql.Index("stacks_by_time", "session", "judged"),
)
micrographs = sql.Table(
    "micrographs",
    _tables,
    sql.Column("stack", sql.String(24), primary_key=True),
    sql.Column("ordinal", sql.Integer, primary_key=True),
    sql.Column("session", sql.String(80), nullable=False),
    sql.Column("name", sql.Text, nullable=False),
    sql.Column("square", sql.String(80)),
    sql.Column("hole", sql.String(80)),
    *_counts(),
    sql.Column("score", sql.Float),  # mean
    sql.Column("defocus", sql.Float),  # mean, µm
    sql.Column("ctf_resolution", sql.Float),  # mean, Å
    sql.Column("judged", sql.Float, nullable=False),
    sql.Index("micrographs_by_time", "session", "judged"),
    sql.Index("micrographs_by_square", "session", "square"),
)
overrides = sql.Table(
    "overrides",
    _tables,
    sql.Column("stack", sql.String(24), primary_key=True),
    sql.Column("row", sql.Integer, primary_key=True),
    sql.Column("session", sql.String(80), nullable=False, index=True),
    sql.Column("digest", sql.String(32), nullable=False),
    sql.Column("image", sql.Text, nullable=False),
    sql.Column("keep", sql.Boolean, nullable=False),
    sql.Column("before", sql.String(10), nullable=False),
    sql.Column("score", sql.Float, nullable=False),
    sql.Column("who", sql.String(80), nullable=False),
    sql.Column("at", sql.Float, nullable=False),
)
#: Outside of which the page marks exposures, in the unit that it shows.
exposure_limits = sql.Table(
    "exposure_limits",
    _tables,
    sql.Column("session", sql.String(80), primary_key=True),
    sql.Column("column", sql.String(20), primary_key=True),
    sql.Column("low", sql.Float),
    sql.Column("high", sql.Float),
    sql.Column("who", sql.String(80), nullable=False),
    sql.Column("at", sql.Float, nullable=False),
)
candidates = sql.Table(
    "candidates",
    _tables,
    sql.Column("stack", sql.String(24), primary_key=True),
    sql.Column("row", sql.Integer, primary_key=True),
    sql.Column("session", sql.String(80), nullable=False),
    sql.Column("information", sql.Float, nullable=False),  # bits
    sql.Index("candidates_by_worth", "session", "information"),
)
audit = sql.Table(
    "audit",
    _tables,
    sql.Column("stack", sql.String(24), primary_key=True),
    sql.Column("row", sql.Integer, primary_key=True),
    sql.Column("session", sql.String(80), nullable=False),
    sql.Column("digest", sql.String(32), nullable=False),
    sql.Column("image", sql.Text, nullable=False),
    sql.Column("draw", sql.Float, nullable=False),
    sql.Column("keep", sql.Boolean),
    sql.Column("who", sql.String(80)),
    sql.Column("at", sql.Float),
    sql.Index("audit_by_draw", "session", "draw"),
)
events = sql.Table(
    "events",
    _tables,
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("id", sql.String(80), nullable=False, unique=True),
    sql.Column("session", sql.String(80), nullable=False),
    sql.Column("name", sql.String(40), nullable=False),
    sql.Column("at", sql.Float, nullable=False),
    sql.Column("data", sql.JSON, nullable=False),
    sql.Column("written", sql.Boolean, nullable=False, default=False),
    sql.Column("posted", sql.Boolean, nullable=False, default=False),
    sql.Index("events_unwritten", "session", "written", "number"),
    sql.Index("events_unposted", "session", "posted", "number"),
    sql.Index("events_by_name", "session", "name", "number"),
)

_version = sql.Table("schema_version", _tables, sql.Column("version", sql.Integer, nullable=False))


def is_current(connection: Connection) -> bool:
    """Whether nothing is to be done; only reads.

    Raises:
        SettingsError: a later version of cryoray wrote it.
    """
    return _known(connection) == VERSION


def bring_up_to_date(connection: Connection) -> None:
    """Make the tables of a new ledger, or apply what one of an earlier version lacks.

    Args:
        connection: in a transaction that nobody else writes in.

    Raises:
        SettingsError: a later version of cryoray wrote it.
    """
    known = _known(connection)
    if known is None:
        _tables.create_all(connection)
        connection.execute(_version.insert().values(version=VERSION))
        return
    _version.create(connection, checkfirst=True)
    for version in range(known + 1, VERSION + 1):
        for statement in MIGRATIONS[version]:
            connection.exec_driver_sql(statement)
    connection.execute(_version.delete())
    connection.execute(_version.insert().values(version=VERSION))


def _known(connection: Connection) -> int | None:
    """The version of a ledger, None where it is new."""
    there = sql.inspect(connection)
    if there.has_table("schema_version"):
        version = connection.execute(sql.select(_version.c.version)).scalar() or 0
        if version > VERSION:
            raise SettingsError(
                f"the ledger has version {version} of its tables, and this cryoray knows {VERSION}",
                remedy="use the version of cryoray that wrote it, or a later one",
            )
        return version
    return 1 if there.has_table("sessions") else None
