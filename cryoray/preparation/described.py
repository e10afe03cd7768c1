"""A bare stack with the metadata that a STAR file has of its images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cryoray.formats.companion import Companion
from cryoray.formats.rows import Source
from cryoray.preparation.features import described


def with_metadata(stack: Source, companion: Companion) -> Source:
    """A bare stack's source, with names and metadata of the rows that a STAR file has on its images.

    Args:
        stack: the source of one bare stack.
        companion: the STAR file that describes it.
    """
    star, at = companion.star, np.full(len(stack), -1)
    # Backwards, so that of several rows on one image the first stays.
    rows = companion.rows[::-1]
    rows = rows[(star.frame[rows] >= 0) & (star.frame[rows] < len(stack))]
    at[star.frame[rows]] = rows
    there = at >= 0
    return replace(
        stack,
        images=np.where(there, star.images[at], stack.images),
        micrograph=np.where(there, star.micrograph[at], stack.micrograph),
        pixel_size=np.where(there, star.pixel_size[at], stack.pixel_size),
        metadata={
            name: np.where(there, values[at], np.nan) for name, values in described(star).items()
        },
        problems={
            **stack.problems,
            **{
                int(frame): star.problems[row]
                for frame, row in enumerate(at.tolist())
                if row in star.problems
            },
        },
    )
