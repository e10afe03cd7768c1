"""The wheel: it holds all that cryoray needs, and judges where there is no clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cryoray.models import registry
from tests.classes import COUNTS, write_class_job

ROOT = Path(__file__).parents[2]


def run(arguments: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    """What a program says that runs without this clone on its path."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(one) for one in arguments],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make dist` does, from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("cryoray", "flows"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pyc*"))
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".")
    run([sys.executable, "-m", "pip", *build], folder)
    (made,) = (folder / "dist").glob("cryoray-*.whl")
    return made


@pytest.mark.long
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    here = {
        path.relative_to(ROOT).as_posix()
        for top in ("cryoray", "flows")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {re.sub("^cryoray_flows/", "flows/", name) for name in names} == here


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has cryoray from its wheel, and finds what it needs here."""
    folder = tmp_path_factory.mktemp("bare")
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    python = folder / "venv/bin/python"
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    run([sys.executable, "-m", "pip", "--python", python, *install], folder)
    # A folder on the path, whose own .pth files are not read: this clone, if installed, is not found.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv/bin"


@pytest.mark.long
def test_an_installed_wheel_judges_where_there_is_no_clone(
    bare: Path, class_ensemble: Path, tmp_path: Path
) -> None:
    where = run([bare / "python", "-c", "import cryoray; print(cryoray.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(bare.parent)
    job = write_class_job(tmp_path)
    named = () if registry.shipped("class2d") else ("--ensemble", class_ensemble)
    options = ("--opt", job / "run_it025_optimiser.star", "--o", "Select/", "--auto_select")
    run([bare / "cryoray-class-ranker", *options, *named], tmp_path, HOME=str(tmp_path))
    table = pq.read_table(tmp_path / "Select/cryoray/verdicts.parquet")
    assert len(table) == sum(count > 0 for count in COUNTS)
    assert (tmp_path / "Select/particles.star").is_file()


@pytest.mark.long
def test_flows_run_from_the_wheel_by_a_name_that_clashes_with_nobody_s(
    bare: Path, tmp_path: Path
) -> None:
    shown = run([bare / "python", "-m", "cryoray_flows.single_particle", "--help"], tmp_path)
    assert "PARTICLES.star" in shown or "particles" in shown
    code = "import cryoray_flows.nightly as flow; print(flow.nightly.name, flow.__file__)"
    name, _, where = run([bare / "python", "-c", code], tmp_path).strip().partition(" ")
    assert name == "nightly"
    assert Path(where).is_relative_to(bare.parent)
