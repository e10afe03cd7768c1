"""One setting says where a verb runs; as a job, its id is the work's and its words come back."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from cryoray.engine import runtime
from cryoray.errors import SettingsError
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import Event, Progress
from cryoray.settings import RuntimeSettings
from flows import engine
from tests.preparation.sources import particles, write_source

_ROOT = Path(__file__).parents[2]


def test_the_same_work_is_the_same_job_wherever_it_runs(tmp_path: Path) -> None:
    asked = {"sources": [tmp_path / "a.star"], "out": tmp_path / "set"}
    here = engine._request("ingest", asked, {"ingest": {"box": 32}})
    there = engine._request("ingest", asked, {"runtime": {"address": "x"}, "ingest": {"box": 32}})
    other = engine._request("ingest", asked, {"ingest": {"box": 64}})
    assert engine.job_id("ingest", here) == engine.job_id("ingest", there)
    assert engine.job_id("ingest", here) != engine.job_id("ingest", other)
    assert json.loads(here)["arguments"]["sources"] == [str(tmp_path / "a.star")]


def test_what_a_verb_says_survives_its_job_s_log(capsys: pytest.CaptureFixture[str]) -> None:
    speaker = engine.Speaker()
    progress, event = Progress("prepare", 7, 9, note="1 GB"), Event("ingest.done", {"rows_in": 9})
    speaker.progress(progress)
    speaker.progress(Progress("prepare", 8, 9))  # too soon to say
    speaker.event(event)
    heard: list[object] = []
    log = "some warning\n" + capsys.readouterr().out
    engine.hear(log, heard.append, heard.append)
    assert heard == [progress, event]


def test_a_job_server_is_no_ray_to_join() -> None:
    with pytest.raises(SettingsError, match="takes jobs"):
        runtime.connect(RuntimeSettings(address="http://127.0.0.1:8265"))


def test_in_the_job_the_verb_is_done_and_its_failure_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = {"sources": [tmp_path / "none.star"], "out": tmp_path / "set"}
    with pytest.raises(SystemExit):
        engine.main(engine._request("ingest", asked, {}))
    assert "none.star: there is no such file or folder" in capsys.readouterr().out
    assert "RAY_ADDRESS" not in os.environ  # what comes after in this process finds its own Ray


_SCRIPT = """
import os, sys, time, ray
from importlib import import_module
from pathlib import Path
folder = Path(sys.argv[1])
started = ray.init(address="local", num_cpus=4, include_dashboard=True, dashboard_port=0,
    object_store_memory=150 << 20, _temp_dir=sys.argv[2], log_to_driver=False)
from flows import engine
from cryoray.errors import SettingsError
heard = []
over = {"runtime": {"address": f"http://{started.dashboard_url}"}}
asked = {"sources": [folder / "source"], "out": folder / "set"}
done, began = 0, time.monotonic()
while done < 2:
    try:
        engine.run("ingest", asked, folder / "set", over, heard.append, heard.append)
        done += 1
    except SettingsError as error:  # a Ray that has just started
        if "No available agent" not in str(error) or time.monotonic() - began > 120:
            raise
        time.sleep(1)
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient(over["runtime"]["address"])
submitted = [job for job in client.list_jobs() if job.submission_id]  # this driver is one too
print("JOBS", len(submitted), "HEARD", [e.name for e in heard if hasattr(e, "name")])
try:
    engine.run("ingest", {**asked, "sources": [folder / "no"]}, folder / "b", over, print, print)
except Exception as error:
    print("ERROR", error)
"""


@pytest.mark.ray
@pytest.mark.system
def test_a_verb_is_done_once_as_a_job_of_a_cluster(tmp_path: Path) -> None:
    write_source(tmp_path / "source", [particles(6)])
    temp = Path("/tmp") / f"cryoray-jobs-{os.getpid()}"
    temp.mkdir()
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text("0123456789abcdef" * 4)
    environment = {
        k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")
    }
    environment |= {"PYTHONPATH": str(_ROOT), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    # A job runs `python`, which on a cluster's machines is the one that cryoray is installed for.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(tmp_path), str(temp)],
            env=environment, capture_output=True, text=True, timeout=240, cwd=_ROOT, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert len(PreparedSet.open(tmp_path / "set")) == 6
    (jobs,) = (line for line in done.stdout.splitlines() if line.startswith("JOBS"))
    assert jobs.startswith("JOBS 1 "), "the second call found the work done"
    assert "ingest.done" in jobs
    (error,) = (line for line in done.stdout.splitlines() if line.startswith("ERROR"))
    assert "there is no such file or folder" in error
    assert "ray job logs" in error


@pytest.mark.parametrize(
    ("verb", "names"),
    [
        ("ingest", ("sources", "out")),
        ("train", ("sets", "out")),
        ("classify", ("source", "out")),
        ("evaluate", ("ensemble", "prepared", "out")),
        ("cross-validate", ("sets", "out")),
    ],
)
def test_flows_call_verbs_by_the_names_of_their_arguments(
    verb: str, names: tuple[str, ...]
) -> None:
    module, _, name = engine.VERBS[verb].partition(":")
    function = getattr(import_module(module), name)
    callbacks = dict.fromkeys(("settings", "on_progress", "on_event"))
    inspect.signature(function).bind(**dict.fromkeys(names), **callbacks)
