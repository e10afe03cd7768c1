"""What the session page shows, as plain numbers and rows: computed anew every few seconds at most."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from markupsafe import Markup

from cryoray.errors import InputError
from cryoray.formats import rln
from cryoray.formats.relion import known
from cryoray.records import REASON_WORDS, VERDICTS
from cryoray.session.drift import WARM_UP
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_labels import SECOND_THOUGHTS
from cryoray.session.page import charts
from cryoray.session.page.exposures import Exposures
from cryoray.session.page.micrographs import Micrographs
from cryoray.session.page.pictures import Pictures
from cryoray.session.schema import FATES

#: A row in an address: of no stack more than nine digits.
_ROW = re.compile(r"[0-9]{1,9}")
#: Seconds for which numbers are fresh enough, and at least so many times what they took to make.
_FRESH, _SHARE = 2.0, 20.0
#: Newest stacks that the gallery looks at, images of each stack and tiles of each verdict.
_STACKS, _OF_STACK, _TILES = 16, 4, 12
_CLASSES = 400
_QUEUE = 24
_SILENT = 60.0


@dataclass(frozen=True, slots=True)
class Tile:
    """One image with what people decided; verdict and score are None where they must stay hidden."""

    stack: str
    row: int
    image: str
    verdict: str | None
    score: float | None
    votes: tuple[tuple[str, float], ...]
    reason: str | None
    decision: bool | None
    particle: bool = True
    about: str = ""


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of one 2D classification, those with the highest scores first.

    Attributes:
        path: of its model.
        at: when they were judged.
        tiles: the judged ones.
        kept: how many of them are kept, as people left them.
        quarantined: name and reason of those that have no verdict.
    """

    path: str
    at: float
    tiles: list[Tile]
    kept: int
    quarantined: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Review:
    """A page of the images under review, in the order of their stacks' paths.

    Attributes:
        tiles: the next ones that nobody has decided.
        decided: how many of all somebody has.
        total: how many there are.
        after: where this page begins; None for the beginning.
        following: where the next page begins; None at the end.
        latest: those that were decided last, the latest first, so that they can be taken back.
    """

    tiles: list[Tile]
    decided: int
    total: int
    after: str | None
    following: str | None
    latest: list[Tile]


@dataclass(frozen=True, slots=True)
class Audit:
    """The blind sample: without a label; with one that can be taken back; with one that stands."""

    open: list[Tile]
    latest: list[Tile]
    done: list[Tile]


@dataclass(frozen=True, slots=True)
class Live:
    """The part of the page that renews itself."""

    state: str
    counts: dict[str, int]
    overridden: int
    labelled: int
    sample: int
    marked: int
    warm_up: int
    shares: dict[str, float]
    stacks: dict[str, int]
    micrographs: int
    per_hour: int
    time_chart: Markup
    defocus_chart: Markup
    ctf_chart: Markup
    squares: Sequence[dict[str, Any]]
    alarms: Sequence[dict[str, Any]]
    rejected: Sequence[Any]
    last: float | None
    zone: str


class Views:
    """Asks the ledger and the verdict files.

    Args:
        ledger: of the sessions.
        pictures: reads verdicts.
        micrographs: reads what STAR files say of judged images.
        exposures: knows which are outside the session's limits.
    """

    def __init__(
        self, ledger: Ledger, pictures: Pictures, micrographs: Micrographs, exposures: Exposures
    ) -> None:
        self._ledger, self._pictures = ledger, pictures
        self._micrographs, self._exposures = micrographs, exposures
        self._live: dict[str, tuple[float, Live]] = {}
        self._lock = threading.Lock()

    def live(self, session: Any) -> Live:
        """The numbers and charts of a session."""
        with self._lock:
            due, live = self._live.get(session.name, (-1e18, None))
            begun = time.monotonic()
            if live is None or begun > due:
                live = self._now(session)
                took = time.monotonic() - begun
                self._live[session.name] = (begun + max(_FRESH, _SHARE * took), live)
            return live

    def _now(self, session: Any) -> Live:
        totals = self._ledger.totals(session.name)
        judged = totals.get("particle/judged", {})
        counts = {name: judged.get(name, 0) for name in FATES}
        images = sum(counts[name] for name in FATES[:3])
        rows = self._ledger.micrographs(session.name)
        when = np.array([row.judged for row in rows], float)
        kept = np.array([row.kept for row in rows], float)
        each = np.array([row.kept + row.discarded + row.review for row in rows], float)
        now = time.time()
        recent = when > now - 600
        alarms = [
            {**row.data, "id": row.id, "at": row.at}
            for row in self._ledger.events(session.name, names=["drift.alarm"], latest=10)
        ]
        sample = self._ledger.audit_sample(session.name)
        rates = kept[each > 0] / each[each > 0]
        bins = charts.binned(when, kept, each, 60)
        ticks = (
            [(x, _clock(x)) for x in np.linspace(when.min(), when.max(), 4)] if len(rows) else []
        )
        return Live(
            state="closed"
            if session.state == "closed"
            else "watching"
            if now - session.seen < _SILENT
            else "silent",
            counts=counts,
            overridden=judged.get("overridden", 0),
            labelled=sum(row.keep is not None for row in sample),
            sample=len(sample),
            marked=self._exposures.marked(session.name),
            warm_up=WARM_UP,
            shares={name: counts[name] / images if images else 0.0 for name in FATES[:3]},
            stacks={
                state: sum(one["stacks"] for name, one in totals.items() if name.endswith(state))
                for state in ("judged", "pending", "rejected", "vanished")
            },
            micrographs=len(rows),
            per_hour=int(6 * each[recent].sum()) if len(rows) else 0,
            time_chart=charts.over_time(
                bins, charts.band(rates), [one["at"] for one in alarms], ticks
            ),
            defocus_chart=self._against(
                rows, kept, each, "defocus", "Keep rate against defocus", "µm"
            ),
            ctf_chart=self._against(
                rows, kept, each, "ctf_resolution", "Keep rate against CTF resolution", "Å"
            ),
            squares=_squares(rows),
            alarms=alarms,
            rejected=self._ledger.stacks(session.name, "rejected", newest=10),
            last=float(when.max()) if len(rows) else None,
            zone=datetime.now(UTC).astimezone().strftime("%Z"),
        )

    def _against(
        self,
        rows: Sequence[Any],
        kept: np.ndarray,
        each: np.ndarray,
        name: str,
        title: str,
        unit: str,
    ) -> Markup:
        values = np.array(
            [np.nan if (v := row._mapping[name]) is None else v for row in rows], float
        )
        return charts.against(charts.binned(values, kept, each, 12), title, unit)

    def renew(self, session: str) -> None:
        """Have the numbers of a session made anew when they are asked for next."""
        with self._lock:
            self._live.pop(session, None)

    def gallery(self, session: Any) -> dict[str, list[Tile]]:
        """The newest particles of each verdict, but those that must stay blind."""
        hidden = self._blind(session.name)
        decisions = self._decisions(session.name)
        tiles: dict[str, list[Tile]] = {verdict: [] for verdict in VERDICTS}
        for stack in self._ledger.stacks(session.name, "judged", kind="particle", newest=_STACKS):
            try:
                table = self._pictures.table(session, stack)
            except InputError:
                continue
            verdict = np.array(table["verdict"].to_pylist(), dtype="<U8")
            for name, shown in tiles.items():
                at = np.flatnonzero(verdict == name)
                if not len(at):
                    continue
                spread = np.unique(np.linspace(0, len(at) - 1, _OF_STACK).round().astype(int))
                for row in at[spread].tolist():
                    if (stack.id, row) not in hidden and len(shown) < _TILES:
                        shown.append(_tile(stack, table, row, decisions.get((stack.id, row))))
        return tiles

    def classes(self, session: Any) -> Classes | None:
        """The classes of the 2D classification that was judged last, None where there is none."""
        judged = self._ledger.stacks(session.name, "judged", kind="class2d", newest=1)
        if not judged:
            return None
        (stack,) = judged
        try:
            table = self._pictures.table(session, stack)
            lost = self._pictures.quarantined(session, stack)
            columns = self._micrographs.columns(session, stack)
        except InputError:
            return None
        decisions = self._decisions(session.name)
        rows = np.argsort(-table["score"].to_numpy(), kind="stable")[:_CLASSES].tolist()
        tiles = [
            replace(
                _tile(stack, table, row, decisions.get((stack.id, row))),
                about=_about_class(table["image"][row].as_py(), columns, row),
            )
            for row in rows
        ]
        kept = sum(one.verdict == "keep" if one.decision is None else one.decision for one in tiles)
        return Classes(
            stack.path,
            stack.judged,
            tiles,
            kept,
            [(_class_name(image) or image, why) for image, why in lost],
        )

    def review(self, session: Any, after: str | None = None) -> Review:
        """The images under review that come after a place, ``STACK:ROW``, and how far people are."""
        hidden, decisions = self._blind(session.name), self._decisions(session.name)
        stacks = self._ledger.under_review(session.name)
        key, _, number = (after or "").partition(":")
        start = next((at for at, stack in enumerate(stacks) if stack.id == key), 0)
        valid = stacks and stacks[start].id == key and _ROW.fullmatch(number)
        first = int(number) + 1 if valid else 0
        tiles: list[Tile] = []
        for stack in stacks[start:]:
            if len(tiles) > _QUEUE:
                break
            if stack.decided < stack.review:
                rows = self._rows_under_review(session, stack, first)
                tiles += [
                    _tile(stack, self._pictures.table(session, stack), row, None)
                    for row in rows
                    if (stack.id, row) not in hidden | decisions.keys()
                ][: _QUEUE + 1 - len(tiles)]
            first = 0
        blind = sum(
            row in self._rows_under_review(session, stack)
            for stack in stacks
            for row in [row for key, row in hidden if key == stack.id]
        )
        more, tiles = len(tiles) > _QUEUE, tiles[:_QUEUE]
        latest = sorted(
            (row for row in self._ledger.overrides(session.name) if row.before == "review"),
            key=lambda row: -row.at,
        )[:_TILES]
        return Review(
            tiles=tiles,
            decided=sum(stack.decided for stack in stacks),
            total=sum(stack.review for stack in stacks) - blind,
            after=after,
            following=f"{tiles[-1].stack}:{tiles[-1].row}" if more else None,
            latest=[tile for row in latest if (tile := self.tile(session, row.stack, row.row))],
        )

    def _rows_under_review(self, session: Any, stack: Any, first: int = 0) -> list[int]:
        try:
            table = self._pictures.table(session, stack)
        except InputError:
            return []
        verdict = np.array(table["verdict"].to_pylist(), dtype="<U8")
        return (first + np.flatnonzero(verdict[first:] == "review")).tolist()

    def informative(self, session: Any) -> list[Tile]:
        """The images whose label would teach most."""
        tiles = []
        for row in self._ledger.candidates(session.name, _QUEUE):
            tile = self.tile(session, row.stack, row.row)
            if tile is not None:
                tiles.append(tile)
        return tiles

    def audit(self, session: Any) -> Audit:
        """The blind sample; a verdict is shown where a label stands."""
        made = Audit([], [], [])
        for row in self._ledger.audit_sample(session.name):
            tile = self.tile(session, row.stack, row.row, blind=not _stands(row))
            if tile is not None:
                tiles = (
                    made.open if row.keep is None else made.done if _stands(row) else made.latest
                )
                tiles.append(replace(tile, decision=row.keep))
        return made

    def verdict_of_blind(self, session: Any, row: Any) -> tuple[str, float] | None:
        """Verdict and score of a row of the blind sample, None while its label can be taken back."""
        tile = self.tile(session, row.stack, row.row) if _stands(row) else None
        if tile is None or tile.verdict is None or tile.score is None:
            return None
        return tile.verdict, tile.score

    def tile(self, session: Any, key: str, row: int, *, blind: bool = False) -> Tile | None:
        """One image, None where it is not there."""
        stack = self._ledger.stack(key)
        if stack is None or stack.session != session.name or stack.state != "judged":
            return None
        try:
            table = self._pictures.table(session, stack)
        except InputError:
            return None
        if not 0 <= row < len(table):
            return None
        if blind:
            return Tile(key, row, "", None, None, (), None, None)
        return _tile(stack, table, row, self._decisions(session.name).get((key, row)))

    def tiles(self, session: Any, stack: Any, rows: Sequence[int]) -> list[Tile | None]:
        """Images of a stack; None for those that must stay blind.

        Raises:
            InputError: its verdicts are not there now.
        """
        hidden, decisions = self._blind(session.name), self._decisions(session.name)
        table = self._pictures.table(session, stack)
        return [
            None
            if (stack.id, row) in hidden
            else _tile(stack, table, row, decisions.get((stack.id, row)))
            for row in rows
        ]

    def unknown(self, session: Any) -> list[str]:
        """What RELION needs and nobody knows of the merged files, as they were written last."""
        last = self._ledger.events(session.name, names=["sides.merged"], latest=1)
        return list(last[0].data.get("unknown", ())) if last else []

    def unused(self, session: Any) -> list[Any]:
        """STAR files beside stacks that were not used, and why: the newest."""
        rows = self._ledger.events(session.name, names=["companion.unused"], latest=5)
        return [row.data for row in rows]

    def hidden(self, session: str, key: str, row: int) -> bool:
        """Whether an image is of the blind sample and has no label that stands."""
        return (key, row) in self._blind(session)

    def _blind(self, session: str) -> set[tuple[str, int]]:
        return {
            (row.stack, row.row) for row in self._ledger.audit_sample(session) if not _stands(row)
        }

    def _decisions(self, session: str) -> dict[tuple[str, int], bool]:
        return {(row.stack, row.row): row.keep for row in self._ledger.overrides(session)}


def _stands(row: Any) -> bool:
    """Whether an image of the blind sample has a label that nobody can take back."""
    return row.keep is not None and row.at <= time.time() - SECOND_THOUGHTS


def _tile(stack: Any, table: Any, row: int, decision: bool | None) -> Tile:
    values = {name: table[name][row].as_py() for name in table.column_names}
    votes = tuple((name, values[name]) for name in ("d1", "d2", "d3") if values[name] is not None)
    return Tile(
        stack=stack.id,
        row=row,
        image=values["image"],
        verdict=values["verdict"],
        score=values["score"],
        votes=votes,
        reason=REASON_WORDS.get(values["reason"], values["reason"]),
        decision=decision,
        particle=stack.kind == "particle",
    )


def _about_class(image: str, columns: Mapping[str, np.ndarray], row: int) -> str:
    """Number of a class, its share of the particles and its resolution, as far as they are known."""
    name = _class_name(image)
    words = [name] if name else []
    for name, what, scale, unit in (
        (rln.CLASS_DISTRIBUTION, "share", 100, "%"),
        (rln.ESTIMATED_RESOLUTION, "resolution", 1, "Å"),
    ):
        if name in columns:
            value = float(known(columns[name][row]))
            words.append(f"{scale * value:.1f} {unit}" if np.isfinite(value) else f"{what} unknown")
    return " · ".join(words)


def _class_name(image: str) -> str:
    """``class 3`` of the class ``000003@…``; '' where the image has no number."""
    number = image.partition("@")[0]
    return f"class {int(number)}" if number.isdecimal() else ""


def _squares(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Grid squares, the newest first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.square is None:
            continue
        one = found.setdefault(
            row.square, {"square": row.square, "micrographs": 0, "kept": 0, "images": 0, "at": 0.0}
        )
        one["micrographs"] += 1
        one["kept"] += row.kept
        one["images"] += row.kept + row.discarded + row.review
        one["at"] = max(one["at"], row.judged)
    for one in found.values():
        one["rate"] = one["kept"] / one["images"] if one["images"] else 0.0
    return sorted(found.values(), key=lambda one: -one["at"])[:30]


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%m-%d %H:%M")
