"""The threshold keeps its bound, says on what it rests, and the review band costs what it says."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cryoray.boosting import operating_point
from cryoray.boosting.operating_point import (
    Groups,
    ask_third,
    at_line,
    clopper_pearson_upper,
    expectation,
    lines,
    losses,
    narrowed,
    review_band,
    threshold_for_share,
)
from cryoray.boosting.voting import disagree

choose = partial(operating_point.choose, policy="each")
expected = partial(operating_point.choose, policy="expected")


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


@pytest.mark.long
def test_the_bound_holds_in_95_of_100_new_projects_of_any_size():
    """Projects with few good images are new projects, too, and lose the largest shares."""
    rng = np.random.default_rng(17)

    def some() -> tuple[np.ndarray, np.ndarray]:
        images = int(rng.integers(15, 400))
        return project(rng, images, rng.normal(-0.8 if images < 150 else 0.0, 0.5))

    held = []
    for _ in range(150):
        parts = [some() for _ in range(60)]
        names = np.repeat(np.arange(60), [len(p[0]) for p in parts])
        score, keep = (np.concatenate(part) for part in zip(*parts, strict=True))
        point = choose(score, keep, {"project": names, "micrograph": names}, prefer="junk")
        assert point.level == "project"
        for new, good in (some() for _ in range(4)):
            held.append(np.mean(new[good] < point.threshold) <= 0.03)
    assert np.mean(held) >= 0.93  # 0.95 less two standard errors of 600 new projects


def test_what_each_job_loses_is_counted_in_particles():
    """The worst-scored class of every job is good; it weighs nothing, or more than the bound."""
    jobs = np.repeat(np.arange(40), 10)
    score = np.tile(np.linspace(0.05, 0.95, 10, dtype=np.float32), 40)
    keep = score > 0.1
    levels: Groups = {"project": jobs, "micrograph": jobs}
    small = np.where(score < 0.2, 1.0, 1000.0)
    counted = choose(score, keep, levels, weights=small, prefer="junk")
    assert (counted.level, counted.groups) == ("project", 40)
    assert counted.limit > 0.2
    assert choose(score, keep, levels, weights=np.ones(400), prefer="junk").limit < 0.2


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
    levels: Groups = {"project": names, "micrograph": names}
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
    low, high = review_band(score, keep, 0.5, at_most=0.2)
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


def test_review_band_is_a_list_that_a_person_can_finish():
    rng = np.random.default_rng(8)
    score, keep, _ = many(rng, 6)
    low, high = review_band(score, keep, 0.5)
    assert 0.04 < np.mean((score >= low) & (score < high)) <= 0.05
    assert low < 0.5 < high


def by_hand(score, keep, groups, bound, weights=None):
    """The limit of conformal risk control as its formula is written, over every threshold there is."""
    weights = np.ones(len(score)) if weights is None else weights
    names = np.unique(groups[keep])
    allowed = []
    for t in np.unique(score[keep]):
        loss = [
            np.average(score[keep & (groups == g)] < t, weights=weights[keep & (groups == g)])
            for g in names
        ]
        n = len(names)
        if n / (n + 1) * np.mean(loss) + 1 / (n + 1) <= bound + 1e-12:
            allowed.append(t)
    return max(allowed) if allowed else None


@pytest.mark.parametrize("counted", [False, True])
def test_expected_is_the_limit_of_the_formula(counted):
    rng = np.random.default_rng(11)
    score, keep, names = many(rng, 60)
    score, keep, names = score[::6], keep[::6], names[::6]
    weights = rng.lognormal(0, 1, len(score)) if counted else None
    levels: Groups = {"project": names, "micrograph": names}
    point = expected(score, keep, levels, prefer="junk", bound=0.05, weights=weights)
    assert (point.policy, point.level, point.groups) == ("expected", "project", 60)
    assert point.limit == pytest.approx(by_hand(score, keep, names, 0.05, weights))


def test_expected_loss_over_new_projects_stays_within_the_bound():
    """The promise itself: the mean over calibrations and new projects, projects of few good ones too."""
    rng = np.random.default_rng(12)
    lost = []
    for _ in range(100):
        parts = [project(rng, int(rng.integers(15, 200)), rng.normal(0, 0.8)) for _ in range(60)]
        names = np.repeat(np.arange(60), [len(p[0]) for p in parts])
        score, keep = (np.concatenate(part) for part in zip(*parts, strict=True))
        levels: Groups = {"project": names, "micrograph": names}
        point = expected(score, keep, levels, bound=0.05)
        new, good = project(rng, 400, rng.normal(0, 0.8))
        lost.append(np.mean(new[good] < np.float32(point.limit)))
        assert point.threshold <= point.limit  # so that it loses no more, wherever it is used
    error = np.std(lost) / np.sqrt(len(lost))
    assert 0.02 < np.mean(lost) <= 0.05 + 2 * error


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.booleans(), st.integers(0, 5)), min_size=1, max_size=60
    ),
    st.floats(0.01, 0.6),
    st.floats(0.01, 0.6),
)
def test_more_may_be_lost_the_higher_the_bound(rows, one, other):
    score = np.array([row[0] / 20 for row in rows], np.float32)
    keep = np.array([row[1] for row in rows])
    names = np.array([row[2] for row in rows])
    low, high = sorted((one, other))
    nobody = np.zeros(len(rows))
    points = [
        expected(score, keep, {"project": nobody, "micrograph": nobody}, bound=b, prefer="junk")
        for b in (low, high)
    ]
    # A low bound may leave too few projects, and then rests on images, which promise less.
    assume(points[0].level == points[1].level)
    limits = [point.limit for point in points]
    assert limits[0] <= limits[1]
    below, above = (losses(score, keep, names, t) for t in limits)
    assert all(below[name] <= above[name] for name in below)


def test_projects_of_junk_alone_and_of_hardly_a_good_image_have_no_part_in_the_mean():
    rng = np.random.default_rng(13)
    score, keep, names = many(rng, 50)
    levels: Groups = {"project": names, "micrograph": names}
    point = expected(score, keep, levels)
    more = np.concatenate([score, np.zeros(40, np.float32)])
    junk = np.concatenate([keep, np.arange(40) < 4])  # four good ones, all of them lost
    of = np.concatenate([names, np.repeat(["bad", "worse"], 20).astype(object)])
    again = expected(more, junk, {"project": of, "micrograph": of})
    assert (again.limit, again.groups) == (point.limit, 50)
    assert losses(more, junk, of, 0.5)["bad"] == 1.0
    assert "worse" not in losses(more, junk, of, 0.5)


def test_expected_falls_back_to_micrographs_and_then_to_images_and_says_so():
    rng = np.random.default_rng(14)
    score, keep, names = many(rng, 40)
    one = np.full(len(score), "a", object)
    by_micrograph = expected(score, keep, {"project": one, "micrograph": names})
    assert (by_micrograph.level, by_micrograph.groups) == ("micrograph", 40)
    assert "Nothing is promised for a project unlike these" in by_micrograph.guarantee(0.95)
    by_image = expected(score, keep, {"project": one, "micrograph": one})
    assert (by_image.level, by_image.groups) == ("image", keep.sum())
    assert "expected to be lost" in by_image.guarantee(0.95)
    few = expected(score[:30], keep[:30], {"project": one[:30], "micrograph": one[:30]})
    assert (few.level, few.achieved) == ("none", 0.0)


def test_lost_classes_are_counted_in_particles():
    """Small classes may go where large ones stay: what is lost is particles."""
    jobs = np.repeat(np.arange(60), 10)
    score = np.tile(np.linspace(0.05, 0.95, 10, dtype=np.float32), 60)
    keep = score > 0.2
    levels: Groups = {"project": jobs, "micrograph": jobs}
    small = np.where(score < 0.5, 1.0, 1000.0)
    counted = expected(score, keep, levels, weights=small, prefer="junk")
    assert counted.limit > 0.5 > expected(score, keep, levels, prefer="junk").limit


def test_every_policy_has_its_line_and_says_what_each_project_lost():
    rng = np.random.default_rng(15)
    score, keep, names = many(rng, 60)
    p = np.stack([score, score, score], 1)
    drawn = lines(p, keep, {"project": names, "micrograph": names}, prefer="junk")
    assert list(drawn) == ["expected", "each"]
    assert drawn["each"].point.threshold < drawn["expected"].point.threshold
    for policy, line in drawn.items():
        assert line.point.policy == policy
        assert line.lost == losses(score, keep, names, line.point.threshold)
        assert line.review[0] <= line.point.threshold <= line.review[1]
    assert drawn["each"].junk_kept > drawn["expected"].junk_kept
    assert np.mean(list(drawn["expected"].lost.values())) <= 0.03


def test_what_is_expected_at_a_line_is_the_mean_over_projects():
    rng = np.random.default_rng(16)
    score, keep, names = many(rng, 30)
    table = expectation(score, keep, names)
    lost, through = at_line(table, 0.5)
    assert lost == pytest.approx(np.mean(list(losses(score, keep, names, 0.5).values())), abs=1e-3)
    junk = np.mean([np.mean(score[(names == g) & ~keep] >= 0.5) for g in np.unique(names)])
    assert through == pytest.approx(junk, abs=1e-3)
    assert at_line(table, 0.0) == pytest.approx((0, 1), abs=0.01)
    assert all(np.diff(np.array(table)[:, 1]) >= 0)
    assert all(np.diff(np.array(table)[:, 2]) <= 0)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.floats(0, 1))
def test_a_share_keeps_as_many_as_it_says_and_what_ties_with_the_last(values, share):
    score = np.array(values, np.float32) / 30
    kept = score >= np.float32(threshold_for_share(score, share))
    wanted = int(np.floor(share * len(score) + 0.5))
    assert kept.sum() >= wanted
    if kept.any():
        assert (score > score[kept].min()).sum() < wanted  # no more but by a tie


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=120),
    st.tuples(st.integers(0, 20), st.integers(20, 40)),
    st.floats(0, 0.3),
)
def test_a_review_list_is_cut_around_the_threshold(values, ends, at_most):
    score = np.array(values, np.float32) / 40
    band = (ends[0] / 40, ends[1] / 40)
    low, high = narrowed(score, band, 0.5, at_most)
    inside = (score >= np.float32(low)) & (score < np.float32(high))
    before = (score >= np.float32(band[0])) & (score < np.float32(band[1]))
    most = int(np.ceil(at_most * len(score) - 1e-9))
    assert low <= 0.5 <= high
    assert inside.sum() <= max(most, 0)
    assert not (inside & ~before).any()
    if before.sum() <= most:
        assert inside.sum() == before.sum()
    elif len(np.unique(score)) == len(score):
        assert inside.sum() == most


def test_of_fifty_classes_three_may_be_under_review():
    score = np.linspace(0, 1, 50, dtype=np.float32)
    low, high = narrowed(score, (0.1, 0.9), 0.5)
    assert ((score >= low) & (score < high)).sum() == 3


def test_third_is_asked_only_where_the_first_two_disagree():
    d1, d2, d3 = np.random.default_rng(7).random((3, 50)).astype(np.float32)
    np.testing.assert_array_equal(~np.isnan(ask_third(d1, d2, d3, 0.4)), disagree(d1, d2, 0.4))


def test_a_project_without_good_images_enough_does_not_count_for_what_is_expected():
    """The policy `expected` leaves it out, so the loss that stands beside the policy leaves it out too."""
    rng = np.random.default_rng(17)
    score, keep, names = many(rng, 30)
    more = np.append(score, np.float32(0.01)), np.append(keep, True), np.append(names, "few")
    lost = [row[1] for row in expectation(score, keep, names)]
    assert [row[1] for row in expectation(*more)] == lost
