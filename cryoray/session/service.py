"""The service as one session uses it: which ensembles it has, by whose token, and whether it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from cryoray.errors import CryorayError
from cryoray.protocol.client import Client
from cryoray.records import Kind
from cryoray.session.event_log import EventLog
from cryoray.session.ledger_records import Happened
from cryoray.settings import WatchSettings

#: Seconds for which a full service is asked again before other stacks get their turn.
_PATIENCE_WHEN_FULL = 30.0


@dataclass(frozen=True, slots=True)
class Ensembles:
    """What judges a session.

    Attributes:
        names: of the ensembles, by kind; None for the service's first.
        baseline: what the one for particles was trained on.
        digest: of the one for particles; None where the service does not name it.
        within: kinds whose ensemble judges within projects.
    """

    names: dict[Kind, str | None]
    baseline: dict[str, object]
    digest: str | None
    within: frozenset[Kind]


class SessionService:
    """A service, and whether it is away: that it went and came back happens once each.

    Args:
        client: of the operator.
        settings: name the ensembles that are wanted.
        log: gets what happens.

    Attributes:
        client: by which stacks are judged.
    """

    def __init__(self, client: Client, settings: WatchSettings, log: EventLog) -> None:
        self.client = client
        self._operator, self._settings, self._log = client, settings, log
        self._away = False

    def ensembles(self) -> Ensembles:
        """Which ensembles judge particles and classes now.

        Raises:
            RefusedError: the token is wrong.
            CryorayError: the service failed; trying again may help.
            httpx.HTTPError: it does not answer.
        """
        served = self.client.ensembles().ensembles
        names: dict[Kind, str | None] = {one.kind: one.name for one in reversed(served)}
        if self._settings.ensemble is not None or not names:
            names["particle"] = self._settings.ensemble
        if self._settings.class_ensemble is not None:
            names["class2d"] = self._settings.class_ensemble
        mine = next((one for one in served if one.name == names.get("particle")), None)
        within = frozenset(
            one.kind for one in served if one.context and one.name == names.get(one.kind)
        )
        baseline = mine.training.model_dump() if mine else {}
        return Ensembles(names, baseline, mine.digest if mine else None, within)

    def use_token(self, file: Path) -> None:
        """Judge by the session's own token where the service knows it: it opens those folders alone.

        A service that does not know the ledger is asked with the operator's, for what `judge` has seen
        to lie in the session's folders.
        """
        if self.client is not self._operator:
            return
        token = file.read_text(encoding="ascii").strip()
        own = Client(self.client.url, token, patience=_PATIENCE_WHEN_FULL)
        try:
            own.ensembles()
        except (CryorayError, httpx.HTTPError):
            own.close()
        else:
            self.client = own

    def note_failure(self, error: BaseException) -> None:
        """It did not answer, or not with what was wanted."""
        if not self._away:
            self._away = True
            data = {"service": self.client.url, "reason": str(error)}
            self._log.note(Happened(f"service.away:{time.time():.6f}", "service.away", data))

    def note_answer(self) -> None:
        """It answered."""
        if self._away:
            self._away = False
            self._log.note(Happened(f"service.back:{time.time():.6f}", "service.back"))

    def close(self) -> None:
        """Let go of the clients."""
        if self.client is not self._operator:
            self.client.close()
        self._operator.close()
