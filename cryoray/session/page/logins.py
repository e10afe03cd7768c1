"""Who has come in with a browser: kept beside the ledger, so that leaving ends it, at every ingress."""

from __future__ import annotations

import hashlib
import secrets
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

import sqlalchemy as sql

from cryoray.session.ledger import Ledger

#: A long session's nights and days, seconds.
_LIFE = 7 * 24 * 3600.0

_tables = sql.MetaData()
_logins = sql.Table(
    "logins",
    _tables,
    sql.Column(
        "word", sql.String(64), primary_key=True
    ),  # a digest: reading the table opens nothing
    sql.Column("scope", sql.String(80), nullable=False),
    sql.Column("who", sql.String(80), nullable=False),
    sql.Column("csrf", sql.String(64), nullable=False),
    sql.Column("mark", sql.String(64), nullable=False),
    sql.Column("until", sql.Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Login:
    """Somebody who has come in.

    Attributes:
        scope: what they may see.
        who: the name they gave.
        csrf: the word that forms must hold.
        mark: of the token with which they came.
    """

    scope: str
    who: str
    csrf: str
    mark: str


class Logins:
    """The people who have come in.

    Args:
        ledger: in whose database they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._engine = ledger.engine
        _tables.create_all(self._engine)

    def begin(self, scope: str, who: str, mark: str) -> str:
        """Let somebody in; the word by which they are known from now on."""
        word, now = secrets.token_urlsafe(32), time.time()
        with self._writing() as connection:
            connection.execute(_logins.delete().where(_logins.c.until < now))
            connection.execute(
                _logins.insert().values(
                    word=_digest(word),
                    scope=scope,
                    who=who,
                    csrf=secrets.token_urlsafe(32),
                    mark=mark,
                    until=now + _LIFE,
                )
            )
        return word

    def find(self, word: str) -> Login | None:
        """Who is known by a word, None where nobody is, or not any more."""
        if not word:
            return None
        wanted = sql.select(_logins).where(_logins.c.word == _digest(word))
        with self._engine.connect() as connection:
            row = connection.execute(wanted).first()
        if row is None or row.until < time.time():
            return None
        return Login(row.scope, row.who, row.csrf, row.mark)

    def end(self, word: str) -> None:
        """Let nobody in by this word any more."""
        with self._writing() as connection:
            connection.execute(_logins.delete().where(_logins.c.word == _digest(word)))

    def _writing(self) -> AbstractContextManager[sql.Connection]:
        # SQLite takes its lock at once, as for the ledger.
        return self._engine.execution_options(cryoray_writes=True).begin()


def _digest(word: str) -> str:
    return hashlib.sha256(word.encode(errors="replace")).hexdigest()
