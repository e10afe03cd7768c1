"""A bare stack with the metadata that a STAR file has of its images; which images decide its contrast."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cryoray.formats import companion, mrc
from cryoray.formats.companion import Companion, Found, Open
from cryoray.formats.numbered import Numbered
from cryoray.formats.rows import Source
from cryoray.preparation.features import described
from cryoray.preparation.plan import protein_is_dark
from cryoray.settings import PreparationSettings


class Described(NamedTuple):
    """A source with all that is known of its images.

    Attributes:
        source: the rows; of a bare stack those of its own STAR file where that names each image once, else
            those of the stack in its order, with the metadata of a STAR file that names it.
        whole: the STAR file that describes a bare stack, else ``source``: whether protein is dark is a
            property of a data set, and a stack alone may hold one image.
        found: what was looked at beside a bare stack.
    """

    source: Source
    whole: Source
    found: Found

    @property
    def used(self) -> Companion | None:
        """The STAR file that describes a bare stack."""
        return self.found.companion

    def is_dark(self, settings: PreparationSettings) -> bool:
        """Whether pixels must change sign to make protein bright (`preparation.plan.protein_is_dark`)."""
        return protein_is_dark(self.whole, settings)


def describe(source: Source, open_star: Open | None = None, *, by_frame: bool = False) -> Described:
    """A source; where it is one bare stack, as the STAR file beside it has it.

    Args:
        source: any.
        open_star: see `formats.companion.find`.
        by_frame: keep a stack's rows in the stack's order, whatever describes it.
    """
    if source.format != "stack" or len(source.stacks) != 1:
        return Described(source, source, Found(None))
    found = companion.find(source.stacks[0], source.kind, open_star)
    if found.companion is None:
        return Described(source, source, found)
    star, own = found.companion.star, found.companion
    images = mrc.read_header(source.stacks[0]).count
    if not by_frame and own.alone and own.complete(images):
        return Described(star, star, found)
    return Described(with_metadata(source, own), star, found)


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
    own = np.flatnonzero(there)
    assert isinstance(stack.images, Numbered)
    return replace(
        stack,
        images=stack.images.but(own, star.images[at[own]]),
        micrograph=np.where(there, star.micrograph[at], stack.micrograph),
        pixel_size=np.where(there, star.pixel_size[at], stack.pixel_size),
        metadata={
            name: np.where(there, values[at], np.nan) for name, values in described(star).items()
        },
        problems={
            **stack.problems,
            **{
                frame: star.problems[int(at[frame])]
                for frame in np.flatnonzero(np.isin(at, list(star.problems))).tolist()
            },
        },
    )
