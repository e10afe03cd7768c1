"""What `cryoray classify` prints: sentences for people, the trouble and the way out, one set of numbers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from cryoray import terminal
from cryoray.cli.main import app
from cryoray.formats.mrc import StackWriter
from tests.examples import particles, with_heads, write_project, write_stack


@pytest.fixture(autouse=True)
def consoles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "out", Console(width=200, highlight=False))
    monkeypatch.setattr(terminal, "err", Console(stderr=True, width=200, highlight=False))


def classify(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["classify", *map(str, arguments)])


def test_stacks_that_are_all_missing_are_named_with_the_way_out(
    project: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copy(project, tmp_path / "particles.star"))
    done = classify(moved, "--out", tmp_path / "out", "--ensemble", tiny_ensemble)
    assert done.exit_code == 2
    first = tmp_path / "Extract/job001/mic_1.mrcs"
    assert (
        f"175 of 175 rows could not be read, 175 of them like the first: {first}: there is no such"
        " stack; particles.star names them from the project's folder, which was looked for from"
        f" {tmp_path} upwards: put particles.star into its project, or bring the stacks back.\n"
    ) in done.stderr
    assert "--max-quarantined" not in done.stderr  # of no use where nothing at all could be read


def test_more_rows_may_be_missing_where_somebody_says_so(
    tiny_ensemble: Path, tmp_path: Path
) -> None:
    star = write_project(tmp_path / "project", (150, 60))
    (star.parent / "Extract/job001/mic_1.mrcs").unlink()
    asked = (star, "--out", tmp_path / "out", "--ensemble", tiny_ensemble)
    refused = classify(*asked)
    assert refused.exit_code == 2
    assert "150 of 210 rows could not be read (100 allowed), 150 of them like" in refused.stderr
    assert "or allow more with --max-quarantined.\n" in refused.stderr
    done = classify(*asked, "--max-quarantined", "0.8")
    assert done.exit_code == 0, done.output
    assert f"150 rows of {star} could not be read: there is no such stack (150).\n" in done.stderr


def test_a_disk_that_is_away_costs_no_verdict(tiny_ensemble: Path, tmp_path: Path) -> None:
    star = write_project(tmp_path / "project", (150, 60))
    asked = (star, "--out", tmp_path / "out", "--ensemble", tiny_ensemble)
    assert classify(*asked).exit_code == 0
    before = (tmp_path / "out/verdicts.parquet").read_bytes()
    (star.parent / "Extract").rename(tmp_path / "away")
    refused = classify(*asked)
    assert refused.exit_code == 2
    assert f"the verdicts in {tmp_path / 'out'} are left as they were.\n" in refused.stderr
    assert (tmp_path / "out/verdicts.parquet").read_bytes() == before
    assert not (tmp_path / "out.partial").exists()
    (tmp_path / "away").rename(star.parent / "Extract")
    (star.parent / "Extract/job001/mic_2.mrcs").unlink()  # fewer than may be missing
    refused = classify(*asked)
    assert "holds verdicts on 210 images of this source, of which only 150 can be" in refused.stderr
    assert (tmp_path / "out/verdicts.parquet").read_bytes() == before
    assert classify(*asked, "--replace").exit_code == 0
    assert classify(*asked).exit_code == 0


def test_optics_that_a_bare_stack_lacks_are_named_in_the_terminal_and_on_the_page(
    tiny_ensemble: Path, tmp_path: Path
) -> None:
    stack = write_stack(tmp_path / "mic.mrcs", particles(20))
    done = classify(stack, "--out", tmp_path / "out", "--ensemble", tiny_ensemble)
    words = "rlnVoltage, rlnSphericalAberration: RELION stops until they are added to data_optics"
    assert f"Not known: {words}" in done.stderr
    assert words in (tmp_path / "out/report.html").read_text()
    with StackWriter(tmp_path / "none.mrcs", 40, 40, "float32", None) as writer:
        writer.append(particles(20))
    done = classify(tmp_path / "none.mrcs", "--out", tmp_path / "two", "--ensemble", tiny_ensemble)
    assert "rlnVoltage, rlnSphericalAberration, rlnImagePixelSize: RELION stops" in done.stderr
    starred = write_project(tmp_path / "project", (12,))
    done = classify(starred, "--out", tmp_path / "three", "--ensemble", tiny_ensemble)
    assert "Not known" not in done.stderr


def test_the_terminal_has_sentences_and_the_pages_seconds(
    project: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    for familiar, sentence in (
        (1e9, f"{project}: judged within its project, by a profile measured on 175 images.\n"),
        (0.0, f"{project} is unlike any project that the ensemble was trained on: each image"),
    ):
        folder = shutil.copytree(tiny_ensemble, tmp_path / f"ensemble-{familiar}")
        with_heads(folder, familiar)
        out = tmp_path / f"out-{familiar}"
        done = classify(project, "--out", out, "--ensemble", folder)
        assert done.exit_code == 0, done.output
        assert sentence in done.stderr
        assert "classify." not in done.output
        shown = re.search(r"seconds +│ +(\S+)", done.stdout)
        assert shown is not None
        page = (out / "report.html").read_text()
        assert re.search(rf"seconds</dt>\s*<dd[^>]*>{re.escape(shown[1])}<", page), shown[1]
        assert np.isfinite(float(shown[1]))


def test_a_profile_of_another_project_is_used_with_a_warning_and_one_of_this_without(
    tiny_ensemble: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_ensemble, tmp_path / "ensemble")
    with_heads(folder)
    judge = ("--ensemble", folder)
    one, two = (write_project(tmp_path / name, (60, 60)) for name in ("one", "two"))
    assert classify(one, "--out", tmp_path / "out-1", *judge).exit_code == 0
    profile = tmp_path / "out-1/profile.json"
    later = write_stack(tmp_path / "one/Extract/job002/mic_9.mrcs", particles(30, seed=9))
    same = classify(later, "--out", tmp_path / "out-2", *judge, "--profile", profile)
    assert same.exit_code == 0, same.output
    assert f"{later}: judged by the profile {profile}.\n" in same.stderr
    assert "make sure" not in same.stderr
    other = classify(two, "--out", tmp_path / "out-3", *judge, "--profile", profile.parent)
    assert other.exit_code == 0, other.output
    assert f"the profile {profile} was measured on {one}: make sure that {two} is" in other.stderr


def test_a_profile_is_refused_where_none_is_used(
    project: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    given = ("--out", tmp_path / "out", "--profile", tmp_path / "profile.json")
    for more in (("--ensemble", tiny_ensemble), ("--kind", "class3d")):
        done = classify(project, *given, *more)
        assert done.exit_code == 2
        assert f"the profile {tmp_path}/profile.json is of no use" in done.stderr
        assert "leave out --profile" in done.stderr
    done = classify(project, *given[:2], "--profile", "none", "--ensemble", tiny_ensemble)
    assert done.exit_code == 0
