"""Projects as pickers deliver them: micrographs are simulated and picked, and boxes cut at the picks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch
from scipy.fft import next_fast_len

from cryoray.errors import SettingsError
from cryoray.formats.mrc import StackWriter
from cryoray.formats.volume import write_volume
from cryoray.settings import SimulateSettings
from cryoray.simulation import microscope, picking
from cryoray.simulation.backgrounds import (
    background_piece,
    find_backgrounds,
    read_background,
    real_layers,
)
from cryoray.simulation.contamination import CLEAR, Frame, contaminate
from cryoray.simulation.junk import PARTICLE
from cryoray.simulation.micrograph import Micrograph, Noise, expose, noise_of
from cryoray.simulation.microscope import Exposure, Optics
from cryoray.simulation.phantom import Structure, blurred_density, random_structure
from cryoray.simulation.picking import Habit, Picks, Truth
from cryoray.simulation.specimen import (
    WHOLE,
    Preparation,
    field_of_view,
    prepared,
    random_habits,
)
from cryoray.simulation.tables import (
    Row,
    micrograph_name,
    stack_name,
    truth_row,
    write_micrographs,
    write_tables,
)
from cryoray.simulation.versions import binned, developed, masked

#: Å; and the box over the diameter, as people choose it.
_DIAMETERS, _BOXES = (70.0, 350.0), (1.35, 2.8)
#: Å/px of images of small boxes.
_COARSEST = 8.0
#: A particle must fit its box with some background round it.
_LARGEST = 0.85
#: px: no micrograph is larger or smaller than this on either side; cut off so that nothing wraps round.
_LARGEST_SIDE, _SMALLEST_SIDE, _MARGIN = 2000, 320, 32
#: Exposures over which the stated signal-to-noise ratio is the mean, and views.
_EXPOSURES, _VIEWS = 8, 24
#: A threshold is set on this many micrographs, and lowered after so many without a pick; as many may be left
#: out one after the other, of which more than this share is film or dirt.
_LOOKED_AT, _BARREN, _DIRTY = 2, 5, 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Project:
    """What is the same for all micrographs of a project.

    Attributes:
        number: of the project; with the seed it makes all that is random.
        structure: the protein, without detergent.
        preparation: it on its grids.
        optics: of the microscope.
        noise: of its images.
        habit: how it is picked.
        templates: for the template picker.
        frame: the pixels of a micrograph, with a margin that is cut off.
        box: px, of what is cut out.
        snr: signal-to-noise ratio as drawn.
        defocus: Å, least and most.
        drifting: share of the micrographs that moved.
        whole_boxes: whether picks are left out whose box reaches out of the micrograph.
        mask: radius of the mask of the masked version, over the box.
        version: of `versions.VERSIONS`.
        tidy: whether bad micrographs are left out.
        patience: share of particles among the picks from which nobody looks for a better way to pick.
        membrane: whether the protein sits in a micelle.
        backgrounds: real micrographs to lie on, or none.
    """

    number: int
    structure: Structure
    preparation: Preparation
    optics: Optics
    noise: Noise
    habit: Habit
    templates: torch.Tensor
    frame: Frame
    box: int
    snr: float
    defocus: tuple[float, float]
    drifting: float
    whole_boxes: bool
    mask: float
    version: str
    tidy: bool
    patience: float
    membrane: bool
    backgrounds: tuple[Path, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """A micrograph in its version, its picks, what is true of them, and their boxes.

    Attributes:
        micrograph: as it was formed, without the margin.
        pixels: float32 [height, width], as it is kept.
        picks: places in px of the micrograph.
        truth: what lies under each.
        images: float32 [n, box, box], protein bright, normalised; cut as `boxes` does.
    """

    micrograph: Micrograph
    pixels: np.ndarray
    picks: Picks
    truth: Truth
    images: torch.Tensor


def generator(seed: int, *place: int) -> np.random.Generator:
    """A stream of its own for each project and micrograph, so that none depends on how many there are."""
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=place))


def plan(chosen: SimulateSettings, number: int, family: str, given: Structure | None) -> Project:
    """Draw a project.

    Args:
        chosen: what of it is settled.
        number: of the project.
        family: of the phantom.
        given: the structure, in place of a phantom.

    Raises:
        SettingsError: the protein does not fit the box.
        InputError: the folder of backgrounds holds none.
    """
    rng = generator(chosen.seed, number)
    ratio = float(rng.uniform(*_BOXES))
    wanted = float(np.exp(rng.uniform(*np.log(_DIAMETERS))))
    wanted = min(wanted, _COARSEST * chosen.box / ratio)
    if chosen.pixel_size is not None:
        wanted = chosen.box * chosen.pixel_size / ratio
    structure = given or random_structure(rng, wanted, family)
    pixel_size = chosen.pixel_size or round(structure.diameter * ratio / chosen.box, 4)
    if structure.diameter / pixel_size > _LARGEST * chosen.box:
        raise SettingsError(
            f"a protein of {structure.diameter:.0f} Å does not fit a box of {chosen.box} px at"
            f" {pixel_size:g} Å/px",
            file=chosen.structure,
            remedy="give a larger box or pixel_size",
        )
    membrane = bool(rng.random() < 0.3 and structure.diameter < 220)
    habits = random_habits(rng, structure.diameter, membrane)
    preparation = prepared(structure, habits, pixel_size, rng, membrane=membrane)
    optics = Optics(
        voltage=float(rng.choice([300, 300, 200])),
        spherical_aberration=2.7,
        amplitude_contrast=0.1,
        pixel_size=pixel_size,
        original_pixel_size=pixel_size,  # micrographs are written at the sampling of the boxes
        ice=float(np.exp(rng.uniform(np.log(0.25), np.log(2.5)))),
        debris=float(np.exp(rng.uniform(np.log(3), np.log(60)))),
        thickness=float(np.exp(rng.uniform(np.log(0.3), np.log(4)))),
        detector=float(rng.uniform(0.5, 1.0)),
    )
    low = float(rng.uniform(0.5e4, 1.6e4))
    defocus = (low, low + float(rng.uniform(0.4e4, 2.0e4)))
    snr = chosen.snr * float(np.exp(rng.normal(0, 0.12)))
    habit = picking.random_habit(rng)
    spare = {
        "drifting": float(rng.uniform(0, 0.25)) if rng.random() < 0.3 else 0.0,
        "whole_boxes": bool(rng.random() < 0.6),
        "mask": float(rng.uniform(0.38, 0.5)),
        "hot": float(np.exp(rng.uniform(-14, -9))) if rng.random() < 0.4 else 0.0,
        "debris_size": float(rng.uniform(30, 120)),
        "debris_fall": float(rng.uniform(0.6, 1.1)),
        "waves": float(rng.uniform(0.7, 1.3)),
        "tidy": bool(rng.random() < 0.6),
        "patience": float(rng.uniform(0.2, 0.8)),
    }
    noise = _noise(preparation, optics, defocus, snr, spare, rng)
    if chosen.dose is not None:
        louder = 1 / (noise.shot * pixel_size * np.sqrt(chosen.dose))
        noise, snr = noise.scaled(louder), snr / louder**2
    backgrounds = tuple(find_backgrounds(chosen.backgrounds)) if chosen.backgrounds else ()
    diameter = structure.diameter / pixel_size
    return Project(
        number=number,
        structure=structure,
        preparation=preparation,
        optics=optics,
        noise=noise,
        habit=habit,
        templates=picking.references(preparation.projectors[WHOLE][0], rng),
        frame=_frame(chosen, diameter, pixel_size, habits.crowding * habit.appetite, rng),
        box=chosen.box,
        snr=snr,
        defocus=defocus,
        drifting=float(spare["drifting"]),
        whole_boxes=bool(spare["whole_boxes"]),
        mask=float(spare["mask"]),
        version=chosen.version,
        tidy=bool(spare["tidy"]),
        patience=float(spare["patience"]),
        membrane=membrane,
        backgrounds=backgrounds,
    )


def _noise(
    preparation: Preparation,
    optics: Optics,
    defocus: tuple[float, float],
    snr: float,
    spare: dict[str, float | bool],
    rng: np.random.Generator,
) -> Noise:
    """Noise that gives the stated ratio as a mean over exposures and views."""
    projector = preparation.projectors[WHOLE][0]
    slices = projector.slices(microscope.random_angles(rng, _VIEWS)) * (2 * preparation.scale)
    diameter = projector.side / 1.35
    exposures = [_exposure(defocus, rng) for _ in range(_EXPOSURES)]
    contrasts = torch.stack([microscope.transfer(optics, e, projector.side) for e in exposures])
    power = float(np.mean([_variance(slices * contrast, diameter) for contrast in contrasts]))
    waves = np.sqrt(np.pi * optics.thickness) * optics.pixel_size / 70 * float(spare["waves"])
    square = contrasts.square().mean(0).sqrt()
    size, fall = float(spare["debris_size"]), float(spare["debris_fall"])
    noise = noise_of(optics, power, snr, square, float(waves), size, fall)
    return replace(noise, hot=float(spare["hot"]))


def _variance(spectra: torch.Tensor, diameter: float) -> float:
    """Mean over images of the variance inside the particle's circular mask."""
    side = spectra.shape[1]
    place = torch.fft.fftfreq(side) * side
    inside = place[:, None] ** 2 + place**2 <= (diameter / 2) ** 2
    return float(torch.fft.irfft2(spectra, s=(side, side))[:, inside].var(1).mean())


def _frame(
    chosen: SimulateSettings,
    diameter: float,
    pixel_size: float,
    density: float,
    rng: np.random.Generator,
) -> Frame:
    """A field of view in which about as many are picked as are wanted."""
    area = chosen.per_micrograph / density * diameter**2
    aspect = float(rng.choice([1.0, 1.0, 1.4]))
    least = max(_SMALLEST_SIDE, 3 * chosen.box)
    sides = (np.sqrt(area / aspect), np.sqrt(area * aspect))
    height, width = (int(np.clip(side, least, _LARGEST_SIDE)) + 2 * _MARGIN for side in sides)
    fast = [int(next_fast_len(side, real=True)) for side in (height, width)]
    return Frame(fast[0] + fast[0] % 2, fast[1] + fast[1] % 2, pixel_size, diameter)


def _exposure(defocus: tuple[float, float], rng: np.random.Generator) -> Exposure:
    middle, half = rng.uniform(*defocus), abs(rng.normal(0, 120))
    return Exposure(
        defocus_u=float(middle + half),
        defocus_v=float(middle - half),
        defocus_angle=float(rng.uniform(-90, 90)),
        b_factor=float(rng.uniform(60, 250)),
        contrast=1.0,
    )


def form(project: Project, seed: int, number: int, dirtiest: float = 1.0) -> Micrograph | None:
    """Micrograph ``number`` of a project, from 0 on; the margin is cut off.

    None where more than ``dirtiest`` of it is film or dirt.
    """
    rng = generator(seed, project.number, number)
    exposure = _exposure(project.defocus, rng)
    motion = (0.0, 0.0)
    if rng.random() < project.drifting:
        way, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.5) * project.frame.diameter
        motion = (float(length * np.cos(way)), float(length * np.sin(way)))
    thickness = project.preparation.habits.ice * float(np.exp(rng.normal(0, 0.25)))
    frame, noise, piece, layers = project.frame, project.noise, None, None
    if project.backgrounds:
        image = read_background(project.backgrounds[int(rng.integers(len(project.backgrounds)))])
        piece = background_piece(image, frame.shape, rng)
        frame = replace(frame, height=piece.shape[0], width=piece.shape[1])
        layers = real_layers(piece, frame)
        noise = replace(noise, shot=noise.total)
    else:
        # Electrons that thick ice scatters inelastically are lost to the image.
        noise = replace(noise, shot=noise.shot * float(np.exp(thickness / 6400)))
        layers = contaminate(frame, project.preparation.habits.rates, rng)
    if (layers.what != CLEAR).mean() > dirtiest:
        return None
    specimen = field_of_view(project.preparation, frame, layers, rng)
    made = expose(specimen, project.optics, exposure, noise, thickness, motion, rng, piece)
    return made if project.backgrounds else _inner(made, _MARGIN)


def _inner(made: Micrograph, margin: int) -> Micrograph:
    inner = (slice(margin, -margin),) * 2
    specimen, layers = made.specimen, made.specimen.layers
    frame = replace(
        specimen.frame,
        height=specimen.frame.height - 2 * margin,
        width=specimen.frame.width - 2 * margin,
    )
    cut = replace(
        layers,
        phase=layers.phase[inner],
        loss=layers.loss[inner],
        grain=layers.grain[inner],
        what=layers.what[inner],
    )
    bodies = replace(specimen.bodies, places=specimen.bodies.places - margin)
    specimen = replace(specimen, frame=frame, bodies=bodies, layers=cut)
    return replace(made, pixels=np.ascontiguousarray(made.pixels[inner]), specimen=specimen)


def _curated(project: Project, seed: int) -> Iterator[tuple[int, Micrograph]]:
    """Numbers and micrographs; tidy people leave out those that are mostly film or dirt, but not all."""
    left_out = 0
    for number in count():
        tidy = project.tidy and left_out < _BARREN
        made = form(project, seed, number, _DIRTY if tidy else 1.0)
        left_out = left_out + 1 if made is None else 0
        if made is not None:
            yield number, made


def picked(project: Project, seed: int) -> Iterator[Picked]:
    """The micrographs of a project one after the other, picked; without end.

    On the first ones somebody sets the threshold, so that there are as many picks as they like, and takes
    the other picker or fewer picks where most are wrong. That holds for all. Where nothing passes the
    threshold for long, it is lowered.
    """
    micrographs = _curated(project, seed)
    first = [next(micrographs) for _ in range(_LOOKED_AT)]
    project, threshold = _settled(project, [made for _, made in first])
    barren = 0
    for number, made in chain(first, micrographs):
        found = _found(project, made)
        found = found[found.merit >= threshold]
        rng = generator(seed, project.number, number, 1)
        error = rng.normal(0, project.habit.error * project.frame.diameter, found.places.shape)
        # As the STAR file has them, so that whoever cuts again cuts the same pixels.
        found = Picks(np.round(found.places + error, 2), found.merit)
        height, width = made.pixels.shape
        reach = project.box * (0.5 if project.whole_boxes else 0.32) + 1
        limits = np.array([width, height]) - reach
        inside = np.all((found.places >= reach) & (found.places <= limits), axis=1)
        found = found[np.flatnonzero(inside)]
        barren = 0 if len(found.merit) else barren + 1
        if barren >= _BARREN:
            threshold -= 0.1 * abs(threshold) + 0.1
        yield _cut(project, made, found, seed)


def _settled(project: Project, made: list[Micrograph]) -> tuple[Project, float]:
    """The project with the picker and the appetite that were kept, and the threshold."""
    best: tuple[float, Project, float] | None = None
    found: dict[str, list[Picks]] = {}
    for less in (1.0, 0.6):
        for picker in sorted(picking.PICKERS, key=lambda name: name != project.habit.picker):
            appetite = less * project.habit.appetite
            tried = replace(project, habit=replace(project.habit, picker=picker, appetite=appetite))
            if picker not in found:
                found[picker] = [_found(tried, one) for one in made]
            threshold = _threshold(tried, made, found[picker])
            good = total = 0
            for one, picks in zip(made, found[picker], strict=True):
                places = picks.places[picks.merit >= threshold]
                kinds = picking.look_under(places, one.specimen, one.motion).kind
                good, total = good + int((kinds == PARTICLE).sum()), total + len(kinds)
            share = good / max(1, total)
            if best is None or share > best[0]:
                best = (share, tried, threshold)
            if share >= project.patience:
                return tried, threshold
    assert best is not None
    return best[1], best[2]


def _found(project: Project, made: Micrograph) -> Picks:
    return picking.pick(made.pixels, project.frame.diameter, project.habit, project.templates)


def _threshold(project: Project, made: list[Micrograph], found: list[Picks]) -> float:
    merits = np.concatenate([picks.merit for picks in found])
    area = sum(one.pixels.size for one in made) / project.frame.diameter**2
    wanted = int(project.habit.appetite * project.preparation.habits.crowding * area) + 1
    return float(np.sort(merits)[-min(wanted, len(merits))]) if len(merits) else -np.inf


def _cut(project: Project, made: Micrograph, found: Picks, seed: int) -> Picked:
    """Develop the micrograph and cut boxes out of it."""
    strengths = generator(seed, project.number, 2**20)  # the same in all micrographs of a project
    kept = developed(made.pixels, project.version, project.optics.pixel_size, strengths)
    middles = np.trunc(found.places)
    truth = picking.look_under(middles, made.specimen, made.motion)
    if not len(middles):
        side = project.box // 2 if project.version == "binned" else project.box
        return Picked(made, kept, found, truth, torch.zeros(0, side, side))
    images = microscope.normalised(-boxes(kept, found.places, project.box))
    if project.version == "masked":
        images = masked(images, project.mask)
    if project.version == "binned":
        images = binned(images, project.box // 2)
    return Picked(made, kept, found, truth, images)


def boxes(pixels: np.ndarray, places: np.ndarray, box: int) -> torch.Tensor:
    """Boxes with their pixel ``box // 2`` at places without their fraction, as RELION cuts them.

    Where a box reaches out of the micrograph, the last row or column is repeated.

    Args:
        pixels: float32 [height, width].
        places: x and y, px, [n, 2].
        box: px.

    Returns:
        float32 [n, box, box].
    """
    height, width = pixels.shape
    corner = np.trunc(places).astype(np.int64) - box // 2
    span = np.arange(box)
    rows = np.clip(corner[:, 1, None] + span, 0, height - 1)
    columns = np.clip(corner[:, 0, None] + span, 0, width - 1)
    return torch.from_numpy(pixels[rows[:, :, None], columns[:, None, :]])


def write_picked(
    folder: Path, project: Project, chosen: SimulateSettings, on_images: Callable[[int], None]
) -> Row:
    """Simulate micrographs until enough is picked, and write everything.

    Where a micrograph has more picks than are wanted of one, or than are still missing, some are taken at
    random.

    Args:
        folder: of the project.
        project: of `plan`.
        chosen: images, seed, share of mislabelled images, and whether micrographs are written.
        on_images: called with the images that are written, after each micrograph.

    Returns:
        counts of images, of good ones, of mislabelled ones and of micrographs.
    """
    rows: list[Row] = []
    truth: list[Row] = []
    ambiguity: list[float] = []
    pixel_size, box = project.optics.pixel_size, project.box
    if project.version == "binned":
        pixel_size, box = 2 * pixel_size, box // 2
    number = 0
    for one in picked(project, chosen.seed):
        rng = generator(chosen.seed, project.number, number, 2)
        some = np.arange(len(one.picks.merit))
        most = min(chosen.per_micrograph, chosen.images - len(rows))
        if len(some) > most:
            some = np.sort(rng.choice(some, most, replace=False))
        if chosen.written:
            height, width = one.pixels.shape
            path = folder / micrograph_name(number)
            with StackWriter(path, height, width, "float32", project.optics.pixel_size) as writer:
                writer.append(one.pixels[None])
        if len(some):
            stack = stack_name(number)
            with StackWriter(folder / stack, box, box, "float32", pixel_size) as writer:
                writer.append(one.images[torch.from_numpy(some)].numpy())
            rows += _particle_rows(number, project, one, some, pixel_size, rng)
            truth += _truth_rows(stack, project, one, some)
            ambiguity += one.truth.ambiguity[some].tolist()
        number += 1
        on_images(len(rows))
        if len(rows) == chosen.images:
            break
    keep, selected = write_tables(
        folder,
        project.optics,
        box,
        pixel_size,
        rows,
        truth,
        np.array(ambiguity),
        chosen.human_error,
        generator(chosen.seed, project.number, 2**20, 1),
    )
    if chosen.written:
        write_micrographs(folder, project.optics, number)
    write_volume(
        folder / "truth.mrc", blurred_density(project.structure, box, pixel_size), pixel_size
    )
    return {
        "images": len(rows),
        "keep": int(keep.sum()),
        "mislabelled": int((selected != keep).sum()),
        "micrographs": number,
    }


def _particle_rows(
    number: int,
    project: Project,
    one: Picked,
    some: np.ndarray,
    pixel_size: float,
    rng: np.random.Generator,
) -> list[Row]:
    """Rows of ``particles.star``; angles are true where there is a particle, and mean nothing elsewhere."""
    exposure = one.micrograph.exposure
    resolution = max(2.2 * pixel_size, 4.5 * float(np.exp(rng.normal(0, 0.2))))
    merit = float(np.clip(rng.normal(0.12, 0.03), 0.01, None))
    angles = microscope.random_angles(rng, len(one.picks.merit))
    seen = one.truth.body >= 0
    angles[seen] = one.micrograph.specimen.bodies.angles[one.truth.body[seen]]
    # An origin is how far the image has to be moved to have the particle in its middle.
    origins = -one.truth.offset * project.optics.pixel_size
    return [
        {
            "rlnCoordinateX": f"{one.picks.places[i, 0]:.2f}",
            "rlnCoordinateY": f"{one.picks.places[i, 1]:.2f}",
            "rlnAutopickFigureOfMerit": f"{one.picks.merit[i]:.6f}",
            "rlnImageName": f"{index:06d}@{stack_name(number)}",
            "rlnMicrographName": micrograph_name(number),
            "rlnOpticsGroup": 1,
            "rlnCtfMaxResolution": f"{resolution:.4f}",
            "rlnCtfFigureOfMerit": f"{merit:.6f}",
            "rlnDefocusU": f"{exposure.defocus_u:.3f}",
            "rlnDefocusV": f"{exposure.defocus_v:.3f}",
            "rlnDefocusAngle": f"{exposure.defocus_angle:.4f}",
            "rlnPhaseShift": f"{0:.3f}",
            "rlnAngleRot": f"{angles[i, 0]:.4f}",
            "rlnAngleTilt": f"{angles[i, 1]:.4f}",
            "rlnAnglePsi": f"{angles[i, 2]:.4f}",
            "rlnOriginXAngst": f"{origins[i, 0]:.4f}",
            "rlnOriginYAngst": f"{origins[i, 1]:.4f}",
            "rlnRandomSubset": 1 + index % 2,
        }
        for index, i in enumerate(some.tolist(), 1)
    ]


def _truth_rows(stack: str, project: Project, one: Picked, some: np.ndarray) -> list[Row]:
    truth, bodies = one.truth, one.micrograph.specimen.bodies
    scale = 2 if project.version == "binned" else 1
    rows = []
    for index, i in enumerate(some.tolist(), 1):
        body = int(truth.body[i])
        pose = [*bodies.angles[body], *(truth.offset[i] / scale)] if body >= 0 else []
        rows.append(truth_row(stack, index, str(truth.kind[i]), pose, str(truth.detail[i])))
    return rows


def describe(project: Project) -> Row:
    """What a project is of, for ``collection.json``."""
    habits = project.preparation.habits
    return {
        "structure": project.structure.name,
        "diameter": round(project.structure.diameter, 1),
        "snr": round(project.snr, 5),
        "dose": round(1 / (project.noise.shot * project.optics.pixel_size) ** 2, 2),
        "version": project.version,
        "membrane": project.membrane,
        "picker": project.habit.picker,
        "appetite": round(project.habit.appetite, 3),
        "crowding": round(habits.crowding, 3),
        "broken": round(habits.broken, 3),
        "ice_thickness": round(habits.ice, 1),
        **asdict(project.optics),
    }
