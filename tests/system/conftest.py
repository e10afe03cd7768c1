"""What the system tests share: RELION's programs, and a small project that RELION itself classified."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import simulate
from tests.system.programs import CLASS2D, Relion

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def relion() -> Relion:
    """RELION's programs."""
    for program in ("relion_refine", "relion_star_handler", "relion_pipeliner", "gs"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is not installed: run `make test-system`, which installs it")

    def run(folder: Path, program: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [program, *map(str, arguments)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        # relion_star_handler reports some errors and ends well.
        assert done.returncode == 0, done.stdout[-3000:]
        assert "ERROR" not in done.stdout, done.stdout[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the installed commands, as this checkout has them."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in (("class-ranker", "class_ranker"), ("relion", "relion_job")):
        script = folder / f"cryoray-{name}"
        script.write_text(
            f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m cryoray.cli.{module} "$@"\n'
        )
        script.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RELION project of 200 simulated particles, junk among them: ``particles.star`` and stacks."""
    out = tmp_path_factory.mktemp("simulated")
    wanted = SimulateSettings(projects=1, images=200, box=48, seed=1)
    simulate(out, Settings(simulate=wanted))
    return out / "project-01"


@pytest.fixture(scope="session")
def class2d(simulated: Path, relion: Relion) -> Path:
    """The folder of a Class2D job of that project: three iterations of RELION on four classes."""
    job = simulated / "Class2D/job002"
    job.mkdir(parents=True)
    relion(
        simulated,
        "relion_refine",
        *("--i", "particles.star", "--o", "Class2D/job002/run", "--iter", "3", "--K", "4"),
        *CLASS2D,
    )
    return job


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("chromium is not installed: run `make test-system`, which installs it")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield made
        made.close()
