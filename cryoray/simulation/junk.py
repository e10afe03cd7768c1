"""What a picker finds: centred particles, and each kind of junk that a microscope really produces.

empty        ice and nothing else
ice          crystals with lattice lines, frost, ethane, mottled hexagonal ice
carbon       the edge of the support film, or the film itself
aggregate    several particles on top of each other
off_centre   a particle beside the centre, or one on either side
broken       a particle of which parts are missing or unfolded
drift        a particle smeared by motion
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

PARTICLE = "particle"
KINDS = ("empty", "ice", "carbon", "aggregate", "off_centre", "broken", "drift")

#: Standard deviation of the picker's error in each direction, and its largest, over the box.
_CENTRING, _WORST_CENTRING = 0.025, 0.08
#: Off centre is what lies at least this far out, over the box.
OFF_CENTRE = 0.35


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What lies on a canvas before the microscope makes an image of it.

    Attributes:
        kind: `PARTICLE` or one of `KINDS`.
        places: [k, 2], x and y of particles in px from the centre, the picked one first.
        weights: [k], the contrast of each.
        picked: whether the first of them is what was picked (it is then seen at the image's own
            angles, and broken where the kind says so).
        motion: x and y in px over which the specimen moved.
        scatter: [side, side] or None: other matter, which the CTF acts on; noise deviations.
        absorb: [side, side] or None: contrast that is there at any frequency; noise deviations.
        ambiguity: how easily a person takes it for the wrong thing, 0 to 1.
    """

    kind: str
    places: np.ndarray
    weights: np.ndarray
    picked: bool
    motion: tuple[float, float] = (0.0, 0.0)
    scatter: np.ndarray | None = None
    absorb: np.ndarray | None = None
    ambiguity: float = 0.3


@dataclass(frozen=True, slots=True)
class Stage:
    """The sizes that scenes are built with.

    Attributes:
        box: px.
        side: of the canvas, px.
        diameter: of the particle, px.
        pixel_size: Å/px.
        crowding: particles per square of the diameter, elsewhere on the canvas.
    """

    box: int
    side: int
    diameter: float
    pixel_size: float
    crowding: float


def scene(kind: str, stage: Stage, rng: np.random.Generator) -> Scene:
    """A scene of this kind, neighbours included."""
    made = _SCENES[kind](stage, rng)
    clear = stage.diameter * (0.9 if kind != "empty" else 1.1)
    return _with_neighbours(made, stage, rng, clear)


def _with_neighbours(made: Scene, stage: Stage, rng: np.random.Generator, clear: float) -> Scene:
    """Add particles where the canvas is free; particles in ice keep their distance."""
    places = [*made.places]
    for _ in range(rng.poisson(stage.crowding * (stage.side / stage.diameter) ** 2)):
        place = rng.uniform(-stage.side / 2, stage.side / 2, 2)
        if all(np.hypot(*(place - other)) > clear for other in [np.zeros(2), *places]):
            places.append(place)
    weights = np.concatenate([made.weights, _contrast(rng, len(places) - len(made.places))])
    return replace(made, places=np.array(places).reshape(-1, 2), weights=weights)


def _contrast(rng: np.random.Generator, n: int) -> np.ndarray:
    """Particles differ: in height within the ice, and in the ice around them."""
    return np.exp(rng.normal(0, 0.1, n))


def _centre(stage: Stage, rng: np.random.Generator) -> np.ndarray:
    error = rng.normal(0, _CENTRING * stage.box, (1, 2))
    return error * min(1.0, _WORST_CENTRING * stage.box / np.hypot(*error[0]))


def _particle(stage: Stage, rng: np.random.Generator) -> Scene:
    place = _centre(stage, rng)
    off = float(np.hypot(*place[0])) / (_WORST_CENTRING * stage.box)
    return Scene(PARTICLE, place, _contrast(rng, 1), True, ambiguity=0.15 + 0.5 * off)


def _empty(stage: Stage, rng: np.random.Generator) -> Scene:
    return Scene("empty", np.zeros((0, 2)), np.zeros(0), False, ambiguity=0.4)


def _aggregate(stage: Stage, rng: np.random.Generator) -> Scene:
    more = int(rng.integers(2, 5))
    places = np.concatenate(
        [_centre(stage, rng), _around(rng, more, rng.uniform(0.25, 0.65, more) * stage.diameter)]
    )
    weights = _contrast(rng, more + 1) * rng.uniform(0.9, 1.2)
    return Scene("aggregate", places, weights, True, ambiguity=0.9 if more == 2 else 0.4)


def _off_centre(stage: Stage, rng: np.random.Generator) -> Scene:
    far = rng.uniform(OFF_CENTRE, 0.5) * stage.box
    places = _around(rng, 1, far)
    if rng.random() < 0.5:  # the picker took the gap between two
        turn = rng.uniform(0.7, 1.3) * np.pi
        rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        places = np.concatenate([places, places @ rotate.T * rng.uniform(1.0, 1.2)])
    near = 1 - (far / stage.box - OFF_CENTRE) / 0.15
    return Scene(
        "off_centre", places, _contrast(rng, len(places)), True, ambiguity=0.3 + 0.7 * near
    )


def _broken(stage: Stage, rng: np.random.Generator) -> Scene:
    return Scene("broken", _centre(stage, rng), _contrast(rng, 1), True, ambiguity=1.0)


def _drift(stage: Stage, rng: np.random.Generator) -> Scene:
    length, way = rng.uniform(0.25, 0.6), rng.uniform(0, 2 * np.pi)
    motion = length * stage.diameter * np.array([np.cos(way), np.sin(way)])
    place, weights = _centre(stage, rng), _contrast(rng, 1)
    return Scene(
        "drift", place, weights, True, tuple(motion.tolist()), ambiguity=1.15 - 1.5 * (length - 0.1)
    )


def _carbon(stage: Stage, rng: np.random.Generator) -> Scene:
    """Film on one side of a hole's rim: strong amorphous texture, a Fresnel fringe at the rim."""
    y, x = _axes(stage.side)
    radius, way = rng.uniform(4e3, 1.2e4) / stage.pixel_size, rng.uniform(0, 2 * np.pi)
    away = radius + rng.uniform(-0.35, 0.3) * stage.box
    inside = np.hypot(x - away * np.cos(way), y - away * np.sin(way)) - radius
    rough = ndimage.gaussian_filter(rng.normal(size=inside.shape), 25 / stage.pixel_size)
    film = _step(-inside + rough / rough.std() * rng.uniform(4, 15) / stage.pixel_size, 1.5)
    texture = _band(rng, stage, 1 / 200, 1 / 7)
    scatter = film * (rng.uniform(0.8, 1.8) * texture + rng.uniform(0.5, 2.5))
    places = np.zeros((0, 2)) if rng.random() < 0.6 else _centre(stage, rng)
    return Scene(
        "carbon",
        places,
        _contrast(rng, len(places)),
        len(places) > 0,
        scatter=scatter,
        absorb=film * rng.uniform(0.1, 0.6),
        ambiguity=0.15 + 0.5 * (len(places) > 0),
    )


def _ice(stage: Stage, rng: np.random.Generator) -> Scene:
    scatter = np.zeros((stage.side, stage.side))
    absorb = np.zeros_like(scatter)
    _ICE[rng.integers(len(_ICE))](stage, rng, scatter, absorb)
    places = np.zeros((0, 2)) if rng.random() < 0.7 else _centre(stage, rng)
    return Scene(
        "ice",
        places,
        _contrast(rng, len(places)),
        len(places) > 0,
        scatter=scatter,
        absorb=absorb,
        ambiguity=0.1 + 0.2 * (len(places) > 0),
    )


def _lattice(
    stage: Stage, rng: np.random.Generator, scatter: np.ndarray, absorb: np.ndarray
) -> None:
    """Small crystals with a few bright lattice lines each, as frozen contamination shows them."""
    way = rng.uniform(0, np.pi)
    for cx, cy in _around(rng, int(rng.integers(1, 4)), rng.uniform(0.0, 0.3) * stage.box):
        y, x = _axes(stage.side)
        along = (x - cx) * np.cos(way) + (y - cy) * np.sin(way)
        across = (y - cy) * np.cos(way) - (x - cx) * np.sin(way)
        period = max(3.0, rng.uniform(12, 26) / stage.pixel_size)
        length, width = period * rng.uniform(0.7, 1.6), period * rng.uniform(0.5, 1.2)
        lines = np.clip(np.cos(2 * np.pi * (across + 0.25 * along) / period), 0, 1) ** 3
        window = np.exp(-((along / length) ** 2) / 2 - (across / width) ** 2 / 2)
        absorb += rng.uniform(3, 9) * lines * window
        scatter += rng.uniform(0, 2) * window


def _frost(stage: Stage, rng: np.random.Generator, scatter: np.ndarray, absorb: np.ndarray) -> None:
    """Dense lumps with ragged outlines."""
    y, x = _axes(stage.side)
    for cx, cy in _around(rng, int(rng.integers(1, 4)), rng.uniform(0.0, 0.35) * stage.box):
        rough = ndimage.gaussian_filter(rng.normal(size=absorb.shape), stage.box / 14)
        radius = rng.uniform(0.08, 0.22) * stage.box * (1 + 0.3 * rough / rough.std())
        lump = _step(radius - np.hypot(x - cx, y - cy), rng.uniform(0.01, 0.04) * stage.box)
        absorb += lump * rng.uniform(0.3, 1.6) * rng.choice([1, -0.6], p=[0.8, 0.2])
        scatter += lump * (rng.uniform(1, 4) + _band(rng, stage, 1 / 80, 1 / 10))


def _ethane(
    stage: Stage, rng: np.random.Generator, scatter: np.ndarray, absorb: np.ndarray
) -> None:
    """Smooth round drops with a fringe."""
    y, x = _axes(stage.side)
    for cx, cy in _around(rng, int(rng.integers(1, 3)), rng.uniform(0.0, 0.35) * stage.box):
        radius, squeeze = rng.uniform(0.12, 0.38) * stage.box, rng.uniform(0.9, 1.1)
        drop = _step(
            radius - np.hypot((x - cx) * squeeze, (y - cy) / squeeze),
            rng.uniform(0.01, 0.03) * stage.box,
        )
        absorb += drop * rng.uniform(0.15, 0.7)
        scatter += drop * rng.uniform(1, 5)


def _hexagonal(
    stage: Stage, rng: np.random.Generator, scatter: np.ndarray, absorb: np.ndarray
) -> None:
    """Mottled ice, in a patch or everywhere."""
    mottle = _band(rng, stage, 1 / rng.uniform(80, 200), 1 / rng.uniform(12, 40))
    y, x = _axes(stage.side)
    way, edge = rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 1.2) * stage.box / 2
    rough = ndimage.gaussian_filter(rng.normal(size=absorb.shape), stage.box / 20)
    inside = edge - x * np.cos(way) - y * np.sin(way) + rough / rough.std() * stage.box / 20
    patch = _step(inside, stage.box / 50)
    absorb += patch * (mottle * rng.uniform(0.25, 0.8) + rng.uniform(0, 0.3))
    scatter += patch * mottle * rng.uniform(0.3, 1.5)


_ICE = (_lattice, _frost, _ethane, _hexagonal)

_SCENES: dict[str, Callable[[Stage, np.random.Generator], Scene]] = {
    PARTICLE: _particle,
    "empty": _empty,
    "ice": _ice,
    "carbon": _carbon,
    "aggregate": _aggregate,
    "off_centre": _off_centre,
    "broken": _broken,
    "drift": _drift,
}


def _axes(side: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(side, dtype=float) - side // 2
    return axis[:, None], axis[None]


def _around(rng: np.random.Generator, n: int, far: np.ndarray | float) -> np.ndarray:
    """Places [n, 2] in any direction, ``far`` from the centre."""
    way = rng.uniform(0, 2 * np.pi, n)
    return np.stack([far * np.cos(way), far * np.sin(way)], 1)


def _step(inside: np.ndarray, width: float) -> np.ndarray:
    """1 where ``inside`` is positive, 0 where negative, softened over ``width`` px."""
    return 1 / (1 + np.exp(-np.clip(inside / width, -30, 30)))


def _band(rng: np.random.Generator, stage: Stage, low: float, high: float) -> np.ndarray:
    """Texture of unit variance between two spatial frequencies (1/Å), [side, side]."""
    ky = np.fft.fftfreq(stage.side, stage.pixel_size)[:, None]
    k2 = ky**2 + np.fft.rfftfreq(stage.side, stage.pixel_size) ** 2
    gain = np.exp(-k2 / high**2) * (1 - np.exp(-k2 / low**2))
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(stage.side, stage.side))) * gain)
    return field / field.std()
