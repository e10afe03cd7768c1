"""Boosting by filtering: on what each member trains, and how images are kept apart for it.

The scheme of Schapire (1990) as Drucker, Schapire & Simard (1993) built it for neural networks: d1 trains
on the training distribution; d2 on one on which d1 is right half the time; d3 on what d1 and d2 disagree
about. A filtered set is a sampler over all examples, drawn afresh each epoch, not a small subset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryoray.boosting.voting import disagree

#: With fewer examples that d1 gets wrong, boosting has little to work with; reports say so.
ENOUGH_WRONG = 200

#: No example is drawn more often in one epoch: the few wrong ones must not be learned by heart.
MAX_REPEATS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Stratum:
    """Rows that share a part of each epoch.

    Attributes:
        rows: int64 [m], the examples to draw from.
        count: how many are drawn from them in an epoch.
    """

    rows: NDArray[np.int64]
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """What one epoch shows a member: a count from each stratum, in random order."""

    strata: tuple[Stratum, ...]

    def __len__(self) -> int:
        """Examples in an epoch."""
        return sum(stratum.count for stratum in self.strata)

    def draw(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The rows of an epoch, int64 [len(self)], a function of seed and epoch alone."""
        rng = np.random.default_rng((seed, epoch))
        drawn = [_draw(stratum, rng) for stratum in self.strata]
        return rng.permutation(np.concatenate(drawn)) if drawn else np.empty(0, np.int64)

    def within(self, rows: NDArray[np.integer]) -> Sampler:
        """The same filter seen by a fold: only ``rows``, counts shrunk in proportion."""
        inside = []
        for stratum in self.strata:
            left = stratum.rows[np.isin(stratum.rows, rows)]
            if len(left):
                inside.append(Stratum(left, round(stratum.count * len(left) / len(stratum.rows))))
        return Sampler(tuple(inside))

    def repeating(self, times: NDArray[np.int64]) -> Sampler:
        """The same filter, strata as large to each other, where some examples count more than once.

        Args:
            times: how often each example counts among those of its stratum, int64 [N] from 1 on.
        """
        repeated = [np.repeat(stratum.rows, times[stratum.rows]) for stratum in self.strata]
        longer = sum(map(len, repeated)) / sum(len(stratum.rows) for stratum in self.strata)
        return Sampler(
            tuple(
                Stratum(rows, round(stratum.count * longer))
                for rows, stratum in zip(repeated, self.strata, strict=True)
            )
        )


def _draw(stratum: Stratum, rng: np.random.Generator) -> np.ndarray:
    """Whole permutations first, so that within an epoch no row is drawn n+2 times and another n."""
    whole, rest = divmod(stratum.count, len(stratum.rows))
    parts = [stratum.rows] * whole + [rng.permutation(stratum.rows)[:rest]]
    return np.concatenate(parts)


def folds_of_groups(groups: np.ndarray, folds: int, seed: int) -> NDArray[np.int64]:
    """Give each group to a fold so that folds hold about the same number of images.

    Args:
        groups: group ids, [n].
        folds: how many; there are never more folds than groups.
        seed: breaks ties between groups of the same size.

    Returns:
        The fold of each row, int64 [n].
    """
    names, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    folds = min(folds, len(names))
    tie_break = np.random.default_rng(seed).permutation(len(names))
    load = np.zeros(folds, np.int64)
    fold_of = np.zeros(len(names), np.int64)
    for group in np.lexsort((tie_break, -sizes)):
        fold_of[group] = np.argmin(load)
        load[fold_of[group]] += sizes[group]
    return fold_of[members]


def suspected_labels(
    probability: NDArray[np.floating], keep: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Labels that are likely wrong, by confident learning (Northcutt, Jiang & Chuang 2021).

    An image is suspect where the ensemble-to-be gives the other label at least the mean probability that
    it gives to images which carry that label.

    Args:
        probability: held-out calibrated probability of keep, [n].
        keep: bool [n].

    Returns:
        bool [n].
    """
    keep = np.asarray(keep, bool)
    as_keep, as_discard = float(probability[keep].mean()), float((1 - probability)[~keep].mean())
    return np.where(keep, 1 - probability >= as_discard, probability >= as_keep)


def everything(n: int) -> Sampler:
    """d1's sampler: the training distribution itself."""
    return Sampler((Stratum(np.arange(n), n),))


def right_and_wrong(
    d1: np.ndarray, keep: np.ndarray, threshold: float, suspects: np.ndarray
) -> Sampler:
    """d2's sampler: per label, half of what is drawn d1 gets wrong and half it gets right.

    Args:
        d1: held-out calibrated probability of keep by d1, [n].
        keep: bool [n].
        threshold: the operating threshold at which right and wrong are judged.
        suspects: bool [n], likely label errors: not drawn, since boosting would concentrate on them.
    """
    wrong = (d1 >= threshold) != keep
    strata: list[Stratum] = []
    for label in (True, False):
        usable = (keep == label) & ~suspects
        strata += _halves(np.flatnonzero(usable & wrong), np.flatnonzero(usable & ~wrong))
    return Sampler(tuple(strata))


def disagreements(
    d1: np.ndarray, d2: np.ndarray, keep: np.ndarray, threshold: float, suspects: np.ndarray
) -> Sampler:
    """d3's sampler: half of what is drawn d1 and d2 disagree about or nearly do, half is the rest.

    Good members disagree about a few images in a hundred, and many of those are beyond anybody: a network
    that sees nothing else learns noise. So near-ties (the images whose mean of d1 and d2 lies closest to
    the threshold) make the disagreements up to an eighth of all, and the other half keeps d3 a judge of
    its own. Likely label errors are not drawn.
    """
    distance = np.abs((d1 + d2) / 2 - threshold)
    distance[disagree(d1, d2, threshold)] = 0.0
    distance[suspects] = np.inf
    apart = int(np.count_nonzero(distance == 0.0))
    hard = np.zeros(len(keep), bool)
    hard[np.argsort(distance, kind="stable")[: max(apart, len(keep) // 8)]] = True
    hard &= ~suspects
    return Sampler(tuple(_halves(np.flatnonzero(hard), np.flatnonzero(~hard & ~suspects))))


def _halves(first: np.ndarray, second: np.ndarray) -> list[Stratum]:
    """Half an epoch from each, unless ``first`` is so small that it would be learned by heart."""
    total = len(first) + len(second)
    one = min(total // 2, MAX_REPEATS * len(first)) if len(second) else total
    other = total - one
    return [
        Stratum(rows, count)
        for rows, count in ((first, one), (second, other))
        if len(rows) and count
    ]
