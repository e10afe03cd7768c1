"""Curves and maps as plain numbers, as ``metrics.json`` has them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from cryoray.maps import fsc


def fsc_numbers(curves: fsc.HalfMapFsc) -> dict[str, Any]:
    """The curves and resolutions as ``metrics.json`` has them."""
    return {
        "fsc": {
            "frequency": curves.frequency.tolist(),
            **{name: curve.tolist() for name, curve in curves.curves.items()},
        },
        "resolution": resolution_numbers(curves.frequency, curves.best),
        "resolution_unmasked": resolution_numbers(curves.frequency, curves.unmasked),
        "randomised_from": curves.randomised_from,
        "warnings": list(curves.warnings),
    }


def resolution_numbers(frequency: np.ndarray, curve: np.ndarray) -> dict[str, dict[str, Any]]:
    """Å at both thresholds by both definitions."""
    return {
        f"{threshold:g}": asdict(fsc.resolution(frequency, curve, threshold))
        for threshold in fsc.THRESHOLDS
    }


def directional_numbers(views: fsc.Directional) -> dict[str, Any]:
    """How a map's resolution depends on direction."""
    known = views.resolution[np.isfinite(views.resolution)]
    return {
        "area_ratio": views.area_ratio,
        "best": float(known.min()) if len(known) else None,
        "worst": float(known.max()) if len(known) == len(views.resolution) else None,
        "worst_direction": views.worst.tolist(),
    }


def compared(
    curves: fsc.HalfMapFsc, frequency: np.ndarray, published: np.ndarray
) -> dict[str, Any]:
    """The resolutions of a published curve, and by how many Å this map's are larger, where both are known."""
    theirs = resolution_numbers(frequency, published)
    ours = resolution_numbers(curves.frequency, curves.best)
    both = {
        threshold: (ours[threshold]["interpolated"], theirs[threshold]["interpolated"])
        for threshold in theirs
    }
    return {
        "resolution": theirs,
        "difference": {
            threshold: mine - other
            for threshold, (mine, other) in both.items()
            if mine is not None and other is not None
        },
    }
