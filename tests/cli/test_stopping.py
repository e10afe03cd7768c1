"""Ctrl-C of a command: it ends soon, says in a line what it leaves behind, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.sets import write_labelled_set

#: Nobody asserts how fast: this is for a machine that others keep busy, and a minute is a fault.
_SOON = 40.0
_ENVIRONMENT = "CRYORAY_TEST_STARTED_BY"


def wait(what: Callable[[], bool], seconds: float = 240.0) -> bool:
    """Whether something came true in time."""
    until = time.monotonic() + seconds
    while not (true := what()) and time.monotonic() < until:
        time.sleep(0.1)
    return true


@pytest.fixture
def word() -> Iterator[str]:
    """What all processes of a test have in their environment; those that are left are killed."""
    chosen = uuid.uuid4().hex
    yield chosen
    for process in running(chosen):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def running(word: str) -> list[int]:
    """The processes that have a word in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{_ENVIRONMENT}={word}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


@pytest.mark.ray
def test_train_ends_soon_and_names_what_it_leaves_behind(tmp_path: Path, word: str) -> None:
    examples = write_labelled_set(tmp_path, "p", n=200)
    out, log = tmp_path / "ensemble", tmp_path / "stderr"
    command = [sys.executable, "-m", "cryoray.cli.main", "train", str(examples)]
    command += ["--out", str(out), "--epochs", "1000", "--split-by", "micrograph"]
    with log.open("wb") as stderr:
        started = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # a process group of its own, as a shell gives to a command
            env={**os.environ, _ENVIRONMENT: word},
        )
    partial = out.with_name("ensemble.partial")
    assert wait(lambda: any(partial.glob("rounds/d1/curve-*.jsonl")) or started.poll() is not None)
    assert started.poll() is None, log.read_text()
    os.killpg(started.pid, signal.SIGINT)  # to all of it, as a terminal does
    printed, _ = started.communicate(timeout=_SOON)
    *bars, last = log.read_text().splitlines()
    assert started.returncode == 130
    assert last == f"Stopped. {partial} stays: the same command goes on from there."
    assert not any("Traceback" in line or "Error" in line for line in bars)
    assert printed == b""
    assert wait(lambda: not running(word)), "processes stay"
