"""The forms in which facilities keep images: raw, denoised, low-passed, in 8 bits, masked, binned.

What is done to a whole micrograph (denoising, filtering, 8 bits) is done before boxes are cut, and what
is done to boxes (masks, binning) after.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from scipy import ndimage

Version = Literal["raw", "denoised", "low-passed", "8-bit", "masked", "binned"]
VERSIONS: tuple[Version, ...] = get_args(Version)

#: Denoisers: what each of them stands for is in its docstring.
DENOISERS = ("wiener", "variation", "median", "strong")


def developed(
    pixels: np.ndarray, version: str, pixel_size: float, rng: np.random.Generator
) -> np.ndarray:
    """A micrograph in a version; float32 as it came, but for 8 bits values are whole, 0 to 255.

    Args:
        pixels: float32 [height, width].
        version: of `VERSIONS`; those of boxes leave a micrograph as it is.
        pixel_size: Å/px.
        rng: of which strengths are a function: give the same for all micrographs of a project.
    """
    if version == "low-passed":
        return low_passed(pixels, pixel_size, _resolution(rng))
    if version == "8-bit":
        return eight_bits(pixels, float(rng.uniform(2.5, 6)))
    if version == "denoised":
        denoise = {
            "wiener": wiener,
            "variation": total_variation,
            "median": median,
            "strong": strong,
        }[str(rng.choice(DENOISERS))]
        quiet = denoise(pixels, pixel_size, rng)
        if rng.random() < 0.5:  # what is left of the noise is blurred away
            quiet = low_passed(quiet, pixel_size, _resolution(rng))
        if rng.random() < 0.3:
            quiet = evened(quiet, float(rng.uniform(150, 500)) / pixel_size)
        return eight_bits(quiet, float(rng.uniform(4, 9))) if rng.random() < 0.6 else quiet
    return pixels


def _resolution(rng: np.random.Generator) -> float:
    """Å, to which people filter: from barely to what leaves the outline alone."""
    return float(np.exp(rng.uniform(np.log(10), np.log(60))))


def wiener(pixels: np.ndarray, pixel_size: float, rng: np.random.Generator) -> np.ndarray:
    """A Wiener filter with the noise as measured at the highest frequencies, as Janni and Warp resemble."""
    spectrum = torch.fft.rfft2(torch.from_numpy(pixels))
    height, width = pixels.shape
    y = torch.fft.fftfreq(height)[:, None]
    radius = (torch.fft.rfftfreq(width)[None] ** 2 + y**2).sqrt()
    shells = (radius * 128).long().clamp(max=63).reshape(-1)
    power = torch.bincount(shells, (spectrum.abs() ** 2).reshape(-1), 64)
    power = power / torch.bincount(shells, minlength=64).clamp(min=1)
    noise = power[48:60].min() * float(rng.uniform(0.9, 1.0))
    gain = ((power - noise) / power).clamp(min=0) ** float(rng.uniform(0.8, 2))
    gain = torch.from_numpy(ndimage.gaussian_filter1d(gain.numpy(), 1.0))
    return torch.fft.irfft2(
        spectrum * gain[shells].reshape(radius.shape), s=(height, width)
    ).numpy()


def total_variation(
    pixels: np.ndarray, pixel_size: float, rng: np.random.Generator, steps: int = 12
) -> np.ndarray:
    """Chambolle's total variation, edges kept and noise flattened; stands for BM3D and non-local means."""
    image = torch.from_numpy(ndimage.gaussian_filter(pixels, 4 / pixel_size))
    weight = float(rng.uniform(0.5, 1.5)) * image.std()
    p = torch.zeros(2, *image.shape)
    for _ in range(steps):  # J. Math. Imaging Vis. 20, 89 (2004)
        inner = _divergence(p) - image / weight
        slope = torch.zeros_like(p)
        slope[0, :-1] = inner[1:] - inner[:-1]
        slope[1, :, :-1] = inner[:, 1:] - inner[:, :-1]
        p = (p + 0.248 * slope) / (1 + 0.248 * slope.square().sum(0).sqrt())
    return (image - weight * _divergence(p)).numpy()


def _divergence(p: torch.Tensor) -> torch.Tensor:
    d = p.sum(0)
    d[1:] -= p[0, :-1]
    d[:, 1:] -= p[1, :, :-1]
    return d


def median(pixels: np.ndarray, pixel_size: float, rng: np.random.Generator) -> np.ndarray:
    """A median over 3 × 3 px, then a mild low-pass, as EMAN's and hand-made scripts do."""
    padded = torch.nn.functional.pad(torch.from_numpy(pixels)[None], (1, 1, 1, 1), mode="reflect")
    height, width = pixels.shape
    stack = torch.stack(
        [padded[0, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    )
    middle = stack.median(0).values.numpy()
    return ndimage.gaussian_filter(middle, float(rng.uniform(3, 8)) / pixel_size)


def strong(pixels: np.ndarray, pixel_size: float, rng: np.random.Generator) -> np.ndarray:
    """A band-pass and a squashing of extremes: blobs on a flat ground, as learned denoisers give them."""
    low = float(np.exp(rng.uniform(np.log(6), np.log(20)))) / pixel_size
    quiet = ndimage.gaussian_filter(pixels, max(1.0, low))
    if rng.random() < 0.5:
        quiet = quiet - ndimage.gaussian_filter(quiet, float(rng.uniform(80, 250)) / pixel_size)
    deviation = _spread(quiet)
    threshold = float(rng.uniform(0.2, 1.0)) * deviation
    soft = np.sign(quiet - np.median(quiet)) * np.clip(
        np.abs(quiet - np.median(quiet)) - threshold, 0, None
    )
    return (soft + 0.35 * quiet).astype(np.float32)


def low_passed(pixels: np.ndarray, pixel_size: float, resolution: float) -> np.ndarray:
    """A low-pass that leaves half of the amplitude at ``resolution`` (Å)."""
    sigma = resolution / pixel_size * np.sqrt(2 * np.log(2)) / (2 * np.pi)
    return np.asarray(ndimage.gaussian_filter(pixels, sigma), np.float32)


def evened(pixels: np.ndarray, size: float) -> np.ndarray:
    """Local contrast made even over ``size`` px, as contrast-limited equalisation does for viewers."""
    step = max(1, int(size / 8))
    height, width = pixels.shape
    image = torch.from_numpy(pixels)[None, None]
    pooled = torch.nn.functional.avg_pool2d(image, step, ceil_mode=True, count_include_pad=False)
    square = torch.nn.functional.avg_pool2d(image**2, step, ceil_mode=True, count_include_pad=False)
    mean = ndimage.gaussian_filter(pooled[0, 0].numpy(), size / step)
    power = ndimage.gaussian_filter(square[0, 0].numpy(), size / step)
    spread = np.sqrt(np.clip(power - mean**2, 1e-12, None))
    spread = np.maximum(spread, 0.3 * np.median(spread))
    fields = torch.from_numpy(np.stack([mean, spread]))[None]
    mean, spread = torch.nn.functional.interpolate(fields, (height, width), mode="bilinear")[0]
    return ((image[0, 0] - mean) / spread).numpy()


def eight_bits(pixels: np.ndarray, deviations: float) -> np.ndarray:
    """Whole numbers from 0 to 255 over so many robust deviations each way; the rest is clipped."""
    middle, spread = np.median(pixels[::4, ::4]), _spread(pixels)
    scaled = (pixels - middle) / (2 * deviations * spread) + 0.5
    return np.clip(np.rint(255 * scaled), 0, 255).astype(np.float32)


def _spread(pixels: np.ndarray) -> float:
    some = pixels[::4, ::4]
    return float(np.median(np.abs(some - np.median(some))) * 1.4826) + 1e-9


def masked(images: torch.Tensor, radius: float, edge: float = 0.06) -> torch.Tensor:
    """Boxes with a soft circular mask, zero outside it.

    Args:
        images: float32 [n, side, side], background at zero.
        radius: over the side.
        edge: width of the cosine edge, over the side.
    """
    side = images.shape[-1]
    axis = (torch.arange(side) - side // 2) / side
    distance = (axis[:, None] ** 2 + axis**2).sqrt()
    ramp = ((distance - radius) / edge).clamp(0, 1)
    return images * (0.5 + 0.5 * torch.cos(torch.pi * ramp))


def binned(images: torch.Tensor, box: int) -> torch.Tensor:
    """Boxes cropped in Fourier space to ``box`` px, as RELION rescales: float32 [n, box, box]."""
    n, side = images.shape[0], images.shape[-1]
    spectrum = torch.fft.fftshift(torch.fft.rfft2(images), 1)
    first = side // 2 - box // 2
    small = torch.fft.ifftshift(spectrum[:, first : first + box, : box // 2 + 1], 1)
    return torch.fft.irfft2(small, s=(box, box)).reshape(n, box, box) * (box / side) ** 2
