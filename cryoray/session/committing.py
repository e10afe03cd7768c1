"""What became of a stack: into the ledger with the events that go with it, and on to what follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from cryoray.errors import InputError, printable
from cryoray.session.database import UnstorableError
from cryoray.session.drift import Drift
from cryoray.session.event_log import EventLog
from cryoray.session.judge_queue import JudgeQueue
from cryoray.session.judging import SessionContext, Unit, refuse, verdict_of
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Happened, Outcome
from cryoray.session.merge_schedule import MergeSchedule
from cryoray.session.names import recordable
from cryoray.session.profile_renewal import ProfileRenewal

#: Micrographs of its past that a session is compared with after a restart.
_REMEMBERED = 20_000


class Committer:
    """Commits the outcomes of one session's stacks.

    Args:
        ledger: takes them.
        session: its name.
        context: says where its verdicts are.
        queue: where the stacks wait until the ledger has them.
        profile: by which they should be judged.
        merges: are wanted then.
        log: gets what happens.
        baseline: what the ensemble was trained on, for drift.
        run_length: micrographs between false alarms of drift.
    """

    def __init__(
        self,
        ledger: Ledger,
        session: str,
        context: SessionContext,
        queue: JudgeQueue,
        profile: ProfileRenewal,
        merges: MergeSchedule,
        log: EventLog,
        *,
        baseline: Mapping[str, object] | None,
        run_length: float,
    ) -> None:
        self._ledger, self._session, self._context = ledger, session, context
        self._queue, self._profile, self._merges, self._log = queue, profile, merges, log
        self._baseline, self._run_length = baseline, run_length
        self.follow_drift()

    def follow_drift(self) -> None:
        """Follow the session from its beginning, as its micrographs are judged by now."""
        drift = Drift(self._baseline, run_length=self._run_length)
        for micrograph in self._ledger.micrographs(self._session)[-_REMEMBERED:]:
            drift.add(micrograph)
        self._drift = drift

    def commit(self, key: str, unit: Unit, outcome: Outcome) -> None:
        """Have the ledger learn an outcome, unless the stack was rewritten or vanished meanwhile.

        Raises:
            LedgerAwayError: the stack waits on.
        """
        there = self._ledger.stack(key)
        again = there is not None and there.state == "judged" and there.digest == outcome.digest
        happened = list((_changed if again else _judged)(key, unit, outcome))
        reread = partial(verdict_of, self._context.place(unit.path))
        try:
            if not self._ledger.commit(self._session, key, outcome, happened, reread):
                return
        except UnstorableError as error:
            refused = InputError(printable(error.what), file=unit.path)
            outcome = refuse(refused, unit.digest)
            happened = list(_judged(key, unit, outcome))
            if not self._ledger.commit(self._session, key, outcome, happened):
                return
        self._queue.done(key)
        self._merges.want()
        if unit.kind == "particle":
            self._profile.check(key, outcome)
        if not again:  # else its micrographs were followed and counted then
            self._follow(key, outcome)

    def _follow(self, key: str, outcome: Outcome) -> None:
        """Count its grid squares anew, and see whether its micrographs differ from those before."""
        happened: list[Happened] = []
        for square in dict.fromkeys(one.square for one in outcome.micrographs if one.square):
            data = dict(self._ledger.square(self._session, square)._mapping)
            id_ = f"{key}:{outcome.digest}:{square}"
            happened.append(
                Happened(id_, "grid_square.judged", _summary({"grid_square": square, **data}))
            )
        # While some are judged by one profile and some by another, that is what would be seen.
        for one in outcome.micrographs if not self._queue.outdated else ():
            for alarm in self._drift.add(one):
                id_ = f"{key}:{outcome.digest}:{alarm.against}:{alarm.channel}"
                happened.append(Happened(id_, "drift.alarm", asdict(alarm)))
        self._log.note(*happened)


def _changed(key: str, unit: Unit, outcome: Outcome) -> Iterator[Happened]:
    """The events of a stack that was judged again, by another profile."""
    where = _where(unit, outcome)
    mark = f"{key}:{outcome.digest}:{(outcome.profile or '')[:24]}"
    if outcome.state == "rejected":
        yield Happened(mark, "stack.rejected", {**where, "reason": outcome.reason})
    elif outcome.changed:
        data = {**where, "changed": outcome.changed, **_counts(outcome)}
        yield Happened(mark, "verdicts.changed", _summary(data))


def _judged(key: str, unit: Unit, outcome: Outcome) -> Iterator[Happened]:
    """The events of a stack that was judged first."""
    mark = f"{key}:{outcome.digest}"
    where = _where(unit, outcome)
    if outcome.state == "rejected":
        yield Happened(mark, "stack.rejected", {**where, "reason": outcome.reason})
    elif unit.kind == "class2d":
        yield Happened(
            mark, "classes.judged", {**where, **_counts(outcome), "score": outcome.score}
        )
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
            **{name: getattr(one, name) for name in ("kept", "discarded", "review", "quarantined")},
            "score": one.score,
            "ctf_resolution": one.ctf_resolution,
            "defocus": one.defocus,
        }
        yield Happened(f"{mark}:{number}", "micrograph.judged", _summary(data))


def _where(unit: Unit, outcome: Outcome) -> dict[str, object]:
    return {
        "stack": recordable(str(unit.path)),
        "ensemble": outcome.ensemble,
        "profile": outcome.profile,
    }


def _counts(outcome: Outcome) -> dict[str, object]:
    return {name: getattr(outcome, name) for name in ("kept", "discarded", "review")}


def _summary(data: Mapping[str, Any]) -> dict[str, object]:
    """Counts with the share of keep, which is what acquisition software decides by."""
    judged = sum(data[name] or 0 for name in ("kept", "discarded", "review"))
    return {**data, "keep_rate": (data["kept"] or 0) / judged if judged else None}
