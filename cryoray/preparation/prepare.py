"""Raw images become a network's input (the order is design.md's): each by itself, whatever the batch."""

from __future__ import annotations

import numpy as np
import torch

from cryoray.imaging.normalize import clip, normalize_background
from cryoray.imaging.rescale import fourier_rescale
from cryoray.imaging.window import window
from cryoray.preparation.reader import defects, read_range
from cryoray.records import PreparedRows, RowRange
from cryoray.settings import PreparationSettings

#: Images worked on together: their intermediate results stay in a core's cache. Always as many, as
#: a matrix product of another size may add up in another order: so a row comes out the same to the
#: last bit, whatever rows are beside it.
_CHUNK = 32
#: The background begins here (fraction of the box), or a fifth beyond the particle's edge.
_RING, _MARGIN = 0.45, 1.2


def prepare_range(rows: RowRange, settings: PreparationSettings) -> PreparedRows:
    """Read and prepare a row range; what cannot be read comes back as quarantined, with a reason."""
    raw = read_range(rows)
    if isinstance(raw, str):
        return PreparedRows(
            rows=np.empty(0, np.int64),
            images=np.empty((0, settings.box, settings.box), np.float32),
            features=rows.features[:0],
            quarantined=tuple((row, raw) for row in rows.rows.tolist()),
        )
    images, reasons = prepare_images(raw, rows.pixel_size, rows.invert, settings)
    good = np.setdiff1d(np.arange(len(raw)), list(reasons))
    return PreparedRows(
        rows=rows.rows[good],
        images=images[good] if reasons else images,
        features=rows.features[good],
        quarantined=tuple(
            (int(rows.rows[i]), f"{rows.stack.path.name}, image {rows.frames[i] + 1}: {why}")
            for i, why in sorted(reasons.items())
        ),
    )


def prepare_images(
    images: np.ndarray, pixel_size: np.ndarray, invert: bool, settings: PreparationSettings
) -> tuple[np.ndarray, dict[int, str]]:
    """Window, rescale, make protein bright, normalise by the background, clip.

    Args:
        images: float32 [n, H, W].
        pixel_size: float32 [n], Å/px, NaN where unknown: such an image is rescaled by its box.
        invert: whether protein is dark.
        settings: box, diameter, window and clip are used.

    Returns:
        float32 [n, box, box], and the reason for each image that is none (its pixels are zero).
    """
    reasons = defects(images)
    prepared = np.zeros((len(images), settings.box, settings.box), np.float32)
    good = np.setdiff1d(np.arange(len(images)), list(reasons))
    sides = window_sides(images.shape[1:], pixel_size, settings)
    rings = _ring(sides, pixel_size, settings)
    for side, ring in sorted(set(zip(sides[good].tolist(), rings[good].tolist(), strict=True))):
        alike = good[(sides[good] == side) & (rings[good] == ring)]
        for some in np.split(alike, range(_CHUNK, len(alike), _CHUNK)):
            chunk = torch.zeros((_CHUNK, *images.shape[1:]))
            chunk[: len(some)] = torch.from_numpy(images[some])
            chunk = fourier_rescale(window(chunk, side), settings.box)
            chunk = normalize_background(-chunk if invert else chunk, ring)
            prepared[some] = clip(chunk, settings.clip)[: len(some)].numpy()
    return prepared, reasons


def window_sides(
    shape: tuple[int, ...], pixel_size: np.ndarray, settings: PreparationSettings
) -> np.ndarray:
    """int64 [n], px: the even side of each image's window; the largest square where that is smaller.

    Args:
        shape: (H, W) of the images, px.
        pixel_size: float32 [n], Å/px, NaN where unknown.
        settings: diameter and window are used.
    """
    wanted = np.full(len(pixel_size), np.inf)
    if settings.diameter is not None:
        with np.errstate(divide="ignore"):
            wanted = settings.window * settings.diameter / np.asarray(pixel_size, np.float64)
    even = 2 * np.round(np.nan_to_num(wanted, nan=np.inf, posinf=np.inf) / 2)
    return np.clip(even, 8, min(shape)).astype(np.int64)


def _ring(sides: np.ndarray, pixel_size: np.ndarray, settings: PreparationSettings) -> np.ndarray:
    """float64 [n]: inner radius of each window's background, fraction of its side."""
    particle = settings.diameter or np.inf
    edge = _MARGIN * particle / 2 / (np.asarray(pixel_size, np.float64) * sides)
    return np.round(np.fmin(edge, _RING), 2)
