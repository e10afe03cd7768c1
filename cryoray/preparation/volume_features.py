"""What 3D classes look like: pictures of them, and what can be measured on a map without another map.

An over-fitted map is noise that the alignment brought together: its brightest voxels lie in many islands,
and its solvent varies as much as its protein. A streaky one has power in the few directions from which it
was seen. Neither can be read off the resolution that the job states: over-fitting makes that better.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from cryoray.errors import FormatError
from cryoray.imaging.pose import rotations

#: Side to which maps are brought before they are measured: what is finer says nothing about these
#: qualities, and costs time by its cube; and the largest side of pictures, px.
_MEASURED, _PICTURED = 48, 96
#: The brightest voxels that count as protein, a fraction of the particle's sphere (a globular protein
#: fills a fifth of it; noise falls into islands where a tenth of the voxels is taken), and how far from
#: them solvent begins, px.
_BRIGHTEST, _AWAY = 0.08, 2
#: Directions over which power is compared, and the half-angle of the cone round each, degrees.
_DIRECTIONS, _CONE = 64, 25.0
#: The first shell compared, and the power of a shell below which there is nothing, of the largest.
_FIRST, _NOTHING = 3, 1e-6
#: rot and tilt of the projections that are judged: along the axes, and between them.
VIEWS = np.array(
    [(0, 0, 0), (0, 90, 0), (90, 90, 0), (45, 55, 0), (135, 55, 0), (225, 55, 0), (315, 55, 0)],
    np.float64,
)
SLICES = 3
#: What `measure` measures.
MEASURED = ("connectedness", "solvent", "anisotropy")


def coarse(volume: np.ndarray, side: int) -> np.ndarray:
    """A map with its Fourier transform cropped, float32 [side, side, side]; a smaller one as it is."""
    size = len(volume)
    if size <= side:
        return volume
    spectrum = np.fft.fftshift(np.fft.fftn(volume.astype(np.float64)))
    first = size // 2 - side // 2
    some = slice(first, first + side)
    cut = np.fft.ifftshift(spectrum[some, some, some])
    return np.asarray(np.fft.ifftn(cut).real * (side / size) ** 3, np.float32)


def pictures(volume: np.ndarray) -> tuple[np.ndarray, int]:
    """The three central slices of a map, then its projections along `VIEWS`.

    Args:
        volume: float32 [side, side, side].

    Returns:
        float32 [SLICES + views, s, s], and s, which is ``side`` or smaller, covering the same field.
    """
    small = coarse(volume, _PICTURED)
    s = len(small)
    middle = s // 2
    slices = np.stack([small[middle], small[:, middle], small[:, :, middle]])
    field = torch.from_numpy(np.ascontiguousarray(small))[None, None]
    # Rows of a rotation are the image's axes in the map (x, y, z), as grid_sample names its own.
    turns = torch.from_numpy(np.transpose(rotations(VIEWS), (0, 2, 1)).astype(np.float32))
    made = []
    for turn in turns:
        affine = torch.cat([turn, torch.zeros(3, 1)], 1)[None]
        grid = functional.affine_grid(affine, [1, 1, s, s, s], align_corners=False)
        turned = functional.grid_sample(field, grid, align_corners=False)
        made.append(turned[0, 0].sum(0).numpy())
    return np.concatenate([slices, np.stack(made)]).astype(np.float32), s


def measure(volume: np.ndarray, radius: float = 0.5) -> dict[str, float]:
    """How much of a map is one body, how quiet its solvent is, how alike its directions are.

    Args:
        volume: float32 [side, side, side].
        radius: of the particle's sphere, fraction of the box.

    Returns:
        by name: ``connectedness``, the share of the brightest voxels that lie in one island, from 0 to 1;
        ``solvent``, the deviation of what is far from them, over the contrast between the two;
        ``anisotropy``, the deviation of power between directions over its mean, shells weighted alike.

    Raises:
        FormatError: it is flat, or has voxels that are not numbers.
    """
    small = coarse(volume, _MEASURED).astype(np.float64)
    side = len(small)
    axis = np.arange(side) - side // 2
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    ball = distance <= min(radius, 0.5 - 1 / side) * side
    if not np.isfinite(small).all() or small[ball].std() <= 1e-6 * np.abs(small).max(initial=0.0):
        raise FormatError("is flat, or has voxels that are not numbers")
    bright = ball & (small >= np.quantile(small[ball], 1 - _BRIGHTEST))
    islands, _ = ndimage.label(bright)
    sizes = np.bincount(islands.ravel())[1:]
    solvent = ball & ~ndimage.binary_dilation(bright, iterations=_AWAY)
    contrast = small[bright].mean() - (small[solvent].mean() if solvent.any() else 0.0)
    return {
        "connectedness": float(sizes.max() / sizes.sum()),
        "solvent": float(small[solvent].std() / contrast) if solvent.any() else 0.0,
        "anisotropy": _anisotropy(small, distance),
    }


def _anisotropy(volume: np.ndarray, distance: np.ndarray) -> float:
    side = len(volume)
    power = np.abs(np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume)))) ** 2
    shell = np.round(distance).astype(np.int64)
    inside = (shell >= _FIRST) & (shell < side // 2)
    total = np.bincount(shell[inside], power[inside])
    count = np.maximum(np.bincount(shell[inside]), 1)
    mean = total / count
    there = mean > _NOTHING * mean.max()
    inside &= there[np.minimum(shell, len(there) - 1)]
    z, y, x = (index - side // 2 for index in np.nonzero(inside))
    unit = np.stack([x, y, z], 1) / distance[inside][:, None]
    relative = power[inside] / mean[shell[inside]]
    # Outer shells have most voxels, and least that is certain.
    weight = 1 / count[shell[inside]]
    within = np.abs(unit @ _half_sphere(_DIRECTIONS).T) >= np.cos(np.radians(_CONE))
    found = (within * (weight * relative)[:, None]).sum(0) / (within * weight[:, None]).sum(0)
    return float(found.std() / found.mean())


def _half_sphere(n: int) -> np.ndarray:
    """float64 [n, 3]: directions spread evenly over half of the sphere (Fibonacci's lattice)."""
    z = (np.arange(n) + 0.5) / n
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    across = np.sqrt(1 - z * z)
    return np.stack([across * np.cos(angle), across * np.sin(angle), z], 1)
