"""Watches a folder while a microscope fills it: each stack that settles is judged, once, come what may.

`Watcher` is the loop. What a turn consists of is in modules of its own: `session.intake` looks,
`session.profile_renewal` keeps the profile, `session.judge_requests` has judged what waits in
`session.judge_queue`, `session.committing` has the ledger learn it, `session.merge_schedule` merges, and
`session.event_log` passes on what happened.

One thread does all that but judging, which takes a few, and merging, which takes one. Whatever fails at
the service is asked again, later and later, until the verdicts are in the ledger: nothing else retries.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from cryoray.errors import CryorayError
from cryoray.protocol.client import Client, RefusedError
from cryoray.records import Event, OnEvent, ignore
from cryoray.session.committing import Committer
from cryoray.session.database import LedgerAwayError
from cryoray.session.event_log import EventLog
from cryoray.session.finding import Finder
from cryoray.session.folder import alone, make_folder, places, write_token
from cryoray.session.grid import Grid
from cryoray.session.intake import Intake
from cryoray.session.judge_queue import JudgeQueue
from cryoray.session.judge_requests import JudgeRequests
from cryoray.session.judging import SessionContext
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Happened
from cryoray.session.merge_schedule import MergeSchedule
from cryoray.session.profile_renewal import ProfileRenewal
from cryoray.session.retrying import FIRST_WAIT
from cryoray.session.service import Ensembles, SessionService
from cryoray.session.settling import Scanner
from cryoray.settings import WatchSettings

_SIGN_OF_LIFE = 10.0


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
        self.grid = Grid(settings.grid)
        self.scanner = Scanner(
            self.places.root,
            settle=settings.settle,
            rescan=settings.rescan,
            ignore=settings.ignore,
            skip=(self.places.folder.parent, self.places.folder),
        )
        self.log = EventLog(self.ledger, session, self.places.events, on_event, settings.webhook)
        self.service = SessionService(client, settings, self.log)
        self.queue = JudgeQueue(self.scanner, settings.patience, settings.max_concurrent)
        self._on_event = on_event
        self._ledger_away = False
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
            self.log.posting(),
        ):
            self.log.mend()
            opened = {"session": self.session, "root": str(self.places.root)}
            self.log.note(Happened(f"opened:{time.time():.6f}", "session.opened", opened))
            ready = False
            idle_since: float | None = None
            while not stop.is_set():
                try:
                    ready = ready or self._begin(judges, merger, stop)
                    if not ready:
                        break
                    self._turn(stop)
                except LedgerAwayError as error:
                    self._wait_for_ledger(error, stop)
                    continue
                self._ledger_is_back()
                idle_since = None if self._is_busy else (idle_since or time.monotonic())
                if once and idle_since and time.monotonic() - idle_since >= self.settings.poll:
                    if not self.profile.want_last():
                        break
                    idle_since = None
            if ready:
                self.queue.land()
                self._collect()
                self.merges.finish()
            self._end()

    def close(self) -> None:
        """Let go of the ledger and the client."""
        self.ledger.close()
        self.service.close()

    def row_counts(self) -> dict[str, object]:
        """What became of all rows until now."""
        totals = self.ledger.totals(self.session)
        judged = totals.get("particle/judged", {})

        def stacks(state: str) -> int:
            return sum(one["stacks"] for name, one in totals.items() if name.endswith(state))

        return {
            "session": self.session,
            "stacks": stacks("judged"),
            "rejected": stacks("rejected"),
            "pending": stacks("pending"),
            **{
                name: judged.get(name, 0)
                for name in ("rows", "kept", "discarded", "review", "quarantined")
            },
        }

    # --- the begin

    def _begin(
        self, judges: ThreadPoolExecutor, merger: ThreadPoolExecutor, stop: threading.Event
    ) -> bool:
        """Ask the service what it has, however long that takes; False where there is no more time.

        Raises:
            LedgerAwayError: it begins again from the beginning.
        """
        self.log.flush()
        ensembles = self._wait_for_service(stop)
        row = self.ledger.session(self.session)
        if ensembles is None or row is None:
            return False
        self.service.use_token(self.token_file)
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
        )
        self.profile = ProfileRenewal(
            self.ledger,
            self.session,
            self.places.folder,
            ensembles,
            self.service,
            self.queue,
            judges,
            self.log,
        )
        self.profile.resume()
        self.merges = MergeSchedule(
            self.ledger,
            self.session,
            self.context,
            self.settings.merge_every,
            merger,
            self.log,
        )
        self.intake = Intake(
            self.ledger,
            self.session,
            self.scanner,
            Finder(self.scanner, ensembles.names),
            self.queue,
            self.profile,
            self.merges,
            self.log,
            known={
                one.id: one.path
                for one in self.ledger.stacks(self.session, "pending", "judged", "rejected")
            },
        )
        self.committer = Committer(
            self.ledger,
            self.session,
            self.context,
            self.queue,
            self.profile,
            self.merges,
            self.log,
            baseline=ensembles.baseline or row.baseline,
            run_length=self.settings.micrographs_between_false_alarms,
        )
        self.requests = JudgeRequests(
            self.ledger,
            self.context,
            self.service,
            self.queue,
            self.profile,
            self.committer,
            judges,
        )
        return True

    def _wait_for_service(self, stop: threading.Event) -> Ensembles | None:
        """What judges, as soon as the service says so; None where there is no more time.

        Raises:
            RefusedError: the token is wrong.
        """
        while not stop.is_set():
            try:
                return self.service.ensembles()
            except RefusedError:
                raise
            except (CryorayError, httpx.HTTPError) as error:
                self.service.note_failure(error)
                self.log.flush()
                self.log.deliver()
                stop.wait(FIRST_WAIT)
        return None

    # --- a turn

    def _turn(self, stop: threading.Event) -> None:
        """Look once, and work for the time between two looks.

        Raises:
            LedgerAwayError: nothing is lost by that, and the next turn goes on with all that is left.
        """
        began = time.monotonic()
        with self.context.scope.reading():
            self.intake.look()
        while True:
            self.log.flush()
            self.profile.renew()
            with self.context.scope.reading():
                self.requests.send()
            self._collect()
            self.log.deliver()
            left = self.settings.poll - (time.monotonic() - began)
            if left <= 0 or stop.is_set():
                break
            # What is judged is committed at once, not at the next look.
            soon = self.queue.in_flight or self.profile.is_being_made
            stop.wait(min(left, 0.05 if soon else left))
        self.merges.run_if_due()
        if time.monotonic() - self._alive >= _SIGN_OF_LIFE:
            self._alive = time.monotonic()
            self.ledger.alive(self.session)

    def _collect(self) -> None:
        """Take what is judged, and go on from a session that is judged by one profile, once it is."""
        self.requests.collect()
        applied = self.profile.newly_applied()
        if applied is not None:
            self.committer.follow_drift()
            data = {"profile": applied.digest, **self.row_counts()}
            id_ = f"profile.applied:{applied.digest[:40]}"
            self.log.note(Happened(id_, "profile.applied", data))

    @property
    def _is_busy(self) -> bool:
        """Whether something is left to be done."""
        return not (self.intake.is_done and self.queue.is_empty) or self.profile.is_being_made

    def _wait_for_ledger(self, error: LedgerAwayError, stop: threading.Event) -> None:
        """Say so once, which cannot be noted, and wait."""
        if not self._ledger_away:
            self._ledger_away = True
            self._on_event(Event("ledger.away", {"reason": str(error)}))
        stop.wait(FIRST_WAIT)

    def _ledger_is_back(self) -> None:
        if self._ledger_away:
            self._ledger_away = False
            self.log.note(Happened(f"ledger.back:{time.time():.6f}", "ledger.back"))

    # --- the end

    def _end(self) -> None:
        """Close the session."""
        left = {"outdated": self.queue.outdated} if self.queue.outdated else {}
        counts = {**self.row_counts(), **left}
        self.log.note(Happened(f"closed:{time.time():.6f}", "session.closed", counts))
        self.log.flush()
        self.log.deliver()
        self.ledger.close_session(self.session)
