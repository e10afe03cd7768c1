"""What the ledger promises, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from cryoray.errors import InputError, SettingsError
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Happened, Micrograph, Outcome, Seen, stack_id
from cryoray.session.ledger_sessions import hash_token
from cryoray.session.schema import FATES

SEEN = Seen("/data/a.mrcs", None, "particle", "one", 1000, 5, 100.0)
KEY = stack_id("s", SEEN.path)
OUTCOME = Outcome(
    digest="one",
    state="judged",
    rows=10,
    kept=5,
    discarded=3,
    review=1,
    quarantined=1,
    score=0.6,
    ensemble="e",
    at=200.0,
    micrographs=(Micrograph("a.mrc", "12", "3", 5, 3, 1, 1, 0.6, 1.2, 4.0),),
    candidates=((3, 0.5), (7, 0.2)),
    sample=((2, "000003@a.mrcs", 0.1), (4, "000005@a.mrcs", 0.4)),
)


@pytest.fixture(autouse=True)
def token(ledger: Ledger) -> str:
    made = ledger.open_session("s", root=Path("/data"), folder=Path("/out"), audit_size=2)
    assert made
    return made


def fates(ledger: Ledger) -> dict[str, int]:
    total = ledger.totals("s").get("particle/judged", {})
    return {name: total.get(name, 0) for name in FATES}


def test_a_stack_is_pending_until_its_outcome_is_committed(ledger: Ledger) -> None:
    assert ledger.expect("s", [SEEN]) == [KEY]
    assert [row.id for row in ledger.stacks("s", "pending")] == [KEY]
    assert ledger.commit("s", KEY, OUTCOME)
    assert not ledger.stacks("s", "pending")
    row = ledger.stack(KEY)
    assert row is not None
    assert (row.state, row.rows, row.kept, row.ensemble) == ("judged", 10, 5, "e")


def test_doing_everything_twice_does_it_once(ledger: Ledger) -> None:
    happened = [Happened("a:one", "micrograph.judged", {"kept": 5})]
    for first in (True, False):
        assert bool(ledger.expect("s", [SEEN])) is first
        assert ledger.commit("s", KEY, OUTCOME, happened)
    assert fates(ledger) == {"kept": 5, "discarded": 3, "review": 1, "quarantined": 1}
    assert len(ledger.micrographs("s")) == 1
    assert len(ledger.candidates("s", 10)) == 2
    assert [row.name for row in ledger.events("s")] == ["micrograph.judged"]


def test_a_rewritten_stack_counts_only_as_it_is_now(ledger: Ledger) -> None:
    ledger.expect("s", [SEEN])
    ledger.commit("s", KEY, OUTCOME)
    assert ledger.expect("s", [replace(SEEN, digest="two", mtime_ns=6)]) == [KEY]
    assert fates(ledger) == dict.fromkeys(FATES, 0)
    assert not ledger.micrographs("s")
    assert not ledger.commit("s", KEY, OUTCOME), "an answer about what was there before"
    assert ledger.commit("s", KEY, replace(OUTCOME, digest="two", kept=6, discarded=2))
    assert fates(ledger)["kept"] == 6


def test_what_vanished_does_not_count_and_may_come_back(ledger: Ledger) -> None:
    ledger.expect("s", [SEEN])
    ledger.commit("s", KEY, OUTCOME)
    ledger.vanish([KEY])
    assert fates(ledger)["kept"] == 0
    assert not ledger.commit("s", KEY, OUTCOME), "it vanished while it was judged"
    assert ledger.expect("s", [SEEN]) == [KEY]
    assert ledger.commit("s", KEY, OUTCOME)
    assert fates(ledger)["kept"] == 5


def test_a_stack_set_aside_says_why_and_is_not_counted_among_the_judged(ledger: Ledger) -> None:
    ledger.expect("s", [SEEN])
    ledger.commit("s", KEY, replace(OUTCOME, state="rejected", reason="9 of 10 rows"))
    row = ledger.stack(KEY)
    assert row is not None
    assert (row.state, row.reason) == ("rejected", "9 of 10 rows")
    assert fates(ledger)["kept"] == 0
    assert not ledger.micrographs("s")


def test_a_record_survives_json() -> None:
    assert Outcome.from_record(json.loads(json.dumps(asdict(OUTCOME)))) == OUTCOME


def test_grid_squares_are_summed_by_images_not_by_micrographs(ledger: Ledger) -> None:
    other = replace(SEEN, path="/data/b.mrcs")
    ledger.expect("s", [SEEN, other])
    ledger.commit("s", KEY, OUTCOME)
    small = Micrograph("b.mrc", "12", "4", 1, 0, 0, 0, 0.1, None, 8.0)
    ledger.commit(
        "s",
        stack_id("s", other.path),
        replace(OUTCOME, micrographs=(small,), candidates=(), sample=()),
    )
    square = ledger.square("s", "12")
    assert (square.micrographs, square.kept, square.quarantined) == (2, 6, 1)
    assert square.score == pytest.approx((9 * 0.6 + 0.1) / 10)
    assert square.ctf_resolution == pytest.approx((9 * 4.0 + 8.0) / 10)


def test_an_override_holds_for_the_image_that_was_seen(ledger: Ledger) -> None:
    ledger.expect("s", [SEEN])
    ledger.commit("s", KEY, OUTCOME)
    said = {"image": "000001@a.mrcs", "before": "discard", "score": 0.2, "digest": "one"}
    ledger.override("s", KEY, 0, True, who="Ada", **said)  # type: ignore[arg-type]
    ledger.override("s", KEY, 0, False, who="Bob", **said)  # type: ignore[arg-type]
    (row,) = ledger.overrides("s")
    assert (row.keep, row.who, row.before, row.path) == (False, "Bob", "discard", SEEN.path)
    assert [one.data["who"] for one in ledger.events("s", names=["verdict.overridden"])] == [
        "Ada",
        "Bob",
    ]

    ledger.expect("s", [replace(SEEN, digest="two")])
    assert not ledger.overrides("s"), "the stack holds other images now"
    ledger.expect("s", [SEEN])
    ledger.commit("s", KEY, OUTCOME)
    assert len(ledger.overrides("s")) == 1, "it was the same after all"
    ledger.override("s", KEY, 0, None, who="Bob", **said)  # type: ignore[arg-type]
    assert not ledger.overrides("s")


def test_the_review_queue_leaves_out_what_is_labelled_or_must_stay_blind(ledger: Ledger) -> None:
    ledger.expect("s", [SEEN])
    ledger.commit("s", KEY, replace(OUTCOME, candidates=((1, 0.9), (2, 0.8), (3, 0.7))))
    assert [row.row for row in ledger.candidates("s", 10)] == [1, 3]  # 2 is in the sample
    ledger.override(
        "s", KEY, 1, True, image="i", before="review", score=0.5, digest="one", who="Ada"
    )
    assert [row.row for row in ledger.candidates("s", 10)] == [3]


def test_the_blind_sample_is_uniform_whatever_came_when(ledger: Ledger) -> None:
    rng = np.random.default_rng(0)
    draws = rng.random((30, 8))
    order = rng.permutation(30)
    paths = [f"/data/{number}.mrcs" for number in range(30)]
    ledger.expect("s", [replace(SEEN, path=path) for path in paths])
    for number in order.tolist():
        sample = tuple((row, f"{row}", float(draw)) for row, draw in enumerate(draws[number]))
        lowest = tuple(sorted(sample, key=lambda one: one[2])[:2])
        outcome = replace(OUTCOME, sample=lowest, candidates=())
        ledger.commit("s", stack_id("s", paths[number]), outcome)
    found = [(row.path, row.row) for row in ledger.audit_sample("s")]
    flat = np.argsort(draws, axis=None)[:2].tolist()
    assert found == [(paths[one // 8], one % 8) for one in flat]


def test_a_blind_label_stands(ledger: Ledger) -> None:
    ledger.expect("s", [SEEN])
    ledger.commit("s", KEY, OUTCOME)
    assert ledger.label_blind("s", KEY, 2, keep=True, who="Ada")
    assert not ledger.label_blind("s", KEY, 2, keep=False, who="Bob")
    assert not ledger.label_blind("s", KEY, 9, keep=False, who="Bob"), "not in the sample"
    ledger.commit("s", KEY, OUTCOME)
    assert [row.keep for row in ledger.audit_sample("s")] == [True, None]
    ledger.expect("s", [replace(SEEN, digest="two")])
    ledger.commit("s", KEY, replace(OUTCOME, digest="two"))
    assert [row.keep for row in ledger.audit_sample("s")] == [None, None]


def test_a_token_opens_its_own_session_alone(ledger: Ledger, token: str) -> None:
    other = ledger.open_session("t", root=Path("/t"), folder=Path("/t"))
    assert other
    assert (ledger.scope(token), ledger.scope(other)) == ("s", "t")
    assert ledger.scope("") is None
    assert ledger.scope(hash_token(token)) is None, "who reads the database has no token"
    assert ledger.open_session("s", root=Path("/data"), folder=Path("/out")) is None
    assert ledger.scope(token) == "s"
    renewed = ledger.new_token("s")
    assert (ledger.scope(token), ledger.scope(renewed)) == (None, "s")


def test_a_session_goes_on_where_it_was_and_watches_one_folder(ledger: Ledger) -> None:
    ledger.expect("s", [SEEN])
    ledger.close_session("s")
    row = ledger.session("s")
    assert row is not None
    assert (row.state, row.trainable) == ("closed", False)
    ledger.open_session("s", root=Path("/data"), folder=Path("/out"))
    assert len(ledger.stacks("s", "pending")) == 1
    with pytest.raises(InputError, match="watches /data"):
        ledger.open_session("s", root=Path("/elsewhere"), folder=Path("/out"))


def test_a_wish_for_merged_files_outlives_a_merge_that_began_before_it(ledger: Ledger) -> None:
    ledger.want_merge("s")
    ledger.merged("s", at=1.0)
    row = ledger.session("s")
    assert row is not None
    assert row.merge_wanted
    ledger.merged("s", at=row.merge_wanted)
    row = ledger.session("s")
    assert row is not None
    assert row.merge_wanted is None


def test_watcher_and_page_write_at_the_same_time(ledger: Ledger, url: str) -> None:
    """Two connections, each with several threads, and not one write is lost or refused."""
    page = Ledger(url)
    paths = [f"/data/{number}.mrcs" for number in range(20)]
    ledger.expect("s", [replace(SEEN, path=path) for path in paths])
    keys = [stack_id("s", path) for path in paths]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for at in range(number, 20, 2):
                ledger.commit("s", keys[at], OUTCOME, [Happened(keys[at], "x")])
                page.override(
                    "s",
                    keys[at],
                    at,
                    True,
                    image="i",
                    before="review",
                    score=0.5,
                    digest="one",
                    who="A",
                )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    page.close()
    assert not failures
    assert fates(ledger)["kept"] == 120, "20 stacks with 5 each, and 20 that people turned"
    assert len(ledger.overrides("s")) == 20


@pytest.mark.parametrize(
    "given", ["mysql://u@h/d", "sqlite://", "nonsense://x", "postgresql://u@127.0.0.1:1/d"]
)
def test_a_ledger_that_cannot_be_is_refused_in_one_sentence(given: str) -> None:
    with pytest.raises(SettingsError, match="ledger"):
        Ledger(given)


def test_a_file_of_another_machine_is_refused(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.check_host()
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    if ledger.is_sqlite:
        with pytest.raises(SettingsError, match="PostgreSQL for both"):
            ledger.check_host()
        monkeypatch.setattr("cryoray.session.ledger_sessions._GIVEN_UP", -1.0)
    ledger.check_host()


def test_the_doctor_looks_at_the_ledger(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryoray.diagnostics import machine

    given = ledger.url.render_as_string()
    assert machine._ledger(given).state == "good"
    monkeypatch.setattr(machine, "_file_system", lambda _: "nfs4")
    finding = machine._ledger(given)
    assert (finding.state, "postgresql" in finding.remedy) == (
        ("warning", True) if ledger.is_sqlite else ("good", False)
    )
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert machine._ledger(given).state == ("bad" if ledger.is_sqlite else "good")


def test_what_is_judged_again_by_another_profile_counts_all_the_while_and_keeps_its_time(
    ledger: Ledger,
) -> None:
    ledger.expect("s", [SEEN])
    ledger.commit("s", KEY, OUTCOME)
    assert ledger.outdated("s", "p") == [KEY]
    ledger.set_profile("s", {"digest": "p"}, 64)
    assert ledger.expect("s", [SEEN]) == [], "it is not pending"
    assert fates(ledger)["kept"] == 5
    again = replace(OUTCOME, kept=3, discarded=5, profile="p", at=900.0)
    assert ledger.commit("s", KEY, again)
    row = ledger.stack(KEY)
    assert row is not None
    assert (row.judged, row.profile, row.kept) == (200.0, "p", 3)
    assert [one.judged for one in ledger.micrographs("s")] == [200.0]
    assert ledger.outdated("s", "p") == []
    assert [one.row for one in ledger.audit_sample("s")] == [2, 4]
    session = ledger.session("s")
    assert session is not None
    assert (session.profile, session.profiled) == ({"digest": "p"}, 64)
    ledger.set_profile("s", None)
    session = ledger.session("s")
    assert session is not None
    assert (session.profile, session.profiled) == (None, None)


def test_what_people_said_counts_in_place_of_the_verdict_that_there_is_now(ledger: Ledger) -> None:
    ledger.expect("s", [SEEN])
    ledger.commit("s", KEY, OUTCOME)
    said = {"image": "000001@a.mrcs", "before": "discard", "score": 0.2, "digest": "one"}
    ledger.override("s", KEY, 0, True, who="Ada", **said)  # type: ignore[arg-type]
    assert fates(ledger) == {"kept": 6, "discarded": 2, "review": 1, "quarantined": 1}
    asked: list[list[int]] = []

    def verdict_of(rows: Sequence[int]) -> dict[int, tuple[str, float]]:
        asked.append(list(rows))
        return {0: ("review", 0.5)}

    again = replace(OUTCOME, kept=5, discarded=2, review=2, profile="p")
    ledger.commit("s", KEY, again, verdict_of=verdict_of)
    assert asked == [[0]]
    assert fates(ledger) == {"kept": 6, "discarded": 2, "review": 1, "quarantined": 1}
    (row,) = ledger.overrides("s")
    assert (row.keep, row.before, row.score, row.who) == (True, "review", 0.5, "Ada")
