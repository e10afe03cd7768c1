"""Some images of a source, for people to look at: as the network would see them, low-passed for the eye."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cryoray.formats.source import Source
from cryoray.imaging.pictures import low_passed
from cryoray.preparation.plan import plan
from cryoray.preparation.prepare import prepare_range
from cryoray.settings import PreparationSettings


class Seen(NamedTuple):
    """Images of a source.

    Attributes:
        rows: int64 [n], 0-based, those that could be read, in another order than they were asked for.
        images: float32 [n, box, box], protein bright.
        pixel_size: float32 [n], Å/px of these, NaN where unknown.
    """

    rows: np.ndarray
    images: np.ndarray
    pixel_size: np.ndarray


def look_at(
    source: Source,
    rows: np.ndarray,
    settings: PreparationSettings,
    invert: bool | None = None,
    *,
    low_pass: bool = True,
) -> Seen:
    """Some rows of a source as the network would see them, but particles low-passed.

    Class averages are clear as they are.

    Args:
        source: where they are.
        rows: int64, 0-based.
        settings: how to prepare them.
        invert: whether protein is dark, where a caller knows it from an earlier plan.
        low_pass: False: just as the network would see them.
    """
    planned = plan(source, settings, 64, rows=rows, invert=invert)
    seen = [prepare_range(part, settings) for part in planned.ranges]
    box = settings.box
    found = np.concatenate([np.empty(0, np.int64), *(one.rows for one in seen)])
    images = np.concatenate([np.empty((0, box, box), np.float32), *(one.images for one in seen)])
    size = planned.prepared_pixel_size[found]
    if low_pass and source.kind == "particle":
        images = low_passed(images, size)
    return Seen(found, images, size)
