"""The numbers of metrics.json mean what docs/reference/file-formats.md says."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import BinaryAUROC, BinaryCalibrationError

from cryoray.errors import SelectionError
from cryoray.metrics import accuracy


def names(*values: str) -> np.ndarray:
    return np.array(values, object)


#          keep  keep  keep  disc  disc  keep
LABELS = np.array([1, 1, 1, 0, 0, 1], bool)
SCORE = np.array([0.9, 0.5, 0.3, 0.2, 0.6, 0.8])
REVIEW = np.array([0, 1, 1, 0, 1, 0], bool)
GROUPS = names("a", "a", "a", "a", "b", "b")


@pytest.fixture
def numbers() -> dict[str, Any]:
    return accuracy.metrics(LABELS, SCORE, threshold=0.5, review=REVIEW, groups=GROUPS)


def test_rates_are_those_of_the_forced_decision_counted_by_hand(numbers: dict[str, Any]) -> None:
    assert numbers["n"] == 6
    assert numbers["accuracy"] == pytest.approx(4 / 6)
    assert numbers["false_negative_rate"] == pytest.approx(1 / 4)
    assert numbers["false_positive_rate"] == pytest.approx(1 / 2)
    assert numbers["auroc"] == pytest.approx(6 / 8)  # of 8 pairs, 0.5 and 0.3 lose to 0.6
    assert numbers["threshold"] == 0.5
    assert numbers["review_fraction"] == 0.5
    assert numbers["accuracy_without_review"] == 1.0
    # one image in each filled bin of 1/15
    assert numbers["ece"] == pytest.approx(np.mean([0.1, 0.5, 0.7, 0.2, 0.6, 0.2]))


def test_a_score_at_the_threshold_is_kept() -> None:
    assert accuracy.confusion(LABELS, SCORE, 0.5) == accuracy.Confusion(3, 1, 1, 1)


def test_metrics_have_the_names_of_the_contract(numbers: dict[str, Any]) -> None:
    assert set(numbers) == {
        "n",
        "accuracy",
        "false_negative_rate",
        "false_positive_rate",
        "auroc",
        "ece",
        "threshold",
        "review_fraction",
        "accuracy_without_review",
        "review",
        "spread",
        "by_view",
    }
    json.dumps(numbers, allow_nan=False)


def test_spread_is_over_the_groups_in_which_a_number_exists(numbers: dict[str, Any]) -> None:
    spread = numbers["spread"]
    # group a: 3 of 4 right; group b: 1 of 2 right
    assert spread["accuracy"] == pytest.approx(
        {"std": np.std([0.75, 0.5], ddof=1), "min": 0.5, "max": 0.75, "groups": 2}
    )
    everything_in_review = np.ones(6, bool)
    alone = accuracy.metrics(
        LABELS, SCORE, threshold=0.5, review=everything_in_review, groups=names(*"aaaaaa")
    )
    assert alone["accuracy_without_review"] is None
    assert alone["spread"]["accuracy"]["std"] is None
    assert alone["spread"]["accuracy"]["groups"] == 1
    assert alone["spread"]["accuracy_without_review"]["groups"] == 0


def test_classes_are_also_counted_by_their_particles() -> None:
    particles = np.array([100, 100, 800, 5000, 5000, 600])
    numbers = accuracy.metrics(
        LABELS, SCORE, threshold=0.5, review=REVIEW, groups=GROUPS, particles=particles
    )
    assert numbers["false_negative_rate_by_particles"] == pytest.approx(800 / 1600)


def test_folds_bring_their_own_thresholds() -> None:
    numbers = accuracy.metrics(
        LABELS,
        SCORE,
        threshold=np.array([0.5, 0.5, 0.25, 0.5, 0.75, 0.5]),
        review=REVIEW,
        groups=GROUPS,
    )
    assert numbers["accuracy"] == 1.0
    assert numbers["threshold"] == pytest.approx(0.5)


def test_the_worst_view_is_named_and_a_handful_of_images_cannot_be_it() -> None:
    labels = np.ones(125, bool)
    view = names(*(["front"] * 60 + ["side"] * 60 + ["rare"] * 5))
    score = np.ones(125)
    score[60:66] = score[120:] = 0  # a tenth of "side", all of "rare"
    numbers = accuracy.metrics(
        labels,
        score,
        threshold=0.5,
        review=~labels,
        groups=names(*["p"] * 125),
        views={"class": view},
    )
    by_view = numbers["by_view"]
    rare, worst = by_view["class"]["rare"], by_view["worst"]
    assert (rare["false_negative_rate"], rare["keeps"]) == (1.0, 5)
    assert rare["interval"] == pytest.approx([0.4782, 1.0], abs=1e-4)  # exact, from a table
    assert by_view["class"]["front"]["false_negative_rate"] == 0
    assert by_view["group"]["p"]["keeps"] == 125
    assert (worst["view"], worst["bin"]) == ("class", "side")
    assert (worst["false_negative_rate"], worst["keeps"]) == (pytest.approx(0.1), 60)
    assert worst["interval"] == pytest.approx([0.0376, 0.2051], abs=1e-4)


def test_the_bound_is_counted_by_groups_and_repeats_are_no_new_groups() -> None:
    groups = names(*(["a"] * 50 + ["b"] * 50 + ["few"] * 5) * 2)
    repeat = np.repeat([0, 1], 105)
    kept = np.ones(210, bool)
    kept[[0, 50, 51, 104, 105]] = False  # 2% of a, 4% of b, one of few; then 2% of a
    held = accuracy.bound_held(np.ones(210, bool), kept, groups, repeat, 0.03)
    assert (held["groups"], held["repeats"], held["held"], held["fraction"]) == (2, 2, 3, 0.75)
    assert held["interval"] == list(accuracy.clopper_pearson(1.5, 2))
    nothing = accuracy.bound_held(np.zeros(210, bool), kept, groups, repeat, 0.03)
    assert nothing["fraction"] is nothing["interval"] is None


def test_labels_of_one_kind_leave_the_other_rates_undefined() -> None:
    numbers = accuracy.metrics(
        np.zeros(3, bool),
        np.array([0.1, 0.2, 0.9]),
        threshold=0.5,
        review=np.zeros(3, bool),
        groups=names(*"aaa"),
    )
    assert numbers["false_negative_rate"] is None
    assert numbers["auroc"] is None
    assert numbers["by_view"] == {"group": {}}


def test_nothing_to_measure_is_said_in_a_sentence() -> None:
    nothing = np.empty(0)
    with pytest.raises(SelectionError, match="no labelled image"):
        accuracy.metrics(nothing, nothing, threshold=0.5, review=nothing, groups=nothing)


@st.composite
def judged(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores with many ties, none at the edge of a bin."""
    n = draw(st.integers(1, 60))
    labels = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    score = np.array(draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))) / 13 + 0.01
    return labels, score


@given(judged())
@settings(max_examples=60, deadline=None)
@pytest.mark.long
def test_auroc_ece_and_roc_agree_with_torchmetrics(data: tuple[np.ndarray, np.ndarray]) -> None:
    labels, score = data
    target, preds = torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(score)
    ece = BinaryCalibrationError(n_bins=accuracy.BINS, norm="l1")(preds, target)
    assert accuracy.reliability(labels, score).ece == pytest.approx(float(ece), abs=1e-6)
    area = accuracy.auroc(labels, score)
    if labels.all() or not labels.any():
        assert math.isnan(area)
        return
    assert area == pytest.approx(float(BinaryAUROC()(preds, target)), abs=1e-6)
    fpr, tpr, _ = accuracy.roc_curve(labels, score)
    assert float(np.trapezoid(tpr, fpr)) == pytest.approx(area)


@given(judged())
@settings(max_examples=60, deadline=None)
def test_every_point_of_the_roc_is_the_confusion_at_its_threshold(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    labels, score = data
    fpr, tpr, thresholds = accuracy.roc_curve(labels, score)
    for x, y, threshold in zip(fpr, tpr, thresholds, strict=True):
        counts = accuracy.confusion(labels, score, float(threshold))
        assert counts.n == len(labels)
        if labels.any():
            assert y == pytest.approx(counts.kept / labels.sum())
        if not labels.all():
            assert x == pytest.approx(counts.passed / (~labels).sum())


@given(judged(), st.randoms())
@settings(max_examples=40, deadline=None)
def test_metrics_do_not_depend_on_the_order_of_images(
    data: tuple[np.ndarray, np.ndarray], random: object
) -> None:
    labels, score = data
    order = np.arange(len(labels))
    random.shuffle(order)  # type: ignore[attr-defined]
    groups = names(*(f"g{i % 3}" for i in range(len(labels))))

    def measure(rows: np.ndarray) -> dict[str, Any]:
        return accuracy.metrics(
            labels[rows],
            score[rows],
            threshold=0.5,
            review=np.abs(score[rows] - 0.5) < 0.1,
            groups=groups[rows],
        )

    first, second = measure(np.arange(len(labels))), measure(order)
    assert first["by_view"] == second["by_view"]
    for name in accuracy.SPREAD:
        assert first[name] == pytest.approx(second[name])
        assert first["spread"][name] == pytest.approx(second["spread"][name])


def test_wilson_interval_of_a_textbook_case() -> None:
    low, high = accuracy.wilson(np.array([10.0, 0.0]), np.array([20, 10]))
    assert low == pytest.approx([0.2993, 0.0], abs=1e-4)
    assert high == pytest.approx([0.7007, 0.2775], abs=1e-4)


def test_quantile_bins_hold_their_values_and_name_their_ends() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    bins = accuracy.quantile_bins(values, "µm", bins=2)
    assert bins.tolist() == ["1 to 2.5 µm", "1 to 2.5 µm", "2.5 to 4 µm", "2.5 to 4 µm", "missing"]
    assert set(accuracy.quantile_bins(np.array([7.0, 7.0]))) == {"7"}
    assert set(accuracy.quantile_bins(np.array([np.nan]))) == {"missing"}


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50))
@settings(max_examples=50, deadline=None)
def test_each_value_lies_in_the_bin_that_names_it(values: list[float]) -> None:
    for value, name in zip(values, accuracy.quantile_bins(np.array(values)), strict=True):
        ends = [float(end) for end in re.findall(r"-?\d[\d.]*(?:e[+-]?\d+)?", name)]
        slack = 0.01 * max(abs(end) for end in ends) + 1e-12
        assert ends[0] - slack <= value <= ends[-1] + slack
