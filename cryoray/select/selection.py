"""The selection as it stands: verdicts, the line, what a person turned; and what may be expected of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cryoray.boosting.adaptation import Change, fit_change, to_label
from cryoray.boosting.expected import OPEN, Expected, expected
from cryoray.boosting.voting import score
from cryoray.errors import InputError
from cryoray.records import Verdicts
from cryoray.select.clicks import Clicks, State
from cryoray.select.table import Table

#: Images put before the person at a time.
TWENTY = 20


@dataclass(frozen=True, slots=True)
class Judge:
    """What is known of the ensemble that judged.

    Attributes:
        name: as a person reads it.
        lines: of each policy that it knows, the threshold and what stands behind it in words.
        adapt: from scores as judged [n], the places [k] that were labelled and their labels [k], the
            change of all log-odds, and the line after it.
    """

    name: str
    lines: Mapping[str, tuple[float, str]]
    adapt: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[Change, float]]


class Selection:
    """What a person makes of a table.

    Args:
        table: verdicts and their source.
        clicks: what was decided so far.
        judge: the ensemble that judged, where it is at hand.
    """

    def __init__(self, table: Table, clicks: Clicks, judge: Judge | None = None) -> None:
        self.table, self.clicks, self.judge = table, clicks, judge

    def line(self, state: State) -> float:
        """Scores at or above it keep."""
        return self.table.threshold if state.line is None else state.line

    def policy(self, state: State) -> str:
        """What draws the line: a policy, a name of `presets`, ``adapted``, or the score a person gave."""
        if state.line is None:
            return self.table.verdicts.about.get("policy", "as judged")
        return state.policy or f"threshold={state.line:.6g}"

    def members(self, state: State) -> np.ndarray:
        """float32 [3, n], as adapted."""
        members = self.table.verdicts.members()
        if (state.stretch, state.shift) == (1.0, 0.0):
            return members
        change = Change(state.stretch, state.shift)
        return np.where(np.isnan(members), np.nan, change(members)).astype(np.float32)

    def scores(self, state: State) -> np.ndarray:
        """float32 [n], as adapted."""
        if (state.stretch, state.shift) == (1.0, 0.0):
            return np.asarray(self.table.verdicts.score, np.float32)
        return np.asarray(score(*self.members(state)), np.float32)

    def keep(self, state: State) -> np.ndarray:
        """Bool [n]: what a person said, else what the line says; a discarded class's particles go."""
        by_line = (self.scores(state) >= np.float32(self.line(state))) & ~self.table.held
        return np.where(state.turned == OPEN, by_line, state.turned == 1)

    def expected(self, state: State) -> Expected:
        """What may be expected of it as it stands."""
        good = np.where(self.table.held, 0.0, self.scores(state))
        return expected(good, state.turned, self.keep(state), self.table.weights)

    def presets(self) -> list[dict[str, Any]]:
        """Lines to choose from: name, score, and what stands behind it."""
        about = self.table.verdicts.about
        policy, threshold = about.get("policy", ""), self.table.threshold
        judged = f"the policy {policy} of these verdicts" if policy else "the verdicts' own"
        lines = self.judge.lines if self.judge else {}
        if policy in lines and abs(lines[policy][0] - threshold) < 1e-6:
            judged += f", {lines[policy][1]}"
        made = [{"name": "as judged", "line": threshold, "why": judged}]
        made += [{"name": name, "line": line, "why": why} for name, (line, why) in lines.items()]
        why = "an image is kept if it is likelier good than not: fewest errors if scores are calibrated"
        made.append({"name": "even odds", "line": 0.5, "why": why})
        return made

    def ask(self, tab: str) -> np.ndarray:
        """Put the images before the person whose labels tell most of the line, int64 [<= 20]."""
        state = self.clicks.state
        answered = (state.turned != OPEN) | self.table.held
        best = to_label(self.scores(state), self.line(state), TWENTY, answered)
        if not len(best):
            raise InputError("you have labelled every image already")
        self.clicks.ask(tab, best.tolist())
        return best

    def adapt(self, tab: str) -> dict[str, Any]:
        """Change all scores by what the person said of the images they were asked about.

        Returns:
            before and after: ``line``, ``kept``, ``right`` (of the labels, on their side of the line);
            ``labels``, and ``moved``, images that changed sides.

        Raises:
            InputError: nothing was labelled of what was asked.
        """
        state = self.clicks.state
        known = np.flatnonzero(state.asked & (state.turned != OPEN))
        if not len(known):
            raise InputError("label some of the images first: k keeps, d discards")
        labels = state.turned[known] == 1
        plain = np.asarray(self.table.verdicts.score, np.float32)
        if self.judge is not None:
            change, line = self.judge.adapt(plain, known, labels)
        else:
            change = fit_change(plain[known], labels, 0.0)
            line = float(change(self.table.threshold))
        before, kept = self._facts(state, known, labels), self.keep(state)
        self.clicks.adapt(tab, change.stretch, change.shift, float(np.float32(line)))
        after = self.clicks.state
        return {
            "before": before,
            "after": self._facts(after, known, labels),
            "labels": len(known),
            "moved": int((self.keep(after) != kept).sum()),
        }

    def _facts(self, state: State, known: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        line = self.line(state)
        right = (self.scores(state)[known] >= np.float32(line)) == labels
        found = self.expected(state)
        return {"line": line, "kept": found.kept, "right": int(right.sum()), "loss": found.loss}

    def verdicts(self, state: State) -> Verdicts:
        """What is saved: keep or discard of each image, with scores and members as adapted."""
        made, keep = self.table.verdicts, self.keep(state)
        made = made.with_column("verdict", np.where(keep, "keep", "discard").astype(object))
        made = made.with_column("score", self.scores(state))
        for name, values in zip(("d1", "d2", "d3"), self.members(state), strict=True):
            made = made.with_column(name, values)
        reason = self.table.verdicts.reason.copy()
        reason[keep] = None
        made = made.with_column("reason", reason)
        about = {
            **self.table.verdicts.about,
            "threshold": repr(float(self.line(state))),
            "policy": self.policy(state),
        }
        return Verdicts(made.table.replace_schema_metadata(about))
