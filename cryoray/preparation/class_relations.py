"""How the 2D classes of a job stand to each other: which agree, and where in the circle their structure is.

Views of one protein resemble each other once they are turned, mirrored and moved; noise and chance blobs do
so less. Only what is finer than a quarter of the circle is compared: two smooth blobs are alike whatever
they are of. Coherent junk does agree with itself, so where the structure lies counts too: a protein has
it in the middle of the circle, and what alignment makes of noise has as much of it near the mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from scipy import fft, ndimage, sparse

from cryoray.imaging.rescale import fourier_rescale

#: Side to which the square round a job's circle is brought, px; radii and angles of the polar grid in it.
SIDE, _RADII, _ANGLES = 40, 16, 48
#: Cycles per diameter of the circle below which nothing is compared, and below which nothing counts as
#: structure. Of three, five and seven the last told kept classes from others best in simulated jobs and in
#: those that people selected.
_COMPARED, _STRUCTURE = 4.0, 7.0
#: The best of a class's correlations whose mean is its relation. Five do as well where most classes are of
#: protein, and worse where few are.
_BEST = 3
#: Shifts tried round the centres of mass, px of `SIDE`, each way; in a job of more classes than this none.
_SHIFT, _MOST_SHIFTED = 2, 300
#: The middle of the circle, and where the surroundings begin, as fractions of its radius.
_INNER, _OUTER = 0.5, 0.75
#: The part of an image's positive power that lies within its extent.
_WITHIN = 0.95
#: A job's window: so much more than its circle, or than the extent of its protein, whichever is less; but at
#: least so much of the circle, since what lies round a protein tells a class from a chance blob.
_BEYOND_CIRCLE, _BEYOND_EXTENT, _LEAST = 1.05, 1.7, 0.65
#: Rows of the matrix of correlations that are worked on together.
_TOGETHER = 64

#: Names of what `relations` finds out, in the order of its columns.
RELATED = ("relation", "centralStructure", "fineStructure", "extent")


def around(images: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
    """The square round the circle of a job, brought to `SIDE`.

    Args:
        images: float64 [n, s, s], protein bright.
        radius: of the circle, px.

    Returns:
        float64 [n, SIDE, SIDE], and the radius in its pixels.
    """
    middle = images.shape[1] // 2
    half = int(min(np.ceil(radius) + 1, middle))
    some = slice(middle - half, middle + half)
    cut = torch.from_numpy(np.ascontiguousarray(images[:, some, some], np.float32))
    return fourier_rescale(cut, SIDE).numpy().astype(np.float64), radius * SIDE / (2 * half)


def relations(images: np.ndarray, radius: float) -> np.ndarray:
    """What `RELATED` names, of the classes of one job.

    Args:
        images: float64 [n, SIDE, SIDE], protein bright, as `around` makes them of all classes.
        radius: of the circle, px.

    Returns:
        float64 [n, 4]: mean of the best correlations with other classes, turned, mirrored and moved, from -1
        to 1; log of the power of structure in the middle over that near the edge, apart from what is
        symmetric round the centre; log of that in the middle, of images whose deviation in the circle
        is 1; and the radius within which 0.95 of the positive power lies, a fraction of the circle's. NaN
        where an image is flat or has pixels that are no numbers; a class alone has no relation.
    """
    values = np.full((len(images), len(RELATED)), np.nan)
    scaled, usable = _scaled(images, radius)
    if not len(usable):
        return values
    centres = _centres(scaled)
    spectra = fft.rfft2(scaled)
    cycles = 2 * radius * np.hypot(fft.fftfreq(SIDE)[:, None], fft.rfftfreq(SIDE))
    if len(usable) > 1:
        values[usable, 0] = _best_of(spectra * _above(cycles, _COMPARED), centres, radius)
    fine = _polar(spectra * _above(cycles, _STRUCTURE), centres, radius)
    fine -= fine.mean(axis=2, keepdims=True)
    power = np.square(fine).sum(axis=2)
    inner, outer = round(_INNER * _RADII), round(_OUTER * _RADII)
    tiny = 1e-9  # of images whose deviation is 1
    middle, edge = power[:, :inner].sum(axis=1), power[:, outer:].sum(axis=1)
    values[usable, 1] = np.log((middle + tiny) / (edge + tiny))
    values[usable, 2] = np.log(middle + tiny)
    values[usable, 3] = _extents(scaled, radius)
    return values


def window(related: np.ndarray, radius: float, size: int) -> int:
    """Side, px, of the window in which the classes of a job look alike, whatever its mask and box.

    It holds the circle or, where a small protein was given a wide one, the protein and what is round it. How
    far a protein extends is the median over the half of the classes that agree best with others, since
    those of noise fill the whole circle.

    Args:
        related: float64 [n, 4], of the job's classes, as `relations` returns it.
        radius: of the circle, px.
        size: of the images, px.
    """
    relation, extent = related[:, 0], related[:, 3]
    if not np.isfinite(extent).any():
        return size
    known = np.isfinite(relation)
    if known.any():
        extent = extent[known & (relation >= np.median(relation[known]))]
    part = np.clip(_BEYOND_EXTENT * float(np.nanmedian(extent)), _LEAST, _BEYOND_CIRCLE)
    return int(np.clip(2 * round(part * radius), 8, size))


def _scaled(images: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Usable images with zero outside the circle and deviation 1 in it, and which these are, int64 [m]."""
    circle = _distance() <= radius
    finite = np.isfinite(images).all(axis=(1, 2))
    levelled = np.where(finite[:, None, None], images, 0.0)
    if not circle.all():
        levelled = levelled - levelled[:, ~circle].mean(axis=1)[:, None, None]
    levelled = levelled * circle
    deviation = levelled[:, circle].std(axis=1)
    # What rounding leaves of a constant image is no signal.
    largest = np.abs(images).max(axis=(1, 2), initial=0.0, where=finite[:, None, None])
    usable = np.flatnonzero(finite & (deviation > 1e-6 * largest))
    return levelled[usable] / deviation[usable, None, None], usable


@lru_cache(maxsize=1)
def _distance() -> np.ndarray:
    axis = np.arange(SIDE) - SIDE // 2
    return np.hypot(axis[:, None], axis)


def _centres(images: np.ndarray) -> np.ndarray:
    """Centres of mass [n, 2] (y, x) of what is brighter than the mean, px from the middle."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    bright = np.maximum(images - mean, 0)
    axis = np.arange(SIDE) - SIDE // 2
    mass = np.maximum(bright.sum(axis=(1, 2)), 1e-12)
    y, x = bright.sum(axis=2) @ axis, bright.sum(axis=1) @ axis
    return np.stack([y, x], axis=1) / mass[:, None]


def _above(cycles: np.ndarray, low: float) -> np.ndarray:
    """A filter that lets pass what has more cycles per diameter than ``low``."""
    return 1 - np.exp(-0.5 * (cycles / low) ** 2)


def _polar(spectra: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    """Images round the given centres on the polar grid, [n, radii, angles], weighted by root of area."""
    y, x = fft.fftfreq(SIDE)[:, None], fft.rfftfreq(SIDE)
    phase = centres[:, :1, None] * y + centres[:, 1:, None] * x
    moved = fft.irfft2(spectra * np.exp(2j * np.pi * phase), s=(SIDE, SIDE))
    sampled = _sampling(round(radius, 6)) @ moved.reshape(len(moved), -1).T
    return np.ascontiguousarray(sampled.T).reshape(len(moved), _RADII, _ANGLES)


@lru_cache(maxsize=16)
def _sampling(radius: float) -> sparse.csr_matrix:
    """[radii · angles, SIDE²]: linear interpolation at the points of the polar grid."""
    r = (np.arange(_RADII) + 0.5) / _RADII * 0.95 * radius
    angle = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
    y, x = (SIDE // 2 + (r[:, None] * turn).ravel() for turn in (np.sin(angle), np.cos(angle)))
    weight = np.repeat(np.sqrt(r), _ANGLES)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = y - top, x - left
    corners = [
        ((1 - down) * (1 - right), top, left),
        ((1 - down) * right, top, left + 1),
        (down * (1 - right), top + 1, left),
        (down * right, top + 1, left + 1),
    ]
    return sum(
        sparse.csr_matrix(
            (
                weight * share,
                (
                    np.arange(len(r) * _ANGLES),
                    np.clip(row, 0, SIDE - 1) * SIDE + np.clip(column, 0, SIDE - 1),
                ),
            ),
            shape=(len(r) * _ANGLES, SIDE**2),
        )
        for share, row, column in corners
    )


def _best_of(spectra: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    """Mean [n] of each class's best correlations with others over angles, mirror images and shifts."""
    n = len(spectra)
    still = _unit(_polar(spectra, centres, radius))
    best = np.full((n, n), -1.0, np.float32)
    for shift in _shifts(n):
        moved = _unit(_polar(spectra, centres + shift, radius)) if shift.any() else still
        for start in range(0, n, _TOGETHER):
            rows = slice(start, start + _TOGETHER)
            # In angle's Fourier space a turn is a phase, and a mirror image the conjugate.
            mine = still[:, rows].conj()
            for other in (moved, moved.conj()):
                found = np.matmul(mine, other.transpose(0, 2, 1))
                curve = fft.irfft(found, n=_ANGLES, axis=0)
                np.maximum(best[rows], curve.max(axis=0), out=best[rows])
    # Who was moved and who stayed must not matter.
    best = np.maximum(best, best.T)
    np.fill_diagonal(best, -np.inf)
    count = min(_BEST, n - 1)
    return np.partition(best, n - count, axis=1)[:, n - count :].mean(axis=1, dtype=np.float64)


def _unit(polar: np.ndarray) -> np.ndarray:
    """Transforms over angle [m, n, radii], complex64, of polar images [n, radii, angles] of norm 1."""
    norm = np.sqrt(np.square(polar).sum(axis=(1, 2), keepdims=True))
    unit = polar / np.where(norm > 1e-9, norm, np.inf)
    return np.ascontiguousarray(fft.rfft(unit.astype(np.float32), axis=2).transpose(2, 0, 1))


def _shifts(classes: int) -> Iterator[np.ndarray]:
    steps = (-_SHIFT, 0, _SHIFT) if classes <= _MOST_SHIFTED else (0,)
    for y in steps:
        for x in steps:
            yield np.array([y, x], np.float64)


def _extents(images: np.ndarray, radius: float) -> np.ndarray:
    """Radii [n] round the circle's centre within which `_WITHIN` of the positive power lies."""
    smooth = ndimage.gaussian_filter(images, (0, 1, 1))
    power = np.square(np.maximum(smooth, 0)).reshape(len(images), -1)
    order = np.argsort(_distance().ravel(), kind="stable")
    along = np.cumsum(power[:, order], axis=1)
    place = (along < _WITHIN * along[:, -1:]).sum(axis=1)
    at = _distance().ravel()[order][np.minimum(place, SIDE**2 - 1)]
    return np.asarray(np.minimum(at / radius, 1.0), np.float64)
