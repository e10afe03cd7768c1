"""The vote, the score, and that they never disagree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cryoray.boosting.voting import decide, disagree, error_bound, score, with_class

probabilities = hnp.arrays(
    np.float32, (3, 40), elements=st.floats(0, 1, width=32, allow_subnormal=False)
)
thresholds = st.floats(0, 1, width=32)


@given(probabilities, thresholds)
def test_score_is_above_the_threshold_exactly_where_the_vote_says_keep(p, threshold):
    d1, d2, d3 = p
    apart = disagree(d1, d2, threshold)
    vote = np.where(apart, d3 >= threshold, d1 >= threshold)
    asked_where_needed = score(d1, d2, np.where(apart, d3, np.float32(np.nan)))
    np.testing.assert_array_equal(asked_where_needed >= np.float32(threshold), vote)
    np.testing.assert_array_equal(score(d1, d2, d3) >= np.float32(threshold), vote)


def test_score_is_the_mean_without_d3_and_the_median_with_it():
    given_d3 = score(np.array([0.2, 0.2]), np.array([0.8, 0.6]), np.array([0.5, np.nan]))
    np.testing.assert_allclose(given_d3, [0.5, 0.4], rtol=1e-6)
    assert given_d3.dtype == np.float32


def test_review_is_between_the_two_ends_of_the_band():
    answer = decide(np.array([0.1, 0.3, 0.49, 0.5, 0.9], np.float32), (0.3, 0.5))
    assert answer.tolist() == ["discard", "review", "review", "keep", "keep"]


def test_no_review_where_the_band_is_empty():
    answer = decide(np.array([0.1, 0.5], np.float32), (0.5, 0.5))
    assert answer.tolist() == ["discard", "keep"]


@pytest.mark.parametrize(
    ("error", "bound"), [(0.05, 0.00725), (0.1, 0.028), (0.2, 0.104), (0.5, 0.5)]
)
def test_error_bound_is_schapires(error, bound):
    assert error_bound(error) == pytest.approx(bound)


@pytest.mark.parametrize(
    ("of_class", "becomes"),
    [
        ("keep", ["keep", "keep", "discard"]),
        ("review", ["review", "review", "discard"]),
        ("discard", ["discard", "discard", "discard"]),
        ("", ["keep", "review", "discard"]),
    ],
)
def test_a_particle_is_kept_only_with_its_class_and_not_against_itself(
    of_class: str, becomes: list[str]
) -> None:
    own = np.array(["keep", "review", "discard"], object)
    assert with_class(own, np.full(3, of_class, object)).tolist() == becomes
