"""Sources of every dialect, opened as one table of rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cryoray.errors import FormatError, InputError
from cryoray.formats.relion import split_names
from cryoray.formats.source import find_sources, open_source
from cryoray.records import Kind
from tests.formats.files import write_particles, write_stack

PARTICLE: Kind = "particle"
CLASS: Kind = "class2d"


def names(count: int, stack: str = "Extract/job001/a.mrcs") -> list[str]:
    return [f"{i:06d}@{stack}" for i in range(1, count + 1)]


def test_image_names_are_taken_apart() -> None:
    given = {
        "1@a.mrcs": (0, "a.mrcs"),
        "000012@b/c@2.mrcs": (11, "b/c@2.mrcs"),
        "3@x.ctf:mrc": (2, "x.ctf"),
        "alone.mrc": (0, "alone.mrc"),
        "0@a.mrcs": (-1, None),
        "x@a.mrcs": (-1, None),
        "@a.mrcs": (-1, None),
        "-1@a.mrcs": (-1, None),
        "٣@a.mrcs": (-1, None),
        "99999999999999999999@a.mrcs": (-1, None),
        "words": (-1, None),
        "": (-1, None),
    }
    listed = list(given)
    frame, stacks, index = split_names(pa.chunked_array([listed[:5], listed[5:]]))
    assert [(int(f), stacks[i] if i >= 0 else None) for f, i in zip(frame, index, strict=True)] == [
        *given.values()
    ]
    assert stacks == ["a.mrcs", "b/c@2.mrcs", "x.ctf", "alone.mrc"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_relion_31_file_with_two_optics_groups(tmp_path: Path, end: str) -> None:
    path = write_particles(tmp_path / "particles.star", names(4), [2, 1, 7, 2], end)
    write_stack(tmp_path / "Extract/job001/a.mrcs", 4)
    source = open_source(tmp_path)
    assert source.path == path
    assert source.images.tolist() == names(4)
    assert source.stacks == (tmp_path / "Extract/job001/a.mrcs",)
    assert source.frame.tolist() == [0, 1, 2, 3]
    assert source.micrograph.tolist() == ["mic0.mrc", "mic1.mrc"] * 2
    np.testing.assert_array_equal(source.pixel_size, np.array([2.5, 1.5, np.nan, 2.5], np.float32))
    np.testing.assert_array_equal(source.metadata["rlnVoltage"], [200, 300, np.nan, 200])
    np.testing.assert_array_equal(source.metadata["rlnDefocusU"], [1000, 1001, 1002, 1003])
    assert "rlnImageName" not in source.metadata
    assert source.name == tmp_path.name


def test_stacks_are_found_from_the_project_folder_above(tmp_path: Path) -> None:
    write_stack(tmp_path / "Extract/job001/a.mrcs", 2)
    job = tmp_path / "Class2D/job002"
    write_particles(job / "run_it003_data.star", [*names(2), *names(1, "gone/b.mrcs")])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/job002").symlink_to(job)
    for folder in (job, tmp_path / "elsewhere/job002"):
        source = open_source(folder)
        assert source.stacks == (tmp_path / "Extract/job001/a.mrcs", tmp_path / "gone/b.mrcs")
        assert source.stack.tolist() == [0, 0, 1]
        assert source.name == tmp_path.name


def test_two_spellings_are_one_stack(tmp_path: Path) -> None:
    write_particles(tmp_path / "particles.star", ["1@./a.mrcs", "2@a.mrcs", f"3@{tmp_path}/a.mrcs"])
    write_stack(tmp_path / "a.mrcs", 3)
    source = open_source(tmp_path / "particles.star")
    assert source.stacks == (tmp_path / "a.mrcs",)
    assert source.stack.tolist() == [0, 0, 0]


def test_relion_30_has_its_pixel_size_in_detector_and_magnification(tmp_path: Path) -> None:
    path = tmp_path / "old.star"
    path.write_text(
        "data_\nloop_\n_rlnMagnification\n_rlnDetectorPixelSize\n_rlnImageName\n"
        "50000 5.0 1@a.mrcs\n0 5.0 2@a.mrcs\n"
    )
    np.testing.assert_array_equal(open_source(path).pixel_size, np.array([1.0, np.nan], np.float32))


def test_rows_that_name_no_image_or_are_short_are_problems(tmp_path: Path) -> None:
    path = tmp_path / "particles.star"
    path.write_text(
        "data_particles\nloop_\n_rlnImageName\n_rlnDefocusU\n1@a.mrcs 5\nnoise 6\n2@a.mrcs\n"
    )
    source = open_source(path)
    assert len(source) == 3
    assert source.stack.tolist() == [0, -1, -1]
    assert source.problems == {
        1: "'noise' names no image, which would read 000001@stack.mrcs",
        2: "has 1 field, and its table 2 columns",
    }


def test_a_model_is_a_source_of_classes(tmp_path: Path) -> None:
    model = (
        "data_model_general\n_rlnPixelSize 3.5\n\ndata_model_classes\nloop_\n_rlnReferenceImage #1\n"
        "_rlnEstimatedResolution #2\n1@run_it{}_classes.mrcs inf\n2@run_it{}_classes.mrcs -nan\n"
    )
    for iteration in ("000", "020", "100"):
        (tmp_path / f"run_it{iteration}_model.star").write_text(model.replace("{}", iteration))
    (tmp_path / "other_model.star").write_text(model)
    assert [path.name for path in find_sources(tmp_path, CLASS)] == [
        "other_model.star",
        "run_it100_model.star",
    ]
    source = open_source(tmp_path / "run_it100_model.star", CLASS)
    np.testing.assert_array_equal(source.pixel_size, np.array([3.5, 3.5], np.float32))
    np.testing.assert_array_equal(source.metadata["rlnEstimatedResolution"], [np.inf, np.nan])
    with pytest.raises(FormatError, match=r"has no column rlnImageName.*; give --kind class2d"):
        open_source(source.path)


def test_bare_stacks_of_a_folder_are_one_source(tmp_path: Path) -> None:
    write_stack(tmp_path / "b.mrcs", 2)
    write_stack(tmp_path / "a.mrcs", 3)
    assert find_sources(tmp_path) == [tmp_path]
    source = open_source(tmp_path)
    assert source.images.tolist() == [*names(3, "a.mrcs"), *names(2, "b.mrcs")]
    assert source.stack.tolist() == [0, 0, 0, 1, 1]
    assert source.frame.tolist() == [0, 1, 2, 0, 1]
    assert open_source(tmp_path / "b.mrcs").images.tolist() == names(2, "b.mrcs")


def test_no_row_of_a_damaged_bare_stack_vanishes(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", 3)
    os.truncate(write_stack(tmp_path / "b.mrcs", 3), 1024 + 256)
    (tmp_path / "c.mrcs").write_text("nothing")
    source = open_source(tmp_path)
    assert source.images.tolist() == [*names(3, "a.mrcs"), *names(3, "b.mrcs"), "000001@c.mrcs"]
    assert source.stack.tolist() == [0, 0, 0, 1, 1, 1, -1]
    assert list(source.problems) == [6]
    assert source.problems[6].startswith("c.mrcs is not an MRC file: 7 bytes")
    with pytest.raises(FormatError, match=r"c\.mrcs: is not an MRC file"):
        open_source(tmp_path / "c.mrcs")


def test_a_stack_that_a_star_file_names_is_no_source_of_its_own(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", 2)
    write_particles(tmp_path / "some.star", names(2, "a.mrcs"))
    assert find_sources(tmp_path) == [tmp_path / "some.star"]
    (tmp_path / "some.star").rename(tmp_path / "some_selected.star")
    with pytest.raises(InputError, match="there is nothing to read in this folder; give"):
        find_sources(tmp_path)
    write_stack(tmp_path / "b.mrcs", 2)
    assert open_source(tmp_path).stacks == (tmp_path / "b.mrcs",)


def test_a_folder_of_jobs_gives_the_source_of_each(tmp_path: Path) -> None:
    first = write_particles(tmp_path / "job001/particles.star", names(1))
    write_particles(tmp_path / "job002/run_it001_data.star", names(1))
    last = write_particles(tmp_path / "job002/run_it025_data.star", names(1))
    assert find_sources(tmp_path) == [first, last]
    with pytest.raises(InputError, match=r"holds 2 sources \(job001/particles.star, job002"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "kind", "sentence"),
    [
        (
            "x.txt",
            "",
            PARTICLE,
            r"is of a kind that cryoray does not read; give a RELION \.star, a cryoSPARC",
        ),
        (
            "x.star",
            "data_images\nloop_\n_rlnMicrographName\nm\n",
            PARTICLE,
            "has no column rlnImageName",
        ),
        ("x.star", "data_images\nloop_\n_rlnImageName\n", PARTICLE, "has no rows in its table"),
        ("particles.star", "words", PARTICLE, "is not a STAR file"),
    ],
)
def test_what_is_no_source_is_told_in_one_sentence(
    tmp_path: Path, name: str, content: str, kind: Kind, sentence: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FormatError, match=f"{name}: {sentence}"):
        open_source(tmp_path / name, kind)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file or folder"):
        find_sources(tmp_path / "absent")
    with pytest.raises(InputError, match="there is no such file or folder"):
        open_source(tmp_path / "absent.star")
    with pytest.raises(InputError, match="there is nothing to read in this folder"):
        open_source(tmp_path)


@pytest.mark.real
def test_real_particles(real_data: Path) -> None:
    source = open_source(real_data / "particles-empiar10017")
    assert (len(source), len(source.stacks), len(set(source.micrograph))) == (2729, 1, 15)
    assert source.pixel_size[0] == np.float32(5.97375)
    assert not source.problems


@pytest.mark.real
@pytest.mark.parametrize("job", ["Extract/job009", "Class2D/job010"])
def test_a_real_relion_5_project(real_data: Path, job: str) -> None:
    source = open_source(real_data / "relion5-project" / job)
    assert (len(source), len(source.stacks)) == (2374, 10)
    assert all(stack.is_file() for stack in source.stacks)
    assert source.name == "relion5-project"
    assert {
        "rlnCtfMaxResolution",
        "rlnVoltage",
        "rlnAutopickFigureOfMerit",
    } <= source.metadata.keys()


@pytest.mark.real
def test_real_classes(real_data: Path) -> None:
    assert len(find_sources(real_data / "class-averages-human", CLASS)) == 6
    with pytest.raises(InputError, match="holds no source of kind particle; give --kind class2d"):
        find_sources(real_data / "class-averages-human")
    bare = open_source(real_data / "class-averages-relion4", CLASS)
    assert (len(bare), len(bare.stacks)) == (150, 2)
    model = open_source(real_data / "relion5-project/Class2D/job010", CLASS)
    assert model.path.name == "run_it025_model.star"
    assert (len(model), model.pixel_size[0]) == (50, np.float32(3.54))


@pytest.mark.real
def test_real_dialects_open(real_data: Path) -> None:
    found = find_sources(real_data / "formats/star")
    assert len(found) == 28
    opened = {path.name: open_source(path) for path in found if path.name != "one_loop.star"}
    assert not any(source.problems for source in opened.values())
    old = opened["sample_particles_relion30.star"]
    assert old.pixel_size[0] == pytest.approx(1.338, abs=1e-3)
    many = opened["relion31.6opticsgroups.star"]
    assert np.unique(many.pixel_size).tolist() == pytest.approx([1.24, 1.25])
