"""Whole micrographs: a specimen under the microscope's CTF on a detector that counts electrons.

The exit wave exp(i phase - absorption) goes through the lens, and its squared modulus is what the
detector counts, so that thick contamination has fringes and darkness that no weak-phase sum gives, and
particles, ice, film and dirt all have the Thon rings of the one micrograph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from cryoray.simulation.contamination import smooth_field
from cryoray.simulation.microscope import Exposure, Optics
from cryoray.simulation.specimen import Specimen

#: Å: mean free path for inelastic scattering of vitreous ice at 300 kV.
_INELASTIC = 3200.0


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of a project.

    Attributes:
        shot: standard deviation over the mean, of a pixel without specimen.
        ice: amplitude spectrum of the phase of ice of the usual thickness: rad per pixel, white.
        debris: the same at low frequency, of what is dissolved in the buffer.
        debris_size: Å, below whose frequency that is white.
        debris_fall: exponent with which its power falls above, of 1 + (size × frequency)².
        waves: standard deviation of the intensity by uneven ice, over the mean.
        hot: share of pixels that count too much.
        total: standard deviation of all of it in a typical image, over the mean.
    """

    shot: float
    ice: float
    debris: float
    debris_size: float
    debris_fall: float
    waves: float
    hot: float
    total: float

    def scaled(self, louder: float) -> Noise:
        """The same with all amplitudes ``louder`` times as large."""
        names = ("shot", "ice", "debris", "waves", "total")
        return replace(self, **{name: louder * getattr(self, name) for name in names})


@dataclass(frozen=True, slots=True, eq=False)
class Micrograph:
    """What the camera has.

    Attributes:
        pixels: float32 [height, width], electrons per pixel over the mean of a hole; protein is dark.
        specimen: what is on it.
        exposure: defocus and envelope.
        motion: x and y in px over which the specimen moved during the exposure.
    """

    pixels: np.ndarray
    specimen: Specimen
    exposure: Exposure
    motion: tuple[float, float]


def lens(
    optics: Optics, exposure: Exposure, shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Phase that the lens adds, rad, and the envelope: float32 [height, width // 2 + 1] each.

    Underfocus is positive, as RELION counts it; torch-ctf gives the same CTF, sin of the phase.
    """
    height, width = shape
    y = torch.fft.fftfreq(height, optics.pixel_size)[:, None]
    x = torch.fft.rfftfreq(width, optics.pixel_size)[None]
    squared = x**2 + y**2
    volts = optics.voltage * 1e3
    wavelength = 12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts))
    mean = (exposure.defocus_u + exposure.defocus_v) / 2
    half = (exposure.defocus_u - exposure.defocus_v) / 2
    axis = np.radians(2 * exposure.defocus_angle)
    astigmatic = half * (float(np.cos(axis)) * (x**2 - y**2) + float(np.sin(axis)) * 2 * x * y)
    gamma = torch.pi * wavelength * (mean * squared + astigmatic)
    gamma -= torch.pi / 2 * optics.spherical_aberration * 1e7 * wavelength**3 * squared**2
    return gamma, torch.exp(-exposure.b_factor / 4 * squared)


def expose(
    specimen: Specimen,
    optics: Optics,
    exposure: Exposure,
    noise: Noise,
    thickness: float,
    motion: tuple[float, float],
    rng: np.random.Generator,
    background: np.ndarray | None = None,
) -> Micrograph:
    """Form an image of a specimen.

    Args:
        specimen: what the beam passes through.
        optics: of the microscope.
        exposure: of this micrograph.
        noise: of the project.
        thickness: Å, mean of the ice.
        motion: x and y in px.
        rng: of which all noise is a function.
        background: float32 [height, width], a real micrograph of zero mean and unit variance, to which the
            specimen alone is added; its own noise takes the place of what would be simulated.
    """
    shape, layers = specimen.frame.shape, specimen.layers
    gamma, envelope = lens(optics, exposure, shape)
    source = torch.Generator().manual_seed(int(rng.integers(2**62)))
    phase = torch.from_numpy(layers.phase)
    amplitude = optics.amplitude_contrast / np.sqrt(1 - optics.amplitude_contrast**2)
    ice = np.ones(shape, np.float32)
    if background is None:
        ice = _ice(specimen, thickness, rng)
        grain = torch.from_numpy(layers.grain * np.sqrt(ice))
        phase = phase + grain * _granular(shape, optics, noise, source)
    loss = torch.from_numpy(layers.loss)
    if any(motion):
        envelope = envelope * _motion_blur(shape, motion)
    size = loss.mul(-0.5).sub_(phase, alpha=amplitude).exp_()
    real = torch.fft.rfft2(torch.cos(phase).mul_(size))
    imaginary = torch.fft.rfft2(torch.sin(phase).mul_(size))
    cosine, sine = torch.cos(gamma).mul_(envelope), gamma.sin_().mul_(envelope)
    # exp(i gamma) is even, so real and imaginary parts go through it as two real images.
    passed = torch.fft.irfft2(real * cosine - imaginary * sine, s=shape)
    turned = torch.fft.irfft2(real * sine + imaginary * cosine, s=shape)
    image = passed.square_().add_(turned.square_())
    if background is not None:
        pixels = (image - 1) / noise.shot + torch.from_numpy(background)
        return Micrograph(pixels.numpy(), specimen, exposure, motion)
    attenuated = np.exp(-ice * thickness / _INELASTIC)
    attenuated /= attenuated.mean()
    attenuated *= 1 + noise.waves * smooth_field(shape, 90 / optics.pixel_size + 2, rng, 0.5)
    image *= torch.from_numpy(attenuated.astype(np.float32))
    electrons = torch.randn(shape, generator=source)
    image += image.clamp(min=0.02).sqrt_().mul_(electrons).mul_(noise.shot)
    if optics.detector < 1:
        image = _detected(image, optics.detector)
    if noise.hot:
        number = int(rng.poisson(noise.hot * image.numel()))
        rows, columns = (rng.integers(side, size=number) for side in shape)
        image[rows, columns] += torch.from_numpy(rng.exponential(6 * noise.shot, number)).float()
    return Micrograph(image.float().numpy(), specimen, exposure, motion)


def _ice(specimen: Specimen, thickness: float, rng: np.random.Generator) -> np.ndarray:
    """Thickness over its mean: float32; a hole's ice is thin in its middle, and never quite even."""
    frame = specimen.frame
    y = np.linspace(-1, 1, frame.height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, frame.width, dtype=np.float32)[None]
    tilt, bowl = rng.normal(0, 0.15, 2), abs(rng.normal(0, 0.12))
    shape = 1 + tilt[0] * x + tilt[1] * y + bowl * ((x - tilt[0]) ** 2 + (y - tilt[1]) ** 2)
    shape = shape + rng.uniform(0, 0.02) * smooth_field(frame.shape, max(frame.shape) / 5, rng)
    return np.clip(shape / shape.mean(), 0.15, 3).astype(np.float32)


def _granular(
    shape: tuple[int, int], optics: Optics, noise: Noise, source: torch.Generator
) -> torch.Tensor:
    """Phase of amorphous ice and of what is dissolved in it, float32 [height, width]."""
    spectrum = torch.fft.rfft2(torch.randn(shape, generator=source))
    y = torch.fft.fftfreq(shape[0], optics.pixel_size)[:, None]
    squared = torch.fft.rfftfreq(shape[1], optics.pixel_size)[None] ** 2 + y**2
    fall = (1 + noise.debris_size**2 * squared) ** -noise.debris_fall
    power = noise.ice**2 + noise.debris**2 * fall
    return torch.fft.irfft2(spectrum * power.sqrt(), s=shape)


def _motion_blur(shape: tuple[int, int], motion: tuple[float, float]) -> torch.Tensor:
    """What motion during the exposure leaves of the amplitude: float32 [height, width // 2 + 1]."""
    y = torch.fft.fftfreq(shape[0])[:, None]
    along = torch.fft.rfftfreq(shape[1])[None] * motion[0] + y * motion[1]
    # It is never quite steady: a Gaussian of the same variance, without the double images of a sinc.
    return torch.exp(-(torch.pi**2) / 6 * along**2)


def _detected(image: torch.Tensor, left: float) -> torch.Tensor:
    """In place, the detector's point spread on signal and noise, which leaves ``left`` of Nyquist's power."""
    share = (1 - left**0.5) / 4
    for one, other in (image[:-1], image[1:]), (image[:, :-1], image[:, 1:]):
        # What neighbours exchange: mean and edges stay as they are.
        flow = (other - one).mul_(share)
        one.add_(flow)
        other.sub_(flow)
    return image


def noise_of(
    optics: Optics,
    signal_power: float,
    snr: float,
    contrast: torch.Tensor,
    waves: float,
    debris_size: float,
    debris_fall: float,
) -> Noise:
    """Noise such that the power of the signal over that of the noise is ``snr``.

    Shares of shot noise, ice and debris are those of ``optics``, as `microscope.noise_power` has them.

    Args:
        optics: of which ice, debris and thickness are used.
        signal_power: variance of a particle's image inside its mask, intensity over the mean.
        snr: what that is of the noise's variance.
        contrast: CTF times envelope of a typical exposure, float32 [side, side // 2 + 1].
        waves: standard deviation of intensity by uneven ice, over that of the shot noise.
        debris_size: Å.
        debris_fall: see `Noise`.
    """
    side = contrast.shape[0]
    y = torch.fft.fftfreq(side, optics.pixel_size)[:, None]
    x = torch.fft.fftfreq(side, optics.pixel_size)[None]
    full = torch.cat([contrast, contrast[:, 1 : side - side // 2].flip(1)], 1)[:, :side]
    specimen = full**2 * (
        optics.ice + optics.debris * (1 + debris_size**2 * (x**2 + y**2)) ** -debris_fall
    )
    total = 1 + float(specimen.mean()) + waves**2
    shot = float(np.sqrt(signal_power / snr / total))
    # An image of the phase p is 1 - 2 p CTF.
    return Noise(
        shot=shot,
        ice=shot * float(np.sqrt(optics.ice)) / 2,
        debris=shot * float(np.sqrt(optics.debris)) / 2,
        debris_size=debris_size,
        debris_fall=debris_fall,
        waves=waves * shot,
        hot=0.0,
        total=float(np.sqrt(signal_power / snr)),
    )
