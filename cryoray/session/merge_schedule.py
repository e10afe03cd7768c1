"""When a session's files are merged: not too often, beside all else, and at once where people want it."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cryoray.errors import CryorayError
from cryoray.formats.files import replacing
from cryoray.session.event_log import EventLog
from cryoray.session.judging import SessionContext
from cryoray.session.labels import overrides_csv, training_csv
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Happened
from cryoray.session.merging import Merger, Part
from cryoray.session.retrying import FIRST_WAIT

#: Merging takes at most this share of the time.
_SHARE = 0.05


class MergeSchedule:
    """Has one session's files merged in a thread, at set times at most.

    Args:
        ledger: knows what is judged, and whether people want the files now.
        session: its name.
        context: says where its files are.
        every: seconds between merges, at least.
        thread: runs them, one at a time.
        log: gets what happens.
    """

    def __init__(
        self,
        ledger: Ledger,
        session: str,
        context: SessionContext,
        every: float,
        thread: ThreadPoolExecutor,
        log: EventLog,
    ) -> None:
        self._ledger, self._session, self._context = ledger, session, context
        self._every, self._thread, self._log = every, thread, log
        self._merger = Merger(context.folder, context.root, context.swapping)
        self._running: Future[float] | None = None
        self._due = time.monotonic() + every
        self._wanted = True  # what was judged when nobody watched may not be merged

    def want(self) -> None:
        """The files are no longer what the ledger says."""
        self._wanted = True

    def run_if_due(self) -> None:
        """Start to merge where it is time for it; note what became of the last time."""
        if self._running is not None:
            if not self._running.done():
                return
            try:
                took = self._running.result()
                self._due = time.monotonic() + max(self._every, took / _SHARE)
            except CryorayError as error:
                self._wanted = True
                self._due = time.monotonic() + max(self._every, FIRST_WAIT)
                data = {"reason": str(error)}
                self._log.note(Happened(f"merge.failed:{time.time():.6f}", "merge.failed", data))
            self._running = None
        row = self._ledger.session(self._session)
        asked = row is not None and row.merge_wanted is not None
        if asked or (self._wanted and time.monotonic() >= self._due):
            self._running = self._thread.submit(self._merge)

    def finish(self) -> None:
        """Merge a last time, here and now."""
        if self._running is not None:
            self._running.exception()
        self._merge()

    def _merge(self) -> float:
        """Write the merged files; returns the seconds that it took."""
        began, now = time.monotonic(), time.time()
        self._wanted = False
        overrides: dict[str, dict[int, bool]] = {}
        for row in self._ledger.overrides(self._session):
            overrides.setdefault(row.stack, {})[row.row] = row.keep
        parts = [
            Part(
                folder=self._context.place(Path(row.path)),
                path=Path(row.path),
                bare=row.path.endswith(".mrcs") and row.described_by is None,
                overrides=overrides.get(row.id, {}),
                rows=row.kept + row.discarded + row.review,
                digest=f"{row.digest}:{row.judged}:{row.profile}",
            )
            for row in self._ledger.stacks(self._session, "judged", kind="particle")
        ]
        merged = self._merger.merge(parts)
        self._export_labels()
        self._ledger.merged(self._session, now)
        data: dict[str, object] = {"folder": str(self._context.folder), **merged.counts}
        if merged.unknown:
            data["unknown"] = [
                f"{', '.join(names)} of {name}" for name, names in merged.unknown.items()
            ]
        self._ledger.note(self._session, [Happened(f"merged:{now:.6f}", "sides.merged", data)])
        return time.monotonic() - began

    def _export_labels(self) -> None:
        """What people decided, as a selection; training labels where the session's owner released them."""
        row = self._ledger.session(self._session)
        with replacing(self._context.folder / "overrides.csv") as temporary:
            temporary.write_text(overrides_csv(self._ledger, self._session), encoding="utf-8")
        labels = self._context.folder / "labels.csv"
        if row is not None and row.trainable:
            with replacing(labels) as temporary:
                temporary.write_text(training_csv(self._ledger, self._session), encoding="utf-8")
        else:
            labels.unlink(missing_ok=True)
