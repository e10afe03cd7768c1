"""Cut the middle out of images, square or round."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

#: Width of the soft edge of a round window, a fraction of its side.
_EDGE = 0.05


def window(images: torch.Tensor, side: int) -> torch.Tensor:
    """The central ``side`` × ``side`` pixels of each image, as a view.

    The centre is pixel ``size // 2``, where RELION and cryoSPARC have it. An image that is smaller
    than the window stays as it is along that axis: what lies outside it is unknown.

    Args:
        images: [n, H, W].
        side: px.

    Returns:
        [n, min(H, side), min(W, side)].
    """
    height, width = images.shape[-2:]
    top, rows = max(0, height // 2 - side // 2), min(side, height)
    left, columns = max(0, width // 2 - side // 2), min(side, width)
    return images[..., top : top + rows, left : left + columns]


def circled(images: torch.Tensor) -> torch.Tensor:
    """Images [n, side, side] less their mean outside the inscribed circle, and zero there."""
    inside, outside = (array.to(images.device) for array in _circle(images.shape[-1]))
    level = (images * outside).sum((1, 2), keepdim=True) / outside.sum()
    return (images - level) * inside


@lru_cache(maxsize=16)
def _circle(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A disc with a soft edge and what lies beyond it, float32 [side, side]."""
    axis = (np.arange(side) - side // 2) / side
    radius = np.hypot(axis[:, None], axis)
    edge = np.clip((radius - 0.5) / _EDGE + 1, 0, 1)
    disc = 0.5 + 0.5 * np.cos(np.pi * edge)
    return torch.from_numpy(disc.astype(np.float32)), torch.from_numpy(
        (radius > 0.5) * np.float32(1)
    )
