"""What is sent when: on real files, seen by a real scanner; the futures are the test's own."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest

from cryoray.session.judge_queue import JudgeQueue
from cryoray.session.judging import Unit
from cryoray.session.ledger_records import Outcome
from cryoray.session.settling import Scanner
from tests import examples


@pytest.fixture
def scanner(tmp_path: Path) -> Scanner:
    return Scanner(tmp_path, settle=0.0)


def settled(queue: JudgeQueue, scanner: Scanner, *names: str, images: int = 4) -> None:
    """Stacks that were written, seen and put into the queue."""
    for name in names:
        examples.write_stack(scanner.root / f"{name}.mrcs", examples.particles(images))
    scanner.look()
    for name in names:
        path = scanner.root / f"{name}.mrcs"
        queue.add(name, Unit(path, "particle", None, None, f"digest of {name}", images=images))
    queue.put(names)


def send(queue: JudgeQueue, profile: str | None = None) -> dict[str, Future[Outcome]]:
    """Have sent what can be."""
    futures: dict[str, Future[Outcome]] = {}
    for key, _ in queue.due():
        futures[key] = Future()
        queue.sent(key, futures[key], profile)
    return futures


def test_what_is_outdated_is_sent_after_all_that_is_new(scanner: Scanner) -> None:
    queue = JudgeQueue(scanner, 0.0, 2)
    settled(queue, scanner, "old", "older", "new")
    for key in ("old", "older"):
        queue.done(key)
    queue.put_outdated(["old", "older", "unknown"])
    assert queue.outdated == 2
    assert list(send(queue)) == ["new", "old"]
    assert queue.in_flight == 2


def test_no_more_are_in_flight_than_may_be_and_none_twice(scanner: Scanner) -> None:
    queue = JudgeQueue(scanner, 0.0, 2)
    settled(queue, scanner, "a", "b", "c")
    first = send(queue, "digest of a profile")
    assert list(first) == ["a", "b"]
    assert send(queue) == {}
    first["b"].set_exception(OSError("gone"))
    ((key, unit, flight),) = queue.finished()
    assert (key, unit is not None, flight.profile) == ("b", True, "digest of a profile")
    queue.done("b")
    assert list(send(queue)) == ["c"]


def test_a_stack_waits_until_it_is_done_also_when_it_was_judged_or_rewritten(
    scanner: Scanner,
) -> None:
    queue = JudgeQueue(scanner, 0.0, 2)
    settled(queue, scanner, "a")
    send(queue)["a"].set_exception(OSError("gone"))
    settled(queue, scanner, "a", images=5)
    assert len(list(queue.finished())) == 1
    assert not queue.is_empty
    assert list(send(queue)) == ["a"], "its verdicts are not in the ledger"
    queue.done("a")
    assert not queue.is_empty, "it is in flight"


def test_what_failed_waits_and_what_is_put_anew_does_not(scanner: Scanner) -> None:
    queue = JudgeQueue(scanner, 0.0, 2)
    settled(queue, scanner, "a", "b")
    for future in send(queue).values():
        future.set_exception(OSError("gone"))
    for key, _, _ in queue.finished():
        queue.failed(key)
    assert send(queue) == {}
    queue.put(["b"])
    assert list(send(queue)) == ["b"]


def test_what_is_removed_is_nobody_s_any_more(scanner: Scanner) -> None:
    queue = JudgeQueue(scanner, 0.0, 2)
    settled(queue, scanner, "a", "b", "c", images=3)
    assert (queue.images, len(queue.sources(without={"c"}))) == (9, 2)
    flying = send(queue)
    queue.remove("a")
    assert ("a" in queue, queue.images) == (False, 6)
    flying["a"].set_exception(OSError("gone"))
    assert [(key, unit) for key, unit, _ in queue.finished()] == [("a", None)]
    queue.failed("a")
    assert list(send(queue)) == ["c"]


def test_a_stack_that_changed_since_it_settled_is_left_to_the_scanner(scanner: Scanner) -> None:
    queue = JudgeQueue(scanner, 0.0, 2)
    settled(queue, scanner, "a")
    examples.write_stack(scanner.root / "a.mrcs", examples.particles(5))
    assert send(queue) == {}
    (file,) = scanner.look().settled
    assert Path(file.path).stem == "a"
    queue.put(["a"])
    assert list(send(queue)) == ["a"]
