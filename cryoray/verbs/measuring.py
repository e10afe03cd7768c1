"""What evaluation and cross-validation share: numbers of predictions, their files, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cryoray.boosting import prevalence
from cryoray.errors import SelectionError, SettingsError
from cryoray.formats.files import replacing
from cryoray.formats.names import METRICS, PREDICTIONS_TABLE
from cryoray.metrics import accuracy
from cryoray.models.ensemble import Ensemble
from cryoray.preparation.examples import Level
from cryoray.preparation.prepared import PreparedSet
from cryoray.preparation.views import views
from cryoray.records import REASONS, Event, OnEvent, ignore


def measure(
    examples: PreparedSet, predictions: pa.Table, level: Level, on_event: OnEvent = ignore
) -> dict[str, Any]:
    """The contract's numbers of a table of predictions; a source that cannot say a view is an event."""
    rows = predictions["row"].to_numpy()
    bins, complaints = views(examples, rows)
    for complaint in complaints:
        on_event(Event("views.unknown", {"because": complaint}))
    particles = None
    if "defocus" in examples.features:
        defocus = examples.feature_matrix(("defocus",))[rows, 0]
        if np.isfinite(defocus).any():
            bins["defocus"] = accuracy.quantile_bins(defocus, "µm")
    if examples.kind != "particle":
        # RELION gives a class its share of the job's particles; the feature is its logarithm
        share = np.exp(examples.feature_matrix(("class_distribution",))[rows, 0])
        particles = np.nan_to_num(share)
    return accuracy.metrics(
        predictions["label"].to_numpy(),
        predictions["score"].to_numpy(),
        threshold=predictions["threshold"].to_numpy(),
        review=predictions["verdict"].to_numpy() == "review",
        groups=examples.groups(level)[rows],
        particles=particles,
        views=bins,
    )


def bound_held(
    examples: PreparedSet, predictions: pa.Table, level: Level, bound: float
) -> dict[str, object]:
    """How often the bound on good images lost held, over groups (`accuracy.bound_held`)."""
    kept = predictions["score"].to_numpy() >= predictions["threshold"].to_numpy()
    return accuracy.bound_held(
        predictions["label"].to_numpy(),
        kept,
        examples.groups(level)[predictions["row"].to_numpy()],
        predictions["repeat"].to_numpy(),
        bound,
    )


def prevalence_of(judge: Ensemble, predictions: pa.Table) -> dict[str, float]:
    """The share of keeps as it would be estimated without labels, beside what the labels say."""
    estimate = prevalence.estimate(predictions["score"].to_numpy(), judge.manifest.prevalence)
    return {**estimate.as_json(), "labelled": float(np.mean(predictions["label"].to_numpy()))}


def reasons_named(examples: PreparedSet, predictions: pa.Table) -> dict[str, Any]:
    """Which reason was named for discards whose true one the set knows: counts, by truth and by name."""
    true = examples.reasons[predictions["row"].to_numpy()]
    named = predictions["reason"].to_pylist()
    pairs = Counter(
        (REASONS[why], name) for why, name in zip(true, named, strict=True) if why >= 0 and name
    )
    if not pairs:
        return {}
    known = [why for why in REASONS if any(why in pair for pair in pairs)]
    right = sum(pairs[why, why] for why in known) / pairs.total()
    table = {why: {name: pairs[why, name] for name in known} for why in known}
    return {"reasons": {"n": pairs.total(), "right": right, "named": table}}


def is_evaluation(folder: Path) -> bool:
    """Whether a folder is one of ours, which may be replaced."""
    return (folder / METRICS).is_file()


def write(folder: Path, predictions: pa.Table, numbers: Mapping[str, Any]) -> None:
    """Write `predictions.parquet` and `metrics.json` into a folder."""
    with replacing(folder / PREDICTIONS_TABLE) as temporary:
        pq.write_table(predictions, temporary)
    with replacing(folder / METRICS) as temporary:
        temporary.write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n", "utf-8")


def check_both_kinds(examples: PreparedSet, rows: np.ndarray) -> None:
    """Raise where the labels of rows (int64 [n]) are all the same.

    Raises:
        SelectionError: they are.
    """
    labels = examples.labels[rows]
    if labels.min() == labels.max():
        raise SelectionError(
            f"all {len(rows):,} labels in the groups to judge say"
            f" {'keep' if labels[0] else 'discard'}, so nothing can be told apart",
            file=examples.path,
            remedy="give a set whose selection has both",
        )


def no_labels(examples: PreparedSet) -> SelectionError:
    """What is raised of a set without labels."""
    return SelectionError(
        "none of its images has a label",
        file=examples.path,
        remedy="ingest the source again with --selection",
    )


def check_metadata(features: Sequence[str], path: Path | None = None) -> None:
    """Raise where there is nothing to ablate.

    Raises:
        SettingsError: no feature is used.
    """
    if not features:
        raise SettingsError(
            "there are no metadata to ablate",
            file=path,
            remedy="leave out --ablate, or use an ensemble that was trained with metadata",
        )


def bound_of(judge: Ensemble) -> float:
    """The share of good images that an ensemble may lose, as its operating point was chosen."""
    bound = judge.manifest.operating_point["bound"]
    assert isinstance(bound, float)
    return bound


def plain(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that are single numbers."""
    return {k: v for k, v in numbers.items() if v is None or isinstance(v, int | float)}
