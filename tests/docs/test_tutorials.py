"""Each tutorial works as it is printed: its blocks are run one after the other, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from docs.pages import TUTORIALS, tutorial

#: For one tutorial on a busy machine; on a quiet one each takes half a minute, the map a few minutes.
_SECONDS = 1500
pytestmark = pytest.mark.timeout(_SECONDS + 60)

_DECORATION = re.compile(r"[│┃\s]+")
_NUMBER = re.compile(r"\d[\d,.]*")


def run(name: str, folder: Path) -> str:
    """Run a tutorial as its reader would; what it printed."""
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        # Nothing of the person's own is touched, and a service that runs already keeps its port.
        "CRYORAY_TOKEN_FILE": str(folder / "token"),
        "CRYORAY_REGISTRY": str(folder / "registry"),
        "CRYORAY_SERVE__PORT": "0",
    }
    with subprocess.Popen(
        tutorial(name).command(Path(sys.executable)),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, complaints = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, printed + complaints
    return printed


def shape(line: str) -> str:
    """A line without its numbers, frames and blanks: those may differ where it is tried again."""
    return _NUMBER.sub("N", _DECORATION.sub(" ", line)).strip()


def check_shown(name: str, printed: str) -> None:
    """Every line that the page shows was printed, but for numbers and what comes after them."""
    there = [shape(line) for line in printed.splitlines()]
    for line in (line for block in tutorial(name).shown for line in block.splitlines()):
        assert any(one.startswith(shape(line)) for one in there), line


@pytest.mark.long
def test_a_first_selection(tmp_path: Path) -> None:
    printed = run("first-selection", tmp_path)
    check_shown("first-selection", printed)
    assert (tmp_path / "sheet.png").is_file()
    assert (tmp_path / "verdicts/report.html").is_file()
    assert "mrcs" not in (tmp_path / "decided/review.star").read_text()
    # What the page says of the ensemble that ships is so: nearly nothing good is lost.
    (lost, good) = re.findall(r"(\d+) of (\d+) good particles discarded", printed)[0]
    assert int(lost) <= 0.05 * int(good)


@pytest.mark.long
def test_a_notebook(tmp_path: Path) -> None:
    printed = run("notebook", tmp_path)
    assert "<300 particles of particles.star" in printed
    assert "are clearly good" in printed
    assert (tmp_path / "verdicts.png").stat().st_size > 10_000
    assert (tmp_path / "out/kept.star").is_file()


@pytest.mark.system
def test_a_live_session(tmp_path: Path) -> None:
    printed = run("live-session", tmp_path)
    check_shown("live-session", printed)
    assert (tmp_path / "incoming/cryoray/monday/kept.star").is_file()


@pytest.mark.system
def test_from_particles_to_a_map(tmp_path: Path) -> None:
    if shutil.which("relion_refine") is None:
        pytest.fail("relion_refine is not installed: run `make test-system`, which installs it")
    printed = run("from-particles-to-a-map", tmp_path)
    check_shown("from-particles-to-a-map", printed)
    maps = list((tmp_path / "data/project-01").glob("PostProcess/job*/postprocess.mrc"))
    assert len(maps) == 1


def test_every_tutorial_is_run_here() -> None:
    run_here = Path(__file__).read_text("utf-8")
    pages = sorted(page.stem for page in TUTORIALS.glob("*.md"))
    assert [name for name in pages if f'run("{name}"' not in run_here] == []


def test_what_a_page_shows_is_missed_where_it_is_not_printed() -> None:
    with pytest.raises(AssertionError, match="collections"):
        check_shown("first-selection", "nothing of it")
