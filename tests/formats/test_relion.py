"""RELION's jobs: which of their files is the source, from where names are meant, what RELION would say."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryoray.errors import FormatError
from cryoray.formats.relion import complaint, project
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
