"""How three members come to one answer, and the score that can never disagree with it.

d1 and d2 judge; where they disagree d3 decides (Schapire 1990; Drucker, Schapire & Simard 1993).
For calibrated members and one threshold that is the same as *median of the three ≥ threshold*.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryoray.records import VERDICTS


def disagree(
    d1: NDArray[np.floating], d2: NDArray[np.floating], threshold: float
) -> NDArray[np.bool_]:
    """Where d3 decides: bool [n], from the calibrated probabilities of d1 and d2, [n] each."""
    return (d1 >= threshold) != (d2 >= threshold)


def score(
    d1: NDArray[np.floating], d2: NDArray[np.floating], d3: NDArray[np.floating]
) -> NDArray[np.float32]:
    """The median of the three where d3 judged, else the mean of d1 and d2.

    Args:
        d1: calibrated probability of keep, float [n].
        d2: the same of the second member.
        d3: the same of the third, NaN where it did not judge.

    Returns:
        float32 [n]; ``score >= threshold`` if and only if the vote says keep, provided that d3
        judged wherever d1 and d2 disagree at that threshold.
    """
    d1, d2, d3 = (np.asarray(d, np.float32) for d in (d1, d2, d3))
    median = np.maximum(np.minimum(d1, d2), np.minimum(np.maximum(d1, d2), d3))
    return np.where(np.isnan(d3), (d1 + d2) / np.float32(2), median)


def decide(score: NDArray[np.floating], review: tuple[float, float]) -> NDArray[np.object_]:
    """Keep, discard or review, object [n]: review where ``low <= score < high``.

    Nothing else makes a verdict of a score.
    """
    low, high = np.float32(review[0]), np.float32(review[1])
    keep, discard, undecided = VERDICTS
    answer = np.full(len(score), discard, object)
    answer[score >= low] = undecided
    answer[score >= high] = keep
    return answer


def with_class(own: NDArray[np.object_], of_class: NDArray[np.object_]) -> NDArray[np.object_]:
    """What becomes of a particle that has a verdict of its own and one of its 2D class.

    It is kept only if its class is kept and it is not itself discarded; what a person has yet to say
    of a class decides about its particles, too:

    ========== ========== ========== ==========
    own        class keep     review    discard
    ========== ========== ========== ==========
    keep             keep     review    discard
    review           keep     review    discard
    discard       discard    discard    discard
    ========== ========== ========== ==========

    A particle without a class, or of a class without a verdict, has its own alone.

    Args:
        own: verdicts, object [n].
        of_class: verdicts of each one's class, object [n], '' where there is none.

    Returns:
        verdicts, object [n].
    """
    _, discard, _ = VERDICTS
    answer = np.where(of_class == "", own, of_class)
    answer[own == discard] = discard
    return answer.astype(object)


def error_bound(error: float) -> float:
    """What the vote errs at most where each member errs at most ``error`` on its own distribution.

    3e² - 2e³ (Schapire 1990, the hypothesis-boosting theorem).
    """
    return 3 * error**2 - 2 * error**3
