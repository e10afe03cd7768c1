"""Raw images become a network's input: each by itself, whatever the batch.

Windowed, rescaled, made bright where protein is dark, levelled and normalised by the background, clipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cryoray.errors import FormatError
from cryoray.imaging.normalize import clip, normalize_background
from cryoray.imaging.rescale import fourier_rescale
from cryoray.imaging.window import circled, window
from cryoray.preparation.reader import defects, read_blocks, reason
from cryoray.records import PreparedRows, RowRange
from cryoray.settings import PreparationSettings

#: Images worked on together: on a CPU their intermediate results stay in a core's cache, a GPU wants
#: more. Always as many, as a matrix product of another size may add up in another order: so a row
#: comes out the same to the last bit, whatever rows are beside it.
_CHUNK, _CHUNK_GPU = 32, 512
#: Pixels worked on together, at most, unless one image has more.
_TOGETHER = 1 << 26
#: Bytes (as float32) read before the arithmetic begins: a range is never held whole, so that memory
#: does not follow its size, and what was read is still in a cache.
_BLOCK = 8 << 20
#: Greys of a rescaled image beyond which one of the original may overflow when squared, and the
#: spread below which it may be constant, as a fraction of its greys.
_LARGE, _FLAT = 1e12, 1e-4
#: The background begins here (fraction of the box), or a fifth beyond the particle's edge.
_RING, _MARGIN = 0.45, 1.2


def prepare_range(
    rows: RowRange, settings: PreparationSettings, device: str = "cpu"
) -> PreparedRows:
    """Read and prepare a row range; what cannot be read comes back as quarantined, with a reason.

    Args:
        rows: what to read. Where its stack cannot be read, or changed, all of it is quarantined.
        settings: of the preparation.
        device: of torch, for the arithmetic. On another sort of device the last bits differ.
    """
    pixels = rows.stack.height * rows.stack.width
    together = _chunk(device, pixels)
    step = together * max(1, _BLOCK // (together * 4 * pixels))
    images = np.empty((len(rows.rows), settings.box, settings.box), np.float32)
    reasons: dict[int, str] = {}
    start = 0
    try:
        for raw in read_blocks(rows, step):
            some = slice(start, start + len(raw))
            _, bad = prepare_images(
                raw,
                rows.pixel_size[some],
                rows.invert,
                settings,
                device,
                out=images[some],
                side=rows.window,
            )
            reasons |= {start + i: why for i, why in bad.items()}
            start += len(raw)
    except FormatError as error:
        return PreparedRows(
            rows=np.empty(0, np.int64),
            images=images[:0],
            features=rows.features[:0],
            quarantined=tuple((row, reason(error)) for row in rows.rows.tolist()),
        )
    good = np.setdiff1d(np.arange(len(images)), list(reasons))
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
    images: np.ndarray,
    pixel_size: np.ndarray,
    invert: bool,
    settings: PreparationSettings,
    device: str = "cpu",
    *,
    out: np.ndarray | None = None,
    side: int | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Window, rescale, make protein bright, normalise by the background, clip.

    Args:
        images: float32 [n, H, W].
        pixel_size: float32 [n], Å/px, NaN where unknown: such an image is rescaled by its box.
        invert: whether protein is dark.
        settings: box, diameter, window and clip are used.
        device: of torch, for the arithmetic.
        out: float32 [n, box, box] to write to; None for new memory.
        side: px, of a round window that a job of classes decided; None for a square one by the settings.

    Returns:
        float32 [n, box, box], and the reason for each image that is none (its pixels are zero).
    """
    reasons: dict[int, str] = {}
    shape, box = (len(images), settings.box, settings.box), settings.box
    most = _chunk(device, images.shape[1] * images.shape[2])
    prepared = np.empty(shape, np.float32) if out is None else out
    if side is None:
        sides = window_sides(images.shape[1:], pixel_size, settings)
        rings = _ring(sides, pixel_size, settings)
    else:
        sides, rings = np.full(len(images), side), np.full(len(images), _RING)
    for width, ring in sorted(set(zip(sides.tolist(), rings.tolist(), strict=True))):
        alike = np.flatnonzero((sides == width) & (rings == ring))
        for some in np.split(alike, range(most, len(alike), most)):
            raw = _together(images, some, most)
            chunk = fourier_rescale(window(torch.from_numpy(raw).to(device), width), box)
            suspect = np.arange(len(some))
            if images.shape[1] == images.shape[2] == width:  # every pixel is in the chunk
                suspect = np.flatnonzero(_suspect(chunk[: len(some)]))
            if len(suspect):
                bad = defects(raw[: len(some)] if len(suspect) == len(some) else raw[suspect])
                reasons |= {int(some[suspect[i]]): why for i, why in bad.items()}
            if side is not None:
                chunk = circled(chunk)
            chunk = normalize_background(-chunk if invert else chunk, ring)
            prepared[some] = clip(chunk, settings.clip)[: len(some)].cpu().numpy()
    prepared[list(reasons)] = 0
    return prepared, reasons


def _suspect(rescaled: torch.Tensor) -> np.ndarray:
    """Which images may have defects, bool [n], from what all of their pixels were made into.

    A pixel that is no number makes all of them none, and a constant image stays one but for
    rounding; so only a suspect is looked at as it was read, which takes far longer.
    """
    pixels = rescaled.reshape(len(rescaled), -1).cpu().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = pixels.min(1), pixels.max(1)
        largest = np.maximum(high, -low)
        fine = (largest < _LARGE) & (high - low > _FLAT * largest)
    return ~fine


def _chunk(device: str, pixels: int) -> int:
    """Images worked on together; of large ones fewer, and always as many of a size."""
    return max(1, min(_CHUNK if device == "cpu" else _CHUNK_GPU, _TOGETHER // max(pixels, 1)))


def _together(images: np.ndarray, some: np.ndarray, size: int) -> np.ndarray:
    """Some of the images and zeros, ``size`` together; without a copy where they lie together."""
    first, last = int(some[0]), int(some[-1])
    if last - first + 1 == len(some) == size and images.flags.writeable:
        return images[first : last + 1]
    together = np.zeros((size, *images.shape[1:]), np.float32)
    together[: len(some)] = images[some]
    return together


def window_sides(
    shape: tuple[Any, ...], pixel_size: np.ndarray, settings: PreparationSettings
) -> np.ndarray:
    """int64 [n], px: the even side of each image's window; the largest square where that is smaller.

    Args:
        shape: (H, W) of the images, px; int or int64 [n] each.
        pixel_size: float32 [n], Å/px, NaN where unknown.
        settings: diameter and window are used.
    """
    wanted = np.full(len(pixel_size), np.inf)
    if settings.diameter is not None:
        with np.errstate(divide="ignore"):
            wanted = settings.window * settings.diameter / np.asarray(pixel_size, np.float64)
    even = 2 * np.round(np.nan_to_num(wanted, nan=np.inf, posinf=np.inf) / 2)
    return np.clip(even, 8, np.minimum(*shape)).astype(np.int64)


def _ring(sides: np.ndarray, pixel_size: np.ndarray, settings: PreparationSettings) -> np.ndarray:
    """float64 [n]: inner radius of each window's background, fraction of its side."""
    particle = settings.diameter or np.inf
    edge = _MARGIN * particle / 2 / (np.asarray(pixel_size, np.float64) * sides)
    return np.round(np.fmin(edge, _RING), 2)
