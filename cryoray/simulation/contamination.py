"""Everything on a grid that is not the protein: crystals, ethane, frost, devitrified ice, film, vesicles.

Each is drawn as thickness (Å of matter along the beam), from which phase and absorption follow, so that the
CTF gives it fringes, Thon rings and the same statistics at every resolution as the protein beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

#: What a pixel belongs to besides protein in ice; the order is that of rising precedence.
CLEAR, AGGREGATE, ICE, CARBON = range(4)
#: Phase (rad per Å at 300 kV: 6.5e-4 rad/(V Å) times the mean inner potential) of solid ice in vacuum,
#: amorphous carbon, and lipid over ice; absorption (-ln of intensity, per Å) of ice, carbon and gold.
_ICE_PHASE, _CARBON_PHASE, _LIPID_PHASE = 3.1e-3, 5.2e-3, 4e-4
_ICE_LOSS, _CARBON_LOSS, _GOLD_LOSS = 1 / 3500, 1 / 1700, 1 / 90
_PROTEIN_PHASE = 1.37e-3


@dataclass(frozen=True, slots=True)
class Frame:
    """The pixels of one field of view.

    Attributes:
        height: px.
        width: px.
        pixel_size: Å/px.
        diameter: of the particle, px.
    """

    height: int
    width: int
    pixel_size: float
    diameter: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width


@dataclass(slots=True, eq=False)
class Layers:
    """What the beam passes through besides single particles, filled in place by what is drawn.

    Attributes:
        phase: float32 [height, width], rad.
        loss: float32 [height, width], -ln of the intensity that is lost.
        grain: float32 [height, width], amplitude of the matter's granularity, 1 for the usual ice.
        what: uint8 [height, width], `CLEAR`, `AGGREGATE`, `ICE` or `CARBON`.
    """

    phase: np.ndarray
    loss: np.ndarray
    grain: np.ndarray
    what: np.ndarray

    @classmethod
    def clean(cls, frame: Frame) -> Layers:
        """Nothing at all."""
        zero = np.zeros(frame.shape, np.float32)
        return cls(zero, zero.copy(), zero + 1, np.zeros(frame.shape, np.uint8))


#: Contaminations by name: mean number in a micrograph of a project in which they occur at all, or the
#: chance of one that there can only be one of; and how often a project has them.
HABITS: dict[str, tuple[float, float]] = {
    "blobs": (5.0, 0.7),
    "crystal": (0.3, 0.4),
    "ethane": (5.0, 0.35),
    "frost": (0.5, 0.2),
    "devitrified": (0.3, 0.25),
    "carbon": (0.35, 0.45),
    "gold": (0.2, 0.15),
    "network": (0.7, 0.2),
    "vesicle": (2.5, 0.2),
    "filament": (2.5, 0.15),
}


def contaminate(frame: Frame, rates: dict[str, float], rng: np.random.Generator) -> Layers:
    """Draw contamination.

    Args:
        frame: the field of view.
        rates: mean number of each in the field, by the names of `HABITS`.
        rng: of which the layers are a function.

    Returns:
        the layers; a field of view without any is clean.
    """
    layers = Layers.clean(frame)
    for name, rate in rates.items():
        single = name in ("carbon", "gold", "devitrified", "frost")
        number = int(rng.random() < rate) if single else min(int(rng.poisson(rate)), 40)
        for _ in range(number):
            _DRAWN[name](frame, layers, rng)
    return layers


def smooth_field(
    shape: tuple[int, int], scale: float, rng: np.random.Generator, slope: float = 0.0
) -> np.ndarray:
    """A random field of unit variance that varies over ``scale`` px, float32, drawn coarsely and enlarged.

    Args:
        shape: rows and columns.
        scale: px over which it varies.
        rng: of which it is a function.
        slope: of the amplitude spectrum below 1/scale; larger favours long waves.
    """
    step = max(1, int(scale / 2.5))
    height, width = (-(-side // step) + 3 for side in shape)
    white = rng.standard_normal((height, width), np.float32)
    k = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) * scale / step
    gain = np.exp(-2 * k**2) / (k + 0.15) ** slope
    gain[0, 0] = 0
    coarse = np.fft.irfft2(np.fft.rfft2(white) * gain, s=(height, width)).astype(np.float32)
    return enlarged(coarse / (coarse.std() + 1e-9), step, shape)


def enlarged(coarse: np.ndarray, step: int, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear enlargement by ``step``, cut to ``shape``; the field must be large enough for that."""
    rows, columns = (-(-side // step) + 1 for side in shape)
    image = torch.from_numpy(np.ascontiguousarray(coarse[:rows, :columns]))[None, None]
    size = ((rows - 1) * step + 1, (columns - 1) * step + 1)
    large = torch.nn.functional.interpolate(image, size, mode="bilinear", align_corners=True)
    return np.ascontiguousarray(large[0, 0, : shape[0], : shape[1]].numpy(), np.float32)


def _window(
    frame: Frame, x: float, y: float, reach: float
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Slices of the square round a point, and in it the distances along y [h, 1] and x [1, w], px."""
    top, bottom = max(0, int(y - reach)), min(frame.height, int(y + reach) + 1)
    left, right = max(0, int(x - reach)), min(frame.width, int(x + reach) + 1)
    down = np.arange(top, max(top, bottom), dtype=np.float32) - y
    across = np.arange(left, max(left, right), dtype=np.float32) - x
    return (slice(top, bottom), slice(left, right)), down[:, None], across[None]


def _place(frame: Frame, rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(0, frame.width)), float(rng.uniform(0, frame.height))


def _lump(
    frame: Frame,
    layers: Layers,
    rng: np.random.Generator,
    at: tuple[float, float],
    radius: float,
    height: float,
    ragged: float,
    power: float,
    matter: int = ICE,
) -> None:
    """A body with a wavy outline, as thick as an ellipsoid to a power; ``radius`` px, ``height`` Å."""
    where, y, x = _window(frame, *at, radius * (1.4 + ragged))
    if not x.size or not y.size:
        return
    angle = np.arctan2(y, x)
    outline = np.ones_like(angle)
    for wave in range(2, 8):
        amplitude = ragged * rng.normal() / wave
        outline += amplitude * np.cos(wave * (angle - rng.uniform(0, 2 * np.pi)))
    squeeze, turn = rng.uniform(0.8, 1.25), rng.uniform(0, np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    across = y * np.cos(turn) - x * np.sin(turn)
    inside = 1 - (np.hypot(along * squeeze, across / squeeze) / (radius * outline)) ** 2
    thick = height * np.clip(inside, 0, None) ** power
    # Real edges are not sharper than a few Å, and a steeper one than the pixels resolve would alias.
    thick = ndimage.gaussian_filter(thick, max(1.0, 6 / frame.pixel_size))
    _add(layers, where, thick, matter)


def _add(
    layers: Layers, where: tuple[slice, slice], thick: np.ndarray, matter: int, limit: float = 12
) -> None:
    """Matter of some thickness (Å) of ice; below ``limit`` it is too thin to count as contamination."""
    layers.phase[where] += _ICE_PHASE * thick
    layers.loss[where] += _ICE_LOSS * thick
    layers.grain[where] = np.sqrt(layers.grain[where] ** 2 + thick / 500)
    what = layers.what[where]
    what[thick > limit] = np.maximum(what[thick > limit], matter)


def _blobs(frame: Frame, layers: Layers, rng: np.random.Generator) -> None:
    """Small round ice: dark, with a bright fringe; now and then some together."""
    x, y = _place(frame, rng)
    radius = float(np.exp(rng.uniform(np.log(45), np.log(300)))) / frame.pixel_size
    for _ in range(1 + int(rng.random() < 0.2) * int(rng.integers(1, 4))):
        height = radius * frame.pixel_size * rng.uniform(0.4, 1.8)
        _lump(frame, layers, rng, (x, y), radius, height, 0.08, 0.5)
        way = rng.uniform(0, 2 * np.pi)
        x, y = x + 1.7 * radius * np.cos(way), y + 1.7 * radius * np.sin(way)
        radius *= rng.uniform(0.5, 1.2)


def _crystal(frame: Frame, layers: Layers, rng: np.random.Generator) -> None:
    """A large crystal with facets and the fringes of its lattice's bends."""
    at = _place(frame, rng)
    radius = rng.uniform(350, 1600) / frame.pixel_size
    where, y, x = _window(frame, *at, radius * 1.3)
    if not x.size or not y.size:
        return
    inside = np.full((y.shape[0], x.shape[1]), np.inf, np.float32)
    faces = int(rng.integers(5, 9))
    turns = (np.arange(faces) + rng.uniform(-0.35, 0.35, faces)) * 2 * np.pi / faces
    for way in turns + rng.uniform(0, 2 * np.pi):
        face = radius * rng.uniform(0.7, 1.05) - x * np.cos(way) - y * np.sin(way)
        inside = np.minimum(inside, face)
    height = rng.uniform(300, 1800)
    # Phase that rises by more than a radian from pixel to pixel would alias.
    bevel = max(radius * rng.uniform(0.1, 0.7), 1.5 * height * _ICE_PHASE)
    thick = np.clip(inside / bevel, 0, 1) ** rng.uniform(0.8, 1.2) * height
    thick = ndimage.gaussian_filter(thick, max(1.5, 8 / frame.pixel_size))
    way, period = rng.uniform(0, np.pi), rng.uniform(0.05, 0.4) * radius
    along = x * np.cos(way) + y * np.sin(way)
    bend = along + 0.1 * (y * np.cos(way) - x * np.sin(way)) ** 2 / radius
    bands = np.clip(np.cos(2 * np.pi * bend / period + rng.uniform(0, 6)), 0, 1) ** 4
    layers.loss[where] += bands * (thick > 50) * thick / thick.max() * rng.uniform(0.1, 1.0)
    _add(layers, where, thick, ICE)


def _ethane(frame: Frame, layers: Layers, rng: np.random.Generator) -> None:
    """Grey flakes and drops of low contrast, with irregular outlines."""
    radius = float(np.exp(rng.uniform(np.log(100), np.log(500)))) / frame.pixel_size
    at, height = _place(frame, rng), rng.uniform(40, 260)
    _lump(frame, layers, rng, at, radius, height, rng.uniform(0.08, 0.25), rng.uniform(0.2, 0.6))


def _frost(frame: Frame, layers: Layers, rng: np.random.Generator) -> None:
    """A crust of many small crystals over a part of the field."""
    x0, y0 = _place(frame, rng)
    spread = rng.uniform(400, 2500) / frame.pixel_size
    for _ in range(int(rng.integers(15, 90))):
        x, y = x0 + rng.normal() * spread, y0 + rng.normal() * spread * rng.uniform(0.4, 1)
        if 0 <= x < frame.width and 0 <= y < frame.height:
            radius = rng.uniform(25, 130) / frame.pixel_size
            _lump(frame, layers, rng, (x, y), radius, rng.uniform(40, 400), 0.3, 0.5)


def _devitrified(frame: Frame, layers: Layers, rng: np.random.Generator) -> None:
    """Crystalline ice: grains that diffract differently, patches and lines, everywhere or in a part."""
    size = float(np.exp(rng.uniform(np.log(60), np.log(450)))) / frame.pixel_size
    field = smooth_field(frame.shape, size, rng)
    dark = np.clip(field - rng.uniform(0.3, 1.3), 0, 1.8)
    bright = np.clip(-field - rng.uniform(0.5, 1.5), 0, 1.5)
    fine = smooth_field(frame.shape, max(2.5, size / rng.uniform(3, 7)), rng)
    whole = rng.random() < 0.5
    cover = np.ones(frame.shape, np.float32)
    if not whole:
        area = smooth_field(frame.shape, max(frame.shape) / 2.5, rng)
        cover = _step(area - rng.uniform(-0.5, 0.8), 0.05)
    strength = rng.uniform(0.15, 0.8)
    layers.loss += cover * strength * (0.45 * dark - 0.2 * bright)
    layers.phase += cover * strength * (0.25 * field + 0.15 * fine).astype(np.float32)
    layers.grain += cover * strength * rng.uniform(0, 0.8)
    layers.what[cover > 0.5] = np.maximum(layers.what[cover > 0.5], ICE)


def _edge(frame: Frame, rng: np.random.Generator, radius: float) -> np.ndarray:
    """How far each pixel is outside a round hole, px; negative within, the rim inside the field."""
    way = rng.uniform(0, 2 * np.pi)
    short, middle = min(frame.shape), np.array([frame.width, frame.height]) / 2
    rim = rng.uniform(0.0, 0.48) * short  # distance of the rim from the middle of the field
    x0, y0 = middle - (radius - rim) * np.array([np.cos(way), np.sin(way)])
    y = np.arange(frame.height, dtype=np.float32)[:, None] - y0
    x = np.arange(frame.width, dtype=np.float32)[None] - x0
    rough = smooth_field(frame.shape, 90 / frame.pixel_size + 3, rng) * 12 / frame.pixel_size
    return np.hypot(x, y) - radius + rough


def _carbon(frame: Frame, layers: Layers, rng: np.random.Generator) -> None:
    """Holey carbon: granular, thicker toward its rim, with Thon rings that ice does not show."""
    outside = _edge(frame, rng, rng.uniform(5e3, 1.4e4) / frame.pixel_size)
    film = _step(outside, max(1.0, 10 / frame.pixel_size))
    lip = np.exp(-((outside * frame.pixel_size / rng.uniform(40, 150)) ** 2))
    thick = film * rng.uniform(100, 280) + film * lip * rng.uniform(0, 500)
    layers.phase += (_CARBON_PHASE * thick).astype(np.float32)
    layers.loss += (_CARBON_LOSS * thick).astype(np.float32)
    layers.grain += film * rng.uniform(0.7, 2.2)
    layers.what[film > 0.5] = CARBON


def _gold(frame: Frame, layers: Layers, rng: np.random.Generator) -> None:
    """Gold film: opaque, made of grains."""
    outside = _edge(frame, rng, rng.uniform(5e3, 1.0e4) / frame.pixel_size)
    film = _step(outside, max(1.2, 12 / frame.pixel_size))
    grains = np.clip(1 + 0.35 * smooth_field(frame.shape, 250 / frame.pixel_size + 3, rng), 0.3, 2)
    layers.loss += film * grains * 300 * _GOLD_LOSS
    layers.phase += film * grains * rng.uniform(1, 3)
    layers.what[film > 0.5] = CARBON


def _network(frame: Frame, layers: Layers, rng: np.random.Generator) -> None:
    """Denatured protein in strands and lumps, as it gathers at the air-water interface."""
    step = max(1, int(frame.diameter / 10))
    shape = (-(-frame.height // step) + 3, -(-frame.width // step) + 3)
    heap = np.zeros(shape, np.float32)
    for _ in range(int(rng.integers(2, 12))):
        start = np.array(_place(frame, rng)) / step
        turn = np.cumsum(rng.normal(0, rng.uniform(0.2, 0.6), int(rng.integers(30, 250))))
        walk = start + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1), 0)
        at = walk[((walk > 0) & (walk < [shape[1] - 1, shape[0] - 1])).all(1)].astype(int)
        np.add.at(heap, (at[:, 1], at[:, 0]), np.float32(1))
    heap = ndimage.gaussian_filter(np.minimum(heap, 3), rng.uniform(1.2, 2.6))
    ragged = np.clip(1 + 0.5 * smooth_field(shape, 3, rng), 0, None)
    peak = max(float(heap.max()), 1e-6)
    small = np.minimum(heap / peak * 2, 1) * ragged * rng.uniform(0.3, 0.9)
    thick = enlarged(small, step, frame.shape) * frame.diameter * frame.pixel_size
    layers.phase += _PROTEIN_PHASE * thick
    grown = thick > 0.15 * frame.diameter * frame.pixel_size
    layers.what[grown] = np.maximum(layers.what[grown], AGGREGATE)


def _vesicle(frame: Frame, layers: Layers, rng: np.random.Generator) -> None:
    """A liposome: the projection of a spherical shell, two leaflets of lipid."""
    radius = rng.uniform(90, 450) / frame.pixel_size
    where, y, x = _window(frame, *_place(frame, rng), radius * 1.3)
    if not x.size or not y.size:
        return
    distance = np.hypot(x * rng.uniform(0.85, 1.15), y) * frame.pixel_size
    outer = radius * frame.pixel_size
    thick = np.zeros_like(distance)
    for far, near in ((outer, outer - 14), (outer - 24, outer - 38)):
        chord = [np.sqrt(np.clip(edge**2 - distance**2, 0, None)) for edge in (far, near)]
        thick += 2 * (chord[0] - chord[1])
    thick = ndimage.gaussian_filter(thick, max(0.7, 4 / frame.pixel_size))
    layers.phase[where] += 2.2 * _LIPID_PHASE * thick
    what = layers.what[where]
    what[distance < outer] = np.maximum(what[distance < outer], ICE)


def _filament(frame: Frame, layers: Layers, rng: np.random.Generator) -> None:
    """A thread: nucleic acid, flagella, tubes of whatever was in the buffer."""
    width = float(np.exp(rng.uniform(np.log(20), np.log(140)))) / frame.pixel_size
    step = max(1, int(width / 3))
    shape = (-(-frame.height // step) + 3, -(-frame.width // step) + 3)
    length = int(np.hypot(*shape) * rng.uniform(0.3, 1.5)) * 2
    turn = rng.uniform(0, 6.3) + np.cumsum(rng.normal(0, rng.uniform(0.005, 0.06), length))
    walk = np.array(_place(frame, rng)) / step + 0.5 * np.cumsum(
        np.stack([np.cos(turn), np.sin(turn)], 1), 0
    )
    at = walk[((walk > 0) & (walk < [shape[1] - 1, shape[0] - 1])).all(1)].astype(int)
    line = np.zeros(shape, np.float32)
    line[at[:, 1], at[:, 0]] = 1
    sigma = max(0.8, width / step / 2.4)
    thin = ndimage.gaussian_filter(line, sigma) * sigma * 2.5
    thick = enlarged(np.minimum(thin, 1), step, frame.shape) * width * frame.pixel_size * 0.7
    layers.phase += _PROTEIN_PHASE * thick
    layers.what[thick > 10] = np.maximum(layers.what[thick > 10], ICE)


def _step(inside: np.ndarray, width: float) -> np.ndarray:
    """1 where ``inside`` is positive, 0 where negative, softened over ``width``; float32."""
    return (1 / (1 + np.exp(-np.clip(inside / width, -30, 30)))).astype(np.float32)


_DRAWN: dict[str, Callable[[Frame, Layers, np.random.Generator], None]] = {
    "blobs": _blobs,
    "crystal": _crystal,
    "ethane": _ethane,
    "frost": _frost,
    "devitrified": _devitrified,
    "carbon": _carbon,
    "gold": _gold,
    "network": _network,
    "vesicle": _vesicle,
    "filament": _filament,
}
