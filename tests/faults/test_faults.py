"""What a facility's machines do to a run: nodes go, drivers are killed, disks are full, files hang."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryoray.errors import FormatError
from cryoray.formats.source import Source
from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import RuntimeSettings, load
from cryoray.verbs.classify import classify
from cryoray.verbs.ingest import ingest
from cryoray.verbs.train import train
from tests.faults.machines import filled, small_disk
from tests.preparation.sources import particles, write_source
from tests.sets import write_labelled_set

ROOT = Path(__file__).parents[2]
faults = pytest.mark.faults


def scenario(name: str, folder: Path) -> dict[str, Any]:
    """What a scenario of `nodes.py` found."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.nodes", name, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=500)
        finally:
            process.kill()
            shutil.rmtree(Path("/tmp") / f"cryoray-faults-{process.pid}", ignore_errors=True)
    assert process.returncode == 0, said[-4000:]
    (line,) = (one for one in said.splitlines() if one.startswith("FOUND "))
    found: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    return found


@faults
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_an_ingestion_survives_a_node_and_goes_on_after_its_driver(tmp_path: Path) -> None:
    found = scenario("ingestion", tmp_path)
    assert found["node"], "a node was lost while it ran"
    assert found["lost"] == found["expected"]
    assert found["row_counts"] == 2400
    assert found["killed"] == -9
    assert not found["visible"], "nothing half-done is visible"
    assert found["resumed"]
    assert found["after"] == found["expected"]


@faults
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_training_on_two_nodes_survives_one_of_them(tmp_path: Path) -> None:
    found = scenario("training", tmp_path)
    assert found["node"], "a node was lost while it ran"
    assert found["epochs"] == 18
    assert found["left"] == []


@faults
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_judging_survives_the_loss_of_all_nodes_that_judge(tmp_path: Path) -> None:
    found = scenario("judging", tmp_path)
    assert 0 < found["at"][0] < 3500, "they were lost while it ran"
    assert found["lost"] == found["expected"]
    assert found["lost"]["images"] == found["lost"]["judged"] == 3500
    assert found["apart"] < 1e-4


@faults
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_service_answers_again_after_each_node_and_always_during_an_update(
    tmp_path: Path,
) -> None:
    found = scenario("service", tmp_path)
    assert found["before"] == 0
    assert len(found["away"]) == 2
    assert found["update"] == [], "whoever asked during the update was answered"
    assert found["same"], "whoever answered said the same"


@faults
def test_a_full_disk_is_said_in_a_sentence_and_with_room_it_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_source(source, [particles(300, 64, seed=i) for i in range(4)])
    settings = load(ingest={"preparation": {"box": 64}, "range_mib": 1})
    expected = PreparedSet.open(ingest([source], tmp_path / "expected", settings)).digest
    command = [sys.executable, "-m", "cryoray.cli.main", "ingest", str(source), "--box", "64"]
    environment = {**os.environ, "CRYORAY_INGEST__RANGE_MIB": "1"}
    with small_disk(tmp_path / "disk", 6) as disk:
        command += ["--out", str(disk / "set")]
        full = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert full.returncode == 2, full.stderr
        assert "No space left on device; make room and give the same command" in full.stderr
        assert "Traceback" not in full.stdout + full.stderr
        assert not (disk / "set").exists(), "nothing half-done is visible"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert again.returncode == 0, again.stdout + again.stderr
        assert PreparedSet.open(disk / "set").digest == expected


@faults
def test_a_training_on_a_disk_that_is_full_from_the_beginning_says_so_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    sets = [write_labelled_set(tmp_path, f"p{i}", n=20, seed=i) for i in range(2)]
    command = [sys.executable, "-m", "cryoray.cli.main", "train", *map(str, sets)]
    with small_disk(tmp_path / "disk", 1) as disk:
        out = disk / "ensemble"
        with filled(disk):
            full = subprocess.run(
                [*command, "--out", str(out)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
        assert full.returncode == 2, full.stderr
        assert full.stderr.strip() == (
            f"{out}.partial/run.json: No space left on device; make room and give the same command"
            " again, or choose another folder."
        )
        assert [one for one in disk.rglob("*") if one.is_file()] == []


@pytest.fixture
def piped(tmp_path: Path) -> Source:
    """Two stacks of six and five images, a pipe in place of the second."""
    source = write_source(tmp_path / "source", [particles(6, seed=1), particles(5, seed=2)])
    source.stacks[1].unlink()
    os.mkfifo(source.stacks[1])
    return source


def test_a_pipe_in_place_of_a_stack_hangs_nobody_and_its_rows_are_quarantined(
    piped: Source, tmp_path: Path
) -> None:
    settings = load(ingest={"preparation": {"box": 32}})
    prepared = PreparedSet.open(ingest([tmp_path / "source"], tmp_path / "set", settings))
    assert len(prepared) == int(np.count_nonzero(piped.stack == 0)) == 6
    _quarantined(prepared.quarantine)


@pytest.mark.ray
def test_a_pipe_in_place_of_a_stack_is_not_waited_for_by_judges(
    ray_cluster: RuntimeSettings, piped: Source, tiny_ensemble: Path, tmp_path: Path
) -> None:
    settings = load(classify={"ensemble": str(tiny_ensemble)})
    out = classify(piped.path, tmp_path / "verdicts", settings)
    judged = pq.read_table(out / "verdicts.parquet")["image"].to_pylist()
    assert judged == piped.images[piped.stack == 0].tolist()
    _quarantined(pq.read_table(out / "quarantine.parquet"))


def _quarantined(rows: pa.Table) -> None:
    assert rows.num_rows == 5
    assert all("is a pipe or a device, not a file" in why for why in rows["reason"].to_pylist())


@pytest.mark.ray
def test_a_pipe_in_place_of_a_file_of_a_set_is_said_by_a_training_before_and_while_it_runs(
    ray_cluster: RuntimeSettings, tmp_path: Path
) -> None:
    prepared = [write_labelled_set(tmp_path, f"p{i}", n=20, seed=i) for i in range(2)]
    settings = load(train={"fit": {"epochs": 200, "batch": 32}, "folds": 2, "workers": 2})
    rounds = tmp_path / "ensemble.partial" / "rounds"
    for name in ("particles.parquet", "images-00000.mrcs"):
        file = prepared[1] / name
        kept = file.rename(file.with_suffix(".kept"))
        os.mkfifo(file)
        with pytest.raises(FormatError, match=f"{name}: (cannot be read|is a pipe)"):
            train(prepared, tmp_path / "ensemble", settings)
        assert not rounds.exists(), "no worker was asked"
        file.unlink()
        kept.rename(file)

    def replace(_: object) -> None:
        if file.is_file() and [*rounds.glob("d1/*.pt")]:
            file.unlink()
            os.mkfifo(file)

    with pytest.raises(FormatError, match=r"images-00000\.mrcs: "):
        train(prepared, tmp_path / "ensemble", settings, on_progress=replace)
    assert not file.is_file(), "it became a pipe while workers read it"
