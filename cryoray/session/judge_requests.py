"""Has what waits judged by the service, a few stacks at a time, and takes the answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx

from cryoray.errors import CryorayError, InputError
from cryoray.protocol.client import RefusedError
from cryoray.session.committing import Committer
from cryoray.session.judge_queue import JudgeQueue
from cryoray.session.judging import SessionContext, Unit, incomplete, judge, refuse
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Outcome
from cryoray.session.names import recordable, unwritable
from cryoray.session.profile_renewal import ProfileRenewal
from cryoray.session.profiling import SessionProfile
from cryoray.session.service import SessionService

#: The service's status where a profile is of another ensemble than the one that is active.
_OTHER_PROFILE = 409


class JudgeRequests:
    """Judges one session's stacks, until the verdicts of each are in the ledger.

    Args:
        ledger: counts the attempts that failed.
        context: of the session.
        service: judges.
        queue: what waits.
        profile: by which particles are judged.
        committer: takes what was judged.
        threads: ask the service, one stack each.
    """

    def __init__(
        self,
        ledger: Ledger,
        context: SessionContext,
        service: SessionService,
        queue: JudgeQueue,
        profile: ProfileRenewal,
        committer: Committer,
        threads: ThreadPoolExecutor,
    ) -> None:
        self._ledger, self._context, self._service = ledger, context, service
        self._queue, self._profile, self._committer = queue, profile, committer
        self._threads = threads

    def send(self) -> None:
        """Have judged what is due, as far as there are threads for it."""
        if self._profile.is_being_made:
            return  # what is judged now would be judged again in a moment
        for key, unit in self._queue.due():
            profile = self._profile.current if unit.kind == "particle" else None
            result = self._threads.submit(self._judge, unit, profile)
            self._queue.sent(key, result, profile.digest if profile else None)

    def collect(self) -> None:
        """Commit what is judged; what failed is sent again later.

        Raises:
            LedgerAwayError: what was not committed waits on.
        """
        for key, unit, flight in self._queue.finished():
            try:
                outcome = flight.result.result()
            except RefusedError as error:
                if error.status != _OTHER_PROFILE or unit is None or unit.kind != "particle":
                    self._failed(key, error)
                else:
                    self._profile.refused(flight.profile)
                continue
            except (CryorayError, OSError, httpx.HTTPError) as error:
                self._failed(key, error)
                continue
            self._service.note_answer()
            if unit is None or unit.digest != outcome.digest:
                continue  # rewritten or gone meanwhile; what is pending then is sent again
            self._committer.commit(key, unit, outcome)

    def _judge(self, unit: Unit, profile: SessionProfile | None) -> Outcome:
        """In a thread of its own."""
        if reason := unwritable(str(unit.path)):
            path = recordable(str(unit.path))
            return refuse(InputError(reason, file=path, remedy="rename it"), unit.digest)
        try:
            incomplete(unit.path, unit.own)
            return judge(
                unit,
                self._context,
                self._service.client,
                profile,
                within=self._profile.within,
            )
        except RefusedError as error:
            if error.status in (401, 404, _OTHER_PROFILE):
                raise
            return refuse(error, unit.digest)
        except InputError as error:
            if type(error).__module__.startswith("cryoray.protocol"):
                raise
            return refuse(error, unit.digest)

    def _failed(self, key: str, error: BaseException) -> None:
        self._queue.failed(key)
        self._ledger.attempt(key, str(error))
        self._service.note_failure(error)
