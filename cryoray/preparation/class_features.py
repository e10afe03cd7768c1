"""What can be measured on 2D class averages: how much of the circle is protein, how bright, how sharp.

The quantities are those of RELION's class ranker (Kimanius et al., Biochem. J. 478, 4169 (2021), and
the program's class_ranker.cpp, in whose terms they are named), made to travel between programs: an
image's zero is its level outside the particle's circle, and the unit of grey is the job's own, the
median of its classes' standard deviations within the circle. Areas are fractions of the circle, and
sums are divided by it. So neither the grey scale nor the sampling of a job changes a number, only
how its classes differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import fft, ndimage

from cryoray.errors import FormatError
from cryoray.formats import rln
from cryoray.formats.class_selection import class_numbers, particle_counts
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.relion import known
from cryoray.formats.source import Source
from cryoray.formats.star import StarFile, parse
from cryoray.imaging.rescale import fourier_rescale
from cryoray.preparation.class_relations import RELATED, SIDE, around, relations, window
from cryoray.records import Stack

#: Å/px at which classes are looked at, the low-pass filter of the masks in Å and its edge in Fourier
#: pixels, and the width of the ring within the circle's edge: RELION's values.
_PIXEL_SIZE, _LOWPASS, _EDGE, _RING = 4.0, 25.0, 2.0, 0.95
#: Protein is brighter than this many standard deviations of the filtered image; an island of it
#: counts if it fills this fraction of the middle, which reaches to this fraction of the radius.
_BRIGHT, _FILLS, _MIDDLE = 0.05, 0.1, 0.6
#: Diameter taken for particles where neither they nor the pixel size are known, Å.
_TYPICAL = 200.0
#: Grey levels between an image's extremes that entropy tells apart.
_LEVELS = 64
#: Classes of fewer particles have no resolution worth weighting (RELION leaves them out).
_FEWEST_PARTICLES = 10.0
#: Images looked at to find a job's circle; beyond it they vary less than this fraction of what they
#: do within.
_LOOKED_AT, _FLAT = 64, 0.03
#: Most images, and most pixels, that are worked on together; and the side of the largest image, px.
_CHUNK, _PIXELS, _LARGEST = 64, 1 << 22, 512

_MOMENTS = ("Sum", "Mean", "Stddev", "Skew", "Kurt")
#: Names of what is measured on the image, in the order of :func:`_measure`'s columns.
MEASURED = (
    *(f"ring{moment}" for moment in _MOMENTS[1:]),
    *(f"protein{moment}" for moment in _MOMENTS),
    *(f"solvent{moment}" for moment in _MOMENTS),
    "proteinArea",
    "proteinCAR",
    "scatteredSignal",
    "edgeSignal",
    "relativeSignalIntensity",
    *(f"lowpassFilteredImage{name}" for name in ("Mean", "Stddev", "Min", "Max")),
    "totalEntropy",
    "proteinEntropy",
    "solventEntropy",
)
#: Those in units of grey.
_GREY = tuple(
    name.endswith(("Sum", "Mean", "Stddev", "Min", "Max", "Intensity")) for name in MEASURED
)
#: Names of what the job's files say.
COUNTED = ("particleNr", "weightedResolution", "relativeResolution")
#: Name of the side, px, of the window in which the classes of a job look alike.
WINDOW = "jobWindow"


def jobs(source: Source) -> np.ndarray:
    """int32 [n]: which job each class is of: RELION and cryoSPARC keep a job's classes in one stack."""
    return source.stack


def class_columns(
    source: Source, diameter: float | None = None, *, invert: bool = False
) -> dict[str, np.ndarray]:
    """What ``MEASURED``, ``RELATED`` and ``COUNTED`` name, of every class of a source.

    Args:
        source: of 2D classes.
        diameter: of the particle, Å, where the job's files do not say; None for the circle beyond
            which the classes are masked, or the whole box.
        invert: whether protein is dark.

    Returns:
        float64 [n] by name, with `WINDOW`; NaN where a stack or an image cannot be read, or is flat.
    """
    table = {name: np.full(len(source), np.nan) for name in (*MEASURED, *RELATED, *COUNTED, WINDOW)}
    for index, path in enumerate(source.stacks):
        rows = np.flatnonzero((source.stack == index) & (source.frame >= 0))
        try:
            stack = read_header(path)
        except FormatError:
            continue
        rows = rows[source.frame[rows] < stack.count]
        if not len(rows):
            continue
        job = _JobImages.of(path, source.path)
        stated = source.pixel_size[rows]
        pixel_size = float(stated[0]) if np.isfinite(stated[0]) else stack.pixel_size
        _count(table, rows, source, job, stack.width, pixel_size)
        try:
            values, side = _measured(
                stack, source.frame[rows], pixel_size, job.diameter or diameter, invert
            )
        except FormatError:
            continue
        for name, column in zip((*MEASURED, *RELATED), values.T, strict=True):
            table[name][rows] = column
        table[WINDOW][rows] = side
    return table


@dataclass(frozen=True, slots=True, eq=False)
class _JobImages:
    """What the files beside a stack of classes say.

    Attributes:
        diameter: of the particle, Å.
        box: in which the classes were made, px.
        assigned: int64, the best class of each particle, from 1.
    """

    diameter: float | None = None
    box: int | None = None
    assigned: np.ndarray | None = None

    @classmethod
    def of(cls, stack: Path, source: Path) -> _JobImages:
        """The job that wrote ``stack``; of ``source``, a model of the same job may be it."""
        root = re.sub(r"_classes$", "", stack.stem)
        if root == stack.stem and source.name.endswith("_model.star"):
            root = source.name.removesuffix("_model.star")
        optimiser, model, data = (
            _parsed(stack.with_name(f"{root}_{name}.star"))
            for name in ("optimiser", "model", "data")
        )
        options = _parsed(stack.with_name("job.star"))
        diameter = _value(optimiser, "optimiser_general", rln.PARTICLE_DIAMETER) or _option(
            options, "particle_diameter"
        )
        box = _value(model, "model_general", "rlnOriginalImageSize")
        return cls(diameter, int(box) if box else None, _assigned(data))


def _parsed(path: Path) -> StarFile | None:
    try:
        return parse(path) if path.is_file() else None
    except FormatError:
        return None


def _value(star: StarFile | None, table: str, column: str) -> float | None:
    """A positive number of a table with one row, None where there is none."""
    block = None if star is None else star.get(table)
    if block is None or column not in block.columns or not len(block):
        return None
    value = float(block.numbers(column)[0])
    return value if np.isfinite(value) and value > 0 else None


def _option(star: StarFile | None, name: str) -> float | None:
    """A positive number among the options of RELION's job.star."""
    block = None if star is None else star.get("joboptions_values")
    if block is None or rln.JOB_OPTION_VARIABLE not in block.columns:
        return None
    options = block.read([rln.JOB_OPTION_VARIABLE], [rln.JOB_OPTION_VALUE])
    names = options.strings[rln.JOB_OPTION_VARIABLE].to_pylist()
    value = dict(zip(names, options.numbers[rln.JOB_OPTION_VALUE].tolist(), strict=True)).get(name)
    return value if value is not None and np.isfinite(value) and value > 0 else None


def _assigned(data: StarFile | None) -> np.ndarray | None:
    try:
        return None if data is None else class_numbers(data)
    except FormatError:
        return None


def _count(
    table: Mapping[str, np.ndarray],
    rows: np.ndarray,
    source: Source,
    job: _JobImages,
    width: int,
    pixel_size: float | None,
) -> None:
    """Fill in ``COUNTED`` for the rows of one job."""
    if job.assigned is not None:
        frame = source.frame[rows]
        table["particleNr"][rows] = particle_counts(job.assigned, int(frame.max()) + 1)[frame]
    resolution = source.metadata.get(rln.ESTIMATED_RESOLUTION)
    if resolution is None:
        return
    resolution = known(resolution[rows])
    resolution = np.where(resolution == 0, np.nan, resolution)
    if pixel_size is not None:
        table["relativeResolution"][rows] = resolution / ((job.box or width) * pixel_size)
    share = source.metadata.get(rln.CLASS_DISTRIBUTION)
    if share is not None and job.assigned is not None:
        particles = np.maximum(share[rows] * len(job.assigned), _FEWEST_PARTICLES)
        table["weightedResolution"][rows] = 1 / (resolution**2 * np.log(particles))


def _measured(
    stack: Stack,
    frames: np.ndarray,
    pixel_size: float | None,
    diameter: float | None,
    invert: bool,
) -> tuple[np.ndarray, int]:
    """float64 [n, MEASURED and RELATED] of images of one job, NaN where one is flat or none; its window."""
    half = min(stack.width, stack.height) / 2
    if diameter is not None and pixel_size is not None:
        radius = min(half, diameter / pixel_size / 2)
    else:
        spread = np.unique(np.linspace(0, len(frames) - 1, _LOOKED_AT).round().astype(np.int64))
        radius = _circle(_finite(read_frames(stack, frames[spread])))
    if pixel_size is None:
        pixel_size = _TYPICAL / (2 * radius)
    side = min(stack.width, stack.height)
    coarse = 2 * round(side * pixel_size / _PIXEL_SIZE / 2)
    size = min(max(coarse, 32), side, _LARGEST)
    geometry = _Geometry(size, radius * size / side, pixel_size * side / size)
    values = np.full((len(frames), len(MEASURED)), np.nan)
    units = np.full(len(frames), np.nan)
    circles = np.empty((len(frames), SIDE, SIDE))
    for some, images in _chunks(stack, frames, side):
        rescaled = fourier_rescale(torch.from_numpy(images), size).numpy().astype(np.float64)
        bright = -rescaled if invert else rescaled
        values[some], units[some] = _measure(bright, geometry)
        circles[some], within = around(bright, geometry.radius)
    unit = float(np.nanmedian(units)) if np.isfinite(units).any() else 1.0
    values[:, _GREY] /= unit
    related = relations(circles, within)
    return np.column_stack([values, related]), window(related, radius, side)


def _chunks(stack: Stack, frames: np.ndarray, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some rows at a time, and the middle square of their images, NaN for what is none."""
    top, left = stack.height // 2 - side // 2, stack.width // 2 - side // 2
    together = min(_CHUNK, max(1, _PIXELS // (stack.width * stack.height)))
    for start in range(0, len(frames), together):
        some = np.arange(start, min(start + together, len(frames)))
        images = read_frames(stack, frames[some])
        yield some, np.ascontiguousarray(images[:, top : top + side, left : left + side])


def _finite(images: np.ndarray) -> np.ndarray:
    return images[np.isfinite(images).all(axis=(1, 2))].astype(np.float64)


def _circle(images: np.ndarray) -> float:
    """Radius, px, beyond which images [n, h, w] are flat: half the box where they nowhere are."""
    height, width = images.shape[1:]
    radii = _radii(height, width)
    half = min(height, width) // 2
    if not len(images):
        return float(half)
    level = images[:, radii >= half].mean(axis=1)
    ring = np.minimum(np.ceil(radii), half).astype(np.int64).ravel()
    variance = np.square(images - level[:, None, None]).mean(axis=0).ravel()
    varies = np.sqrt(np.bincount(ring, variance) / np.bincount(ring))
    inside = np.flatnonzero(varies > _FLAT * varies.max())
    return float(max(inside[-1] if len(inside) else half, 4))


def _radii(height: int, width: int) -> np.ndarray:
    """Distance of each pixel from the centre, which is pixel ``size // 2``."""
    return np.hypot((np.arange(height) - height // 2)[:, None], np.arange(width) - width // 2)


class _Geometry:
    """Masks and filters that all images of a job share.

    Args:
        size: side of the images, px.
        radius: of the particle's circle, px.
        pixel_size: Å/px.
    """

    def __init__(self, size: int, radius: float, pixel_size: float) -> None:
        radii = _radii(size, size)
        self.radius = radius
        self.circle = radii <= radius
        self.outside = ~self.circle
        self.ring = self.circle & (radii >= _RING * radius)
        self.middle = radii <= _MIDDLE * radius
        self.edge = np.round(radii) == np.round(radius)
        frequency = size * np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size))
        low = size * pixel_size / _LOWPASS - _EDGE / 2
        self.lowpass = 0.5 + 0.5 * np.cos(np.pi * np.clip((frequency - low) / _EDGE, 0, 1))


def protein_masks(filtered: np.ndarray, geometry: _Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Where protein is, and bright islands that are too far from the middle to be it.

    Args:
        filtered: float64 [n, h, w], low-pass filtered, zero at the level outside the circle.
        geometry: of the job.

    Returns:
        bool [n, h, w] each. An island is joined by its pixels' edges and lies within the circle.
    """
    threshold = _BRIGHT * filtered.std(axis=(1, 2), keepdims=True)
    bright = (filtered > threshold) & geometry.circle
    plane = np.zeros((3, 3, 3), bool)
    plane[1] = ndimage.generate_binary_structure(2, 1)
    islands, number = ndimage.label(bright, plane)
    central = np.bincount(islands[:, geometry.middle].ravel(), minlength=number + 1)
    central[0] = 0
    protein = central > _FILLS * np.count_nonzero(geometry.middle)
    return protein[islands], ((central > 0) & ~protein)[islands]


def _measure(images: np.ndarray, geometry: _Geometry) -> tuple[np.ndarray, np.ndarray]:
    """float64 [n, len(MEASURED)] in the images' own greys, and [n] their deviation in the circle."""
    circle = np.broadcast_to(geometry.circle, images.shape)
    area = np.count_nonzero(geometry.circle)
    usable = np.isfinite(images).all(axis=(1, 2))
    images = np.where(usable[:, None, None], images, 0.0)
    images = images - images[:, geometry.outside].mean(axis=1)[:, None, None]
    deviation = images[:, geometry.circle].std(axis=1)
    # What rounding leaves of a constant image is no signal.
    usable &= deviation > 1e-6 * np.abs(images).max(axis=(1, 2), initial=0.0)
    filtered = fft.irfft2(fft.rfft2(images) * geometry.lowpass, s=images.shape[1:])
    protein, scattered = protein_masks(filtered, geometry)
    solvent = circle & ~protein
    rings = _moments(images, np.broadcast_to(geometry.ring, images.shape))
    proteins, solvents = _moments(images, protein), _moments(images, solvent)
    pixels = protein.sum(axis=(1, 2))
    stray = scattered.sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        outline = (protein & ~ndimage.binary_erosion(protein, _neighbours())).sum(axis=(1, 2))
        roundness = np.where(pixels > 0, outline / (2 * np.sqrt(np.pi * pixels)), np.nan)
    sums = np.nan_to_num(proteins[:, 0])
    relative = (sums - np.nan_to_num(solvents[:, 1]) * pixels) / area
    values = np.column_stack(
        [
            rings[:, 1:],
            proteins[:, :1] / area,
            proteins[:, 1:],
            solvents[:, :1] / area,
            solvents[:, 1:],
            pixels / area,
            roundness,
            stray / (stray + pixels + 1),
            protein[:, geometry.edge].mean(axis=1),
            relative,
            filtered.mean(axis=(1, 2)),
            filtered.std(axis=(1, 2)),
            filtered.min(axis=(1, 2)),
            filtered.max(axis=(1, 2)),
            _entropy(images, np.ones_like(protein)),
            _entropy(images, protein),
            _entropy(images, solvent),
        ]
    )
    values[~usable] = np.nan
    return values, np.where(usable, deviation, np.nan)


def _neighbours() -> np.ndarray:
    """A pixel and the eight around it, in its own image."""
    square = np.zeros((3, 3, 3), bool)
    square[1] = True
    return square


def _moments(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float64 [n, 5]: sum, mean, standard deviation, skewness and kurtosis (3 for a normal law).

    All NaN where the mask is empty, the last two where the image is flat in it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        count = mask.sum(axis=(1, 2)).astype(np.float64)
        count[count == 0] = np.nan
        total = np.where(mask, images, 0.0).sum(axis=(1, 2))
        mean = total / count
        residual = np.where(mask, images - mean[:, None, None], 0.0)
        square = residual * residual
        variance = square.sum(axis=(1, 2)) / count
        third = (square * residual).sum(axis=(1, 2)) / count
        fourth = (square * square).sum(axis=(1, 2)) / count
        moments = np.stack(
            [
                np.where(np.isnan(count), np.nan, total),
                mean,
                np.sqrt(variance),
                third / variance**1.5,
                fourth / variance**2,
            ],
            axis=1,
        )
    return np.where(np.isfinite(moments), moments, np.nan)


def _entropy(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float64 [n]: Shannon's, bits, of the histogram under the mask between the mask's extremes."""
    n = len(images)
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(mask, images, np.inf).min(axis=(1, 2), keepdims=True)
        high = np.where(mask, images, -np.inf).max(axis=(1, 2), keepdims=True)
        scaled = np.where(mask & (high > low), (images - low) / (high - low), 0.0)
        level = np.minimum((scaled * _LEVELS).astype(np.int64), _LEVELS - 1)
        level += _LEVELS * np.arange(n)[:, None, None]
        counts = np.bincount(level[mask], minlength=n * _LEVELS).reshape(n, _LEVELS)
        share = counts / counts.sum(axis=1, keepdims=True)
        return -np.where(share > 0, share * np.log2(share), share * 0.0).sum(axis=1)


def rank(values: np.ndarray, job: np.ndarray) -> np.ndarray:
    """float64 [n]: place of each value among those of its job, 0 the lowest, 1 the highest.

    Equal values share the mean of their places. NaN where the value is, or where fewer than five
    are known, or all are equal.
    """
    return _by_job(values, job, _rank)


def robust_z(values: np.ndarray, job: np.ndarray) -> np.ndarray:
    """float64 [n]: distance from the job's median, in robust standard deviations.

    That is 1.4826 times the median absolute deviation, or, where half of the values are equal (as
    resolutions in whole shells often are), 1.2533 times the mean one (Iglewicz and Hoaglin, How to
    detect and handle outliers, 1993). NaN where the value is, or where fewer than five are known, or
    all are equal.
    """
    return _by_job(values, job, _robust_z)


#: Of fewer classes a job has neither ranks nor a scale.
_FEWEST = 5


def _by_job(
    values: np.ndarray, job: np.ndarray, measure: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    found = np.full(len(values), np.nan)
    there = np.isfinite(values) & (job >= 0)
    for one in np.unique(job[there]).tolist():
        here = np.flatnonzero(there & (job == one))
        if len(here) >= _FEWEST:
            found[here] = measure(np.asarray(values[here], np.float64))
    return found


def _rank(values: np.ndarray) -> np.ndarray:
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    if len(count) == 1:
        return np.full(len(values), np.nan)
    place = np.cumsum(count) - (count + 1) / 2
    return place[which] / (len(values) - 1)


def _robust_z(values: np.ndarray) -> np.ndarray:
    distance = values - np.median(values)
    apart = np.abs(distance)
    deviation = 1.4826 * np.median(apart)
    if deviation <= 1e-9 * apart.max():  # what rounding leaves of equal values
        deviation = 1.2533 * apart.mean()
    return distance / deviation if deviation > 0 else np.full(len(values), np.nan)
