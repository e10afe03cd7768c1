"""The database of a ledger: how it is opened, migrated and locked, and the errors when it cannot be used.

SQLite beside the session, or PostgreSQL by URL, through SQLAlchemy.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine, make_url
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

#: Of PostgreSQL's advisory locks, ours: taken while tables are made or changed.
_LOCK = 1_668_446_575
#: For how long a write waits for another connection's, ms.
_BUSY_MS = 15_000


class LedgerAwayError(CryorayError):
    """The ledger cannot be had now: locked by another program, or its server does not answer."""

    exit_code = 2


class UnstorableError(InputError):
    """What was to be noted has text that the database cannot hold."""


class Database:
    """The database of a ledger; may be used from several threads, and by watcher and page at the same time.

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
        with self.reading() as connection:
            if schema.is_current(connection):
                return
        with self.writing() as connection:
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
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        try:
            with self.engine.connect() as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            self._complain(error)
            raise

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; one at a time on SQLite."""
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


def insert_new(connection: Connection, table: sql.Table) -> Any:
    """An INSERT that leaves what is there already."""
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    return make(table).on_conflict_do_nothing()


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


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0].rstrip(".")
