"""The long verbs, from the command line: each ends with its summary and its row_counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from cryoray import terminal
from cryoray.cli import inspect
from cryoray.cli.main import app
from cryoray.formats.source import open_source
from cryoray.models.ensemble import Ensemble
from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import RuntimeSettings
from flows.classify import counts
from tests.examples import save_ensemble
from tests.verbs.untrained import make_ensemble, make_set


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(autouse=True)
def consoles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "out", Console(width=200, highlight=False))
    monkeypatch.setattr(terminal, "err", Console(stderr=True, width=200, highlight=False))


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("past")
    with pytest.MonkeyPatch.context() as small:
        small.setenv("CRYORAY_SIMULATE__BOX", "48")
        shown = run("simulate", out, "--projects", "2", "--images", "30", "--seed", "3")
    assert "60 rows in = 60 out + 0 quarantined" in shown
    return out


@pytest.mark.long
def test_inspect_shows_a_source_and_its_images(past: Path, tmp_path: Path) -> None:
    shown = run("inspect", past / "project-01", "--sheet", tmp_path / "sheet.png", "--images", "8")
    assert "30 rows in = 30 out + 0 quarantined" in shown
    assert "labels.csv" in shown
    assert "48 × 48" in shown
    assert "norm_correction" in shown.split("missing: ")[1].splitlines()[0]
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_histograms_are_of_kept_and_discarded_and_what_is_missing_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = np.repeat([1, 0], 1000)
    defocus = np.concatenate([np.linspace(1, 2, 1000), np.linspace(2, 3, 1000)])
    values = np.stack([defocus, np.where(labels == 1, np.nan, 0.5), np.full(2000, np.nan)], 1)
    inspect._show_features(("defocus", "pick_ncc", "phase_shift"), values, labels)
    shown = capsys.readouterr().out
    rows = [line.split("  ") for line in shown.splitlines()[1:3]]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["defocus", "100%", "1.01 to 2.99", "µm", "█" * 12 + "▁", "█" * 12],
        ["pick_ncc", "50%", "0.5"],
    ]
    assert "missing: phase_shift" in shown


def test_metadata_fit_into_80_columns_in_the_units_of_the_field(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "out", Console(width=80, highlight=False))
    names = ("autopick_figure_of_merit", "ctf_max_resolution", "astigmatism", "log_likelihood")
    own = np.stack([np.linspace(low, high, 1000) for low, high in ((-1, 1), (4, 9), (50, 3750))], 1)
    values = [own[:, 0], np.log(own[:, 1]), np.log1p(own[:, 2]), np.arcsinh(1e5 * own[:, 2])]
    labels = np.repeat([1, 0], 500)
    inspect._show_features(names, np.stack(values, 1).astype(np.float32), labels)
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert len(lines) == 1 + len(names)
    assert all(len(line) <= 80 and "…" not in line for line in lines)
    assert [line.split()[0] for line in lines[1:]] == list(names)
    assert " to 8.97  " in lines[2]
    assert "Å" in lines[2]
    assert "68.5 to 3.73e+03" in lines[3]
    assert "log" not in " ".join(lines[:-1])  # but in the name on the last line
    assert all("█" in line for line in lines[1:])


def test_of_images_that_were_not_read_inspect_says_nothing_but_where_the_first_should_be(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "out", Console(width=80, highlight=False))
    star = shutil.copy(project, tmp_path / "particles.star")
    shown = run("inspect", star)
    assert "bright" not in shown
    assert "box, px" not in shown
    first = open_source(Path(star)).stacks[0]
    assert f"there is no such stack, the first: {first}\n" in shown
    assert "defocus" in shown.split("missing: ")[0]  # the STAR file has it


@pytest.mark.long
def test_a_set_is_planned_made_and_added_to_in_the_way_it_was_made(
    past: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    planned = run("ingest", past / "project-01", "--out", out, "--plan")
    assert "30 rows in = 30 out + 0 quarantined" in planned
    assert "read and prepared by one core of this machine at" in planned
    assert not out.exists()
    run("ingest", past / "project-01", "--out", out, "--box", "32", "--features", "defocus")
    more = run("ingest", past, "--out", out, "--add", "--plan")
    assert "30 rows in = 30 out + 0 quarantined" in more
    shown = run("ingest", past, "--out", out, "--add")
    assert "60 rows in = 60 out + 0 quarantined" in shown
    made = PreparedSet.open(out)
    assert (made.settings.box, made.features, len(made.parts)) == (32, ("defocus",), 2)
    refused = CliRunner().invoke(
        app, ["ingest", str(past), "--out", str(out), "--add", "--box", "48"]
    )
    assert refused.exit_code == 2
    assert "was made with box 32, and 48 is requested" in refused.stderr


@pytest.mark.long
def test_an_ensemble_is_adapted_to_a_project_without_ray(tmp_path: Path) -> None:
    judge = make_ensemble(tmp_path / "judge")
    project = make_set(tmp_path / "set", projects=("new",), each=40, labels=(1, 0, -1, 1))
    shown = run("adapt", judge.path, project.path, "--out", tmp_path / "after")
    assert "keeps, estimated" in shown
    assert "80 rows in = " in shown
    assert Ensemble.load(tmp_path / "after").digest != judge.digest
    record = "recalibrated" in (tmp_path / "after/ensemble.json").read_text()
    assert record, "what was done to it is on record"


def test_an_entry_of_a_mirror_is_linked_from_the_command_line(tmp_path: Path) -> None:
    there = tmp_path / "mirror/10812/data"
    there.mkdir(parents=True)
    for number in range(25):
        (there / f"{number:02d}.star").write_text("data_\n")
    shown = run("fetch", "10812", "--out", tmp_path / "out", "--mirror", tmp_path / "mirror")
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in shown.splitlines()]
    assert ["files", "25"] in cells
    assert ["size", "150 B"] in cells
    assert len(list((tmp_path / "out").rglob("*.star"))) == 25


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
