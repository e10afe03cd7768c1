"""The command line says in one sentence what is wrong, with the exit code of that kind of error."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from ray.exceptions import RayTaskError
from rich.console import Console
from typer.testing import CliRunner, Result

from cryoray import terminal
from cryoray.cli import common
from cryoray.cli.main import app
from cryoray.diagnostics import machine
from cryoray.errors import FormatError, InternalError
from cryoray.models.ensemble import Ensemble
from cryoray.models.registry import promote
from cryoray.records import Event, Progress
from cryoray.settings import load
from tests.examples import save_ensemble, write_project


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def consoles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consoles as wide as the sentences, on the streams that the runner has."""
    monkeypatch.setattr(terminal, "out", Console(width=200, highlight=False))
    monkeypatch.setattr(terminal, "err", Console(stderr=True, width=200, highlight=False))


def test_help_names_every_verb() -> None:
    shown = run("--help").stdout
    for verb in (
        "simulate",
        "ingest",
        "inspect",
        "train",
        "evaluate",
        "cross-validate",
        "extract-picks",
        "classify",
        "serve",
        "promote",
        "doctor",
    ):
        assert verb in shown


def test_version() -> None:
    assert run("--version").stdout.startswith("cryoray 0.1")


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "data/Extrct/job001"),
        ("classify", "data/Extrct/job001", "--out", "o", "--ensemble", "particle"),
        ("classify", "data/Extrct/run_it025_model.star", "--out", "o", "--kind", "class3d"),
        ("ingest", "data/Extrct/particles.star", "--out", "o"),
        ("ingest", "data/here.star", "--selection", "data/Extrct", "--out", "o"),
        ("train", "data/Extrct", "--out", "o"),
        ("evaluate", "particle", "data/Extrct", "--out", "o"),
        ("evaluate", "data/Extrct", "data", "--out", "o"),
        ("cross-validate", "data/Extrct", "--out", "o"),
        ("select", "data/Extrct"),
        ("watch", "data/Extrct", "--session", "s"),
        ("validate", "fsc", "data/Extrct/half1.mrc", "data/Extrct/half2.mrc", "--out", "o"),
        ("validate", "similarity", "data/Extrct", "v", "--out", "o"),
        ("--settings", "data/Extrct/settings.toml", "doctor"),
    ],
)
def test_of_a_path_that_leads_nowhere_what_is_named_alike_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "Extract").mkdir(parents=True)
    write_project(tmp_path / "data", (12,))
    (tmp_path / "data/particles.star").rename(tmp_path / "data/here.star")
    done = run(*arguments)
    assert done.exit_code == 2
    assert f"in {tmp_path}/data there is Extract" in done.output
    assert "there is no such" in done.output
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("inspect", "nowhere"), "is there, and nothing in it is named like nowhere"),
        (("ingest", "nowhere", "--out", "set", "--plan"), "there is no such file or folder"),
        (("classify", "nowhere", "--out", "verdicts", "--ensemble", "none"), "none"),
        (("evaluate", "none", "set", "--out", "numbers"), "there is no such ensemble"),
        (("--settings", "nothing.toml", "doctor"), "there is no such settings file"),
        (
            ("train", "set", "--out", "e", "--epochs", "0"),
            "train.fit.epochs: input should be greater",
        ),
        (("simulate", "out", "--images", "-1"), "simulate.images"),
        (("promote", "some"), "give ENSEMBLE --as NAME, or --rollback NAME alone"),
        (("promote", "--as", "name"), "give ENSEMBLE --as NAME, or --rollback NAME alone"),
        (("promote", "some", "--as", "a", "--rollback", "a"), "or --rollback NAME alone"),
        (("promote", "--rollback", "nobody"), "there is no such name in the registry"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert done.stderr.strip().endswith(".")
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "now", "sentence"),
    [
        (
            ("mine", "nowhere.star", "--micrographs", ".", "--diameter", "90", "--out", "picks"),
            "`cryoray extract-picks`",
            "nowhere.star",
        ),
        (
            ("evaluate", "-", "nowhere", "--cross-validate", "2", "--out", "folds"),
            "`cryoray cross-validate SET --folds K`",
            "is not a prepared set",
        ),
    ],
)
def test_a_former_name_works_on_and_says_what_to_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    now: str,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert f"is now {now}; the old name goes with the next release." in done.stderr
    assert sentence in done.stderr
    assert not re.search(
        r"\bmine\b|--cross-validate", run("--help").stdout + run("evaluate", "--help").stdout
    )


def test_a_kind_that_is_not_there_yet_is_refused() -> None:
    done = run("inspect", ".", "--kind", "class3d")
    assert done.exit_code == 2
    assert "class3d" in done.stderr


def complain(error: Exception, *, debug: bool = False) -> int:
    with pytest.raises(typer.Exit) as left, terminal.complaints(debug=debug):
        raise error
    return left.value.exit_code


def test_a_bug_is_our_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert complain(ZeroDivisionError("by zero")) == 1
    assert "our fault" in capsys.readouterr().err
    assert complain(InternalError("the row counts do not balance")) == 1
    assert "our fault" in capsys.readouterr().err


def test_an_extra_that_is_not_installed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert complain(ModuleNotFoundError("No module named 'ray.data'", name="ray.data")) == 2
    said = capsys.readouterr().err
    assert said == "this needs ray, which is not installed here; pip install 'cryoray[train]'.\n"
    assert complain(ModuleNotFoundError("No module named 'numpi'", name="numpi")) == 1
    assert "our fault" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "arguments", "remedy"),
    [
        ("matplotlib", ("validate", "fsc", "1.mrc", "2.mrc", "--out", "o"), "cryoray[report]"),
        ("ray", ("train", "set", "--out", "ensemble"), "cryoray[train]"),
        ("sqlalchemy", ("watch", ".", "--session", "one"), "cryoray[session]"),
    ],
)
def test_a_verb_says_before_it_works_which_extra_it_needs(
    tmp_path: Path, module: str, arguments: tuple[str, ...], remedy: str
) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from cryoray.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"this needs {module}, which is not installed here; pip install '{remedy}'.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ZeroDivisionError), terminal.complaints(debug=True):
        raise ZeroDivisionError


def test_an_error_of_a_ray_worker_reads_as_if_it_happened_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrapped = RuntimeError("task failed")
    wrapped.__cause__ = FormatError("is not an MRC file", file="a.mrcs", remedy="copy it again")
    assert complain(wrapped) == 2
    assert capsys.readouterr().err.strip() == "a.mrcs: is not an MRC file; copy it again."


def test_a_full_disk_is_not_our_fault_wherever_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, "as some library says it", "set")
    for error in (full, RayTaskError("prepare", "its traceback", full).as_instanceof_cause()):
        assert complain(error) == 2
        assert capsys.readouterr().err.strip() == (
            "set: No space left on device; make room and give the same command again,"
            " or choose another folder."
        )


def test_a_disk_that_is_closed_is_not_our_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert complain(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "set")) == 2
    assert capsys.readouterr().err.strip() == "set: Permission denied; choose another folder."


def test_file_names_in_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    complain(FormatError("is not an MRC file", file="a[red]b.mrcs"))
    assert "a[red]b.mrcs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None),
        ([], None),
        (["none"], ()),
        (["defocus,phase_shift"], ("defocus", "phase_shift")),
        (["defocus", "phase_shift, astigmatism"], ("defocus", "phase_shift", "astigmatism")),
    ],
)
def test_names_are_repeated_or_comma_separated(
    given: list[str] | None, meant: tuple[str, ...] | None
) -> None:
    assert common.names(given) == meant


def test_what_is_not_given_overrides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s.toml"
    file.write_text("[train]\nworkers = 3\n[train.fit]\nepochs = 7\nbatch = 32\n")
    monkeypatch.setenv("CRYORAY_TRAIN__FIT__BATCH", "16")
    context = typer.Context(typer.main.get_command(app), obj=common.Given(file))
    made = common.settings(context, train={"workers": None, "features": (), "fit": {"epochs": 2}})
    assert (made.train.workers, made.train.fit.epochs, made.train.fit.batch) == (3, 2, 16)
    assert made.train.features == ()


def test_bars_follow_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.Show() as show:
        show.progress(Progress("read", 10, None))
        show.progress(Progress("read", 40, 40))
        show.progress(Progress("judge", 3, 9, "stacks", note="half way"))
        show.event(Event("set.written", {"rows": 40, "path": "a[b]"}))
    shown = capsys.readouterr().err
    assert "40/40 rows" in shown
    assert "3/9" in shown
    assert "half way" in shown
    assert "set.written" in shown
    assert "a[b]" in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12345, "12,345"),
        (0.123456, "0.1235"),
        (float("nan"), "–"),
        (None, "–"),
        (True, "yes"),
        ((1, 2000), "1, 2,000"),
        ([], "–"),
    ],
)
def test_values_as_people_read_them(value: object, shown: str) -> None:
    assert terminal.text(value) == shown


def test_doctor_names_a_remedy_for_what_it_does_not_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("CRYORAY_TOKEN_FILE", str(token))
    found = {one.name: one for one in machine.examine(load())}
    assert found["token of the service"].state == "bad"
    assert found["token of the service"].remedy == f"chmod 600 {token}"
    token.chmod(0o600)
    found = {one.name: one for one in machine.examine(load())}
    assert found["token of the service"].state == "good"
    assert all(one.remedy for one in found.values() if one.state != "good")
    assert {"torch", "ray", "prefect", "cores", "memory", "/dev/shm", "GPU"} <= found.keys()


def test_doctor_says_that_no_token_can_be_kept_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = ("RAY_AUTH_TOKEN_PATH", "CRYORAY_TOKEN_FILE")
    for name in (*variables, "RAY_AUTH_TOKEN", "CRYORAY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc")  # where root cannot write either
    found = {one.name: one for one in machine.examine(load())}
    assert found["home folder"].state == "bad"
    assert all(name in found["home folder"].remedy for name in variables)
    for token, variable in (("token of Ray", variables[0]), ("token of the service", variables[1])):
        assert (found[token].state, variable in found[token].remedy) == ("bad", True)
    done = run("doctor")
    assert done.exit_code == 2
    assert all(name in done.stdout for name in variables)

    for name in variables:
        monkeypatch.setenv(name, str(tmp_path / "tokens" / name))
    found = {one.name: one for one in machine.examine(load())}
    assert found["home folder"].state == "warning"
    assert found["token of Ray"].state == found["token of the service"].state == "good"
    assert not (tmp_path / "tokens").exists()


def test_doctor_names_the_ensembles_that_judge_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_ensemble: Path
) -> None:
    monkeypatch.setenv("CRYORAY_REGISTRY", str(tmp_path))
    digest = promote(tiny_ensemble, tmp_path, "particle").digest
    found = machine._ensemble("particle", tmp_path)
    assert (found.state, found.found) == ("good", f"{digest[:12]}, active in the registry")
    (tmp_path / "particle" / digest / "d1.safetensors").write_bytes(b"")
    assert machine._ensemble("particle", tmp_path).state == "bad"


def test_doctor_exits_2_where_something_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYORAY_REGISTRY", "/proc/nowhere")
    monkeypatch.setenv("CRYORAY_TOKEN_FILE", str(tmp_path / "none"))
    done = run("doctor")
    assert done.exit_code == 2
    assert "/proc" in done.stdout


@pytest.mark.long
def test_an_ensemble_is_promoted_and_rolled_back_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_ensemble: Path
) -> None:
    monkeypatch.setenv("CRYORAY_REGISTRY", str(tmp_path))
    other = save_ensemble(tmp_path / "other", seed=7).path
    first, second = Ensemble.load(tiny_ensemble).digest, Ensemble.load(other).digest
    run("promote", tiny_ensemble, "--as", "live")
    shown = run("promote", other, "--as", "live", "--reason", "more projects")
    assert shown.exit_code == 0, shown.output
    assert first in shown.stdout
    assert second in shown.stdout
    assert (tmp_path / "live" / "active").read_text() == second + "\n"
    assert run("promote", "--rollback", "live").exit_code == 0
    assert (tmp_path / "live" / "active").read_text() == first + "\n"
    again = run("promote", "--rollback", "live")
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)


def test_an_error_that_names_itself_as_its_cause_is_told_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = RuntimeError("of Ray")
    error.__cause__ = error
    assert complain(error) == 1
    assert "RuntimeError: of Ray" in capsys.readouterr().err


def test_who_stops_a_verb_hears_in_one_line_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        (tmp_path / "set.shards").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("cryoray.verbs.ingest.ingest", stopped)
    done = run("ingest", tmp_path, "--out", tmp_path / "set")
    assert done.exit_code == 130
    shards = tmp_path / "set.shards"
    assert done.stderr.strip() == f"Stopped. {shards} stays: the same command goes on from there."


def test_a_setting_s_former_name_works_on_and_says_what_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[ingest]\nalone_mib = 7\n[train.fit]\naverage = 0.5\n[proof]\nseed = 3\n")
    monkeypatch.setenv("CRYORAY_WATCH__AT_ONCE", "3")
    monkeypatch.setenv("CRYORAY_PROOF__SYMMETRY", "D7")
    monkeypatch.setenv("CRYORAY_VALIDATION__RANDOM_SUBSETS", "2")
    context = typer.Context(typer.main.get_command(app), obj=common.Given(file))
    made = common.settings(context)
    assert made.ingest.local_max_mib == 7
    assert made.train.fit.ema_decay == 0.5
    assert made.watch.max_concurrent == 3
    validation = made.validation
    assert (validation.seed, validation.symmetry, validation.random_subsets) == (3, "D7", 2)
    printed = capsys.readouterr().err
    names = (("alone_mib", "local_max_mib"), ("average", "ema_decay"), ("proof", "validation"))
    for old, new in names:
        assert (
            f"the setting {old} is now {new}; the old name goes with the next release." in printed
        )
