"""What predictions on a prepared set are worth: the numbers of an evaluation and of a cross-validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cryoray.boosting import prevalence
from cryoray.metrics import accuracy
from cryoray.models.ensemble import Ensemble
from cryoray.preparation.examples import Level
from cryoray.preparation.prepared import PreparedSet
from cryoray.preparation.views import views
from cryoray.records import REASONS, Event, OnEvent, ignore


def measure(
    examples: PreparedSet, predictions: pa.Table, level: Level, on_event: OnEvent = ignore
) -> dict[str, Any]:
    """The numbers of metrics.json of a table of predictions; a source that cannot say a view is an event."""
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


def bound_of(judge: Ensemble) -> float:
    """The share of good images that an ensemble may lose, as its operating point was chosen."""
    bound = judge.manifest.operating_point["bound"]
    assert isinstance(bound, float)
    return bound


def plain(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that are single numbers."""
    return {k: v for k, v in numbers.items() if v is None or isinstance(v, int | float)}
