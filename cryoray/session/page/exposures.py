"""The list of exposures: what is known of each micrograph, in any order, with limits that mark some of them.

Limits are kept in the ledger's database, so that everybody who looks at the session sees the same marks. A
column of which nothing is known in a session is left out, and what is not known of one exposure marks it
never.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sql
from sqlalchemy.exc import OperationalError

from cryoray.errors import InputError
from cryoray.session.database import LedgerAwayError
from cryoray.session.ledger import Ledger
from cryoray.session.schema import exposure_limits, micrographs

#: Exposures on one page.
PAGE = 50
#: Characters of a name that are looked for.
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the list.

    Attributes:
        title: what stands above it.
        unit: '' for none.
        show: a value in words.
        scale: by which the ledger's value becomes that which is shown, and which limits are of.
        limited: whether limits can be set.
    """

    title: str
    unit: str = ""
    show: Callable[[Any], str] = str
    scale: float = 1.0
    limited: bool = True


_table = micrographs.c
_judged = _table.kept + _table.discarded + _table.review
#: In the order in which they are shown.
COLUMNS: Mapping[str, Column] = {
    "name": Column("exposure", limited=False),
    "picks": Column("picks", show="{:,}".format),
    "rate": Column("kept", "%", "{:.0f} %".format, 100.0),
    "score": Column("mean score", show="{:.2f}".format),
    "defocus": Column("defocus", "µm", "{:.2f} µm".format),
    "ctf": Column("CTF resolution", "Å", "{:.1f} Å".format),
    "square": Column("grid square", limited=False),
    "hole": Column("foil hole", limited=False),
    "time": Column("judged", limited=False),
}
_values: Mapping[str, sql.ColumnElement[Any]] = {
    "name": _table.name,
    "picks": _judged + _table.quarantined,
    "rate": 1.0 * _table.kept / sql.func.nullif(_judged, 0),
    "score": _table.score,
    "defocus": _table.defocus,
    "ctf": _table.ctf_resolution,
    "square": _table.square,
    "hole": _table.hole,
    "time": _table.judged,
}
#: Sorted downwards at first: the newest, the most.
_DOWN = ("time", "picks", "rate", "score")


@dataclass(frozen=True, slots=True)
class Query:
    """What of the list somebody looks at.

    Attributes:
        sort: a column.
        down: whether the largest come first.
        find: part of an exposure's name.
        marked: whether only those outside the limits are shown.
        page: from 0.
    """

    sort: str = "time"
    down: bool = True
    find: str = ""
    marked: bool = False
    page: int = 0

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Query:
        """What an address, or the fields of a form, ask for; what makes no sense is as nothing."""
        sort = given.get("sort", "")
        page = given.get("page", "")
        return cls(
            sort=sort if sort in COLUMNS else "time",
            down=given.get("order", "down") != "up",
            find=given.get("find", "").strip()[:_LONGEST],
            marked=given.get("marked") == "1",
            page=int(page) if page.isascii() and page.isdecimal() and len(page) < 8 else 0,
        )

    def text(self) -> str:
        """The same for an address."""
        fields = {"sort": self.sort, "order": "down" if self.down else "up"}
        fields |= {"find": self.find} if self.find else {}
        fields |= {"marked": "1"} if self.marked else {}
        fields |= {"page": str(self.page)} if self.page else {}
        return urlencode(fields)

    def by(self, column: str) -> str:
        """The address of the same sorted by a column; by the one it is sorted by, the other way."""
        down = not self.down if column == self.sort else column in _DOWN
        return replace(self, sort=column, down=down, page=0).text()

    def turned(self, pages: int) -> str:
        """The address of another page."""
        return replace(self, page=self.page + pages).text()


@dataclass(frozen=True, slots=True)
class Limit:
    """Between which values an exposure is not marked, in the column's unit; None for no limit."""

    low: float | None
    high: float | None
    who: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Exposure:
    """One row of the list.

    Attributes:
        stack: id of its stack.
        number: its place among the micrographs of the stack.
        name: of the micrograph.
        values: by column, in the column's unit; None where it is not known.
        outside: of which columns it is outside the limits, and how.
    """

    stack: str
    number: int
    name: str
    values: Mapping[str, Any]
    outside: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of the list.

    Attributes:
        rows: of this page.
        columns: names of those that are known.
        total: exposures of the session.
        found: those that are asked for.
        marked: of the session, those outside the limits.
        limits: by column.
        query: what was asked for.
        pages: how many pages there are of it.
    """

    rows: Sequence[Exposure]
    columns: Sequence[str]
    total: int
    found: int
    marked: int
    limits: Mapping[str, Limit]
    query: Query
    pages: int


class Exposures:
    """Asks the ledger for exposures, and keeps the limits.

    Args:
        ledger: of the sessions.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._engine = ledger.engine

    def list(self, session: str, query: Query) -> Listing:
        """A page of a session's exposures."""
        limits = self.limits(session)
        outside = _outside(limits)
        mine = _table.session == session
        wanted = [mine]
        if query.find:
            wanted.append(_table.name.icontains(query.find, autoescape=True))
        if query.marked:
            wanted.append(outside)
        with self._engine.connect() as connection:
            known = connection.execute(
                sql.select(
                    sql.func.count(),
                    sql.func.count(sql.case((outside, 1))),
                    *(sql.func.count(value) for value in _values.values()),
                ).where(mine)
            ).one()
            found = connection.execute(sql.select(sql.func.count()).where(*wanted)).scalar_one()
            pages = max(1, -(-found // PAGE))
            query = replace(query, page=min(query.page, pages - 1))
            value = _values[query.sort]
            order = (value.desc() if query.down else value.asc()).nulls_last()
            rows = connection.execute(
                _select()
                .where(*wanted)
                .order_by(order, _table.stack, _table.ordinal)
                .limit(PAGE)
                .offset(query.page * PAGE)
            ).all()
        columns = [name for name, count in zip(_values, known[2:], strict=True) if count]
        return Listing(
            rows=[_exposure(row, limits) for row in rows],
            columns=columns,
            total=known[0],
            found=found,
            marked=known[1],
            limits=limits,
            query=query,
            pages=pages,
        )

    def all(self, session: str) -> Sequence[Exposure]:
        """All exposures of a session, in the order in which they were judged."""
        limits = self.limits(session)
        with self._engine.connect() as connection:
            rows = connection.execute(
                _select()
                .where(_table.session == session)
                .order_by(_table.judged, _table.stack, _table.ordinal)
            ).all()
        return [_exposure(row, limits) for row in rows]

    def one(self, session: str, stack: str, number: int) -> Exposure | None:
        """One exposure, None where there is no such."""
        wanted = _select().where(
            _table.session == session, _table.stack == stack, _table.ordinal == number
        )
        with self._engine.connect() as connection:
            row = connection.execute(wanted).first()
        return _exposure(row, self.limits(session)) if row is not None else None

    def of_stack(self, session: str, stack: str) -> Sequence[str]:
        """Names of the micrographs of a stack, in their order."""
        wanted = (
            sql.select(_table.name)
            .where(_table.session == session, _table.stack == stack)
            .order_by(_table.ordinal)
        )
        with self._engine.connect() as connection:
            return connection.execute(wanted).scalars().all()

    def marked(self, session: str) -> int:
        """How many exposures are outside the limits."""
        outside = _outside(self.limits(session))
        wanted = sql.select(sql.func.count()).where(_table.session == session, outside)
        with self._engine.connect() as connection:
            return int(connection.execute(wanted).scalar_one())

    def limits(self, session: str) -> dict[str, Limit]:
        """The limits that are set, by column."""
        wanted = sql.select(exposure_limits).where(exposure_limits.c.session == session)
        with self._engine.connect() as connection:
            rows = connection.execute(wanted).all()
        return {
            row.column: Limit(row.low, row.high, row.who, row.at)
            for row in rows
            if row.column in COLUMNS
        }

    def set_limits(self, session: str, given: Mapping[str, Limit], who: str) -> None:
        """Replace the limits of a session; those that stay as they are stay whose they were.

        Raises:
            LedgerAwayError: another program holds the ledger's lock.
        """
        try:
            self._replace(session, given, who)
        except OperationalError as error:
            raise LedgerAwayError(f"the ledger cannot be used now: {error.orig}") from error

    def _replace(self, session: str, given: Mapping[str, Limit], who: str) -> None:
        before, now = self.limits(session), time.time()
        with self._engine.execution_options(cryoray_writes=True).begin() as connection:
            connection.execute(exposure_limits.delete().where(exposure_limits.c.session == session))
            for name, limit in given.items():
                if limit.low is None and limit.high is None:
                    continue
                old = before.get(name)
                same = old is not None and (old.low, old.high) == (limit.low, limit.high)
                by, at = (old.who, old.at) if same and old is not None else (who, now)
                connection.execute(
                    exposure_limits.insert().values(
                        session=session, column=name, low=limit.low, high=limit.high, who=by, at=at
                    )
                )


def read_limits(fields: Mapping[str, str]) -> dict[str, Limit]:
    """The limits of a form: ``COLUMN-low`` and ``COLUMN-high``, empty for none.

    Raises:
        InputError: one is no number, or the lower is above the upper.
    """
    made = {}
    for name, column in COLUMNS.items():
        if column.limited:
            low, high = (
                _number(fields.get(f"{name}-{end}", ""), column) for end in ("low", "high")
            )
            if low is not None and high is not None and low > high:
                raise InputError(f"of {column.title}, the lower limit is above the upper one")
            made[name] = Limit(low, high)
    return made


def _number(text: str, column: Column) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"a limit of {column.title} is not a number", remedy="write it as 3.5")
    return value


def _select() -> sql.Select[Any]:
    return sql.select(
        _table.stack, _table.ordinal, *(value.label(name) for name, value in _values.items())
    )


def _outside(limits: Mapping[str, Limit]) -> sql.ColumnElement[bool]:
    """Whether an exposure is outside one of the limits; what is not known is outside of none."""
    found = []
    for name, limit in limits.items():
        value = _values[name] * COLUMNS[name].scale
        found += [value < limit.low] if limit.low is not None else []
        found += [value > limit.high] if limit.high is not None else []
    return sql.or_(sql.false(), *found)


def _exposure(row: Any, limits: Mapping[str, Limit]) -> Exposure:
    values = {}
    for name, column in COLUMNS.items():
        value = row._mapping[name]
        values[name] = value * column.scale if value is not None and column.scale != 1 else value
    outside = {}
    for name, limit in limits.items():
        value = values[name]
        if value is not None and limit.low is not None and value < limit.low:
            outside[name] = f"below {limit.low:g} {COLUMNS[name].unit}".strip()
        elif value is not None and limit.high is not None and value > limit.high:
            outside[name] = f"above {limit.high:g} {COLUMNS[name].unit}".strip()
    return Exposure(row.stack, row.ordinal, row.name, values, outside)
