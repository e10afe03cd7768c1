"""Pictures for people: every particle, class and slice that a page or a report shows is drawn here.

Protein is bright in all of them, as RELION and cryoSPARC display it, whatever it is in the file. The grey
of a picture runs between two percentiles of its own pixels. A raw particle shows nothing to the eye, so
particles are low-passed: to 20 Å, where a protein has its outline and most of the noise is gone; where
the pixel size is not known, to a twelfth of the box, which is 20 Å for a box of 240 Å.
"""

from __future__ import annotations

import base64
import io
from functools import lru_cache

import numpy as np
import torch
from scipy import fft

from cryoray.imaging.rescale import fourier_rescale

#: Å; and cycles in a box whose pixel size is not known.
LOW_PASS, CYCLES = 20.0, 12.0
#: Percent of a picture's pixels that are black, and as many white.
CUT = 0.5
#: Of noisy pictures: robust deviations from the median beyond which a pixel is a flaw rather than signal,
#: and the percent of the pixels, on each side, that may be flaws.
SPREAD, _FLAWS = 4.0, 10.0


def low_passed(
    images: np.ndarray, pixel_size: np.ndarray | float | None, resolution: float = LOW_PASS
) -> np.ndarray:
    """Images without the detail that is finer than a resolution.

    Args:
        images: float [n, H, W].
        pixel_size: Å/px, of each image [n] or of all; NaN or None where it is not known.
        resolution: Å; 0 leaves the images as they are.

    Returns:
        float32 [n, H, W].
    """
    images = np.asarray(images, np.float32)
    if not len(images) or resolution <= 0:
        return images
    sizes = np.broadcast_to(
        np.float64(np.nan) if pixel_size is None else np.asarray(pixel_size, np.float64),
        len(images),
    )
    side = max(images.shape[1:])
    # In cycles per box, rounded, so that images of nearly one pixel size share a filter.
    cycles = np.where(np.isfinite(sizes) & (sizes > 0), side * sizes / resolution, CYCLES).round(1)
    passed = images.copy()
    for cut in np.unique(cycles).tolist():
        some = cycles == cut
        # In one thread: a page has many drawn at once, of a few images each.
        transform = fft.rfft2(images[some])
        transform *= _filter(images.shape[1], images.shape[2], cut / side)
        passed[some] = fft.irfft2(transform, s=images.shape[1:])
    return passed


@lru_cache(maxsize=64)
def _filter(height: int, width: int, cut: float) -> np.ndarray:
    """float32 [height, width // 2 + 1]: a Gaussian that is a half at ``cut`` cycles per pixel.

    An edge any steeper rings, and rings look like protein.
    """
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    return np.exp2(-(y**2 + x**2) / cut**2).astype(np.float32)


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Images [n, H, W] resampled to float32 [n, side, side]."""
    images = np.ascontiguousarray(images, np.float32)
    return fourier_rescale(torch.from_numpy(images), side).numpy() if len(images) else images


def reduced(image: np.ndarray, longest: int) -> np.ndarray:
    """A micrograph resampled so that its longer side has at most ``longest`` px, float32 [h, w].

    It is binned by whole pixels to at most twice that, which is quick, and then Fourier-cropped, which
    removes most of what binning lets alias.

    Args:
        image: [H, W], of any numbers.
        longest: px.
    """
    by = max(1, -(-max(image.shape) // (2 * longest)))
    height, width = (size // by for size in image.shape)
    binned = np.zeros((height, width), np.float32)
    for y in range(by):
        for x in range(by):  # strided views: no copy of a whole micrograph in float32
            binned += image[y : y + height * by : by, x : x + width * by : by]
    binned /= by**2
    scale = min(1.0, longest / max(height, width))
    box = (max(1, round(height * scale)), max(1, round(width * scale)))
    return fourier_rescale(torch.from_numpy(binned)[None], box)[0].numpy()


def greys(
    images: np.ndarray,
    side: int | None = None,
    *,
    cut: float = CUT,
    levels: int = 64,
    noisy: bool = False,
) -> np.ndarray:
    """Images as greys, each with a contrast of its own.

    A particle at a micrograph's edge, or beside a crystal of ice, has pixels far beyond all others, and
    percentiles alone would leave the rest of it one grey.

    Args:
        images: float [n, H, W].
        side: px, to which each is resampled; None leaves them as large as they are.
        cut: percent of the pixels that become black, and as many white; more gives more contrast.
        levels: greys. In images this noisy no eye tells 32 from 256, and a file is half as large.
        noisy: raw particles, whose contrast is that of most of their pixels, whatever a tenth of them
            is. A class average has a flat background, so that all of its signal would look like a flaw.

    Returns:
        uint8 [n, side, side]; an image without contrast, or with pixels that are no numbers, is grey.
    """
    images = np.asarray(images, np.float32) if side is None else resized(images, side)
    if not images.size:
        return images.astype(np.uint8)
    flat = images.reshape(len(images), -1)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = np.percentile(flat, (cut, 100 - cut), axis=1)
        if noisy:
            few, middle, most = np.percentile(flat, (_FLAWS, 50, 100 - _FLAWS), axis=1)
            # 1.4826: of a Gaussian, the standard deviation over the median absolute one.
            reach = SPREAD * 1.4826 * np.median(np.abs(flat - middle[:, None]), axis=1)
            reach = np.where(reach > 0, reach, np.inf)  # masked, so that most of it is flat
            low = np.maximum(low, np.minimum(few, middle - reach))
            high = np.minimum(high, np.maximum(most, middle + reach))
        span = high - low
        fine = np.isfinite(span) & (span > 1e-6 * np.maximum(np.abs(low), np.abs(high)))
        grey = (flat - low[:, None]) / np.where(fine, span, 1)[:, None]
    grey = np.where(fine[:, None], grey, 0.5).clip(0, 1)
    coarse = np.round(grey * (levels - 1)) * (255 / (levels - 1))
    return coarse.astype(np.uint8).reshape(images.shape)


def png(grey: np.ndarray, *, small: bool = True) -> bytes:
    """Greys as a PNG.

    Args:
        grey: uint8 [H, W].
        small: take the time to make the file small; a page that waits for it does not.
    """
    from PIL import Image  # of an extra; whoever only filters images needs none

    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG", optimize=small, compress_level=9 if small else 1)
    return file.getvalue()


def strip(grey: np.ndarray) -> np.ndarray:
    """Pictures [n, H, W] side by side as one, [H, n * W]."""
    n, height, width = grey.shape
    return np.ascontiguousarray(grey.swapaxes(0, 1)).reshape(height, n * width)


def data_uris(images: np.ndarray, largest: int) -> list[str]:
    """Each image [n, H, W] as a ``data:image/png;base64,…`` address, small enough for hundreds in a page.

    Args:
        images: float [n, H, W].
        largest: px, the side to which larger images are resampled.
    """
    images = np.asarray(images, np.float32)
    side = largest if len(images) and max(images.shape[1:]) > largest else None
    return [
        "data:image/png;base64," + base64.b64encode(png(grey)).decode()
        for grey in greys(images, side, levels=32)
    ]
