"""What each member trains on."""

from __future__ import annotations

import numpy as np
import pytest

from cryoray.boosting.filtering import (
    MAX_REPEATS,
    disagreements,
    everything,
    folds_of_groups,
    right_and_wrong,
    suspected_labels,
)


@pytest.fixture
def judged():
    rng = np.random.default_rng(0)
    keep = rng.random(4000) < 0.7
    p = np.clip(np.where(keep, 0.7, 0.3) + rng.normal(0, 0.25, 4000), 0, 1).astype(np.float32)
    return p, keep


def test_d1_sees_everything_once_an_epoch_in_new_order():
    sampler = everything(100)
    first, second = sampler.draw(3, 0), sampler.draw(3, 1)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first.tolist() != second.tolist()
    np.testing.assert_array_equal(first, everything(100).draw(3, 0))


def test_d1_is_right_half_the_time_on_what_d2_sees_for_each_label(judged):
    p, keep = judged
    drawn = right_and_wrong(p, keep, 0.5, np.zeros(len(keep), bool)).draw(0, 0)
    right = (p[drawn] >= 0.5) == keep[drawn]
    for label in (True, False):
        assert right[keep[drawn] == label].mean() == pytest.approx(0.5, abs=0.001)
    assert keep[drawn].mean() == pytest.approx(keep.mean(), abs=0.001)


def test_few_wrong_examples_are_not_learned_by_heart():
    keep = np.arange(1000) < 700
    p = keep.astype(np.float32)
    p[:3] = 0.0
    drawn = right_and_wrong(p, keep, 0.5, np.zeros(1000, bool)).draw(0, 0)
    assert np.bincount(drawn, minlength=1000)[:3].tolist() == [MAX_REPEATS] * 3
    assert len(drawn) == 1000


def test_likely_label_errors_are_not_boosted(judged):
    p, keep = judged
    wrong = (p >= 0.5) != keep
    for sampler in (
        right_and_wrong(p, keep, 0.5, wrong),
        disagreements(p, 1 - p, keep, 0.5, wrong),
    ):
        assert sorted(sampler.draw(0, 0)) == np.flatnonzero(~wrong).tolist()


def test_half_of_what_d3_sees_is_what_d1_and_d2_cannot_settle(judged):
    p, keep = judged
    other = np.clip(p + np.random.default_rng(1).normal(0, 0.25, len(p)), 0, 1).astype(np.float32)
    drawn = disagreements(p, other, keep, 0.5, np.zeros(len(keep), bool)).draw(0, 0)
    apart = (p >= 0.5) != (other >= 0.5)
    assert apart.sum() > len(keep) / 8
    assert apart[drawn].mean() == pytest.approx(0.5, abs=0.001)
    assert len(drawn) == len(keep)


def test_near_ties_stand_in_where_disagreements_are_few(judged):
    p, keep = judged
    drawn = disagreements(p, p, keep, 0.5, np.zeros(len(keep), bool)).draw(0, 0)
    times = np.bincount(drawn, minlength=len(keep))
    often = times > 1
    assert often.sum() == len(keep) // 8
    assert np.abs(p - 0.5)[often].max() <= np.abs(p - 0.5)[~often].min()


def test_a_fold_sees_the_same_filter_without_the_others_rows(judged):
    p, keep = judged
    sampler = right_and_wrong(p, keep, 0.5, np.zeros(len(keep), bool))
    inside = np.arange(0, 4000, 2)
    part = sampler.within(inside)
    drawn = part.draw(0, 0)
    assert set(drawn) <= set(inside)
    assert len(part) == pytest.approx(len(sampler) / 2, rel=0.05)
    assert np.mean((p[drawn] >= 0.5) == keep[drawn]) == pytest.approx(0.5, abs=0.03)


def test_what_counts_more_is_drawn_more_often_beside_the_others_of_its_stratum(judged):
    p, keep = judged
    once = right_and_wrong(p, keep, 0.5, np.zeros(len(keep), bool))
    times = np.where(np.arange(len(keep)) % 10 == 0, 4, 1)
    sampler = once.repeating(times)
    sizes, before = ([s.count for s in each.strata] for each in (sampler, once))
    assert len(sampler) == pytest.approx(len(once) * times.mean(), rel=0.02)
    np.testing.assert_allclose(np.divide(sizes, before), len(sampler) / len(once), rtol=0.005)
    drawn = np.bincount(sampler.draw(0, 0), minlength=len(keep))
    for stratum in once.strata:
        often = times[stratum.rows] == 4
        ratio = drawn[stratum.rows[often]].mean() / drawn[stratum.rows[~often]].mean()
        assert ratio == pytest.approx(4, rel=0.15)


def test_groups_are_never_split_over_folds_and_folds_are_even():
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 15, 3000).astype(str).astype(object)
    fold = folds_of_groups(groups, 5, 0)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    assert np.ptp(np.bincount(fold)) < 200
    np.testing.assert_array_equal(fold, folds_of_groups(groups, 5, 0))


def test_never_more_folds_than_groups():
    assert set(folds_of_groups(np.array(["a", "b", "a"], object), 3, 0)) == {0, 1}


def test_confident_learning_finds_the_labels_that_were_turned():
    rng = np.random.default_rng(3)
    truth = rng.random(3000) < 0.6
    p = np.clip(np.where(truth, 0.93, 0.07) + rng.normal(0, 0.05, 3000), 0, 1)
    turned = np.zeros(3000, bool)
    turned[rng.choice(3000, 90, replace=False)] = True
    suspects = suspected_labels(p, truth ^ turned)
    assert suspects[turned].mean() > 0.4
    assert suspects[~turned].mean() == 0.0
