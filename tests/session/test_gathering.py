"""What people said becomes sources: the right images, with their labels, of sessions that may be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.selection import read_selection
from cryoray.formats.source import Source, open_source
from cryoray.session.gathering import Gathered, gather, use_of
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Outcome, Seen, stack_id
from tests.preparation.sources import particles, write_source

TEACHES = next(f"s{i}" for i in range(99) if use_of(f"s{i}", 0.5) == "teach")
JUDGES = next(f"s{i}" for i in range(99) if use_of(f"s{i}", 0.5) == "judge")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def judged(ledger: Ledger, session: str, folder: Path, *, trainable: bool = True) -> Source:
    """A session of one source of 5 and 3 images, of which rows 1 and 4 are in the blind sample."""
    source = write_source(folder / session, [particles(5, seed=1), particles(3, seed=2)])
    ledger.open_session(session, root=folder, folder=folder, trainable=trainable, audit_size=2)
    path, sample = str(source.path), ((1, 0.1), (4, 0.2))
    ledger.expect(session, [Seen(path, None, "particle", "one", 1, 1, 1.0)])
    outcome = Outcome(
        "one", "judged", 8, 4, 4, 0, 0, 0.5, "e", 2.0,
        sample=tuple((row, source.images[row], draw) for row, draw in sample),
    )  # fmt: skip
    ledger.commit(session, stack_id(session, path), outcome)
    return source


def say(ledger: Ledger, session: str, source: Source, row: int, keep: bool) -> None:
    said = {"image": source.images[row], "before": "keep", "score": 0.5, "digest": "one"}
    key = stack_id(session, str(source.path))
    ledger.override(session, key, row, keep, who="Ada", **said)


def gathered(ledger: Ledger, out: Path) -> list[Gathered]:
    return [*gather(ledger, out, "particle", 0.5)]


def labels(one: Gathered) -> dict[bytes, int]:
    """Label by the image's own pixels."""
    found = {}
    for star in one.stars:
        source = open_source(star)
        said = read_selection(one.selection, source)
        for row in range(len(source)):
            stack = read_header(source.stacks[source.stack[row]])
            found[read_frames(stack, source.frame[[row]]).tobytes()] = int(said[row])
    return found


def pixels(source: Source, row: int) -> bytes:
    stack = read_header(source.stacks[source.stack[row]])
    return read_frames(stack, source.frame[[row]]).tobytes()


def test_overrides_teach_without_the_blind_sample(ledger: Ledger, tmp_path: Path) -> None:
    source = judged(ledger, TEACHES, tmp_path)
    for row, keep in ((0, True), (1, True), (6, False)):
        say(ledger, TEACHES, source, row, keep)
    (one,) = gathered(ledger, tmp_path / "out")
    assert (one.session, one.use, one.images, one.keep) == (TEACHES, "teach", 2, 1)
    assert labels(one) == {pixels(source, 0): 1, pixels(source, 6): 0}
    subset = open_source(one.stars[0])
    np.testing.assert_array_equal(
        subset.metadata["rlnDefocusU"], source.metadata["rlnDefocusU"][[0, 6]]
    )


def test_only_what_was_labelled_blind_judges(ledger: Ledger, tmp_path: Path) -> None:
    source = judged(ledger, JUDGES, tmp_path, trainable=False)
    say(ledger, JUDGES, source, 0, True)
    assert gathered(ledger, tmp_path / "out") == []
    key = stack_id(JUDGES, str(source.path))
    assert ledger.label_blind(JUDGES, key, 4, keep=False, who="Ada")
    (one,) = gathered(ledger, tmp_path / "out")
    assert (one.use, one.images, one.keep) == ("judge", 1, 0)
    assert labels(one) == {pixels(source, 4): 0}


def test_what_was_not_released_trains_nothing(ledger: Ledger, tmp_path: Path) -> None:
    source = judged(ledger, TEACHES, tmp_path, trainable=False)
    say(ledger, TEACHES, source, 0, True)
    assert gathered(ledger, tmp_path / "out") == []


def test_the_same_labels_are_the_same_folder_and_another_label_is_another(
    ledger: Ledger, tmp_path: Path
) -> None:
    source = judged(ledger, TEACHES, tmp_path)
    say(ledger, TEACHES, source, 0, True)
    (one,) = gathered(ledger, tmp_path / "out")
    before = one.selection.stat().st_mtime_ns
    assert gathered(ledger, tmp_path / "out") == [one]
    assert one.selection.stat().st_mtime_ns == before
    say(ledger, TEACHES, source, 0, False)
    (other,) = gathered(ledger, tmp_path / "out")
    assert other.digest != one.digest
    assert labels(other) == {pixels(source, 0): 0}


def test_a_file_that_is_gone_is_counted_and_costs_only_its_own_images(
    ledger: Ledger, tmp_path: Path
) -> None:
    source = judged(ledger, TEACHES, tmp_path)
    say(ledger, TEACHES, source, 0, True)
    source.path.unlink()
    assert gathered(ledger, tmp_path / "out") == []


def test_sessions_are_shared_out_by_their_names_alone() -> None:
    uses = [use_of(f"2026-07-{i}", 0.3) for i in range(1000)]
    assert 250 < uses.count("judge") < 350
    assert use_of("x", 0.0) == "teach"
    assert use_of("x", 1.0) == "judge"
