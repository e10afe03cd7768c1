"""Platt's sigmoid."""

from __future__ import annotations

import numpy as np

from cryoray.boosting.calibration import Platt, fit_platt


def test_recovers_the_sigmoid_that_made_the_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 40_000)
    labels = rng.random(40_000) < Platt(0.7, -0.4)(logits)
    found = fit_platt(logits, labels)
    assert abs(found.slope - 0.7) < 0.03
    assert abs(found.offset + 0.4) < 0.03


def test_stays_finite_where_a_member_separates_perfectly():
    logits = np.concatenate([np.full(50, -3.0), np.full(50, 3.0)])
    found = fit_platt(logits, logits > 0)
    p = found(logits)
    assert np.isfinite([found.slope, found.offset]).all()
    assert p[0] < 0.05
    assert p[-1] > 0.95


def test_a_member_that_ranks_worse_than_chance_is_flattened_and_not_turned():
    logits = np.linspace(-1, 1, 200)
    p = fit_platt(logits, logits < 0)(logits)
    assert np.all(np.diff(p) >= 0)
    assert np.ptp(p) < 0.01


def test_missing_stays_missing():
    assert np.isnan(Platt()(np.array([np.nan]))[0])


def test_huge_logits_do_not_overflow():
    np.testing.assert_allclose(Platt()(np.array([-1e6, 1e6])), [0, 1], atol=1e-12)
