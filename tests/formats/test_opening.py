"""Files are opened beneath the folders that may be read, whatever a link says between look and opening."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cryoray.errors import FormatError
from cryoray.formats import mrc, opening
from cryoray.formats.opening import OutsideError, Scope, open_beneath, open_file
from cryoray.formats.source import open_source
from cryoray.preparation.plan import plan
from cryoray.serving.preparer import prepared
from cryoray.settings import PreparationSettings
from tests.examples import particles, write_stack


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A root with a file in a folder, and a folder outside with another."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder, text in ((root / "inner", "ours"), (outside, "theirs")):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(text)
    return root, outside


@pytest.fixture(params=["openat2", "walk"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By the system call, and as where there is none."""
    if request.param == "walk":
        monkeypatch.setattr(opening, "_by_openat2", lambda folder, path: None)
    return str(request.param)


def text_of(path: Path, scope: Scope) -> str:
    with scope.reading(), open_file(path) as file:
        return file.read().decode()


def test_what_lies_beneath_is_opened(way: str, places: tuple[Path, Path]) -> None:
    root, _ = places
    scope = Scope((root,))
    assert text_of(root / "inner/a.txt", scope) == "ours"
    (root / "link.txt").symlink_to(root / "inner/a.txt")
    (root / "folder").symlink_to("inner")
    for name in ("link.txt", "folder/a.txt", "folder/../inner/a.txt"):
        assert text_of(root / name, scope) == "ours"
    with pytest.raises(FileNotFoundError):
        text_of(root / "inner/absent.txt", scope)
    assert text_of(places[1] / "a.txt", Scope()) == "theirs"


def test_what_lies_elsewhere_is_not(way: str, places: tuple[Path, Path]) -> None:
    root, outside = places
    (root / "link.txt").symlink_to(outside / "a.txt")
    (root / "folder").symlink_to(outside)
    for name in ("link.txt", "folder/a.txt", "../outside/a.txt"):
        with pytest.raises(OutsideError):
            text_of(root / name, Scope((root,)))


@pytest.mark.parametrize("name", ["inner", "inner/a.txt"])
def test_a_link_laid_after_the_look_is_not_followed(
    way: str, places: tuple[Path, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, outside = places
    real = Scope._real

    def swapped(self: Scope, found: Path, given: str | Path) -> Path:
        seen = real(self, found, given)
        target = root / name
        if not target.is_symlink():
            target.rename(root / "kept")
            target.symlink_to(outside if name == "inner" else outside / "a.txt")
        return seen

    monkeypatch.setattr(Scope, "_real", swapped)
    with pytest.raises(OutsideError):
        text_of(root / "inner/a.txt", Scope((root,)))


def test_the_system_call_is_there_or_the_walk_takes_its_place(places: tuple[Path, Path]) -> None:
    folder = os.open(places[0], os.O_PATH)
    try:
        descriptor = open_beneath(folder, Path("inner/a.txt"))
        assert os.read(descriptor, 9) == b"ours"
        os.close(descriptor)
        (places[0] / "link").symlink_to("inner")
        with pytest.raises(OSError, match="symbolic links"):
            open_beneath(folder, Path("link/a.txt"))
    finally:
        os.close(folder)


def test_a_sessions_folder_may_be_swapped_itself(places: tuple[Path, Path]) -> None:
    root, _ = places
    (root / "other").mkdir()
    (root / "other/b.txt").write_text("another's")
    scope = Scope((root,)).inside(root / "inner")
    assert text_of(root / "inner/a.txt", scope) == "ours"
    with pytest.raises(OutsideError):
        text_of(root / "other/b.txt", scope)
    (root / "inner").rename(root / "kept")
    (root / "inner").symlink_to(root / "other")
    with pytest.raises(OutsideError):
        text_of(root / "inner/b.txt", scope)


def test_a_folder_that_was_swapped_for_a_link_is_no_longer_a_sessions(
    places: tuple[Path, Path],
) -> None:
    root, _ = places
    (root / "other").mkdir()
    (root / "other/b.txt").write_text("another's")
    (root / "inner").rename(root / "kept")
    (root / "inner").symlink_to(root / "other")
    with pytest.raises(OutsideError):
        Scope((root,)).inside(root / "inner")


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="pipe"):
        open_file(tmp_path / "pipe")


def test_images_that_a_link_leads_to_by_now_are_quarantined(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
        write_stack(folder / "a.mrcs", particles(4))
    settings = PreparationSettings(box=32, contrast="bright")
    (part,) = plan(open_source(root / "a.mrcs"), settings, 64).ranges
    (root / "a.mrcs").unlink()
    os.utime(outside / "a.mrcs", ns=(part.stack.mtime_ns, part.stack.mtime_ns))
    (root / "a.mrcs").symlink_to(outside / "a.mrcs")
    assert len(prepared(part, settings, Scope()).rows.rows) == 4
    made = prepared(part, settings, Scope((root,))).rows
    assert len(made.rows) == 0
    assert [row for row, _ in made.quarantined] == [0, 1, 2, 3]
    assert "none of the folders" in made.quarantined[0][1]


@pytest.mark.long
def test_of_many_races_none_is_won(tmp_path: Path) -> None:
    """The attack of a neighbour who swaps a stack and a link to another's as fast as may be."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder, level in ((root, 1.0), (outside, 7.0)):
        folder.mkdir()
        write_stack(folder / "a.mrcs", np.full((1, 8, 8), level, np.float32))
    (root / "kept.mrcs").write_bytes((root / "a.mrcs").read_bytes())
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for lay in (_link(outside / "a.mrcs"), _copy(root / "kept.mrcs")):
                lay(root / "next")
                (root / "next").rename(root / "a.mrcs")

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        with Scope((root,)).reading():
            for _ in range(700):
                try:
                    stack = mrc.read_header(root / "a.mrcs")
                    seen.add(float(mrc.read_frames(stack, np.array([0])).mean()))
                except (OutsideError, FormatError):
                    continue
    finally:
        done.set()
        thread.join()
    assert seen <= {1.0}


def _link(target: Path) -> Callable[[Path], None]:
    return lambda at: at.symlink_to(target)


def _copy(source: Path) -> Callable[[Path], None]:
    return lambda at: (at.write_bytes(source.read_bytes()), None)[1]
