"""Champion against challenger: who takes whose place, and who does not."""

from __future__ import annotations

import numpy as np
import pytest

from cryoray.metrics.comparison import Comparison, Scores, compare


def drawn(n: int, apart: float, seed: int, keep: np.ndarray, shift: float = 0.0) -> Scores:
    """Scores of which those of good and bad images lie ``apart`` standard deviations from each other."""
    rng = np.random.default_rng(seed)
    value = rng.normal(size=n) + apart * keep + shift
    return Scores((1 / (1 + np.exp(-value))).astype(np.float32), threshold=0.5)


def compared(champion: float, challenger: float, *, n: int = 1200, seed: int = 0) -> Comparison:
    rng = np.random.default_rng(100 + seed)
    keep, groups = rng.random(n) < 0.6, rng.integers(0, 12, n)
    return compare(
        drawn(n, champion, 2 * seed, keep),
        drawn(n, challenger, 2 * seed + 1, keep),
        keep,
        groups,
        bound=0.5,
        resamples=400,
    )


def test_a_much_better_challenger_is_promoted_and_a_worse_one_is_not() -> None:
    better = compared(1.0, 3.0)
    assert better.better
    assert better.at_least is not None
    assert better.gain is not None
    assert 0 < better.at_least < better.gain
    assert "removes more of the junk" in better.why
    worse = compared(3.0, 1.0)
    assert not worse.better
    assert "not surely more" in worse.why


@pytest.mark.long
def test_challengers_that_are_no_better_are_promoted_as_rarely_as_promised() -> None:
    promoted = sum(compared(2.0, 2.0, n=400, seed=seed).better for seed in range(40))
    assert promoted <= 6  # 2 in the mean at 5%; 7 or more in 3 of 1,000


def test_who_breaks_the_bound_at_its_own_threshold_is_not_promoted() -> None:
    rng = np.random.default_rng(3)
    keep, groups = rng.random(900) < 0.5, rng.integers(0, 9, 900)
    harsh = drawn(900, 4.0, 1, keep, shift=-4.0)
    found = compare(drawn(900, 1.0, 0, keep), harsh, keep, groups, bound=0.03, resamples=300)
    assert not found.better
    assert "at its own threshold" in found.why


def test_the_same_images_cancel_out_of_the_difference() -> None:
    keep = np.random.default_rng(0).random(300) < 0.5
    one = drawn(300, 1.5, 1, keep)
    same = compare(one, one, keep, np.zeros(300, int), bound=0.5, resamples=200)
    assert (same.gain, same.at_least, same.at_most) == (0.0, 0.0, 0.0)
    assert not same.better


def test_too_few_labels_decide_nothing() -> None:
    keep = np.array([True] * 30 + [False] * 5)
    one = Scores(np.linspace(0, 1, 35, dtype=np.float32), 0.5)
    found = compare(one, one, keep, np.zeros(35, int))
    assert not found.better
    assert "30 good and 5 bad" in found.why
    assert found.table() == []
    nothing = compare(
        Scores(np.empty(0, np.float32), 0.5), one, np.empty(0, bool), np.empty(0, int)
    )
    assert "0 good" in nothing.why


def test_junk_is_removed_from_below_and_images_of_one_score_go_together() -> None:
    keep = np.array([0, 0, 1, 0, 1, 1, 1, 1], bool)
    score = np.array([0.1, 0.1, 0.3, 0.3, 0.6, 0.7, 0.8, 0.9], np.float32)
    one = Scores(score, 0.2)
    found = compare(one, one, keep, np.zeros(8, int), bound=0.1, least=1, resamples=100)
    assert found.champion is not None
    assert found.champion.removed_at_bound == pytest.approx(2 / 3)
    assert found.champion.removed == pytest.approx(2 / 3)
    assert found.champion.lost == 0
    assert {bound: ours for bound, ours, _ in found.curves}[0.2] == pytest.approx(1.0)
