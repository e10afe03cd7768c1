"""Electron-optical images of a structure: projection, CTF, noise and extraction, all in one Fourier pass.

Images are formed on a canvas half as large again as the box and cut out of it, so that what the CTF
spreads beyond the box is lost as it is in a micrograph, and nothing wraps round. Protein is bright.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch_ctf import calculate_ctf_2d

from cryoray.imaging.pose import rotations
from cryoray.simulation.phantom import Structure, density

#: Å: how large debris is, and how long the waves in the ice's thickness.
_DEBRIS, _WAVES = 22.0, 70.0
#: Radius of the background circle over half the box: RELION's default.
BACKGROUND_RADIUS = 0.75


@dataclass(frozen=True, slots=True)
class Optics:
    """What is the same for all micrographs of a collection.

    Attributes:
        voltage: kV.
        spherical_aberration: mm.
        amplitude_contrast: fraction.
        pixel_size: of the images, Å/px.
        original_pixel_size: of the micrographs, Å/px.
        ice: power of amorphous ice where the CTF is 1, over that of the shot noise.
        debris: the same of fragments, ions and buffer, at low frequency.
        thickness: the same of waves in the ice's thickness, which the CTF does not touch.
        detector: what is left of the shot noise's power at the Nyquist frequency.
    """

    voltage: float
    spherical_aberration: float
    amplitude_contrast: float
    pixel_size: float
    original_pixel_size: float
    ice: float
    debris: float
    thickness: float
    detector: float


@dataclass(frozen=True, slots=True)
class Exposure:
    """What differs from one micrograph to the next.

    Attributes:
        defocus_u: Å, along ``defocus_angle``.
        defocus_v: Å, across it.
        defocus_angle: degrees from the x axis, as RELION counts.
        b_factor: Å², of the envelope exp(-B k² / 4).
        contrast: of the particles, over the collection's mean; thick ice lowers it.
    """

    defocus_u: float
    defocus_v: float
    defocus_angle: float
    b_factor: float
    contrast: float


def canvas_side(box: int) -> int:
    """Side of the canvas on which images with this box are formed, px; even."""
    return box * 3 // 4 * 2


def frequencies(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cycles per pixel along y [side, 1] and x [1, side // 2 + 1] of a real transform."""
    return torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]


def transfer(optics: Optics, exposure: Exposure, side: int) -> torch.Tensor:
    """CTF times envelope, float32 [side, side // 2 + 1], positive at low frequency."""
    ctf = calculate_ctf_2d(
        defocus=(exposure.defocus_u + exposure.defocus_v) / 2e4,
        astigmatism=(exposure.defocus_u - exposure.defocus_v) / 2e4,
        astigmatism_angle=exposure.defocus_angle,
        voltage=optics.voltage,
        spherical_aberration=optics.spherical_aberration,
        amplitude_contrast=optics.amplitude_contrast,
        phase_shift=0.0,
        pixel_size=optics.pixel_size,
        image_shape=(side, side),
        rfft=True,
        fftshift=False,
    )
    y, x = frequencies(side)
    envelope = torch.exp(-exposure.b_factor / 4 * (x**2 + y**2) / optics.pixel_size**2)
    return (ctf * envelope).float()


def noise_power(
    optics: Optics, contrast: torch.Tensor, blur: torch.Tensor | None = None
) -> torch.Tensor:
    """Power of the noise at each frequency; an unblurred image of it has unit variance.

    Shot noise passes the detector alone; ice and debris show Thon rings, and all but the shot noise
    moves with the specimen.

    Args:
        optics: which says the parts.
        contrast: of `transfer`, float32 [side, side // 2 + 1].
        blur: what motion leaves of the specimen's amplitude, float32 [..., side, side // 2 + 1].
    """
    y, x = frequencies(contrast.shape[0])
    squared = x**2 + y**2
    angstrom = squared / optics.pixel_size**2
    shot = (1 - (1 - optics.detector) * squared / 0.25).clamp(min=0.3)
    specimen = contrast**2 * (optics.ice + optics.debris * torch.exp(-(_DEBRIS**2) * angstrom))
    specimen = specimen + optics.thickness * torch.exp(-(_WAVES**2) * angstrom)
    unit = _mean(shot + specimen)
    return (shot + specimen * (1 if blur is None else blur**2)) / unit


def _mean(half: torch.Tensor) -> torch.Tensor:
    """Mean over the whole plane of what is given on the half of it that a real transform has."""
    twice = torch.full((half.shape[1],), 2.0)
    twice[0] = twice[-1] = 1.0
    return (half * twice).mean() * half.shape[1] / twice.sum()


def motion_blur(side: int, motion: torch.Tensor) -> torch.Tensor:
    """What steady motion over ``motion`` [n, 2] (x, y in px) leaves: float32 [n, side, side // 2 + 1]."""
    y, x = frequencies(side)
    return torch.sinc(x * motion[:, 0, None, None] + y * motion[:, 1, None, None])


def random_angles(rng: np.random.Generator, n: int) -> np.ndarray:
    """Uniform orientations, float64 [n, 3]: rot, tilt, psi in degrees."""
    tilt = np.degrees(np.arccos(rng.uniform(-1, 1, n)))
    return np.stack([rng.uniform(-180, 180, n), tilt, rng.uniform(-180, 180, n)], 1)


class Projector:
    """Central slices through the Fourier transform of a structure (projection-slice theorem).

    Trilinear between Fourier voxels; the volume is divided by what that does to it beforehand.

    Args:
        structure: what is projected.
        side: of the canvas, px.
        pixel_size: Å/px.
    """

    def __init__(self, structure: Structure, side: int, pixel_size: float) -> None:
        self.side = side
        volume = torch.from_numpy(density(structure, side, pixel_size))
        fade = torch.sinc((torch.arange(side) - side // 2) / side) ** 2
        volume /= fade[:, None, None] * fade[:, None] * fade
        # The transform of real density is Hermitian: the half with x >= 0 says it all.
        transform = torch.fft.fftshift(torch.fft.rfftn(torch.fft.ifftshift(volume)), (0, 1))
        self._volume = torch.view_as_real(transform).permute(3, 0, 1, 2).contiguous()[None]
        y, x = (axis.expand(side, side // 2 + 1) for axis in frequencies(side))
        self._inside = x**2 + y**2 < 0.25
        self._plane = torch.stack([x[self._inside], y[self._inside]])
        self._blur = torch.exp(
            -2 * (torch.pi * structure.blur / pixel_size) ** 2 * (self._plane**2).sum(0)
        )

    def slices(self, angles: np.ndarray) -> torch.Tensor:
        """Transforms of projections that are centred on pixel (0, 0).

        Args:
            angles: rot, tilt, psi in degrees, [n, 3].

        Returns:
            complex64 [n, side, side // 2 + 1].
        """
        n, half = len(angles), self.side // 2
        # grid_sample's coordinates run from -1 to 1 over the voxels of an axis: x, y, z.
        unit = 2 / (torch.tensor([half + 1, self.side, self.side]) - 1)
        matrices = torch.from_numpy(rotations(angles)[:, :2]).float() * self.side * unit
        place = self._plane.T @ matrices  # [n, points, 3]
        mirrored = torch.where(place[..., :1] < 0, -1.0, 1.0)
        place.mul_(mirrored).add_(torch.tensor([0, half, half]) * unit - 1)
        real, imaginary = torch.nn.functional.grid_sample(
            self._volume, place[None, :, :, None], align_corners=True
        )[0, :, :, :, 0]
        value = torch.complex(real, imaginary * mirrored[..., 0]) * self._blur
        slices = torch.zeros(n, self.side, self.side // 2 + 1, dtype=torch.complex64)
        slices[:, self._inside] = value
        return slices


def shifted(slices: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Transforms [n, side, side // 2 + 1] moved to ``places`` [n, 2] (x, y in px)."""
    y, x = frequencies(slices.shape[1])
    across = torch.exp(-2j * torch.pi * x * places[:, 0, None])
    down = torch.exp(-2j * torch.pi * y[:, 0] * places[:, 1, None])
    return slices * (down[:, :, None] * across[:, None])


def extract(canvas: torch.Tensor, box: int, missing: np.ndarray) -> torch.Tensor:
    """Cut the box out of the middle, and normalise it as RELION does.

    Where the box reaches out of the micrograph, the last row or column is repeated. The plane
    through the pixels outside the background circle goes, and their standard deviation becomes the
    unit.

    Args:
        canvas: float32 [n, side, side].
        box: px.
        missing: int64 [n, 2, 2], rows and columns (first axis y, then x) that are not in the
            micrograph, at the low and at the high end.

    Returns:
        float32 [n, box, box].
    """
    first = canvas.shape[-1] // 2 - box // 2
    images = canvas[:, first : first + box, first : first + box].clone()
    for i in np.flatnonzero(missing.any((1, 2))):
        (top, bottom), (left, right) = missing[i]
        rows = torch.arange(box).clamp(top, box - 1 - bottom)
        columns = torch.arange(box).clamp(left, box - 1 - right)
        images[i] = images[i][rows][:, columns]
    return normalised(images)


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Boxes as RELION normalises them.

    The plane through the pixels outside the background circle goes, and their standard deviation
    becomes the unit.

    Args:
        images: float32 [n, box, box].

    Returns:
        float32 [n, box, box].
    """
    n, box = images.shape[:2]
    pixels = images.reshape(n, -1)
    axis = (torch.arange(box) - box // 2) / (box / 2)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    outside = (x**2 + y**2 > BACKGROUND_RADIUS**2).reshape(-1)
    plane = torch.stack([torch.ones(box * box), x.reshape(-1), y.reshape(-1)])
    pixels = pixels - pixels[:, outside] @ torch.linalg.pinv(plane[:, outside]) @ plane
    spread = pixels[:, outside].std(1, keepdim=True).clamp(min=1e-12)
    return (pixels / spread).reshape(n, box, box)
