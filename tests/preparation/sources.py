"""Small sources on disk, of images in which particles are plain to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryoray.formats.mrc import StackWriter
from cryoray.formats.source import Source, open_source

_HEADER = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
1 {pixel_size}

# version 30001

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
_rlnDefocusU #4
_rlnDefocusV #5
_rlnCtfMaxResolution #6
"""


def particles(n: int, box: int = 40, seed: int = 0, sign: int = 1) -> np.ndarray:
    """float32 [n, box, box]: blobs of half a standard deviation in white noise."""
    rng = np.random.default_rng(seed)
    axis = np.arange(box) - box // 2
    blob = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * (box / 10) ** 2))
    return (rng.normal(size=(n, box, box)) + sign * blob).astype(np.float32)


def write_source(
    folder: Path,
    stacks: list[np.ndarray],
    *,
    pixel_size: str = "2.5",
    extra: tuple[str, ...] = (),
) -> Source:
    """Write stacks a.mrcs, b.mrcs … and a particles.star in which their images alternate."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for letter, images in zip("abcdefg", stacks, strict=False):
        side = images.shape[1]
        with StackWriter(folder / f"{letter}.mrcs", side, side, "float32", 3.0) as writer:
            writer.append(images)
        names += [(i, letter) for i in range(1, len(images) + 1)]
    rows = [
        f"{i:06d}@{letter}.mrcs mic_{letter}.mrc 1 {10000 + i} {9000 + i} 4.5"
        for i, letter in sorted(names)
    ]
    text = _HEADER.format(pixel_size=pixel_size) + "\n".join([*rows, *extra]) + "\n"
    (folder / "particles.star").write_text(text)
    return open_source(folder / "particles.star")
