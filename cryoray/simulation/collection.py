"""A small facility day on disk: projects of RELION stacks, what is true of them, what a person chose."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from cryoray.errors import InputError, SettingsError
from cryoray.formats.files import replacing
from cryoray.formats.mrc import StackWriter
from cryoray.formats.volume import write_volume
from cryoray.records import Event, OnEvent, OnProgress, Progress, ignore
from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import junk, microscope
from cryoray.simulation.junk import PARTICLE, Scene, Stage
from cryoray.simulation.microscope import Exposure, Optics, Projector
from cryoray.simulation.phantom import (
    Structure,
    blurred_density,
    damaged,
    families,
    random_structure,
    read_structure,
)
from cryoray.simulation.picked import describe, plan, write_picked
from cryoray.simulation.tables import (
    MICROGRAPHS,
    Row,
    micrograph_name,
    stack_name,
    truth_row,
    write_tables,
)

__all__ = ["MICROGRAPHS", "masked_variance", "read_truth", "simulate"]

#: Å; and the box over the diameter, as people choose it.
_DIAMETERS = (80.0, 300.0)
_BOXES = (1.4, 2.6)
#: Particles per square of the diameter: from alone to side by side.
_CROWDING = (0.03, 0.3)
#: A particle must fit its box with some background round it.
_LARGEST = 0.85
_BROKEN_FORMS = 4
#: Side of the micrograph that single boxes are said to be of, px, and how far one may reach out of it,
#: over half the box.
_MICROGRAPH, _OUTSIDE = 4096, 0.25
#: Images formed at a time, which bounds memory.
_BATCH = 100
#: Views and micrographs over which the stated signal-to-noise ratio is the mean.
_VIEWS, _EXPOSURES = 24, 12
#: Mean and deviation of the picker's figure of merit; it is weakly right, and likes ice.
_FIGURE_OF_MERIT = {
    PARTICLE: 0.30,
    "empty": 0.20,
    "ice": 0.33,
    "carbon": 0.28,
    "aggregate": 0.33,
    "off_centre": 0.23,
    "broken": 0.26,
    "drift": 0.25,
}
_FIGURE_SPREAD = 0.07
_POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")


@dataclass(frozen=True, slots=True, eq=False)
class _Project:
    """What is the same for all micrographs of a project."""

    folder: str
    structure: Structure
    stage: Stage
    optics: Optics
    exposures: tuple[Exposure, ...]
    kinds: tuple[np.ndarray, ...]
    snr: float
    signal: float
    intact: Projector
    broken: tuple[Projector, ...]


def simulate(
    out: Path, settings: Settings, *, on_progress: OnProgress = ignore, on_event: OnEvent = ignore
) -> list[Path]:
    """Simulate projects, each of another protein, with a person's selection and the truth.

    Each project is a RELION project folder: ``particles.star``, its stacks (float32, protein
    bright, normalised as RELION does), ``labels.csv`` (the person's, with the true reason for what is
    rightly discarded), ``truth.csv`` and the true map ``truth.mrc``. Where micrographs are wanted, images
    are cut out of those at what a picker picked (`picked`), and they (float32, protein dark, as a camera
    has it) and ``MotionCorr/job001/corrected_micrographs.star`` are written too.
    ``collection.json`` says what each project is of, and is written last. A folder that the same
    settings have already filled is left as it is.

    Args:
        out: folder to write into; made where it is missing.
        settings: of which ``simulate`` is used; the files are a function of it
            alone, but for the rounding of floats, which depends on the machine and its threads.
        on_progress: called after each micrograph.
        on_event: called with each project.

    Returns:
        the folders of the projects.

    Raises:
        FormatError: the structure cannot be read.
        SettingsError: the protein does not fit the box.
        InputError: ``out`` holds another simulation.
    """
    chosen = settings.simulate
    numbers = range(chosen.first - 1, chosen.first - 1 + chosen.projects)
    folders = [f"project-{number + 1:02d}" for number in numbers]
    given = None if chosen.structure is None else read_structure(chosen.structure)
    if not _begin(out, folders, chosen):
        total, done, described = chosen.projects * chosen.images, 0, []
        shapes = islice(families(chosen.seed % 2**64), numbers.start, numbers.stop)
        for number, folder, family in zip(numbers, folders, shapes, strict=True):

            def on_images(images: int, before: int = done, name: str = folder) -> None:
                on_progress(Progress("simulate", before + images, total, "images", name))

            if chosen.micrographs:
                whole = plan(chosen, number, family, given)
                counts = write_picked(out / folder, whole, chosen, on_images)
                described.append({"folder": folder, **describe(whole), **counts})
            else:
                project = _plan(folder, given, family, chosen, _generator(chosen, number))
                described.append(_write_project(out / folder, project, chosen, number, on_images))
            on_event(Event("project.simulated", described[-1]))
            done += chosen.images
        _write_json(out / "collection.json", {"projects": described, "settings": _plain(chosen)})
    return [out / folder for folder in folders]


def _begin(out: Path, folders: Sequence[str], chosen: SimulateSettings) -> bool:
    """Whether ``out`` already holds just this simulation; what is not ours is not written over."""
    book = out / "collection.json"
    if book.is_file():
        try:
            # Of an earlier version it lacks settings that are newer: they had their defaults.
            if SimulateSettings(**json.loads(book.read_text())["settings"]) == chosen:
                return True
        except (ValueError, KeyError, TypeError):
            pass
    strange = {path.name for path in out.glob("project-*")} - set(folders)
    if book.exists() or strange:
        raise InputError(
            "holds another simulation", file=out, remedy="give a new folder, or remove this one"
        )
    return False


def _plain(chosen: SimulateSettings) -> dict[str, object]:
    return chosen.model_dump(mode="json")


def _generator(chosen: SimulateSettings, *place: int) -> np.random.Generator:
    """A stream of its own for each project and micrograph, so that none depends on how many there are."""
    return np.random.default_rng(np.random.SeedSequence(chosen.seed % 2**64, spawn_key=place))


def _plan(
    folder: str,
    given: Structure | None,
    family: str,
    chosen: SimulateSettings,
    rng: np.random.Generator,
) -> _Project:
    box = chosen.box
    structure = given or random_structure(rng, _diameter(chosen, rng), family)
    pixel_size = chosen.pixel_size or structure.diameter * rng.uniform(*_BOXES) / box
    pixel_size = round(float(pixel_size), 4)
    diameter = structure.diameter / pixel_size
    if diameter > _LARGEST * box:
        raise SettingsError(
            f"a protein of {structure.diameter:.0f} Å does not fit a box of {box} px at"
            f" {pixel_size:g} Å/px",
            file=chosen.structure,
            remedy="give a larger box or pixel_size",
        )
    detectors = (0.66, 0.83, 0.885, 1.06, 1.1, 1.35)
    original = min(float(rng.choice(detectors)), pixel_size)
    optics = Optics(
        voltage=float(rng.choice([300, 300, 200])),
        spherical_aberration=2.7,
        amplitude_contrast=0.1,
        pixel_size=pixel_size,
        original_pixel_size=original,
        ice=rng.uniform(0.4, 0.9),
        debris=rng.uniform(2.0, 5.0),
        thickness=rng.uniform(1.0, 4.0),
        detector=rng.uniform(0.6, 0.95),
    )
    stage = Stage(box, microscope.canvas_side(box), diameter, pixel_size, rng.uniform(*_CROWDING))
    micrographs = -(-chosen.images // chosen.per_micrograph)
    exposures = tuple(_exposure(rng) for _ in range(micrographs))
    kinds = np.array_split(_kinds(chosen, rng), np.arange(1, micrographs) * chosen.per_micrograph)
    intact = Projector(structure, stage.side, pixel_size)
    snr = chosen.snr * float(np.exp(rng.normal(0, 0.12)))
    return _Project(
        folder=folder,
        structure=structure,
        stage=stage,
        optics=optics,
        exposures=exposures,
        kinds=tuple(kinds),
        snr=snr,
        signal=_signal(intact, stage, optics, exposures, snr, rng),
        intact=intact,
        broken=tuple(
            Projector(damaged(structure, rng), stage.side, pixel_size) for _ in range(_BROKEN_FORMS)
        ),
    )


def _diameter(chosen: SimulateSettings, rng: np.random.Generator) -> float:
    """Å; such that the box is a common multiple of it where the pixel size is given."""
    low, high = _DIAMETERS
    if chosen.pixel_size is not None:
        side = chosen.box * chosen.pixel_size
        low, high = max(low, side / _BOXES[1]), min(high, side / _BOXES[0])
        if low > high:  # no protein of usual size suits this box
            low, high = side / _BOXES[1], side / _BOXES[0]
    return float(rng.uniform(low, high))


def _exposure(rng: np.random.Generator) -> Exposure:
    defocus, half = rng.uniform(0.8e4, 2.8e4), rng.uniform(20, 350)
    return Exposure(
        defocus_u=defocus + half,
        defocus_v=defocus - half,
        defocus_angle=rng.uniform(-90, 90),
        b_factor=rng.uniform(80, 220),
        contrast=float(np.exp(rng.normal(0, 0.1))),
    )


def _kinds(chosen: SimulateSettings, rng: np.random.Generator) -> np.ndarray:
    """The kind of each image of a project: junk about as stated, its kinds in equal parts."""
    share = chosen.junk
    if 0 < share < 1:
        share = min(share * float(np.exp(rng.normal(0, 0.08))), (1 + share) / 2)
    bad = round(share * chosen.images)
    kinds = np.full(chosen.images, PARTICLE, object)
    kinds[:bad] = np.resize(rng.permutation(list(junk.KINDS)), bad)
    return rng.permutation(kinds)


def _signal(
    intact: Projector,
    stage: Stage,
    optics: Optics,
    exposures: Sequence[Exposure],
    snr: float,
    rng: np.random.Generator,
) -> float:
    """The factor that gives projections the stated variance inside the mask, where noise has 1.

    One factor for all micrographs: low defocus and thick ice show less, as they do.
    """
    slices = intact.slices(microscope.random_angles(rng, _VIEWS))
    variance = [
        masked_variance(slices * microscope.transfer(optics, e, stage.side), stage.diameter)
        * e.contrast**2
        for e in exposures[:_EXPOSURES]
    ]
    return float(np.sqrt(snr / np.mean(variance)))


def masked_variance(spectra: torch.Tensor, diameter: float) -> float:
    """Mean over images of the variance inside the particle's circular mask.

    Args:
        spectra: complex64 [n, side, side // 2 + 1], of images centred on pixel (0, 0).
        diameter: of the mask, px.
    """
    side = spectra.shape[1]
    place = torch.fft.fftfreq(side) * side
    inside = place[:, None] ** 2 + place**2 <= (diameter / 2) ** 2
    return float(torch.fft.irfft2(spectra, s=(side, side))[:, inside].var(1).mean())


def _write_project(
    folder: Path,
    project: _Project,
    chosen: SimulateSettings,
    number: int,
    on_images: Callable[[int], None],
) -> dict[str, object]:
    """Form, write and describe all images of a project."""
    rows: list[Row] = []
    truth: list[Row] = []
    ambiguity: list[float] = []
    for m, (exposure, kinds) in enumerate(zip(project.exposures, project.kinds, strict=True)):
        rng = _generator(chosen, number, m)
        stack = stack_name(m)
        scenes = [junk.scene(kind, project.stage, rng) for kind in kinds]
        angles = microscope.random_angles(rng, len(scenes))
        places, missing = _places(project, len(scenes), rng)
        box, pixel_size = chosen.box, project.optics.pixel_size
        with StackWriter(folder / stack, box, box, "float32", pixel_size) as writer:
            for first in range(0, len(scenes), _BATCH):
                some = slice(first, first + _BATCH)
                canvas = _canvases(project, exposure, scenes[some], angles[some], rng)
                writer.append(microscope.extract(canvas, box, missing[some]).numpy())
        rows += _particles(stack, m, project, exposure, scenes, angles, places, rng)
        truth += _truth(stack, scenes, angles)
        ambiguity += [scene.ambiguity for scene in scenes]
        on_images(len(rows))
    keep, selected = write_tables(
        folder,
        project.optics,
        chosen.box,
        project.optics.pixel_size,
        rows,
        truth,
        np.array(ambiguity),
        chosen.human_error,
        _generator(chosen, number, len(project.exposures)),
    )
    true_map = blurred_density(project.structure, chosen.box, project.optics.pixel_size)
    write_volume(folder / "truth.mrc", true_map, project.optics.pixel_size)
    return {
        "folder": project.folder,
        "structure": project.structure.name,
        "diameter": round(project.structure.diameter, 1),
        "images": len(rows),
        "keep": int(keep.sum()),
        "mislabelled": int((selected != keep).sum()),
        "snr": round(project.snr, 5),
        **asdict(project.optics),
    }


def _places(project: _Project, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where in the micrograph images are, and how much of each is outside it.

    Returns:
        x and y in the micrograph's px, [n, 2]; what `microscope.extract` is to fill in.
    """
    binning = project.optics.pixel_size / project.optics.original_pixel_size
    half = project.stage.box / 2
    low, high = (1 - _OUTSIDE) * half, _MICROGRAPH / binning - (1 - _OUTSIDE) * half
    places = rng.uniform(low, max(low, high), (n, 2))
    ends = np.stack([half - places, places + half - _MICROGRAPH / binning], -1)
    return places * binning, np.clip(np.ceil(ends), 0, None).astype(np.int64)[:, ::-1]


def _canvases(
    project: _Project,
    exposure: Exposure,
    scenes: Sequence[Scene],
    angles: np.ndarray,
    rng: np.random.Generator,
) -> torch.Tensor:
    """What the microscope makes of scenes, of which images are the middle: float32 [n, side, side]."""
    stage, n = project.stage, len(scenes)
    contrast = microscope.transfer(project.optics, exposure, stage.side)
    # Neighbours are the same views again: nobody sees that the particle next door is also elsewhere.
    views = project.intact.slices(np.concatenate([angles, microscope.random_angles(rng, 8)]))
    spectra = torch.zeros_like(views[:n])
    forms = rng.integers(len(project.broken), size=n)
    for rank in range(max(len(scene.places) for scene in scenes)):
        here = [i for i, scene in enumerate(scenes) if len(scene.places) > rank]
        own = np.array([rank == 0 and scenes[i].picked for i in here])
        view = np.where(own, here, rng.integers(len(views), size=len(here)))
        parts = views[torch.from_numpy(view)]
        for form, projector in enumerate(project.broken):
            those = [
                j
                for j, i in enumerate(here)
                if own[j] and scenes[i].kind == "broken" and forms[i] == form
            ]
            if those:
                parts[those] = projector.slices(angles[[here[j] for j in those]])
        places = np.array([scenes[i].places[rank] for i in here]) + stage.side // 2
        weights = np.array([scenes[i].weights[rank] for i in here])
        scale = torch.from_numpy(weights).float()[:, None, None]
        spectra[here] += scale * microscope.shifted(parts, torch.from_numpy(places).float())
    spectra *= project.signal * exposure.contrast
    power = microscope.noise_power(project.optics, contrast)
    seed = int(rng.integers(2**62))
    noise = torch.randn(n, stage.side, stage.side, generator=torch.Generator().manual_seed(seed))
    noise = torch.fft.rfft2(noise)
    scattering = [i for i, scene in enumerate(scenes) if scene.scatter is not None]
    if scattering:
        spectra[scattering] += torch.fft.rfft2(_stacked(scenes[i].scatter for i in scattering))
    spectra *= contrast
    moving = [i for i, scene in enumerate(scenes) if any(scene.motion)]
    amplitude = power.sqrt().expand(n, -1, -1)
    if moving:
        blur = microscope.motion_blur(stage.side, torch.tensor([scenes[i].motion for i in moving]))
        spectra[moving] *= blur
        amplitude = amplitude.clone()
        amplitude[moving] = microscope.noise_power(project.optics, contrast, blur).sqrt()
    canvas = torch.fft.irfft2(spectra + noise * amplitude, s=(stage.side, stage.side))
    absorbing = [i for i, scene in enumerate(scenes) if scene.absorb is not None]
    if absorbing:
        canvas[absorbing] += _stacked(scenes[i].absorb for i in absorbing)
    return canvas


def _stacked(layers: Iterable[np.ndarray | None]) -> torch.Tensor:
    return torch.from_numpy(np.stack([layer for layer in layers if layer is not None])).float()


def _particles(
    stack: str,
    micrograph: int,
    project: _Project,
    exposure: Exposure,
    scenes: Sequence[Scene],
    angles: np.ndarray,
    places: np.ndarray,
    rng: np.random.Generator,
) -> list[Row]:
    """Rows of ``particles.star``: what the picker and the CTF program said, and true poses.

    Where no particle was picked, the angles mean nothing: a refinement gives junk some, too.
    """
    optics = project.optics
    resolution = max(
        2.2 * optics.pixel_size, 4.5 / exposure.contrast * float(np.exp(rng.normal(0, 0.2)))
    )
    correlation = float(np.clip(rng.normal(0.12, 0.03) * exposure.contrast, 0.01, None))
    figures = rng.normal([_FIGURE_OF_MERIT[scene.kind] for scene in scenes], _FIGURE_SPREAD)
    origins = [-scene.places[0] * optics.pixel_size if scene.picked else (0, 0) for scene in scenes]
    return [
        {
            "rlnCoordinateX": f"{x:.2f}",
            "rlnCoordinateY": f"{y:.2f}",
            "rlnAutopickFigureOfMerit": f"{max(figure, 0.02):.6f}",
            "rlnImageName": f"{index:06d}@{stack}",
            "rlnMicrographName": micrograph_name(micrograph),
            "rlnOpticsGroup": 1,
            "rlnCtfMaxResolution": f"{resolution:.4f}",
            "rlnCtfFigureOfMerit": f"{correlation:.6f}",
            "rlnDefocusU": f"{exposure.defocus_u:.3f}",
            "rlnDefocusV": f"{exposure.defocus_v:.3f}",
            "rlnDefocusAngle": f"{exposure.defocus_angle:.4f}",
            "rlnPhaseShift": f"{0:.3f}",
            **dict(zip(_POSE, map("{:.4f}".format, (*angle, *origin)), strict=True)),
            "rlnRandomSubset": 1 + index % 2,
        }
        for index, ((x, y), figure, angle, origin) in enumerate(
            zip(places, figures, angles, origins, strict=True), 1
        )
    ]


def _truth(stack: str, scenes: Sequence[Scene], angles: np.ndarray) -> list[Row]:
    """Rows of ``truth.csv``; angles and places (px from the centre) only of what was picked."""
    return [
        truth_row(stack, index, scene.kind, [*angle, *scene.places[0]] if scene.picked else [])
        for index, (scene, angle) in enumerate(zip(scenes, angles, strict=True), 1)
    ]


def read_truth(project: Path) -> list[dict[str, str]]:
    """The rows of a project's ``truth.csv``: what each image is, by stack and index (from 1).

    Each has a column more, ``image``, its name as a `formats.source.Source` of the project gives it.
    """
    with (project / "truth.csv").open(newline="", encoding="utf-8") as file:
        return [
            row | {"image": f"{int(row['index']):06d}@{row['stack']}"}
            for row in csv.DictReader(file)
        ]


def _write_json(path: Path, content: dict[str, object]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
