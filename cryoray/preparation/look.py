"""Some images of a source, for people to look at: as the network would see them, low-passed for the eye."""

from __future__ import annotations

import numpy as np

from cryoray.formats.source import Source
from cryoray.imaging.pictures import low_passed
from cryoray.preparation.plan import plan
from cryoray.preparation.prepare import prepare_range
from cryoray.settings import PreparationSettings


def look_at(
    source: Source,
    rows: np.ndarray,
    settings: PreparationSettings,
    invert: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of a source as the network would see them, but particles low-passed.

    Class averages are clear as they are.

    Args:
        source: where they are.
        rows: int64, 0-based.
        settings: how to prepare them.
        invert: whether protein is dark, where a caller knows it from an earlier plan.

    Returns:
        the rows that could be read, int64 [n] in another order, and float32 [n, box, box].
    """
    planned = plan(source, settings, 64, rows=rows, invert=invert)
    seen = [prepare_range(part, settings) for part in planned.ranges]
    if not seen:
        return np.empty(0, np.int64), np.empty((0, settings.box, settings.box), np.float32)
    found = np.concatenate([one.rows for one in seen])
    images = np.concatenate([one.images for one in seen])
    if source.kind == "particle":
        images = low_passed(images, planned.prepared_pixel_size[found])
    return found, images
