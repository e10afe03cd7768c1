"""The maps of a job's 3D classes as a network's input: pictures of them, prepared as 2D classes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cryoray.errors import FormatError
from cryoray.formats.class_volumes import VolumeClasses
from cryoray.formats.volume import read_volume
from cryoray.preparation.class_relations import around, relations, window
from cryoray.preparation.prepare import prepare_images
from cryoray.preparation.reader import reason
from cryoray.preparation.volume_features import SLICES, measure, pictures
from cryoray.records import OnProgress, PreparedRows, Progress, ignore
from cryoray.settings import PreparationSettings


@dataclass(frozen=True, slots=True, eq=False)
class Map:
    """A map that was read.

    Attributes:
        row: of its class, 0-based.
        pictures: float32 [SLICES + views, s, s].
        pixel_size: of the pictures, Å/px, NaN where it is not known.
        radius: of the particle's sphere, px of the pictures.
        measured: float by name of `volume_features.MEASURED`.
    """

    row: int
    pictures: np.ndarray
    pixel_size: float
    radius: float
    measured: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class VolumePlan:
    """What will be judged of a job's classes.

    Attributes:
        classes: all of the job.
        maps: of those that can be read, in their order.
        quarantined: (0-based row, reason) of the others.
    """

    classes: VolumeClasses
    maps: tuple[Map, ...]
    quarantined: tuple[tuple[int, str], ...]


def plan_volumes(classes: VolumeClasses, on_progress: OnProgress = ignore) -> VolumePlan:
    """Read the maps of a job's classes, draw and measure them; those that cannot be read are quarantined."""
    maps: list[Map] = []
    quarantined: list[tuple[int, str]] = []
    particles = classes.particles
    for row, path in enumerate(classes.volumes):
        on_progress(Progress("look", row + 1, len(classes), "classes"))
        if particles[row] == 0:
            quarantined.append((row, "no particle belongs to it"))
            continue
        try:
            volume, pixel_size = read_volume(path)
            pixel_size = classes.pixel_size or pixel_size
            radius = 0.5
            if classes.diameter and pixel_size:
                radius = min(radius, classes.diameter / pixel_size / len(volume) / 2)
            measured = measure(volume, radius)
            drawn, side = pictures(volume)
        except FormatError as error:
            quarantined.append((row, reason(error)))
            continue
        scale = (pixel_size or np.nan) * len(volume) / side
        maps.append(Map(row, drawn, scale, radius * side, measured))
    return VolumePlan(classes, tuple(maps), tuple(quarantined))


def prepare_volumes(planned: VolumePlan, settings: PreparationSettings) -> list[PreparedRows]:
    """The pictures of each map, all of one class or none, in the order of the maps.

    Each picture has the row of its class, and no metadata. With ``settings.geometry`` ``job`` one round
    window, a fraction of their boxes, serves all classes.
    """
    names = settings.features or ()
    part = _window(planned.maps) if settings.geometry == "job" else None
    made = []
    for one in planned.maps:
        n, side = one.pictures.shape[:2]
        wide = None if part is None else max(8, 2 * round(part * side / 2))
        sizes = np.full(n, one.pixel_size, np.float32)
        images, bad = prepare_images(one.pictures, sizes, False, settings, side=wide)
        good = 0 if bad else n
        made.append(
            PreparedRows(
                rows=np.full(good, one.row, np.int64),
                images=images[:good],
                features=np.full((good, len(names)), np.nan, np.float32),
                quarantined=((one.row, next(iter(bad.values()))),) if bad else (),
            )
        )
    return made


def _window(maps: Sequence[Map]) -> float | None:
    """Side of the window for all classes of a job, a fraction of their boxes; None of no map."""
    parts = []
    for one in maps:
        views, within = around(one.pictures[SLICES:].astype(np.float64), one.radius)
        side = one.pictures.shape[1]
        parts.append(window(relations(views, within), one.radius, side) / side)
    return float(np.median(parts)) if parts else None
