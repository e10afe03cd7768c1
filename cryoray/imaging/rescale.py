"""Change the sampling of images without aliasing: crop or pad their Fourier transform."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch


def fourier_rescale(images: torch.Tensor, box: int | tuple[int, int]) -> torch.Tensor:
    """Images resampled to ``box`` × ``box`` pixels, covering the same field of view.

    All frequencies below the smaller Nyquist frequency are kept, the others are zero; grey values
    keep their scale, and the centre stays the centre (pixel ``size // 2``) for odd and even sizes
    alike. Cropping a Fourier transform is separable and real, so it is done as two matrix products:
    at these sizes faster than the transforms, and no slower where a size has large prime factors.
    (torch-fourier-rescale, with which this agrees, moves the centre of odd images by a pixel.)

    Args:
        images: float32 [n, H, W].
        box: px; of images that are not square, height and width.

    Returns:
        float32 [n, box, box]; ``images`` itself where there is nothing to do.
    """
    before = tuple(images.shape[-2:])
    after = (box, box) if isinstance(box, int) else box
    if before == after:
        return images
    left, right = (
        _resampling(*sizes).to(images.device) for sizes in zip(before, after, strict=True)
    )
    return left @ images @ right.T


@lru_cache(maxsize=64)
def _resampling(size: int, box: int) -> torch.Tensor:
    """float32 [box, size]: band-limited (Dirichlet) interpolation of ``size`` samples to ``box``."""
    frequency = 2 * np.pi * np.arange(1, (min(size, box) - 1) // 2 + 1)
    there = np.outer((np.arange(box) - box // 2) / box, frequency)
    here = np.outer((np.arange(size) - size // 2) / size, frequency)
    kernel = 1 + 2 * (np.cos(there) @ np.cos(here).T + np.sin(there) @ np.sin(here).T)
    return torch.from_numpy((kernel / size).astype(np.float32))
