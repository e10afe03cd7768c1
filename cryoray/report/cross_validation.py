"""The page of a cross-validation: every image judged once, by an ensemble that had not seen its group."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cryoray import report
from cryoray.models.ensemble import training_record
from cryoray.preparation.examples import Level
from cryoray.preparation.prepared import PreparedSet
from cryoray.report.evaluation import (
    ablated,
    came_out,
    headline,
    kept_promise,
    shown,
    things,
    trained,
)
from cryoray.settings import Settings

#: Numbers of a fold that are tabulated, and how.
OF_A_FOLD = ("threshold", "accuracy", "false_negative_rate", "false_positive_rate", "auroc", "ece")


def write_page(
    file: Path,
    sets: Sequence[PreparedSet],
    examples: PreparedSet,
    predictions: pa.Table,
    numbers: Mapping[str, Any],
    settings: Settings,
    *,
    level: Level,
    groups: int,
    first: Path,
    out: Path,
) -> None:
    """Write the page of a cross-validation.

    Args:
        file: the page.
        sets: that were given.
        examples: all of them as one.
        predictions: of their labelled images, as `predictions.parquet` has them.
        numbers: of `metrics.json`.
        settings: ``cross_validate`` and ``train`` are shown.
        level: of the groups in a fold.
        groups: how many there are.
        first: folder of the first fold's ensemble, whose training is shown.
        out: folder of the cross-validation.
    """
    chosen = settings.cross_validate
    again = f", {chosen.repeats} times with other seeds" if chosen.repeats > 1 else ""
    lead = (
        f"{numbers['n']:,} labelled {things(examples)} of {groups} {level}s, in {chosen.folds} folds of"
        f" {level}s{again}. Each fold was judged by an ensemble that was trained and calibrated on the"
        " other folds alone, at that ensemble's own threshold."
        f" Left out: {numbers['left_out']:,} images without a label."
    )
    paths = [str(prepared.path) for prepared in sets]
    words = ["--folds", str(chosen.folds), "--repeats", str(chosen.repeats), "--out", str(out)]
    report.render(
        file,
        f"Cross-validation over {level}s",
        [
            report.summary_section(
                lead,
                {"prepared set" + "s" * (len(paths) > 1): ", ".join(paths)},
                came_out(numbers),
                headline(numbers),
            ),
            report.result_section(numbers),
            kept_promise(numbers),
            *ablated(numbers),
            _folds_section(numbers["folds"], numbers["spread_over_folds"]),
            *shown(examples, predictions, numbers, settings.train.operating_point.bound, None),
            *trained(training_record(first)),
            report.provenance_section(
                shlex.join(["cryoray", "cross-validate", *paths, *words]),
                [settings.train],
                {f"prepared set {prepared.path.name}": prepared.digest for prepared in sets},
            ),
        ],
    )


def _folds_section(
    folds: Sequence[Mapping[str, Any]], spread: Mapping[str, Mapping[str, Any]]
) -> report.Section:
    several = any(fold["repeat"] > 1 for fold in folds)
    shares = ("accuracy", "false_negative_rate", "false_positive_rate")

    def show(values: Mapping[str, Any]) -> list[str]:
        return [
            report.percent(values[name]) if name in shares else report.decimal(values[name])
            for name in OF_A_FOLD
        ]

    rows = [
        [
            f"{fold['repeat']}.{fold['fold']}" if several else str(fold["fold"]),
            str(len(fold["groups"])),
            f"{fold['n']:,}",
            *show(fold),
        ]
        for fold in folds
    ]
    rows.append(["st. dev.", "", "", *show({name: spread[name]["std"] for name in OF_A_FOLD})])
    heads = ["fold", "groups", "images", "threshold", "accuracy", "FNR", "FPR", "AUROC", "ECE"]
    return report.table_section(
        "Folds", heads, rows, "FNR: good images lost. FPR: bad let through."
    )
