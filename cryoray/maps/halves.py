"""Two half-maps as they are on disk, and the mask in which they are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoray.errors import InputError
from cryoray.formats.volume import read_volume, write_volume
from cryoray.maps import fsc
from cryoray.settings import ValidationSettings

#: Beyond this, pixel sizes are taken to differ, and not to be rounded differently.
_SAME_PIXEL = 1e-3


def read_halves(
    half1: Path, half2: Path, pixel_size: float | None
) -> tuple[tuple[torch.Tensor, torch.Tensor], float]:
    """Two half-maps and their pixel size in Å, which may be given.

    Raises:
        FormatError: one cannot be read.
        InputError: they differ in size, or the pixel size is unknown.
    """
    (first, size1), (second, size2) = read_volume(half1), read_volume(half2)
    if first.shape != second.shape:
        raise InputError(f"has {len(second)}³ voxels where {half1} has {len(first)}³", file=half2)
    if np.array_equal(first, second):
        raise InputError(f"is the same map as {half1}", file=half2, remedy="give the other half")
    size = pixel_size or size1 or size2
    if size is None:
        raise InputError("gives no pixel size", file=half1, remedy="give --pixel-size")
    if pixel_size is None and size2 and abs(size2 / size - 1) > _SAME_PIXEL:
        raise InputError(
            f"has {size2:.4f} Å/px where {half1} has {size:.4f}",
            file=half2,
            remedy="give --pixel-size",
        )
    return (torch.from_numpy(first), torch.from_numpy(second)), size


def mask_for(
    mask: str | None,
    halves: tuple[torch.Tensor, torch.Tensor],
    pixel_size: float,
    chosen: ValidationSettings,
    out: Path | None = None,
) -> tuple[torch.Tensor | None, dict[str, Any] | None]:
    """The mask of two half-maps, and what ``metrics.json`` says of it; None and None without one.

    Args:
        mask: file of a soft mask, ``auto`` (made from the mean of both, written to ``mask.mrc``) or None.
        halves: float32 [box, box, box] each.
        pixel_size: Å/px.
        chosen: how an automatic mask is made.
        out: folder of ``mask.mrc``; None: it is not written.

    Raises:
        FormatError: it cannot be read.
        InputError: it has another size than the maps, or values outside 0 to 1.
    """
    if mask is None:
        return None, None
    if mask == "auto":
        made, level = fsc.automatic_mask(
            (halves[0] + halves[1]) / 2,
            pixel_size,
            chosen.mask_threshold,
            lowpass=chosen.mask_lowpass,
            extend=chosen.mask_extend,
            soft_edge=chosen.mask_edge,
        )
        if out is not None:
            write_volume(out / "mask.mrc", made.numpy(), pixel_size)
        return made, {"file": "mask.mrc", "threshold": level, "fraction": float(made.mean())}
    volume, _ = read_volume(Path(mask))
    if volume.shape != tuple(halves[0].shape):
        raise InputError(
            f"has {len(volume)}³ voxels where the maps have {len(halves[0])}³", file=mask
        )
    if volume.min() < -1e-6 or volume.max() > 1 + 1e-6:
        raise InputError("is not a mask: its values are not between 0 and 1", file=mask)
    return torch.from_numpy(volume), {"file": str(mask), "fraction": float(volume.mean())}
