"""The verbs that need Ray, from the command line: each ends with its summary and its books."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cryoray.cli import common
from cryoray.cli.main import app
from cryoray.models.ensemble import Ensemble
from cryoray.settings import RuntimeSettings
from flows.classify import counts
from tests.examples import save_ensemble


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(autouse=True)
def consoles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "out", Console(width=200, highlight=False))
    monkeypatch.setattr(common, "err", Console(stderr=True, width=200, highlight=False))


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("past")
    with pytest.MonkeyPatch.context() as small:
        small.setenv("CRYORAY_SIMULATE__BOX", "48")
        shown = run("simulate", out, "--projects", "2", "--images", "30", "--seed", "3")
    assert "60 rows in = 60 out + 0 quarantined" in shown
    return out


def test_inspect_shows_a_source_and_its_images(past: Path, tmp_path: Path) -> None:
    shown = run("inspect", past / "project-01", "--sheet", tmp_path / "sheet.png", "--images", "8")
    assert "30 rows in = 30 out + 0 quarantined" in shown
    assert "labels.csv" in shown
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.ray
def test_from_sources_to_verdicts(past: Path, tmp_path: Path, ray_cluster: RuntimeSettings) -> None:
    planned = run("ingest", past, "--out", tmp_path / "set", "--plan")
    assert "project-02" in planned
    assert "60 rows in = 60 out + 0 quarantined" in planned
    assert not (tmp_path / "set").exists()

    shown = run("ingest", past, "--out", tmp_path / "set", "--box", "32")
    assert "60 rows in = 60 out + 0 quarantined" in shown
    shown = run("inspect", tmp_path / "set", "--sheet", tmp_path / "sheet.png")
    assert "60 rows in = 60 out + 0 quarantined" in shown
    assert "project-01, project-02" in shown

    untrained = save_ensemble(tmp_path / "untrained")
    point = {"bound": 0.03, "level": "image", "method": "none", "groups": 1, "achieved": 0.0}
    promised = untrained.manifest.model_copy(update={"operating_point": point})
    Ensemble(promised, untrained.networks).save(tmp_path / "ensemble", "# Untrained\n")
    shown = run("evaluate", tmp_path / "ensemble", tmp_path / "set", "--out", tmp_path / "numbers")
    assert "60 rows in = 60 judged + 0 left out" in shown
    assert (tmp_path / "numbers" / "metrics.json").is_file()

    verdicts = tmp_path / "verdicts"
    shown = run("classify", past, "--out", verdicts, "--ensemble", tmp_path / "ensemble")
    assert "60 rows in = 60 out + 0 quarantined" in shown
    assert len(list(verdicts.rglob("kept.star"))) == 2
    assert sum(row["images"] for row in counts(verdicts)) == 60
