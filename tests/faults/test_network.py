"""Machines with cables and switches: what a network that is cut or a head that is lost does to a run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryoray.ingest import ingest
from cryoray.models.ensemble import Ensemble
from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import load
from tests.examples import save_ensemble, write_project
from tests.faults import machines, nodes
from tests.faults.machines import RAY_PORT, REDIS_PORT, Machine, filled, small_disk
from tests.faults.nodes import apart, said
from tests.preparation.sources import particles, write_source
from tests.training.sets import write_labelled_set

pytestmark = [
    pytest.mark.faults,
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not machines.possible(), reason="this user may not make namespaces"),
]

SETTINGS = load(ingest={"preparation": {"box": 32}, "range_mib": 1})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,400 images, in tasks enough to be disturbed."""
    folder = tmp_path_factory.mktemp("network") / "source"
    return write_source(folder, [particles(400, 96, seed=i) for i in range(6)]).path


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the set that an undisturbed ingestion makes."""
    out = tmp_path_factory.mktemp("expected") / "set"
    return PreparedSet.open(ingest([source], out, SETTINGS)).digest


@contextmanager
def cluster(*processors: int, **of_the_head: str) -> Iterator[list[Machine]]:
    """A head and workers with so many processors each; with settings of the head, the last has a Redis."""
    temp = Path(tempfile.mkdtemp(prefix="cry-", dir="/tmp")) / "ray"
    with machines.network(1 + len(processors), temp) as made:
        head, *workers = made
        if of_the_head:
            redis = ["redis-server", "--bind", made[-1].address, "--port", str(REDIS_PORT)]
            made[-1].start(
                [*redis, "--protected-mode", "no", "--save", ""], stdout=subprocess.DEVNULL
            )
            of_the_head = {k: v.format(redis=made[-1].address) for k, v in of_the_head.items()}
        head.environment.update(of_the_head)
        head.head()
        starting = [
            threading.Thread(target=one.worker, args=(head, cpus))
            for one, cpus in zip(workers, processors, strict=True)
        ]
        for one in starting:
            one.start()
        for one in starting:
            one.join()
        yield made
    shutil.rmtree(temp.parent, ignore_errors=True)


@pytest.fixture(scope="module")
def facility() -> Iterator[list[Machine]]:
    """A head that keeps its state in Redis, and two workers."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server")
    with cluster(2, 2, RAY_REDIS_ADDRESS=f"{{redis}}:{REDIS_PORT}") as made:
        yield made


def cryoray(machine: Machine, *words: object) -> subprocess.Popen[str]:
    """A command on a machine."""
    command = [sys.executable, "-m", "cryoray.cli.main", *map(str, words)]
    return machine.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ingesting(
    machine: Machine, head: Machine, source: Path, out: Path, **environment: str
) -> subprocess.Popen[str]:
    """The command on a machine, as soon as it is well under way."""
    machine.environment.update(
        CRYORAY_RUNTIME__ADDRESS=f"{head.address}:{RAY_PORT}",
        CRYORAY_INGEST__RANGE_MIB="1",
        **environment,
    )
    running = cryoray(machine, "ingest", source, "--box", 32, "--out", out)
    shards = out.with_name(out.name + ".shards")
    until(lambda: len([*shards.glob("*.npy")]) >= 8, running)
    return running


def test_a_network_that_is_cut_for_half_a_minute_costs_time_alone(
    facility: list[Machine], source: Path, expected: str, tmp_path: Path
) -> None:
    head, cut, _ = facility
    running = ingesting(head, head, source, tmp_path / "set")
    cut.pull()
    time.sleep(30)
    cut.plug()
    said, _ = running.communicate(timeout=240)
    assert running.returncode == 0, said
    assert PreparedSet.open(tmp_path / "set").digest == expected
    # What is cut off for longer than Ray waits is a node lost: it ends its Ray, and is started again.
    cut.off()
    cut.on()
    cut.worker(head, 2)


def test_a_head_with_redis_comes_back_and_finds_what_runs(
    facility: list[Machine], source: Path, expected: str, tmp_path: Path
) -> None:
    head, _, worker = facility
    running = ingesting(worker, head, source, tmp_path / "set")
    head.off()
    time.sleep(3)
    head.on()
    head.head()
    said, _ = running.communicate(timeout=240)
    assert running.returncode == 0, said
    assert PreparedSet.open(tmp_path / "set").digest == expected


def test_a_head_without_redis_is_missed_in_a_sentence_and_what_was_done_is_kept(
    source: Path, expected: str, tmp_path: Path
) -> None:
    with cluster(0, 2) as (head, desk, worker):
        patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "20"}
        running = ingesting(desk, head, source, tmp_path / "set", **patience)
        head.off()
        worker.off()
        said, _ = running.communicate(timeout=120)
    assert running.returncode == 2, said
    assert f"The head of Ray at {head.address}:{RAY_PORT} has been away for 1" in said
    assert "Traceback" not in said
    assert not (tmp_path / "set").exists(), "nothing half-done is visible"
    events: list[str] = []
    again = ingest(
        [source], tmp_path / "set", SETTINGS, on_event=lambda one: events.append(one.name)
    )
    assert "ingest.resumed" in events
    assert PreparedSet.open(again).digest == expected


@pytest.mark.exhaustive
def test_a_training_on_two_machines_outlives_a_cut_and_learns_the_same(
    facility: list[Machine], tmp_path: Path
) -> None:
    head, cut, _ = facility
    sets = [write_labelled_set(tmp_path, f"p{i}", n=30, seed=i) for i in range(2)]
    head.environment.update(
        CRYORAY_RUNTIME__ADDRESS=f"{head.address}:{RAY_PORT}",
        CRYORAY_TRAIN__FIT__EPOCHS="3",
        CRYORAY_TRAIN__FOLDS="2",
    )
    made = []
    for name in ("undisturbed", "cut-off"):
        out = tmp_path / name
        running = cryoray(head, "train", *sets, "--out", out, "--workers", 2)
        if name == "cut-off":
            until(lambda: (tmp_path / "cut-off.partial/rounds/d1").exists(), running)
            cut.pull()
            time.sleep(30)
            cut.plug()
        told, _ = running.communicate(timeout=400)
        assert running.returncode == 0, told
        made.append(Ensemble.load(out).digest)
    assert made[0] == made[1]
    cut.off()
    cut.on()
    cut.worker(head, 2)


@pytest.mark.exhaustive
def test_a_service_whose_judges_are_cut_off_answers_the_same_when_they_are_back(
    facility: list[Machine], tmp_path: Path
) -> None:
    head, *workers = facility
    write_project(tmp_path / "project")
    ensemble = save_ensemble(tmp_path / "tiny").path
    head.environment.update(
        CRYORAY_RUNTIME__ADDRESS=f"{head.address}:{RAY_PORT}", CRYORAY_TOKEN="a-token"
    )
    served = cryoray(head, "serve", "--ensemble", ensemble, "--root", tmp_path, "--port", 8123)
    try:
        script = str(Path(nodes.__file__))
        command = [sys.executable, script, "asking", str(tmp_path)]
        asking = head.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        answers = tmp_path / "answers"

        def answered(after: float, enough: int = 5) -> bool:
            lines = answers.read_text().splitlines() if answers.exists() else []
            return sum(float(line.split()[0]) > after for line in lines) >= enough

        until(lambda: answered(0), served, asking)
        for one in workers:  # nobody is left who could judge
            one.pull()
        dark = time.time()
        time.sleep(30)
        assert not answered(dark + 5, 1), "somebody answered whom nothing could have told"
        for one in workers:
            one.plug()
        light = time.time()
        until(lambda: answered(light), served, asking)
        (tmp_path / "enough").touch()
        told, _ = asking.communicate(timeout=120)
        assert asking.returncode == 0, told
    finally:
        head.kill(served)
        served.communicate(timeout=60)
    said = {line.split()[1] for line in answers.read_text().splitlines()}
    assert len(said) == 1, "the same answer before and after"


def until(what: Callable[[], bool], *running: subprocess.Popen[str]) -> None:
    """Wait for it, as long as these run."""
    end = time.monotonic() + 180
    while not what():
        for one in running:
            assert one.poll() is None, one.communicate()[0]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_twenty_random_faults_change_nothing_but_the_time(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [particles(400, 96, seed=i) for i in range(6)]).path
    damaged = source.parent / "f.mrcs"
    os.truncate(damaged, damaged.stat().st_size - 60 * 96 * 96 * 4)
    ensemble = save_ensemble(tmp_path / "tiny").path
    expected = PreparedSet.open(ingest([source], tmp_path / "set", SETTINGS))
    chance, struck, runs = random.Random(20), [], 0
    with small_disk(tmp_path / "disk", 48) as disk, cluster(2, 2) as (head, *workers):
        head.environment.update(
            CRYORAY_RUNTIME__ADDRESS=f"{head.address}:{RAY_PORT}",
            CRYORAY_INGEST__RANGE_MIB="1",
            CRYORAY_CLASSIFY__RANGE_MIB="1",
        )
        judge = ("classify", source, "--ensemble", ensemble, "--out")
        quiet = cryoray(head, *judge, tmp_path / "verdicts")
        told, _ = quiet.communicate(timeout=120)
        assert quiet.returncode == 0, told

        def strike(driver: subprocess.Popen[str]) -> None:
            struck.append(chance.choice(("power", "power", "cable", "driver", "disk")))
            worker = workers[chance.randrange(2)]
            match struck[-1]:
                case "power":
                    worker.off()
                    worker.on()
                    worker.worker(head, 2)
                case "cable":
                    worker.pull()
                    ends_within(driver, chance.uniform(2, 6))
                    worker.plug()
                case "driver":
                    head.kill(driver)
                case "disk":
                    with filled(disk):
                        ends_within(driver, 8)

        def until_done(*words: object) -> None:
            """The same command again and again, as a person or Prefect gives it."""
            for _ in range(40):
                driver = cryoray(head, *words)
                while not ends_within(driver, chance.uniform(3, 10)):
                    if len(struck) < 20:
                        strike(driver)
                told = driver.communicate()[0]
                assert driver.returncode in (0, 2, -signal.SIGKILL), told[-3000:]
                assert "Traceback" not in told, told[-3000:]
                if driver.returncode == 0:
                    return
            raise AssertionError(f"never done: {told[-3000:]}")

        while len(struck) < 20:
            runs += 1
            out, verdicts = disk / f"set-{runs}", disk / f"verdicts-{runs}"
            until_done("ingest", source, "--box", 32, "--out", out)
            until_done(*judge, verdicts)
            made = PreparedSet.open(out)
            assert made.digest == expected.digest
            images = made.table["image"].to_pylist()
            assert (len(set(images)), made.quarantine.num_rows) == (2340, 60)
            assert len(images) == 2340, "no row twice"
            assert said(verdicts) == said(tmp_path / "verdicts")
            assert said(verdicts)["judged"] == said(verdicts)["images"] == 2340
            assert apart(verdicts, tmp_path / "verdicts") < 1e-4
            assert sorted(disk.iterdir()) == [out, verdicts], "nothing half-done is left"
            shutil.rmtree(out)
            shutil.rmtree(verdicts)
    assert len(struck) == 20
    assert set(struck) == {"power", "cable", "driver", "disk"}


def ends_within(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether it does."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    return process.poll() is not None
