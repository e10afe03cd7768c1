"""A session's profile as it is made and renewed by the service, and what is judged again because of it.

When one is due says `session.profiling`.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx

from cryoray.errors import CryorayError
from cryoray.formats.names import PROFILE
from cryoray.protocol.client import RefusedError
from cryoray.records import Kind
from cryoray.session.event_log import EventLog
from cryoray.session.judge_queue import JudgeQueue
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Happened, Outcome
from cryoray.session.profiling import SessionProfile, is_due, spread, stands
from cryoray.session.retrying import FIRST_WAIT, longer
from cryoray.session.service import Ensembles, SessionService


class ProfileRenewal:
    """The profile by which a session's particles are judged.

    Args:
        ledger: keeps it.
        session: its name.
        folder: the session's, for ``profile.json``.
        ensembles: that judge now.
        service: makes it.
        queue: the stacks that it is made of, and that are judged by it.
        threads: in one of which it is made.
        log: gets what happens.

    Attributes:
        current: None: each image is judged alone.
        within: kinds whose ensemble judges within projects, as far as is known.
    """

    def __init__(
        self,
        ledger: Ledger,
        session: str,
        folder: Path,
        ensembles: Ensembles,
        service: SessionService,
        queue: JudgeQueue,
        threads: ThreadPoolExecutor,
        log: EventLog,
    ) -> None:
        self._ledger, self._session, self._folder = ledger, session, folder
        self._service, self._queue, self._threads, self._log = service, queue, threads, log
        self.current: SessionProfile | None = None
        self.within: frozenset[Kind] = ensembles.within
        self._name = ensembles.names.get("particle")
        self._ensemble = ensembles.digest  # of the one that judges particles
        self._making: Future[SessionProfile | None] | None = None
        self._wanted = False  # whatever the size of the session
        self._asked = 0  # images of the one that is being made
        self._tried = 0  # images of which none could be made
        self._not_before = 0.0
        self._wait = FIRST_WAIT
        self._mixed = False  # whether anything was outdated when it was looked last

    @property
    def is_being_made(self) -> bool:
        """Whether there will be another in a moment."""
        return self._making is not None

    def resume(self) -> None:
        """Go on with the profile that the ledger has, where it is of the ensemble that judges now."""
        row = self._ledger.session(self._session)
        if row is None or row.profile is None:
            return
        known = SessionProfile(row.profile, row.profiled or 0)
        if known.ensemble == self._ensemble:
            self.current = known
            known.save(self._folder)
        else:
            self._wanted = True

    def renew(self) -> None:
        """Have a profile made where one is due, and judge by it when it is there."""
        if self._making is not None:
            if self._making.done():
                self._take(self._making)
                self._making = None
            return
        seen = self._queue.images
        before = max(self._tried, self.current.seen if self.current else 0)
        due = "particle" in self.within and is_due(seen, before)
        if (due or self._wanted) and time.monotonic() >= self._not_before:
            rejected = {row.id for row in self._ledger.stacks(self._session, "rejected")}
            sources = self._queue.sources(without=rejected)
            if sources:
                self._asked = seen
                self._making = self._threads.submit(self._make, sources, seen)
            else:
                self._wanted, self._tried = False, seen

    def want_last(self) -> bool:
        """Whether another profile is worth making at the end, of all that came; then it is wanted."""
        before = self.current.seen if self.current else 0
        self._wanted = (
            "particle" in self.within
            and self._queue.images > max(before, self._tried)
            and not stands(before)
        )
        return self._wanted

    def outdated(self) -> set[str]:
        """Stacks whose verdicts in the ledger rest on another profile."""
        if self.current is None:
            return set()
        return set(self._ledger.outdated(self._session, self.current.digest))

    def check(self, key: str, outcome: Outcome) -> None:
        """Have a stack of particles judged again where there is another profile since."""
        if outcome.state != "judged":
            return
        if self.current is None:
            # What was promoted may judge within projects, and what it took the place of did not.
            self._wanted |= outcome.ensemble != self._ensemble
            self._ensemble = outcome.ensemble
        elif outcome.profile != self.current.digest:
            self._queue.put_outdated([key])

    def refused(self, digest: str | None) -> None:
        """The service judges by this profile no more: its ensemble made way for another."""
        if self.current is not None and self.current.digest == digest:
            self.current, self._wanted = None, True

    def newly_applied(self) -> SessionProfile | None:
        """The profile on which all verdicts rest now, and did not when this was asked last."""
        mixed, self._mixed = self._mixed, self._queue.outdated > 0
        return self.current if mixed and not self._mixed else None

    def _make(self, sources: list[Path], seen: int) -> SessionProfile | None:
        """In a thread of its own; None where the ensemble that is active by now judges each image alone."""
        if "particle" not in self._service.ensembles().within:
            return None
        body = self._service.client.profile(spread(sources), ensemble=self._name)
        return SessionProfile(body, seen)

    def _take(self, making: Future[SessionProfile | None]) -> None:
        try:
            made = making.result()
        except (CryorayError, OSError, httpx.HTTPError) as error:
            self._not_made(error)
            return
        if made is None:
            self._ledger.set_profile(self._session, None)
            (self._folder / PROFILE).unlink(missing_ok=True)
            self._queue.clear_outdated()
            self.within -= {"particle"}
        else:
            left = self._ledger.outdated(self._session, made.digest)
            data = {
                "profile": made.digest,
                "ensemble": made.ensemble,
                "images": made.images,
                "seen": made.seen,
                "outdated": len(left),
            }
            happened = Happened(f"profile.made:{made.digest[:40]}", "profile.made", data)
            made.save(self._folder)
            self._ledger.set_profile(self._session, made.body, made.seen, [happened])
            self.within |= {"particle"}
            self._queue.clear_outdated()
            self._queue.put_outdated(left)
        self.current, self._wanted = made, False
        self._wait = FIRST_WAIT

    def _not_made(self, error: CryorayError | OSError | httpx.HTTPError) -> None:
        """Try again later; where the service refuses these images, when there are more."""
        self._not_before = time.monotonic() + self._wait
        self._wait = longer(self._wait)
        if isinstance(error, RefusedError) and error.status not in (401, 404):
            self._wanted, self._tried = False, self._asked
            data = {"reason": str(error)}
            self._log.note(Happened(f"profile.failed:{time.time():.6f}", "profile.failed", data))
        else:
            self._service.note_failure(error)
