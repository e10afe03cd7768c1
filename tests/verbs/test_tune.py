"""A search tries what it was told to, stops what does badly, and says what each axis buys."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import csv

from cryoray.errors import SettingsError
from cryoray.settings import FitSettings, RuntimeSettings, Settings, load
from cryoray.verbs.tune import AXES, bought, fit_settings, network, tune
from tests.sets import write_labelled_set


def test_a_point_of_the_search_is_a_network_and_its_settings() -> None:
    point = {
        "depth": 5,
        "width": 24,
        "activation": "gelu",
        "learning_rate": 1e-3,
        "augment": 2.0,
    }
    made, fit = network(point), fit_settings(point, FitSettings())
    assert (made.blocks, made.width, made.activation) == ((2, 3), 24, "gelu")
    assert fit.learning_rate == 1e-3
    assert fit.augment.shift == 2 * FitSettings().augment.shift
    assert fit.augment.rotate
    most = fit_settings({**point, "augment": 100.0}, FitSettings()).augment
    assert (most.shift, most.mask) == (0.5, 1.0)  # as much as the settings allow
    none = fit_settings({**point, "augment": 0.0}, FitSettings()).augment
    assert not none.rotate
    assert none.noise == none.shift == 0


def test_an_axis_is_summed_up_by_its_values() -> None:
    trials = [
        {"width": 8, "learning_rate": 0.1, "loss": 0.5, "accuracy": 0.7, "first_rung": 0.8},
        {"width": 16, "learning_rate": 0.01, "loss": 0.4, "accuracy": 0.8, "first_rung": 0.6},
        {"width": 16, "learning_rate": 0.001, "loss": 0.6, "accuracy": 0.6, "first_rung": 0.7},
    ]
    assert [tuple(row.values()) for row in bought(trials, "width")] == [
        (8, 1, 0.8, 0.5, 0.7),
        (16, 2, pytest.approx(0.65), 0.4, 0.8),
    ]
    assert [row["value"] for row in bought(trials, "learning_rate")] == [0.001, 0.01, 0.1]


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
