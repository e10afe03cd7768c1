"""The verb: which ensemble judged, where it listens, and what a second one is told."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from cryoray.errors import EnsembleError, InputError, SettingsError
from cryoray.formats.source import open_source
from cryoray.settings import SelectSettings, Settings
from cryoray.verbs.classify import classify
from cryoray.verbs.select import select
from tests import examples
from tests.select.conftest import judged


@pytest.fixture
def verdicts(tmp_path: Path) -> Path:
    star = examples.write_project(tmp_path / "project", (30, 12))
    return judged(open_source(star), tmp_path / "verdicts")


def test_the_ensemble_that_judged_is_found_in_the_registry_by_its_digest(
    tmp_path: Path, tiny_ensemble: Path
) -> None:
    star = examples.write_project(tmp_path / "project", (30, 12))
    digest = examples.save_ensemble(tmp_path / "again").digest
    (tmp_path / "registry/mine").mkdir(parents=True)
    (tmp_path / "again").rename(tmp_path / "registry/mine" / digest)
    out = judged(open_source(star), tmp_path / "verdicts", about={"ensemble": digest})
    settings = Settings(registry=tmp_path / "registry")
    with select(out, settings) as opened:
        judge = opened.page.selection.judge
        assert judge is not None
        assert digest[:12] in judge.name
        asked = opened.page.selection.ask("a")
        opened.page.selection.clicks.turn("a", asked.tolist(), 0)
        before = opened.page.selection.scores(opened.page.selection.clicks.state)
        opened.page.selection.adapt("a")
        after = opened.page.selection.scores(opened.page.selection.clicks.state)
        assert (after < before).all(), "of twenty images none was good"
    with select(out, Settings(registry=tmp_path / "none")) as opened:
        assert opened.page.selection.judge is None
    with pytest.raises(EnsembleError, match="is not the ensemble that judged"):
        select(out, settings, ensemble=tiny_ensemble).__enter__()


def test_a_second_one_on_the_same_verdicts_is_told_and_the_port_is_free_again(
    verdicts: Path,
) -> None:
    with select(verdicts, Settings()) as opened:
        with pytest.raises(InputError, match="another `cryoray select`"):
            select(verdicts, Settings()).__enter__()
        port = opened.listening.getsockname()[1]
        assert opened.listening.getsockname()[0] == "127.0.0.1"
        taken = Settings(select=SelectSettings(port=port))
        other = judged(opened.page.selection.table.source, verdicts.with_name("others"))
        with pytest.raises(SettingsError, match=f"port {port} cannot be used"):
            select(other, taken).__enter__()
    with socket.create_server(("127.0.0.1", port)):
        pass
    with select(verdicts, Settings()):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_says_why_it_must_be(verdicts: Path) -> None:
    verdicts.chmod(0o555)
    with pytest.raises(InputError, match="what is decided is kept there"):
        select(verdicts, Settings()).__enter__()


def test_out_that_is_something_else_is_refused_before_anything_is_decided(
    verdicts: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is not a folder of a selection"):
        select(verdicts, Settings(), out=tmp_path / "project").__enter__()


def test_classify_does_not_replace_verdicts_on_which_somebody_made_a_selection(
    verdicts: Path, tmp_path: Path, tiny_ensemble: Path
) -> None:
    with select(verdicts, Settings()) as opened:
        opened.page.selection.clicks.turn("a", [1], 0)
    before = (verdicts / "selection.jsonl").read_bytes()
    settings = Settings.model_validate({"classify": {"ensemble": str(tiny_ensemble)}})
    with pytest.raises(InputError, match="a selection that a person made"):
        classify(tmp_path / "project/particles.star", verdicts, settings)
    assert (verdicts / "selection.jsonl").read_bytes() == before


@pytest.mark.long
def test_the_command_prints_the_link_serves_the_page_and_ends_well(verdicts: Path) -> None:
    command = [sys.executable, "-m", "cryoray.cli.main", "select", str(verdicts), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        text = ""
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", text)):
            line = running.stdout.readline()
            assert line, text
            text += line
        answer = httpx.get(found.group())
        running.send_signal(signal.SIGINT)
        rest = running.stdout.read()
        assert running.wait(60) == 0, rest
    assert (answer.status_code, len(answer.cookies)) == (200, 1)
    assert "url=/" in answer.text
    assert "`cryoray select` goes on from there" in rest
