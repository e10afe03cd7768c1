"""Fourier shell correlation of half-maps: unmasked, masked, corrected for the mask; by direction.

Definitions are those of RELION's ``relion_postprocess`` (``postprocessing.cpp``), so that numbers can be
compared with published ones: a component belongs to the shell to which its radius rounds, and sums run over
the half of the transform that a real map has, in which the plane x = 0 is there twice.
(torch-fourier-shell-correlation spreads components between two shells, which changes single shells by up to
0.06, and takes thirty times as long on 128³.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage

from cryoray.errors import InputError

#: Half-map FSC at which a resolution is given (Rosenthal and Henderson 2003), and that against a true map.
THRESHOLDS = (0.143, 0.5)
#: Phases are randomised from the first shell below this (Chen et al. 2013, as RELION does it).
RANDOMISE_BELOW = 0.8
#: Shells after the first randomised one which are left uncorrected, for the artefacts there.
_LATER = 2
#: Above this, the mask itself correlates at the resolution given, and RELION warns.
MASK_CORRELATES = 0.1
#: The automatic mask: low-pass in Å, voxels it grows by, voxels of its soft edge (RELION's tutorial).
LOWPASS, EXTEND, SOFT_EDGE = 15.0, 3.0, 6.0
#: Half-angle of a cone of directional FSC, degrees (Tan et al. 2017), and directions over half a sphere.
CONE, DIRECTIONS = 20.0, 60


@dataclass(frozen=True, slots=True)
class Resolution:
    """Where a curve crosses a threshold, Å; None where it is below from the start.

    Attributes:
        last_shell: of the last shell before the first one below the threshold: RELION's definition.
        interpolated: of the crossing, linear between that shell and the next.
        nyquist: whether the curve never falls below, so that the sampling is the limit.
    """

    last_shell: float | None
    interpolated: float | None
    nyquist: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class HalfMapFsc:
    """The curves of two half-maps, one value for each shell from 0 to Nyquist.

    Attributes:
        frequency: float64 [s], 1/Å.
        unmasked: float64 [s].
        masked: float64 [s], None without a mask, and so the two after it.
        phase_randomised: float64 [s], of masked maps whose phases are random from a shell on: what the
            mask alone correlates. The mean of several draws.
        corrected: float64 [s], masked without what the mask added; where that falls below 0.143 before the
            unmasked curve does, and the mask is not forced, the unmasked curve, as in RELION.
        randomised_from: Å.
        warnings: sentences about what to distrust.
    """

    frequency: np.ndarray
    unmasked: np.ndarray
    masked: np.ndarray | None = None
    phase_randomised: np.ndarray | None = None
    corrected: np.ndarray | None = None
    randomised_from: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> np.ndarray:
        """The curve by which the resolution is given: corrected where there is one."""
        found = (self.corrected, self.masked, self.unmasked)
        return next(curve for curve in found if curve is not None)

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """The curves there are, by their names in ``metrics.json``."""
        named = {
            "unmasked": self.unmasked,
            "masked": self.masked,
            "phase_randomised": self.phase_randomised,
            "corrected": self.corrected,
        }
        return {name: curve for name, curve in named.items() if curve is not None}

    def resolution(self, threshold: float = THRESHOLDS[0]) -> Resolution:
        """Where ``best`` crosses."""
        return resolution(self.frequency, self.best, threshold)


@dataclass(frozen=True, slots=True, eq=False)
class Directional:
    """FSC in cones.

    Attributes:
        directions: float64 [d, 3], unit vectors x, y, z over half a sphere.
        fsc: float64 [d, s].
        resolution: float64 [d], Å at 0.143, interpolated; NaN where a cone is below from the start.
        area_ratio: smallest area under a cone's FSC over the largest: 1 is isotropic, and junk views or a
            preferred orientation lower it.
        worst: float64 [3], the direction of the smallest.
    """

    directions: np.ndarray
    fsc: np.ndarray
    resolution: np.ndarray
    area_ratio: float
    worst: np.ndarray


@lru_cache(maxsize=4)
def shells(shape: tuple[int, ...]) -> torch.Tensor:
    """int64, as `torch.fft.rfftn` of ``shape`` flattened: the shell of each component.

    Components beyond Nyquist are in shell ``min(shape) // 2 + 1``.
    """
    return torch.round(radii(shape)).long().clamp(max=min(shape) // 2 + 1).flatten()


def radii(shape: tuple[int, ...]) -> torch.Tensor:
    """Float32, as `torch.fft.rfftn` of ``shape``: distance of each component from the origin, in shells."""
    squared = torch.zeros(())
    for axis, side in enumerate(shape):
        last = axis == len(shape) - 1
        place = (torch.fft.rfftfreq if last else torch.fft.fftfreq)(side) * min(shape)
        squared = squared[..., None] + torch.round(place, decimals=4) ** 2
    return squared.sqrt()


def correlation(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """FSC of two maps, or FRC of two images.

    Args:
        a: float [z, y, x] or [y, x].
        b: the same.

    Returns:
        float64 [min(shape) // 2 + 1], shell 0 first; 0 where a shell is empty.
    """
    return transformed_correlation(torch.fft.rfftn(a), torch.fft.rfftn(b), tuple(a.shape))


def transformed_correlation(
    a: torch.Tensor, b: torch.Tensor, shape: tuple[int, ...], within: torch.Tensor | None = None
) -> np.ndarray:
    """`correlation` of what are transforms already.

    Args:
        a: complex, as `torch.fft.rfftn` of ``shape``.
        b: the same.
        shape: of the maps.
        within: bool, flat, the components that count; None: all.
    """
    n = min(shape) // 2 + 2
    a, b, index = a.flatten(), b.flatten(), shells(shape).to(a.device)
    if within is not None:
        a, b, index = a[within], b[within], index[within]
    cross, mine, other = (
        torch.bincount(index, value.double(), n)[:-1]
        for value in ((a * b.conj()).real, a.abs().square(), b.abs().square())
    )
    power = (mine * other).sqrt()
    return torch.where(power > 0, cross / power, 0.0).cpu().numpy()


def frequencies(side: int, pixel_size: float) -> np.ndarray:
    """1/Å of each shell of a box of ``side`` px."""
    return np.arange(side // 2 + 1) / (side * pixel_size)


def resolution(frequency: np.ndarray, fsc: np.ndarray, threshold: float) -> Resolution:
    """Where a curve falls below a threshold for the first time.

    Args:
        frequency: float [s], 1/Å, rising.
        fsc: float [s].
        threshold: 0.143 between half-maps, 0.5 against a true map.
    """
    # Shell 0 is the mean, which reconstructions leave out.
    below = np.flatnonzero(fsc[1:] < threshold) + 1
    if not len(below):
        return Resolution(1 / frequency[-1], 1 / frequency[-1], nyquist=True)
    first = int(below[0])
    if first == 1:
        return Resolution(None, None)
    before, after = fsc[first - 1], fsc[first]
    part = (before - threshold) / (before - after)
    crossing = frequency[first - 1] + part * (frequency[first] - frequency[first - 1])
    return Resolution(float(1 / frequency[first - 1]), float(1 / crossing))


def half_map_fsc(
    half1: torch.Tensor,
    half2: torch.Tensor,
    pixel_size: float,
    mask: torch.Tensor | None = None,
    *,
    draws: int = 5,
    seed: int = 0,
    force_mask: bool = False,
) -> HalfMapFsc:
    """All curves of two half-maps.

    A mask can make the FSC worse: it cuts into the structure, or holds mostly solvent. Then RELION takes
    the unmasked curve as the true one, and warns, unless it is given ``--force_mask``.

    Args:
        half1: float32 [side, side, side].
        half2: the same.
        pixel_size: Å/px.
        mask: from 0 to 1, of the same shape.
        draws: of random phases. RELION draws once, and so differs from itself by up to 0.07 between
            seeds; here the mean of some is taken.
        seed: of the draws.
        force_mask: keep the corrected curve even where the unmasked one reaches further.
    """
    shape = tuple(half1.shape)
    frequency = frequencies(min(shape), pixel_size)
    spectra = [torch.fft.rfftn(half) for half in (half1, half2)]
    unmasked = transformed_correlation(spectra[0], spectra[1], shape)
    if mask is None:
        return HalfMapFsc(frequency, unmasked)
    masked = _meaning_origin(correlation(half1 * mask, half2 * mask))
    low = np.flatnonzero(unmasked[1:] < RANDOMISE_BELOW) + 1
    if not len(low):
        warning = (
            f"the unmasked FSC never falls below {RANDOMISE_BELOW}: masking is not corrected for"
        )
        return HalfMapFsc(frequency, unmasked, masked, warnings=(warning,))
    start = int(low[0])
    generator = torch.Generator().manual_seed(seed)
    noise = np.mean(
        [
            correlation(*(randomise(half, shape, start, generator) * mask for half in spectra))
            for _ in range(draws)
        ],
        axis=0,
    )
    noise = _meaning_origin(noise)
    corrected = correct(masked, noise, start)
    further, reached = _reaches(unmasked), _reaches(corrected)
    if further > reached and not force_mask:
        corrected = unmasked.copy()
    found = HalfMapFsc(frequency, unmasked, masked, noise, corrected, 1 / frequency[start])
    if further <= reached:
        return replace(found, warnings=tuple(_doubts(noise, reached)))
    kept = "kept all the same" if force_mask else "taken as the true one, as in RELION"
    warning = (
        f"the unmasked FSC reaches further than the corrected one (shell {further}, not {reached}): the mask"
        f" cuts into the protein, or holds little of it; the {'corrected' if force_mask else 'unmasked'}"
        f" curve is {kept}"
    )
    return replace(found, warnings=(warning,))


def _reaches(curve: np.ndarray) -> int:
    """The last shell before the first one below 0.143, shell 0 included, as RELION counts here."""
    below = np.flatnonzero(curve < THRESHOLDS[0])
    return max(int(below[0]) - 1, 0) if len(below) else len(curve) - 1


def _meaning_origin(curve: np.ndarray) -> np.ndarray:
    """A curve whose shell 0, the mean, is 1 where it is not above 0, as in RELION."""
    if curve[0] <= 0:
        curve[0] = 1.0
    return curve


def correct(masked: np.ndarray, phase_randomised: np.ndarray, start: int) -> np.ndarray:
    """The masked FSC less what the mask alone gives: (t - n) / (1 - n) (Chen et al. 2013).

    Args:
        masked: float [s].
        phase_randomised: float [s].
        start: first shell of random phases; this one and the next stay as they are, as in RELION.
    """
    shell = np.arange(len(masked))
    with np.errstate(divide="ignore", invalid="ignore"):
        corrected = (masked - phase_randomised) / (1 - phase_randomised)
    return np.where((shell < start + _LATER) | ~np.isfinite(corrected), masked, corrected)


def randomise(
    spectrum: torch.Tensor, shape: tuple[int, ...], start: int, generator: torch.Generator
) -> torch.Tensor:
    """The map of a transform whose phases are random from radius ``start`` on; amplitudes stay."""
    angle = torch.rand(spectrum.shape, generator=generator) * math.tau
    beyond = radii(shape) >= start
    return torch.fft.irfftn(
        torch.where(beyond, torch.polar(spectrum.abs(), angle), spectrum), s=shape
    )


def _doubts(phase_randomised: np.ndarray, shell: int) -> list[str]:
    """What RELION warns of, too: how much the mask alone correlates at the resolution given."""
    noise = float(phase_randomised[shell])
    if noise <= MASK_CORRELATES:
        return []
    return [
        f"at the resolution given, the mask alone correlates ({noise:.2f} with random phases):"
        " a softer mask with less detail would make it trustworthy"
    ]


def automatic_mask(
    volume: torch.Tensor,
    pixel_size: float,
    threshold: float | None = None,
    *,
    lowpass: float = LOWPASS,
    extend: float = EXTEND,
    soft_edge: float = SOFT_EDGE,
) -> tuple[torch.Tensor, float]:
    """A soft mask of the protein, as ``relion_mask_create`` makes it.

    The map is low-passed, what lies at the threshold or above is grown, and a raised cosine goes round it.

    Args:
        volume: float32 [side, side, side], the mean of the half-maps.
        pixel_size: Å/px.
        threshold: density; None: Otsu's between protein and solvent within the sphere of the box, without
            what is much smaller than the largest piece.
        lowpass: Å; never below four pixels.
        extend: px.
        soft_edge: px.

    Returns:
        float32 [side, side, side] from 0 to 1, and the threshold.

    Raises:
        InputError: nothing lies above the threshold.
    """
    from skimage.filters import threshold_otsu

    smooth = low_passed(volume, pixel_size, max(lowpass, 4 * pixel_size)).numpy()
    side = len(smooth)
    axis = np.arange(side) - side // 2
    ball = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 <= (side / 2 - 1) ** 2
    automatic = threshold is None
    level = float(threshold_otsu(smooth[ball])) if threshold is None else threshold
    seed = smooth >= level
    if automatic:
        labels, _ = ndimage.label(seed & ball)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        seed = np.isin(labels, np.flatnonzero(sizes >= 0.05 * max(sizes.max(), 1)))
    if not seed.any():
        raise InputError(
            f"no voxel of the map is above the mask's threshold {level:.4g}",
            remedy="give a lower --mask-threshold, or a mask",
        )
    grown = ndimage.distance_transform_edt(~seed) < extend if extend > 0 else seed
    away = ndimage.distance_transform_edt(~(grown | seed))
    edge = 0.5 + 0.5 * np.cos(np.pi * away / max(soft_edge, 1e-9))
    return torch.from_numpy(np.where(away < soft_edge, edge, 0.0).astype(np.float32)), level


def low_passed(volume: torch.Tensor, pixel_size: float, limit: float) -> torch.Tensor:
    """A map or image without what is finer than ``limit`` Å; a raised cosine of two shells is its edge."""
    shape = tuple(volume.shape)
    edge = round(min(shape) * pixel_size / limit)
    gain = 0.5 + 0.5 * torch.cos(torch.pi * ((radii(shape) - edge + 1) / 2).clamp(0, 1))
    return torch.fft.irfftn(torch.fft.rfftn(volume) * gain, s=shape)


def directional_fsc(
    half1: torch.Tensor,
    half2: torch.Tensor,
    pixel_size: float,
    *,
    cone: float = CONE,
    directions: int = DIRECTIONS,
) -> Directional:
    """FSC in cones round directions spread evenly over half a sphere.

    Args:
        half1: float32 [side, side, side], masked where there is a mask.
        half2: the same.
        pixel_size: Å/px.
        cone: half-angle, degrees.
        directions: how many.
    """
    shape = tuple(half1.shape)
    side = min(shape)
    a, b = torch.fft.rfftn(half1).flatten(), torch.fft.rfftn(half2).flatten()
    index = shells(shape)
    inside = (index > 0) & (index <= side // 2)
    z, y = (torch.fft.fftfreq(length) for length in shape[:2])
    grid = torch.meshgrid(z, y, torch.fft.rfftfreq(shape[2]), indexing="ij")
    place = torch.stack(grid[::-1], -1).reshape(-1, 3)[inside]
    place = place / torch.linalg.vector_norm(place, dim=1, keepdim=True)
    index = index[inside]
    values = [
        value[inside].double()
        for value in ((a * b.conj()).real, a.abs().square(), b.abs().square())
    ]
    axes = half_sphere(directions)
    frequency = frequencies(side, pixel_size)
    least = math.cos(math.radians(cone))
    curves = np.empty((directions, side // 2 + 1))
    for number, direction in enumerate(torch.from_numpy(axes).float()):
        near = (place @ direction).abs() >= least
        cross, mine, other = (
            torch.bincount(index[near], value[near], side // 2 + 1) for value in values
        )
        power = (mine * other).sqrt()
        # A cone has nothing in the shells about the origin; they correlate in any map.
        curves[number] = torch.where(power > 0, cross / power, 1.0).numpy()
    found = [resolution(frequency, curve, THRESHOLDS[0]).interpolated for curve in curves]
    areas = np.array([_area(frequency, curve) for curve in curves])
    return Directional(
        directions=axes,
        fsc=curves,
        resolution=np.array([np.nan if limit is None else limit for limit in found]),
        area_ratio=float(areas.min() / areas.max()) if areas.max() > 0 else 0.0,
        worst=axes[int(areas.argmin())],
    )


def _area(frequency: np.ndarray, curve: np.ndarray) -> float:
    """Under a curve until it falls below 0.143; what comes later is noise that differs between cones."""
    below = np.flatnonzero(curve < THRESHOLDS[0])
    end = int(below[0]) if len(below) else len(curve)
    return float(np.trapezoid(curve[:end], frequency[:end])) if end > 1 else 0.0


def half_sphere(n: int) -> np.ndarray:
    """Unit vectors x, y, z spread evenly over the half with z >= 0 (Fibonacci's spiral): float64 [n, 3]."""
    step = np.arange(n) + 0.5
    height = 1 - step / n
    angle = math.pi * (1 + math.sqrt(5)) * step
    flat = np.sqrt(1 - height**2)
    return np.stack([flat * np.cos(angle), flat * np.sin(angle), height], 1)
