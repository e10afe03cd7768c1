"""What the class ensemble learns from RELION: real jobs, whose truth is counted right."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import starfile

from cryoray.errors import CryorayError
from cryoray.formats.source import open_source
from cryoray.recipes import relion_jobs
from cryoray.simulation import read_truth

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not relion_jobs.there_is_relion(), reason="no RELION here"),
]


@pytest.fixture(autouse=True)
def _two_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relion_jobs, "_ITERATIONS", 2)
    monkeypatch.setattr(relion_jobs, "_LOOKED_AT", (1, 2))


def test_a_class_is_labelled_by_what_most_of_its_particles_are(tmp_path: Path) -> None:
    job = relion_jobs.class2d_job(tmp_path, 3)
    with (job / "labels.csv").open() as file:
        said = {
            (line["stack"], int(line["index"])): line["selected"] for line in csv.DictReader(file)
        }
    assert {stack for stack, _ in said} == {f"run_it00{n}_classes.mrcs" for n in (1, 2)}
    assert {"0", "1"} <= set(said.values())
    project = next(tmp_path.glob("project-*"))
    images = starfile.read(project / "particles.star")["particles"]["rlnImageName"]
    keep = dict(zip(images, (line["keep"] == "1" for line in read_truth(project)), strict=True))
    for n in (1, 2):
        particles = starfile.read(job / f"run_it00{n}_data.star")["particles"]
        assert len(particles) == len(keep)
        good: Counter[int] = Counter()
        every: Counter[int] = Counter()
        for name, number in zip(
            particles["rlnImageName"], particles["rlnClassNumber"], strict=True
        ):
            good[number] += keep[name]
            every[number] += 1
        classes = len(open_source(job / f"run_it00{n}_model.star", "class2d"))
        for number in range(1, classes + 1):
            share = good[number] / max(every[number], 1)
            sure = "0" if share <= 1 / 3 else ""
            expected = "1" if share > 1 / 2 and every[number] >= 10 else sure
            assert said[(f"run_it00{n}_classes.mrcs", number)] == expected


def test_relion_is_not_told_the_truth_and_a_job_is_reproducible(tmp_path: Path) -> None:
    one = relion_jobs.class2d_job(tmp_path / "one", 3)
    told = starfile.read(one / "particles.star")["particles"].columns
    assert not [name for name in told if "Origin" in name or "Class" in name]
    assert not {"rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"} & set(told)
    classes = one / "run_it002_classes.mrcs"
    made = classes.stat().st_mtime_ns
    assert relion_jobs.class2d_job(tmp_path / "one", 3) == one
    assert classes.stat().st_mtime_ns == made
    other = relion_jobs.class2d_job(tmp_path / "other", 3)
    for name in ("labels.csv", "run_it002_data.star", "run_it002_model.star"):
        assert (other / name).read_bytes() == (one / name).read_bytes()
    assert (other / classes.name).read_bytes()[1024:] == classes.read_bytes()[1024:]


def test_what_relion_says_when_it_fails_is_told(tmp_path: Path) -> None:
    job = relion_jobs.class2d_job(tmp_path, 3)
    project = next(tmp_path.glob("project-*"))
    shutil.rmtree(project / "Extract")
    with pytest.raises(CryorayError, match="relion_refine ended with"):
        relion_jobs.refine(job, project, np.arange(3), "--K", "2", "--iter", "1")
