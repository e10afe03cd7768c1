"""The page of an evaluation: how often an ensemble was right on groups that it had not seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cryoray import report
from cryoray.formats.names import METRICS, PREDICTIONS_TABLE
from cryoray.models.ensemble import Ensemble, training_record
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import REASON_WORDS

#: Images in each strip of the gallery.
_SHOWN = 24


def write_page(
    file: Path,
    judge: Ensemble,
    examples: PreparedSet,
    predictions: pa.Table,
    numbers: Mapping[str, Any],
    *,
    rows: np.ndarray,
    left_out: Mapping[str, int],
    bound: float,
    ensemble: Path,
    out: Path,
) -> None:
    """Write the page of an evaluation.

    Args:
        file: the page.
        judge: the ensemble that was evaluated.
        examples: the set.
        predictions: of its ``rows``, as `predictions.parquet` has them.
        numbers: of `metrics.json`.
        rows: int64 [n], which were judged.
        left_out: how many images were not, by why: ``seen``, ``unlabelled``.
        bound: the share of good images that may be lost.
        ensemble: folder of the ensemble, as it was given.
        out: folder of the evaluation.
    """
    lead = (
        f"{len(rows):,} labelled {things(examples)} of {_groups(examples, rows, judge)} in which"
        " the ensemble was neither trained nor calibrated were judged, and its forced decisions"
        f" compared with the labels. Left out: {left_out['seen']:,} images of groups that it knows,"
        f" {left_out['unlabelled']:,} without a label."
    )
    report.render(
        file,
        f"Evaluation of ensemble {judge.digest[:10]}",
        [
            report.summary_section(
                lead,
                {"ensemble": ensemble, "prepared set": examples.path},
                came_out(numbers),
                headline(numbers),
            ),
            report.result_section(
                numbers, f"{_promise(judge)} {_estimated(numbers['prevalence'])}"
            ),
            kept_promise(numbers),
            *ablated(numbers),
            *shown(examples, predictions, numbers, bound, judge),
            *_named(numbers),
            *trained(training_record(Path(ensemble))),
            report.provenance_section(
                f"cryoray evaluate {ensemble} {examples.path} --out {out}",
                [judge.preparation],
                {"ensemble": judge.digest, "prepared set": examples.digest},
            ),
        ],
    )


def _estimated(share: Mapping[str, float]) -> str:
    return (
        f"Of these images {report.percent(share['labelled'], 0)} are good; from the scores alone the estimate"
        f" would be {report.percent(share['estimate'], 0)} (in training it was"
        f" {report.percent(share['training'], 0)})."
    )


def kept_promise(numbers: Mapping[str, Any]) -> report.Section:
    """Whether the bound on good images lost held, and what a review would bring."""
    return report.bound_held_section(
        numbers["bound_held"], numbers["review"], numbers["n"] * numbers["bound_held"]["repeats"]
    )


def ablated(numbers: Mapping[str, Any]) -> list[report.Section]:
    """What image and metadata are worth, where that was measured."""
    return [report.ablation_section(numbers["ablation"])] if "ablation" in numbers else []


def _named(numbers: Mapping[str, Any]) -> list[report.Section]:
    if "reasons" not in numbers:
        return []
    reasons = numbers["reasons"]
    return [
        report.table_section(
            "Reasons",
            ("true reason", *(REASON_WORDS[name] for name in reasons["named"]), "images"),
            [
                (REASON_WORDS[why], *map(str, named.values()), str(sum(named.values())))
                for why, named in reasons["named"].items()
            ],
            f"What was named as the likeliest reason of {reasons['n']:,} rightly discarded images whose true"
            f" reason is known: the right one for {report.percent(reasons['right'], 0)}.",
        )
    ]


def shown(
    examples: PreparedSet,
    predictions: pa.Table,
    numbers: Mapping[str, Any],
    bound: float,
    judge: Ensemble | None,
) -> list[report.Section]:
    """What a page shows of predictions: plots, views, galleries."""
    labels, score = predictions["label"].to_numpy(), predictions["score"].to_numpy()
    threshold = predictions["threshold"].to_numpy()
    review = predictions["verdict"].to_numpy() == "review"
    kept = score >= threshold
    random = np.random.default_rng(0).random(len(score))

    def strip(
        title: str, tone: str, where: np.ndarray, order: np.ndarray, note: str = ""
    ) -> report.Strip:
        found = np.flatnonzero(where)
        chosen = found[np.argsort(order[found], kind="stable")][:_SHOWN]
        rows = predictions["row"].to_numpy()[chosen]
        names = predictions["image"].take(chosen).to_pylist()
        note = f"{len(found):,} in all. {note}".strip()
        return report.Strip(title, tone, examples.pictures(rows), score[chosen], names, note)

    line, band = (judge.threshold, judge.review) if judge else (None, None)
    return [
        report.confusion_section(labels, score, threshold),
        report.roc_section(labels, score, threshold, bound),
        report.calibration_section(labels, score, line, band),
        report.views_section(numbers["by_view"], bound),
        report.gallery_section(
            [
                strip("Kept", "keep", kept & ~review, random),
                strip("Discarded", "discard", ~kept & ~review, random),
                strip("Review", "review", review, random),
            ],
            lead="Drawn at random; the number is the score.",
        ),
        report.gallery_section(
            [
                strip(
                    "Good images that were lost",
                    "discard",
                    labels & ~kept,
                    score,
                    "Labelled keep, lowest scores first.",
                ),
                strip(
                    "Bad images that were let through",
                    "keep",
                    ~labels & kept,
                    -score,
                    "Labelled discard, highest scores first.",
                ),
            ],
            "Errors",
            "The most confident disagreements first: some are the label’s error, not the ensemble’s.",
        ),
    ]


def trained(record: Mapping[str, Any]) -> list[report.Section]:
    """What a page shows of a training; nothing where there is no record of it."""
    if not record:
        return []
    return [report.curves_section(record), report.bound_section(record["bound"])]


def _promise(judge: Ensemble) -> str:
    method = judge.manifest.operating_point["method"]
    return f"The threshold is the ensemble’s own, {judge.manifest.behind}; by {method}."


def things(examples: PreparedSet) -> str:
    """What the images of a set are, in words."""
    return {"particle": "particles", "class2d": "2D classes"}[examples.kind]


def _groups(examples: PreparedSet, rows: np.ndarray, judge: Ensemble) -> str:
    level = judge.manifest.split_by
    n = len(np.unique(examples.groups(level)[rows].astype(str)))
    return f"{n:,} {level}{'' if n == 1 else 's'}"


def headline(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The few numbers that a reader came for."""
    return {
        "accuracy": report.percent(numbers["accuracy"]),
        "good images lost": report.percent(numbers["false_negative_rate"]),
        "AUROC": report.decimal(numbers["auroc"]),
        "images": f"{numbers['n']:,}",
    }


def came_out(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The files beside the page."""
    return {
        METRICS: "the numbers of this page, for programs",
        PREDICTIONS_TABLE: f"{numbers['n']:,} images with label, score and verdict",
    }
