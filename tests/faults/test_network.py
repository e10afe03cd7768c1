"""Machines with cables and switches: what a network that is cut or a head that is lost does to a run."""

from __future__ import annotations

import json
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cryoray.models.ensemble import Ensemble
from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import load
from cryoray.verbs.ingest import ingest
from tests.examples import save_ensemble, write_project
from tests.faults import machines, nodes
from tests.faults.machines import RAY_PORT, REDIS_PORT, Machine, filled, small_disk
from tests.faults.nodes import apart, said
from tests.preparation.sources import particles, write_source
from tests.sets import write_labelled_set

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
def cluster(*processors: int, disk: int = 0, **of_the_head: str) -> Iterator[list[Machine]]:
    """A head and workers with so many processors each; with settings of the head, the last has a Redis.

    Each machine's own folder is a disk of so many MiB, where it is to be a small one.
    """
    temp = Path(tempfile.mkdtemp(prefix="cry-", dir="/tmp")) / "ray"
    with machines.network(1 + len(processors), temp, disk) as made:
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
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small disk that all machines of the facility see."""
    with small_disk(tmp_path_factory.mktemp("shared") / "disk", 48) as made:
        yield made


@pytest.fixture(scope="module")
def facility(disk: Path) -> Iterator[list[Machine]]:
    """A head that keeps its state in Redis, and two workers."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server")
    with cluster(2, 2, RAY_REDIS_ADDRESS=f"{{redis}}:{REDIS_PORT}") as made:
        made[0].environment.update(CRYORAY_RUNTIME__ADDRESS=f"{made[0].address}:{RAY_PORT}")
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


def done(running: subprocess.Popen[str], code: int = 0) -> str:
    """What a command said that ends so, in a sentence or two."""
    said, _ = running.communicate(timeout=400)
    assert running.returncode == code, said[-3000:]
    assert "Traceback" not in said, said[-3000:]
    return said


def cut_off(*cut: Machine) -> None:
    """Cut the network for half a minute."""
    for one in cut:
        one.pull()
    time.sleep(30)
    for one in cut:
        one.plug()


def start_again(cut: Machine, head: Machine) -> None:
    """What is cut off for longer than Ray waits is a node lost: it ends its Ray, and is started again."""
    cut.off()
    cut.on()
    cut.worker(head, 2)


def kill(driver: subprocess.Popen[str], head: Machine) -> None:
    """Have a driver end at once."""
    head.kill(driver)
    driver.communicate(timeout=60)
    assert driver.returncode == -signal.SIGKILL


def test_a_network_that_is_cut_for_half_a_minute_costs_time_alone(
    facility: list[Machine], source: Path, expected: str, tmp_path: Path
) -> None:
    head, cut, _ = facility
    running = ingesting(head, head, source, tmp_path / "set")
    cut_off(cut)
    done(running)
    assert PreparedSet.open(tmp_path / "set").digest == expected
    start_again(cut, head)


def test_a_head_with_redis_comes_back_and_finds_what_runs(
    facility: list[Machine], source: Path, expected: str, tmp_path: Path
) -> None:
    head, _, worker = facility
    running = ingesting(worker, head, source, tmp_path / "set")
    head.off()
    time.sleep(3)
    head.on()
    head.head()
    done(running)
    assert PreparedSet.open(tmp_path / "set").digest == expected


def test_a_head_without_redis_is_missed_in_a_sentence_and_what_was_done_is_kept(
    source: Path, expected: str, tmp_path: Path
) -> None:
    with cluster(0, 2) as (head, desk, worker):
        patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "20"}
        running = ingesting(desk, head, source, tmp_path / "set", **patience)
        head.off()
        worker.off()
        said = done(running, 2)
    assert f"The head of Ray at {head.address}:{RAY_PORT} has been away for 1" in said
    assert not (tmp_path / "set").exists(), "nothing half-done is visible"
    events: list[str] = []
    again = ingest(
        [source], tmp_path / "set", SETTINGS, on_event=lambda one: events.append(one.name)
    )
    assert "ingest.resumed" in events
    assert PreparedSet.open(again).digest == expected


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sets to learn from."""
    folder = tmp_path_factory.mktemp("sets")
    return [write_labelled_set(folder, f"p{i}", n=30, seed=i) for i in range(2)]


def training(head: Machine, sets: list[Path], out: Path) -> subprocess.Popen[str]:
    """The command on the head; its workers are on two machines."""
    head.environment.update(CRYORAY_TRAIN__FIT__EPOCHS="3", CRYORAY_TRAIN__FOLDS="2")
    return cryoray(head, "train", *sets, "--out", out, "--workers", 2)


@pytest.fixture(scope="module")
def learned(
    facility: list[Machine], sets: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The digest of the ensemble that an undisturbed training makes."""
    out = tmp_path_factory.mktemp("learned") / "ensemble"
    done(training(facility[0], sets, out))
    return Ensemble.load(out).digest


@pytest.mark.exhaustive
def test_a_training_on_two_machines_outlives_a_cut_and_learns_the_same(
    facility: list[Machine], sets: list[Path], learned: str, tmp_path: Path
) -> None:
    head, cut, _ = facility
    running = training(head, sets, tmp_path / "ensemble")
    until(lambda: (tmp_path / "ensemble.partial/rounds/d1").exists(), running)
    cut_off(cut)
    done(running)
    assert Ensemble.load(tmp_path / "ensemble").digest == learned
    start_again(cut, head)


def appears(folder: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(folder.glob(pattern))


@pytest.mark.exhaustive
def test_a_training_whose_driver_is_killed_again_and_again_goes_on_and_learns_the_same(
    facility: list[Machine], sets: list[Path], learned: str, tmp_path: Path
) -> None:
    head, out = facility[0], tmp_path / "ensemble"
    rounds = tmp_path / "ensemble.partial/rounds"
    for reached in ("d1/d1-*.pt", "d1/held-out.npy", "d2/d2-*.pt"):
        running = training(head, sets, out)
        until(appears(rounds, reached), running)
        kill(running, head)
        assert not out.exists(), "nothing half-done is visible"
    first = (rounds / "d1/final.safetensors").stat().st_mtime_ns
    running = training(head, sets, out)
    until(lambda: any(rounds.glob("d3/*")), running)
    assert (rounds / "d1/final.safetensors").stat().st_mtime_ns == first, "d1 was not fitted again"
    done(running)
    assert Ensemble.load(out).digest == learned
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ensemble", "ensemble-labels"]


@pytest.mark.exhaustive
def test_a_training_says_that_a_disk_is_full_and_with_room_goes_on_and_learns_the_same(
    facility: list[Machine], sets: list[Path], learned: str, disk: Path
) -> None:
    head, out = facility[0], disk / "ensemble"
    rounds = disk / "ensemble.partial/rounds"
    for reached in ("d1/d1-*.pt", "d2/d2-*.pt"):
        running = training(head, sets, out)
        until(appears(rounds, reached), running)
        with filled(disk):
            told = done(running, 2)
            assert f"{disk}/" in told
            assert "No space left on device; make room and give the same command again" in told
            assert not out.exists(), "nothing half-done is visible"
    with filled(disk):
        assert f"{disk}/" in done(training(head, sets, out), 2)
    done(training(head, sets, out))
    assert Ensemble.load(out).digest == learned
    assert sorted(one.name for one in disk.iterdir()) == ["ensemble", "ensemble-labels"]
    for one in disk.iterdir():
        shutil.rmtree(one)


@pytest.fixture(scope="module")
def judge(facility: list[Machine], source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble; it judged the source undisturbed, into a folder beside it."""
    folder = tmp_path_factory.mktemp("judge")
    ensemble = save_ensemble(folder / "tiny").path
    facility[0].environment.update(
        CRYORAY_CLASSIFY__ENSEMBLE=str(ensemble), CRYORAY_CLASSIFY__RANGE_MIB="1"
    )
    done(cryoray(facility[0], "classify", source, "--out", folder / "verdicts"))
    return folder / "verdicts"


def judging(head: Machine, source: Path, out: Path) -> subprocess.Popen[str]:
    """A judging, as soon as it is in the middle."""
    script = [sys.executable, str(Path(nodes.__file__)), "slowly", str(source), str(out)]
    running = head.start(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert running.stdout is not None
    so_far = ""
    for line in running.stdout:
        so_far += line
        if line.startswith("done ") and int(line.split()[1]) >= 200:
            assert int(line.split()[1]) < 2000
            return running
    raise AssertionError(so_far[-3000:])


def same(verdicts: Path, undisturbed: Path) -> None:
    """They say the same of the same images, each once, and lie alone in their folder."""
    assert said(verdicts) == said(undisturbed)
    assert said(verdicts)["judged"] == said(verdicts)["images"] == 2400
    assert apart(verdicts, undisturbed) < 1e-4
    assert [one.name for one in verdicts.parent.iterdir()] == ["verdicts"]


@pytest.mark.exhaustive
def test_judging_outlives_a_cut_and_says_the_same(
    facility: list[Machine], source: Path, judge: Path, tmp_path: Path
) -> None:
    head, cut, _ = facility
    running = judging(head, source, tmp_path / "verdicts")
    cut_off(cut)
    done(running)
    same(tmp_path / "verdicts", judge)
    start_again(cut, head)


@pytest.mark.exhaustive
def test_judging_whose_driver_is_killed_says_the_same_when_it_is_asked_again(
    facility: list[Machine], source: Path, judge: Path, tmp_path: Path
) -> None:
    head, out = facility[0], tmp_path / "verdicts"
    kill(judging(head, source, out), head)
    assert not out.exists(), "nothing half-done is visible"
    done(cryoray(head, "classify", source, "--out", out))
    same(out, judge)


@pytest.mark.exhaustive
def test_judging_says_that_a_disk_is_full_and_with_room_says_the_same(
    facility: list[Machine], source: Path, judge: Path, disk: Path
) -> None:
    head, out = facility[0], disk / "verdicts"
    needed = sum(one.stat().st_size for one in judge.rglob("*"))
    for room in (0, needed // 4, 3 * needed // 4):
        with filled(disk, but=room):
            told = done(cryoray(head, "classify", source, "--out", out), 2)
        assert f"{out}: No space left on device; make room and give the same command again" in told
        assert [*disk.iterdir()] == [], "nothing half-done is left"
    done(cryoray(head, "classify", source, "--out", out))
    same(out, judge)
    shutil.rmtree(out)


@dataclass
class Service:
    """A service, the process that deployed it, and those who ask it again and again."""

    deployer: subprocess.Popen[str]
    asking: subprocess.Popen[str]
    answers: Path
    failed: list[tuple[float, str]] = field(default_factory=list)  # known at the end

    def answered(self, after: float) -> int:
        """How many were answered what they asked after a time."""
        lines = self.answers.read_text().splitlines() if self.answers.exists() else []
        return sum(float(line.split()[0]) > after for line in lines)

    def answers_now(self, enough: int = 5) -> None:
        """Wait until so many are answered what they ask from now on."""
        began = time.time()
        until(lambda: self.answered(began) >= enough, self.asking)


@contextmanager
def service(head: Machine, folder: Path) -> Iterator[Service]:
    """A service deployed from the head, which says the same all the time."""
    write_project(folder / "project")
    ensemble = save_ensemble(folder / "tiny").path
    head.environment.update(
        CRYORAY_RUNTIME__ADDRESS=f"{head.address}:{RAY_PORT}", CRYORAY_TOKEN="a-token-for-tests"
    )
    served = cryoray(head, "serve", "--ensemble", ensemble, "--root", folder, "--port", 8123)
    try:
        script = [sys.executable, str(Path(nodes.__file__)), "asking", str(folder)]
        asking = head.start(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        one = Service(served, asking, folder / "answers")
        until(lambda: one.answered(0) >= 5, served, asking)
        yield one
        (folder / "enough").touch()
        (found,) = (line for line in done(asking).splitlines() if line.startswith("FOUND "))
        one.failed += json.loads(found.removeprefix("FOUND "))["errors"]
    finally:
        head.kill(served)
        served.communicate(timeout=60)
    digests = {line.split()[1] for line in one.answers.read_text().splitlines()}
    assert len(digests) == 1, "the same answer all the time"


@pytest.mark.exhaustive
def test_a_service_outlives_a_cut_and_whoever_deployed_it(
    facility: list[Machine], tmp_path: Path
) -> None:
    head, *judges = facility
    with service(head, tmp_path) as one:
        dark = time.time()
        cut_off(*judges)  # nobody is left who could judge
        assert not one.answered(dark + 5), "somebody answered whom nothing could have told"
        light = time.time()

        def back() -> bool:
            for judge in judges:
                if not judge.has_ray():
                    start_again(judge, head)
            return one.answered(light) >= 5

        until(back, one.asking)
        kill(one.deployer, head)
        alone = time.time()
        one.answers_now(20)
    assert [why for asked, why in one.failed if asked > alone] == []


@pytest.mark.exhaustive
def test_a_service_on_machines_whose_disks_are_full_answers_everybody(tmp_path: Path) -> None:
    with cluster(2, 2, disk=64) as made, service(made[0], tmp_path) as one:
        began = time.time()
        with ExitStack() as full:
            for machine in made:
                full.enter_context(filled(machine.own))
            one.answers_now(100)
            assert {shutil.disk_usage(machine.own).free for machine in made} == {0}
        one.answers_now()
    assert [why for asked, why in one.failed if asked > began] == []


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
