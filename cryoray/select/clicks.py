"""What a person decides on the page: an append-only file, one line an action, on disk before it is answered.

``selection.jsonl`` begins with what it is about; each line after that is an action and has a revision, its
place in the file. What is decided now is what comes of all actions that were not undone, in their order:
so the last one to turn an image wins, an undo takes back one action and nothing that came after it, and a
crash leaves every action that was answered.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from cryoray.boosting.expected import OPEN
from cryoray.errors import FormatError, InputError
from cryoray.formats.names import SELECTION

_FORMAT = 1
#: How a file of actions begins, of whatever format.
_BEGIN = b'{"format":'
#: Seconds after which a tab that asks for nothing counts as closed, and its actions are anybody's to undo.
_CLOSED = 10.0

What = Literal["turn", "line", "ask", "adapt"]


@dataclass(frozen=True, slots=True)
class State:
    """What is decided now.

    Attributes:
        turned: int8 [n]: 1 keep, 0 discard, -1 where nobody said.
        asked: bool [n], the images that were put before the person since their labels would tell most.
        line: scores at or above it keep; None for the verdicts' own.
        policy: what the line was chosen by, '' where it was dragged.
        stretch: of log-odds, by the last adaptation.
        shift: of log-odds, by the same.
    """

    turned: np.ndarray
    asked: np.ndarray
    line: float | None = None
    policy: str = ""
    stretch: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed since a revision: rows that were touched with what they are now, and the rest as it is."""

    revision: int
    rows: list[int]
    values: list[int]
    state: State
    undo: bool
    redo: bool

    def as_json(self) -> dict[str, Any]:
        """As the page reads it."""
        return {
            "rev": self.revision,
            "rows": self.rows,
            "values": self.values,
            "line": self.state.line,
            "policy": self.state.policy,
            "change": [self.state.stretch, self.state.shift],
            "asked": np.flatnonzero(self.state.asked).tolist(),
            "undo": self.undo,
            "redo": self.redo,
        }


@dataclass(slots=True)
class _Action:
    revision: int
    tab: str
    what: str
    data: Mapping[str, Any]
    done: bool = True
    undone_at: int = field(default=0)


def _opened(path: Path) -> IO[bytes]:
    """The file of actions, made where it is missing; never another file that a link leads to."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(
            "is a link, and may lead to a file of yours", file=path, remedy="remove it"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError("is not a file", file=path, remedy="remove it")
    return os.fdopen(descriptor, "a+b", buffering=0)


class Clicks:
    """The actions on a table of verdicts.

    Args:
        folder: where ``selection.jsonl`` is, or will be.
        rows: how many images there are.
        digest: of the verdicts; the file names it, so that it is never taken for a selection of others.

    Raises:
        InputError: another process has the file open, or it is about other verdicts.
        FormatError: a line that is not the last one is damaged.
    """

    def __init__(self, folder: Path, rows: int, digest: str) -> None:
        self.path, self._rows = Path(folder) / SELECTION, rows
        self._lock = threading.Lock()
        self._actions: list[_Action] = []
        self._touched: list[np.ndarray] = [np.empty(0, np.int64)]  # rows that each revision changed
        self._seen: dict[str, float] = {}
        self._file = _opened(self.path)
        try:
            self._take(digest)
        except BaseException:
            self._file.close()
            raise

    def _take(self, digest: str) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                "another `cryoray select` has this selection open",
                file=self.path,
                remedy="use its page, or stop it first",
            ) from error
        self._file.seek(0)
        text = self._file.read()
        whole = text[: text.rfind(b"\n") + 1]
        if text and not text.startswith(_BEGIN[: len(text)]):
            raise InputError(
                "is not a selection", file=self.path, remedy="move it away to start again"
            )
        if len(whole) < len(text):  # written when the machine stopped, and never answered
            self._file.truncate(len(whole))
        head = {"format": _FORMAT, "verdicts": digest, "rows": self._rows}
        lines = whole.splitlines()
        if not lines:
            self._append(head)
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if number == 1:
                    self._check(entry, head)
                else:
                    self._apply(entry)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise FormatError(
                    f"is damaged ({type(error).__name__}: {error})",
                    file=self.path,
                    row=number,
                    remedy="remove this line and the ones after it; what stands before it is whole",
                ) from error
        self._state = self._replayed()

    def _check(self, entry: Mapping[str, Any], head: Mapping[str, Any]) -> None:
        if entry.get("format") != head["format"]:
            raise InputError(
                f"is of format {entry.get('format')}, which this cryoray does not know",
                file=self.path,
            )
        if entry != head:
            raise InputError(
                "is a selection made on other verdicts than those in its folder",
                file=self.path,
                remedy="move it away to start again",
            )

    def close(self) -> None:
        """Let another process have the file."""
        self._file.close()

    @property
    def state(self) -> State:
        """What is decided now."""
        return self._state

    @property
    def revision(self) -> int:
        """How many actions there were, undos included."""
        return len(self._touched) - 1

    def turn(self, tab: str, rows: Sequence[int], value: int) -> None:
        """Say keep (1), discard (0) or nothing (-1) of some rows.

        Raises:
            InputError: there are no such rows, or there is no such value.
        """
        if value not in (1, 0, OPEN):
            raise InputError("say 1 for keep, 0 for discard or -1 for neither")
        self._do(tab, "turn", {"rows": self._checked(rows), "value": value})

    def draw(self, tab: str, line: float, policy: str = "") -> None:
        """Draw the line.

        Raises:
            InputError: it is no number of 0 to 1 or just above.
        """
        if not 0 <= line <= 1.01:
            raise InputError("the line is a score, 0 to 1")
        self._do(tab, "line", {"line": float(line), "policy": policy})

    def ask(self, tab: str, rows: Sequence[int]) -> None:
        """Put images before the person; what they say of these may adapt the scores."""
        self._do(tab, "ask", {"rows": self._checked(rows)})

    def adapt(self, tab: str, stretch: float, shift: float, line: float) -> None:
        """Change all scores, and draw the line anew."""
        self._do(tab, "adapt", {"stretch": stretch, "shift": shift, "line": line})

    def undo(self, tab: str) -> bool:
        """Take back the last action of this tab, or of one that is closed; whether there was one."""
        with self._lock:
            last = self._last(tab, done=True)
            if last is not None:
                self._write({"tab": tab, "what": "undo", "of": last.revision})
            return last is not None

    def redo(self, tab: str) -> bool:
        """Do again what was undone last, if nothing was done since; whether there was anything."""
        with self._lock:
            last = self._last(tab, done=False)
            if last is not None:
                self._write({"tab": tab, "what": "redo", "of": last.revision})
            return last is not None

    def since(self, tab: str, revision: int) -> Delta:
        """What changed since a revision that a tab has seen; a revision that is unknown means all."""
        with self._lock:
            self._seen[tab] = time.monotonic()
            known = 0 <= revision <= self.revision
            touched = self._touched[revision + 1 :] if known else self._touched
            rows = np.unique(np.concatenate([np.empty(0, np.int64), *touched]))
            return Delta(
                self.revision,
                rows.tolist(),
                self._state.turned[rows].tolist(),
                self._state,
                self._last(tab, done=True) is not None,
                self._last(tab, done=False) is not None,
            )

    def _checked(self, rows: Sequence[int]) -> list[int]:
        try:
            given = np.array(rows, np.int64)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError("give rows as a list of numbers") from error
        if given.ndim != 1 or not len(given) or given.min() < 0 or given.max() >= self._rows:
            raise InputError(f"give rows of 0 to {self._rows - 1:,}")
        return [int(row) for row in np.unique(given)]

    def _do(self, tab: str, what: What, data: Mapping[str, Any]) -> None:
        with self._lock:
            self._seen[tab] = time.monotonic()
            self._write({"tab": tab, "what": what, **data})

    def _write(self, entry: Mapping[str, Any]) -> None:
        entry = {"rev": self.revision + 1, "at": round(time.time(), 3), **entry}
        self._append(entry)
        self._apply(entry)
        before = self._state
        if entry["what"] in ("undo", "redo"):
            self._state = self._replayed()
        else:
            self._state = _after(before, self._actions[-1])
        self._touched[-1] = np.flatnonzero(before.turned != self._state.turned)

    def _append(self, entry: Mapping[str, Any]) -> None:
        end = self._file.seek(0, os.SEEK_END)
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)  # half a line would spoil the next
            raise

    def _apply(self, entry: Mapping[str, Any]) -> None:
        what, revision = entry["what"], self.revision + 1
        if entry["rev"] != revision:
            raise ValueError(f"revision {entry['rev']} where {revision} is due")
        if what in ("undo", "redo"):
            of = next(one for one in self._actions if one.revision == entry["of"])
            of.done = what == "redo"
            of.undone_at = revision
        else:
            self._actions.append(_Action(revision, entry["tab"], what, entry))
        # After a restart a tab gets every row that was ever turned.
        self._touched.append(np.array(entry.get("rows", ()), np.int64))

    def _replayed(self) -> State:
        nothing = State(np.full(self._rows, OPEN, np.int8), np.zeros(self._rows, bool))
        return reduce(_after, (one for one in self._actions if one.done), nothing)

    def _last(self, tab: str, *, done: bool) -> _Action | None:
        now = time.monotonic()
        mine = [
            one
            for one in self._actions
            if one.tab == tab or now - self._seen.get(one.tab, -np.inf) >= _CLOSED
        ]
        if done:
            return next((one for one in reversed(mine) if one.done and one.what != "ask"), None)
        undone = [one for one in mine if not one.done]
        last = max(undone, key=lambda one: one.undone_at, default=None)
        if last is None or any(one.done and one.revision > last.undone_at for one in mine):
            return None
        return last


def _after(state: State, action: _Action) -> State:
    """What is decided after an action."""
    data = action.data
    if action.what == "turn":
        turned = state.turned.copy()
        turned[data["rows"]] = data["value"]
        return replace(state, turned=turned)
    if action.what == "ask":
        asked = state.asked.copy()
        asked[data["rows"]] = True
        return replace(state, asked=asked)
    if action.what == "adapt":
        change = {"stretch": data["stretch"], "shift": data["shift"]}
        return replace(state, line=data["line"], policy="adapted", **change)
    return replace(state, line=data["line"], policy=data["policy"])
