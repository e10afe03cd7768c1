"""Maps from particles with poses: direct Fourier inversion with CTF weighting, as sums that can be added up.

Each image is a central slice of the map's transform (projection-slice theorem). Its components, times the
CTF, are spread over the eight nearest voxels of a transform padded twofold, and CTF² likewise; the quotient
of the sums is the map. Both sums are plain sums over particles, so that parts which different workers made
are added, and so are the kept and the discarded where all are wanted. Conventions are RELION's
(``euler.cpp``, ``ctf.cpp``, ``backprojector.cpp``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from cryoray.errors import SettingsError
from cryoray.formats import rln
from cryoray.imaging.pose import rotations

#: Oversampling of the transform that particles are inserted into.
PADDING = 2
#: Of the density compensation: RELION's ten.
ITERATIONS = 10
#: Without iterations, a voxel's weight is at least this much of the mean.
_LEAST_WEIGHT = 1e-3
#: Voxels over which the map's corners fade.
_EDGE = 3.0
#: Images inserted at a time, which bounds memory.
BATCH = 64


@dataclass(frozen=True, slots=True, eq=False)
class Poses:
    """What is known of particles beside their images.

    Attributes:
        angles: float64 [n, 3], rot, tilt, psi in degrees.
        origins: float64 [n, 2], x and y in Å by which the image is to be moved to be centred.
        ctf: float64 [n, 9], as `CTF_COLUMNS` has them; None: images without a CTF.
        pixel_size: Å/px.
        premultiplied: whether the images were multiplied by their CTF already.
    """

    angles: np.ndarray
    origins: np.ndarray
    ctf: np.ndarray | None
    pixel_size: float
    premultiplied: bool = False

    def __len__(self) -> int:
        return len(self.angles)

    def __getitem__(self, rows: np.ndarray | slice) -> Poses:
        """The poses of some."""
        ctf = None if self.ctf is None else self.ctf[rows]
        return Poses(
            self.angles[rows], self.origins[rows], ctf, self.pixel_size, self.premultiplied
        )


#: RELION's columns of the CTF and what stands where one is absent; None: it may not be.
CTF_COLUMNS: Mapping[str, float | None] = {
    rln.DEFOCUS_U: None,
    rln.DEFOCUS_V: None,
    rln.DEFOCUS_ANGLE: 0.0,
    rln.VOLTAGE: None,
    rln.SPHERICAL_ABERRATION: None,
    rln.AMPLITUDE_CONTRAST: 0.1,
    rln.PHASE_SHIFT: 0.0,
    rln.CTF_BFACTOR: 0.0,
    rln.CTF_SCALEFACTOR: 1.0,
}


@lru_cache(maxsize=4)
def _plane(box: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Components of an image's half transform that are inserted: flat indices, and x and y in 1/box.

    Those below Nyquist, each of a Friedel pair once; the mean is left out, as RELION does.
    """
    y, x = torch.meshgrid(
        torch.fft.fftfreq(box) * box, torch.fft.rfftfreq(box) * box, indexing="ij"
    )
    inside = (x**2 + y**2 < (box / 2) ** 2) & ((x > 0) | (y > 0))
    return torch.nonzero(inside.flatten())[:, 0], x[inside], y[inside]


def empty(box: int) -> torch.Tensor:
    """Sums without any particle: float32 [3, depth, height, width] of real, imaginary part and weight.

    Index [z + box, y + box, x] with padded frequencies z, y, x; only x >= 0 is there.
    """
    reach = PADDING * box // 2
    return torch.zeros(3, 2 * reach + 1, 2 * reach + 1, reach + 1)


def sums_bytes(box: int) -> int:
    """How much memory the sums of `empty` take."""
    reach = PADDING * box // 2
    return 3 * (2 * reach + 1) ** 2 * (reach + 1) * 4


def insert(sums: torch.Tensor, images: torch.Tensor, poses: Poses) -> None:
    """Add particles to ``sums``, in place.

    Args:
        sums: of `empty`.
        images: float32 [n, box, box], their centre at pixel ``box // 2``; protein bright.
        poses: of these n.
    """
    box, flat = images.shape[-1], sums.view(3, -1)
    _, _, height, width = sums.shape
    reach = PADDING * box // 2
    index, x, y = (part.to(sums.device) for part in _plane(box))
    for first in range(0, len(images), BATCH):
        some = slice(first, first + BATCH)
        pose = poses[some]
        spectra = torch.fft.rfft2(torch.fft.ifftshift(images[some].to(sums.device), (-2, -1)))
        values = spectra.flatten(1)[:, index] * _shift(pose, box, x, y)
        weights = torch.ones_like(values.real)
        if pose.ctf is not None:
            ctf = contrast_transfer(
                pose.ctf, x / (box * pose.pixel_size), y / (box * pose.pixel_size)
            )
            weights = ctf.square()
            values = values if pose.premultiplied else values * ctf
        turn = torch.from_numpy(rotations(pose.angles)[:, :2] * PADDING).float().to(sums.device)
        place = x[:, None] * turn[:, None, 0] + y[:, None] * turn[:, None, 1]  # [n, p, 3]: x, y, z
        mirrored = place[..., 0] < 0
        place = torch.where(mirrored[..., None], -place, place)
        parts = torch.stack(
            [values.real, torch.where(mirrored, -values.imag, values.imag), weights]
        ).flatten(1)
        corner = place.floor()
        part = (place - corner).flatten(0, 1)
        px, py, pz = (corner.long() + torch.tensor([0, reach, reach], device=place.device)).unbind(
            -1
        )
        start = ((pz * height + py) * width + px).flatten()
        for dz, dy, dx in np.ndindex(2, 2, 2):
            share = torch.ones_like(part[:, 0])
            for axis, step in enumerate((dx, dy, dz)):
                share = share * (part[:, axis] if step else 1 - part[:, axis])
            at = start + (dz * height + dy) * width + dx
            for channel in range(3):
                flat[channel].scatter_add_(0, at, parts[channel] * share)


def _shift(poses: Poses, box: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Phase factors complex64 [n, p] that move images by their origins."""
    pixels = torch.from_numpy(poses.origins / poses.pixel_size).float().to(x.device)
    angle = -2 * torch.pi / box * (pixels[:, :1] * x + pixels[:, 1:] * y)
    return torch.polar(torch.ones_like(angle), angle)


def contrast_transfer(values: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """RELION's CTF, positive at low frequency, with its B-factor and scale.

    Args:
        values: float64 [n, 9], columns as `CTF_COLUMNS` (Å, degrees, kV, mm, Å²).
        x: float32 [p], 1/Å.
        y: the same.

    Returns:
        float32 [n, p].
    """
    columns = torch.from_numpy(values).to(x.device)
    u, v, angle, kilovolt, aberration, contrast, phase, b_factor, scale = columns.T[:, :, None]
    volt = kilovolt * 1e3
    wavelength = 12.2643247 / torch.sqrt(volt * (1 + volt * 0.978466e-6))
    squared = (x.double() ** 2 + y.double() ** 2)[None]
    theta = 2 * (torch.atan2(y.double(), x.double())[None] - torch.deg2rad(angle))
    defocus = (u + v) / 2 + (u - v) / 2 * torch.cos(theta)
    chi = torch.pi * wavelength * squared * defocus
    chi = chi - torch.pi / 2 * aberration * 1e7 * wavelength**3 * squared**2
    chi = chi + torch.deg2rad(phase) + torch.asin(contrast)
    return (scale * torch.exp(-b_factor / 4 * squared) * torch.sin(chi)).float()


def invert(
    sums: torch.Tensor, box: int, operators: np.ndarray | None = None, iterations: int = ITERATIONS
) -> torch.Tensor:
    """The map of sums.

    Args:
        sums: of `empty`, filled; not changed.
        box: of the images and the map, px.
        operators: of the symmetry group, float64 [g, 3, 3], the identity among them; None: no symmetry.
        iterations: of the density compensation.

    Returns:
        float32 [box, box, box], z, y, x.
    """
    sums = symmetrised(_hermitian(sums), operators)
    reach = PADDING * box // 2
    grid = torch.fft.ifftshift(
        sums[:, :-1, :-1], (1, 2)
    )  # as a transform of 2 reach voxels has them
    inside = _radius(2 * reach, half=True).to(sums.device) < reach
    spectrum = torch.complex(grid[0], grid[1]) * _compensation(grid[2] * inside, inside, iterations)
    side = 2 * reach
    volume = torch.fft.fftshift(torch.fft.irfftn(spectrum, s=(side, side, side)))
    cut = slice(reach - box // 2, reach - box // 2 + box)
    volume = _rounded(volume[cut, cut, cut])
    fade = torch.sinc((torch.arange(box, device=sums.device) - box // 2) / side) ** 2
    return volume / (fade[:, None, None] * fade[:, None] * fade)


def _radius(side: int, *, half: bool) -> torch.Tensor:
    """Float32, distance from the corner of an unshifted cube in voxels; of half of it along x."""
    axis = torch.fft.fftfreq(side) * side
    x = torch.fft.rfftfreq(side) * side if half else axis
    return torch.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + x**2)


def _compensation(weight: torch.Tensor, inside: torch.Tensor, iterations: int) -> torch.Tensor:
    """What to multiply sums by: one over how densely they are sampled, as a smooth kernel sees it.

    Pipe and Menon (1999), with the Kaiser-Bessel blob that RELION has (radius 1.9, order 0, α = 15).

    Args:
        weight: float32, as a half transform.
        inside: where there is anything.
        iterations: 0 gives one over the weight, never less than a thousandth of its mean.
    """
    mean = weight[inside].mean().clamp(min=1e-30)
    weight = weight / mean
    if not iterations:
        return inside / weight.clamp(min=_LEAST_WEIGHT) / mean
    side = weight.shape[0]
    blob = _blob(_radius(side, half=False) / side).to(weight.device)
    # Where nothing was inserted there is nothing to weigh, and a factor that grows at every step: of few
    # particles in a large box it would pass what a float holds, and the map would be no number at all.
    sampled = inside & (weight > 0)
    found = sampled.float()
    for _ in range(iterations):
        spread = torch.fft.irfftn(
            torch.complex(found * weight, torch.zeros_like(found)), s=blob.shape
        )
        seen = torch.fft.rfftn(spread * blob).abs()
        found = torch.where(sampled, found / seen.clamp(min=1e-6), 0.0)
    return found / mean


def _blob(frequency: torch.Tensor) -> torch.Tensor:
    """Transform of the blob in three dimensions over its value at zero (Lewitt 1990)."""
    radius, alpha = 1.9 * PADDING, 15.0
    argument = (alpha**2 - (2 * math.pi * radius * frequency.double()) ** 2).numpy()
    root = np.sqrt(np.abs(argument)).clip(1e-6)
    # Bessel functions of order 3/2 over x^1.5, but for a constant factor
    rising = (np.cosh(root) - np.sinh(root) / root) / root**2
    waving = (np.sin(root) / root - np.cos(root)) / root**2
    zero = (math.cosh(alpha) - math.sinh(alpha) / alpha) / alpha**2
    return torch.from_numpy(np.where(argument > 0, rising, waving) / zero).float()


def _rounded(volume: torch.Tensor) -> torch.Tensor:
    """The map with its corners, which not all views cover, faded into their mean over three voxels."""
    side = len(volume)
    radius = torch.fft.fftshift(_radius(side, half=False)).to(volume.device)
    outside = 0.5 - 0.5 * torch.cos(torch.pi * ((radius - side / 2) / _EDGE).clamp(0, 1))
    mean = (volume * outside).sum() / outside.sum()
    return volume + outside * (mean - volume)


def _hermitian(sums: torch.Tensor) -> torch.Tensor:
    """Sums in which the plane x = 0, which holds both of a Friedel pair, has the other's part as well."""
    sums = sums.clone()
    other = sums[..., 0].flip(1, 2)
    other[1] = -other[1]
    sums[..., 0] += other
    return sums


def symmetrised(sums: torch.Tensor, operators: np.ndarray | None) -> torch.Tensor:
    """Sums plus what they are after each of the symmetry's turns.

    Args:
        sums: Hermitian.
        operators: float64 [g, 3, 3]; None: as they are.
    """
    if operators is None or len(operators) == 1:
        return sums
    depth, height, width = sums.shape[1:]
    reach = width - 1
    axis = torch.arange(depth, device=sums.device) - reach
    total = torch.zeros_like(sums)
    rows = torch.stack(
        torch.meshgrid(axis, torch.arange(width, device=sums.device), indexing="ij"), -1
    ).float()
    unit = 2 / (torch.tensor([width, height, depth], device=sums.device) - 1)
    shift = torch.tensor([0.0, reach, reach], device=sums.device)
    for operator in operators:
        turn = torch.from_numpy(operator).float().to(sums.device)
        for z in range(depth):  # a plane at a time bounds memory
            xyz = torch.stack(
                [rows[..., 1], rows[..., 0], torch.full_like(rows[..., 0], z - reach)], -1
            )
            place = xyz @ turn.T
            mirrored = place[..., :1] < 0
            place = torch.where(mirrored, -place, place)
            found = torch.nn.functional.grid_sample(
                sums[None], ((place + shift) * unit - 1)[None, None], align_corners=True
            )[0, :, 0]
            found[1] = torch.where(mirrored[..., 0], -found[1], found[1])
            total[:, z] += found
    return total


def symmetry_operators(group: str) -> np.ndarray:
    """Rotations of a point group in RELION's orientation: float64 [g, 3, 3], the identity first.

    Cn and Dn: n-fold axis along z, a twofold axis of D along x. T: threefold axis along z. O: fourfold
    axis along z. I: RELION's I2, twofold axis along z.

    Raises:
        SettingsError: it is none of these.
    """
    name = group.strip().upper()
    found = re.fullmatch(r"([CD])(\d+)", name)
    golden = (1 + math.sqrt(5)) / 2
    if found and int(found[2]) > 0:
        generators = [_turn((0, 0, 1), 360 / int(found[2]))]
        if found[1] == "D":
            generators.append(_turn((1, 0, 0), 180))
    elif name == "T":
        generators = [_turn((0, 0, 1), 120), _turn((0, math.sqrt(2 / 3), math.sqrt(1 / 3)), 180)]
    elif name == "O":
        generators = [_turn((0, 0, 1), 90), _turn((1, 1, 1), 120)]
    elif name in ("I", "I2"):
        generators = [_turn((0, 0, 1), 180), _turn((1, 0, golden), 72)]
    else:
        raise SettingsError(
            f"there is no symmetry {group!r} here",
            remedy="give Cn, Dn, T, O or I, such as C1 or D2",
        )
    members = [np.eye(3)]
    for member in members:  # grows while it is walked through
        for generator in generators:
            new = generator @ member
            if not any(np.allclose(new, known, atol=1e-6) for known in members):
                members.append(new)
    return np.stack(members)


def _turn(axis: Sequence[float], degrees: float) -> np.ndarray:
    """Rodrigues' rotation about an axis."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def b_factor(particles: np.ndarray, resolution: np.ndarray) -> float | None:
    """Å², from resolution against number of particles (Rosenthal and Henderson 2003).

    ln N = B / 2 · 1/d² + c. None where fewer than three points have a resolution, or it does not rise.
    """
    good = np.isfinite(resolution)
    if good.sum() < 3 or np.ptp(resolution[good]) == 0:
        return None
    slope = np.polyfit(1 / resolution[good] ** 2, np.log(particles[good]), 1)[0]
    return float(2 * slope) if slope > 0 else None
