"""Training with Ray: what comes out, whatever the workers, whatever was interrupted."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cryoray.boosting.filtering import everything
from cryoray.errors import InputError
from cryoray.models.ensemble import Ensemble, training_record
from cryoray.models.fit import Epoch, Fit, FitTask
from cryoray.models.networks import DEFAULT_MEMBERS, Network, build, logits
from cryoray.preparation.examples import gather
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import MEMBERS, Event, Progress, ignore
from cryoray.settings import RuntimeSettings, Settings, load
from cryoray.verbs import train as trainer
from cryoray.verbs.train import train
from tests.sets import write_labelled_set

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
    others = ["held-out.parquet", "run.json", "training.json"]
    assert files == ["card.md", *weights, "ensemble.json", *others]
    said = pq.read_table(ensemble.path / "held-out.parquet")
    labels = np.concatenate([PreparedSet.open(path).labels for path in sets])
    assert said["keep"].to_numpy().tolist() == (labels[labels >= 0] == 1).tolist()
    agreed = said["d3"].is_null().to_numpy()
    assert said["score"].to_numpy()[agreed] == pytest.approx(
        (said["d1"].to_numpy() + said["d2"].to_numpy())[agreed] / 2
    )
    assert ensemble.manifest.training_groups == ("p0", "p1", "p2")
    curves = training_record(ensemble.path)["curves"]
    assert len(curves) == 3 * 3 * 2  # members, folds and the final fit, epochs
    assert (told[-1].done, told[-1].total) == (18, 18)
    assert [e.name for e in events] == ["round.done"] * 3 + ["train.done"]
    card = (ensemble.path / "card.md").read_text()
    assert PreparedSet.open(sets[0]).digest[:16] in card


def test_two_workers_that_were_stopped_in_between_give_the_same_ensemble(
    ray_cluster: RuntimeSettings,
    sets: list[Path],
    one_worker: tuple[Ensemble, list[Progress], list[Event]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class StoppedError(Exception):
        pass

    monkeypatch.setattr(
        trainer, "_FEW", 0
    )  # held-out images are scored as those of a large set are

    def stop(event: Event) -> None:
        if event.name == "round.done" and event.data["member"] == "d2":
            raise StoppedError

    out, two = tmp_path / "two", settings(ray_cluster, workers=2)
    with pytest.raises(StoppedError):
        train(sets, out, two, on_event=stop)
    finished = [tmp_path / "two.partial" / "rounds" / d / "final.safetensors" for d in ("d1", "d2")]
    before = [file.stat().st_mtime_ns for file in finished]
    told: list[Progress] = []

    def watch(progress: Progress) -> None:
        told.append(progress)
        assert [file.stat().st_mtime_ns for file in finished] == before

    again = Ensemble.load(train(sets, out, two, on_progress=watch))
    assert told[0].done >= 12
    unseen = PreparedSet.open(write_labelled_set(tmp_path, "new", seed=9))
    images, features = unseen.images(np.arange(unseen.n)), unseen.feature_matrix(again.features)
    alone, together = (e.judge(images, features, everyone=True) for e in (one_worker[0], again))
    for member in MEMBERS:
        np.testing.assert_allclose(getattr(alone, member), getattr(together, member), atol=0.02)


def test_many_held_out_images_are_scored_by_ray_as_few_are_here(
    ray_cluster: RuntimeSettings, sets: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(ray_cluster)
    examples, _ = gather(sets, chosen.train)
    networks = [build(DEFAULT_MEMBERS[0], len(examples.names), seed) for seed in (1, 2)]
    fold_of = np.arange(len(examples)) % 2
    here = trainer._held_out(examples, chosen)(networks, fold_of)
    monkeypatch.setattr(trainer, "_FEW", 0)
    by_ray = trainer._held_out(examples, chosen)
    assert isinstance(by_ray, trainer._RayHeldOut)
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
        fits = trainer._RayFits(examples, chosen, folder, 1, ignore)
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
    said = [logits(network, images, features) for network in (alone.result(), fit_by(2, tmp_path))]
    assert said[0].std() > 1
    np.testing.assert_allclose(*said, atol=0.1)
    curve = [line for line in (rounds / "curve-0.jsonl").read_text().splitlines() if line]
    assert [json.loads(line)["epoch"] for line in curve] == [2], "the first was not run again"
    assert sorted(rounds.glob("d1-*")) == [rounds / "d1-final.safetensors"]


def test_an_ensemble_is_never_overwritten_and_one_that_is_there_is_not_made_again(
    ray_cluster: RuntimeSettings,
    sets: list[Path],
    one_worker: tuple[Ensemble, list[Progress], list[Event]],
    tmp_path: Path,
) -> None:
    there = one_worker[0].path
    assert there is not None
    (there / "rounds").mkdir()  # as whoever is killed at the very end leaves it
    told: list[Progress] = []
    assert train(sets, there, settings(ray_cluster, workers=2), on_progress=told.append) == there
    assert told == []
    assert not (there / "rounds").exists()
    with pytest.raises(InputError, match="exists already"):
        train(sets, there, settings(ray_cluster, seed=1))
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        train(sets, tmp_path / "there", settings(ray_cluster))


def test_a_curve_is_read_where_a_full_disk_cut_a_line_short(tmp_path: Path) -> None:
    file = tmp_path / "d1" / "curve-0.jsonl"
    file.parent.mkdir()
    points = [Epoch("d1-final", number, 0.5, 1e-3, 10.0) for number in (1, 2, 3)]
    trainer._append(file, points[0])
    trainer._append(file, points[1])
    os.truncate(file, file.stat().st_size - 20)
    trainer._append(file, points[2])
    assert trainer._curves(tmp_path) == [points[0], points[2]]
