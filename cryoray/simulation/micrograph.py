"""Micrographs made of the canvases that images are cut out of, so that cutting again gives them again.

Canvases lie side by side, each with its own noise. They are wider than the box by half, so a box that is
moved by up to a quarter of itself, as re-centring does, is still of one canvas.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from cryoray.formats.mrc import StackWriter
from cryoray.simulation.microscope import canvas_side

#: How far a box may reach out of the micrograph, over half the box.
OUTSIDE = 0.25


class Micrograph:
    """One micrograph, filled canvas by canvas.

    Args:
        images: for which there is place; the rest of the rectangle is ``free``.
        box: of the images, px.
        rng: where they lie, and how far the outermost boxes reach out.

    Attributes:
        places: int64 [cells, 2], x and y of their centres in px, those of the images first.
        missing: int64 [cells, 2, 2], what of each box is outside, as `microscope.extract` is given it.
    """

    def __init__(self, images: int, box: int, rng: np.random.Generator) -> None:
        self.side = canvas_side(box)
        columns = math.ceil(math.sqrt(images))
        rows = math.ceil(images / columns)
        self._cells = rng.permutation(
            np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
        )
        # All micrographs are of one size, and lie anywhere on their canvases.
        spare = (self.side - box) // 2 + round(OUTSIDE * box / 2)
        self._shift = rng.integers(spare, size=2, endpoint=True)
        width, height = np.array([columns, rows]) * self.side - spare
        self.pixels = np.zeros((height, width), np.float32)
        self.places = self._cells * self.side + self.side // 2 - self._shift
        ends = (box // 2 - self.places, self.places + box // 2 - [width, height])
        self.missing = np.clip(np.stack(ends, -1), 0, None)[:, ::-1]
        self._put = 0

    @property
    def free(self) -> int:
        """Canvases that are still to be put."""
        return len(self._cells) - self._put

    def put(self, canvases: np.ndarray) -> None:
        """Lay canvases, real [n, side, side], into the next places."""
        for canvas in canvases:
            x, y = self._cells[self._put] * self.side - self._shift
            left, top = max(0, -x), max(0, -y)
            into = self.pixels[y + top : y + self.side, x + left : x + self.side]
            into[:] = canvas[top : top + into.shape[0], left : left + into.shape[1]]
            self._put += 1

    def write(self, path: Path, pixel_size: float) -> None:
        """As a camera has it, protein dark: float32, Å/px in the header."""
        height, width = self.pixels.shape
        with StackWriter(path, height, width, "float32", pixel_size) as writer:
            writer.append(-self.pixels[None])
