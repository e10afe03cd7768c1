"""From a network's logit to a probability of keep that means what it says.

Platt's sigmoid (1999), p = 1 / (1 + exp(-(a·logit + b))), fitted on images that the member was not
trained on, drawn from the original distribution (d2 and d3 were trained on skewed ones).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Platt:
    """A calibrated member: ``slope`` a > 0 and ``offset`` b of Platt's sigmoid."""

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """Probability of keep, float32 [n], of logits [n]; NaN stays NaN."""
        z = self.slope * np.asarray(logits, np.float64) + self.offset
        return (1.0 / (1.0 + np.exp(-np.clip(z, -60.0, 60.0)))).astype(np.float32)


def fit_platt(
    logits: NDArray[np.floating], labels: NDArray[np.bool_], iterations: int = 50
) -> Platt:
    """Fit Platt's sigmoid by Newton's method with his smoothed targets.

    The targets (n₊+1)/(n₊+2) and 1/(n₋+2) keep the fit finite where a member separates perfectly
    (Platt 1999; Lin, Lin & Weng 2007 for the ridge that keeps the Hessian positive).

    Args:
        logits: float [n].
        labels: bool [n], True for keep.
        iterations: of Newton's method, at most.

    Returns:
        The sigmoid. Its slope is kept positive: a member that ranks worse than chance on these images
        gets a flat sigmoid, never a turned one.
    """
    logits = np.asarray(logits, np.float64)
    labels = np.asarray(labels, bool)
    keeps = int(labels.sum())
    discards = len(labels) - keeps
    target = np.where(labels, (keeps + 1) / (keeps + 2), 1 / (discards + 2))
    spread = float(logits.std()) or 1.0
    design = np.stack([logits / spread, np.ones_like(logits)], axis=1)
    weights = np.array([1.0, np.log((keeps + 1) / (discards + 1))])
    ridge = 1e-3 * np.eye(2)

    def loss(w: np.ndarray) -> float:
        z = design @ w
        return float(np.sum(np.logaddexp(0.0, z) - target * z) + 0.5 * w @ ridge @ w)

    current = loss(weights)
    for _ in range(iterations):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -60.0, 60.0)))
        gradient = design.T @ (p - target) + ridge @ weights
        hessian = (design * (p * (1 - p))[:, None]).T @ design + ridge
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and loss(weights - size * step) > current:
            size /= 2
        weights = weights - size * step
        improved, current = current, loss(weights)
        if improved - current < 1e-9 * max(1.0, abs(current)):
            break
    return Platt(slope=float(max(weights[0] / spread, 1e-3)), offset=float(weights[1]))
