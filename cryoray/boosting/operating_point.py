"""Where the line between keep and discard is drawn, and where a person is asked to look.

Two policies, both over calibration groups, so that a new group exchangeable with them is what is promised
about:

- ``expected`` (the default) bounds the *expected* share of a new group's good images that is lost, by
  conformal risk control (Angelopoulos, Bates, Fisch, Lei & Schuster 2022, arXiv:2208.02814, theorem 1): the
  highest threshold t at which n/(n+1) · mean loss(t) + B/(n+1) is within the bound. A group's loss is the
  share of its good images below t; it grows with t, and the largest loss, B, is 1.
- ``each`` bounds the share lost in at least 95 % of new groups, by split conformal prediction (Vovk et al.
  2005; Angelopoulos & Bates 2023): the lower 5 % quantile over groups of each one's own highest threshold
  within the bound.

With too few projects for either, micrographs take their place, then single images. Every threshold below
the limit loses less, in each group, so both promises hold for whichever of them is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import betaincinv, expit

from cryoray.boosting import voting
from cryoray.policies import TRAINED, Policy

Level = Literal["project", "micrograph"]
Groups = Mapping[Level, np.ndarray]

#: Projects with fewer good images are left out: below five, one wrong label would move a project's loss by
#: more than a fifth. In projects with much junk and few good images most is lost, so as many as can be are
#: counted. A good class stands for many particles, so where those are counted one is enough.
KEEPS_PER_PROJECT, CLASSES_PER_PROJECT = 5, 1
#: Of `each`, where micrographs take the place of projects: one with fewer says nothing of its loss. (Of
#: `expected` the same number as of a project is enough: a mean needs no precision in each.)
KEEPS_PER_MICROGRAPH = 100
#: The share of images that a person is asked to look at, at most.
REVIEW_AT_MOST = 0.05

_LEVELS: tuple[Level, ...] = ("project", "micrograph")

#: Thresholds at which `expectation` says what becomes of a project: evenly spaced in log-odds.
_AT = expit(np.linspace(-6, 6, 49)).astype(np.float32)


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
        policy: what is bounded: the mean over new groups, or each of nearly all.
    """

    threshold: float
    bound: float
    level: Literal["project", "micrograph", "image", "none"]
    method: str
    groups: int
    achieved: float
    limit: float
    policy: Policy = "each"

    def as_json(self) -> dict[str, object]:
        """The `operating_point` of ensemble.json."""
        return asdict(self)

    def guarantee(self, confidence: float) -> str:
        """What is and is not promised, in words for a report."""
        bound, sure = f"{self.bound:.0%}", f"{confidence:.0%}"
        unlike = " Nothing is promised for a project unlike these."
        if self.policy == "expected" and self.level != "none":
            if self.level == "image":
                return (
                    f"Of good images like the {self.groups:,} calibration images labelled keep, at most "
                    f"{bound} are expected to be lost.{unlike}"
                )
            return (
                f"A new {self.level} that is exchangeable with the {self.groups} calibration {self.level}s "
                f"is expected to lose at most {bound} of its good images: a mean, which a single one may "
                f"exceed.{unlike if self.level != 'project' else ''}"
            )
        if self.level == "image":
            return (
                f"On images like the {self.groups:,} calibration images labelled keep, at most {bound} are "
                f"lost with {sure} confidence.{unlike}"
            )
        if self.level == "none":
            return (
                f"Only {self.groups:,} calibration images are labelled keep: too few to promise that at "
                f"most {bound} are lost. The lowest score among them is the limit."
            )
        return (
            f"A new {self.level} that is exchangeable with the {self.groups} calibration {self.level}s "
            f"loses at most {bound} of its good images with probability {sure}."
            + ("" if self.level == "project" else unlike)
        )


def clopper_pearson_upper(misses: int, n: int, confidence: float) -> float:
    """One-sided upper limit of a rate of which ``misses`` in ``n`` were seen (Clopper & Pearson 1934)."""
    return 1.0 if misses >= n else float(betaincinv(misses + 1, n - misses, confidence))


def _limit_of_group(keeps: np.ndarray, weights: np.ndarray, bound: float) -> float:
    """The highest threshold at which at most ``bound`` of what these keep scores weigh falls below it."""
    order = np.argsort(keeps, kind="stable")
    lost = np.cumsum(weights[order])
    first = int(np.searchsorted(lost, bound * lost[-1] * (1 + 1e-12), side="right"))
    return float(keeps[order[min(first, len(keeps) - 1)]])


def _groups_that_count(
    groups: np.ndarray, weights: np.ndarray, least: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The group of each good image, int64 [k]; what each group weighs, and whether it counts, [g]."""
    names, members = np.unique(groups, return_inverse=True)
    total = np.bincount(members, weights, minlength=len(names))
    return members, total, (np.bincount(members, minlength=len(names)) >= least) & (total > 0)


def _least(weights: np.ndarray | None) -> int:
    """Good images of a project that counts."""
    return KEEPS_PER_PROJECT if weights is None else CLASSES_PER_PROJECT


def _conformal_limit(
    keeps: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray,
    bound: float,
    alpha: float,
    least: int,
) -> tuple[float, int] | None:
    """The split-conformal lower ``alpha`` quantile over groups; None where there are too few.

    Args:
        keeps: float32 [k], scores of good images.
        groups: [k], the group of each.
        weights: float64 [k], particles that each stands for.
        bound: of each group's loss.
        alpha: share of new groups that may exceed it.
        least: good images of a group that counts.
    """
    members, _, counts = _groups_that_count(groups, weights, least)
    big = np.flatnonzero(counts)
    rank = int(np.floor(alpha * (len(big) + 1)))
    if rank < 1:
        return None
    of_group = np.split(np.argsort(members, kind="stable"), np.cumsum(np.bincount(members))[:-1])
    limits = [
        _limit_of_group(keeps[mine], weights[mine], bound)
        for mine in map(of_group.__getitem__, big)
    ]
    return float(np.sort(limits)[rank - 1]), len(big)


def _risk_limit(
    keeps: np.ndarray, groups: np.ndarray, weights: np.ndarray, bound: float, least: int
) -> tuple[float, int] | None:
    """The highest threshold that conformal risk control allows; None where there are too few groups.

    Args:
        keeps: float32 [k], scores of good images.
        groups: [k], the group of each.
        weights: float64 [k], particles that each stands for.
        bound: of the expected loss.
        least: good images of a group that counts.
    """
    members, total, counts = _groups_that_count(groups, weights, least)
    n = int(counts.sum())
    allowed = bound * (n + 1) - 1  # of the sum of the groups' losses; B = 1
    if n == 0 or allowed < 0:
        return None
    used = counts[members]
    order = np.argsort(keeps[used], kind="stable")
    ordered = keeps[used][order]
    lost = np.cumsum((weights[used] / total[members[used]])[order])
    # At ordered[i] all lower scores are lost: the first with which too much would be is the limit.
    first = int(np.searchsorted(lost, allowed * (1 + 1e-12), side="right"))
    return float(ordered[min(first, len(ordered) - 1)]), n


def losses(
    score: np.ndarray,
    keep: np.ndarray,
    groups: np.ndarray,
    threshold: float,
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """The share of each group's good images below a threshold; groups without good images are left out.

    Args:
        score: float32 [n].
        keep: bool [n].
        groups: [n].
        threshold: keep where score >= threshold.
        weights: float [n], particles that each image stands for; None: one each.
    """
    keep = np.asarray(keep, bool)
    names, members = np.unique(np.asarray(groups)[keep], return_inverse=True)
    weight = _weights(weights, keep)
    missed = np.asarray(score, np.float32)[keep] < np.float32(threshold)
    total = np.bincount(members, weight, minlength=len(names))
    lost = np.bincount(members, weight * missed, minlength=len(names))
    return {
        str(name): float(part / whole)
        for name, part, whole in zip(names, lost, total, strict=True)
        if whole > 0
    }


def _weights(weights: np.ndarray | None, keep: np.ndarray) -> np.ndarray:
    """What each good image counts, float64 [k]; an unknown number of particles counts nothing."""
    if weights is None:
        return np.ones(int(keep.sum()))
    return np.nan_to_num(np.asarray(weights, np.float64)[keep], nan=0.0).clip(0)


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
    groups: Groups,
    *,
    policy: Policy = "expected",
    bound: float = 0.03,
    confidence: float = 0.95,
    prefer: Literal["accuracy", "junk"] = "accuracy",
    weights: np.ndarray | None = None,
) -> OperatingPoint:
    """Choose the threshold on scores of images that no scoring member was trained on.

    Args:
        score: float32 [n], median of the three members' calibrated probabilities.
        keep: bool [n], what the person chose.
        groups: for each level its group ids, [n].
        policy: what is bounded (see the module).
        bound: the share of good images lost that must not be exceeded.
        confidence: of `each`: probability with which a new group (or image set) stays within it.
        prefer: among the thresholds within the bound, the most accurate one or the highest one.
        weights: float [n], particles that each image stands for, by which what a project loses is counted;
            None: one each.
    """
    score, keep = np.asarray(score, np.float32), np.asarray(keep, bool)
    keeps = score[keep]
    least = _least(weights)
    weight, mine = _weights(weights, keep), {name: of[keep] for name, of in groups.items()}
    found = (
        _expected(keeps, mine, weight, bound, least)
        if policy == "expected"
        else _each(keeps, mine, weight, bound, least, confidence)
    )
    level, limit, count, method = found or (
        "none",
        float(keeps.min(initial=1.0)),
        len(keeps),
        "lowest score of a keep",
    )
    threshold = limit if prefer == "junk" else _most_accurate(score, keep, limit)
    return OperatingPoint(
        threshold=threshold,
        bound=bound,
        level=level,
        method=method,
        groups=count,
        achieved=float(np.mean(keeps < np.float32(threshold))) if len(keeps) else 0.0,
        limit=limit,
        policy=policy,
    )


_Found = tuple[Literal["project", "micrograph", "image", "none"], float, int, str]


def _expected(
    keeps: np.ndarray, groups: Groups, weights: np.ndarray, bound: float, least: int
) -> _Found | None:
    """The limit of `expected` at the first level that has groups enough."""
    for level in _LEVELS:
        found = _risk_limit(keeps, groups[level], weights, bound, least)
        if found is not None:
            return level, *found, f"conformal risk control over {level}s"
    found = _risk_limit(keeps, np.arange(len(keeps)), np.ones(len(keeps)), bound, 1)
    return None if found is None else ("image", *found, "conformal risk control over images")


def _each(
    keeps: np.ndarray,
    groups: Groups,
    weights: np.ndarray,
    bound: float,
    least: int,
    confidence: float,
) -> _Found | None:
    """The limit of `each` at the first level that has groups enough."""
    for level in _LEVELS:
        enough = least if level == "project" else KEEPS_PER_MICROGRAPH
        found = _conformal_limit(keeps, groups[level], weights, bound, 1 - confidence, enough)
        if found is not None:
            return level, *found, f"split conformal over {level}s"
    limit = _image_limit(keeps, bound, confidence)
    return None if limit is None else ("image", limit, len(keeps), "Clopper-Pearson over images")


@dataclass(frozen=True, slots=True)
class Line:
    """A policy's line in full.

    Attributes:
        point: its threshold and what stands behind it.
        review: (low, high) of the band in which a person is asked to look.
        lost: share of its good images that each project lost, by networks that had not seen it.
        junk_kept: share of their junk that projects kept, mean.
    """

    point: OperatingPoint
    review: tuple[float, float]
    lost: Mapping[str, float]
    junk_kept: float = 0.0

    def as_json(self) -> dict[str, object]:
        """One of the `operating_points` of ensemble.json."""
        return {
            "threshold": self.point.threshold,
            "review": self.review,
            "operating_point": self.point.as_json(),
            "lost": {name: round(share, 4) for name, share in self.lost.items()},
            "junk_kept": round(self.junk_kept, 4),
        }


def lines(
    p: np.ndarray,
    keep: np.ndarray,
    groups: Groups,
    *,
    weights: np.ndarray | None = None,
    **chosen: Any,
) -> dict[Policy, Line]:
    """The line of every policy, from the same held-out probabilities.

    Args:
        p: float32 [n, 3], calibrated probabilities of keep by members that had not seen the image's group.
        keep: bool [n].
        groups: of `choose`.
        weights: of `choose`.
        chosen: further arguments of `choose`, but for the policy.
    """
    keep = np.asarray(keep, bool)
    d1, d2, d3 = np.asarray(p, np.float32).T
    median = voting.score(d1, d2, d3)
    made: dict[Policy, Line] = {}
    for policy in TRAINED:
        point = choose(median, keep, groups, **{**chosen, "policy": policy}, weights=weights)
        deployed = voting.score(d1, d2, ask_third(d1, d2, d3, point.threshold))
        band = review_band(deployed, keep, point.threshold)
        lost, junk = (
            losses(median, which, groups["project"], point.threshold, weights)
            for which in (keep, ~keep)
        )
        made[policy] = Line(
            point, band, lost, 1 - float(np.mean([*junk.values()])) if junk else 0.0
        )
    return made


def expectation(
    score: np.ndarray, keep: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None
) -> list[tuple[float, float, float]]:
    """What a project is expected to lose, and what to let through, wherever the line is drawn.

    Args:
        score: float32 [n], median of the three held-out probabilities.
        keep: bool [n].
        groups: [n], projects.
        weights: of `choose`.

    Returns:
        (threshold, share of good images lost, share of junk kept), ascending; means over projects. What is
        lost is of the projects that `choose` bounds the mean of: those with good images enough.
    """
    keep = np.asarray(keep, bool)
    names, good = np.unique(np.asarray(groups)[keep], return_counts=True)
    least = _least(weights)
    few = {str(name) for name, count in zip(names, good, strict=True) if count < least}
    few = few if len(few) < len(names) else set()
    made = []
    for at in _AT.tolist():
        lost = losses(score, keep, groups, at, weights)
        lost = {name: share for name, share in lost.items() if name not in few}
        # Counted as lost is what of the junk is below: the rest comes through.
        found = losses(score, ~keep, groups, at, weights)
        mean, rest = (float(np.mean([*of.values()])) if of else 0.0 for of in (lost, found))
        made.append((round(at, 6), round(mean, 4), round(1 - rest, 4) if found else 0.0))
    return made


def at_line(expected: Sequence[Sequence[float]], threshold: float) -> tuple[float, float]:
    """Share of good images lost and of junk kept that are expected at a threshold, from `expectation`."""
    at, lost, through = np.array(expected, np.float64).T
    return float(np.interp(threshold, at, lost)), float(np.interp(threshold, at, through))


def threshold_for_share(score: np.ndarray, share: float) -> float:
    """The threshold that keeps this share of a source's images.

    Images that tie with the last one that is kept are kept, so that the same image has the same verdict
    in any order of rows: a good image lost is the worse error.

    Args:
        score: float32 [n], of the source.
        share: in 0 to 1, of its images; n · share is rounded to the nearest whole number.
    """
    ordered = np.sort(np.asarray(score, np.float32))[::-1]
    kept = int(np.floor(share * len(ordered) + 0.5))
    if kept:
        return float(ordered[kept - 1])
    return float(np.nextafter(ordered.max(initial=np.float32(1)), np.float32(2)))


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
    at_most: float = REVIEW_AT_MOST,
) -> tuple[float, float]:
    """The narrowest band of scores around the threshold that holds half of the errors, or all it may hold.

    It grows from the threshold by equal numbers of images on either side, so its cost is the number of
    images that a person looks at. It is a list that a person can finish: never more than ``at_most`` of
    the images, whatever they would gain.

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


def narrowed(
    score: np.ndarray, band: tuple[float, float], threshold: float, at_most: float = REVIEW_AT_MOST
) -> tuple[float, float]:
    """A review band narrowed, in ranks around the threshold, until it holds few of these images.

    The ensemble's band is fixed, and in a source unlike its training any number of scores may lie in it.

    Args:
        score: float32 [n], of one source.
        band: (low, high) of the ensemble, low <= threshold <= high.
        threshold: that decides what is no longer under review.
        at_most: share of the images, rounded up, so that there may always be one.

    Returns:
        (low, high) within ``band``: the same, where few enough lie in it. It holds fewer than it may
        where scores tie at its ends.
    """
    low, cut, high = np.float32(band[0]), np.float32(threshold), np.float32(band[1])
    ordered = np.sort(np.asarray(score, np.float32))
    first, middle, end = (int(np.searchsorted(ordered, at)) for at in (low, cut, high))
    most = int(np.ceil(at_most * len(ordered) - 1e-9))
    if end - first <= most:
        return band
    below = min(most // 2, middle - first)
    above = min(most - below, end - middle)
    below = min(most - above, middle - first)
    if above < end - middle:
        high = ordered[middle + above]
    if below < middle - first:
        # Just above the best of those left out, so that none of its equals is let in.
        low = min(np.nextafter(ordered[middle - below - 1], np.float32(2)), cut)
    return float(low), float(high)


def ask_third(d1: np.ndarray, d2: np.ndarray, d3: np.ndarray, threshold: float) -> np.ndarray:
    """d3 as deployment sees it: NaN where d1 and d2 agree at the threshold."""
    return np.where(voting.disagree(d1, d2, threshold), d3, np.nan).astype(np.float32)
