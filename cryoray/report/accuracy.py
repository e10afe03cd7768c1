"""Sections about how often an ensemble is right, where it is not, and what its scores are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cryoray.metrics import accuracy
from cryoray.report import plots
from cryoray.report.blocks import Block, Cells, Figure, Section, Table, decimal, percent

#: Bins of a view that a plot shows; the table in metrics.json has them all.
MOST_BINS = 30


def result_section(metrics: Mapping[str, Any], lead: str = "") -> Section:
    """The result table, with the spread over groups.

    Args:
        metrics: of `metrics.json`.
        lead: how the numbers came about: what was held out, what was left out.
    """
    named = {
        "accuracy": ("Accuracy", "forced decision equals the label"),
        "false_negative_rate": ("False-negative rate", "of the good images, lost"),
        "false_negative_rate_by_particles": ("… by particles", "of the good particles, lost"),
        "false_positive_rate": ("False-positive rate", "of the bad images, let through"),
        "review_fraction": ("Review", "a person should look"),
        "accuracy_without_review": (
            "Accuracy without review",
            "where the ensemble does not abstain",
        ),
    }
    rows = [
        (title, percent(metrics[name]), *_spread(metrics, name, percent), meaning)
        for name, (title, meaning) in named.items()
        if name in metrics
    ]
    for name, title, meaning in (
        ("auroc", "AUROC", "a good image outscores a bad one"),
        ("ece", "Calibration error", "ECE: by how much a score is off"),
        ("threshold", "Threshold", "keep at this score or above"),
    ):
        rows.append((title, decimal(metrics[name]), *_spread(metrics, name, decimal), meaning))
    groups = metrics["spread"]["accuracy"]["groups"]
    caption = (
        f"Over {metrics['n']:,} images. Deviation, least and most: over {groups} group"
        f"{'' if groups == 1 else 's'}, each counted once. Error rates are of the forced decision,"
        " review included."
    )
    heads = ("", "all images", "st. dev.", "least", "most", "meaning")
    return Section("Result", [Table(heads, tuple(rows), caption, text=(5,))], lead)


def confusion_section(
    labels: np.ndarray, score: np.ndarray, threshold: float | np.ndarray
) -> Section:
    """Labels against forced decisions, counted."""
    return Section("Confusion", [Cells(accuracy.confusion(labels, score, threshold))])


def roc_section(
    labels: np.ndarray,
    score: np.ndarray,
    threshold: float | np.ndarray,
    bound: float | None = None,
) -> Section:
    """ROC, and the same curve as the trade between what is lost and what is let through.

    Args:
        labels: bool [n], True is keep.
        score: float [n].
        threshold: the ensemble's own, or float [n], one for each image.
        bound: the false-negative rate that must not be exceeded.
    """
    area = accuracy.auroc(labels, score)
    first = Figure(
        plots.roc(labels, score, threshold, "roc"),
        f"ROC curve, area {area:.4f}, with the operating point",
        "ROC. The dot is the ensemble's own threshold, which was not chosen on these images.",
    )
    second = Figure(
        plots.trade(labels, score, threshold, bound, "trade"),
        "Good images lost against bad images let through, logarithmic axes",
        "The same curve where it matters: what a stricter threshold would cost, and a laxer one let in.",
    )
    return Section("Good against bad", [first, second])


def calibration_section(
    labels: np.ndarray,
    score: np.ndarray,
    threshold: float | None,
    review: tuple[float, float] | None,
) -> Section:
    """Reliability diagram with the ECE, and the histogram of scores.

    Args:
        labels: bool [n], True is keep.
        score: float [n].
        threshold: drawn into the histogram; None where folds have several.
        review: (low, high), likewise.
    """
    ece = accuracy.reliability(labels, score).ece
    first = Figure(
        plots.reliability(labels, score, "reliability"),
        f"Reliability diagram, expected calibration error {ece:.3f}",
        "Of images with this score, how many are good? On the diagonal the score is a true probability."
        f" {accuracy.BINS} bins; the area of a dot is its share of images; bars are 95% intervals.",
    )
    return Section("Calibration", [first, _histogram(score, labels, threshold, review)])


def scores_section(
    score: np.ndarray, threshold: float | None, review: tuple[float, float] | None
) -> Section:
    """The histogram of scores where there are no labels."""
    return Section("Scores", [_histogram(score, None, threshold, review)])


def views_section(by_view: Mapping[str, Any], bound: float | None = None) -> Section:
    """Where good images are lost: the false-negative rate in each group and in each other view.

    Args:
        by_view: of `metrics.json`.
        bound: the false-negative rate that must not be exceeded.
    """
    blocks: list[Block] = []
    for view, bins in by_view.items():
        if view == "worst" or not bins:
            continue
        worst_first = sorted(bins.items(), key=lambda item: -item[1]["false_negative_rate"])
        shown = worst_first[:MOST_BINS]
        svg = plots.rates(
            [name for name, _ in shown],
            np.array([entry["false_negative_rate"] for _, entry in shown]),
            np.array([entry["keeps"] for _, entry in shown]),
            bound,
            f"view-{len(blocks)}",
        )
        which = f"the {len(shown)} worst of {len(bins)}" if len(shown) < len(bins) else "all"
        alt = f"False-negative rate by {view}; worst {shown[0][0]}"
        blocks.append(
            Figure(svg, alt, f"By {view}, {which}, worst on top; 95% intervals.", wide=True)
        )
    lead = ""
    if "worst" in by_view:
        worst = by_view["worst"]
        lead = (
            f"A mean can hide a view that is lost. The worst here is {worst['view']} {worst['bin']}:"
            f" {percent(worst['false_negative_rate'])} of its {worst['keeps']:,} good images (95% interval"
            f" {percent(worst['interval'][0])} to {percent(worst['interval'][1])})."
        )
    return Section("Where good images are lost", blocks, lead)


def bound_held_section(held: Mapping[str, Any], review: Mapping[str, int], n: int) -> Section:
    """How often the bound on good images lost held, and what a review would cost and bring.

    Args:
        held: of `accuracy.bound_held`.
        review: of `metrics.json`.
        n: images judged.
    """
    sentences = []
    if held["fraction"] is not None:
        low, high = held["interval"]
        again = f" in {held['repeats']} repeats" if held["repeats"] > 1 else ""
        sentences.append(
            f"In {held['held']} of {held['groups'] * held['repeats']} cases ({held['groups']} groups{again})"
            f" at most {percent(held['bound'], 0)} of a group’s good images were lost:"
            f" {percent(held['fraction'], 0)} (95% interval {percent(low, 0)} to {percent(high, 0)})."
            f" Groups with fewer than {accuracy.ENOUGH} good images are not counted."
        )
    if review["images"] and review["errors"]:
        sentences.append(
            f"A person who looks at the {review['images']:,} images in review"
            f" ({percent(review['images'] / n)} of all) finds {review['errors_in_review']:,} of the"
            f" {review['errors']:,} errors"
            f" ({percent(review['errors_in_review'] / review['errors'], 0)})."
        )
    return Section("What was promised", [], " ".join(sentences))


def ablation_section(ablation: Mapping[str, Any]) -> Section:
    """What image and metadata are worth: hidden, trained without, and shuffled column by column.

    Args:
        ablation: of `metrics.json`.
    """
    shown = (
        ("accuracy", percent),
        ("false_negative_rate", percent),
        ("false_positive_rate", percent),
        ("auroc", decimal),
    )
    titles = {"both": "image and metadata", "image": "image only", "metadata": "metadata only"}
    rows = []
    for how, made in (("retrained", "trained with"), ("hidden", "same ensemble, given")):
        for name, numbers in ablation.get(how, {}).items():
            cells = [f"{made} {titles[name]}"]
            for key, show in shown:
                std = numbers["spread"][key]["std"]
                over = "" if std is None else f" ± {show(std)}"
                cells.append(f"{show(numbers[key])}{over}")
            rows.append(tuple(cells))
    heads = ("", "accuracy", "good images lost", "bad let through", "AUROC")
    caption = "± is the deviation over groups." + (
        " Trained: three networks again for each fold without one or the other, each at its own threshold."
        if "retrained" in ablation
        else " `cryoray cross-validate --ablate` says what a training without the one or the other is worth."
    )
    blocks: list[Block] = [Table(heads, tuple(rows), caption)]
    columns = ablation["permutation"]["columns"]
    ranked = sorted(columns.items(), key=lambda item: -item[1]["auroc"])
    blocks.append(
        Table(
            ("shuffled", "AUROC lost", "st. dev.", "accuracy lost", "verdicts changed"),
            tuple(
                (
                    name,
                    decimal(lost["auroc"]),
                    decimal(lost["auroc_std"]),
                    percent(lost["accuracy"]),
                    percent(lost["changed"]),
                )
                for name, lost in ranked[:MOST_BINS]
            ),
            f"Each column shuffled within groups {ablation['permutation']['shuffles']} times over"
            f" {ablation['permutation']['images']:,} images; what two columns share is lost with neither."
            f" Deviation over {ablation['permutation']['deviation']}. "
            + (f"The {MOST_BINS} that matter most." if len(ranked) > MOST_BINS else ""),
        )
    )
    return Section("What image and metadata are worth", blocks)


def _histogram(
    score: np.ndarray,
    labels: np.ndarray | None,
    threshold: float | None,
    review: tuple[float, float] | None,
) -> Figure:
    band = ""
    if review is not None and review[1] > review[0]:
        band = f" Between {review[0]:.3f} and {review[1]:.3f} a person should look."
    return Figure(
        plots.scores(score, labels, threshold, review, "scores"),
        "Histogram of scores, logarithmic counts",
        f"Scores of {len(score):,} images.{band}",
    )


def _spread(metrics: Mapping[str, Any], name: str, show: Any) -> tuple[str, str, str]:
    spread = metrics["spread"].get(name, {})
    std, least, most = (show(spread.get(key)) for key in ("std", "min", "max"))
    return std, least, most
