"""What counts as settled, as new, as gone: on a real folder, by a clock that the test turns."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cryoray.session.settling import Look, Scanner


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scanner(tmp_path: Path, clock: Clock) -> Scanner:
    return Scanner(tmp_path, settle=10, rescan=30, ignore=("Movies/*",), clock=clock)


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def settled(scanner: Scanner, clock: Clock, seconds: float) -> list[str]:
    clock.now += seconds
    return [Path(file.path).name for file in scanner.look().settled]


def test_a_file_settles_when_nothing_changed_for_the_settle_time(
    scanner: Scanner, clock: Clock, tmp_path: Path
) -> None:
    stack = write(tmp_path / "job/a.mrcs")
    assert settled(scanner, clock, 0) == []
    assert settled(scanner, clock, 9) == []
    write(stack, "longer")
    assert settled(scanner, clock, 2) == []
    assert settled(scanner, clock, 9) == []
    assert settled(scanner, clock, 1) == ["a.mrcs"]
    assert settled(scanner, clock, 1) == [], "it is told once"


def test_a_file_in_place_is_watched_though_its_folder_does_not_change(
    scanner: Scanner, clock: Clock, tmp_path: Path
) -> None:
    stack = write(tmp_path / "a.mrcs")
    os.utime(tmp_path, (1, 1))
    settled(scanner, clock, 0)
    stack.write_text("longer")
    os.utime(tmp_path, (1, 1))
    assert settled(scanner, clock, 10) == []
    assert settled(scanner, clock, 10) == ["a.mrcs"]
    stack.write_text("rewritten later")
    os.utime(tmp_path, (1, 1))
    assert settled(scanner, clock, 5) == []
    assert settled(scanner, clock, 30) == [], "the look at everything notices it"
    assert settled(scanner, clock, 10) == ["a.mrcs"]


def test_what_is_old_has_settled_already(scanner: Scanner, clock: Clock, tmp_path: Path) -> None:
    stack = write(tmp_path / "a.mrcs")
    os.utime(stack, (time.time() - 9999, time.time() - 9999))
    assert settled(scanner, clock, 0) == [], "its status changed just now"


@pytest.mark.parametrize(
    "name",
    [
        ".a.mrcs", "a.tmp.mrcs", "a.mrcs.part", "a.mrcs~", "a.partial.star", "a.mrcs.filepart",
        "a.mrcs_downloading", ".a.mrcs.Xy12Zq", "a.txt", "a.mrc", ".Trash/a.mrcs", "Movies/a.mrcs",
    ],
)  # fmt: skip
def test_temporary_names_other_files_and_ignored_folders_are_not_taken(
    scanner: Scanner, clock: Clock, tmp_path: Path, name: str
) -> None:
    write(tmp_path / name)
    write(tmp_path / "real.mrcs")
    settled(scanner, clock, 0)
    assert settled(scanner, clock, 10) == ["real.mrcs"]


def test_what_vanishes_is_told_when_it_stays_away(
    scanner: Scanner, clock: Clock, tmp_path: Path
) -> None:
    stack = write(tmp_path / "a.mrcs")
    settled(scanner, clock, 0)
    settled(scanner, clock, 10)
    stack.unlink()
    clock.now += 1
    assert scanner.look().vanished == ()
    clock.now += 10
    assert scanner.look().vanished == (str(stack),)
    write(stack)
    settled(scanner, clock, 1)
    assert settled(scanner, clock, 10) == ["a.mrcs"]


def test_a_file_removed_and_put_back_at_once_did_not_vanish(
    scanner: Scanner, clock: Clock, tmp_path: Path
) -> None:
    stack = write(tmp_path / "a.mrcs")
    settled(scanner, clock, 0)
    settled(scanner, clock, 10)
    stack.unlink()
    clock.now += 5
    scanner.look()
    write(stack, "another")
    clock.now += 5
    assert scanner.look().vanished == ()
    assert settled(scanner, clock, 10) == ["a.mrcs"]


def test_a_file_that_is_rewritten_and_then_removed_vanished(
    scanner: Scanner, clock: Clock, tmp_path: Path
) -> None:
    stack = write(tmp_path / "a.mrcs")
    settled(scanner, clock, 0)
    settled(scanner, clock, 10)
    write(stack, "another")
    clock.now += 5
    scanner.look()
    stack.unlink()
    clock.now += 5
    assert scanner.look() == Look(), "it may come back"
    clock.now += 5
    assert scanner.look() == Look()
    clock.now += 5
    assert scanner.look().vanished == (str(stack),)


def test_a_file_that_changed_since_it_settled_is_seen_at_once_and_settles_anew(
    scanner: Scanner, clock: Clock, tmp_path: Path
) -> None:
    stack = write(tmp_path / "a.mrcs")
    other = write(tmp_path / "b.mrcs")
    settled(scanner, clock, 0)
    settled(scanner, clock, 10)
    os.utime(tmp_path, ns=(1, 1))  # nothing of the folder's own changes
    scanner.look()
    with stack.open("a") as file:
        file.write("more")
    assert settled(scanner, clock, 10) == []
    assert not scanner.is_settled(str(stack))
    assert scanner.is_settled(str(other))
    assert settled(scanner, clock, 10) == ["a.mrcs"]
    assert scanner.is_settled(str(stack))


def test_a_disk_that_is_away_takes_nothing_with_it(
    scanner: Scanner, clock: Clock, tmp_path: Path
) -> None:
    for number in range(12):
        write(tmp_path / f"job/{number}.mrcs")
    settled(scanner, clock, 0)
    settled(scanner, clock, 10)
    (tmp_path / "job").rename(tmp_path.with_name("unmounted"))
    for _ in range(3):
        clock.now += 40
        look = scanner.look()
        assert (look.vanished, look.away) == ((), "it is empty, and was not")
    tmp_path.with_name("unmounted").rename(tmp_path / "job")
    clock.now += 40
    assert scanner.look() == type(look)()


def test_an_alias_of_a_job_is_not_a_second_job_and_a_link_out_is_followed(
    scanner: Scanner, clock: Clock, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write(tmp_path / "Extract/job009/a.mrcs")
    (tmp_path / "Extract/Alias").symlink_to("job009")
    elsewhere = tmp_path_factory.mktemp("scratch")
    write(elsewhere / "b.mrcs")
    (tmp_path / "scratch").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(elsewhere)
    settled(scanner, clock, 0)
    clock.now += 10
    below = [os.path.relpath(file.path, tmp_path) for file in scanner.look().settled]
    assert below == ["Extract/job009/a.mrcs", "scratch/b.mrcs"]


def test_of_several_links_to_a_file_elsewhere_one_counts_and_another_when_it_is_gone(
    scanner: Scanner, clock: Clock, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = write(tmp_path_factory.mktemp("elsewhere") / "x.mrcs")
    for name in ("b.mrcs", "a.mrcs", "c.mrcs"):
        (tmp_path / name).symlink_to(elsewhere)
    settled(scanner, clock, 0)
    assert settled(scanner, clock, 10) == ["a.mrcs"]
    assert scanner.seen_as(elsewhere) == str(tmp_path / "a.mrcs")
    (tmp_path / "a.mrcs").unlink()
    assert settled(scanner, clock, 1) == []
    assert settled(scanner, clock, 10) == ["b.mrcs"]
    assert settled(scanner, clock, 30) == []
    assert scanner.seen_as(elsewhere) == str(tmp_path / "b.mrcs")
