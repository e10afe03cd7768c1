"""The stacks of a session that wait to be judged, those that are judged now, and those to be judged again."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from cryoray.errors import InputError
from cryoray.formats.opening import OutsideError
from cryoray.session.judging import Unit, incomplete
from cryoray.session.ledger_records import Outcome
from cryoray.session.names import unwritable
from cryoray.session.retrying import FIRST_WAIT, longer
from cryoray.session.settling import Scanner

#: A stack that settled and is not whole is sent after so many settle times, and at least seconds.
_PATIENCE, _LEAST_PATIENCE = 10.0, 60.0


class InFlight(NamedTuple):
    """A stack that is judged now.

    Attributes:
        result: what becomes of it.
        profile: digest of the one by which it is judged; None: each image alone.
    """

    result: Future[Outcome]
    profile: str | None


class JudgeQueue:
    """All stacks that the watcher knows, by their ids; some of them wait, and a few are in flight.

    A stack waits until its verdicts are in the ledger, also while it is in flight: what is rewritten
    meanwhile is sent again. It is outdated where its verdicts rest on another profile than the session's:
    then it waits too, behind all that is new.

    Args:
        scanner: sees the files of the stacks.
        patience: seconds that a stack which settled and is not whole is waited for, at most.
        size: how many may be in flight.
    """

    def __init__(self, scanner: Scanner, patience: float, size: int) -> None:
        self._scanner, self._size = scanner, size
        self._patience = min(max(_LEAST_PATIENCE, _PATIENCE * scanner.settle), patience)
        self._units: dict[str, Unit] = {}
        self._images: int | None = 0  # None: to be counted
        self._not_before: dict[str, float] = {}  # of those that wait
        self._outdated: set[str] = set()
        self._waits: dict[str, float] = {}  # seconds after the last failure
        self._half: dict[str, float] = {}  # since when it is known to be incomplete
        self._in_flight: dict[str, InFlight] = {}

    # --- what is known

    def __contains__(self, key: str) -> bool:
        return key in self._units

    def add(self, key: str, unit: Unit) -> None:
        """Know a stack, or what it has become."""
        self._units[key] = unit
        self._images = None

    def remove(self, key: str) -> None:
        """Judge it no more; what is in flight comes to nothing."""
        self._units.pop(key, None)
        self._images = None
        self.done(key)

    @property
    def images(self) -> int:
        """How many images the session has."""
        if self._images is None:
            self._images = sum(unit.images for unit in self._units.values())
        return self._images

    def sources(self, without: Collection[str]) -> list[Path]:
        """What the service is asked about for a profile: all that has images, in order."""
        return sorted(
            unit.asked for key, unit in self._units.items() if unit.images and key not in without
        )

    # --- what waits

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, and nothing is in flight."""
        return not self._not_before and not self._in_flight

    @property
    def outdated(self) -> int:
        """How many stacks rest on another profile."""
        return len(self._outdated)

    def put(self, keys: Iterable[str]) -> None:
        """Have these judged: they are new, or were rewritten."""
        for key in keys:
            self._outdated.discard(key)
            self._wait_no_longer(key)

    def put_outdated(self, keys: Iterable[str]) -> None:
        """Have these judged again: their verdicts rest on another profile."""
        for key in keys:
            if key in self._units:
                self._outdated.add(key)
                self._wait_no_longer(key)

    def clear_outdated(self) -> None:
        """No verdict is outdated now: another profile will say which are, or none is needed."""
        self._outdated.clear()

    def done(self, key: str) -> None:
        """It waits no longer: its verdicts are in the ledger."""
        self._outdated.discard(key)
        for one in (self._not_before, self._waits, self._half):
            one.pop(key, None)

    def failed(self, key: str) -> None:
        """Send it again, later than the last time."""
        wait = self._waits[key] = longer(self._waits.get(key, FIRST_WAIT / 2))
        if key in self._not_before:
            self._not_before[key] = time.monotonic() + wait

    def due(self) -> Iterator[tuple[str, Unit]]:
        """What can be sent now, while there is room; the caller says what was (`sent`)."""
        now = time.monotonic()
        due = [key for key, at in self._not_before.items() if at <= now]
        for key in sorted(due, key=self._outdated.__contains__):
            if len(self._in_flight) >= self._size:
                return
            unit = self._units.get(key)
            if key in self._in_flight or unit is None:
                continue
            if unwritable(str(unit.path)) or self._is_whole(key, unit, now):
                yield key, unit
            else:
                self._not_before[key] = now + min(self._scanner.settle, 5.0)

    def _wait_no_longer(self, key: str) -> None:
        self._not_before[key] = 0.0
        self._waits.pop(key, None)

    def _is_whole(self, key: str, unit: Unit, now: float) -> bool:
        """Whether a stack is what settled, and is all there, or was waited for long enough."""
        missing: str | None
        try:
            missing = incomplete(unit.path, unit.own)
        except OutsideError:
            missing = None  # of others' files nothing is said here; judging refuses them
        except InputError as error:
            # A file that is no stack may be one whose header comes last.
            missing = str(error)
        if missing is None:
            self._half.pop(key, None)
        elif now - self._half.setdefault(key, now) < self._patience:
            return False
        # What has grown or was rewritten since then is another stack, which the scanner brings.
        return self._scanner.is_settled(str(unit.path))

    # --- what is in flight

    @property
    def in_flight(self) -> int:
        """How many stacks are judged now."""
        return len(self._in_flight)

    def sent(self, key: str, result: Future[Outcome], profile: str | None) -> None:
        """It is judged from now on, by the profile of this digest."""
        self._in_flight[key] = InFlight(result, profile)

    def finished(self) -> Iterator[tuple[str, Unit | None, InFlight]]:
        """What is in flight no longer: a stack, None where it was removed meanwhile, and its result."""
        for key, flight in list(self._in_flight.items()):
            if flight.result.done():
                del self._in_flight[key]
                yield key, self._units.get(key), flight

    def land(self) -> None:
        """Wait until nothing is in flight."""
        for flight in self._in_flight.values():
            flight.result.exception()
