"""Where the line between keep and discard is drawn, and where a person is asked to look.

For each calibration group, the highest threshold at which its own false-negative rate is within the
bound; the ensemble's limit is the split-conformal quantile of these, so that a new, exchangeable group
stays within the bound with the stated probability (Vovk et al. 2005; Angelopoulos & Bates 2023). With
too few groups for that, micrographs take their place, then single images with a Clopper-Pearson bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from scipy.special import betaincinv

from cryoray.boosting.voting import disagree

#: A group with fewer keeps says too little about its own false-negative rate.
KEEPS_PER_GROUP = 100


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold and what stands behind it.

    Attributes:
        threshold: float32-representable; keep where score >= threshold.
        bound: the false-negative rate that must not be exceeded.
        level: what was exchangeable: projects, micrographs, images; "none" where there were too few
            keeps to promise anything.
        method: in one phrase, how the limit was found.
        groups: how many of that level it rests on.
        achieved: false-negative rate on the calibration images themselves.
        limit: the highest threshold that keeps the bound.
    """

    threshold: float
    bound: float
    level: Literal["project", "micrograph", "image", "none"]
    method: str
    groups: int
    achieved: float
    limit: float

    def as_json(self) -> dict[str, object]:
        """The `operating_point` of ensemble.json."""
        return asdict(self)

    def guarantee(self, confidence: float) -> str:
        """What is and is not promised, in words for a report."""
        bound, sure = f"{self.bound:.0%}", f"{confidence:.0%}"
        if self.level == "image":
            return (
                f"On images like the {self.groups:,} calibration images labelled keep, at most {bound} are "
                f"lost with {sure} confidence. Nothing is promised for a project unlike these."
            )
        if self.level == "none":
            return (
                f"Only {self.groups:,} calibration images are labelled keep: too few to promise that at "
                f"most {bound} are lost. The lowest score among them is the limit."
            )
        return (
            f"A new {self.level} that is exchangeable with the {self.groups} calibration {self.level}s "
            f"loses at most {bound} of its good images with probability {sure}."
            + (
                ""
                if self.level == "project"
                else " Nothing is promised for a project unlike these."
            )
        )


def clopper_pearson_upper(misses: int, n: int, confidence: float) -> float:
    """One-sided upper limit of a rate of which ``misses`` in ``n`` were seen (Clopper & Pearson 1934)."""
    return 1.0 if misses >= n else float(betaincinv(misses + 1, n - misses, confidence))


def _limit_of_group(keeps: np.ndarray, bound: float) -> float:
    """The highest threshold at which at most ``bound`` of these keep scores fall below it."""
    ordered = np.sort(keeps)
    return float(ordered[int(np.floor(bound * len(ordered)))])


def _conformal_limit(
    score: np.ndarray, keep: np.ndarray, groups: np.ndarray, bound: float, alpha: float
) -> tuple[float, int] | None:
    """The split-conformal lower ``alpha`` quantile over groups; None where there are too few."""
    names, members = np.unique(groups[keep], return_inverse=True)
    big = np.flatnonzero(np.bincount(members, minlength=len(names)) >= KEEPS_PER_GROUP)
    rank = int(np.floor(alpha * (len(big) + 1)))
    if rank < 1:
        return None
    kept = score[keep]
    limits = np.sort([_limit_of_group(kept[members == g], bound) for g in big])
    return float(limits[rank - 1]), len(big)


def _image_limit(keeps: np.ndarray, bound: float, confidence: float) -> float | None:
    """The highest threshold whose false-negative rate is below ``bound`` with ``confidence``."""
    n = len(keeps)
    allowed = -1
    while allowed + 1 < n and clopper_pearson_upper(allowed + 1, n, confidence) <= bound:
        allowed += 1
    return None if allowed < 0 else float(np.sort(keeps)[allowed])


def choose(
    score: np.ndarray,
    keep: np.ndarray,
    groups: Mapping[Literal["project", "micrograph"], np.ndarray],
    *,
    bound: float = 0.03,
    confidence: float = 0.95,
    prefer: Literal["accuracy", "junk"] = "accuracy",
) -> OperatingPoint:
    """Choose the threshold on scores of images that no scoring member was trained on.

    Args:
        score: float32 [n], median of the three members' calibrated probabilities.
        keep: bool [n], what the person chose.
        groups: for each level its group ids, [n].
        bound: the false-negative rate that must not be exceeded.
        confidence: probability with which a new group (or image set) stays within it.
        prefer: among the thresholds within the bound, the most accurate one or the highest one.
    """
    score, keep = np.asarray(score, np.float32), np.asarray(keep, bool)
    keeps = score[keep]
    level: Literal["project", "micrograph", "image", "none"]
    for candidate in ("project", "micrograph"):
        found = _conformal_limit(score, keep, groups[candidate], bound, 1 - confidence)
        if found is not None:
            level, (limit, count) = candidate, found
            method = f"split conformal over {candidate}s"
            break
    else:
        count = len(keeps)
        at_images = _image_limit(keeps, bound, confidence)
        if at_images is not None:
            level, limit, method = "image", at_images, "Clopper-Pearson over images"
        else:
            level, limit, method = "none", float(keeps.min(initial=1.0)), "lowest score of a keep"
    threshold = limit if prefer == "junk" else _most_accurate(score, keep, limit)
    return OperatingPoint(
        threshold=threshold,
        bound=bound,
        level=level,
        method=method,
        groups=count,
        achieved=float(np.mean(keeps < np.float32(threshold))) if len(keeps) else 0.0,
        limit=limit,
    )


def _most_accurate(score: np.ndarray, keep: np.ndarray, limit: float) -> float:
    """The most accurate threshold up to ``limit``, in the middle of the gap where it is best."""
    order = np.argsort(score, kind="stable")
    ordered, kept = score[order], keep[order]
    # Threshold just above ordered[i-1]: the first i images are discarded, the rest kept.
    wrong = np.concatenate([[0], np.cumsum(kept)]) + np.concatenate(
        [np.cumsum(~kept[::-1])[::-1], [0]]
    )
    possible = np.concatenate([[True], ordered[1:] > ordered[:-1], [False]])
    possible[:-1] &= ordered <= np.float32(limit)
    if not possible.any():
        return float(np.float32(limit))
    cut = int(np.flatnonzero(possible)[np.argmin(wrong[possible])])
    if cut == 0:
        return float(ordered[0])
    middle = np.float32((np.float64(ordered[cut - 1]) + np.float64(ordered[cut])) / 2)
    return float(middle if ordered[cut - 1] < middle <= ordered[cut] else ordered[cut])


def review_band(
    score: np.ndarray,
    keep: np.ndarray,
    threshold: float,
    *,
    remove: float = 0.5,
    at_most: float = 0.2,
) -> tuple[float, float]:
    """The narrowest band of scores around the threshold that holds half of the errors.

    It grows from the threshold by equal numbers of images on either side, so its cost is the number of
    images that a person looks at in order to halve the errors.

    Args:
        score: float32 [n], held-out scores.
        keep: bool [n].
        threshold: the ensemble's.
        remove: fraction of the errors that must fall into the band.
        at_most: fraction of all images that the band may hold.

    Returns:
        (low, high) with low <= threshold <= high; equal where there is nothing to gain.
    """
    score, keep = np.asarray(score, np.float32), np.asarray(keep, bool)
    wrong = (score >= np.float32(threshold)) != keep
    if not wrong.any():
        return threshold, threshold
    order = np.argsort(score, kind="stable")
    ordered, erring = score[order], wrong[order]
    cut = int(np.searchsorted(ordered, np.float32(threshold)))
    n = len(ordered)
    caught = np.concatenate([[0], np.cumsum(erring)])
    half = np.arange(1, max(int(at_most * n / 2), 1) + 1)
    low, high = np.maximum(cut - half, 0), np.minimum(cut + half, n)
    enough = np.flatnonzero(caught[high] - caught[low] >= remove * wrong.sum())
    i = int(enough[0]) if len(enough) else len(half) - 1
    bottom = float(ordered[low[i]])
    top = (
        float(ordered[high[i]])
        if high[i] < n
        else float(np.nextafter(np.float32(1), np.float32(2)))
    )
    return min(bottom, threshold), max(top, threshold)


def ask_third(d1: np.ndarray, d2: np.ndarray, d3: np.ndarray, threshold: float) -> np.ndarray:
    """d3 as deployment sees it: NaN where d1 and d2 agree at the threshold."""
    return np.where(disagree(d1, d2, threshold), d3, np.nan).astype(np.float32)
