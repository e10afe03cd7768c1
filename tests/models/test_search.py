"""A point of a search is a network and its settings, and an axis is summed up by its values."""

from __future__ import annotations

import pytest

from cryoray.models.search import bought, fit_settings, network
from cryoray.settings import FitSettings


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
