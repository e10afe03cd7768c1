"""What lies in one field of view: copies of a protein, whole and broken, alone and in clumps, and dirt.

Positions are drawn first and pictures made of them afterwards, so that what lies under a pick is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from cryoray.simulation.contamination import CLEAR, HABITS, Frame, Layers, smooth_field
from cryoray.simulation.microscope import Projector, random_angles, shifted
from cryoray.simulation.phantom import (
    Structure,
    damaged,
    denatured,
    empty_micelle,
    in_micelle,
    occupied_volume,
    random_structure,
)

#: Kinds of bodies: what a project picks for, and what else is seen beside it.
WHOLE, BROKEN, FRAGMENT, MICELLE = "whole", "broken", "fragment", "micelle"
BODIES = (WHOLE, BROKEN, FRAGMENT, MICELLE)
#: Phase of protein over ice: rad per Å at 300 kV (mean inner potentials 6.7 and 4.6 V).
PROTEIN_PHASE = 1.37e-3
#: Side of the square in which a body is drawn, over the particle's diameter.
_REACH = 1.35
_FORMS = 3
#: Bodies drawn at a time, which bounds memory.
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Habits:
    """How a preparation tends to be; what differs between projects.

    Attributes:
        crowding: particles per square of the diameter, on average.
        spacing: least distance of neighbours, over the diameter; below 1 they may overlap.
        unevenness: deviation of the logarithm of their density over the field.
        broken: share of the particles that are damaged or denatured.
        fragments: smaller pieces, per particle.
        micelles: empty ones, per particle.
        clumps: per particle.
        preferred: share of the particles in preferred orientations.
        ice: Å, mean thickness.
        rates: mean number of each contamination in a field of view.
        empty: share of fields without any particle.
    """

    crowding: float
    spacing: float
    unevenness: float
    broken: float
    fragments: float
    micelles: float
    clumps: float
    preferred: float
    ice: float
    rates: dict[str, float]
    empty: float


@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """A protein on grids.

    Attributes:
        structure: the protein, detergent included.
        habits: how the preparation tends to be.
        projectors: for each kind of body its forms.
        scale: rad of phase for a unit of the projectors' images.
        liked: preferred orientations, rot and tilt in degrees, [k, 2].
    """

    structure: Structure
    habits: Habits
    projectors: dict[str, tuple[Projector, ...]]
    scale: float
    liked: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Bodies:
    """Everything in a field of view that a picker may take for a particle.

    Attributes:
        places: float64 [n, 2], x and y of the centres in px.
        angles: float64 [n, 3], rot, tilt, psi in degrees.
        kind: object [n], of `BODIES`.
        clump: int64 [n], number of the clump, or -1.
        overlap: float32 [n], how much matter of other bodies is in front of or behind it, over its own.
    """

    places: np.ndarray
    angles: np.ndarray
    kind: np.ndarray
    clump: np.ndarray
    overlap: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Specimen:
    """One field of view before the microscope makes an image of it."""

    frame: Frame
    bodies: Bodies
    layers: Layers


def random_habits(rng: np.random.Generator, diameter: float, membrane: bool) -> Habits:
    """The habits of some preparation, most of them fair and a few wretched.

    Args:
        rng: of which they are a function.
        diameter: of the particle, Å; ice holds it.
        membrane: whether there is detergent.
    """
    mess = float(rng.beta(1.2, 2.0))

    def often(chance: float) -> bool:
        return bool(rng.random() < chance)

    rates = {
        name: rate * float(np.exp(rng.normal(-1.0 + 1.6 * mess, 0.6)))
        for name, (rate, chance) in HABITS.items()
        if often(chance * (0.35 + mess))
    }
    return Habits(
        crowding=float(np.exp(rng.uniform(np.log(0.1), np.log(0.55)))),
        spacing=float(rng.uniform(0.45, 1.1)),
        unevenness=float(rng.uniform(0, 0.9)),
        broken=float(rng.beta(1, 4) * (0.3 + mess)) if often(0.8) else 0.0,
        fragments=float(rng.uniform(0, 0.6)) if often(0.3) else 0.0,
        micelles=float(rng.uniform(0.1, 1.2)) if membrane and often(0.7) else 0.0,
        clumps=float(rng.exponential(0.02) * (0.3 + 2 * mess)) if often(0.8) else 0.0,
        preferred=float(rng.uniform(0.2, 0.9)) if often(0.5) else 0.0,
        ice=float(max(diameter * 1.1, np.exp(rng.normal(np.log(450), 0.4)))),
        rates=rates,
        empty=float(rng.uniform(0, 0.25)) if often(0.3) else 0.0,
    )


def prepared(
    structure: Structure,
    habits: Habits,
    pixel_size: float,
    rng: np.random.Generator,
    *,
    membrane: bool = False,
) -> Preparation:
    """Make everything that micrographs of a protein are drawn from.

    Args:
        structure: the protein.
        habits: of the preparation.
        pixel_size: Å/px.
        rng: of which damage, fragments and micelles are a function.
        membrane: whether the protein sits in a micelle.
    """
    volume = occupied_volume(structure) / float(structure.weights.sum())
    whole = in_micelle(structure, rng) if membrane else structure
    side = _side(whole.diameter / pixel_size)
    forms: dict[str, list[Structure]] = {WHOLE: [whole]}
    if habits.broken:
        makers = (damaged, damaged, denatured)
        forms[BROKEN] = [makers[i % 3](structure, rng) for i in range(_FORMS)]
    if habits.fragments:
        size = structure.diameter * rng.uniform(0.3, 0.6)
        forms[FRAGMENT] = [random_structure(rng, max(35.0, size), "globular")]
    if habits.micelles:
        forms[MICELLE] = [empty_micelle(structure, rng) for _ in range(2)]
    made = {
        kind: tuple(Projector(form, side, pixel_size) for form in some)
        for kind, some in forms.items()
    }
    liked = random_angles(rng, int(rng.integers(1, 4)))[:, :2]
    scale = PROTEIN_PHASE * volume / pixel_size**2
    return Preparation(whole, habits, made, scale, liked)


def _side(diameter: float) -> int:
    """Of the square that holds a projection, px; even, and quick to transform."""
    side = int(np.ceil(_REACH * diameter / 8)) * 8
    return max(side, 16)


def field_of_view(
    preparation: Preparation,
    frame: Frame,
    layers: Layers,
    rng: np.random.Generator,
) -> Specimen:
    """Draw what lies in one field of view.

    Args:
        preparation: the protein on its grid.
        frame: the pixels.
        layers: what else there is; bodies are added to its phase.
        rng: of which the bodies are a function.
    """
    bodies = _bodies(preparation.habits, frame, layers, preparation, rng)
    return Specimen(frame, _drawn(preparation, frame, layers, bodies, rng), layers)


def specimen_of(
    preparation: Preparation,
    frame: Frame,
    layers: Layers,
    places: np.ndarray,
    kind: np.ndarray,
    rng: np.random.Generator,
) -> Specimen:
    """A field of view with bodies where the caller wants them.

    Args:
        preparation: the protein on its grid.
        frame: the pixels.
        layers: what else there is; bodies are added to its phase.
        places: x and y in px, [n, 2].
        kind: of `BODIES`, [n].
        rng: of which orientations and contrast are a function.
    """
    clump = np.full(len(places), -1)
    angles = _angles(preparation, len(places), rng)
    overlap = np.zeros(len(places), np.float32)
    bodies = Bodies(np.asarray(places, float).reshape(-1, 2), angles, kind, clump, overlap)
    return Specimen(frame, _drawn(preparation, frame, layers, bodies, rng), layers)


def _bodies(
    habits: Habits,
    frame: Frame,
    layers: Layers,
    preparation: Preparation,
    rng: np.random.Generator,
) -> Bodies:
    area = frame.height * frame.width / frame.diameter**2
    expected = habits.crowding * area * float(np.exp(rng.normal(0, 0.3)))
    if rng.random() < habits.empty:
        expected = 0.0
    spread = np.exp(
        habits.unevenness * smooth_field(frame.shape, max(frame.shape) / 3, rng)
    ) * np.where(layers.what > CLEAR, 0.3, 1.0)
    parts = [(WHOLE, 1 - habits.broken), (BROKEN, habits.broken)]
    parts += [(FRAGMENT, habits.fragments), (MICELLE, habits.micelles)]
    number = {kind: int(rng.poisson(share * expected)) for kind, share in parts}
    kinds = np.repeat(np.array(list(number), object), list(number.values()))
    kinds = rng.permutation(kinds)
    places = _spread_out(kinds, spread, habits.spacing * frame.diameter, frame, rng)
    kinds = kinds[: len(places)]
    clump = np.full(len(places), -1)
    for number_of in range(int(rng.poisson(habits.clumps * expected))):
        some = 2 + min(int(rng.exponential(4)), 30)
        at = [rng.uniform(0, [frame.width, frame.height])]
        for _ in range(some - 1):
            way, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.85) * frame.diameter
            at.append(at[rng.integers(len(at))] + far * np.array([np.cos(way), np.sin(way)]))
        places = np.concatenate([places, at])
        broken = BROKEN in preparation.projectors
        clumped = np.where(rng.random(some) < 0.4 * broken, BROKEN, WHOLE)
        kinds = np.concatenate([kinds, clumped.astype(object)])
        clump = np.concatenate([clump, np.full(some, number_of)])
    angles = _angles(preparation, len(places), rng)
    return Bodies(places, angles, kinds, clump, np.zeros(len(places), np.float32))


def _spread_out(
    kinds: np.ndarray,
    density: np.ndarray,
    spacing: float,
    frame: Frame,
    rng: np.random.Generator,
) -> np.ndarray:
    """Places [m, 2], m <= n, of bodies that keep a distance; a little outside the field, too."""
    n = len(kinds)
    margin = 0.5 * frame.diameter
    tries = rng.uniform(-margin, np.array([frame.width, frame.height]) + margin, (4 * n + 8, 2))
    inside = np.clip(tries.astype(int), 0, [frame.width - 1, frame.height - 1])
    chance = density[inside[:, 1], inside[:, 0]]
    tries = tries[rng.random(len(tries)) < chance / np.quantile(density[::16, ::16], 0.98)]
    taken = np.zeros(len(tries), bool)
    near: list[list[int]] = cKDTree(tries).query_ball_point(tries, spacing).tolist()
    left = n
    for i, others in enumerate(near):
        if not left:
            break
        if not any(taken[j] for j in others):
            taken[i] = True
            left -= 1
    return tries[taken]


def _angles(preparation: Preparation, n: int, rng: np.random.Generator) -> np.ndarray:
    angles = random_angles(rng, n)
    preferring = rng.random(n) < preparation.habits.preferred
    liked = preparation.liked[rng.integers(len(preparation.liked), size=n)]
    angles[preferring, :2] = (liked + rng.normal(0, 8, (n, 2)))[preferring]
    return angles


def _drawn(
    preparation: Preparation,
    frame: Frame,
    layers: Layers,
    bodies: Bodies,
    rng: np.random.Generator,
) -> Bodies:
    """Add the bodies' phase to the layers, and find how much of each is covered by others."""
    sheet = np.zeros(frame.shape, np.float32)
    forms = rng.integers(_FORMS * 2, size=len(bodies.places))
    contrast = np.exp(rng.normal(0, 0.1, len(bodies.places)))
    overlap = np.zeros(len(bodies.places), np.float32)
    stamps: list[tuple[int, tuple[slice, slice], np.ndarray]] = []
    for kind, projectors in preparation.projectors.items():
        for form, projector in enumerate(projectors):
            mine = np.flatnonzero((bodies.kind == kind) & (forms % len(projectors) == form))
            for some in np.split(mine, range(_BATCH, len(mine), _BATCH)):
                stamps += _stamps(projector, frame, bodies, some, contrast * preparation.scale)
    for _, where, stamp in stamps:
        sheet[where] += stamp
    for i, where, stamp in stamps:
        own = stamp > 0.25 * stamp.max(initial=1e-9)
        others = np.clip(sheet[where] - stamp, 0, None)
        overlap[i] = others[own].sum() / max(float(stamp[own].sum()), 1e-9)
    layers.phase += sheet
    return Bodies(bodies.places, bodies.angles, bodies.kind, bodies.clump, overlap)


def _stamps(
    projector: Projector,
    frame: Frame,
    bodies: Bodies,
    some: np.ndarray,
    scale: np.ndarray,
) -> list[tuple[int, tuple[slice, slice], np.ndarray]]:
    """Number, place in the field and phase of each body that is in it."""
    if not len(some):
        return []
    side = projector.side
    corner = np.floor(bodies.places[some]).astype(int) - side // 2
    rest = torch.from_numpy(bodies.places[some] - corner).float()
    slices = shifted(projector.slices(bodies.angles[some]), rest)
    phases = torch.fft.irfft2(slices, s=(side, side)).numpy()
    phases *= scale[some, None, None].astype(np.float32)
    made = []
    for i, (x, y), phase in zip(some, corner, phases, strict=True):
        left, top = max(0, -x), max(0, -y)
        where = (
            slice(max(0, y), min(frame.height, max(0, y + side))),
            slice(max(0, x), min(frame.width, max(0, x + side))),
        )
        rows, columns = where[0].stop - where[0].start, where[1].stop - where[1].start
        if rows > 0 and columns > 0:
            made.append((int(i), where, phase[top : top + rows, left : left + columns]))
    return made
