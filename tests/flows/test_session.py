"""The flow of a session: what happens reaches Prefect's side in order, and the books come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryoray.records import Event
from flows import session
from tests import examples
from tests.session.service import TOKEN, running

pytestmark = pytest.mark.long


def test_a_session_is_judged_and_told(
    tiny_ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []

    class Told:
        """In place of what talks to Prefect's server."""

        def __init__(self, subject: str) -> None:
            self.event = told.append

        def __enter__(self) -> Told:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(session, "Telling", Told)
    monkeypatch.setenv("CRYORAY_TOKEN", TOKEN)
    examples.write_stack(tmp_path / "a.mrcs", examples.particles(9))
    with running([tmp_path], {"tiny": tiny_ensemble}) as service:
        overrides = {"watch": {"service": service.url, "poll": 0.05, "settle": 0.05}}
        books = session.watch.fn(tmp_path, "s", 0.0, overrides)
    assert (books["stacks"], books["rows"]) == (1, 9)
    assert [one.name for one in told] == [
        "session.opened", "micrograph.judged", "sides.merged", "session.closed",
    ]  # fmt: skip
