"""An ensemble's calibration and line set right for one project, from few labels of it or from many."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cryoray.boosting import adaptation, operating_point, prevalence
from cryoray.boosting.adaptation import Change
from cryoray.boosting.calibration import Platt, fit_platt
from cryoray.boosting.voting import score
from cryoray.errors import SelectionError
from cryoray.models.ensemble import Calibration, Manifest
from cryoray.settings import OperatingPointSettings

#: Parts of the labels that are left out in turn for the table, where there are more labels than this.
_FOLDS = 20


def score_of(manifest: Manifest, member_logits: np.ndarray) -> np.ndarray:
    """Median of three, float32 [n], of logits [n, 3]."""
    return score(
        *(
            Platt(c.slope, c.offset)(logit)
            for c, logit in zip(manifest.calibration, member_logits.T, strict=True)
        )
    )


def adapted(
    manifest: Manifest,
    change: Change,
    plain: np.ndarray,
    known: np.ndarray,
    keep: np.ndarray,
    share: float,
    chosen: OperatingPointSettings,
) -> Manifest:
    """An ensemble whose members are all changed alike, with a line for one project.

    With few labels or none the threshold stays within the changed limit; with more it is the project's own.

    Args:
        manifest: before.
        change: of log-odds.
        plain: float32 [n], scores of the project's images before.
        known: int64 [k], those of them that are labelled.
        keep: bool [k], their labels.
        share: of keeps in this project.
        chosen: bound, confidence and preference.
    """
    # What each project of training lost is no longer so.
    point = dict(manifest.operating_point)
    bound = _number(point, "bound", chosen.bound)
    old = _number(point, "limit", manifest.threshold)
    method = str(point.get("method", "")) + "; all members recalibrated alike for one project"
    if len(known) < adaptation.ENOUGH_TO_MOVE:
        keeps = plain[known][keep]
        limit = adaptation.not_contradicted(keeps, old, bound, chosen.confidence)
        if limit < old:
            method += f", and lowered, since {len(keeps)} labelled keeps contradicted the bound"
        new = float(np.float32(change(limit)))
        # Of a calibrated score the most accurate threshold is a half.
        threshold = new if chosen.prefer == "junk" else float(np.float32(min(new, 0.5)))
    else:
        moved = adaptation.line(
            plain, change, known, keep, manifest.threshold, bound, chosen.confidence
        )
        new, threshold = (
            float(np.float32(change(line))) for line in (max(old, moved.threshold), moved.threshold)
        )
        point |= {
            "expected_here": {"lost": round(moved.lost, 4), "before": round(moved.lost_before, 4)}
        }
        if moved.threshold > old:
            point["level"] = "labels"
        method += (
            f", whose line {len(known)} labels drew: {moved.lost:.1%} of its good images are expected to be "
            f"lost, {moved.lost_before:.1%} before"
        )
    low, high = (float(change(end)) for end in _around(manifest, plain, threshold, change))
    return manifest.model_copy(
        update={
            "calibration": tuple(
                Calibration(
                    slope=c.slope * change.stretch,
                    offset=c.offset * change.stretch + change.shift,
                )
                for c in manifest.calibration
            ),
            "threshold": threshold,
            "review": (min(low, threshold), max(high, threshold)),
            "prevalence": float(np.clip(share, 1e-3, 1 - 1e-3)),
            "operating_point": {**point, "threshold": threshold, "limit": new, "method": method},
            # One project, one line.
            "operating_points": {},
            "expectation": (),
        }
    )


def _around(
    manifest: Manifest, plain: np.ndarray, threshold: float, change: Change
) -> tuple[float, float]:
    """The review band before the change; about the new line in ranks, where that is outside of it."""
    low, high = manifest.review
    line = float(change.before(threshold))
    if low <= line <= high or low == high:
        return low, high
    ordered = np.sort(plain)
    cut = int(np.searchsorted(ordered, np.float32(line)))
    half = int(operating_point.REVIEW_AT_MOST * len(ordered) / 2)
    return (
        float(ordered[max(0, cut - half)]) if cut - half < len(ordered) else line,
        float(ordered[cut + half]) if cut + half < len(ordered) else line,
    )


def anew(
    manifest: Manifest,
    member_logits: np.ndarray,
    keep: np.ndarray,
    groups: Mapping[Any, np.ndarray],
    labels: Path | None,
    chosen: OperatingPointSettings,
) -> Manifest:
    """Each member calibrated on this project's labels, and the threshold chosen as in training.

    Args:
        manifest: before.
        member_logits: float32 [k, 3], of the labelled images.
        keep: bool [k], their labels.
        groups: [k] by level, as `boosting.operating_point.choose` takes them.
        labels: the file of the labels, for the message.
        chosen: how the threshold is chosen.

    Raises:
        SelectionError: all labels say keep.
    """
    if keep.all():
        raise SelectionError(
            f"all {len(keep):,} labels say keep, so there is nothing to learn from",
            file=labels,
            remedy="label some images that should go, too",
        )
    platt = [fit_platt(logit, keep) for logit in member_logits.T]
    calibration = tuple(Calibration(slope=p.slope, offset=p.offset) for p in platt)
    p = [member(logit) for member, logit in zip(platt, member_logits.T, strict=True)]
    point = operating_point.choose(score(*p), keep, groups, **chosen.model_dump())
    deployed = score(p[0], p[1], operating_point.ask_third(p[0], p[1], p[2], point.threshold))
    return manifest.model_copy(
        update={
            "calibration": calibration,
            "threshold": point.threshold,
            "review": operating_point.review_band(deployed, keep, point.threshold),
            "prevalence": float(keep.mean()),
            "operating_point": point.as_json(),
            "operating_points": {},
            "expectation": (),
        }
    )


def left_out(
    manifest: Manifest,
    every: np.ndarray,
    known: np.ndarray,
    keep: np.ndarray,
    share: prevalence.Prevalence,
    chosen: OperatingPointSettings,
    *,
    few: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and thresholds, [k] each, by adaptations that did not know the label in question.

    Args:
        manifest: before.
        every: float32 [n, 3], what members say of all images.
        known: int64 [k], labelled ones.
        keep: bool [k], their labels.
        share: of keeps in the project.
        chosen: as of `adapted`.
        few: whether the labels are few.
    """
    plain, member_logits = score_of(manifest, every), every[known]
    scores, thresholds = np.empty(len(keep), np.float32), np.empty(len(keep), np.float32)
    fold = np.random.default_rng(0).permutation(len(keep)) % min(_FOLDS, len(keep))
    for out in np.unique(fold):
        others, here = fold != out, fold == out
        if few:
            change = adaptation.fit_change(plain[known[others]], keep[others], share.shift)
            after = adapted(
                manifest, change, plain, known[others], keep[others], share.estimate, chosen
            )
        else:
            image = np.arange(others.sum()).astype(str)
            after = anew(
                manifest,
                member_logits[others],
                keep[others],
                {"project": np.zeros_like(image), "micrograph": np.zeros_like(image)},
                None,
                chosen,
            )
        scores[here], thresholds[here] = score_of(after, member_logits[here]), after.threshold
    return scores, thresholds


def _number(point: Mapping[str, object], name: str, default: float) -> float:
    value = point.get(name)
    return float(value) if isinstance(value, int | float) else default
