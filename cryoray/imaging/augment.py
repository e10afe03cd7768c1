"""Training images as they could have come out as well: turned, shifted, filtered, noisier.

What is random is drawn apart from what is done with it: `draw` makes a small table for a whole
global batch, from a generator that every worker seeds alike, and each worker gives its slice of the
table to `augment`. So an image's augmentation depends neither on its worker nor on their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch.nn.functional import grid_sample

from cryoray.settings import AugmentSettings

#: Spectra of the additive noise: amplitude falls as frequency to the minus this.
_COLOURS = (0.0, 0.5, 1.0)
_FIELD = 1024
#: Of the images, those that move by whole pixels and quarter turns alone: interpolation smooths the
#: noise, and a network that never sees untouched noise takes it for a sign of something.
_EXACT = 0.35
_WAVES = 4
#: Rings of a CTF-like filter between the origin and Nyquist, at least and at most.
_RINGS = (1.0, 6.0)
#: A mask's radius, in half boxes, at least and at most, and the width of its edge.
_RADII, _EDGE = (0.7, 1.0), 0.1
#: Where a low-pass filter halves the power, in fractions of Nyquist, and how steep it is: from a Gaussian
#: to nearly a step. Denoised micrographs (Wiener filters, networks) and binned ones are like that.
_PASSED, _STEEPNESS = (0.12, 0.9), (1.0, 2.5)
#: Beyond this radius, in half boxes, is background, whose deviation stays the unit.
_BACKGROUND = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class AugmentParameters:
    """What happens to each image of a batch; a slice of it is the same for a part of the batch.

    Attributes:
        motion: float32 [n, 2, 3], from output to input coordinates (box from -1 to 1, x before y).
        contrast: float32 [n], factor.
        waves: float32 [n, 4], log gain of the Fourier filter, a cosine series over the radius.
        noise: float32 [n], standard deviation of the noise added.
        field: int64 [n, 3], which piece of which field of noise: colour, top, left.
        rings: float32 [n, 2], depth and number of the rings in which a CTF-like filter weakens.
        mask: float32 [n], radius of a circular mask in half boxes; infinite where there is none.
        smooth: float32 [n, 2], frequency at which a low-pass filter halves the power, over Nyquist, and
            its steepness; infinite where there is none.
    """

    motion: torch.Tensor
    contrast: torch.Tensor
    waves: torch.Tensor
    noise: torch.Tensor
    field: torch.Tensor
    rings: torch.Tensor
    mask: torch.Tensor
    smooth: torch.Tensor

    def __len__(self) -> int:
        return len(self.contrast)

    def __getitem__(self, part: slice | torch.Tensor) -> AugmentParameters:
        """The parameters of some of the images."""
        return AugmentParameters(*(getattr(self, field.name)[part] for field in fields(self)))


def draw(
    n: int, generator: torch.Generator, settings: AugmentSettings, box: int
) -> AugmentParameters:
    """Random parameters for ``n`` images of ``box`` px, from a CPU ``generator`` alone.

    The generator is advanced by the same amount whatever the settings.
    """

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    def between(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * uniform(n)

    exact = uniform(n) < _EXACT
    angle, quarter, mirror = uniform(n) * math.tau, uniform(n).mul(4).floor(), uniform(n) < 0.5
    angle = torch.where(exact, quarter * (math.tau / 4), angle) * settings.rotate
    scale = torch.where(exact, torch.ones(n), torch.exp(-settings.magnify * normal(n)))
    shift = 2 * settings.shift * normal(n, 2)
    shift = torch.where(exact[:, None], torch.round(shift * box / 2) * 2 / box, shift)
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    flip = torch.where(mirror & settings.rotate, -1.0, 1.0)
    motion = torch.stack([cosine * flip, -sine, sine * flip, cosine], 1).reshape(n, 2, 2)
    falling = settings.filter / torch.arange(1, _WAVES + 1)
    origin = torch.randint(_FIELD - box, (n, 2), generator=generator)
    colour = torch.randint(len(_COLOURS), (n, 1), generator=generator)
    contrast, waves = torch.exp(settings.contrast * normal(n)), falling * normal(n, _WAVES)
    noise = settings.noise * uniform(n)
    rings = torch.stack([settings.ctf_modulation * uniform(n), between(*_RINGS)], 1)
    masked, radius = uniform(n) < settings.mask, between(*_RADII)
    smoothed, steepness = uniform(n) < settings.smooth, between(*_STEEPNESS)
    passed = torch.exp(between(*map(math.log, _PASSED)))
    return AugmentParameters(
        motion=torch.cat([motion, shift[:, :, None]], 2),
        contrast=contrast,
        waves=waves,
        noise=noise,
        field=torch.cat([colour, origin], 1),
        rings=rings,
        mask=torch.where(masked, radius, math.inf),
        smooth=torch.stack([torch.where(smoothed, passed, math.inf), steepness], 1),
    )


def augment(images: torch.Tensor, parameters: AugmentParameters) -> torch.Tensor:
    """Images moved in one bicubic interpolation, then filtered, scaled, noisier, smoothed, masked.

    What comes in over an edge is the image reflected there: zeros would be a background without
    noise, which only training images have. A mask hides what is outside a circle behind zeros, the
    background's mean, as RELION and cryoSPARC mask images; it is the last thing done.

    Args:
        images: float32 [n, box, box], normalised; on any device.
        parameters: of the same n images and box.

    Returns:
        float32 [n, box, box], new memory.
    """
    n, box = len(images), images.shape[-1]
    device = images.device
    axis = (torch.arange(box, device=device) * 2 + 1) / box - 1
    motion = parameters.motion.to(device)[:, :, :, None, None]
    grid = motion[:, :, 0] * axis + motion[:, :, 1] * axis[:, None] + motion[:, :, 2]
    moved = grid_sample(
        images[:, None],
        grid.permute(0, 2, 3, 1),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )[:, 0]
    cosines, square = _fourier(box, device)
    gain = (parameters.waves.to(device) @ cosines).exp_()
    if bool(parameters.rings[:, 0].any()):
        depth, number = parameters.rings.to(device).T[:, :, None]
        gain *= 1 - depth * torch.sin(math.pi * number * square).square_()
    gain *= parameters.contrast.to(device)[:, None]
    spectrum = torch.fft.rfft2(moved)
    torch.view_as_real(spectrum).mul_(gain.reshape(n, box, -1, 1))
    made = torch.fft.irfft2(spectrum, s=(box, box))
    pieces = _noise(device)
    noise = torch.stack(
        [pieces[c, y : y + box, x : x + box] for c, y, x in parameters.field.tolist()]
    )
    made.addcmul_(noise, parameters.noise.to(device)[:, None, None])
    smoothed = torch.isfinite(parameters.smooth[:, 0]).nonzero()[:, 0]
    if len(smoothed):
        made[smoothed.to(device)] = _low_passed(
            made[smoothed.to(device)], parameters.smooth[smoothed].to(device)
        )
    masked = torch.isfinite(parameters.mask).nonzero()[:, 0]
    if len(masked):
        radius = parameters.mask[masked].to(device)[:, None, None]
        inside = (radius + _EDGE / 2 - torch.hypot(axis[:, None], axis)) / _EDGE
        made[masked.to(device)] *= (1 - torch.cos(math.pi * inside.clamp_(0, 1))) / 2
    return made


def _low_passed(images: torch.Tensor, smooth: torch.Tensor) -> torch.Tensor:
    """Images [n, box, box] low-passed and normalised by their background again."""
    box = images.shape[-1]
    square = _fourier(box, images.device)[1].reshape(1, box, -1)
    passed, steepness = smooth[:, 0, None, None], smooth[:, 1, None, None]
    gain = torch.exp2(-0.5 * (square / passed.square()) ** steepness)
    soft = torch.fft.irfft2(torch.fft.rfft2(images) * gain, s=(box, box))
    axis = (torch.arange(box, device=images.device) * 2 + 1) / box - 1
    background = soft[:, torch.hypot(axis[:, None], axis) > _BACKGROUND]
    mean, unit = background.mean(1), background.std(1).clamp(min=1e-3)
    return (soft - mean[:, None, None]) / unit[:, None, None]


@lru_cache(maxsize=8)
def _fourier(box: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [waves, box * (box//2 + 1)], cos(k pi r / Nyquist), k from 1; and (r / Nyquist)²."""
    radius = torch.hypot(torch.fft.fftfreq(box)[:, None], torch.fft.rfftfreq(box)).flatten()
    cosines = torch.cos(math.tau * torch.arange(1, _WAVES + 1)[:, None] * radius)
    return cosines.to(device), (2 * radius).square().to(device)


@lru_cache(maxsize=4)
def _noise(device: torch.device) -> torch.Tensor:
    """float32 [colours, 1024, 1024] of unit variance, always the same.

    Cutting a piece out is far cheaper than drawing one, and a million places are enough not to be
    learnt by heart.
    """
    white = torch.randn(
        (len(_COLOURS), _FIELD, _FIELD), generator=torch.Generator().manual_seed(1990)
    )
    frequency = torch.hypot(torch.fft.fftfreq(_FIELD)[:, None], torch.fft.rfftfreq(_FIELD))
    # Level below a sixteenth of Nyquist: the background's plane has been taken out of the images.
    frequency = frequency.clamp(min=1 / 32)
    fall = torch.stack([frequency**-power for power in _COLOURS])
    coloured = torch.fft.irfft2(torch.fft.rfft2(white) * fall, s=(_FIELD, _FIELD))
    return (coloured / coloured.std((1, 2), keepdim=True)).to(device)
