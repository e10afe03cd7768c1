"""Every image is judged once, by an ensemble that was trained without its group."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cryoray.errors import InputError, SelectionError, SettingsError
from cryoray.models.ensemble import Ensemble
from cryoray.preparation.joined import JoinedSets
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import OnEvent, OnProgress
from cryoray.settings import RuntimeSettings, Settings
from cryoray.verbs.cross_validate import asked_of_evaluate, cross_validate
from tests.verbs.untrained import PREPARATION, make_ensemble, make_set, undecided


def folded(folds: int) -> Settings:
    return Settings(cross_validate={"folds": folds})


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_set(tmp_path_factory.mktemp("sets") / "three")


def never(*_: object, **__: object) -> Path:
    raise AssertionError("nothing should be trained")


def test_folds_that_cannot_be_made_are_refused_before_anything_is_trained(
    examples: PreparedSet, tmp_path: Path
) -> None:
    unlabelled = make_set(tmp_path / "unlabelled", labels=(-1,))
    with pytest.raises(SelectionError, match="none of its images has a label"):
        cross_validate([unlabelled.path], tmp_path / "cv", folded(2), train=never)
    with pytest.raises(SettingsError, match="labels in 3 projects; ask for at most 3"):
        cross_validate([examples.path], tmp_path / "cv", folded(4), train=never)
    comma = make_set(tmp_path / "comma", projects=("a,b", "c"))
    with pytest.raises(InputError, match="'a,b' has a comma"):
        cross_validate([comma.path], tmp_path / "cv", folded(2), train=never)
    (tmp_path / "cv").mkdir()
    with pytest.raises(InputError, match="exists already"):
        cross_validate([examples.path], tmp_path / "cv", folded(3), train=never)


@pytest.mark.ray
def test_cross_validation_judges_each_image_once_by_an_ensemble_that_did_not_know_it(
    tmp_path: Path, ray_cluster: RuntimeSettings
) -> None:
    examples = make_set(tmp_path / "set", projects=("only",), micrographs=5, each=12)
    threshold = undecided(examples, tmp_path / "first")
    trained: list[str] = []

    def train(
        sets: Sequence[Path],
        out: Path,
        settings: Settings,
        *,
        on_progress: OnProgress,
        on_event: OnEvent,
    ) -> Path:
        if len(trained) == 1:
            trained.append("killed")
            raise KeyboardInterrupt
        held_out = set((settings.train.hold_out or "").split(","))
        knows = sorted(set(examples.groups("micrograph")) - held_out)
        shift = len(trained) / 1000
        features = ("defocus",) if settings.train.features is None else settings.train.features
        make_ensemble(out, knows, "micrograph", threshold + shift, settings.train.seed, features)
        trained.append(out.name)
        return out

    out = tmp_path / "cv"
    fit = {"epochs": 1, "batch": 32}
    settings = Settings(
        runtime=ray_cluster,
        evaluate={"shuffles": 2},
        cross_validate={"folds": 2, "ablate": True},
        train={"fit": fit, "folds": 2},
    )
    with pytest.raises(KeyboardInterrupt):
        cross_validate([examples.path], out, settings, train=train)
    assert not out.exists()
    numbers = cross_validate([examples.path], out, settings, train=train)
    assert trained == ["fold-1", "killed", "fold-1", "fold-2", "fold-2"]

    table = pq.read_table(out / "predictions.parquet")
    labelled = np.flatnonzero(examples.labels >= 0)
    assert table["row"].to_pylist() == labelled.tolist()
    assert numbers["n"] == 45
    assert numbers["left_out"] == 15
    kept = table["score"].to_numpy() >= table["threshold"].to_numpy()
    good = table["label"].to_numpy(zero_copy_only=False)
    assert numbers["accuracy"] == pytest.approx(np.mean(kept == good))
    assert numbers["false_negative_rate"] == pytest.approx(np.mean(~kept[good]))

    folds = numbers["folds"]
    assert sorted(group for fold in folds for group in fold["groups"]) == sorted(
        f"only/mic{i}.mrc" for i in range(5)
    )
    assert sum(fold["n"] for fold in folds) == 45
    own = [Ensemble.load(out / f"fold-{i}").threshold for i in (1, 2)]
    assert [fold["threshold"] for fold in folds] == pytest.approx(own)
    assert len(set(own)) == 2
    assert numbers["spread_over_folds"]["auroc"]["folds"] == 2
    retrained = numbers["ablation"]["retrained"]
    assert list(retrained) == ["both", "image", "metadata"]
    assert {variant["n"] for variant in retrained.values()} == {45}
    assert retrained["both"]["accuracy"] == pytest.approx(numbers["accuracy"])
    assert len({variant["auroc"] for variant in retrained.values()}) == 3
    assert not Ensemble.load(out / "without-metadata" / "fold-1").features
    assert json.loads((out / "metrics.json").read_text()) == numbers
    assert "Cross-validation over micrographs" in (out / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.glob("cv*")) == ["cv"]


@pytest.mark.ray
def test_several_sets_are_cross_validated_as_one(
    tmp_path: Path, ray_cluster: RuntimeSettings
) -> None:
    sets = [make_set(tmp_path / name, projects=name.split("-")) for name in ("a-b", "c", "d")]
    paths = [one.path for one in sets]
    asked: list[list[Path]] = []

    def train(
        sets: Sequence[Path],
        out: Path,
        settings: Settings,
        *,
        on_progress: OnProgress,
        on_event: OnEvent,
    ) -> Path:
        asked.append(list(sets))
        held_out = set((settings.train.hold_out or "").split(","))
        make_ensemble(out, sorted({"a", "b", "c", "d"} - held_out), seed=len(asked))
        return out

    settings = Settings(runtime=ray_cluster, cross_validate={"folds": 4})
    numbers = cross_validate(paths, tmp_path / "cv", settings, train=train)
    assert asked == [paths] * 4
    assert sorted(fold["groups"] for fold in numbers["folds"]) == [["a"], ["b"], ["c"], ["d"]]
    table = pq.read_table(tmp_path / "cv" / "predictions.parquet")
    joined = JoinedSets(paths)
    assert table["row"].to_pylist() == np.flatnonzero(joined.labels >= 0).tolist()
    named = joined.table.take(table["row"])
    for column in ("image", "project", "micrograph", "label"):
        assert table[column].to_pylist() == named[column].to_pylist()
    folds = {one["groups"][0]: one["fold"] for one in numbers["folds"]}
    for project in ("a", "d"):
        judge = Ensemble.load(tmp_path / "cv" / f"fold-{folds[project]}")
        here = np.flatnonzero(named["project"].to_numpy(zero_copy_only=False) == project)
        rows = table["row"].to_numpy()[here]
        said = judge.judge(
            joined.images(rows), joined.feature_matrix(judge.features)[rows], everyone=True
        )
        np.testing.assert_allclose(table["score"].to_numpy()[here], said.score, atol=1e-4)
    assert (numbers["n"], numbers["left_out"]) == (120, 40)


def test_sets_that_differ_are_not_joined(examples: PreparedSet, tmp_path: Path) -> None:
    small = make_set(tmp_path / "s", preparation=PREPARATION.model_copy(update={"box": 24}))
    with pytest.raises(InputError, match=r"particle images of 24 px.*the same --kind and --box"):
        cross_validate([examples.path, small.path], tmp_path / "cv", folded(2), train=never)


def test_what_was_asked_of_evaluate_is_a_cross_validation() -> None:
    assert asked_of_evaluate(Settings()) is None
    old = Settings(evaluate={"cross_validate": 7, "repeats": 2, "ablate": True})
    asked = asked_of_evaluate(old)
    assert asked is not None
    assert asked.cross_validate.model_dump() == {"folds": 7, "repeats": 2, "ablate": True}
