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
