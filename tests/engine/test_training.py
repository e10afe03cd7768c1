"""Ray fits what one process would fit, whatever it loses on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoray.boosting.filtering import everything
from cryoray.engine import training
from cryoray.models.fit import Epoch, Fit, FitTask
from cryoray.models.networks import DEFAULT_MEMBERS, Network, build, logits
from cryoray.preparation.examples import gather
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import ignore
from cryoray.settings import RuntimeSettings, Settings, load
from tests.sets import write_labelled_set

pytestmark = pytest.mark.ray


def settings(runtime: RuntimeSettings, **train: object) -> Settings:
    fit = {"epochs": 2, "batch": 32, "learning_rate": 5e-3}
    return load(runtime=runtime, train={"fit": fit, "folds": 2, "workers": 1, **train})


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sets")
    return [write_labelled_set(folder, f"p{i}", seed=i) for i in range(3)]


def test_many_held_out_images_are_scored_by_ray_as_few_are_here(
    ray_cluster: RuntimeSettings, sets: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(ray_cluster)
    examples, _ = gather(sets, chosen.train)
    networks = [build(DEFAULT_MEMBERS[0], len(examples.names), seed) for seed in (1, 2)]
    fold_of = np.arange(len(examples)) % 2
    here = training.held_out(examples, chosen)(networks, fold_of)
    monkeypatch.setattr(training, "_FEW", 0)
    by_ray = training.held_out(examples, chosen)
    assert isinstance(by_ray, training.RayHeldOut)
    np.testing.assert_allclose(by_ray(networks, fold_of), here, atol=1e-4)
    assert here.std() > 1e-3


@pytest.fixture(scope="module")
def fit_by(
    ray_cluster: RuntimeSettings, sets: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Network]:
    """Fits one network by Ray Train with so many workers, in a folder of its own."""

    def fit(workers: int, where: Path | None = None) -> Network:
        chosen = settings(ray_cluster, workers=workers)
        examples, _ = gather(sets, chosen.train)
        folder = where or tmp_path_factory.mktemp("fit")
        fits = training.RayFits(examples, chosen, folder, 1, ignore)
        nothing = np.empty(0, np.int64)
        task = FitTask("d1-final", DEFAULT_MEMBERS[0], everything(len(examples)), nothing, 5)
        return fits([task])[0]

    return fit


@pytest.fixture(scope="module")
def fitted(fit_by: Callable[..., Network]) -> Network:
    return fit_by(1)


def test_workers_that_share_a_network_follow_the_path_of_one(
    fit_by: Callable[..., Network], fitted: Network, sets: list[Path]
) -> None:
    """Distributed data parallel at the same global batch: only the order of sums differs."""
    images = torch.from_numpy(PreparedSet.open(sets[0]).images(np.arange(50)))
    features = torch.full((50, len(fitted.feature_mean)), torch.nan)
    alone, together = (logits(network, images, features) for network in (fitted, fit_by(2)))
    assert alone.std() > 1
    np.testing.assert_allclose(alone, together, atol=0.1)


def test_a_fit_whose_worker_is_killed_goes_on_to_the_same_weights(
    fit_by: Callable[..., Network], fitted: Network, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill() -> None:
        begun = tmp_path / "rounds" / "d1" / "curve-0.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            if begun.is_file():
                for pid in _own_train_workers()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    again = fit_by(1, tmp_path)
    thread.join()
    assert killed
    weights = fitted.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in again.state_dict().items())


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


def test_two_workers_go_on_with_what_one_began(
    fit_by: Callable[..., Network], ray_cluster: RuntimeSettings, sets: list[Path], tmp_path: Path
) -> None:
    """They share one network, and what the first of them finds in the folder."""
    chosen = settings(ray_cluster)
    examples, _ = gather(sets, chosen.train)
    nothing = np.empty(0, np.int64)
    task = FitTask("d1-final", DEFAULT_MEMBERS[0], everything(len(examples)), nothing, 5)
    alone = Fit(task, examples, chosen.train.fit)
    alone.run_epoch()
    rounds = tmp_path / "rounds" / "d1"
    rounds.mkdir(parents=True)
    torch.save(alone.state_dict(), rounds / "d1-final.pt")
    alone.run_epoch()
    images = torch.from_numpy(examples.images(np.arange(50)))
    features = torch.full((50, len(examples.names)), torch.nan)
    networks = (alone.result(), fit_by(2, tmp_path))
    expected, found = (logits(network, images, features).numpy() for network in networks)
    assert expected.std() > 1
    np.testing.assert_allclose(found, expected, atol=0.1)
    curve = [line for line in (rounds / "curve-0.jsonl").read_text().splitlines() if line]
    assert [json.loads(line)["epoch"] for line in curve] == [2], "the first was not run again"
    assert sorted(rounds.glob("d1-*")) == [rounds / "d1-final.safetensors"]


def test_a_curve_is_read_where_a_full_disk_cut_a_line_short(tmp_path: Path) -> None:
    file = tmp_path / "d1" / "curve-0.jsonl"
    file.parent.mkdir()
    points = [Epoch("d1-final", number, 0.5, 1e-3, 10.0) for number in (1, 2, 3)]
    training._append(file, points[0])
    training._append(file, points[1])
    os.truncate(file, file.stat().st_size - 20)
    training._append(file, points[2])
    assert training._curves(tmp_path) == [points[0], points[2]]
