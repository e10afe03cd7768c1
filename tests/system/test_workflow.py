"""From particles to a map, by RELION itself in its own project, with cryoray's choices among its jobs."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryoray.boosting.within_job import review_band
from cryoray.errors import InputError
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.star import parse
from cryoray.integrations.relion import Job, Relion, RelionError, options_of
from cryoray.models.ensemble import Calibration, Ensemble
from cryoray.records import Kind
from cryoray.report.workflow import ASKED, looks
from cryoray.settings import Settings, SimulateSettings, WorkflowSettings
from cryoray.simulation import MICROGRAPHS, simulate
from cryoray.verbs.single_particle import STAGES, Done, Workflow
from cryoray.verbs.single_particle import arms as workflow_arms
from tests.examples import save_ensemble
from tests.system.programs import Relion as Run

pytestmark = pytest.mark.system

_COARSE = {"sampling": "30 degrees", "offset_range": "3", "offset_step": "2", "do_pad1": "Yes"}
#: So little of everything that it is minutes on two cores, and no more a map than it must be.
OPTIONS = {
    "class2d": {"psi_sampling": "12", "offset_range": "3", "offset_step": "2"},
    "initial": {
        **_COARSE,
        "sgd_ini_iter": "2",
        "sgd_inbetween_iter": "3",
        "sgd_fin_iter": "2",
        "sgd_ini_subset_size": "40",
        "sgd_fin_subset_size": "80",
        "sgd_write_iter": "7",
        "sgd_ini_resol": "80",
        "sgd_fin_resol": "70",
    },
    "class3d": {**_COARSE, "highres_limit": "60"},
    "refine": {
        **_COARSE,
        "auto_local_sampling": "30 degrees",
        "auto_faster": "Yes",
        "other_args": "--strict_highres_exp 60",
    },
}


def lenient(path: Path, kind: Kind) -> Path:
    """An ensemble that nobody trained and that keeps everything: what is tested is the way."""
    made = save_ensemble(path, kind=kind)
    kept = (Calibration(slope=1e-6, offset=2.0),) * 3
    manifest = made.manifest.model_copy(update={"calibration": kept})
    Ensemble(manifest, made.networks).save(path, "# Lenient\n")
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("workflow")
    wanted = SimulateSettings(
        projects=1,
        images=120,
        per_micrograph=40,
        box=32,
        snr=0.5,
        junk=0.3,
        seed=3,
        micrographs=True,
    )
    return simulate(out, Settings(simulate=wanted))[0]


def again(particles: Path, **chosen: object) -> Workflow:
    """What extracts particles again, from the simulated micrographs unless others are given."""
    return Workflow(particles, Settings(workflow=WorkflowSettings.model_validate(chosen)))


def selected(project: Path, name: str, text: str) -> dict[str, Job]:
    """A selection of ours with this STAR file of particles."""
    (project / name).mkdir(parents=True)
    (project / name / "particles.star").write_text(text)
    return {"select2d": Job(project, name, skipped=False)}


def rows(star: Path) -> tuple[str, list[str]]:
    """A STAR file of particles up to their rows, and those."""
    text = star.read_text()
    at = text.index("000001@")
    start = text.rindex("\n", 0, at) + 1
    return text[:start], [line for line in text[start:].splitlines() if line.strip()]


def read(star: Path, project: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images [n, box, box] of a STAR file, and what it says of them."""
    table = parse(star)["particles"]
    images = [
        read_frames(read_header(project / stack), np.array([int(frame) - 1]))[0]
        for frame, stack in (name.split("@") for name in table.column("rlnImageName"))
    ]
    names = ("CoordinateX", "CoordinateY", "OriginXAngst", "OriginYAngst", "DefocusU")
    said = {name: table.numbers(f"rln{name}") for name in names}
    return np.stack(images), said | {"micrograph": table.column("rlnMicrographName")}


def without_plane(image: np.ndarray) -> np.ndarray:
    """Pixels less the plane through them, which normalisation fits to each box anew."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    plane = np.stack([np.ones(image.size), x.ravel(), y.ravel()], 1)
    flat = image.ravel()
    return np.asarray(flat - plane @ np.linalg.lstsq(plane, flat, rcond=None)[0])


@pytest.fixture
def prefect_server() -> Iterator[None]:
    from prefect.testing.utilities import (
        prefect_test_harness,
    )

    with prefect_test_harness(server_startup_timeout=120):
        yield


def test_a_job_done_is_recognised_and_one_that_fails_says_what_relion_said(
    project: Path, relion: Run
) -> None:
    driver = Relion(project)
    importing = {
        "do_raw": "No",
        "do_other": "Yes",
        "fn_in_other": "particles.star",
        "node_type": "Particles STAR file (.star)",
    }
    first = driver.run("Import", importing)
    assert first.seconds is not None
    assert len(parse(project / first.file("*.star"))["particles"]) == 120
    again = driver.run("Import", importing)
    assert (again.name, again.skipped, first.skipped) == (first.name, True, False)
    assert again.seconds == first.seconds
    # RELION drops what it does not know from its job.star: the job is the same, and that is said.
    strange = driver.run("Import", {**importing, "no_such_option": "7"})
    assert (strange.name, strange.dropped) == (first.name, ("no_such_option",))
    shutil.copy(project / "particles.star", project / "again.star")
    other = {**importing, "fn_in_other": "again.star", "no_such_option": "7"}
    begun, once_more = (driver.run("Import", other) for _ in range(2))
    assert (begun.skipped, begun.dropped) == (False, ("no_such_option",))
    assert (once_more.name, once_more.skipped) == (begun.name, True)
    text = (project / "particles.star").read_text()
    (project / "lost.star").write_text(text.replace("Extract/job001", "Extract/job999"))
    with pytest.raises(RelionError, match=r"Class2D/job\d+ failed; RELION reported: .*job999"):
        driver.run("Class2D", {"fn_img": "lost.star", "nr_iter": "1"})
    with pytest.raises(InputError, match="there is no such file, which Class2D is to be given"):
        driver.run("Class2D", {"fn_img": "nowhere.star"})
    # RELION's own pipeline knows the jobs: a person can go on from here in its window.
    jobs = parse(project / "default_pipeline.star")["pipeline_processes"]
    assert jobs.column("rlnPipeLineProcessName").tolist()[0] == f"{first.name}/"


def test_a_job_that_outlived_who_began_it_is_waited_for_and_not_begun_twice(
    project: Path, relion: Run
) -> None:
    options = {
        "fn_img": "particles.star",
        "nr_classes": "2",
        "nr_iter": "6",
        "particle_diameter": "150",
        "nr_threads": "1",
        **OPTIONS["class2d"],
    }
    begin = (
        "import sys, pathlib; from cryoray.integrations.relion import Relion; "
        f"Relion(pathlib.Path(sys.argv[1])).run('Class2D', {options!r})"
    )
    flow = subprocess.Popen([sys.executable, "-c", begin, str(project)])
    before = {folder.name for folder in project.glob("Class2D/job*")}
    job: set[Path] = set()
    while flow.poll() is None and not job:
        time.sleep(0.1)
        job = {path.parent for path in project.glob("Class2D/job*/run_it000_data.star")}
        job = {folder for folder in job if folder.name not in before}
    flow.kill()
    flow.wait()
    (begun,) = job
    assert not list(begun.glob("RELION_JOB_EXIT_*"))
    done = Relion(project).run("Class2D", options)
    assert (done.folder, done.skipped) == (begun, True)
    assert (begun / "run_it006_data.star").is_file()
    assert {folder.name for folder in project.glob("Class2D/job*")} == before | {begun.name}


def test_kept_particles_are_extracted_again_from_their_micrographs(
    project: Path, relion: Run
) -> None:
    particles = project / "particles.star"
    head, lines = rows(particles)
    kept = lines[::-3]  # not in the order of the micrographs
    before = selected(project, "External/job910", head + "\n".join(kept) + "\n\n")
    workflow = again(particles, micrographs=project / MICROGRAPHS)
    job = workflow.run("reextract", before)
    assert workflow._lost(before | {"reextract": job}) is None
    original, was = read(project / "External/job910/particles.star", project)
    images, said = read(job.folder / "particles.star", project)
    assert images.shape == (len(kept), 32, 32) == original.shape
    # RELION goes through one micrograph after the other, and keeps the order within each.
    order = np.argsort(was["micrograph"], kind="stable")
    assert (was["micrograph"][order] == said["micrograph"]).all()
    np.testing.assert_allclose(was["DefocusU"][order], said["DefocusU"])
    moved = np.stack([was[f"Coordinate{a}"][order] - said[f"Coordinate{a}"] for a in "XY"], 1)
    origin = np.stack([was[f"Origin{a}Angst"][order] for a in "XY"], 1) / workflow.pixel_size
    rest = np.stack([said[f"Origin{a}Angst"] for a in "XY"], 1) / workflow.pixel_size
    np.testing.assert_allclose(origin - moved, rest, atol=1e-3)
    assert np.abs(rest).max() <= 0.5 + 1e-3
    assert np.abs(moved).max() >= 2
    # What was placed is what comes out, moved by whole px: also its contrast, which a camera has inverted.
    for old, new, (x, y) in zip(original[order], images, np.rint(moved).astype(int), strict=True):
        both = slice(max(0, y), 32 + min(0, y)), slice(max(0, x), 32 + min(0, x))
        there = slice(max(0, -y), 32 + min(0, -y)), slice(max(0, -x), 32 + min(0, -x))
        assert np.corrcoef(without_plane(new[both]), without_plane(old[there]))[0, 1] > 0.99
    # Options by RELION's own names: it wrote down what it was given.
    assert workflow.run("reextract", before).skipped

    # Smaller; and those again, of which their own Extract job says what they were extracted from.
    small = again(particles, micrographs=project / MICROGRAPHS, rescaled_box=24)
    first = small.run("reextract", before)
    optics = parse(first.folder / "particles.star")["optics"]
    assert optics.numbers("rlnImageSize").tolist() == [24]
    pixel_size = optics.numbers("rlnImagePixelSize")[0]
    assert pixel_size == pytest.approx(workflow.pixel_size * 32 / 24, rel=1e-4)
    following = again(first.folder / "particles.star")
    assert following.project == project
    found = {"select2d": Job(project, first.name, skipped=False)}
    second = following.run("reextract", found)
    assert options_of(second.folder / "job.star")["extract_size"] == "32"
    assert (second.name == first.name, second.skipped) == (False, False)
    one, two = (read(job.folder / "particles.star", project)[0] for job in (first, second))
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_what_relion_would_refuse_is_left_out_and_counted(project: Path, relion: Run) -> None:
    particles = project / "particles.star"
    head, lines = rows(particles)
    _, said = read(particles, project)
    width = read_header(project / said["micrograph"][0]).width
    pixel_size = again(particles).pixel_size
    lines = [line.split() for line in lines[:12]]  # type: ignore[misc]
    columns = parse(particles)["particles"].columns
    x, origin = columns.index("rlnCoordinateX"), columns.index("rlnOriginXAngst")
    # Centred, the box of 32 px ends at the px -1 and 0, or begins at the last one and after it.
    for line, (coordinate, shift) in zip(
        lines, ((20, 36), (20, 35), (width, -15), (width - 10, -26)), strict=False
    ):
        line[x], line[origin] = f"{coordinate}", f"{shift * pixel_size:.4f}"  # type: ignore[index]
    text = head + "\n".join(map(" ".join, lines)) + "\n\n"
    before = selected(project, "External/job911", text)
    workflow = again(particles, micrographs=project / MICROGRAPHS)
    job = workflow.run("reextract", before)
    images, after = read(job.folder / "particles.star", project)
    assert len(images) == 10
    assert workflow.particles_after("reextract", before | {"reextract": job}) == 10
    assert "lost 2 of 12 particles at the edges" in str(workflow._lost(before | {"reextract": job}))
    assert after["CoordinateX"][:2].tolist() == [20 - 35, width + 15]
    assert workflow.run("reextract", before).skipped
    # It is RELION that refuses them.
    options = options_of(job.folder / "job.star")
    with pytest.raises(RelionError, match="lies completely outside micrograph"):
        workflow.relion.run(
            "Extract", options | {"fndata_reextract": "External/job911/particles.star"}
        )
    # What was extracted needs its micrographs no more.
    mics = project / "MotionCorr/job001"
    try:
        for file in mics.glob("*.mrc"):
            file.rename(file.with_suffix(".gone"))
        assert workflow.left_out("reextract", before) is None
        other = selected(project, "External/job912", text)
        sentence = workflow.left_out("reextract", other)
        assert sentence is not None
        assert "1 of the 1 micrographs of the particles are not listed or not there" in sentence
    finally:
        for file in mics.glob("*.gone"):
            file.rename(file.with_suffix(".mrc"))


def test_decisions_are_counted_in_the_jobs(project: Path, relion: Run, tmp_path: Path) -> None:
    particles = project / "particles.star"
    names = parse(particles)["particles"].column("rlnImageName").tolist()
    jobs = {}

    def job(stage: str, name: str) -> Path:
        jobs[stage] = Job(project, name, skipped=False)
        (project / name).mkdir(parents=True)
        return project / name

    for stage, name, classes in (
        ("class2d", "Class2D/job902", 4),
        ("class3d", "Class3D/job905", 2),
    ):
        rows = "".join(f"{image} {i % classes + 1}\n" for i, image in enumerate(names))
        head = "data_particles\n\nloop_\n_rlnImageName #1\n_rlnClassNumber #2\n"
        (job(stage, name) / "run_it003_data.star").write_text(head + rows)
    judges = {"ensemble": tmp_path / "particle", "class_ensemble": tmp_path / "class2d"}
    particle, class2d = (
        save_ensemble(path, kind=path.name)  # type: ignore[arg-type]
        for path in judges.values()
    )
    # 3D classes have a band of their own, wider than that of the ensemble of 2D classes that ranks them.
    band = review_band(class2d.threshold)
    assert band[0] < class2d.review[0]
    assert band[1] > class2d.review[1]

    def one_in(low: float, high: float) -> list[float]:
        return [low / 2, (low + high) / 2]

    scores = {
        "select2d": {
            "": [*particle.review, sum(particle.review) / 2],
            "classes": one_in(*class2d.review),
        },
        "select3d": {"": [*one_in(*band), band[0] + 0.01, band[1] + 0.01]},
    }
    for stage, name in (("select2d", "External/job903"), ("select3d", "External/job906")):
        folder = job(stage, name)
        for part, said in scores[stage].items():
            (folder / part).mkdir(exist_ok=True)
            table = pa.table({"score": np.array(said, np.float32)})
            pq.write_table(table, folder / part / "verdicts.parquet")
    arms = {}
    for judge in (True, False):
        chosen = WorkflowSettings(judge=judge, seconds_per_image=3.0)
        classify = {name: str(path) for name, path in judges.items()}
        workflow = Workflow(particles, Settings(workflow=chosen, classify=classify))
        arms[judge] = workflow.decisions(jobs)
        done = [Done("refine", "Refine3D/job907", 60.0, 90), Done("mask", "Mask/job908", 5.0, 90)]
        page = workflow.report(done, 20.0, arms[judge])
    assert arms[True] == {"2D classes": 1, "particles": 2, "3D classes": 2}
    assert arms[False] == {"2D classes": 4, "particles": 120, "3D classes": 2}
    told = workflow_arms(page.parent)
    # Particles are multiplied, classes are not: 2 × 100,000 / 120 + 1 + 2.
    assert (looks(told["with"]), looks(told["without"])) == (1670, 100_006)
    text = page.read_text()
    assert "60 s × 100,000 / 120 + 5 s" in text
    assert "1,670 × 3 s" in text
    for name in ("with", "without"):
        (page.parent / f"{name}.json").unlink()
    for one in jobs.values():
        shutil.rmtree(one.folder)


@pytest.mark.timeout(900)
def test_particles_become_a_map_and_what_is_done_is_not_done_again(
    project: Path,
    relion: Run,
    scripts: Path,
    prefect_server: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from flows.single_particle import single_particle

    log = logging.getLogger("prefect.flow_runs")  # which hands nothing on to the others
    log.addHandler(caplog.handler)
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    overrides: dict[str, dict[str, object]] = {
        "classify": {
            "ensemble": str(lenient(tmp_path / "particle", "particle")),
            "class_ensemble": str(lenient(tmp_path / "class2d", "class2d")),
        },
        "workflow": {
            "micrographs": project / MICROGRAPHS,
            "rescaled_box": 28,
            "classes_2d": 3,
            "iterations_2d": 3,
            "classes_3d": 2,
            "iterations_3d": 3,
            "initial_resolution": 70,
            "options": OPTIONS,
        },
    }
    page = single_particle(project / "particles.star", overrides)
    first = json.loads((page.parent / "with.json").read_text())
    assert [stage["stage"] for stage in first["stages"]] == list(STAGES)
    assert all(stage["seconds"] is not None for stage in first["stages"][1:])
    assert 0 < first["resolution"] < 200
    for stage in first["stages"]:
        assert (project / stage["job"] / "RELION_JOB_EXIT_SUCCESS").is_file()
    assert list(first["decisions"]) == list(ASKED)
    # From there on all is of what was extracted again: the names, the box, the pixel size.
    jobs = {stage["stage"]: stage["job"] for stage in first["stages"]}
    counts = {stage["stage"]: stage["particles"] for stage in first["stages"]}
    assert first["notes"] == []
    assert counts["select2d"] == counts["reextract"] == counts["class3d"] >= counts["select3d"]
    last = parse(project / jobs["select3d"] / "particles.star")
    extracted = parse(project / jobs["reextract"] / "particles.star")["particles"]
    names = set(extracted.column("rlnImageName"))
    assert names.issuperset(last["particles"].column("rlnImageName"))
    assert all(f"@{jobs['reextract']}/" in name for name in names)
    image = read_header(project / "Extract/job001/micrograph_0001.mrcs")
    volume = read_header(project / jobs["refine"] / "run_class001.mrc")
    assert (image.width, volume.width) == (32, 28)
    assert volume.pixel_size == pytest.approx((image.pixel_size or 0) * 32 / 28, rel=1e-3)
    text = page.read_text()
    assert re.search(r"s × 100,000 / 120", text)
    assert "What a person decides" in text
    assert single_particle(project / "particles.star", overrides) == page
    second = json.loads((page.parent / "with.json").read_text())
    assert all(stage["skipped"] for stage in second["stages"])
    assert [s["seconds"] for s in second["stages"]] == [s["seconds"] for s in first["stages"]]

    # Nobody says where micrographs are: particles go on as they are, and log and report say so.
    del overrides["workflow"]["micrographs"]
    del overrides["workflow"]["rescaled_box"]
    assert single_particle(project / "particles.star", overrides, arms="without") == page
    without = json.loads((page.parent / "without.json").read_text())
    wanted = [s for s in STAGES if s != "reextract" and not s.startswith("select")]
    assert [stage["stage"] for stage in without["stages"]] == wanted
    assert {stage["particles"] for stage in without["stages"]} == {120}
    (sentence,) = without["notes"]
    assert "comes from no Extract job of this project" in sentence
    assert sentence in caplog.text
    log.removeHandler(caplog.handler)
    assert "Without cryoray, reextract was left out" in page.read_text()
    refined = next(s["job"] for s in without["stages"] if s["stage"] == "refine")
    assert read_header(project / refined / "run_class001.mrc").width == 32
