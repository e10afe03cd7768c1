"""What the choices were worth: error rates, ROC and calibration of the forced decision.

Forced decision: an image is kept when its score is at least the threshold, review included. A
*false negative* is a good image that was lost, a *false positive* a bad one that was let through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betaincinv

from cryoray.errors import SelectionError

#: Bins of the expected calibration error and of the reliability diagram.
BINS = 15

#: A bin of a view needs this many good images before it can be named the worst one, and a group before
#: it counts among those in which the bound held.
ENOUGH = 20

#: The metrics whose spread over groups is reported.
SPREAD = (
    "accuracy",
    "false_negative_rate",
    "false_positive_rate",
    "auroc",
    "ece",
    "review_fraction",
    "accuracy_without_review",
)


@dataclass(frozen=True, slots=True)
class Confusion:
    """Forced decisions: good images ``kept`` or ``lost``, bad ones ``passed`` or ``removed``."""

    kept: int
    lost: int
    passed: int
    removed: int

    @property
    def n(self) -> int:
        """All images."""
        return self.kept + self.lost + self.passed + self.removed

    @property
    def accuracy(self) -> float | None:
        """Of the forced decision; None of no image."""
        return _ratio(self.kept + self.removed, self.n)

    @property
    def false_negative_rate(self) -> float | None:
        """Of the good images, those lost; None where there are none."""
        return _ratio(self.lost, self.kept + self.lost)

    @property
    def false_positive_rate(self) -> float | None:
        """Of the bad images, those let through; None where there are none."""
        return _ratio(self.passed, self.passed + self.removed)


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """The filled bins of a reliability diagram, arrays [b]: mean score, fraction good, images."""

    score: np.ndarray
    good: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: mean |fraction good - mean score|, weighted by images."""
        return float(np.average(np.abs(self.good - self.score), weights=self.count))


def confusion(labels: np.ndarray, score: np.ndarray, threshold: float | np.ndarray) -> Confusion:
    """Count the forced decisions.

    Args:
        labels: bool [n], True is keep.
        score: float [n].
        threshold: one for all, or float [n], one for each image (cross-validation).
    """
    good, kept = np.asarray(labels, bool), np.asarray(score) >= threshold
    return Confusion(
        kept=int((good & kept).sum()),
        lost=int((good & ~kept).sum()),
        passed=int((~good & kept).sum()),
        removed=int((~good & ~kept).sum()),
    )


def auroc(labels: np.ndarray, score: np.ndarray) -> float:
    """The probability that a good image outscores a bad one; NaN without both kinds.

    Ties count half. Computed from ranks (Mann and Whitney 1947), so exact.
    """
    good = np.asarray(labels, bool)
    n_good, n_bad = int(good.sum()), int((~good).sum())
    if not (n_good and n_bad):
        return math.nan
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[inverse]
    return float((rank[good].sum() - n_good * (n_good + 1) / 2) / (n_good * n_bad))


def roc_curve(labels: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every operating point there is.

    Returns:
        float64 [k] each, from "discard all" to "keep all": false-positive rate, true-positive rate,
        and the threshold that gives them (the first is infinite). NaN where a kind is absent.
    """
    good = np.asarray(labels, bool)
    order = np.argsort(-np.asarray(score), kind="stable")
    ranked = np.asarray(score, np.float64)[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = np.cumsum(good[order])[last_of_tie]
    false_alarms = last_of_tie + 1 - hits
    with np.errstate(invalid="ignore"):
        fpr = np.concatenate([[0], false_alarms]) / (~good).sum()
        tpr = np.concatenate([[0], hits]) / good.sum()
    return fpr, tpr, np.concatenate([[np.inf], ranked[last_of_tie]])


def reliability(labels: np.ndarray, score: np.ndarray, bins: int = BINS) -> Reliability:
    """How often images of a score are good, in equal bins over [0, 1] (Naeini et al. 2015)."""
    score, good = np.asarray(score, np.float64), np.asarray(labels, bool)
    which = np.clip((score * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    filled = count > 0
    mean_score, fraction_good = (
        np.bincount(which, values, bins)[filled] / count[filled] for values in (score, good)
    )
    return Reliability(mean_score, fraction_good, count[filled])


def wilson(part: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% interval of a proportion ``part / n`` (Wilson 1927), as (low, high).

    It takes images as independent; those of one micrograph are not, so between groups expect more.
    """
    z = 1.959964
    centre = (part + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(part * (n - part) / n + z * z / 4)
    return centre - half, centre + half


def clopper_pearson(part: float, n: float) -> tuple[float, float]:
    """The exact 95% interval of a proportion ``part / n`` (Clopper & Pearson 1934), as (low, high)."""
    low = float(betaincinv(part, n - part + 1, 0.025)) if part > 0 else 0.0
    high = float(betaincinv(part + 1, n - part, 0.975)) if part < n else 1.0
    return low, high


def bound_held(
    labels: np.ndarray, kept: np.ndarray, groups: np.ndarray, repeat: np.ndarray, bound: float
) -> dict[str, Any]:
    """In how many groups the false-negative rate was within the bound.

    Args:
        labels: bool [n], True is keep.
        kept: bool [n], forced decisions of ensembles that did not know the group.
        groups: ids, [n]; those with fewer than `ENOUGH` good images are not counted.
        repeat: int [n], of which cross-validation.
        bound: the false-negative rate that must not be exceeded.

    Returns:
        ``bound``, ``groups``, ``repeats``, ``held`` (of groups times repeats), ``fraction``, and its 95%
        ``interval``: repeats see the same groups, so it is that of as many trials as there are groups.
    """
    good = np.asarray(labels, bool)
    rates = []
    for again in np.unique(repeat):
        for group in np.unique(groups.astype(str)):
            here = good & (repeat == again) & (groups == group)
            if here.sum() >= ENOUGH:
                rates.append((group, float(np.mean(~kept[here]))))
    distinct = len({group for group, _ in rates})
    held = sum(rate <= bound for _, rate in rates)
    fraction = _ratio(held, len(rates))
    interval = None if fraction is None else clopper_pearson(fraction * distinct, distinct)
    return {
        "bound": bound,
        "groups": distinct,
        "repeats": len(np.unique(repeat)),
        "held": held,
        "fraction": fraction,
        "interval": list(interval) if interval else None,
    }


def quantile_bins(values: np.ndarray, unit: str = "", bins: int = 5) -> np.ndarray:
    """Name the quantile bin of each value, such as ``1.2 to 1.8 µm``; ``missing`` where it is NaN.

    Args:
        values: float [n].
        unit: written after the numbers.
        bins: as many where the values differ enough.

    Returns:
        object [n] of str.
    """
    values = np.asarray(values, np.float64)
    names = np.full(len(values), "missing", object)
    known = np.isfinite(values)
    if known.any():
        edges = np.unique(np.quantile(values[known], np.linspace(0, 1, bins + 1)))
        which = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
        for index in np.unique(which[known]):
            ends = edges[index : index + 2]
            name = " to ".join(f"{end:.3g}" for end in ends) + (f" {unit}" if unit else "")
            names[known & (which == index)] = name
    return names


def metrics(
    labels: np.ndarray,
    score: np.ndarray,
    *,
    threshold: float | np.ndarray,
    review: np.ndarray,
    groups: np.ndarray,
    particles: np.ndarray | None = None,
    views: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """The numbers of `metrics.json`, by the names of the contract.

    Args:
        labels: bool [n], True is keep.
        score: float [n], calibrated probability of keep.
        threshold: the ensemble's own, never chosen on these images; float [n] where folds have
            several (then the mean over images is reported).
        review: bool [n], where the ensemble abstained.
        groups: object [n] of str, over which the spread is taken.
        particles: float [n], particles in each class; for the class kinds.
        views: name to object [n] of str: further bins in which the false-negative rate is reported.

    Returns:
        Plain JSON data; None where a rate has nothing to be a rate of.

    Raises:
        SelectionError: there is no image at all.
    """
    good, score = np.asarray(labels, bool), np.asarray(score, np.float64)
    review, groups = np.asarray(review, bool), np.asarray(groups, object)
    if not len(good):
        raise SelectionError("no labelled image to measure", remedy="give a set with a selection")
    threshold_of = np.broadcast_to(np.asarray(threshold, np.float64), good.shape)
    kept = score >= threshold_of
    lost = good & ~kept

    pooled: dict[str, object] = {"n": len(good), **_rates(good, score, kept, review)}
    pooled["threshold"] = float(threshold_of.mean())
    wrong = good != kept
    pooled["review"] = {
        "images": int(review.sum()),
        "errors": int(wrong.sum()),
        "errors_in_review": int((wrong & review).sum()),
    }
    if particles is not None:
        weight = np.asarray(particles, np.float64)
        pooled["false_negative_rate_by_particles"] = _ratio(weight[lost].sum(), weight[good].sum())

    members = [groups == group for group in np.unique(groups.astype(str))]
    per_group = [_rates(good[m], score[m], kept[m], review[m]) for m in members]
    pooled["spread"] = {name: spread([rates[name] for rates in per_group]) for name in SPREAD}
    pooled["by_view"] = _by_view(good, lost, {"group": groups, **(views or {})})
    return pooled


def _rates(
    good: np.ndarray, score: np.ndarray, kept: np.ndarray, review: np.ndarray
) -> dict[str, float | None]:
    right = good == kept
    area = auroc(good, score)
    return {
        "accuracy": _ratio(right.sum(), len(good)),
        "false_negative_rate": _ratio((good & ~kept).sum(), good.sum()),
        "false_positive_rate": _ratio((~good & kept).sum(), (~good).sum()),
        "auroc": None if math.isnan(area) else area,
        "ece": reliability(good, score).ece,
        "review_fraction": _ratio(review.sum(), len(good)),
        "accuracy_without_review": _ratio(right[~review].sum(), (~review).sum()),
    }


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def spread(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Over the groups in which the number exists; a single group has no deviation: None."""
    known = np.array([value for value in values if value is not None])
    return {
        "std": float(known.std(ddof=1)) if len(known) > 1 else None,
        "min": float(known.min()) if len(known) else None,
        "max": float(known.max()) if len(known) else None,
        "groups": len(known),
    }


def _by_view(
    good: np.ndarray, lost: np.ndarray, views: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    flat: list[tuple[str, str, dict[str, Any]]] = []
    for view, bins in views.items():
        names, which = np.unique(np.asarray(bins).astype(str), return_inverse=True)
        keeps = np.bincount(which, good, len(names)).astype(int)
        losses = np.bincount(which, lost, len(names))
        table[view] = {
            str(name): {
                "false_negative_rate": float(part / whole),
                "keeps": int(whole),
                "interval": list(clopper_pearson(float(part), float(whole))),
            }
            for name, part, whole in zip(names, losses, keeps, strict=True)
            if whole
        }
        flat += [(view, name, found) for name, found in table[view].items()]
    if flat:
        sound = [entry for entry in flat if entry[2]["keeps"] >= ENOUGH] or flat
        view, name, found = max(
            sound, key=lambda entry: (entry[2]["false_negative_rate"], entry[2]["keeps"])
        )
        table["worst"] = {"view": view, "bin": name, **found}
    return table
