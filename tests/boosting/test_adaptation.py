"""A few labels move a calibration as far as they should, and never past what was promised."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom

from cryoray.boosting import adaptation
from cryoray.boosting.adaptation import Change
from cryoray.boosting.prevalence import log_odds
from cryoray.boosting.voting import score


def drawn(n: int, change: Change, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that would be calibrated after ``change``, and labels."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(0, 3, n))
    return p, rng.random(n) < change(p)


def test_without_labels_the_change_is_what_the_unlabelled_say() -> None:
    change = adaptation.fit_change(np.empty(0), np.empty(0, bool), -1.5)
    assert change.stretch == pytest.approx(1, abs=1e-4)
    assert change.shift == pytest.approx(-1.5, abs=1e-4)


def test_many_labels_find_the_change_and_twenty_make_it_better_than_none() -> None:
    true = Change(0.6, -2.0)
    many = adaptation.fit_change(*drawn(5000, true), 0.0)
    assert (many.stretch, many.shift) == pytest.approx((0.6, -2.0), abs=0.2)
    fresh, keep = drawn(4000, true, seed=1)
    before = adaptation.log_loss(fresh, keep)
    after = [
        adaptation.log_loss(adaptation.fit_change(*drawn(20, true, seed), 0.0)(fresh), keep)
        for seed in range(2, 22)
    ]
    assert np.mean(after) < 0.8 * before
    assert max(after) < before


def test_labels_overrule_what_the_unlabelled_say_wrongly() -> None:
    score, keep = drawn(20, Change(1.0, -1.0))
    fresh, truth = drawn(4000, Change(1.0, -1.0), seed=1)
    misled = adaptation.fit_change(score, keep, 4.0)
    assert adaptation.log_loss(misled(fresh), truth) < 1.1 * adaptation.log_loss(fresh, truth)


def test_members_changed_alike_vote_as_they_did_at_the_changed_threshold() -> None:
    rng = np.random.default_rng(0)
    p = [rng.random(5000).astype(np.float32) for _ in range(3)]
    change, threshold = Change(1.7, -0.9), 0.3
    before = score(*p) >= threshold
    after = score(*(change(member).astype(np.float32) for member in p)) >= change(threshold)
    assert (before == after).all()


def test_a_limit_falls_only_where_labels_contradict_it() -> None:
    keeps = np.concatenate([[0.1], np.full(11, 0.9)])
    assert adaptation.not_contradicted(keeps, 0.5, 0.03, 0.95) == 0.5  # one of twelve: P = 0.31
    keeps = np.concatenate([[0.1, 0.2, 0.3], np.full(9, 0.9)])
    assert binom.sf(1, 12, 0.03) < 0.05 < binom.sf(0, 12, 0.03)
    assert adaptation.not_contradicted(keeps, 0.5, 0.03, 0.95) == pytest.approx(0.2)
    assert adaptation.not_contradicted(keeps, 0.15, 0.03, 0.95) == 0.15
    assert adaptation.not_contradicted(np.empty(0), 0.5, 0.03, 0.95) == 0.5


def test_log_odds_survive_certainty() -> None:
    assert np.isfinite(log_odds(np.array([0.0, 1.0]))).all()


def test_twenty_labels_raise_a_line_that_lets_junk_through_and_lose_few() -> None:
    """A project in which everything scores lower than in training, at a line that was drawn for training."""
    better, lost = [], []
    for seed in range(20):
        score, keep = drawn(600, Change(1.0, 1.5), seed)
        known = adaptation.to_label(score, 0.02)
        change = adaptation.fit_change(score[known], keep[known], 0.0)
        moved = adaptation.line(score, change, known, keep[known], 0.02, 0.03)
        before = np.mean((score >= 0.02) == keep)
        better.append(np.mean((score >= moved.threshold) == keep) - before)
        lost.append(np.mean(score[keep] < moved.threshold))
        assert moved.lost <= 2 * 0.03
    assert np.mean(better) > 0.03
    assert np.mean(lost) <= 0.03


def test_a_line_is_not_raised_where_good_images_lie_below_it() -> None:
    """What scores say is junk, a person says is good: the line comes down, if anything."""
    rng = np.random.default_rng(1)
    score = np.concatenate([rng.uniform(0.02, 0.3, 300), rng.uniform(0.8, 0.99, 300)])
    known = adaptation.to_label(score, 0.1)
    good = np.ones(len(known), bool)
    change = adaptation.fit_change(score[known], good, 0.0)
    moved = adaptation.line(score, change, known, good, 0.1, 0.03)
    assert moved.threshold <= 0.1
    assert moved.lost <= moved.lost_before
    # The second statistic alone: labels contradict a change that does not explain them.
    wrong = adaptation.line(score, Change(), known, good, 0.1, 0.03)
    explained = adaptation.line(score, Change(), known, ~good, 0.1, 0.03)
    assert wrong.threshold == pytest.approx(0.1) or wrong.threshold < 0.1
    assert explained.threshold >= wrong.threshold


def test_a_line_moves_three_in_log_odds_at_most() -> None:
    score = expit(np.linspace(-6, 6, 500))
    moved = adaptation.line(score, Change(1.0, -6.0), np.arange(20), np.zeros(20, bool), 0.01, 0.03)
    assert log_odds(moved.threshold) - log_odds(0.01) <= 3 + 1e-6


def test_images_asked_about_lie_around_the_line_mostly_above_and_are_not_alike() -> None:
    rng = np.random.default_rng(2)
    score = rng.random(10_000).astype(np.float32)
    asked = adaptation.to_label(score, 0.4)
    assert len(asked) == len(set(asked.tolist())) == 20
    assert 0.36 < score[asked].min() < 0.4 < score[asked].max() < 0.51
    assert (score[asked] >= 0.4).sum() > 12
    assert np.diff(np.sort(score[asked])).min() > 0.003
    known = np.zeros(10_000, bool)
    known[asked] = True
    assert not set(adaptation.to_label(score, 0.4, known=known)) & set(asked)
    np.testing.assert_array_equal(asked, adaptation.to_label(score, 0.4))


@pytest.mark.parametrize("line", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("n", [0, 1, 7, 20, 33])
def test_as_many_are_asked_about_as_there_are(n: int, line: float) -> None:
    score = np.random.default_rng(n).random(n)
    assert len(set(adaptation.to_label(score, line).tolist())) == min(n, 20)


def test_a_change_undone_is_where_it_began() -> None:
    p = np.array([0.01, 0.3, 0.9])
    change = Change(1.7, -0.9)
    np.testing.assert_allclose(change.before(change(p)), p)
