"""A search tries what it was told to, stops what does badly, and says what each axis buys."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import csv

from cryoray.errors import SettingsError
from cryoray.models.search import AXES
from cryoray.settings import RuntimeSettings, Settings, load
from cryoray.verbs.tune import tune
from tests.sets import write_labelled_set


def test_a_depth_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no network of 4 blocks; choose from 1, 2, 3"):
        tune([], tmp_path / "out", Settings(tune={"depth": (4,)}))


@pytest.mark.ray
@pytest.mark.long
def test_a_short_search_on_two_workers(tmp_path: Path, ray_cluster: RuntimeSettings) -> None:
    sets = [write_labelled_set(tmp_path, f"p{i}", n=10, seed=i) for i in range(3)]
    settings = load(
        runtime=ray_cluster,
        train={"fit": {"epochs": 2, "batch": 16}, "folds": 3, "workers": 2},
        tune={"samples": 3, "depth": (1,), "width": (8,), "augment": (0.5, 1.0)},
    )
    told: list[int] = []
    out = tmp_path / "search"
    best = tune(sets, out, settings, on_progress=lambda now: told.append(now.done))
    trials = csv.read_csv(out / "trials.csv").to_pylist()
    assert told == [1, 2, 3]
    assert [trial["loss"] for trial in trials] == sorted(trial["loss"] for trial in trials)
    assert {axis: trials[0][axis] for axis in AXES} == {axis: best[axis] for axis in AXES}
    assert {trial["augment"] for trial in trials} <= {0.5, 1.0}
    assert all(1e-4 <= trial["learning_rate"] <= 3e-2 for trial in trials)
    page = (out / "report.html").read_text()
    assert "What learning rate buys" in page
    assert "measured on 30 of projects held out" in page
