"""RELION itself judges: it reads what is written, runs the jobs, and goes on from their results."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from cryoray.formats.class_selection import write_class_selection
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.rows import Source
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from cryoray.formats.verdicts import PARTITIONS, write_verdicts
from cryoray.records import VERDICTS, Verdicts
from tests.examples import verdicts_of
from tests.formats.files import write_cs_job
from tests.system.programs import CLASS2D, Relion, private_environment

pytestmark = pytest.mark.system


def some_verdicts(source: Source, *, quarantined: int = 3) -> Verdicts:
    """Verdicts on the rows of a source in turn, and the last rows as quarantined."""
    n = len(source) - quarantined
    fates = [VERDICTS[i % 3] for i in range(n)] + ["quarantined"] * quarantined
    return verdicts_of(fates, np.linspace(0, 1, n, dtype=np.float32))


def through_relion(relion: Relion, star: Path, *, select: str = "rlnOpticsGroup") -> Path:
    """The file as RELION writes what it read, and its own count of the rows."""
    out = star.with_name(f"{star.stem}_relion.star")
    arguments = ("--i", star, "--o", out, "--select", select, "--minval", "-999999")
    said = relion(star.parent, "relion_star_handler", *arguments)
    counted = re.search(r"with (\d+) item", said)
    assert counted, said
    assert int(counted[1]) == len(open_source(star))
    return out


def same_values(ours: Path, relions: Path) -> None:
    """What RELION read is what we wrote: names as they are, numbers to its six digits."""
    before, after = parse(ours), parse(relions)
    for name in ("optics", "particles"):
        mine, its = before[name], after[name]
        assert len(mine) == len(its)
        for column in mine.columns:
            texts = its.column(column)
            try:
                numbers = texts.astype(np.float64)
            except ValueError:
                assert texts.tolist() == mine.column(column).tolist()
            else:
                np.testing.assert_allclose(
                    numbers, mine.numbers(column), rtol=2e-6, atol=1e-6, equal_nan=True
                )


def test_relion_reads_every_side_and_keeps_its_values(
    simulated: Path, relion: Relion, tmp_path: Path
) -> None:
    source = open_source(simulated)
    write_verdicts(tmp_path, source, some_verdicts(source), star_columns=["score"])
    for side in PARTITIONS.values():
        same_values(tmp_path / f"{side}.star", through_relion(relion, tmp_path / f"{side}.star"))
    assert "rlnCryorayScore" in parse(tmp_path / "kept_relion.star")["particles"].columns


def test_relion_reads_what_is_written_of_a_bare_stack(
    simulated: Path, relion: Relion, tmp_path: Path
) -> None:
    stack = next((simulated / "Extract").rglob("*.mrcs"))
    source = open_source(stack)
    write_verdicts(tmp_path, source, some_verdicts(source))
    star = tmp_path / "kept.star"
    arguments = ("relion_stack_create", "--i", "kept.star", "--o", "again")
    refused = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode
    assert "not all necessary variables defined" in refused.stderr
    text = star.read_text()
    assert text.startswith("# Not known, and RELION stops until it is added to data_optics: rlnV")
    # What a person who knows the microscope adds, as the comment asks for.
    columns = "_rlnImagePixelSize #5\n_rlnVoltage #6\n_rlnSphericalAberration #7\n"
    text = text.replace("_rlnImagePixelSize #5\n", columns)
    star.write_text(re.sub(r"(?m)^(1 opticsGroup1 .*)$", r"\1 300 2.7", text))
    same_values(star, through_relion(relion, star))
    relion(tmp_path, *arguments)
    assert len(open_source(tmp_path / "again.mrcs")) == len(open_source(star))


def test_relion_reads_cryosparcs_particles_and_takes_the_images_that_were_meant(
    relion: Relion, tmp_path: Path
) -> None:
    source = open_source(write_cs_job(tmp_path / "project"))
    write_verdicts(tmp_path / "out", source, some_verdicts(source), also_star=True)
    for side in PARTITIONS.values():
        star = tmp_path / f"out/{side}.star"
        if len(rows := parse(star)["particles"]):
            same_values(star, through_relion(relion, star))
            relion(tmp_path / "out", "relion_stack_create", "--i", star, "--o", f"{side}_stack")
            # Every pixel of image i is i, counted from 0; RELION's names count from 1.
            meant = [int(name.split("@")[0]) - 1 for name in rows.column("rlnImageName")]
            made = read_header(tmp_path / f"out/{side}_stack.mrcs")
            images = read_frames(made, np.arange(made.count))
            assert images[:, 0, 0].tolist() == meant
    sides = [parse(tmp_path / f"out/{side}.star")["particles"] for side in PARTITIONS.values()]
    assert sum(map(len, sides)) == len(source)


def test_relion_reads_a_choice_of_its_own_classes(
    class2d: Path, relion: Relion, tmp_path: Path
) -> None:
    source = open_source(class2d, "class2d")
    keep = np.zeros(len(source), bool)
    keep[np.argsort(-source.metadata["rlnClassDistribution"])[:2]] = True
    written = write_class_selection(
        tmp_path, source, keep, score=np.linspace(0, 1, len(source), dtype=np.float32)
    )
    same_values(
        tmp_path / "particles.star",
        through_relion(relion, tmp_path / "particles.star", select="rlnClassNumber"),
    )
    histogram = relion(
        tmp_path, "relion_star_handler", "--i", "particles.star", "--hist_column", "rlnClassNumber",
        "--o", "hist.eps",
    )  # fmt: skip
    counted = [int(n) for n in re.findall(r"^\[.*[\])]: (\d+)$", histogram, re.MULTILINE)]
    assert sum(counted) == written
    averages = tmp_path / "class_averages.star"
    printed = relion(tmp_path, "relion_star_printtable", averages, "data_", "rlnReferenceImage")
    assert printed.split() == source.images[keep].tolist()


def test_class_ranker_ranks_relions_classes_and_relion_goes_on_with_its_particles(
    class2d: Path, simulated: Path, relion: Relion, scripts: Path, class_ensemble: Path
) -> None:
    relion(
        simulated,
        str(scripts / "cryoray-class-ranker"),
        *("--opt", "Class2D/job002/run_it003_optimiser.star", "--o", "Select/job003/"),
        *("--fn_sel_parts", "particles.star", "--fn_sel_classavgs", "class_averages.star"),
        *("--fn_root", "rank", "--do_granularity_features", "--auto_select", "--min_score", "2"),
        *("--select_min_nr_particles", "100", "--python", "python3"),
        *("--pipeline_control", "Select/job003/", "--ensemble", class_ensemble),
    )
    out = simulated / "Select/job003"
    assert (out / "RELION_JOB_EXIT_SUCCESS").exists()
    selected = through_relion(relion, out / "particles.star", select="rlnClassNumber")
    same_values(out / "particles.star", selected)
    rows = len(open_source(out / "particles.star"))
    assert 100 <= rows <= 200
    printed = relion(
        out,
        "relion_star_printtable",
        "rank_model.star",
        "data_model_classes",
        "rlnClassDistribution",
    )
    assert len(printed.split()) == 4

    (simulated / "Class2D/job004").mkdir()
    relion(
        simulated,
        "relion_refine",
        *("--i", "Select/job003/particles.star", "--o", "Class2D/job004/run"),
        *("--ref", "Select/job003/class_averages.star", "--iter", "1", *CLASS2D),
    )
    job = simulated / "Class2D/job004"
    assert len(open_source(job)) == rows
    assert len(open_source(job, "class2d")) == len(
        open_source(out / "class_averages.star", "class2d")
    )


def external_job(project: Path, relion: Relion, job: str, **options: str | Path) -> None:
    """Schedule an External job with RELION's own pipeliner."""
    pipeline = project / "default_pipeline.star"
    if not pipeline.exists():  # as the GUI begins a project
        pipeline.write_text("data_pipeline_general\n\n_rlnPipeLineJobCounter 3\n\n")
    given = ";".join(f"{name} == {value}" for name, value in options.items())
    relion(project, "relion_pipeliner", "--addJob", "External", "--addJobOptions", given)
    assert (project / job).is_dir()


def status(project: Path, job: str) -> str:
    processes = parse(project / "default_pipeline.star")["pipeline_processes"]
    names = processes.column("rlnPipeLineProcessName").tolist()
    return processes.column("rlnPipeLineProcessStatus")[names.index(job)]


def test_relions_pipeliner_runs_the_external_job_to_success(
    class2d: Path,
    simulated: Path,
    relion: Relion,
    scripts: Path,
    tiny_ensemble: Path,
    class_ensemble: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in private_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    job = "External/job003/"
    external_job(
        simulated,
        relion,
        job,
        fn_exe=scripts / "cryoray-relion",
        in_part="Class2D/job002/run_it003_data.star",
        param1_label="ensemble",
        param1_value=tiny_ensemble,
        param2_label="class_ensemble",
        param2_value=class_ensemble,
        nr_threads="2",
    )
    relion(
        simulated,
        "relion_pipeliner",
        *("--schedule", "test", "--RunJobs", job, "--sec_wait_after", "1"),
    )
    out = simulated / job
    assert status(simulated, job) == "2", (out / "run.err").read_text()  # PROC_FINISHED_SUCCESS
    files = [out / f"{side}.star" for side in ("particles", "discarded", "review", "quarantined")]
    rows = [len(parse(file)["particles"]) for file in files]
    assert sum(rows) == 200
    nodes = parse(simulated / "default_pipeline.star")["pipeline_nodes"]
    known = set(
        zip(nodes.column("rlnPipeLineNodeName"), nodes.column("rlnPipeLineNodeType"), strict=True)
    )
    assert {
        (f"{job}{file.name}", "3") for file, n in zip(files[:3], rows, strict=False) if n
    } <= known
    assert (f"{job}classes/class_averages.star", "5") in known
    for file, n in zip(files, rows, strict=True):
        if n:
            same_values(file, through_relion(relion, file, select="rlnClassNumber"))


def test_an_abort_from_relion_stops_a_job_that_works(
    simulated: Path, scripts: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    out = simulated / "External/job099"
    # As RELION's GUI starts a job: in the background of a shell, where interrupts are ignored.
    command = (
        f"{scripts}/cryoray-relion --o External/job099/ --in_parts particles.star"
        f" --ensemble {tiny_ensemble} --j 2 & wait $!"
    )
    job = subprocess.Popen(
        ["sh", "-c", command], cwd=simulated, env=os.environ | private_environment(tmp_path)
    )
    try:
        deadline = time.monotonic() + 60
        while not (out / "cryoray.partial").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (out / "cryoray.partial").exists()
        (out / "RELION_JOB_ABORT_NOW").touch()
        assert job.wait(timeout=60) == 2
    finally:
        job.kill()
    assert [path.name for path in out.iterdir()] == ["RELION_JOB_EXIT_ABORTED"]
