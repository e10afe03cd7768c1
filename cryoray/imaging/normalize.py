"""Bring images to one grey scale: the background at zero mean and unit variance."""

from __future__ import annotations

from functools import lru_cache
from math import erf, exp, pi, sqrt

import numpy as np
import torch

#: Background beyond this many standard deviations pulls no harder: a neighbour, an ice crystal.
_HUBER = 1.5
#: Within the circle, where the particle is, only a hot pixel lies this far out.
_HOT = 5.0
_PASSES = 8
#: What is within the circle never varies more than this many units. The ring of a class average is
#: flat, or nearly so: by its deviation alone, the inside of the protein would lie beyond any clipping.
_CEILING = 1.6


def normalize_background(images: torch.Tensor, radius: float) -> torch.Tensor:
    """Images less the plane through their background, over the background's standard deviation.

    The background is what lies outside a centred circle. Plane and deviation are fitted with
    Huber's modified residuals (Huber and Ronchetti, Robust Statistics, 7.8), so that a neighbour's
    edge in a corner does not tilt them. Where the ring is flat, as in class averages, what is
    within the circle gives the unit: its root mean square is 1.6 at most. A constant image comes
    out as zeros.

    Args:
        images: float32 [n, H, W].
        radius: of the circle, as a fraction of the box; below 0.7, or no pixel is outside.

    Returns:
        float32 [n, H, W].
    """
    n, height, width = images.shape
    outside, inside, plane, solver = (
        array.to(images.device) for array in _background(height, width, float(radius))
    )
    pixels, beneath = images.reshape(n, -1), plane[:, outside]
    residual = pixels.index_select(1, outside)
    coefficients = _fitted(residual, solver)
    residual -= coefficients @ beneath
    deviation = _deviation(residual)
    for _ in range(_PASSES):
        change = _fitted(_cut(residual, _HUBER * deviation), solver)
        coefficients = coefficients + change
        residual -= change @ beneath
        deviation = _deviation(_cut(residual, _HUBER * deviation), _HUBER)
    flat = pixels - coefficients @ plane
    middle = flat.index_select(1, inside)
    varies = _deviation(middle)
    # Cutting only lowers it, but for rounding: where the ring decides already, as in single
    # particles, there is no need to.
    if bool((varies * (1 + 1e-4) > _CEILING * deviation).any()):
        for _ in range(_PASSES):
            varies = _deviation(_cut(middle, _HOT * varies), _HOT)
    unit = torch.maximum(deviation, varies / _CEILING)
    return (flat / torch.where(unit > 0, unit, torch.inf)).reshape(n, height, width)


def clip(images: torch.Tensor, limit: float) -> torch.Tensor:
    """Images with values beyond ±``limit`` (standard deviations, after normalising) cut off."""
    return images.clamp(-limit, limit)


def _fitted(residual: torch.Tensor, solver: torch.Tensor) -> torch.Tensor:
    """Coefficients [n, 3] of the plane through each ring [n, p].

    Not a matrix product: on some processors that sums a row in another order at another place in the
    batch, and an image must not depend on its neighbours.
    """
    return (residual[:, None] * solver).sum(2)


def _cut(values: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """``values`` clamped at ±``limit``; a quarter of the time that ``clamp`` takes with tensors."""
    least = torch.minimum(values, limit)
    return torch.maximum(least, -limit, out=least)


def _deviation(values: torch.Tensor, cut: float | None = None) -> torch.Tensor:
    """Root mean square [n, 1]; of a normal law also where it was cut off at ±``cut`` deviations."""
    square = 1.0
    if cut is not None:
        density, inside = exp(-cut * cut / 2) / sqrt(2 * pi), erf(cut / sqrt(2))
        square = inside - 2 * cut * density + cut * cut * (1 - inside)
    norm = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    return norm / sqrt(square * values.shape[1])


@lru_cache(maxsize=16)
def _background(
    height: int, width: int, radius: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Indices of the ring [p] and of the rest, basis of a plane [3, H*W], its solver [3, p]."""
    y = (np.arange(height) - height // 2)[:, None] / height
    x = (np.arange(width) - width // 2)[None, :] / width
    ring = np.hypot(y, x).ravel() > radius
    outside, inside = np.flatnonzero(ring), np.flatnonzero(~ring)
    grids = np.broadcast_arrays(np.ones_like(y), y, x)
    plane = np.stack([grid.ravel() for grid in grids])
    solver = np.linalg.pinv(plane[:, outside].T)
    return (
        torch.from_numpy(outside),
        torch.from_numpy(inside),
        torch.from_numpy(plane.astype(np.float32)),
        torch.from_numpy(solver.astype(np.float32)),
    )
