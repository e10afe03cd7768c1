"""Which particles can be extracted again, what RELION is then told, and what is said where it cannot be.

RELION itself is in tests/system/test_workflow.py; here a program of its name tells a version.
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryoray.errors import InputError, SettingsError
from cryoray.formats.mrc import StackWriter
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from cryoray.formats.volume import write_volume
from cryoray.integrations.extraction import (
    MissingMicrographsError,
    extractable,
    read_micrographs,
    write_some,
)
from cryoray.integrations.relion import Job, Relion, options_of
from cryoray.settings import Settings, SimulateSettings, WorkflowSettings, load
from cryoray.simulation import MICROGRAPHS, simulate
from cryoray.verbs.single_particle import STAGES, Workflow
from tests.formats.relion_rules import Version, unknown_options, violations
from tests.integrations.programs import relion

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("extraction")
    wanted = SimulateSettings(
        projects=1, images=12, per_micrograph=6, box=32, pixel_size=4.0, micrographs=True
    )
    return simulate(out, Settings(simulate=wanted))[0]


@pytest.fixture
def project(simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the simulated project, with a selection of its particles; RELION says 3.1.3."""
    (tmp_path / "bin").mkdir()
    relion(tmp_path / "bin", monkeypatch, "3.1.3")
    copy = shutil.copytree(simulated, tmp_path / "project")
    (copy / "External/job003").mkdir(parents=True)
    shutil.copy(copy / "particles.star", copy / "External/job003")
    return copy


def workflow(project: Path, **chosen: object) -> Workflow:
    given = WorkflowSettings.model_validate(chosen)
    return Workflow(project / "particles.star", Settings(workflow=given))


def selected(project: Path) -> Mapping[str, Job]:
    return {"select2d": Job(project, "External/job003", skipped=False)}


def edit(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def test_no_job_takes_the_folder_of_stacks_that_came_without_a_pipeline(project: Path) -> None:
    (project / "Polish/job017/more").mkdir(parents=True)
    driver = Relion(project)
    assert driver._counter() == 18
    (project / "Extract/job018").mkdir()
    with pytest.raises(InputError, match="Extract/job018: is there, though RELION's pipeline"):
        driver.run("Extract", {"do_reextract": "Yes"})


@pytest.mark.parametrize(
    ("version", "job_type"),
    [
        ("3.1.3", "_rlnJobType 5\n"),
        ("4.0.1", "_rlnJobTypeLabel relion.extract\n"),
        ("5.0.0", "_rlnJobTypeLabel relion.extract\n"),
    ],
)
def test_each_relion_is_told_in_its_own_words(
    project: Path, version: str, job_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relion(tmp_path / "bin", monkeypatch, version)
    way = workflow(project, micrographs=project / MICROGRAPHS, mpi=3)
    kind, options = way._reextract(selected(project))
    assert options == {
        "star_mics": MICROGRAPHS,
        "do_reextract": "Yes",
        "fndata_reextract": "External/job003/particles.star",
        "do_reset_offsets": "No",
        "do_recenter": "Yes",
        "extract_size": "32",
        "do_rescale": "No",
        "rescale": "32",
        "nr_mpi": "3",
    }
    written = tmp_path / "job.star"
    written.write_bytes(way.relion._job_star(kind, options))
    assert job_type in written.read_text()
    assert options_of(written) == options


def test_a_real_relion_5_has_these_options_and_says_what_particles_came_from(
    real_data: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_relion = options_of(real_data / "relion5-project/Extract/job009/job.star")
    way = workflow(project, micrographs=project / MICROGRAPHS)
    assert way._reextract(selected(project))[1].keys() <= of_relion.keys()
    there = tmp_path / "five"
    shutil.copytree(real_data / "relion5-project/Extract", there / "Extract")
    shutil.copytree(real_data / "relion5-project/CtfFind", there / "CtfFind")
    shutil.copy(real_data / "relion5-project/default_pipeline.star", there)
    relion(tmp_path / "bin", monkeypatch, "5.0.0")
    five = Workflow(there / "Extract/job009/particles.star", Settings())
    star, micrographs = five._micrographs()
    assert (star, micrographs.pixel_size) == ("CtfFind/job005/micrographs_ctf.star", 0.885)
    # As its own job had it: 256 px of the micrographs, rescaled to 64.
    assert (five.box, five._boxes(micrographs.pixel_size)) == (64, (256, 64))
    first = np.unique(parse(five.particles)["particles"].column("rlnMicrographName"))
    assert set(first) <= set(micrographs.names.values())


def test_the_box_follows_the_settings_and_the_job_that_particles_come_from(project: Path) -> None:
    (project / "Extract/job001/job.star").write_text(
        "data_joboptions_values\n\nloop_\n_rlnJobOptionVariable #1\n_rlnJobOptionValue #2\n"
        f"star_mics {MICROGRAPHS}\ndo_invert No\nwhite_dust 5\ndo_recenter No\n"
    )
    edit(project / MICROGRAPHS, (" 4.000000\n", " 1.000000\n"))  # binned by four, so it says
    for chosen, wanted in (
        ({}, (128, 32)),
        ({"rescaled_box": 64}, (128, 64)),
        ({"extract_box": 160}, (160, 160)),
        ({"extract_box": 160, "rescaled_box": 40}, (160, 40)),
    ):
        kind, options = workflow(project, **chosen)._reextract(selected(project))
        assert (int(options["extract_size"]), int(options["rescale"])) == wanted, chosen
        assert options["do_rescale"] == ("No" if wanted[0] == wanted[1] else "Yes")
        assert (options["do_invert"], options["white_dust"]) == ("No", "5")
        assert options["do_recenter"] == "Yes"
        assert kind == "Extract"


def test_settings_that_make_no_sense_are_refused_before_the_first_stage(
    project: Path, tmp_path: Path
) -> None:
    for chosen, said in (
        ({"extract_box": 101}, "multiple of 2"),
        ({"rescaled_box": 8}, "greater than or equal to 16"),
        ({"extract_box": 64, "rescaled_box": 100}, r"rescaled_box \(100\) is larger"),
    ):
        with pytest.raises(SettingsError, match=said):
            load(workflow=chosen)
    mine: dict[str, Any] = {"micrographs": project / MICROGRAPHS}
    with pytest.raises(SettingsError, match=r"rescaled_box \(64\) is larger than the box of 32 px"):
        workflow(project, **mine, rescaled_box=64)
    with pytest.raises(SettingsError, match="a box of 20 px of 4 Å does not hold particles of 90"):
        workflow(project, **mine, extract_box=20, diameter=90)
    with pytest.raises(InputError, match="not in RELION's project folder"):
        workflow(project, micrographs=tmp_path / "elsewhere.star")
    with pytest.raises(InputError, match=r"nowhere\.star: is not there; give workflow.micrographs"):
        workflow(project, micrographs=project / "nowhere.star")
    with pytest.raises(InputError, match="has no micrographs with their pixel size"):
        workflow(project, micrographs=project / "particles.star")
    assert "reextract" not in workflow(project, reextract=False, extract_box=20).stages()


def test_where_micrographs_are_not_there_particles_go_on_as_they_are(project: Path) -> None:
    given = {"micrographs": project / MICROGRAPHS}

    def left_out(**chosen: object) -> str:
        sentence = workflow(project, **chosen).left_out("reextract", selected(project))
        assert sentence is not None
        assert sentence.startswith(
            "reextract was left out, and particles went on as they were: "
        ), sentence
        return sentence

    assert workflow(project, **given).left_out("reextract", selected(project)) is None
    assert workflow(project).left_out("class2d", {}) is None
    assert "comes from no Extract job of this project" in left_out()
    first = project / "MotionCorr/job001/micrograph_0001.mrc"
    first.rename(first.with_suffix(".gone"))
    said = left_out(**given)
    there = len(set(open_source(project / "particles.star").micrograph))
    assert f"1 of the {there} micrographs" in said
    assert "MotionCorr/job001/micrograph_0001.mrc the first of them" in said
    first.with_suffix(".gone").rename(first)
    before = (project / MICROGRAPHS).read_text()
    edit(project / MICROGRAPHS, ("MotionCorr/job001/micrograph_0002.mrc 1\n", ""))
    assert f"1 of the {there} micrographs" in left_out(**given)
    # RELION takes a particle to be of each micrograph whose name is part of its own.
    (project / MICROGRAPHS).write_text(before + "MotionCorr/job001/0002.mrc 1\n")
    assert "would take particles of micrograph_0002.mrc to be of 0002.mrc" in left_out(**given)
    (project / MICROGRAPHS).write_text(before + "MotionCorr/job009/micrograph_0002.mrc 1\n")
    with pytest.raises(MissingMicrographsError, match="has a micrograph twice"):
        workflow(project, **given)
    (project / MICROGRAPHS).write_text(before)
    edit(project / "External/job003/particles.star", ("_rlnCoordinateY", "_rlnOther"))
    assert "has no rlnCoordinateY" in left_out(**given)


def test_a_particle_is_extractable_while_one_pixel_of_its_box_is_in_the_micrograph(
    tmp_path: Path,
) -> None:
    # x, y and origins in px of a micrograph of 100 × 60 px and 2 Å; the box is 20 px, from -10 to 9.
    cases = [
        (50, 30, 0, 0, True),
        (-9, 30, 0, 0, True),
        (-10, 30, 0, 0, False),
        (-10.7, 30, 0, 0, False),
        (-9.7, 30, 0, 0, True),  # RELION cuts the fraction off
        (109, 30, 0, 0, True),
        (110, 30, 0, 0, False),
        (50, 69, 0, 0, True),
        (50, 70, 0, 0, False),
        (0, 30, 9.4, 0, True),  # centred, it is nine px further to the left
        (0, 30, 9.6, 0, False),
        (100, 30, -9.4, 0, True),
        (100, 30, -9.6, 0, False),
        (50, 0, 0, 9.6, False),
    ]
    rows = "".join(f"{x} {y} a@b M/job002/m.mrc {2 * ox} {2 * oy}\n" for x, y, ox, oy, _ in cases)
    columns = ("CoordinateX", "CoordinateY", "ImageName", "MicrographName", "OriginXAngst")
    labels = "".join(f"_rln{name}\n" for name in (*columns, "OriginYAngst"))
    particles = tmp_path / "particles.star"
    particles.write_text(f"data_particles\n\nloop_\n{labels}{rows}\n")
    mics = tmp_path / "mics.star"
    mics.write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnMicrographPixelSize\n1 2.0\n\n"
        "data_micrographs\n\nloop_\n_rlnMicrographName\n_rlnOpticsGroup\nM/job007/m.mrc 1\n"
    )
    with StackWriter(tmp_path / "M/job007/m.mrc", 60, 100, "float32", 2.0) as writer:
        writer.append(np.zeros((1, 60, 100), np.float32))
    kept = extractable(tmp_path, particles, read_micrographs(mics), 20)
    assert kept.tolist() == [case[-1] for case in cases]
    write_some(tmp_path / "some.star", particles, kept)
    some = parse(tmp_path / "some.star")["particles"]
    assert some.numbers("rlnCoordinateX").tolist() == [c[0] for c in cases if c[-1]]


def as_relion_left_it(way: Workflow, kind: str, folder: Path, options: Mapping[str, str]) -> None:
    """The files of a job that later stages look for."""
    star = way.project / "particles.star"
    table = parse(star)["particles"]
    classified = star.read_text().replace(
        "_rlnRandomSubset #18", "_rlnRandomSubset #18\n_rlnClassNumber #19"
    )
    for row in range(len(table)):
        line = table.row_text(row)
        classified = classified.replace(line, f"{line} {1 + row % 2}")
    # The first of them lies far outside.
    classified = classified.replace(table.row_text(0), f"-900 {table.row_text(0).split(' ', 1)[1]}")
    made = {
        "Import": {"particles.star": star.read_text()},
        "Class2D": {"run_it003_data.star": classified},
        "Extract": {
            "particles.star": (way.project / options.get("fndata_reextract", "")).read_text()
            if kind == "Extract"
            else ""
        },
        "InitialModel": {"initial_model.mrc": ""},
        "Class3D": {
            "run_it003_data.star": classified,
            "run_it003_model.star": "data_model_classes\n\nloop_\n_rlnReferenceImage\n"
            "_rlnClassDistribution\na.mrc 1.0\n",
        },
        "Refine3D": {"run_half1_class001_unfil.mrc": ""},
        "MaskCreate": {"mask.mrc": ""},
        "PostProcess": {"postprocess.star": "data_general\n\n_rlnFinalResolution 12.5\n"},
    }
    for name, text in made[kind].items():
        (folder / name).write_text(text)
    if kind == "Refine3D":
        axis = np.arange(16) - 8
        ball = (np.add.outer(np.add.outer(axis**2, axis**2), axis**2) < 16).astype(np.float32)
        write_volume(folder / "run_class001.mrc", ball, 4.0)


def test_options_that_relion_does_not_know_are_named_and_so_does_the_report(project: Path) -> None:
    way = workflow(project, micrographs=project / MICROGRAPHS, judge=False, reextract=False)
    made: list[str] = []

    def work(stage: str, before: Mapping[str, Job]) -> Job:
        kind, options = getattr(way, f"_{stage}")(before)
        made.append(stage)
        dropped = ("sgd_ini_iter", "do_pad1") if stage == "initial" else ()
        job = Job(project, f"{kind}/job{100 + len(made)}", skipped=False, dropped=dropped)
        job.folder.mkdir(parents=True)
        as_relion_left_it(way, kind, job.folder, options)
        return job

    said: list[str] = []
    page = way.go(work, said.append)
    sentence = "initial went without sgd_ini_iter, do_pad1, which RELION 3.1.3 does not know"
    assert said == [sentence]
    assert html.escape(f"Without cryoray, {sentence}") in page.read_text()


RELEASES: Mapping[Version, str] = {"3.1": "3.1.3", "4": "4.0.1", "5": "5.0.1"}


@pytest.mark.parametrize("version", RELEASES)
def test_every_stage_has_options_that_relion_of_this_version_knows(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: Version
) -> None:
    relion(tmp_path / "bin", monkeypatch, RELEASES[version])
    way = workflow(project, micrographs=project / MICROGRAPHS, judge=False)
    assert way.relion.version[0] == int(version[0])
    stages: list[str] = []

    def work(stage: str, before: Mapping[str, Job]) -> Job:
        kind, options = getattr(way, f"_{stage}")(before)
        assert unknown_options(kind, version, list(options)) == []
        job = tmp_path / "job.star"
        job.write_bytes(way.relion._job_star(kind, options))
        assert violations(job, version, "job") == []
        stages.append(stage)
        done = Job(project, f"{kind}/job{100 + len(stages)}", skipped=False)
        done.folder.mkdir(parents=True)
        as_relion_left_it(way, kind, done.folder, options)
        return done

    way.go(work)
    assert stages == [stage for stage in STAGES if not stage.startswith("select")]
    judged = way._external("particles.star", {"ensemble": "particle", "review": "No"})
    assert unknown_options("External", version, list(judged)) == []


@pytest.mark.parametrize("there", [True, False])
def test_the_run_says_what_was_lost_or_left_out_and_so_does_its_report(
    project: Path, there: bool
) -> None:
    way = workflow(project, micrographs=project / MICROGRAPHS, judge=False)
    given: dict[str, str] = {}

    def work(stage: str, before: Mapping[str, Job]) -> Job:
        kind, options = getattr(way, f"_{stage}")(before)
        given[stage] = options.get("fndata_reextract") or options.get("fn_img", "")
        job = Job(project, f"{kind}/job{100 + len(given)}", skipped=False)
        job.folder.mkdir(parents=True)
        as_relion_left_it(way, kind, job.folder, options)
        return job

    if not there:
        for file in (project / "MotionCorr/job001").glob("*.mrc"):
            file.unlink()
    said: list[str] = []
    page = way.go(work, said.append)
    told = json.loads((page.parent / "without.json").read_text())
    assert told["notes"] == said
    assert len(said) == 1
    assert page.read_text().count(html.escape(f"Without cryoray, {said[0]}")) == 1
    stages = [stage for stage in STAGES if not stage.startswith("select")]
    counts = {stage["stage"]: stage["particles"] for stage in told["stages"]}
    if there:
        # Without cryoray all are extracted again: as they were, they would be another map's particles.
        assert given["reextract"] == "cryoray_workflow/Class2D-job102-run_it003_data-32.star"
        assert "reextract lost 1 of 12 particles at the edges of micrographs" in said[0]
        assert list(counts) == stages
        assert [counts[stage] for stage in stages] == [12, 12, *[11] * 6]
        assert given["initial"] == given["refine"] == "Extract/job103/particles.star"
    else:
        assert "reextract was left out, and particles went on as they were: " in said[0]
        every = len(set(open_source(project / "particles.star").micrograph))
        assert f"{every} of the {every} micrographs" in said[0]
        stages.remove("reextract")
        assert list(counts) == stages
        assert set(counts.values()) == {12}
        assert given["initial"] == given["refine"] == "Import/job101/particles.star"
