"""Real micrographs without the particle, from a folder of the caller's, for simulated particles to lie on.

Ice, noise and dirt are then those of a microscope. What of it is contamination nobody has marked; where a
background is much rougher, darker or brighter than most of it, it is taken for that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.io import imread

from cryoray.errors import FormatError, InputError
from cryoray.formats.mrc import read_frames, read_header
from cryoray.simulation.contamination import ICE, Frame, Layers

_SUFFIXES = (".mrc", ".png", ".tif", ".tiff", ".jpg")
#: Robust deviations of local means, and ratio of local to typical roughness, beyond which it is dirt.
_LEVEL, _ROUGH = 5.0, 1.7


def find_backgrounds(folder: Path) -> list[Path]:
    """The micrographs of a folder, in order of their names.

    Raises:
        InputError: there are none.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise InputError(
            "holds no micrographs", file=folder, remedy=f"give a folder of {' '.join(_SUFFIXES)}"
        )
    return found


def read_background(path: Path) -> np.ndarray:
    """One micrograph, float32 [height, width], of zero median and unit deviation (robust).

    Raises:
        FormatError: it is no image of one grey level per pixel.
    """
    if path.suffix.lower() == ".mrc":
        image = read_frames(read_header(path), np.arange(1))[0]
    else:
        image = np.asarray(imread(path))
    if image.ndim == 3 and image.shape[2] in (3, 4):
        image = image[..., :3].mean(2)
    if image.ndim != 2 or min(image.shape) < 64:
        raise FormatError(f"is not a micrograph: its shape is {image.shape}", file=path)
    image = image.astype(np.float32)
    middle = np.median(image)
    spread = np.median(np.abs(image - middle)) * 1.4826
    if not spread > 0:
        raise FormatError("is blank: most of its pixels have one value", file=path)
    return np.asarray((image - middle) / spread, np.float32)


def background_piece(
    image: np.ndarray, shape: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """A part of a micrograph, turned by right angles and mirrored at random; all of it if it is small."""
    image = np.rot90(image, int(rng.integers(4)))
    if rng.random() < 0.5:
        image = image[:, ::-1]
    height, width = (min(want, has) // 2 * 2 for want, has in zip(shape, image.shape, strict=True))
    top = int(rng.integers(image.shape[0] - height + 1))
    left = int(rng.integers(image.shape[1] - width + 1))
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def real_layers(image: np.ndarray, frame: Frame) -> Layers:
    """No matter of our own, and the dirt that a background has by its looks."""
    layers = Layers.clean(frame)
    step = max(1, int(frame.diameter / 8))
    rows, columns = (side // step * step for side in image.shape)
    tiles = image[:rows, :columns].reshape(rows // step, step, columns // step, step)
    size = 5
    mean = ndimage.uniform_filter(tiles.mean((1, 3)), size)
    rough = np.sqrt(ndimage.uniform_filter(tiles.var((1, 3)), size))
    level = mean - np.median(mean)
    spread = np.median(np.abs(level)) * 1.4826 + 1e-9
    dirt = (np.abs(level) > _LEVEL * spread) | (rough > _ROUGH * np.median(rough))
    large = np.repeat(np.repeat(dirt, step, 0), step, 1)
    layers.what[:rows, :columns][large] = ICE
    return layers
