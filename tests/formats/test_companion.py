"""One rule says which STAR file describes a stack, whoever asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryoray.errors import InputError
from cryoray.formats import companion
from cryoray.formats.rows import Source
from tests.examples import particles, write_stack, write_star

ROW = "mic.mrc 1 9000 9000 4"


def described_by(stack: Path) -> str | None:
    found = companion.find(stack).companion
    return None if found is None else found.star.path.name


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    folder = tmp_path / "Extract/job002/Movies"
    folder.mkdir(parents=True)
    return write_stack(folder / "mic.mrcs", particles(3))


def rows(*names: str) -> list[str]:
    return [f"{name} {ROW}" for name in names]


def test_the_extraction_s_file_comes_before_the_stack_s_own_and_both_before_a_shared_one(
    stack: Path,
) -> None:
    assert described_by(stack) is None
    for name in ("../particles.star", "mic.star", "mic_extract.star"):
        write_star(stack.parent / name, rows("1@mic.mrcs" if name[0] != "." else f"1@{stack}"))
        assert described_by(stack) == Path(name).name


def test_a_shared_file_is_looked_for_three_folders_up_and_no_further(stack: Path) -> None:
    write_star(stack.parents[4] / "particles.star", rows(f"1@{stack}"))
    assert described_by(stack) is None
    write_star(stack.parents[3] / "particles.star", rows(f"1@{stack}"))
    assert described_by(stack) == "particles.star"


def test_files_that_were_copied_into_one_folder_still_find_each_other(tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "mic.mrcs", particles(3))
    write_star(
        tmp_path / "mic_extract.star", rows(*(f"{i}@Extract/job2/mic.mrcs" for i in (1, 2, 3)))
    )
    found = companion.find(stack)
    assert found.companion is not None
    assert found.companion.rows.tolist() == [0, 1, 2]
    # A file that is where its name says is the one that is meant.
    (tmp_path / "Extract/job2").mkdir(parents=True)
    write_stack(tmp_path / "Extract/job2/mic.mrcs", particles(3))
    assert companion.find(stack).companion is None


def test_a_file_beside_a_stack_that_was_not_used_is_named_with_the_reason(stack: Path) -> None:
    write_stack(stack.with_name("other.mrcs"), particles(1))
    star = write_star(stack.with_name("mic_extract.star"), rows("1@other.mrcs"))
    stack.with_name("mic.star").write_text("nothing of the sort")
    found = companion.find(stack)
    assert found.companion is None
    (one, why), (other, damaged) = found.unused
    assert (one, other) == (star, stack.with_name("mic.star"))
    assert why == f"names other stacks ({stack.with_name('other.mrcs')})"
    assert damaged


def test_who_opens_the_files_may_refuse_one(stack: Path) -> None:
    write_star(stack.with_name("mic.star"), rows("1@mic.mrcs"))

    def refuse(file: Path) -> Source:
        raise InputError("lies outside", file=file)

    found = companion.find(stack, open_star=refuse)
    assert found.companion is None
    assert "lies outside" in found.unused[0][1]
