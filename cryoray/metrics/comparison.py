"""Whether one ensemble is better than another on images that a person labelled without seeing either.

Both are asked the same: how much of the junk do they remove where they lose at most ``bound`` of the
good images? Thresholds for that are set on the very images, for both alike, so neither has an advantage;
whether the challenger keeps its promise at its own threshold is asked beside it.

The uncertainty is that of a paired bootstrap over groups and images: each resample weighs every group and,
in it, every image at random, and both ensembles are measured under the same weights. Products of
independent weights overstate the variance of nested data rather than understate it (Owen & Eckles 2012,
doi:10.1214/12-AOAS547).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

#: Bounds of the false-negative rate at which the curves are given.
BOUNDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)

#: Weights held in memory at once.
_MOST = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """An ensemble's scores of the n images, float32 [n], and its own threshold."""

    score: np.ndarray
    threshold: float


@dataclass(frozen=True, slots=True)
class Numbers:
    """One ensemble on the images; rates in [0, 1].

    Attributes:
        removed_at_bound: of the junk, where at most ``bound`` of the good are lost.
        removed: of the junk, at its own threshold.
        lost: of the good images, at its own threshold.
        lost_at_least: lower confidence limit of ``lost``.
    """

    removed_at_bound: float
    removed: float
    lost: float
    lost_at_least: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Champion and challenger on the same images.

    Attributes:
        good: images labelled keep.
        bad: images labelled discard.
        groups: that they are of.
        bound: of the false-negative rate.
        champion: None where there were too few images to compare, as the next three.
        challenger: likewise.
        gain: what the challenger removes more of the junk at the bound.
        at_least: lower confidence limit of ``gain``.
        at_most: upper one.
        better: whether the challenger is to take the champion's place.
        why: in one sentence.
        curves: bound, and how much of the junk champion and challenger remove there.
    """

    good: int
    bad: int
    groups: int
    bound: float
    better: bool
    why: str
    champion: Numbers | None = None
    challenger: Numbers | None = None
    gain: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    curves: tuple[tuple[float, float, float], ...] = ()

    def table(self) -> list[dict[str, object]]:
        """Rows for people: what was measured, of the champion and of the challenger."""
        if self.champion is None or self.challenger is None:
            return []
        names = {
            "removed_at_bound": f"junk removed where {self.bound:.0%} of the good are lost",
            "removed": "junk removed at its own threshold",
            "lost": "good images lost at its own threshold",
            "lost_at_least": "… at least",
        }
        return [
            {
                "what": what,
                "champion": getattr(self.champion, name),
                "challenger": getattr(self.challenger, name),
            }
            for name, what in names.items()
        ]


def compare(
    champion: Scores,
    challenger: Scores,
    keep: np.ndarray,
    groups: np.ndarray,
    *,
    bound: float = 0.03,
    confidence: float = 0.95,
    least: int = 20,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two ensembles on n images that neither was trained on.

    Args:
        champion: the one that is served.
        challenger: the one that may take its place.
        keep: bool [n], a person's labels.
        groups: [n], of which session or project each image is.
        bound: the false-negative rate that must not be exceeded.
        confidence: one-sided, with which the challenger must be better.
        least: images of either label without which nothing is compared.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    keep = np.asarray(keep, bool)
    _, group = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    good, bad, several = int(keep.sum()), int((~keep).sum()), int(group.max(initial=-1) + 1)
    if min(good, bad) < least:
        return Comparison(
            good,
            bad,
            several,
            bound,
            better=False,
            why=f"{good} good and {bad} bad images were labelled blind in groups that"
            f" are new to both, and {least} of each are needed",
        )
    both = (champion, challenger)
    orders = [_Ordered(one.score, keep) for one in both]
    gains, lost = [], []
    for weights in _weights(group, resamples, seed):
        removed = [order.removed(weights, bound) for order in orders]
        gains.append(removed[1] - removed[0])
        lost.append([_rate(weights, keep, one.score < np.float32(one.threshold)) for one in both])
    gain = np.concatenate(gains)
    limits = np.nanquantile(gain, [1 - confidence, confidence])
    lost_at_least = np.nanquantile(np.concatenate(lost, axis=1), 1 - confidence, axis=1)
    once = np.ones((1, len(keep)))
    numbers = [
        Numbers(
            removed_at_bound=float(order.removed(once, bound)[0]),
            removed=float(np.mean(one.score[~keep] < np.float32(one.threshold))),
            lost=float(np.mean(one.score[keep] < np.float32(one.threshold))),
            lost_at_least=float(least_lost),
        )
        for one, order, least_lost in zip(both, orders, lost_at_least, strict=True)
    ]
    better, why = _decided(numbers[1], float(limits[0]), float(limits[1]), bound, confidence)
    ours, theirs = ([float(one.removed(once, at)[0]) for at in BOUNDS] for one in orders)
    curves = tuple(zip(BOUNDS, ours, theirs, strict=True))
    return Comparison(
        good,
        bad,
        several,
        bound,
        better=better,
        why=why,
        champion=numbers[0],
        challenger=numbers[1],
        gain=numbers[1].removed_at_bound - numbers[0].removed_at_bound,
        at_least=float(limits[0]),
        at_most=float(limits[1]),
        curves=curves,
    )


def _decided(
    challenger: Numbers, at_least: float, at_most: float, bound: float, confidence: float
) -> tuple[bool, str]:
    sure = f"with {confidence:.0%} confidence"
    if challenger.lost_at_least > bound:
        return False, (
            f"at its own threshold the challenger loses at least {challenger.lost_at_least:.1%} of the good"
            f" images {sure}, and {bound:.1%} is the bound"
        )
    interval = f"between {at_least:+.1%} and {at_most:+.1%}"
    if at_least > 0:
        return True, (
            f"at {bound:.0%} of the good images lost, the challenger removes more of the junk: {interval}"
        )
    return False, (
        f"at {bound:.0%} of the good images lost, what the challenger removes more of the junk is {interval}:"
        f" not surely more {sure}"
    )


class _Ordered:
    """Images in the order of one ensemble's scores; they are discarded from below."""

    def __init__(self, score: np.ndarray, keep: np.ndarray) -> None:
        self._order = np.argsort(score, kind="stable")
        ordered = np.asarray(score)[self._order]
        self._keep = keep[self._order]
        # images of one score go together
        self._ends = np.append(ordered[1:] != ordered[:-1], True)

    def removed(self, weights: np.ndarray, bound: float) -> np.ndarray:
        """Of the junk, where at most ``bound`` of the good are lost: float64 [r], of weights [r, n]."""
        drawn = weights[:, self._order]
        good = np.cumsum(drawn * self._keep, axis=1)
        bad = np.cumsum(drawn * ~self._keep, axis=1)
        allowed = self._ends & (good <= bound * good[:, -1:])
        with np.errstate(invalid="ignore"):
            removed = np.where(allowed, bad, 0).max(axis=1) / bad[:, -1]
        return np.where(good[:, -1] > 0, removed, np.nan)


def _rate(weights: np.ndarray, of: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Of the images ``of`` (bool [n]), the weight of those ``where`` (bool [n]): float64 [r]."""
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ (of & where)) / (weights @ of))


def _weights(group: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Weights [r, n] of the images, ``resamples`` rows in all."""
    rng = np.random.default_rng(seed)
    groups = int(group.max()) + 1
    at_once = max(1, _MOST // len(group))
    for begin in range(0, resamples, at_once):
        rows = min(at_once, resamples - begin)
        weights = rng.poisson(1.0, (rows, len(group))).astype(np.float64)
        if groups > 1:
            weights *= rng.multinomial(groups, np.full(groups, 1 / groups), rows)[:, group]
        yield weights
