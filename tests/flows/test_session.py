"""The flow of a session: what happens reaches Prefect's side in order, and the row counts come back."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cryoray.records import Event
from cryoray.settings import load
from flows import session
from tests import examples
from tests.session.service import TOKEN, running


@pytest.mark.long
def test_a_session_is_judged_and_told(
    tiny_ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []

    class Recorder:
        """In place of what talks to Prefect's server."""

        def __init__(self, subject: str, *_: object) -> None:
            self.event = told.append

        def __enter__(self) -> Recorder:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(session, "Reporter", Recorder)
    monkeypatch.setenv("CRYORAY_TOKEN", TOKEN)
    examples.write_stack(tmp_path / "a.mrcs", examples.particles(9))
    with running([tmp_path], {"tiny": tiny_ensemble}) as service:
        overrides = {"watch": {"service": service.url, "poll": 0.05, "settle": 0.05}}
        row_counts = session.watch.fn(tmp_path, "s", 0.0, 1.0, overrides)
    assert (row_counts["stacks"], row_counts["rows"]) == (1, 9)
    assert [one.name for one in told] == [
        "session.opened", "micrograph.judged", "sides.merged", "session.closed",
    ]  # fmt: skip


def test_the_forms_ensemble_is_asked_of_a_service_and_served_where_there_is_none() -> None:
    asked = load(watch={"service": "http://gpu1:8000"}, serve={"ensembles": ["other"]})
    chosen = session.with_ensemble(asked, "mine")
    assert (chosen.watch.ensemble, chosen.serve.ensembles) == ("mine", ("other",))
    own = session.with_ensemble(load(serve={"ensembles": ["other"]}), "mine")
    assert (own.watch.ensemble, own.serve.ensembles) == (None, ("mine",))
    assert session.with_ensemble(asked, None) == session.with_ensemble(asked, "") == asked
    assert "ensemble" in session.session.parameters.properties


def test_a_watch_ends_when_time_is_up_and_when_nothing_came_for_a_while() -> None:
    for longest, idle in ((0.05, 60.0), (60.0, 0.05)):
        stop = threading.Event()
        session.Clock(stop, longest, idle).start()
        assert stop.wait(5)


@pytest.mark.long
def test_what_comes_keeps_a_watch_going() -> None:
    stop, told = threading.Event(), list[Event]()
    clock = session.Clock(stop, 60.0, 0.3)
    hear = clock.heard(told.append)
    clock.start()
    for _ in range(8):
        assert not stop.wait(0.05)
        hear(Event("micrograph.judged"))
    hear(Event("sides.merged"))
    assert stop.wait(5)
    assert len(told) == 9


def test_new_folders_are_those_that_a_microscope_wrote_to_lately(tmp_path: Path) -> None:
    for name in ("today", "last_year", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "a_file").touch()
    os.utime(tmp_path / "last_year", (1e9, 1e9))
    assert session.new_folders(tmp_path, 3.0) == [tmp_path / "today"]
