"""What a request may read, and which rows it means."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cryoray.errors import FormatError, InputError
from cryoray.formats import companion
from cryoray.formats.opening import OutsideError, Scope
from cryoray.formats.source import open_source
from cryoray.preparation.described import with_metadata
from cryoray.preparation.plan import grouped, plan
from cryoray.records import Kind
from cryoray.serving.sources import (
    AbsentError,
    Catalogue,
    Chosen,
    TooMuchError,
)
from cryoray.session.cache import Cache
from cryoray.settings import PreparationSettings
from tests.examples import (
    FEATURES,
    particles,
    sparse_stack,
    write_project,
    write_stack,
    write_star,
)
from tests.formats.files import write_cs_job

PREPARATION = PreparationSettings(box=32, features=FEATURES, contrast="bright")


def confine(path: str | Path, roots: list[Path]) -> Path:
    return Scope(tuple(roots)).confine(path)


class Chooser:
    """A catalogue and the scope in which it is asked."""

    def __init__(self, roots: list[Path], max_rows: int) -> None:
        self.catalogue, self.scope = Catalogue(max_rows), Scope(tuple(roots))

    def choose(
        self,
        source: Path,
        rows: tuple[int, int] | None,
        kind: Kind,
        preparation: PreparationSettings,
        together: int,
    ) -> Chosen:
        return self.catalogue.choose(source, rows, kind, preparation, together, self.scope)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A root with a stack, and a folder outside with another."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
        write_stack(folder / "a.mrcs", particles(4))
    return root, outside


def test_what_lies_under_a_root_is_allowed(places: tuple[Path, Path]) -> None:
    root, outside = places
    assert confine(root / "a.mrcs", [root]) == root / "a.mrcs"
    assert confine("a.mrcs", [root]) == root / "a.mrcs"
    assert confine("b.mrcs", [root]) == root / "b.mrcs"  # whether it is there is another question
    (outside / "b.mrcs").touch()
    assert confine("b.mrcs", [root, outside]) == outside / "b.mrcs"


@pytest.mark.parametrize(
    "path",
    [
        "../outside/a.mrcs", "{outside}/a.mrcs", "{root}/../outside/a.mrcs", "/etc/passwd", "/",
        "link.mrcs", "folder/a.mrcs", "folder/../a.mrcs", "nul\0", "x" * 5000, "../rootless",
        "../outside/absent.mrcs",
    ],
)  # fmt: skip
def test_nothing_else_is_by_dots_nor_links(places: tuple[Path, Path], path: str) -> None:
    root, outside = places
    (root / "link.mrcs").symlink_to(outside / "a.mrcs")
    (root / "folder").symlink_to(outside)
    (root.parent / "rootless").touch()  # begins with the root's name
    with pytest.raises(OutsideError, match="none of the folders"):
        confine(path.format(root=root, outside=outside), [root])


def test_a_star_file_may_not_lead_outside_either(places: tuple[Path, Path]) -> None:
    root, outside = places
    row = "mic 1 9000 9000 4"
    star = write_star(root / "p.star", [f"1@a.mrcs {row}", f"1@{outside}/a.mrcs {row}"])
    with pytest.raises(OutsideError, match="outside/a"):
        Chooser([root], 10).choose(star, (0, 1), "particle", PREPARATION, 10)


def test_ranges_are_cut_to_what_is_judged_together(project: Path) -> None:
    whole = plan(open_source(project), PREPARATION, 64)
    cut = [part for few in grouped(whole.ranges, 64, 16) for part in few]
    assert max(len(part.rows) for part in cut) == 16
    for name in ("rows", "frames", "pixel_size", "features"):
        pieces, wholes = (
            np.concatenate([getattr(part, name) for part in parts]) for parts in (cut, whole.ranges)
        )
        np.testing.assert_array_equal(pieces, wholes)


def test_a_request_means_the_sources_rows(project: Path) -> None:
    catalogue = Chooser([project.parent], 200)
    chosen = catalogue.choose(project, (20, 120), "particle", PREPARATION, 16)
    rows = np.sort(np.concatenate([part.rows for part in chosen.ranges]))
    np.testing.assert_array_equal(rows, np.arange(20, 120))
    assert chosen.rows == 100
    assert catalogue.choose(project, None, "particle", PREPARATION, 16).rows == 175


def test_a_few_rows_of_a_huge_stack_take_little_memory(tmp_path: Path) -> None:
    images = 1_000_000
    sparse_stack(tmp_path / "huge.mrcs", images, 8, 8)
    chooser = Chooser([tmp_path], 10)
    tracemalloc.start()
    try:
        chosen = chooser.choose(tmp_path / "huge.mrcs", (0, 5), "particle", PREPARATION, 16)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert chosen.images.tolist() == [f"{n:06d}@huge.mrcs" for n in range(1, 6)]
    assert (
        peak < 50 * images
    )  # bytes; with a name for each image and a sort of all of them it was 180


def test_requests_that_cannot_be_met_say_why(project: Path) -> None:
    catalogue = Chooser([project.parent], 100)

    def choose(source: Path, rows: tuple[int, int]) -> None:
        catalogue.choose(source, rows, "particle", PREPARATION, 16)

    with pytest.raises(InputError, match=r"has 175 rows, and \[170, 176\] were requested"):
        choose(project, (170, 176))
    with pytest.raises(TooMuchError, match="101 rows are more than the 100"):
        choose(project, (0, 101))
    with pytest.raises(AbsentError):
        choose(project.with_name("absent.star"), (0, 1))
    with pytest.raises(AbsentError):
        choose(project.parent, (0, 1))


def test_a_stack_gets_the_metadata_of_the_star_file_above_it(project: Path) -> None:
    stack = project.parent / "Extract/job001/mic_2.mrcs"
    catalogue = Chooser([project.parent], 100)
    chosen = catalogue.choose(stack, None, "particle", PREPARATION, 100)
    star = open_source(project)
    of_star = plan(star, PREPARATION, 64)
    (from_star,) = (part for part in of_star.ranges if part.stack.path == stack)
    (from_stack,) = chosen.ranges
    np.testing.assert_array_equal(from_stack.rows, np.arange(35))
    np.testing.assert_array_equal(from_stack.frames, from_star.frames)
    np.testing.assert_array_equal(from_stack.features, from_star.features)
    assert np.isfinite(from_stack.features).all()
    assert chosen.images.tolist() == star.images[from_star.rows].tolist()


def test_images_that_the_star_file_leaves_out_are_still_there(tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "mic.mrcs", particles(5))
    row = "mic.mrc 1 20000 20000 4"
    write_star(
        tmp_path / "mic_extract.star",
        [f"000002@mic.mrcs {row}", "000004@mic.mrcs short", f"9@mic.mrcs {row}", f"1@b.mrcs {row}"],
    )
    chosen = Chooser([tmp_path], 10).choose(stack, (0, 5), "particle", PREPARATION, 10)
    (part,) = chosen.ranges
    # A row that is cut short names no image that one could rely on.
    np.testing.assert_array_equal(
        np.isfinite(part.features[:, 0]), [False, True, False, False, False]
    )
    assert chosen.quarantined == ()
    assert chosen.images.tolist() == [f"00000{i}@mic.mrcs" for i in range(1, 6)]


def test_of_two_rows_on_one_image_the_first_describes_it(tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "mic.mrcs", particles(2))
    rows = [f"1@mic.mrcs mic.mrc 1 {defocus} {defocus} 4" for defocus in (10000, 20000)]
    write_star(tmp_path / "mic.star", rows)
    found = companion.find(stack).companion
    assert found is not None
    assert with_metadata(open_source(stack), found).metadata["rlnDefocusU"][0] == 10000


def test_a_bare_stack_s_particles_have_all_neighbours_that_its_star_file_places(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        write_stack(tmp_path / f"{name}.mrcs", particles(2))
    rows = [f"{i}@{name}.mrcs mic.mrc {x} 500" for x, i, name in
            ((100, 1, "a"), (110, 1, "b"), (900, 2, "a"), (920, 2, "b"))]  # fmt: skip
    (tmp_path / "particles.star").write_text(
        "\ndata_optics\n\nloop_\n_rlnImagePixelSize #1\n_rlnMicrographPixelSize #2\n"
        "_rlnImageSize #3\n2 2 40\n\ndata_particles\n\nloop_\n_rlnImageName #1\n"
        "_rlnMicrographName #2\n_rlnCoordinateX #3\n_rlnCoordinateY #4\n" + "\n".join(rows) + "\n"
    )
    near = PREPARATION.model_copy(update={"features": ("neighbour_distance",)})
    catalogue = Chooser([tmp_path], 10)
    (part,) = catalogue.choose(tmp_path / "a.mrcs", None, "particle", near, 10).ranges
    np.testing.assert_allclose(part.features[:, 0], np.log1p([10 / 40, 20 / 40]), rtol=1e-6)


def test_a_star_file_that_does_not_name_the_stack_says_nothing_about_it(tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "mic.mrcs", particles(2))
    (tmp_path / "elsewhere").mkdir()
    write_stack(tmp_path / "elsewhere/mic.mrcs", particles(2))
    write_star(tmp_path / "mic.star", ["1@elsewhere/mic.mrcs mic.mrc 1 9000 9000 4"])
    (part,) = Chooser([tmp_path], 10).choose(stack, None, "particle", PREPARATION, 10).ranges
    assert np.isnan(part.features[:, 0]).all()


def test_a_source_that_grows_is_read_again(tmp_path: Path) -> None:
    star = write_project(tmp_path, (10,))
    catalogue = Chooser([tmp_path], 100)
    assert catalogue.choose(star, None, "particle", PREPARATION, 16).rows == 10
    write_project(tmp_path, (10, 12))
    assert catalogue.choose(star, None, "particle", PREPARATION, 16).rows == 22


def test_contrast_is_decided_over_the_whole_source_once_all_of_it_is_there(tmp_path: Path) -> None:
    star = write_project(tmp_path, (40, 40))
    auto = PREPARATION.model_copy(update={"contrast": "auto"})
    dark = particles(40) * -1
    catalogue = Chooser([tmp_path], 100)
    late = tmp_path / "Extract/job001/mic_2.mrcs"
    late.unlink()
    assert not catalogue.choose(star, (0, 2), "particle", auto, 16).ranges[0].invert
    for number in (1, 2):
        write_stack(tmp_path / f"Extract/job001/mic_{number}.mrcs", 5 * dark)
    assert catalogue.choose(star, (0, 2), "particle", auto, 16).ranges[0].invert


def test_of_several_threads_one_opens_and_a_failure_is_tried_again() -> None:
    kept: Cache[int] = Cache(2)
    calls, gate = [], threading.Event()

    def make() -> int:
        calls.append(1)
        gate.wait(5)
        return 7

    threads = [threading.Thread(target=lambda: kept.get("a", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert kept.get("a", make) == 7
    assert len(calls) == 1

    def fail() -> int:
        raise FormatError("is damaged")

    with pytest.raises(FormatError):
        kept.get("b", fail)
    assert kept.get("b", lambda: 8) == 8
    kept.get("c", lambda: 9)
    assert kept.get("a", lambda: 1) == 1  # the oldest has gone


def test_a_cryosparc_table_is_a_source_with_its_own_metadata(tmp_path: Path) -> None:
    path = write_cs_job(tmp_path, n=5)
    preparation = PreparationSettings(box=16, features=("defocus",))
    chosen = Chooser([tmp_path], 100).choose(path, (1, 4), "particle", preparation, 10)
    assert chosen.images.tolist() == [f"{i:06d}@J19/extract/a.mrc" for i in (2, 3, 4)]
    assert [part.rows.tolist() for part in chosen.ranges] == [[1, 2, 3]]
    np.testing.assert_allclose(chosen.ranges[0].features[:, 0], [1.4501, 1.4502, 1.4503], rtol=1e-5)
    with pytest.raises(OutsideError):
        Chooser([tmp_path / "J26"], 100).choose(path, None, "particle", preparation, 10)
