"""Particle images as PNG data URIs, small enough that hundreds fit into one page."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image

from cryoray.imaging.rescale import fourier_rescale

#: Larger images are resampled to this side, px.
LARGEST = 80

#: Grey values run from this many standard deviations below an image's mean to as many above it.
CONTRAST = 3.0


def data_uris(images: np.ndarray) -> list[str]:
    """Each image as a ``data:image/png;base64,…`` address, with a contrast of its own.

    Args:
        images: float [n, H, W].
    """
    images = np.asarray(images, np.float32)
    if len(images) and max(images.shape[1:]) > LARGEST:
        images = fourier_rescale(torch.from_numpy(images.copy()), LARGEST).numpy()
    return [_data_uri(image) for image in images]


def _data_uri(image: np.ndarray) -> str:
    spread = float(image.std()) or 1.0
    grey = (image - image.mean()) / (2 * CONTRAST * spread) + 0.5
    # 32 greys: no eye tells them from 256 in an image this noisy, and they halve the page
    coarse = np.round(np.clip(grey, 0, 1) * 31) * (255 / 31)
    png = io.BytesIO()
    Image.fromarray(coarse.astype(np.uint8)).save(png, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
