"""2D classification jobs as RELION and cryoSPARC leave them, of proteins that never were, with known truth.

A class average is what becomes of its particles: projections of about one view, turned and moved by
the errors of their alignment, weakened by the envelope, their noise divided by their number, filtered
by the signal-to-noise ratio in each shell (Scheres, J. Struct. Biol. 180, 519 (2012)) and masked. So
its resolution, its accuracies and its look follow from the same few quantities, as they do in a real
job. Junk comes to be in the same way, of the scenes that a microscope makes, or of particles that
were put together without belonging together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from cryoray.errors import InputError
from cryoray.formats.files import replacing, write_csv
from cryoray.formats.mrc import StackWriter
from cryoray.formats.relion import UNKNOWN
from cryoray.simulation import junk
from cryoray.simulation.junk import PARTICLE, Stage
from cryoray.simulation.microscope import (
    Projector,
    canvas_side,
    frequencies,
    random_angles,
    shifted,
)
from cryoray.simulation.phantom import damaged, families, random_structure

#: What the classes of a job may hold that nobody wants, and how much of each there tends to be.
_JUNK = {
    "blurred": 1.6,
    "empty": 0.8,
    "off_centre": 0.8,
    "aggregate": 0.6,
    "broken": 0.4,
    "ice": 0.5,
    "carbon": 0.3,
}
#: Å; the box and the mask over the diameter, as people choose them; sides of the box, px.
_DIAMETERS, _BOXES, _MASKS = (80.0, 320.0), (1.25, 2.6), (1.0, 1.5)
_SIDES = (64, 64, 72, 80, 96)
#: In so many jobs most classes are junk, and how much of it there is then: of a hard collection a person
#: keeps a tenth of the classes.
_HARD, _MOSTLY = 0.3, (0.7, 0.94)
#: Particles that stand for all of a class; broken forms of a protein; classes formed at a time.
_MEMBERS, _FORMS, _TOGETHER = 8, 2, 16


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The protein of a project, the sampling of its classes, and whether files tell their shares."""

    intact: Projector
    broken: tuple[Projector, ...]
    stage: Stage
    program: str
    shares: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Classes:
    """What is drawn of the classes of a job before there are images.

    Attributes:
        kind: object [n], `PARTICLE` or a key of ``_JUNK``.
        count: float64 [n], particles.
        view: float64 [n], degrees over which the views within a class spread.
        turn: degrees, the error of in-plane angles.
        move: px, the error of shifts.
    """

    kind: np.ndarray
    count: np.ndarray
    view: np.ndarray
    turn: np.ndarray
    move: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class ClassJob:
    """The classes of one job.

    Attributes:
        images: float32 [n, side, side], protein bright, zero outside the mask.
        kind: object [n], what the particles of each class are.
        shown: float64 [n], correlation of the class with the protein's projection at frequencies that
            show its shape; 0 for junk.
        selected: bool [n], what a person chose.
        share: float64 [n], fraction of the job's particles.
        resolution: float64 [n], Å; infinite for an empty class.
        rotations: float64 [n], accuracy in degrees; 999 where it is not known.
        translations: float64 [n], accuracy in Å; the same.
    """

    images: np.ndarray
    kind: np.ndarray
    shown: np.ndarray
    selected: np.ndarray
    share: np.ndarray
    resolution: np.ndarray
    rotations: np.ndarray
    translations: np.ndarray


def simulate_classes(out: Path, number: int, jobs: int, seed: int = 0) -> Path:
    """Simulate 2D classification jobs of one protein, with a person's selection and the truth.

    ``jobNNN_classes.mrcs`` (float16), ``jobNNN_model.star``, and of all of them ``labels.csv`` (the
    person's, with the reason of what is discarded) and ``truth.csv``. ``classes.json`` says how it was
    made, and is written last; a folder that the same numbers have already filled is left as it is.

    Args:
        out: folder to write into; made where it is missing.
        number: of the protein, from 0 on: it and ``seed`` make all that is random.
        jobs: how many.
        seed: of a series of proteins.

    Returns:
        ``out``.

    Raises:
        InputError: ``out`` holds another simulation.
    """
    book, made = out / "classes.json", {"number": number, "jobs": jobs, "seed": seed}
    if book.is_file() and json.loads(book.read_text(encoding="utf-8")) == made:
        return out
    if book.exists():
        raise InputError("holds another simulation", file=out, remedy="give a new folder")
    rng = np.random.default_rng((seed, number))
    subject, labels, truth = _subject(rng, next(islice(families(seed), number, None))), [], []
    for job in range(jobs):
        name = f"job{job + 1:03d}"
        simulated = simulate_job(subject, rng)
        _write(out, name, simulated, subject)
        labels += _labels(name, simulated)
        truth += _truth(name, simulated)
    write_csv(out / "labels.csv", labels[0], (row.values() for row in labels))
    write_csv(out / "truth.csv", truth[0], (row.values() for row in truth))
    with replacing(book) as temporary:
        temporary.write_text(json.dumps(made), encoding="utf-8")
    return out


def _subject(rng: np.random.Generator, family: str) -> Subject:
    structure = random_structure(rng, float(rng.uniform(*_DIAMETERS)), family)
    side = int(rng.choice(_SIDES))
    pixel_size = round(structure.diameter * rng.uniform(*_BOXES) / side, 3)
    canvas = canvas_side(side)
    return Subject(
        intact=Projector(structure, canvas, pixel_size),
        broken=tuple(Projector(damaged(structure, rng), canvas, pixel_size) for _ in range(_FORMS)),
        stage=Stage(side, canvas, structure.diameter / pixel_size, pixel_size, 0.0),
        program=str(rng.choice(["relion", "cryosparc"])),
        shares=bool(rng.random() < 0.8),
    )


def simulate_job(subject: Subject, rng: np.random.Generator) -> ClassJob:
    """One job: its classes drawn, formed, filtered, masked, and looked at by a person."""
    stage, relion = subject.stage, subject.program == "relion"
    classes = _draw(subject, rng)
    n, side = len(classes.kind), stage.side
    signal, clean = _signals(subject, classes, rng)
    y, x = frequencies(side)
    k = torch.hypot(y, x)
    # What is left of the lowest frequencies after the CTF: the dark halo round a protein.
    halo = 1 - rng.uniform(0.5, 1.0) * torch.exp(
        -0.5 * (k * stage.diameter / rng.uniform(0.45, 1.2)) ** 2
    )
    envelope = torch.exp(-rng.uniform(60, 500) / 4 * (k / stage.pixel_size) ** 2) * halo
    signal = signal * envelope
    particle = torch.from_numpy(classes.kind == PARTICLE)
    unit = _spread(signal[particle] if particle.any() else signal, stage).median()
    signal = signal / unit
    # Amplitude of a single particle's noise: coloured, as ice and CTF correction make it.
    colour = 1 + rng.uniform(0, 0.12) / (k + 0.02)
    single = (
        colour
        / torch.sqrt(torch.mean(colour**2))
        / np.sqrt(np.exp(rng.uniform(np.log(0.012), np.log(0.25))))
    )
    amplitude = single / torch.from_numpy(np.sqrt(classes.count)).float()[:, None, None]
    noise = torch.fft.rfft2(torch.from_numpy(rng.standard_normal((n, side, side), np.float32)))
    noise = noise * amplitude
    shells = torch.round(k * side).long().clamp(max=side // 2)
    power = _by_shell(signal.abs() ** 2, shells)
    ratio = power / _by_shell(amplitude**2 * side**2, shells)
    ratio = ratio * torch.from_numpy(np.exp(rng.normal(0, 0.25, ratio.shape))).float()
    # Noise that was aligned to itself counts as signal, the more the fewer particles there are.
    fitted = rng.uniform(0.2, 3) * np.exp(rng.normal(0, 0.5, n)) * (1 + 10 / classes.count)
    falls = np.exp(-np.arange(ratio.shape[1]) / (side * rng.uniform(0.01, 0.06)))
    ratio = ratio + torch.from_numpy(fitted[:, None] * falls).float()
    wiener = rng.uniform(1, 4) * ratio
    wiener = wiener / (1 + wiener)
    if not relion:
        wiener = wiener ** rng.uniform(0.25, 0.9)
    cut = rng.uniform(0.2, 0.5) * side  # to which particles were aligned, in shells
    wiener = wiener * torch.sigmoid((cut - torch.arange(wiener.shape[1])) / 1.5)
    average = (signal + noise) * wiener[:, shells]
    images = _cropped(average, stage)
    images = images + _streaks(n, stage, rng, classes.count) * images.std((1, 2), keepdim=True)
    mask = _mask(stage, rng, relion)
    shown = np.where(classes.kind == PARTICLE, _shown(average, clean * halo, stage), 0.0)
    resolution = _resolution(ratio.numpy(), stage, relion, rng)
    rotations, translations = _accuracies(resolution, classes, stage, rng)
    share = classes.count * np.exp(rng.normal(0, 0.05, n))
    job = ClassJob(
        images=(images * mask * rng.uniform(0.02, 50)).numpy(),
        kind=classes.kind,
        shown=shown,
        selected=_choice(shown, classes, rng),
        share=share / share.sum(),
        resolution=resolution,
        rotations=rotations,
        translations=translations,
    )
    return _emptied(job, rng) if relion else _sorted(job)


def _draw(subject: Subject, rng: np.random.Generator) -> _Classes:
    """How good each class is, and from that how many particles it has and how they are aligned."""
    n = int(rng.choice([20, 30, 40, 50, 50, 50, 60, 80, 100]))
    bad = round(float(rng.beta(1.6, 1.6) * 0.85) * n)
    if rng.random() < _HARD:
        bad = round(float(rng.uniform(*_MOSTLY)) * n)
    kind = np.full(n, PARTICLE, object)
    parts = rng.dirichlet(list(_JUNK.values()))
    kind[:bad] = rng.choice(list(_JUNK), bad, p=parts)
    blurred = kind == "blurred"
    quality = rng.beta(rng.uniform(1.2, 3.0), rng.uniform(0.8, 2.0), n)
    quality[kind != PARTICLE] = rng.beta(1.2, 2.5, int((kind != PARTICLE).sum()))
    good = quality + rng.uniform(0.2, 0.8) * (kind == PARTICLE)
    count = np.exp(rng.uniform(1.2, 3.2) * good + rng.normal(0, rng.uniform(0.2, 0.7), n))
    few = rng.random(n) < rng.uniform(0, 0.35) * (1 - quality)
    count[few] *= rng.uniform(0.02, 0.4, int(few.sum()))
    total = np.exp(rng.uniform(np.log(25), np.log(1500))) * n
    count = np.maximum(np.round(count / count.sum() * total), 2)
    diameter = subject.stage.diameter
    worse = 1 - quality
    turn = rng.uniform(1, 4) + rng.uniform(8, 40) * worse**2 * rng.uniform(0.3, 1, n)
    view = rng.uniform(2, 7) + rng.uniform(8, 30) * worse**2 * rng.uniform(0.3, 1, n)
    move = diameter * (rng.uniform(0.004, 0.015) + 0.08 * worse**2 * rng.uniform(0.2, 1, n))
    turn[blurred] = rng.uniform(25, 120, int(blurred.sum()))
    view[blurred] = rng.uniform(20, 90, int(blurred.sum()))
    move[blurred] = diameter * rng.uniform(0.03, 0.18, int(blurred.sum()))
    return _Classes(kind, count, view, turn, move)


def _signals(
    subject: Subject, classes: _Classes, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectra of noiseless averages, and of the view each is of: complex64 [n, side, side // 2 + 1]."""
    stage, n = subject.stage, len(classes.kind)
    angles = _views(n, rng)
    clean = subject.intact.slices(angles)
    averages = torch.empty_like(clean)
    for form, projector in enumerate((subject.intact, *subject.broken)):
        broken = classes.kind == "broken"
        mine = np.flatnonzero(broken & (np.arange(n) % _FORMS == form - 1) if form else ~broken)
        for some in np.split(mine, range(_TOGETHER, len(mine), _TOGETHER)):
            averages[some] = _aligned(projector, angles[some], classes, some, rng)
    averages[classes.kind == "empty"] = 0
    shapeless = (classes.kind == "blurred") & (rng.random(n) < rng.uniform(0.1, 0.9))
    for i in np.flatnonzero(shapeless).tolist():
        lumps = torch.fft.rfft2(torch.fft.ifftshift(_lumps(stage, rng)))
        averages[i] = lumps * (_spread(clean, stage).median() / _spread(lumps[None], stage)[0])
    extra = torch.zeros_like(averages)
    blur = _gaussian(stage.side, rng.uniform(0.05, 0.2, n) * stage.diameter)
    for i, (kind, others) in enumerate(
        zip(classes.kind, _others(classes.kind, stage, rng), strict=True)
    ):
        if kind == "off_centre":
            averages[i] = shifted(averages[i : i + 1], _away(stage, rng, 0.28, 0.6))[0]
        if len(others):
            views = clean[torch.from_numpy(rng.integers(n, size=len(others)))]
            weights = torch.from_numpy(rng.uniform(0.5, 1.0, len(others))).float()[:, None, None]
            extra[i] = (shifted(views, others) * weights).sum(0)
            if kind == PARTICLE:  # what is elsewhere in each particle's box shows less
                extra[i] = extra[i] * rng.uniform(0.1, 0.8) * blur[i]
            elif kind != "aggregate" or rng.random() < 0.3:
                extra[i] = extra[i] * blur[i]
    size = _spread(clean, stage).median()
    for i in np.flatnonzero(np.isin(classes.kind, ["ice", "carbon", "empty"])).tolist():
        field = torch.fft.rfft2(torch.fft.ifftshift(_scene(classes.kind[i], stage, rng)))
        field = field * _gaussian(stage.side, rng.uniform(0.01, 0.1, 1) * stage.diameter)[0]
        averages[i] = averages[i] * rng.uniform(0, 0.6)
        extra[i] += (
            field / _spread(field[None], stage)[0] * size * float(np.exp(rng.normal(-0.4, 0.6)))
        )
    # Junk is not alike: what its particles do not share is lost in their average.
    unlike = np.flatnonzero(classes.kind != PARTICLE)
    kept = torch.from_numpy(rng.uniform(0.35, 1.0, len(unlike))).float()[:, None, None]
    kept = kept * _gaussian(stage.side, rng.uniform(0.01, 0.1, len(unlike)) * stage.diameter)
    signal = averages + extra
    signal[unlike] *= kept
    return signal, clean


def _views(n: int, rng: np.random.Generator) -> np.ndarray:
    """Orientations [n, 3], of which some are preferred."""
    angles = random_angles(rng, n)
    if rng.random() < 0.6:
        liked = random_angles(rng, int(rng.integers(1, 4)))
        near = rng.random(n) < rng.uniform(0.2, 0.8)
        angles[near, :2] = liked[rng.integers(len(liked), size=n)][near, :2]
        angles[near, :2] += rng.normal(0, 12, (int(near.sum()), 2))
    return angles


def _aligned(
    projector: Projector,
    angles: np.ndarray,
    classes: _Classes,
    some: np.ndarray,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Averages over particles that are near these angles, turned and moved by errors of alignment."""
    m, n = _MEMBERS, len(some)
    spread = np.stack([classes.view, classes.view, classes.turn], 1)[some, None]
    each = angles[:, None] + spread * rng.normal(size=(n, m, 3))
    places = classes.move[some, None, None] * rng.normal(size=(n, m, 2))
    slices = projector.slices(each.reshape(-1, 3))
    return (
        shifted(slices, torch.from_numpy(places.reshape(-1, 2)).float())
        .reshape(n, m, *slices.shape[1:])
        .mean(1)
    )


def _others(kinds: np.ndarray, stage: Stage, rng: np.random.Generator) -> list[torch.Tensor]:
    """Places [k, 2] of the other particles that are seen in each class, px."""
    crowded = rng.uniform(0, 0.5)
    found = []
    for kind in kinds:
        if kind == "aggregate":
            found.append(_away(stage, rng, 0.3, 0.75, int(rng.integers(1, 4))))
        elif rng.random() < (0.7 if kind == "off_centre" else crowded):
            found.append(_away(stage, rng, 0.85, 1.2, int(rng.integers(1, 3))))
        else:
            found.append(torch.zeros(0, 2))
    return found


def _away(
    stage: Stage, rng: np.random.Generator, low: float, high: float, n: int = 1
) -> torch.Tensor:
    """Places [n, 2] at a distance between these fractions of the diameter, px."""
    way, far = rng.uniform(0, 2 * np.pi, n), rng.uniform(low, high, n) * stage.diameter
    return torch.from_numpy(np.stack([far * np.cos(way), far * np.sin(way)], 1)).float()


def _scene(kind: str, stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    """What a class holds that is no protein, float32 [side, side] with its middle at side // 2."""
    if kind == "empty":
        return _mottle(stage, rng)
    seen = junk.scene(kind, stage, rng)
    field = sum(part for part in (seen.scatter, seen.absorb) if part is not None)
    sign = -1 if kind == "ice" and rng.random() < 0.4 else 1
    return torch.from_numpy(np.asarray(sign * field, np.float32))


def _lumps(stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    """What particles that do not belong together average to: one smooth blob, or a few that touch.

    float32 [side, side], about as large as the protein, with its middle at side // 2.
    """
    axis = torch.arange(stage.side, dtype=torch.float32) - stage.side // 2
    field = torch.zeros(stage.side, stage.side)
    for _ in range(int(rng.integers(1, 5))):
        along, across = np.sort(rng.uniform(0.1, 0.3, 2))[::-1] * stage.diameter
        y, x = rng.normal(0, 0.14, 2) * stage.diameter
        turn = rng.uniform(0, np.pi)
        down, right = axis[:, None] - float(y), axis - float(x)
        u = (down * np.cos(turn) + right * np.sin(turn)) / float(along)
        v = (right * np.cos(turn) - down * np.sin(turn)) / float(across)
        field += float(rng.uniform(0.3, 1.0)) * torch.exp(-0.5 * (u**2 + v**2))
    return field


def _mottle(stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    """Ice of uneven thickness; pickers centre on what stands out, and alignment does so again."""
    y, x = frequencies(stage.side)
    fine = rng.uniform(0.15, 0.4) * stage.diameter
    white = torch.from_numpy(rng.standard_normal((stage.side, stage.side), np.float32))
    field = torch.fft.irfft2(torch.fft.rfft2(white) * torch.exp(-(y**2 + x**2) * fine**2))
    axis = torch.arange(stage.side) - stage.side // 2
    radius = torch.hypot(axis[:, None].float(), axis.float())
    middle = torch.exp(-0.5 * (radius / rng.uniform(0.2, 0.6) / stage.diameter) ** 2)
    return field / field.std() + rng.uniform(0, 3) * middle


def _gaussian(side: int, width: np.ndarray) -> torch.Tensor:
    """Transforms of Gaussians of these standard deviations (px), float32 [n, side, side // 2 + 1]."""
    y, x = frequencies(side)
    spread = torch.from_numpy(width).float()[:, None, None]
    return torch.exp(-2 * (torch.pi * spread) ** 2 * (y**2 + x**2))


def _spread(spectra: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Standard deviation [n] of images within the particle's circle."""
    images = torch.fft.irfft2(spectra, s=(stage.side, stage.side))
    place = torch.fft.fftfreq(stage.side) * stage.side
    inside = torch.hypot(place[:, None], place) <= stage.diameter / 2
    return images[:, inside].std(1)


def _by_shell(power: torch.Tensor, shells: torch.Tensor) -> torch.Tensor:
    """Mean of power [n, side, side // 2 + 1] in each shell, [n, side // 2 + 1]."""
    flat = shells.flatten()
    total = torch.zeros(len(power), int(flat.max()) + 1).index_add_(1, flat, power.flatten(1))
    return total / torch.bincount(flat)


def _cropped(spectra: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Images [n, box, box] of spectra that are centred on pixel (0, 0)."""
    images = torch.fft.fftshift(torch.fft.irfft2(spectra, s=(stage.side, stage.side)), (1, 2))
    first = stage.side // 2 - stage.box // 2
    return images[:, first : first + stage.box, first : first + stage.box]


def _polar(stage: Stage) -> tuple[torch.Tensor, torch.Tensor]:
    """Radius in px and angle of each pixel of the box."""
    axis = torch.arange(stage.box) - stage.box // 2
    return torch.hypot(axis[:, None].float(), axis.float()), torch.atan2(
        axis[:, None].float(), axis.float()
    )


def _streaks(n: int, stage: Stage, rng: np.random.Generator, count: np.ndarray) -> torch.Tensor:
    """What over-fitting adds, in units of the image: rays from the middle, and rings near the mask."""
    radius, angle = _polar(stage)
    half = stage.box / 2
    strong = rng.uniform(0, 0.5) * np.exp(rng.normal(0, 0.8, n)) / np.sqrt(1 + count / 60)
    waves = torch.zeros(n, stage.box, stage.box)
    for _ in range(6):
        many, phase = rng.integers(5, 22, n), rng.uniform(0, 2 * np.pi, n)
        waves += torch.cos(
            torch.from_numpy(many).float()[:, None, None] * angle
            + torch.from_numpy(phase).float()[:, None, None]
        )
    rays = waves / 2.4 * (radius / half).clamp(max=1) * (1 - torch.exp(-((radius / 4) ** 2)))
    period = torch.from_numpy(rng.uniform(3, 8, n)).float()[:, None, None]
    rings = torch.cos(2 * torch.pi * radius / period) * (radius / half) ** 2
    made = rays + rings * torch.from_numpy(rng.uniform(0, 0.8, n)).float()[:, None, None]
    return made * torch.from_numpy(np.clip(strong, 0, 0.8)).float()[:, None, None]


def _mask(stage: Stage, rng: np.random.Generator, relion: bool) -> torch.Tensor:
    """The circle outside of which a program sets its classes to zero, [box, box]."""
    radius, _ = _polar(stage)
    largest = stage.box / 2 - 2
    edge = (
        min(stage.diameter / 2 * rng.uniform(*_MASKS), largest)
        if relion
        else largest * rng.uniform(0.78, 1.0)
    )
    width = rng.uniform(1.5, 6)
    return 0.5 + 0.5 * torch.cos(torch.pi * ((radius - edge + width) / width).clamp(0, 1))


def _shown(average: torch.Tensor, clean: torch.Tensor, stage: Stage) -> np.ndarray:
    """How well averages show their view: correlation [n] in the circle, without the lowest frequencies."""
    y, x = frequencies(stage.side)
    k = torch.hypot(y, x)
    shape = 1 - torch.exp(-0.5 * (k * stage.diameter / 1.6) ** 2)
    shape = shape * torch.exp(-0.5 * (k * stage.diameter / 12) ** 2)
    place = torch.fft.fftfreq(stage.side) * stage.side
    inside = torch.hypot(place[:, None], place) <= 0.6 * stage.diameter
    got, want = (
        torch.fft.irfft2(spectra * shape, s=(stage.side, stage.side))[:, inside]
        for spectra in (average, clean)
    )
    got, want = (part - part.mean(1, keepdim=True) for part in (got, want))
    norm = got.norm(dim=1) * want.norm(dim=1)
    return ((got * want).sum(1) / norm.clamp(min=1e-20)).clamp(min=0).double().numpy()


def _resolution(
    ratio: np.ndarray, stage: Stage, relion: bool, rng: np.random.Generator
) -> np.ndarray:
    """Å [n], of the first shell whose signal-to-noise ratio is below 1; of RELION the shell before it."""
    below = ratio[:, 1:] < 1
    first = np.where(below.any(1), below.argmax(1), below.shape[1] - 1).astype(float)
    if relion:
        shell = np.maximum(first, 2) * stage.box / stage.side
        return stage.box * stage.pixel_size / np.maximum(np.round(shell), 1)
    shell = np.maximum(first + rng.uniform(0, 1, len(first)), 0.8)
    return np.round(
        stage.side * stage.pixel_size / shell * np.exp(rng.normal(0, 0.05, len(shell))), 1
    )


def _accuracies(
    resolution: np.ndarray, classes: _Classes, stage: Stage, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Degrees and Å to which a particle can be placed: they follow from what a class resolves."""
    n, diameter = len(resolution), stage.diameter * stage.pixel_size
    loose = resolution * rng.uniform(0.6, 1.4) * np.exp(rng.normal(0, 0.15, n))
    rotations = np.degrees(loose / diameter)
    translations = 0.25 * loose * np.exp(rng.normal(0, 0.1, n))
    unknown = (rotations > rng.uniform(12, 30)) | (classes.count < 8)
    return (
        np.where(unknown, UNKNOWN, np.round(rotations / 0.05) * 0.05),
        np.where(unknown, UNKNOWN, np.round(translations, 4)),
    )


def _choice(shown: np.ndarray, classes: _Classes, rng: np.random.Generator) -> np.ndarray:
    """What a person keeps: classes in which they recognise the protein; some people ask for more."""
    strict = rng.normal(0.57, 0.06)
    # Whoever has sharp classes to choose from asks for more than where all are poor.
    best = np.quantile(shown[classes.kind == PARTICLE], 0.9) if (shown > 0).any() else 0.8
    strict += np.clip(0.5 * (best - 0.8), -0.07, 0.07)
    keep = shown + rng.normal(0, 0.03, len(shown)) > strict
    return keep ^ (rng.random(len(shown)) < 0.005)


def _taken(job: ClassJob, rows: np.ndarray) -> ClassJob:
    return ClassJob(**{name: getattr(job, name)[rows] for name in ClassJob.__slots__})


def _sorted(job: ClassJob) -> ClassJob:
    """The largest classes first, as cryoSPARC shows them."""
    return _taken(job, np.argsort(-job.share, kind="stable"))


def _emptied(job: ClassJob, rng: np.random.Generator) -> ClassJob:
    """In no order, and with some of the least classes empty, as RELION leaves them."""
    order = rng.permutation(len(job.share))
    job = _taken(job, order)
    if rng.random() < 0.5:
        least = np.argsort(job.share)[: int(rng.integers(1, 4))]
        job.images[least], job.share[least], job.selected[least] = 0, 0, False
        job.kind[least], job.shown[least] = "empty", 0
        job.rotations[least] = job.translations[least] = UNKNOWN
        job.resolution[least] = np.inf
    return job


def _write(folder: Path, name: str, job: ClassJob, subject: Subject) -> None:
    """The stack and the model of a job."""
    side, stage = job.images.shape[1], subject.stage
    relion = subject.program == "relion"
    stack = folder / f"{name}_classes.mrcs"
    folder.mkdir(parents=True, exist_ok=True)
    greys = job.images * (100 / np.abs(job.images).max())
    with StackWriter(stack, side, side, "float16", stage.pixel_size if relion else None) as writer:
        writer.append(greys)
    general = {
        "rlnReferenceDimensionality": 2,
        "rlnDataDimensionality": 2,
        "rlnOriginalImageSize": side,
        "rlnNrClasses": len(job.images),
    }
    columns = {
        "rlnReferenceImage": [f"{i + 1:06d}@{stack.name}" for i in range(len(job.images))],
        "rlnEstimatedResolution": job.resolution,
    }
    if relion or subject.shares:  # cryoSPARC's tables of classes do not have them
        columns["rlnClassDistribution"] = job.share
    if relion:
        general["rlnPixelSize"] = stage.pixel_size
        columns |= {
            "rlnAccuracyRotations": job.rotations,
            "rlnAccuracyTranslationsAngst": job.translations,
        }
    lines = ["", "# version 30001", "", "data_model_general", ""]
    lines += [f"_{key} {value}" for key, value in general.items()]
    lines += ["", "", "# version 30001", "", "data_model_classes", "", "loop_"]
    lines += [f"_{key} #{i}" for i, key in enumerate(columns, 1)]
    lines += [
        " ".join(value if isinstance(value, str) else f"{value:.6f}" for value in row)
        for row in zip(*columns.values(), strict=True)
    ]
    with replacing(folder / f"{name}_model.star") as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _labels(name: str, job: ClassJob) -> list[dict[str, object]]:
    stack = f"{name}_classes.mrcs"
    return [
        {
            "stack": stack,
            "index": i + 1,
            "selected": int(job.selected[i]),
            "reason": "" if job.selected[i] else "blurred" if kind == PARTICLE else kind,
        }
        for i, kind in enumerate(job.kind)
    ]


def _truth(name: str, job: ClassJob) -> list[dict[str, object]]:
    stack = f"{name}_classes.mrcs"
    return [
        {"stack": stack, "index": i + 1, "kind": kind, "shown": round(float(job.shown[i]), 4)}
        for i, kind in enumerate(job.kind)
    ]
