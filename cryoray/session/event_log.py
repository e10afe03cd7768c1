"""What happened in a session, once each and in order: to the ledger, to ``events.jsonl``, to a webhook."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from cryoray.formats.files import naming
from cryoray.protocol.network import by_proxy
from cryoray.records import Event, OnEvent
from cryoray.session.database import LedgerAwayError
from cryoray.session.folder import no_link
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Happened
from cryoray.session.retrying import FIRST_WAIT, longer

#: All that a webhook gets for one event.
_POST_SECONDS = 10.0
_TAIL_BYTES = 1 << 16


class EventLog:
    """The events of one session.

    What is noted waits here until the ledger has it (`flush`); from the ledger it goes to the file and to
    the caller (`deliver`), and to the webhook, in a thread of its own (`posting`).

    Args:
        ledger: keeps the events, and what was delivered of them.
        session: its name.
        file: a line of JSON for each event.
        on_event: called with each.
        webhook: URL that gets each, None where there is none.
    """

    def __init__(
        self,
        ledger: Ledger,
        session: str,
        file: Path,
        on_event: OnEvent,
        webhook: str | None = None,
    ) -> None:
        self._ledger, self._session = ledger, session
        self._file, self._on_event, self._webhook = file, on_event, webhook
        self._unnoted: list[Happened] = []
        self._written = _ids_in_tail(file)

    def mend(self) -> None:
        """Take away a last line that a full disk or its writer's end cut short; `deliver` writes it again.

        Raises:
            SettingsError: the file is a link.
        """
        with suppress(FileNotFoundError), open(self._file, "r+b", opener=no_link) as file:
            start = file.seek(max(0, self._file.stat().st_size - _TAIL_BYTES))
            file.truncate(start + file.read().rfind(b"\n") + 1)

    def note(self, *happened: Happened) -> None:
        """Have it in the ledger with the next `flush`, and never lose it before."""
        self._unnoted += happened

    def flush(self) -> None:
        """Note in the ledger what waits for that.

        Raises:
            LedgerAwayError: it waits on.
        """
        if self._unnoted:
            noted = len(self._unnoted)
            self._ledger.note(self._session, self._unnoted[:noted])
            del self._unnoted[:noted]

    def deliver(self) -> None:
        """Write what happened as lines, and pass it to the caller: once each, in order.

        Raises:
            LedgerAwayError: the rest is delivered next time.
        """
        rows = self._ledger.events(self._session, unwritten=True)
        if not rows:
            return
        new = [row for row in rows if row.id not in self._written]
        with naming(self._file), open(self._file, "a", encoding="utf-8", opener=no_link) as file:
            for row in new:
                file.write(json.dumps(_message(row), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # The ledger may not be there to learn it: then they are known here, and not passed on again.
        self._written.update(row.id for row in new)
        for row in new:
            self._on_event(Event(row.name, row.data))
        self._ledger.mark([row.number for row in rows], written=True)
        self._written.clear()

    @contextmanager
    def posting(self) -> Iterator[None]:
        """While the block lasts, post events to the webhook, in order, until each is taken."""
        if not self._webhook:
            yield
            return
        done = threading.Event()
        thread = threading.Thread(target=self._post, args=(self._webhook, done), name="post")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _post(self, url: str, done: threading.Event) -> None:
        wait = FIRST_WAIT
        while True:
            last = done.is_set()  # one more time after the end, for what happened last
            try:
                for row in self._ledger.events(self._session, unposted=True):
                    asyncio.run(_post_one(url, _message(row)))
                    wait = FIRST_WAIT
                    self._ledger.mark([row.number], posted=True)
            except (httpx.HTTPError, TimeoutError, LedgerAwayError):
                wait = longer(wait)
            if last:
                return
            done.wait(wait)


async def _post_one(url: str, message: dict[str, object]) -> None:
    """Post one event, in ten seconds all together: who answers drop by drop is not waited for.

    Raises:
        TimeoutError: that was not enough.
        httpx.HTTPError: it was not taken.
    """
    async with (
        asyncio.timeout(_POST_SECONDS),
        httpx.AsyncClient(timeout=_POST_SECONDS, trust_env=by_proxy(url)) as http,
        http.stream("POST", url, json=message) as answer,
    ):
        # The body is not read: it may be without end.
        answer.raise_for_status()


def _message(row: Any) -> dict[str, object]:
    return {
        "id": row.id,
        "event": row.name,
        "session": row.session,
        "time": row.at,
        "data": row.data,
    }


def _ids_in_tail(lines: Path) -> set[str]:
    """Ids of the events whose lines were written last: the ledger may not know that they were."""
    try:
        with lines.open("rb") as file:
            file.seek(max(0, lines.stat().st_size - _TAIL_BYTES))
            tail = file.read().split(b"\n")
    except OSError:
        return set()
    found = set()
    for line in tail:
        try:
            found.add(json.loads(line)["id"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
