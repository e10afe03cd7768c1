"""What a search over networks and training settings tries, and what each of its axes buys.

One network at a time, d1's task: fitted to the training distribution, measured on groups held out. ASHA
(Li et al. 2020) stops what does worse than others did at the same epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cryoray.models.networks import NetworkConfig
from cryoray.settings import AugmentSettings, FitSettings

AXES = ("depth", "width", "activation", "learning_rate", "augment")

#: Residual blocks in all, and how they are spread over stages.
BLOCKS: dict[int, tuple[int, ...]] = {1: (1,), 2: (1, 1), 3: (1, 2), 5: (2, 3), 7: (2, 3, 2)}

#: Keep the better third at each rung.
REDUCTION = 3


def first_rung(epochs: int) -> int:
    """The epoch that every trial reaches, and at which ASHA compares them for the first time."""
    return max(1, round(epochs / REDUCTION**2))


def network(config: dict[str, Any]) -> NetworkConfig:
    """The network that a point of the search stands for."""
    return NetworkConfig(
        width=config["width"], blocks=BLOCKS[config["depth"]], activation=config["activation"]
    )


def fit_settings(config: dict[str, Any], fit: FitSettings) -> FitSettings:
    """The fit's settings at a point of the search; ``augment`` scales every strength there is."""
    scaled = {}
    for name, value in fit.augment:
        if not isinstance(value, bool):
            limits = AugmentSettings.model_fields[name].metadata
            most = min((m.le for m in limits if hasattr(m, "le")), default=np.inf)
            scaled[name] = float(min(value * config["augment"], most))
    augment = fit.augment.model_copy(update={**scaled, "rotate": config["augment"] > 0})
    return fit.model_copy(update={"learning_rate": config["learning_rate"], "augment": augment})


def bought(trials: Sequence[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """What the values of an axis came to: trials, median loss at the first rung, best loss and accuracy.

    All trials reach the first rung, so medians there compare like with like; the best are those that ASHA
    let run. Learning rates are taken by thirds of their range.
    """
    values = np.array([trial[axis] for trial in trials], object)
    if axis == "learning_rate":
        edges = np.quantile(values.astype(float), [0, 1 / 3, 2 / 3, 1])
        place = np.clip(np.searchsorted(edges, values.astype(float), side="right") - 1, 0, 2)
        middle = [float(np.median(values[place == p])) for p in range(3) if (place == p).any()]
        values = np.array(middle, object)[np.unique(place, return_inverse=True)[1]]
    table = []
    for value in sorted(set(values)):
        here = [trial for trial, own in zip(trials, values, strict=True) if own == value]
        best = min(here, key=lambda trial: trial["loss"])
        table.append(
            {
                "value": value,
                "trials": len(here),
                "first_rung": float(np.median([trial["first_rung"] for trial in here])),
                "loss": best["loss"],
                "accuracy": best["accuracy"],
            }
        )
    return table
