"""A calibrated ensemble set right for one new source: from a few labels of it, or from none.

Until there are labels enough to calibrate anew, all members are changed alike: log-odds are stretched and
shifted by one factor and one amount. That turns no vote round (the median of three, and which side of
the threshold it is on, are the same before and after), so what was promised of the limit on good images
lost still holds of the limit's own image. How far the labels move the two is held back by a prior that a
dozen of them overcome: shift by what the unlabelled scores say of the share of keeps, stretch by nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import betainc, expit

from cryoray.boosting.prevalence import log_odds

#: Deviations of the prior: of the logarithm of the stretch, and of the shift of log-odds.
_STRETCH, _SHIFT = 0.25, 1.0

#: With as many labelled keeps each member is calibrated anew, and the threshold has a bound of its own:
#: at 3 % and 95 % confidence the first image may be lost at 99.
ENOUGH_KEEPS = 100


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of log-odds: ``stretch · x + shift``."""

    stretch: float = 1.0
    shift: float = 0.0

    def __call__(self, probability: np.ndarray | float) -> np.ndarray:
        """Probabilities [n] after the change, float64 [n]."""
        return np.asarray(expit(self.stretch * log_odds(probability) + self.shift))


def fit_change(score: np.ndarray, keep: np.ndarray, shift: float) -> Change:
    """The likeliest change given labels and prior (logistic regression, maximum a posteriori).

    Labels may be of images that were chosen for their looks or scores, but not for their label: who clicks
    ten good and ten bad ones tells nothing of how many there are of each.

    Args:
        score: float [n], calibrated probability of keep; may be none.
        keep: bool [n].
        shift: what the unlabelled images say (`prevalence.Prevalence.shift`).
    """
    x, sign = log_odds(score), np.where(keep, 1.0, -1.0)

    def loss(w: np.ndarray, centre: float) -> float:
        z = np.exp(w[0]) * x + w[1]
        prior = (w[0] / _STRETCH) ** 2 + ((w[1] - centre) / _SHIFT) ** 2
        return float(np.logaddexp(0, -sign * z).sum() + prior / 2)

    centres = (shift, 0.0) if len(x) else (shift,)
    fits = [minimize(loss, np.array([0.0, c]), args=(c,), method="BFGS") for c in centres]
    stretch, moved = min(fits, key=lambda fit: float(fit.fun)).x
    return Change(float(np.exp(stretch)), float(moved))


def not_contradicted(keeps: np.ndarray, limit: float, bound: float, confidence: float) -> float:
    """The highest limit up to ``limit`` at which labelled keeps do not contradict the bound.

    They do where so many of them below it would be seen with less than ``1 - confidence`` probability
    if a share ``bound`` of all keeps were lost (exact binomial test). One click that was wrong is not
    enough for that.

    Args:
        keeps: float [k], scores of labelled keeps; may be none.
        limit: of the threshold.
        bound: of the false-negative rate.
        confidence: of the test.
    """
    allowed = 0
    # P(at least m of k) under the bound is the regularised incomplete beta function I_bound(m, k - m + 1).
    while allowed < len(keeps) and (
        betainc(allowed + 1, len(keeps) - allowed, bound) >= 1 - confidence
    ):
        allowed += 1
    if allowed >= len(keeps):
        return limit
    return float(min(limit, np.sort(keeps)[allowed]))


def log_loss(score: np.ndarray, keep: np.ndarray) -> float:
    """Mean negative log-likelihood of labels, nats; what a calibrated score has least of."""
    return float(np.mean(np.logaddexp(0, -np.where(keep, 1, -1) * log_odds(score))))
