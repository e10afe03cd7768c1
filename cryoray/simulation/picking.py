"""Pickers as people use them, blob and template, and what is true of each of their picks.

Both work on a micrograph that is filtered down to some 12 px per particle, take local maxima, and keep
those above a threshold that a person sets once for a project. So they take what looks right to them:
contamination, carbon edges, gaps between particles, and ice where there is nothing better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from cryoray.simulation.contamination import AGGREGATE, CARBON, ICE
from cryoray.simulation.microscope import Projector, random_angles
from cryoray.simulation.specimen import BROKEN, FRAGMENT, MICELLE, WHOLE, Specimen

#: Pixels per particle's diameter in the micrograph that a picker looks at.
_COARSE = {"blob": 10.0, "template": 12.0}
#: Turns of each reference over the full circle.
_TURNS = 10
#: A pick is on a particle within this distance, over its diameter, and beside it within the other.
CENTRED, BESIDE = 0.22, 0.65
#: Overlap of other matter over a particle's own from which it is no longer a single one.
OVERLAPPED = 0.4
#: Share of a particle's disc that contamination or film may cover, and of a disc twice as wide, in which
#: they would outshine the particle.
_DIRTY, _DIRTY_AROUND = 0.2, 0.35

Picker = Literal["blob", "template"]
PICKERS: tuple[Picker, ...] = ("blob", "template")


@dataclass(frozen=True, slots=True)
class Habit:
    """How somebody picks in a project.

    Attributes:
        picker: which.
        diameter: that is given to it, over the true one.
        distance: least distance of picks, over the true diameter.
        appetite: picks per particle that the threshold is set for, on the first micrograph.
        ceiling: responses above it, in deviations, are passed over; contamination gives such.
        error: standard deviation of what is added to each coordinate, over the diameter.
    """

    picker: Picker
    diameter: float
    distance: float
    appetite: float
    ceiling: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """Picks in one micrograph, the best first.

    Attributes:
        places: float64 [n, 2], x and y in px.
        merit: float64 [n], the picker's figure of merit.
    """

    places: np.ndarray
    merit: np.ndarray

    def __getitem__(self, some: np.ndarray | slice) -> Picks:
        """Some of the picks."""
        return Picks(self.places[some], self.merit[some])


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What lies under picks.

    Attributes:
        kind: object [n], ``particle`` or the kind of junk, as `junk.KINDS` has them.
        detail: object [n], what of it: ``single``, ``overlap``, ``clump``, ``micelle`` …
        body: int64 [n], number of the nearest body within reach, or -1.
        offset: float64 [n, 2], x and y of that body from the pick, px.
        ambiguity: float64 [n], how easily a person takes it for the wrong thing, 0 to 1.
    """

    kind: np.ndarray
    detail: np.ndarray
    body: np.ndarray
    offset: np.ndarray
    ambiguity: np.ndarray


def random_habit(rng: np.random.Generator) -> Habit:
    """How some person picks."""
    return Habit(
        picker=PICKERS[int(rng.random() < 0.5)],
        diameter=float(rng.uniform(0.75, 1.25)),
        distance=float(rng.uniform(0.45, 1.0)),
        appetite=float(np.exp(rng.uniform(np.log(0.5), np.log(1.6)))),
        ceiling=float(rng.uniform(6, 15)) if rng.random() < 0.5 else np.inf,
        error=float(rng.uniform(0, 0.04)),
    )


def references(
    projector: Projector, rng: np.random.Generator, number: int = 5, lowpass: float = 0.16
) -> torch.Tensor:
    """Projections to pick with, as of classes of an earlier round: float32 [number, side, side].

    Args:
        projector: of the particle.
        rng: which views.
        number: of views.
        lowpass: px, standard deviation over the side, of what blurs them.
    """
    slices = projector.slices(random_angles(rng, number))
    y = torch.fft.fftfreq(projector.side)[:, None]
    squared = torch.fft.rfftfreq(projector.side)[None] ** 2 + y**2
    blur = torch.exp(-2 * (torch.pi * lowpass * projector.side / 6) ** 2 * squared)
    images = torch.fft.irfft2(slices * blur, s=(projector.side,) * 2)
    return torch.fft.fftshift(images, (1, 2))


def pick(
    pixels: np.ndarray, diameter: float, habit: Habit, templates: torch.Tensor | None = None
) -> Picks:
    """All local maxima of a picker's response, the best first.

    Args:
        pixels: float32 [height, width], protein dark.
        diameter: of the particle, px.
        habit: how it is picked.
        templates: of `references`; the template picker needs them.
    """
    step = max(1.0, diameter / _COARSE[habit.picker])
    coarse, scale = _reduced(pixels, step)
    across = diameter * habit.diameter / scale
    if habit.picker == "blob":
        response = _blobs(coarse, across)
    else:
        assert templates is not None
        response = _matches(coarse, templates, scale, across)
    near = max(1, round(habit.distance * diameter / scale))
    highest = ndimage.maximum_filter(response, size=2 * near + 1)
    peak = (response == highest) & (response < habit.ceiling)
    edge = max(1, near // 2)
    peak[:edge], peak[-edge:], peak[:, :edge], peak[:, -edge:] = False, False, False, False
    rows, columns = np.nonzero(peak)
    merit = response[rows, columns]
    order = np.argsort(-merit, kind="stable")
    places = np.stack([_peak(response, rows, columns, 1), _peak(response, rows, columns, 0)], 1)
    return Picks((places[order] + 0.5) * scale - 0.5, merit[order].astype(np.float64))


def _reduced(pixels: np.ndarray, step: float) -> tuple[torch.Tensor, float]:
    """The micrograph at a coarser sampling, protein bright, outliers clipped; how much coarser."""
    image = torch.from_numpy(pixels)
    whole = max(1, int(step))
    rows, columns = (side // whole * whole for side in image.shape)
    image = image[:rows, :columns].reshape(rows // whole, whole, columns // whole, whole)
    image = -image.mean((1, 3))
    middle, spread = image.median(), (image - image.median()).abs().median() * 1.5 + 1e-9
    return ((image - middle) / spread).clamp(-12, 12), float(whole)


def _filtered(image: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(image) * gain, s=tuple(image.shape))


def _squared(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.fft.rfftfreq(shape[1])[None] ** 2 + torch.fft.fftfreq(shape[0])[:, None] ** 2


def _blobs(image: torch.Tensor, diameter: float) -> np.ndarray:
    """Laplacian of a Gaussian at three sizes, the best of them, in robust deviations."""
    squared = _squared(tuple(image.shape))
    best = None
    for size in (0.8, 1.0, 1.25):
        sigma = size * diameter / (2 * np.sqrt(2))
        waves = 2 * (np.pi * sigma) ** 2 * squared
        response = _deviations(_filtered(image, waves * torch.exp(-waves)))
        best = response if best is None else torch.maximum(best, response)
    assert best is not None
    return best.numpy()


def _deviations(response: torch.Tensor) -> torch.Tensor:
    middle = response.median()
    return (response - middle) / ((response - middle).abs().median() * 1.4826 + 1e-9)


def _matches(
    image: torch.Tensor, templates: torch.Tensor, scale: float, diameter: float
) -> np.ndarray:
    """Normalised cross-correlation with references in all turns, the best of them, in deviations."""
    height, width = image.shape
    side = 2 * int(np.ceil(0.65 * diameter)) + 1
    side = min(side, height, width)
    angles = torch.arange(_TURNS) * (2 * torch.pi / _TURNS)
    cosine, sine = torch.cos(angles), torch.sin(angles)
    zoom = side * scale / templates.shape[-1]
    turn = torch.stack(
        [torch.stack([cosine, -sine, 0 * sine], 1), torch.stack([sine, cosine, 0 * sine], 1)], 1
    )
    grid = torch.nn.functional.affine_grid(
        turn * zoom, [_TURNS, 1, side, side], align_corners=False
    )
    axis = torch.arange(side) - side // 2
    disc = (axis[:, None] ** 2 + axis**2 <= (0.55 * diameter) ** 2).float()
    inside = float(disc.sum())
    turned = torch.cat(
        [
            torch.nn.functional.grid_sample(
                template.expand(_TURNS, 1, -1, -1), grid, align_corners=False
            )[:, 0]
            for template in templates
        ]
    )
    turned = (turned - (turned * disc).sum((1, 2), keepdim=True) / inside) * disc
    turned = turned / turned.square().sum((1, 2), keepdim=True).sqrt()
    best = torch.full((height, width), -torch.inf)
    spectrum = torch.fft.rfft2(image)

    def correlation(kernels: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        padded = torch.zeros(len(kernels), height, width)
        padded[:, :side, :side] = kernels
        padded = padded.roll((-(side // 2), -(side // 2)), (1, 2))
        return torch.fft.irfft2(of * torch.fft.rfft2(padded).conj(), s=(height, width))

    for some in torch.split(turned, _TURNS):
        best = torch.maximum(best, correlation(some, spectrum).amax(0))
    mean = correlation(disc[None] / inside, spectrum)[0]
    power = correlation(disc[None] / inside, torch.fft.rfft2(image**2))[0] - mean**2
    local = (power.clamp(min=0) * inside).sqrt()
    return _deviations(best / local.clamp(min=0.3 * float(local.median()))).numpy()


def _disc(radius: int) -> np.ndarray:
    axis = np.arange(-radius, radius + 1)
    return axis[:, None] ** 2 + axis**2 <= radius**2


def _peak(response: np.ndarray, rows: np.ndarray, columns: np.ndarray, axis: int) -> np.ndarray:
    """Position of maxima along an axis, to a part of a pixel, by a parabola."""
    at = columns if axis else rows
    step = (0, 1) if axis else (1, 0)
    limits = np.array(response.shape) - 1
    before = response[np.maximum(rows - step[0], 0), np.maximum(columns - step[1], 0)]
    after = response[
        np.minimum(rows + step[0], limits[0]), np.minimum(columns + step[1], limits[1])
    ]
    here = response[rows, columns]
    bend = np.minimum(before + after - 2 * here, -1e-9)
    return np.asarray(at + np.clip(0.5 * (before - after) / bend, -0.5, 0.5), dtype=np.float64)


def look_under(
    places: np.ndarray, specimen: Specimen, motion: tuple[float, float] = (0.0, 0.0)
) -> Truth:
    """What lies under picks: film and contamination first, then the nearest body.

    Args:
        places: x and y in px, [n, 2].
        specimen: what the micrograph is of.
        motion: x and y in px during the exposure; more than a fifth of the diameter blurs particles.
    """
    n, diameter, bodies = len(places), specimen.frame.diameter, specimen.bodies
    kind, detail = np.full(n, "empty", object), np.full(n, "ice alone", object)
    ambiguity = np.full(n, 0.35)
    body, offset = np.full(n, -1), np.zeros((n, 2))
    blurred = float(np.hypot(*motion)) > 0.2 * diameter
    covered = _covered(places, specimen)
    tree = cKDTree(bodies.places) if len(bodies.places) else None
    for i, place in enumerate(places):
        if tree is not None:
            far, nearest = tree.query(place)
            if far < BESIDE * diameter:
                body[i], offset[i] = nearest, bodies.places[nearest] - place
        if covered[CARBON][i] > _DIRTY:
            kind[i], detail[i] = "carbon", "film" if covered[CARBON][i] > 0.95 else "edge"
            ambiguity[i] = 0.1 + 0.4 * (body[i] >= 0)
        elif covered[ICE][i] > _DIRTY:
            kind[i], detail[i], ambiguity[i] = "ice", "contamination", 0.15
        elif covered[AGGREGATE][i] > _DIRTY:
            kind[i], detail[i], ambiguity[i] = "aggregate", "network", 0.3
        elif body[i] >= 0:
            far = float(np.hypot(*offset[i])) / diameter
            kind[i], detail[i], ambiguity[i] = _verdict(specimen, int(body[i]), far, blurred)
    return Truth(kind, detail, body, offset, ambiguity)


def _verdict(specimen: Specimen, body: int, far: float, blurred: bool) -> tuple[str, str, float]:
    """Kind, detail and ambiguity of a pick that is near a body; ``far`` in diameters."""
    bodies = specimen.bodies
    kind, overlap = bodies.kind[body], float(bodies.overlap[body])
    if kind == MICELLE:
        return "ice", "micelle", 0.5
    if kind == FRAGMENT:
        return "broken", "fragment", 0.6
    if far > CENTRED:
        return "off_centre", "beside", 1.0 - min(0.8, (far - CENTRED) / 0.25)
    if bodies.clump[body] >= 0 and overlap > 0.1:
        return "aggregate", "clump", 0.5
    if overlap > OVERLAPPED:
        return "aggregate", "overlap", 0.9 if overlap < 2 * OVERLAPPED else 0.5
    if kind == BROKEN:
        return "broken", "broken", 0.8
    assert kind == WHOLE
    if blurred:
        return "drift", "drift", 0.6
    doubt = max(far / CENTRED, overlap / OVERLAPPED)
    return "particle", "single", 0.1 + 0.7 * doubt**2


def _covered(places: np.ndarray, specimen: Specimen) -> dict[int, np.ndarray]:
    """How much of each kind of dirt there is at places, where `_DIRTY` is too much: float64 [n] by code."""
    frame, what = specimen.frame, specimen.layers.what
    step = max(1, int(frame.diameter / 10))
    at = np.clip(np.rint(places).astype(int), 0, [frame.width - 1, frame.height - 1]) // step
    covered = {}
    for code in (AGGREGATE, ICE, CARBON):
        here = what[::step, ::step] == code
        covered[code] = np.zeros(len(places))
        for reach, allowed in ((0.4, _DIRTY), (0.8, _DIRTY_AROUND)):
            if here.any():
                disc = _disc(max(1, round(reach * frame.diameter / step)))
                padded, size = np.pad(here, len(disc) // 2), len(disc)
                share = [padded[y : y + size, x : x + size][disc].mean() for x, y in at]
                worse = np.array(share, float) * (_DIRTY / allowed)
                covered[code] = np.maximum(covered[code], worse)
    return covered
