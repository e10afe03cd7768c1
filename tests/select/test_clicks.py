"""What a person decides is on disk before it is answered, and nobody overwrites anybody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cryoray.boosting.expected import OPEN
from cryoray.errors import FormatError, InputError
from cryoray.formats.names import SELECTION
from cryoray.select.clicks import Clicks

N = 10


@pytest.fixture
def clicks(tmp_path: Path) -> Iterator[Clicks]:
    made = Clicks(tmp_path, N, "digest")
    yield made
    made.close()


def again(clicks: Clicks) -> Clicks:
    """The same file, opened by a program that starts anew."""
    clicks.close()
    return Clicks(clicks.path.parent, N, "digest")


def turned(clicks: Clicks) -> dict[int, int]:
    return {
        int(row): int(clicks.state.turned[row])
        for row in np.flatnonzero(clicks.state.turned != OPEN)
    }


def test_an_action_is_on_disk_when_it_is_answered(clicks: Clicks) -> None:
    clicks.turn("a", [3, 1], 0)
    clicks.draw("a", 0.25, "each")
    lines = [json.loads(line) for line in clicks.path.read_text().splitlines()]
    assert lines[0] == {"format": 1, "verdicts": "digest", "rows": N}
    assert [line["rev"] for line in lines[1:]] == [1, 2]
    assert lines[1]["rows"] == [1, 3]
    reopened = again(clicks)
    assert turned(reopened) == {1: 0, 3: 0}
    assert (reopened.state.line, reopened.state.policy, reopened.revision) == (0.25, "each", 2)
    reopened.close()


def test_undo_takes_back_one_action_and_leaves_what_came_after_it(clicks: Clicks) -> None:
    clicks.turn("a", [1, 2], 0)
    clicks.turn("b", [2], 1)
    clicks.undo("a")
    assert turned(clicks) == {2: 1}
    clicks.turn("a", [5], 1)
    assert turned(clicks) == {2: 1, 5: 1}
    clicks.undo("a")
    assert turned(clicks) == {2: 1}
    clicks.redo("a")
    assert turned(clicks) == {2: 1, 5: 1}


def test_undo_and_redo_go_through_all_actions_in_turn(clicks: Clicks) -> None:
    for row in range(3):
        clicks.turn("a", [row], 0)
    for left in (2, 1, 0):
        assert clicks.undo("a")
        assert len(turned(clicks)) == left
    assert not clicks.undo("a")
    for there in (1, 2):
        assert clicks.redo("a")
        assert turned(clicks) == dict.fromkeys(range(there), 0)
    clicks.turn("a", [9], 1)
    assert not clicks.redo("a"), "something was done since"
    assert turned(clicks) == {0: 0, 1: 0, 9: 1}


def test_a_tab_undoes_its_own_and_what_closed_tabs_did_but_not_an_open_ones(
    clicks: Clicks, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("cryoray.select.clicks.time.monotonic", lambda: now[0])
    clicks.turn("a", [1], 0)
    clicks.since("a", 0)
    assert not clicks.since("b", 0).undo
    assert not clicks.undo("b")
    now[0] += 60  # a has asked for nothing since
    assert clicks.since("b", 0).undo
    assert clicks.undo("b")
    assert turned(clicks) == {}


def test_two_tabs_see_what_the_other_did_and_the_last_one_wins_an_image(clicks: Clicks) -> None:
    clicks.turn("a", [1, 2, 3], 0)
    seen = clicks.since("b", -1)
    assert (seen.rows, seen.values) == ([1, 2, 3], [0, 0, 0])
    clicks.turn("b", [2], 1)
    news = clicks.since("a", 1)
    assert (news.revision, news.rows, news.values) == (2, [2], [1])
    assert turned(clicks) == {1: 0, 2: 1, 3: 0}
    assert clicks.since("a", 2).rows == []
    clicks.undo("b")
    assert clicks.since("a", 2).values == [0], "as a had left it"


def test_what_a_crash_cut_off_was_never_answered_and_the_rest_is_there(clicks: Clicks) -> None:
    clicks.turn("a", [1], 0)
    whole = clicks.path.read_bytes()
    clicks.close()
    for half in (b'{"rev":2,"tab":"a","what":"tu', b'{"rev":2}'):
        clicks.path.write_bytes(whole + half)
        reopened = Clicks(clicks.path.parent, N, "digest")
        assert turned(reopened) == {1: 0}
        reopened.turn("a", [2], 1)
        reopened.close()
        assert clicks.path.read_bytes().startswith(whole)
        last = Clicks(clicks.path.parent, N, "digest")
        assert turned(last) == {1: 0, 2: 1}
        last.close()


def test_a_full_disk_loses_the_action_and_not_the_file(
    clicks: Clicks, monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks.turn("a", [1], 0)
    before = clicks.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cryoray.select.clicks.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            clicks.turn("a", [2], 0)
    assert turned(clicks) == {1: 0}
    assert clicks.path.read_bytes() == before
    clicks.turn("a", [3], 1)
    reopened = again(clicks)
    assert turned(reopened) == {1: 0, 3: 1}
    reopened.close()


def test_an_adaptation_is_undone_with_its_line(clicks: Clicks) -> None:
    clicks.draw("a", 0.3)
    clicks.ask("a", [4, 5])
    clicks.adapt("a", 1.5, -0.5, 0.45)
    assert (clicks.state.stretch, clicks.state.shift, clicks.state.line) == (1.5, -0.5, 0.45)
    clicks.undo("a")
    assert (clicks.state.stretch, clicks.state.shift, clicks.state.line) == (1.0, 0.0, 0.3)
    assert np.flatnonzero(clicks.state.asked).tolist() == [4, 5]


def test_only_one_program_has_the_file(clicks: Clicks) -> None:
    with pytest.raises(InputError, match="another `cryoray select`"):
        Clicks(clicks.path.parent, N, "digest")


def test_a_file_about_other_verdicts_or_a_damaged_one_is_refused(clicks: Clicks) -> None:
    clicks.turn("a", [1], 0)
    clicks.turn("a", [2], 0)
    clicks.close()
    with pytest.raises(InputError, match="other verdicts"):
        Clicks(clicks.path.parent, N, "another")
    lines = clicks.path.read_text().splitlines(keepends=True)
    clicks.path.write_text(lines[0] + "nonsense\n" + lines[2])
    with pytest.raises(FormatError, match=f"{SELECTION}, row 2: is damaged"):
        Clicks(clicks.path.parent, N, "digest")
    clicks.path.write_text(lines[0] + lines[2])
    with pytest.raises(FormatError, match="revision 2 where 1 is due"):
        Clicks(clicks.path.parent, N, "digest")


@pytest.mark.parametrize("rows", [[], [N], [-1], ["x"], [[1]], [1e30], None])
def test_rows_that_are_not_there_are_refused(clicks: Clicks, rows: object) -> None:
    with pytest.raises(InputError):
        clicks.turn("a", rows, 1)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        clicks.turn("a", [1], 2)
    with pytest.raises(InputError):
        clicks.draw("a", float("nan"))
    assert clicks.revision == 0


@pytest.mark.parametrize(
    "content", [b"one line without an end", b"one line\nanother without an end"]
)
def test_a_file_that_is_no_selection_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    """Before, its last line was cut off first, and a file of one line was written over."""
    precious = tmp_path / "precious.txt"
    precious.write_bytes(content)
    folder = tmp_path / "verdicts"
    folder.mkdir()
    (folder / SELECTION).symlink_to(precious)
    with pytest.raises(InputError, match="is a link"):
        Clicks(folder, N, "digest")
    (folder / SELECTION).unlink()
    precious.rename(folder / SELECTION)
    with pytest.raises(InputError, match="is not a selection"):
        Clicks(folder, N, "digest")
    assert (folder / SELECTION).read_bytes() == content
