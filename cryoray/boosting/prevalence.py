"""How many of a new source's images are worth keeping, and what that does to a calibrated score.

Junk varies from none to most between projects. Where only its share differs, and not what keeps and
discards look like, the odds of a calibrated probability shift by one factor for all images, and the
factor is the one at which the mean shifted probability is the share that it stands for: maximum
likelihood by expectation and maximisation (Saerens, Latinne & Decaestecker 2002).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

#: Probabilities are binned this finely in log-odds, so that a million images cost what a thousand do.
_BINS = 400
_FARTHEST = 12.0
_STEPS = 500


@dataclass(frozen=True, slots=True)
class Prevalence:
    """The share of keeps in a source.

    Attributes:
        estimate: in 0 to 1.
        low: of its 95% interval, by resampling images: what chance does, not what a source does that
            looks unlike the training.
        high: of the same.
        training: the share that the scores were calibrated at.
    """

    estimate: float
    low: float
    high: float
    training: float

    @property
    def shift(self) -> float:
        """What is added to log-odds calibrated at ``training`` to mean what they say here.

        As if there were at least one keep in fifty, and one discard: where a source looks unlike the
        training the estimate runs to 0 or 1, and nobody's junk does.
        """
        return float(log_odds(np.clip(self.estimate, 0.02, 0.98)) - log_odds(self.training))

    def as_json(self) -> dict[str, float]:
        """As `metrics.json` has it."""
        return asdict(self)


def log_odds(p: NDArray[np.floating] | float) -> NDArray[np.float64]:
    """ln(p / (1 - p)), float64 [n], of probabilities [n], finite at 0 and 1."""
    clipped = np.clip(np.asarray(p, np.float64), 1e-9, 1 - 1e-9)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def estimate(score: NDArray[np.floating], training: float, *, resamplings: int = 50) -> Prevalence:
    """Estimate the share of keeps among unlabelled images from their scores.

    Args:
        score: float [n], n > 0, calibrated probability of keep where the share of keeps is ``training``.
        training: that share, in 0 to 1.
        resamplings: for the interval.
    """
    edges = np.linspace(-_FARTHEST, _FARTHEST, _BINS + 1)
    centre = (edges[1:] + edges[:-1]) / 2
    place = np.clip(np.searchsorted(edges, log_odds(score)) - 1, 0, _BINS - 1)
    count = np.bincount(place, minlength=_BINS)
    n = int(count.sum())
    draws = np.random.default_rng(0).multinomial(n, count / n, size=resamplings)
    share = _fixed_point(np.vstack([count, draws]) / n, centre, training)
    low, high = np.quantile(share[1:], (0.025, 0.975))
    return Prevalence(float(share[0]), float(low), float(high), training)


def _fixed_point(weight: np.ndarray, odds: np.ndarray, training: float) -> np.ndarray:
    """The share of keeps, [r], of images in bins of log-odds [b] with weights [r, b]."""
    share = np.full(len(weight), training)
    for _ in range(_STEPS):
        shift = log_odds(share) - log_odds(training)
        before, share = share, _mean(weight, odds, shift)
        if np.abs(share - before).max() < 1e-6:
            break
    return share


def _mean(weight: np.ndarray, odds: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return np.asarray((weight / (1 + np.exp(-(odds + shift[:, None])))).sum(1))
