"""Watches a folder while a microscope fills it: each stack that settles is judged, once, come what may.

One thread looks, writes events and follows drift; a few ask the service; one merges. Whatever fails at
the service is asked again, later and later, until the verdicts are in the ledger: nothing else retries.

Where the ensemble judges within a project, a profile is made of what has come (`session.profiling`), and
what was judged by another one is judged again, after all that is new.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from cryoray.errors import CryorayError, InputError, printable
from cryoray.formats.files import replacing
from cryoray.formats.names import PROFILE
from cryoray.protocol.client import Client, RefusedError
from cryoray.records import Event, Kind, OnEvent, ignore
from cryoray.session.database import LedgerAwayError, UnstorableError
from cryoray.session.drift import Drift
from cryoray.session.event_log import EventLog
from cryoray.session.finding import Finder
from cryoray.session.folder import alone, make_folder, places, write_token
from cryoray.session.grid import Grid
from cryoray.session.judging import (
    SessionContext,
    Unit,
    digest,
    incomplete,
    judge,
    refuse,
    verdict_of,
)
from cryoray.session.labels import overrides_csv, training_csv
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Happened, Outcome, Seen, stack_id
from cryoray.session.merging import Merger, Part
from cryoray.session.names import recordable, unwritable
from cryoray.session.profiling import SessionProfile, is_due, spread, stands
from cryoray.session.retrying import FIRST_WAIT, longer
from cryoray.session.settling import MANY, File, Scanner
from cryoray.settings import WatchSettings

#: A stack that settled and is not whole is sent after so many settle times, and at least seconds.
_PATIENCE, _LEAST_PATIENCE = 10.0, 60.0
_SIGN_OF_LIFE = 10.0
#: Seconds for which a full service is asked again before other stacks get their turn.
_PATIENCE_WHEN_FULL = 30.0
#: Merging takes at most this share of the time.
_MERGING_SHARE = 0.05
#: The service's status where a profile is of another ensemble than the one that is active.
_OTHER_PROFILE = 409
#: Micrographs of its past that a session is compared with after a restart.
_REMEMBERED = 20_000


class Watcher:
    """One session, watched.

    Args:
        root: the folder that the microscope, or what follows it, fills.
        session: its name.
        settings: how.
        client: of the service that judges; closed with the watcher.
        on_event: called with everything that happens, once.

    Raises:
        InputError: there is no such folder, or the session watches another.
        SettingsError: a setting makes no sense, the ledger cannot be had, or another process watches.
    """

    def __init__(
        self,
        root: Path,
        session: str,
        settings: WatchSettings,
        client: Client,
        *,
        on_event: OnEvent = ignore,
    ) -> None:
        self.places = places(root, session, settings)
        self.session, self.settings, self.client = session, settings, client
        self._judge_client = client
        self._on_event = on_event
        make_folder(self.places.folder)
        self.ledger = Ledger(self.places.ledger)
        self.ledger.check_host()
        token = self.ledger.open_session(
            session,
            root=self.places.root,
            folder=self.places.folder,
            roots=[one.resolve() for one in settings.roots],
            trainable=settings.trainable,
            audit_size=settings.audit,
        )
        if token is None and not self.token_file.is_file():
            token = self.ledger.new_token(session)  # whoever deletes the file wants another one
        if token is not None:
            write_token(self.token_file, token)
        self._log = EventLog(self.ledger, session, self.places.events, on_event, settings.webhook)
        self.grid = Grid(settings.grid)
        self.scanner = Scanner(
            self.places.root,
            settle=settings.settle,
            rescan=settings.rescan,
            ignore=settings.ignore,
            skip=(self.places.folder.parent, self.places.folder),
        )
        self._swapping = threading.Lock()
        self._merger = Merger(self.places.folder, self.places.root, self._swapping)
        self._units: dict[str, Unit] = {}
        self._pending: dict[str, float] = {}  # by id: not before
        self._waits: dict[str, float] = {}
        self._half: dict[str, float] = {}  # by id: since when it is incomplete
        self._flying: dict[str, Future[Outcome]] = {}
        self._sent: dict[str, str | None] = {}  # by id: digest of the profile by which it is judged
        self._profile: SessionProfile | None = None
        self._profiling: Future[SessionProfile | None] | None = None
        self._profile_wanted = False  # whatever the size of the session
        self._ensemble: str | None = None  # digest of the one that judges particles
        self._profile_tried = 0  # images of which none could be made
        self._profile_due = 0.0  # not before
        self._profile_wait = FIRST_WAIT
        self._seen: int | None = 0  # images; None: to be counted
        self._outdated: set[str] = set()  # ids: judged by another profile
        self._mixed = False  # whether there were such when it was looked last
        self._merging: Future[float] | None = None
        self._merge_due = time.monotonic() + settings.merge_every
        self._dirty = False
        self._found: list[File] = []  # settled, and not yet in the ledger
        self._gone: dict[
            str, str
        ] = {}  # by id: paths that vanished, and are not yet so in the ledger
        self._inherited: dict[str, str] = {}  # by id: paths of stacks that were known before
        self._absent: dict[str, str] | None = None  # those that are not there; None: not yet known
        self._began = time.monotonic()
        self._unreadable: dict[str, str] = {}
        self._ledger_away = False
        self._away: str | None = None
        self._service_away = False
        self._alive = -1e18

    @property
    def token_file(self) -> Path:
        """Where the session's token is, mode 0600."""
        return self.places.token_file

    def run(self, stop: threading.Event, *, once: bool = False) -> None:
        """Watch until ``stop`` is set, or, with ``once``, until nothing is left to be judged.

        What is being judged then is finished, the merged files are written, and the session is closed.

        Raises:
            SettingsError: another process watches the session.
            OSError: the disk of the session's folder or of its ledger is full; it goes on from there when
                it is watched again.
            LedgerAwayError: the ledger cannot be had at the end; before, it is waited for.
        """
        with (
            alone(self.places.folder),
            ThreadPoolExecutor(self.settings.max_concurrent, "judge") as judges,
            ThreadPoolExecutor(1, "merge") as merger,
            self._log.posting(),
        ):
            self._log.mend()
            opened = {"session": self.session, "root": str(self.places.root)}
            self._log.note(Happened(f"opened:{time.time():.6f}", "session.opened", opened))
            ready = False
            idle_since: float | None = None
            while not stop.is_set():
                try:
                    ready = ready or self._begin(stop)
                    if not ready:
                        break
                    self._turn(judges, merger, stop)
                except LedgerAwayError as error:
                    self._wait_for_ledger(error, stop)
                    continue
                self._ledger_is_back()
                idle_since = None if self._busy else (idle_since or time.monotonic())
                if once and idle_since and time.monotonic() - idle_since >= self.settings.poll:
                    if not self._want_last_profile():
                        break
                    idle_since = None
            for future in self._flying.values():
                future.exception()
            if self._merging is not None:
                self._merging.exception()
            if ready:
                self._collect()
                self._merge()
            left = {"outdated": len(self._outdated)} if self._outdated else {}
            counts = {**self.row_counts(), **left}
            closed = Happened(f"closed:{time.time():.6f}", "session.closed", counts)
            self._log.note(closed)
            self._log.flush()
            self._log.deliver()
            self.ledger.close_session(self.session)

    def close(self) -> None:
        """Let go of the ledger and the client."""
        self.ledger.close()
        if self._judge_client is not self.client:
            self._judge_client.close()
        self.client.close()

    def row_counts(self) -> dict[str, object]:
        """What became of all rows until now."""
        totals = self.ledger.totals(self.session)
        judged = totals.get("particle/judged", {})
        return {
            "session": self.session,
            "stacks": sum(one["stacks"] for name, one in totals.items() if name.endswith("judged")),
            "rejected": sum(
                one["stacks"] for name, one in totals.items() if name.endswith("rejected")
            ),
            "pending": sum(
                one["stacks"] for name, one in totals.items() if name.endswith("pending")
            ),
            **{
                name: judged.get(name, 0)
                for name in ("rows", "kept", "discarded", "review", "quarantined")
            },
        }

    # --- what a turn consists of

    def _turn(
        self, judges: ThreadPoolExecutor, merger: ThreadPoolExecutor, stop: threading.Event
    ) -> None:
        """Look once, and work for the time between two looks.

        Raises:
            LedgerAwayError: nothing is lost by that, and the next turn goes on with all that is left.
        """
        began = time.monotonic()
        self._look()
        while True:
            self._log.flush()
            self._renew_profile(judges)
            self._send(judges)
            self._collect()
            self._log.deliver()
            left = self.settings.poll - (time.monotonic() - began)
            if left <= 0 or stop.is_set():
                break
            # What is judged is committed at once, not at the next look.
            stop.wait(min(left, 0.05 if self._flying or self._profiling else left))
        self._maybe_merge(merger)
        self._live()

    @property
    def _busy(self) -> bool:
        """Whether something is left to be done."""
        work = self._pending or self._flying or self.scanner.unsettled or self._found or self._gone
        return bool(work) or self._profiling is not None or self._absent is None

    def _wait_for_ledger(self, error: LedgerAwayError, stop: threading.Event) -> None:
        """Say so once, which cannot be noted, and wait."""
        if not self._ledger_away:
            self._ledger_away = True
            self._on_event(Event("ledger.away", {"reason": str(error)}))
        stop.wait(FIRST_WAIT)

    def _ledger_is_back(self) -> None:
        if self._ledger_away:
            self._ledger_away = False
            self._log.note(Happened(f"ledger.back:{time.time():.6f}", "ledger.back"))

    def _begin(self, stop: threading.Event) -> bool:
        """Ask the service what it has, however long that takes; False where there is no more time."""
        self._log.flush()
        ensembles = None
        while ensembles is None and not stop.is_set():
            try:
                ensembles = _ensembles(self.client, self.settings)
            except RefusedError:
                raise
            except (CryorayError, httpx.HTTPError) as error:
                self._note_service_away(error)
                self._log.flush()
                self._log.deliver()
                stop.wait(FIRST_WAIT)
        row = self.ledger.session(self.session)
        if ensembles is None or row is None:
            return False
        self._act_as_session()
        if ensembles.baseline:
            self.ledger.set_baseline(self.session, ensembles.baseline)
        self.context = SessionContext(
            root=self.places.root,
            roots=self.settings.roots,
            folder=self.places.folder,
            salt=row.salt,
            sample=row.audit,
            grid=self.grid,
            max_quarantined=self.settings.max_quarantined,
            ensembles=ensembles.names,
            within=ensembles.within,
            swapping=self._swapping,
        )
        self._resume_profile(row, ensembles)
        self.finder = Finder(self.scanner, ensembles.names)
        self._baseline = ensembles.baseline or row.baseline
        known = self.ledger.stacks(self.session, "pending", "judged", "rejected")
        self._inherited = {row.id: row.path for row in known}
        self._follow_drift()
        self._dirty = True
        return True

    def _follow_drift(self) -> None:
        """Follow the session from its beginning, as its micrographs are judged by now."""
        drift = Drift(self._baseline, run_length=self.settings.micrographs_between_false_alarms)
        for micrograph in self.ledger.micrographs(self.session)[-_REMEMBERED:]:
            drift.add(micrograph)
        self.drift = drift

    def _act_as_session(self) -> None:
        """Ask with the session's own token where the service knows it: it judges those folders alone.

        A service that does not know the ledger is asked with the operator's, for what `judge` has seen
        to lie in the session's folders.
        """
        if self._judge_client is not self.client:
            return
        token = self.token_file.read_text(encoding="ascii").strip()
        own = Client(self.client.url, token, patience=_PATIENCE_WHEN_FULL)
        try:
            own.ensembles()
        except (CryorayError, httpx.HTTPError):
            own.close()
        else:
            self._judge_client = own

    def _note_service_away(self, error: BaseException) -> None:
        if not self._service_away:
            self._service_away = True
            data = {"service": self.client.url, "reason": str(error)}
            self._log.note(Happened(f"service.away:{time.time():.6f}", "service.away", data))

    def _look(self) -> None:
        look = self.scanner.look()
        if look.away != self._away:
            self._away = look.away
            name = "folder.away" if look.away else "folder.back"
            data = {"root": str(self.places.root), "reason": look.away}
            self._log.note(Happened(f"{name}:{time.time():.6f}", name, data))
        for folder in look.unreadable.keys() - self._unreadable.keys():
            data = {"folder": recordable(folder), "reason": look.unreadable[folder]}
            id_ = f"unreadable:{stack_id(self.session, folder)}:{time.time():.6f}"
            self._log.note(Happened(id_, "folder.unreadable", data))
        self._unreadable = dict(look.unreadable) if look.away is None else self._unreadable
        if look.away is None:
            self._reconcile()
        self._forget(look.vanished)
        self._found += look.settled
        self._expect()
        self._vanish()

    def _expect(self) -> None:
        """Have what settled in the ledger; what cannot be named is rejected, with the reason."""
        if not self._found:
            return
        hostile = {file.path: file for file in self._found if unwritable(file.path)}
        units = self.finder.units([one.path for one in self._found if one.path not in hostile])
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
            file = self.scanner.get(str(unit.path))
            if file is None:
                continue
            self._units[stack_id(self.session, str(unit.path))] = unit
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
        pending = self.ledger.expect(self.session, seen)
        self._outdated -= set(pending)
        outdated = self._outdated_by_ledger() & {stack_id(self.session, one.path) for one in seen}
        self._outdated |= outdated
        for key in (*pending, *outdated):
            self._pending[key] = 0.0
            self._waits.pop(key, None)
        self._found.clear()
        self._seen = None

    def _reconcile(self) -> None:
        """Find the stacks of the ledger that vanished while nobody watched.

        They count as gone when they are still not there after the settle time, since what replaces a
        file may remove it first; not while their folder cannot be read, or everything is gone: then the
        disk is.
        """
        if self._absent == {}:
            return
        there = {stack_id(self.session, path) for path in self.scanner.paths}
        awaited = self._inherited if self._absent is None else self._absent
        absent = {key: path for key, path in awaited.items() if key not in there}
        if absent and time.monotonic() - self._began < self.settings.settle:
            return
        if len(absent) < MANY or there:
            gone = [key for key, path in absent.items() if not self.scanner.is_hidden(path)]
            self._gone |= {key: absent.pop(key) for key in gone}
        self._absent = absent

    def _superseded(self, unit: Unit) -> list[str]:
        return self.finder.superseded(unit.path) if unit.kind == "class2d" else []

    def _forget(self, paths: Iterable[str]) -> None:
        """Judge these no more, and have the ledger say that they are gone."""
        for path in paths:
            key = stack_id(self.session, path)
            known = self._inherited.pop(key, None)
            if self._units.pop(key, None) or known:
                self._pending.pop(key, None)
                self._outdated.discard(key)
                self._gone[key] = recordable(path)
                self._seen = None

    def _vanish(self) -> None:
        # What is there again was expected anew, and is not gone.
        gone = {key: path for key, path in self._gone.items() if key not in self._units}
        if gone:
            self.ledger.vanish(gone)
            stamp = f"{time.time():.6f}"
            for key, path in gone.items():
                self._log.note(
                    Happened(f"{key}:vanished:{stamp}", "stack.vanished", {"stack": path})
                )
            self._dirty = True
        self._gone.clear()

    # --- the profile

    def _resume_profile(self, row: Any, ensembles: _Ensembles) -> None:
        """Go on with the profile that the ledger has, where it is of the ensemble that judges now."""
        self._profile, self._ensemble = None, ensembles.digest
        if row.profile is None:
            return
        known = SessionProfile(row.profile, row.profiled or 0)
        if known.ensemble == ensembles.digest:
            self._profile = known
            known.save(self.places.folder)
        else:
            self._profile_wanted = True

    def _renew_profile(self, judges: ThreadPoolExecutor) -> None:
        """Have a profile made where one is due, and judge by it when it is there."""
        if self._profiling is not None:
            if self._profiling.done():
                self._take_profile(self._profiling)
                self._profiling = None
            return
        if self._seen is None:
            self._seen = sum(unit.images for unit in self._units.values())
        before = max(self._profile_tried, self._profile.seen if self._profile else 0)
        due = "particle" in self.context.within and is_due(self._seen, before)
        if (due or self._profile_wanted) and time.monotonic() >= self._profile_due:
            rejected = {row.id for row in self.ledger.stacks(self.session, "rejected")}
            sources = sorted(
                unit.asked
                for key, unit in self._units.items()
                if unit.images and key not in rejected
            )
            if sources:
                self._profiling = judges.submit(self._make_profile, sources, self._seen)
            else:
                self._profile_wanted, self._profile_tried = False, self._seen

    def _make_profile(self, sources: list[Path], seen: int) -> SessionProfile | None:
        """In a thread of its own; None where the ensemble that is active by now judges each image alone."""
        if "particle" not in _ensembles(self._judge_client, self.settings).within:
            return None
        name = self.context.ensembles.get("particle")
        return SessionProfile(self._judge_client.profile(spread(sources), ensemble=name), seen)

    def _take_profile(self, making: Future[SessionProfile | None]) -> None:
        try:
            made = making.result()
        except (CryorayError, OSError, httpx.HTTPError) as error:
            data: dict[str, object] = {"reason": str(error)}
            self._profile_due = time.monotonic() + self._profile_wait
            self._profile_wait = longer(self._profile_wait)
            if isinstance(error, RefusedError) and error.status not in (401, 404):
                self._profile_wanted, self._profile_tried = False, self._seen or 0
                self._log.note(
                    Happened(f"profile.failed:{time.time():.6f}", "profile.failed", data)
                )
            else:
                self._note_service_away(error)
            return
        if made is None:
            self.ledger.set_profile(self.session, None)
            (self.places.folder / PROFILE).unlink(missing_ok=True)
            self._outdated.clear()
            self.context = replace(self.context, within=self.context.within - {"particle"})
        else:
            left = self.ledger.outdated(self.session, made.digest)
            data = {
                "profile": made.digest,
                "ensemble": made.ensemble,
                "images": made.images,
                "seen": made.seen,
                "outdated": len(left),
            }
            happened = Happened(f"profile.made:{made.digest[:40]}", "profile.made", data)
            made.save(self.places.folder)
            self.ledger.set_profile(self.session, made.body, made.seen, [happened])
            self.context = replace(self.context, within=self.context.within | {"particle"})
            self._outdated = {key for key in left if key in self._units}
            self._pending |= dict.fromkeys(self._outdated, 0.0)
        self._profile, self._profile_wanted = made, False
        self._profile_wait = FIRST_WAIT

    def _outdated_by_ledger(self) -> set[str]:
        if self._profile is None:
            return set()
        return set(self.ledger.outdated(self.session, self._profile.digest))

    def _want_last_profile(self) -> bool:
        """Whether another profile is worth making at the end, of all that came; then it is wanted."""
        before = self._profile.seen if self._profile else 0
        seen = self._seen or 0
        self._profile_wanted = (
            "particle" in self.context.within
            and seen > max(before, self._profile_tried)
            and not stands(before)
        )
        return self._profile_wanted

    def _rests_on_profile(self, key: str, outcome: Outcome) -> None:
        """Have a stack judged again where there is another profile since."""
        self._outdated.discard(key)
        if outcome.state != "judged":
            return
        if self._profile is None:
            # What was promoted may judge within projects, and what it took the place of did not.
            self._profile_wanted |= outcome.ensemble != self._ensemble
            self._ensemble = outcome.ensemble
        elif outcome.profile != self._profile.digest:
            self._outdated.add(key)
            self._pending[key] = 0.0

    def _see_whether_applied(self) -> None:
        """Go on from a session that is judged by one profile, once it is."""
        mixed, self._mixed = self._mixed, bool(self._outdated)
        if mixed and not self._mixed and self._profile is not None:
            self._follow_drift()
            data = {"profile": self._profile.digest, **self.row_counts()}
            id_ = f"profile.applied:{self._profile.digest[:40]}"
            self._log.note(Happened(id_, "profile.applied", data))

    # --- judging

    def _send(self, judges: ThreadPoolExecutor) -> None:
        if self._profiling is not None:
            return  # what is judged now would be judged again in a moment
        now = time.monotonic()
        due = [key for key, at in self._pending.items() if at <= now]
        for key in sorted(due, key=self._outdated.__contains__):
            if len(self._flying) >= self.settings.max_concurrent:
                return
            unit = self._units.get(key)
            if key in self._flying or unit is None:
                continue
            if not unwritable(str(unit.path)) and self._wait_for_rest(key, unit, now):
                continue
            profile = self._profile if unit.kind == "particle" else None
            self._sent[key] = profile.digest if profile else None
            self._flying[key] = judges.submit(self._judge, unit, profile)

    def _wait_for_rest(self, key: str, unit: Unit, now: float) -> bool:
        """Whether a stack is not whole yet, and may still become so."""
        try:
            missing = incomplete(unit.path, unit.own)
        except InputError as error:
            # A file that is no stack may be one whose header comes last.
            missing = str(error)
        if missing is None:
            self._half.pop(key, None)
            return False
        since = self._half.setdefault(key, now)
        patience = max(_LEAST_PATIENCE, _PATIENCE * self.settings.settle)
        if now - since >= min(patience, self.settings.patience):
            return False
        self._pending[key] = now + min(self.settings.settle, 5.0)
        return True

    def _judge(self, unit: Unit, profile: SessionProfile | None) -> Outcome:
        """In a thread of its own."""
        if reason := unwritable(str(unit.path)):
            path = recordable(str(unit.path))
            return refuse(InputError(reason, file=path, remedy="rename it"), unit.digest)
        try:
            incomplete(unit.path, unit.own)
            outcome = judge(unit, self.context, self._judge_client, profile)
        except RefusedError as error:
            if error.status in (401, 404, _OTHER_PROFILE):
                raise
            return refuse(error, unit.digest)
        except InputError as error:
            if type(error).__module__.startswith("cryoray.protocol"):
                raise
            return refuse(error, unit.digest)
        return outcome

    def _collect(self) -> None:
        for key, future in list(self._flying.items()):
            if not future.done():
                continue
            del self._flying[key]
            by = self._sent.pop(key, None)
            unit = self._units.get(key)
            try:
                outcome = future.result()
            except RefusedError as error:
                if error.status != _OTHER_PROFILE or unit is None or unit.kind != "particle":
                    self._failed(key, error)
                elif self._profile is not None and self._profile.digest == by:
                    self._profile, self._profile_wanted = None, True  # of an ensemble that made way
                continue
            except (CryorayError, OSError, httpx.HTTPError) as error:
                self._failed(key, error)
                continue
            if self._service_away:
                self._service_away = False
                self._log.note(Happened(f"service.back:{time.time():.6f}", "service.back"))
            if unit is None or unit.digest != outcome.digest:
                continue  # rewritten or gone meanwhile; what is pending then is sent again
            self._commit(key, unit, outcome)
        self._see_whether_applied()

    def _failed(self, key: str, error: BaseException) -> None:
        wait = longer(self._waits.get(key, FIRST_WAIT / 2))
        self._waits[key] = wait
        if key in self._pending:
            self._pending[key] = time.monotonic() + wait
        self.ledger.attempt(key, str(error))
        self._note_service_away(error)

    def _commit(self, key: str, unit: Unit, outcome: Outcome) -> None:
        there = self.ledger.stack(key)
        again = there is not None and there.state == "judged" and there.digest == outcome.digest
        happened = list((self._changed if again else self._happened)(key, unit, outcome))
        reread = partial(verdict_of, self.context.place(unit.path))
        try:
            if not self.ledger.commit(self.session, key, outcome, happened, reread):
                return
        except UnstorableError as error:
            refused = InputError(printable(error.what), file=unit.path)
            outcome = refuse(refused, unit.digest)
            happened = list(self._happened(key, unit, outcome))
            if not self.ledger.commit(self.session, key, outcome, happened):
                return
        self._pending.pop(key, None)
        self._waits.pop(key, None)
        self._half.pop(key, None)
        self._dirty = True
        if unit.kind == "particle":
            self._rests_on_profile(key, outcome)
        if again:  # its micrographs were followed and counted then
            return
        later: list[Happened] = []
        for square in dict.fromkeys(one.square for one in outcome.micrographs if one.square):
            data = dict(self.ledger.square(self.session, square)._mapping)
            id_ = f"{key}:{outcome.digest}:{square}"
            later.append(
                Happened(id_, "grid_square.judged", _summary({"grid_square": square, **data}))
            )
        # While some are judged by one profile and some by another, that is what would be seen.
        for one in outcome.micrographs if not self._outdated else ():
            for alarm in self.drift.add(one):
                id_ = f"{key}:{outcome.digest}:{alarm.against}:{alarm.channel}"
                later.append(Happened(id_, "drift.alarm", asdict(alarm)))
        self._log.note(*later)

    def _changed(self, key: str, unit: Unit, outcome: Outcome) -> Iterator[Happened]:
        """What is told of a stack that was judged again, by another profile."""
        where = {
            "stack": recordable(str(unit.path)),
            "ensemble": outcome.ensemble,
            "profile": outcome.profile,
        }
        mark = f"{key}:{outcome.digest}:{(outcome.profile or '')[:24]}"
        if outcome.state == "rejected":
            yield Happened(mark, "stack.rejected", {**where, "reason": outcome.reason})
        elif outcome.changed:
            counts = {name: getattr(outcome, name) for name in ("kept", "discarded", "review")}
            data = {**where, "changed": outcome.changed, **counts}
            yield Happened(mark, "verdicts.changed", _summary(data))

    def _happened(self, key: str, unit: Unit, outcome: Outcome) -> Iterator[Happened]:
        mark = f"{key}:{outcome.digest}"
        where = {
            "stack": recordable(str(unit.path)),
            "ensemble": outcome.ensemble,
            "profile": outcome.profile,
        }
        if outcome.state == "rejected":
            yield Happened(mark, "stack.rejected", {**where, "reason": outcome.reason})
        elif unit.kind == "class2d":
            counts = {name: getattr(outcome, name) for name in ("kept", "discarded", "review")}
            yield Happened(mark, "classes.judged", {**where, **counts, "score": outcome.score})
        # Whoever put a STAR file beside a stack should hear that it was not used, and why.
        for name, why in unit.unused if outcome.state == "judged" else ():
            unused = {"file": str(unit.path.with_name(name)), "because": printable(why)}
            yield Happened(f"{mark}:{name[-20:]}", "companion.unused", unused)
        for number, one in enumerate(outcome.micrographs):
            data = {
                "micrograph": one.name,
                "grid_square": one.square,
                "foil_hole": one.hole,
                **where,
                **{
                    name: getattr(one, name)
                    for name in ("kept", "discarded", "review", "quarantined")
                },
                "score": one.score,
                "ctf_resolution": one.ctf_resolution,
                "defocus": one.defocus,
            }
            yield Happened(f"{mark}:{number}", "micrograph.judged", _summary(data))

    # --- merged files

    def _maybe_merge(self, merger: ThreadPoolExecutor) -> None:
        if self._merging is not None:
            if not self._merging.done():
                return
            try:
                took = self._merging.result()
                self._merge_due = time.monotonic() + max(
                    self.settings.merge_every, took / _MERGING_SHARE
                )
            except CryorayError as error:
                self._dirty = True
                self._merge_due = time.monotonic() + max(self.settings.merge_every, FIRST_WAIT)
                data = {"reason": str(error)}
                self._log.note(Happened(f"merge.failed:{time.time():.6f}", "merge.failed", data))
            self._merging = None
        row = self.ledger.session(self.session)
        wanted = row is not None and row.merge_wanted is not None
        if wanted or (self._dirty and time.monotonic() >= self._merge_due):
            self._merging = merger.submit(self._merge)

    def _merge(self) -> float:
        """Write the merged files; returns the seconds that it took."""
        began, now = time.monotonic(), time.time()
        self._dirty = False
        overrides: dict[str, dict[int, bool]] = {}
        for row in self.ledger.overrides(self.session):
            overrides.setdefault(row.stack, {})[row.row] = row.keep
        parts = [
            Part(
                folder=self.context.place(Path(row.path)),
                path=Path(row.path),
                bare=row.path.endswith(".mrcs") and row.described_by is None,
                overrides=overrides.get(row.id, {}),
                rows=row.kept + row.discarded + row.review,
                digest=f"{row.digest}:{row.judged}:{row.profile}",
            )
            for row in self.ledger.stacks(self.session, "judged", kind="particle")
        ]
        merged = self._merger.merge(parts)
        self._export_labels()
        self.ledger.merged(self.session, now)
        data: dict[str, object] = {"folder": str(self.places.folder), **merged.counts}
        if merged.unknown:
            data["unknown"] = [
                f"{', '.join(names)} of {name}" for name, names in merged.unknown.items()
            ]
        self.ledger.note(self.session, [Happened(f"merged:{now:.6f}", "sides.merged", data)])
        return time.monotonic() - began

    def _export_labels(self) -> None:
        """What people decided, as a selection; training labels where the session's owner released them."""
        row = self.ledger.session(self.session)
        with replacing(self.places.folder / "overrides.csv") as temporary:
            temporary.write_text(overrides_csv(self.ledger, self.session), encoding="utf-8")
        labels = self.places.folder / "labels.csv"
        if row is not None and row.trainable:
            with replacing(labels) as temporary:
                temporary.write_text(training_csv(self.ledger, self.session), encoding="utf-8")
        else:
            labels.unlink(missing_ok=True)

    # --- signs of life

    def _live(self) -> None:
        if time.monotonic() - self._alive >= _SIGN_OF_LIFE:
            self._alive = time.monotonic()
            self.ledger.alive(self.session)


@dataclass(frozen=True, slots=True)
class _Ensembles:
    names: dict[Kind, str | None]
    baseline: dict[str, object]
    digest: str | None  # of the one for particles
    within: frozenset[Kind]


def _ensembles(client: Client, settings: WatchSettings) -> _Ensembles:
    """Which ensembles judge particles and classes, and what the one for particles was trained on."""
    served = client.ensembles().ensembles
    names: dict[Kind, str | None] = {one.kind: one.name for one in reversed(served)}
    if settings.ensemble is not None or not names:
        names["particle"] = settings.ensemble
    if settings.class_ensemble is not None:
        names["class2d"] = settings.class_ensemble
    mine = next((one for one in served if one.name == names.get("particle")), None)
    within = frozenset(
        one.kind for one in served if one.context and one.name == names.get(one.kind)
    )
    baseline = mine.training.model_dump() if mine else {}
    return _Ensembles(names, baseline, mine.digest if mine else None, within)


def _summary(data: Mapping[str, Any]) -> dict[str, object]:
    """Counts with the share of keep, which is what acquisition software decides by."""
    judged = sum(data[name] or 0 for name in ("kept", "discarded", "review"))
    return {**data, "keep_rate": (data["kept"] or 0) / judged if judged else None}
