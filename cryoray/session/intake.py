"""From a look at the watched folder to stacks that wait to be judged, and to those that are gone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryoray.session.event_log import EventLog
from cryoray.session.finding import Finder
from cryoray.session.judge_queue import JudgeQueue
from cryoray.session.judging import Unit, digest
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Happened, Seen, stack_id
from cryoray.session.merge_schedule import MergeSchedule
from cryoray.session.names import recordable, unwritable
from cryoray.session.profile_renewal import ProfileRenewal
from cryoray.session.settling import MANY, File, Scanner


class Intake:
    """Brings what a scanner sees into the ledger and into the queue of one session.

    Args:
        ledger: learns of the stacks.
        session: its name.
        scanner: looks at the folder.
        finder: makes stacks of its files.
        queue: gets what is to be judged.
        profile: says which verdicts are outdated.
        merges: are wanted where a stack is gone.
        log: gets what happens.
        known: paths of the stacks that the ledger has already, by id.
    """

    def __init__(
        self,
        ledger: Ledger,
        session: str,
        scanner: Scanner,
        finder: Finder,
        queue: JudgeQueue,
        profile: ProfileRenewal,
        merges: MergeSchedule,
        log: EventLog,
        known: Mapping[str, str],
    ) -> None:
        self._ledger, self._session, self._log = ledger, session, log
        self._scanner, self._finder = scanner, finder
        self._queue, self._profile, self._merges = queue, profile, merges
        self._found: list[File] = []  # settled, and not yet in the ledger
        self._gone: dict[str, str] = {}  # by id: paths that vanished, and are not yet so there
        self._inherited = dict(known)
        self._absent: dict[str, str] | None = None  # those that are not there; None: not yet known
        self._began = time.monotonic()
        self._away: str | None = None
        self._unreadable: dict[str, str] = {}

    @property
    def is_done(self) -> bool:
        """Whether all that was seen has settled, and is in the ledger."""
        left = self._scanner.unsettled or self._found or self._gone
        return not left and self._absent is not None

    def look(self) -> None:
        """Look once.

        Raises:
            LedgerAwayError: what was seen is kept for the next look.
        """
        look = self._scanner.look()
        if look.away != self._away:
            self._away = look.away
            name = "folder.away" if look.away else "folder.back"
            data = {"root": str(self._scanner.root), "reason": look.away}
            self._log.note(Happened(f"{name}:{time.time():.6f}", name, data))
        for folder in look.unreadable.keys() - self._unreadable.keys():
            data = {"folder": recordable(folder), "reason": look.unreadable[folder]}
            id_ = f"unreadable:{stack_id(self._session, folder)}:{time.time():.6f}"
            self._log.note(Happened(id_, "folder.unreadable", data))
        self._unreadable = dict(look.unreadable) if look.away is None else self._unreadable
        if look.away is None:
            self._reconcile()
        self._forget(look.vanished)
        self._found += look.settled
        self._expect()
        self._vanish()

    def _reconcile(self) -> None:
        """Find the stacks of the ledger that vanished while nobody watched.

        They count as gone when they are still not there after the settle time, since what replaces a
        file may remove it first; not while their folder cannot be read, or everything is gone: then the
        disk is.
        """
        if self._absent == {}:
            return
        there = {stack_id(self._session, path) for path in self._scanner.paths}
        awaited = self._inherited if self._absent is None else self._absent
        absent = {key: path for key, path in awaited.items() if key not in there}
        if absent and time.monotonic() - self._began < self._scanner.settle:
            return
        if len(absent) < MANY or there:
            gone = [key for key, path in absent.items() if not self._scanner.is_hidden(path)]
            self._gone |= {key: absent.pop(key) for key in gone}
        self._absent = absent

    def _expect(self) -> None:
        """Have what settled in the ledger; what cannot be named is rejected, with the reason."""
        if not self._found:
            return
        hostile = {file.path: file for file in self._found if unwritable(file.path)}
        units = self._finder.units([one.path for one in self._found if one.path not in hostile])
        units += [
            Unit(Path(path), "particle", None, None, digest(file.identity))
            for path, file in hostile.items()
        ]
        old = {path for unit in units for path in self._superseded(unit)}
        self._forget(sorted(old))
        units = [unit for unit in units if str(unit.path) not in old]
        now = time.time()
        seen = []
        for unit in units:
            file = self._scanner.get(str(unit.path))
            if file is None:
                continue
            self._queue.add(stack_id(self._session, str(unit.path)), unit)
            star = unit.own or unit.shared
            seen.append(
                Seen(
                    path=str(unit.path),
                    described_by=str(star) if star else None,
                    kind=unit.kind,
                    digest=unit.digest,
                    size=file.size,
                    mtime_ns=file.mtime_ns,
                    settled=now,
                )
            )
        self._queue.put(self._ledger.expect(self._session, seen))
        ids = {stack_id(self._session, one.path) for one in seen}
        self._queue.put_outdated(self._profile.outdated() & ids)
        self._found.clear()

    def _superseded(self, unit: Unit) -> list[str]:
        return self._finder.superseded(unit.path) if unit.kind == "class2d" else []

    def _forget(self, paths: Iterable[str]) -> None:
        """Judge these no more, and have the ledger say that they are gone."""
        for path in paths:
            key = stack_id(self._session, path)
            known = self._inherited.pop(key, None)
            if key in self._queue or known:
                self._queue.remove(key)
                self._gone[key] = recordable(path)

    def _vanish(self) -> None:
        # What is there again was expected anew, and is not gone.
        gone = {key: path for key, path in self._gone.items() if key not in self._queue}
        if gone:
            self._ledger.vanish(gone)
            stamp = f"{time.time():.6f}"
            for key, path in gone.items():
                self._log.note(
                    Happened(f"{key}:vanished:{stamp}", "stack.vanished", {"stack": path})
                )
            self._merges.want()
        self._gone.clear()
