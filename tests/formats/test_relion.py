"""RELION's jobs: which of their files is the source, from where names are meant, what RELION would say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.errors import FormatError
from cryoray.formats.relion import complaint, known, project
from cryoray.formats.source import find_sources, open_source
from tests.formats.files import write_particles, write_stack

MODEL = "data_model_classes\nloop_\n_rlnReferenceImage #1\n1@c.mrcs\n"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        if name.endswith("_data.star"):
            write_particles(path, ["1@a.mrcs"])
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(MODEL)


@pytest.mark.parametrize(
    ("files", "last"),
    [
        (
            ["run_it000_data.star", "run_it005_data.star", "run_it025_data.star"],
            "run_it025_data.star",
        ),
        (["run_it025_data.star", "run_ct25_it026_data.star"], "run_ct25_it026_data.star"),
        (["run_it030_data.star", "run_ct25_it030_data.star"], "run_ct25_it030_data.star"),
        (["run_it012_data.star", "run_data.star"], "run_data.star"),
    ],
)
def test_the_last_iteration_of_a_classification_or_refinement_is_the_source(
    tmp_path: Path, files: list[str], last: str
) -> None:
    touch(tmp_path / "Class3D/job020", *files)
    assert [path.name for path in find_sources(tmp_path / "Class3D/job020")] == [last]


def test_a_continued_run_goes_on_with_the_classes_of_the_first(tmp_path: Path) -> None:
    touch(tmp_path, "run_it025_model.star", "run_ct25_it040_model.star", "other_it003_model.star")
    assert [path.name for path in find_sources(tmp_path, "class2d")] == [
        "other_it003_model.star",
        "run_ct25_it040_model.star",
    ]


def test_an_optimiser_stands_for_the_data_and_the_model_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "default_pipeline.star").touch()
    job = tmp_path / "Class2D/job006"
    touch(job, "run_it025_data.star", "run_it025_model.star")
    optimiser = job / "run_it025_optimiser.star"
    optimiser.write_text(
        "data_optimiser_general\n\n_rlnModelStarFile Class2D/job006/run_it025_model.star\n"
        "_rlnExperimentalDataStarFile Class2D/job006/run_it025_data.star\n"
    )
    assert open_source(optimiser).path == job / "run_it025_data.star"
    assert open_source(optimiser, "class2d").path == job / "run_it025_model.star"
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    for file in job.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    (tmp_path / "Class2D").rename(tmp_path / "gone")
    assert open_source(copied / optimiser.name).path == copied / "run_it025_data.star"
    (copied / "run_it025_data.star").unlink()
    with pytest.raises(FormatError, match="names a file that is not there"):
        open_source(copied / optimiser.name)


def test_a_model_of_3d_classes_is_no_source_of_images(tmp_path: Path) -> None:
    path = tmp_path / "run_it025_model.star"
    path.write_text("data_model_general\n_rlnReferenceDimensionality 3\n\n" + MODEL)
    with pytest.raises(
        FormatError, match=r"describes 3D classes.*; give --kind class3d, or the job's particles"
    ):
        open_source(path, "class2d")


@pytest.mark.parametrize("mark", ["default_pipeline.star", ".gui_class2djob.star"])
def test_names_are_meant_from_the_project_even_where_the_job_has_such_a_file(
    tmp_path: Path, mark: str
) -> None:
    (tmp_path / mark).touch()
    job = tmp_path / "Extract/job009"
    write_particles(job / "particles.star", ["1@Extract/job009/a.mrcs", "1@Extract/gone.mrcs"])
    (job / "default_pipeline.star").touch()  # RELION 5 leaves a copy in each job
    write_stack(tmp_path / "Extract/job009/a.mrcs", 1)
    write_stack(job / "Extract/job009/a.mrcs", 1)  # of the same name, but not the project's
    assert project(job) == tmp_path
    assert open_source(job).stacks == (
        tmp_path / "Extract/job009/a.mrcs",
        tmp_path / "Extract/gone.mrcs",
    )


def particles(
    tmp_path: Path, optics: str, columns: str = "_rlnImageName\n_rlnOpticsGroup\n"
) -> Path:
    path = tmp_path / "particles.star"
    row = "1@a.mrcs 3\n" if "Optics" in columns else "1@a.mrcs\n"
    path.write_text(f"{optics}\ndata_particles\nloop_\n{columns}{row}")
    return path


OPTICS = "data_optics\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n_rlnSphericalAberration\n"


@pytest.mark.parametrize(
    ("optics", "columns", "said"),
    [
        (OPTICS + "_rlnImagePixelSize\n3 300 2.7 1.1\n", None, None),
        ("", "_rlnImageName\n", None),  # RELION 3.0, which RELION converts
        ("", None, "seems to be from a previous version of Relion"),
        (
            OPTICS + "3 300 2.7\n",
            None,
            "not all necessary variables defined .*: rlnImagePixelSize or",
        ),
        (OPTICS + "_rlnImagePixelSize\n1 300 2.7 1.1\n", None, "groups were not defined .*: 3"),
        (
            OPTICS + "_rlnImagePixelSize\n1 300 2.7 1.1\n",
            "_rlnImageName\n",
            "Failed to get optics group for particle #0",
        ),
    ],
)
def test_what_relion_would_say_is_said_in_its_words(
    tmp_path: Path, optics: str, columns: str | None, said: str | None
) -> None:
    path = particles(tmp_path, optics, columns or "_rlnImageName\n_rlnOpticsGroup\n")
    heard = complaint(open_source(path))
    if said is None:
        assert heard is None
    else:
        assert heard is not None
        with pytest.raises(ValueError, match=said):
            raise ValueError(heard)


def test_a_column_is_not_lost_to_a_missing_number_in_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "particles.star"
    path.write_text(
        "data_optics\nloop_\n_rlnOpticsGroupName\n_rlnOpticsGroup\n_rlnImagePixelSize\n"
        "old 1 <NA>\nnew 2 2.5\n\ndata_particles\nloop_\n_rlnImageName\n_rlnOpticsGroup\n"
        "_rlnDefocusU\n_rlnMagnification\n_rlnDetectorPixelSize\n_rlnGroupName\n"
        '1@a.mrcs 1 None 5e4 10 7\n2@a.mrcs 2 9000 5e4 10 "8"\n3@a.mrcs 2 "" 5e4 10 9\n'
    )
    source = open_source(path)
    np.testing.assert_array_equal(source.metadata["rlnDefocusU"], [np.nan, 9000, np.nan])
    # Where the optics group does not say, magnification and detector do.
    np.testing.assert_array_equal(source.pixel_size, np.array([2, 2.5, 2.5], np.float32))
    assert "rlnGroupName" not in source.metadata


def test_text_in_a_column_of_numbers_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "particles.star"
    path.write_text("data_\nloop_\n_rlnImageName\n_rlnDefocusU\n1@a.mrcs 9000,5\n2@a.mrcs 9001\n")
    np.testing.assert_array_equal(open_source(path).metadata["rlnDefocusU"], [np.nan, 9001])
    assert f"{path}, row 1: rlnDefocusU is '9000,5', which is not a number" in caplog.text


def test_one_particle_and_one_optics_group_without_a_loop(tmp_path: Path) -> None:
    path = tmp_path / "particles.star"
    path.write_text(
        "data_optics\n\n_rlnOpticsGroup\t1\n_rlnImagePixelSize\t2.0\n_rlnVoltage\t300\n"
        "_rlnSphericalAberration\t2.7\n\ndata_particles\n\n_rlnImageName\t000002@a.mrcs\n"
        "_rlnMicrographName\t'My Grid/m.mrc'\n_rlnOpticsGroup\t1\n_rlnDefocusU\t9000.0\n"
    )
    write_stack(tmp_path / "a.mrcs", 2)
    assert find_sources(tmp_path) == [path]
    source = open_source(tmp_path)
    assert source.images.tolist() == ["000002@a.mrcs"]
    assert source.micrograph.tolist() == ["My Grid/m.mrc"]
    assert source.metadata["rlnDefocusU"].tolist() == [9000]
    assert source.pixel_size.tolist() == [2]
    assert complaint(source) is None


def counted(tmp_path: Path, numbers: list[int]) -> Path:
    return write_particles(tmp_path / "particles.star", [f"{n:03d}@a.mrcs" for n in numbers])


def test_images_that_are_counted_from_0_are_refused(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", 5)
    path = counted(tmp_path, [3, 0, 4])
    with pytest.raises(
        FormatError,
        match=r"row 2: counts the images of a stack from 0 \('000@a.mrcs'\).*; add 1 to the number",
    ):
        open_source(path)
    (tmp_path / "a.mrcs").unlink()
    with pytest.raises(FormatError, match="row 2: counts the images of a stack from 0"):
        open_source(path)


def test_one_row_that_names_image_0_is_set_aside_where_the_last_is_named_by_relions_number(
    tmp_path: Path,
) -> None:
    write_stack(tmp_path / "a.mrcs", 5)
    source = open_source(counted(tmp_path, [1, 0, 5]))
    assert list(source.problems) == [1]
    assert source.frame.tolist() == [0, -1, 4]


@pytest.mark.parametrize(
    ("optics", "columns", "row", "mark"),
    [
        ("", "_rlnTomoName\n", "TS_01", "rlnTomoName"),
        ("", "_rlnCtfImage\n", "a_ctf.mrc", "rlnCtfImage"),
        ("", "_rlnTomoVisibleFrames\n", "[1,1,0]", "rlnTomoVisibleFrames"),
        ("_rlnImageDimensionality\n", "_rlnVoltage\n", "300", "rlnImageDimensionality 3"),
    ],
)
def test_particles_of_tomograms_are_refused(
    tmp_path: Path, optics: str, columns: str, row: str, mark: str
) -> None:
    path = tmp_path / "particles.star"
    path.write_text(
        f"data_optics\nloop_\n_rlnOpticsGroup\n_rlnImagePixelSize\n{optics}1 2 {3 if optics else ''}\n\n"
        f"data_particles\nloop_\n_rlnImageName\n_rlnOpticsGroup\n{columns}a.mrcs 1 {row}\n"
    )
    with pytest.raises(FormatError, match=rf"describes particles of tomograms \({mark}\)"):
        open_source(path)


def test_a_file_that_says_that_its_images_are_stacks_of_tilts_is_refused(tmp_path: Path) -> None:
    path = write_particles(tmp_path / "particles.star", ["1@a.mrcs"])
    path.write_text("data_general\n\n_rlnTomoSubTomosAre2DStacks 1\n" + path.read_text())
    with pytest.raises(FormatError, match="describes particles of tomograms"):
        open_source(path)


def test_a_name_that_is_not_utf8_is_set_aside_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write_particles(tmp_path / "particles.star", ["1@a.mrcs", "1@X.mrcs", "2@a.mrcs"])
    path.write_bytes(
        path.read_bytes().replace(b"1@X.mrcs", b"1@\xe9.mrcs").replace(b"mic0", b"m\xef0")
    )
    source = open_source(path)
    assert source.images.tolist() == ["1@a.mrcs", "1@\\xe9.mrcs", "2@a.mrcs"]
    assert source.problems == {
        1: "has an image name with bytes that are not UTF-8: rename the file"
    }
    assert source.stack.tolist() == [0, -1, 0]
    assert source.micrograph.tolist() == ["m\\xef0.mrc", "mic1.mrc", "m\\xef0.mrc"]


def test_relion_would_refuse_a_file_for_a_row_that_is_set_aside_here(tmp_path: Path) -> None:
    path = write_particles(tmp_path / "particles.star", ["1@a.mrcs", "2@a b.mrcs"])
    said = complaint(open_source(path))
    assert str(said).startswith("A line in the STAR file contains more or fewer columns than the")


@pytest.mark.real
def test_relions_own_files_of_a_real_project(real_data: Path) -> None:
    job = real_data / "relion5-project/Class2D/job010"
    optimiser = job / "run_it020_optimiser.star"
    assert open_source(optimiser).path == job / "run_it020_data.star"
    assert open_source(optimiser, "class2d").path == job / "run_it020_model.star"
    assert complaint(open_source(job / "run_it025_data.star")) is None
    extract = real_data / "relion5-project/Extract/job009"
    assert complaint(open_source(extract)) is None
    one = extract / "Movies/20170629_00021_frameImage_extract.star"
    assert "no table data_optics" in str(complaint(open_source(one)))
    assert open_source(one).name == "relion5-project"
    assert open_source(one).stacks[0] == extract / "Movies/20170629_00021_frameImage.mrcs"


def test_what_relion_does_not_know_is_no_number() -> None:
    written = np.array([4.5, 999, -999, np.inf, np.nan, 0, 998.9], np.float32)
    np.testing.assert_allclose(
        known(written), [4.5, np.nan, np.nan, np.nan, np.nan, 0, 998.9], rtol=1e-6
    )
    assert np.isnan(known(np.array(999)))
