"""The share of keeps in a source is found from scores that were calibrated at another share."""

from __future__ import annotations

import numpy as np
import pytest

from cryoray.boosting import prevalence


def scores(share: float, n: int = 20_000, training: float = 0.6, apart: float = 3.0) -> np.ndarray:
    """Of two normal kinds of images, ``share`` of them good, as calibrated at ``training``."""
    rng = np.random.default_rng(1)
    good = rng.random(n) < share
    seen = rng.normal(np.where(good, apart / 2, -apart / 2), 1)
    return 1 / (1 + np.exp(-(apart * seen + prevalence.log_odds(training))))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.95])
def test_the_share_of_keeps_is_found_whatever_it_was_in_training(share: float) -> None:
    found = prevalence.estimate(scores(share), 0.6)
    assert found.estimate == pytest.approx(share, abs=0.015)
    assert found.low <= found.estimate <= found.high
    assert found.high - found.low < 0.03
    assert found.shift == pytest.approx(np.log(share / (1 - share) / (0.6 / 0.4)), abs=0.2)


def test_shifted_scores_are_calibrated_where_the_plain_ones_are_not() -> None:
    rng = np.random.default_rng(1)
    good = rng.random(20_000) < 0.2
    score = scores(0.2)
    shifted = 1 / (
        1 + np.exp(-(prevalence.log_odds(score) + prevalence.estimate(score, 0.6).shift))
    )
    doubtful = (shifted > 0.3) & (shifted < 0.7)
    assert good[doubtful].mean() == pytest.approx(0.5, abs=0.05)
    assert good[(score > 0.3) & (score < 0.7)].mean() < 0.3


def test_few_images_give_a_wide_interval_and_certain_ones_no_failure() -> None:
    few = prevalence.estimate(scores(0.5, n=30), 0.6)
    assert few.high - few.low > 0.2
    assert prevalence.estimate(np.ones(50), 0.5).estimate == pytest.approx(1.0, abs=1e-6)
    assert prevalence.estimate(np.zeros(50, np.float32), 0.5).estimate == pytest.approx(0, abs=1e-6)
