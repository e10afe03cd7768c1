"""Training with Ray: what comes out, whatever the workers, whatever was interrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cryoray.engine import training
from cryoray.errors import InputError
from cryoray.models.ensemble import Ensemble, training_record
from cryoray.models.predict import profile_set
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import MEMBERS, Event, Progress
from cryoray.settings import RuntimeSettings, Settings, load
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

    # held-out images are scored as those of a large set are
    monkeypatch.setattr(training, "_FEW", 0)

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


def test_heads_for_a_context_are_cross_fitted_and_kept_with_the_ensemble(
    ray_cluster: RuntimeSettings, sets: list[Path], tmp_path: Path
) -> None:
    events: list[Event] = []
    chosen = settings(ray_cluster, context=True, context_steps=3)
    out = train(sets, tmp_path / "ensemble", chosen, on_event=events.append)
    ensemble = Ensemble.load(out)
    context = ensemble.manifest.context
    assert context is not None
    assert context.profiles == 3 + 2  # every second project in another version, too
    assert {*context.operating_points} == {"expected", "each"}
    said = pq.read_table(out / "held-out.parquet")
    within = said["score_in_project"].to_numpy()
    assert np.isfinite(within).all()
    assert np.abs(within - said["score"].to_numpy()).max() > 0
    assert [e.name for e in events][-2:] == ["context.learned", "train.done"]
    assert events[-1].data["digest"] == ensemble.digest
    assert "## Within a project" in (out / "card.md").read_text()
    one = PreparedSet.open(sets[0])
    profile = profile_set(one, np.arange(one.n), ensemble)
    inside = ensemble.with_profile(profile)
    assert inside.threshold == context.threshold
