"""Training with Ray: what comes out, whatever the workers, whatever was interrupted."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoray.boosting.filtering import everything
from cryoray.errors import InputError
from cryoray.models.ensemble import Ensemble, training_record
from cryoray.models.networks import Network
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import Event, Progress
from cryoray.settings import RuntimeSettings, Settings, load
from cryoray.training import train, trainer
from tests.training.sets import write_labelled_set

pytestmark = pytest.mark.ray


def settings(runtime: RuntimeSettings, **train: object) -> Settings:
    fit = {"epochs": 2, "batch": 32, "learning_rate": 5e-3}
    return load(runtime=runtime, train={"fit": fit, "folds": 2, "workers": 1, **train})


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sets")
    return [write_labelled_set(folder, f"p{i}", seed=i) for i in range(3)]


@pytest.fixture(scope="module")
def one_worker(
    ray_cluster: RuntimeSettings, sets: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ensemble, list[Progress], list[Event]]:
    told: list[Progress] = []
    events: list[Event] = []
    out = train(
        sets,
        tmp_path_factory.mktemp("one") / "ensemble",
        settings(ray_cluster),
        on_progress=told.append,
        on_event=events.append,
    )
    return Ensemble.load(out), told, events


def test_an_ensemble_comes_out_with_its_record(
    one_worker: tuple[Ensemble, list[Progress], list[Event]], sets: list[Path]
) -> None:
    ensemble, told, events = one_worker
    assert ensemble.path is not None
    files = sorted(f.name for f in ensemble.path.iterdir())
    weights = [f"d{i}.safetensors" for i in (1, 2, 3)]
    assert files == ["card.md", *weights, "ensemble.json", "training.json"]
    assert ensemble.manifest.training_groups == ("p0", "p1", "p2")
    curves = training_record(ensemble.path)["curves"]
    assert len(curves) == 3 * 3 * 2  # members, folds and the final fit, epochs
    assert (told[-1].done, told[-1].total) == (18, 18)
    assert [e.name for e in events] == ["round.done"] * 3 + ["train.done"]
    card = (ensemble.path / "card.md").read_text()
    assert PreparedSet.open(sets[0]).digest[:16] in card


def test_two_workers_side_by_side_give_the_same_ensemble(
    ray_cluster: RuntimeSettings,
    sets: list[Path],
    one_worker: tuple[Ensemble, list[Progress], list[Event]],
    tmp_path: Path,
) -> None:
    two = Ensemble.load(train(sets, tmp_path / "two", settings(ray_cluster, workers=2)))
    unseen = PreparedSet.open(write_labelled_set(tmp_path, "new", seed=9))
    images, features = unseen.images(np.arange(unseen.n)), unseen.feature_matrix(two.features)
    alone, together = (e.judge(images, features, everyone=True) for e in (one_worker[0], two))
    np.testing.assert_allclose(alone.score, together.score, atol=1e-3)


def test_a_lane_of_two_workers_follows_the_path_of_one(
    ray_cluster: RuntimeSettings, sets: list[Path], tmp_path: Path
) -> None:
    """Distributed data parallel at the same global batch, for real, in one process group."""

    def first_member(workers: int, where: Path) -> Network:
        chosen = settings(ray_cluster, workers=workers)
        examples, _ = trainer.gather(sets, chosen.train)
        fits = trainer._RayFits(examples, chosen, where, 1, lambda _: None)
        task = trainer.FitTask(
            "d1-final",
            trainer.DEFAULT_MEMBERS[0],
            everything(len(examples)),
            np.empty(0, np.int64),
            5,
        )
        return fits([task])[0]

    one, two = first_member(1, tmp_path / "one"), first_member(2, tmp_path / "two")
    images = torch.from_numpy(PreparedSet.open(sets[0]).images(np.arange(50)))
    features = torch.full((50, len(one.feature_mean)), torch.nan)
    np.testing.assert_allclose(
        one(images, features).detach(), two(images, features).detach(), atol=0.05
    )


def test_a_training_whose_worker_is_killed_ends_the_same(
    ray_cluster: RuntimeSettings,
    sets: list[Path],
    one_worker: tuple[Ensemble, list[Progress], list[Event]],
    tmp_path: Path,
) -> None:
    killed: list[int] = []

    def kill() -> None:
        begun = tmp_path / "killed.partial" / "rounds" / "d1" / "curve-0.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            if begun.is_file():
                for pid in _own_train_workers()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    out = train(sets, tmp_path / "killed", settings(ray_cluster))
    thread.join()
    assert killed
    assert Ensemble.load(out).digest == one_worker[0].digest


def _own_train_workers() -> list[int]:
    """Process ids of the training workers that descend from this process, and of no other's."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, title = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            if title.startswith(b"ray::RayTrainWorker"):
                found.append(int(entry.name))

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in found if ours(pid)]


def test_a_run_that_was_stopped_goes_on_where_it_was(
    ray_cluster: RuntimeSettings,
    sets: list[Path],
    one_worker: tuple[Ensemble, list[Progress], list[Event]],
    tmp_path: Path,
) -> None:
    class StoppedError(Exception):
        pass

    def stop(event: Event) -> None:
        if event.name == "round.done" and event.data["member"] == "d2":
            raise StoppedError

    with pytest.raises(StoppedError):
        train(sets, tmp_path / "out", settings(ray_cluster), on_event=stop)
    kept = tmp_path / "out.partial" / "rounds"
    before = {m: (kept / m / "final.safetensors").stat().st_mtime_ns for m in ("d1", "d2")}
    told: list[Progress] = []

    def watch(progress: Progress) -> None:
        told.append(progress)
        assert {m: (kept / m / "final.safetensors").stat().st_mtime_ns for m in before} == before

    out = train(sets, tmp_path / "out", settings(ray_cluster), on_progress=watch)
    assert told[0].done >= 12
    assert Ensemble.load(out).digest == one_worker[0].digest


def test_an_ensemble_is_never_overwritten(
    ray_cluster: RuntimeSettings, sets: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        train(sets, tmp_path / "there", settings(ray_cluster))
