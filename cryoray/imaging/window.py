"""Cut the middle out of images."""

from __future__ import annotations

import torch


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
