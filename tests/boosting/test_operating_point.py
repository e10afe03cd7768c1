"""The threshold keeps its bound, says on what it rests, and the review band costs what it says."""

from __future__ import annotations

import numpy as np
import pytest

from cryoray.boosting.operating_point import (
    ask_third,
    choose,
    clopper_pearson_upper,
    review_band,
)
from cryoray.boosting.voting import disagree


def project(rng, n=300, shift=0.0):
    keep = rng.random(n) < 0.6
    logit = np.where(keep, 2.0, -2.0) + rng.normal(shift, 1.2, n)
    return (1 / (1 + np.exp(-logit))).astype(np.float32), keep


def many(rng, groups):
    parts = [project(rng, shift=rng.normal(0, 0.5)) for _ in range(groups)]
    names = np.repeat([f"p{i}" for i in range(groups)], 300).astype(object)
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), names


@pytest.mark.long
def test_the_bound_holds_in_95_of_100_new_projects():
    """The promise itself: calibrate on 40 projects, look at a new one, many times over."""
    rng = np.random.default_rng(1)
    held = []
    for _ in range(150):
        score, keep, names = many(rng, 40)
        point = choose(score, keep, {"project": names, "micrograph": names}, prefer="junk")
        assert (point.level, point.groups) == ("project", 40)
        new, new_keep = project(rng, shift=rng.normal(0, 0.5))
        held.append(np.mean(new[new_keep] < point.threshold) <= 0.03)
    assert np.mean(held) >= 0.92  # 0.95 less two standard errors of 150 trials


def test_with_fewer_than_19_projects_micrographs_take_their_place():
    rng = np.random.default_rng(2)
    score, keep, names = many(rng, 24)
    projects = np.repeat(["a", "b"], len(score) // 2).astype(object)
    point = choose(score, keep, {"project": projects, "micrograph": names})
    assert (point.level, point.groups) == ("micrograph", 24)
    assert "Nothing is promised for a project unlike these" in point.guarantee(0.95)


def test_with_few_groups_images_carry_a_clopper_pearson_bound():
    rng = np.random.default_rng(3)
    score, keep, names = many(rng, 4)
    point = choose(score, keep, {"project": names, "micrograph": names}, prefer="junk")
    misses = int(np.sum(score[keep] < np.float32(point.threshold)))
    n = int(keep.sum())
    assert point.level == "image"
    assert point.groups == n
    assert (
        clopper_pearson_upper(misses, n, 0.95) <= 0.03 < clopper_pearson_upper(misses + 1, n, 0.95)
    )


def test_too_few_keeps_promise_nothing_and_lose_none():
    score = np.linspace(0.1, 0.9, 40, dtype=np.float32)
    keep = score > 0.5
    names = np.full(40, "a", object)
    point = choose(score, keep, {"project": names, "micrograph": names})
    assert point.level == "none"
    assert point.achieved == 0.0
    assert "too few" in point.guarantee(0.95)


def test_clopper_pearson_agrees_with_the_textbook():
    assert clopper_pearson_upper(0, 100, 0.95) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert clopper_pearson_upper(5, 5, 0.95) == 1.0


def test_among_thresholds_within_the_bound_the_most_accurate_is_taken():
    rng = np.random.default_rng(4)
    score, keep, names = many(rng, 6)
    levels = {"project": names, "micrograph": names}
    accurate, junk = choose(score, keep, levels), choose(score, keep, levels, prefer="junk")
    tried = np.unique(score[score <= np.float32(junk.threshold)])
    best = max(np.mean((score >= t) == keep) for t in tried)
    assert np.mean((score >= np.float32(accurate.threshold)) == keep) == pytest.approx(best)
    assert accurate.threshold <= junk.threshold
    assert accurate.limit == junk.limit


def test_threshold_survives_a_trip_through_float32():
    rng = np.random.default_rng(5)
    score, keep, names = many(rng, 6)
    point = choose(score, keep, {"project": names, "micrograph": names})
    assert float(np.float32(point.threshold)) == point.threshold


def test_review_band_halves_the_errors_with_the_fewest_images():
    rng = np.random.default_rng(6)
    score, keep, _ = many(rng, 6)
    low, high = review_band(score, keep, 0.5)
    wrong = (score >= 0.5) != keep
    inside = (score >= low) & (score < high)
    assert low < 0.5 < high
    assert wrong[inside].sum() >= 0.5 * wrong.sum()
    narrower = (score > low) & (score < np.float32(high) - np.float32(0.01))
    assert wrong[narrower].sum() < wrong[inside].sum()
    assert inside.mean() <= 0.2


def test_review_band_is_empty_where_nothing_is_wrong():
    score = np.array([0.1, 0.9], np.float32)
    assert review_band(score, np.array([False, True]), 0.5) == (0.5, 0.5)


def test_third_is_asked_only_where_the_first_two_disagree():
    d1, d2, d3 = np.random.default_rng(7).random((3, 50)).astype(np.float32)
    np.testing.assert_array_equal(~np.isnan(ask_third(d1, d2, d3, 0.4)), disagree(d1, d2, 0.4))
