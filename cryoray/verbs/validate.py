"""Proof on disk: numbers, curves and one page about what choices did to the map and to 2D images."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch

from cryoray import report
from cryoray.engine import runtime
from cryoray.engine.reduce import (
    Particles,
    accumulate,
    invert,
    particles_of,
    read_images,
    total,
)
from cryoray.errors import InputError, SelectionError
from cryoray.formats.files import replacing, replacing_folder
from cryoray.formats.fsc_curve import read_curve
from cryoray.formats.selection import find_selection, read_selection
from cryoray.formats.source import Source, open_source
from cryoray.formats.volume import read_volume, write_volume
from cryoray.maps import fsc, similarity
from cryoray.maps.reconstruct import b_factor, symmetry_operators
from cryoray.records import Event, OnEvent, OnProgress, Progress, ignore
from cryoray.settings import ProofSettings, Settings

METRICS, REPORT = "metrics.json", "report.html"

#: Beyond this, pixel sizes are taken to differ, and not to be rounded differently.
_SAME_PIXEL = 1e-3


def validate_fsc(
    half1: Path,
    half2: Path,
    out: Path,
    settings: Settings,
    *,
    mask: str | None = None,
    published: Path | None = None,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """FSC of two half-maps as RELION's postprocess defines it, and by direction.

    Args:
        half1: unfiltered half-map.
        half2: the other.
        out: folder of ``metrics.json``, ``report.html``, the figures and the automatic mask; appears when
            all is done, in place of an older one.
        settings: ``proof`` is used.
        mask: file of a soft mask, or ``auto``; None: no mask.
        published: curve to compare with (`cryoray.formats.fsc_curve`).
        on_progress: told of each step.
        on_event: ``validation.done``, with the resolutions.

    Returns:
        what ``metrics.json`` holds (contracts: FSC metrics).

    Raises:
        FormatError: a map or curve cannot be read.
        InputError: the maps do not belong together, or ``out`` holds something else.
    """
    chosen = settings.proof
    steps = Progress("fsc", 0, 4, "steps")
    on_progress(steps)
    halves, pixel_size = read_halves(half1, half2, chosen.pixel_size)
    with replacing_folder(Path(out).absolute(), "folder of a validation", is_validation) as partial:
        weights, masked_by = _mask(mask, halves, pixel_size, chosen, partial)
        on_progress(_step(steps, 1))
        curves = fsc.half_map_fsc(
            *halves, pixel_size, weights, draws=chosen.random_phases, seed=chosen.seed
        )
        on_progress(_step(steps, 2))
        first, second = (half if weights is None else half * weights for half in halves)
        views = fsc.directional_fsc(first, second, pixel_size)
        on_progress(_step(steps, 3))
        extent = len(halves[0]) * pixel_size
        against = None if published is None else read_curve(published, extent)
        numbers = fsc_numbers(curves) | {"directional": directional_numbers(views)}
        numbers["mask"] = masked_by
        lead, overlay = "", None
        if against is not None:
            overlay = {f"published ({against.path.name})": (against.frequency, against.main)}
            numbers["published"], lead = _compared(curves, against.frequency, against.main)
        for warning in curves.warnings:
            lead += f" Distrust: {warning}."
        report.render(
            partial / REPORT,
            "Resolution of two half-maps",
            [
                _fsc_summary(half1, half2, masked_by, out, curves, pixel_size, len(halves[0])),
                report.fsc_section(curves, overlay, lead.strip()),
                report.directions_section({"this map": views}, curves.frequency),
                report.provenance_section(
                    report.command(), [chosen], {path.name: digest(path) for path in (half1, half2)}
                ),
            ],
            pictures=True,
        )
        write_json(partial / METRICS, numbers)
    on_progress(_step(steps, 4))
    on_event(Event("validation.done", {"out": str(out), **_told(numbers)}))
    return numbers


#: Parts of a set, each as large as all before it together, for resolution against number of particles.
_LEVELS = 5

#: Below this many particles in a half-set there is no map to speak of.
_FEWEST = 10


def validate_reconstruct(
    source: Path,
    verdicts: Path,
    out: Path,
    settings: Settings,
    *,
    mask: str | None = "auto",
    truth: Path | None = None,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Half-maps of the kept, of all, of the discarded and of random subsets as large as the kept.

    Half-sets are the source's own ``rlnRandomSubset``: drawn anew, halves that were refined together would
    agree about their common noise.

    Args:
        source: particles of a 3D refinement.
        verdicts: folder of verdicts, or its ``verdicts.parquet``, about the same images by name.
        out: folder of numbers, page, figures and half-maps; appears when all is done.
        settings: ``runtime`` and ``proof`` are used.
        mask: file, ``auto`` (made from the map of all) or None; the same for all sets.
        truth: the true map of simulated particles; None: ``truth.mrc`` beside the source, where it is.
        on_progress: told as maps are made.
        on_event: ``validation.done``.

    Returns:
        what ``metrics.json`` holds.

    Raises:
        InputError: the source has no poses or half-sets, or the verdicts are about other images.
        SettingsError: no Ray, or no such symmetry.
    """
    chosen = settings.proof
    operators = symmetry_operators(chosen.symmetry)
    opened = open_source(Path(source))
    particles = particles_of(opened)
    if not (particles.half > 0).any():
        raise InputError(
            "has no half-sets (rlnRandomSubset), and halves drawn now would agree about noise that the"
            " refinement fitted to both",
            file=opened.path,
            remedy="give the particles of a gold-standard refinement",
        )
    verdict = verdicts_of(Path(verdicts), opened)[particles.row]
    judged = np.flatnonzero((verdict != "") & (particles.half > 0))
    particles, verdict = particles[judged], verdict[judged]
    kept = verdict == "keep"
    for name, rows in (("kept", kept), ("all", np.ones(len(kept), bool))):
        if min((particles.half[rows] == half).sum() for half in (1, 2)) < _FEWEST:
            raise InputError(f"too few particles are {name} in one of the half-sets", file=verdicts)
    with replacing_folder(Path(out).absolute(), "folder of a validation", is_validation) as partial:
        runtime.connect(settings.runtime)
        maps = _Maps(particles, operators, chosen, on_progress)
        rng = np.random.default_rng(chosen.seed)
        sides = {"kept": kept, "discarded": verdict == "discard", "review": verdict == "review"}
        steps = maps.levels({name: rows for name, rows in sides.items() if rows.any()}, rng)
        sets = {name: found[-1] for name, found in steps.items()}
        for number in range(chosen.random_subsets):
            sets[f"random {number + 1}"] = maps.of(_as_many(kept, particles.half, rng))
        pixel_size = particles.poses.pixel_size
        whole = sets["all"]
        weights, masked_by = _mask(mask, whole.halves, pixel_size, chosen, partial)
        true_map = _true_map(truth, opened.path, particles.box)
        proofs = {
            name: _Proof.of(found, pixel_size, weights, true_map, chosen)
            for name, found in sets.items()
        }
        reslog = {
            name: [_Proof.of(found, pixel_size, weights, None, chosen) for found in series]
            for name, series in steps.items()
            if name in ("kept", "all")
        }
        for name in ("kept", "all"):
            for number, half in enumerate(sets[name].halves, 1):
                write_volume(partial / f"{name}_half{number}.mrc", half.numpy(), pixel_size)
        numbers = _reconstruct_numbers(proofs, reslog)
        numbers |= {
            "mask": masked_by,
            "rows": len(opened),
            "used": len(particles),
            "left_out": len(opened) - len(particles),
            "symmetry": chosen.symmetry,
        }
        report.render(
            partial / REPORT,
            "What the verdicts did to the map",
            [
                *_reconstruct_sections(numbers, proofs, reslog, opened.path, Path(verdicts), out),
                report.provenance_section(
                    report.command(),
                    [chosen],
                    {"source": digest(opened.path), "verdicts": digest(_table(Path(verdicts)))},
                ),
            ],
            pictures=True,
        )
        write_json(partial / METRICS, numbers)
    on_event(
        Event(
            "validation.done",
            {
                "out": str(out),
                **{name: proof.resolution for name, proof in proofs.items()},
                "used": len(particles),
                "left_out": numbers["left_out"],
            },
        )
    )
    return numbers


#: Classes whose pictures are shown, the worst.
_SHOWN = 8

#: Directions over half a sphere from which a map is compared with class averages.
_VIEWS = 150


def validate_similarity(
    source: Path,
    verdicts: Path,
    out: Path,
    settings: Settings,
    *,
    selection: Path | None = None,
    volume: Path | None = None,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """For each 2D class, the average of what we kept beside that of what a person kept.

    Args:
        source: particles of a 2D classification: classes, in-plane angles and origins.
        verdicts: ours about the same images.
        out: folder of numbers, page and figures; appears when all is done.
        settings: ``runtime`` and ``proof`` are used.
        selection: the person's; None: that beside the source.
        volume: a map whose projections are compared with the class averages, too.
        on_progress: told as classes are done.
        on_event: ``validation.done``.

    Returns:
        what ``metrics.json`` holds.

    Raises:
        InputError: the source has no classes or poses, or nothing can be compared.
        SelectionError: there is no selection of these particles.
        SettingsError: no Ray.
    """
    chosen = settings.proof
    opened = open_source(Path(source))
    if "rlnClassNumber" not in opened.metadata:
        raise InputError(
            "has no classes (rlnClassNumber)",
            file=opened.path,
            remedy="give the particles of a 2D classification",
        )
    particles = particles_of(opened, in_plane=True)
    found = Path(selection) if selection else find_selection(opened.path)
    if found is None:
        raise SelectionError(
            "has no selection beside it", file=opened.path, remedy="give --selection"
        )
    label = read_selection(found, opened)[particles.row]
    verdict = verdicts_of(Path(verdicts), opened)[particles.row]
    both = np.flatnonzero((label >= 0) & (verdict != ""))
    particles, person, ours = particles[both], label[both] == 1, verdict[both] == "keep"
    classes = opened.metadata["rlnClassNumber"][particles.row].astype(np.int64)
    numbers_of = np.unique(classes)
    with replacing_folder(Path(out).absolute(), "folder of a validation", is_validation) as partial:
        runtime.connect(settings.runtime)
        views = None
        if volume is not None:
            read, _ = read_volume(volume)
            if len(read) != particles.box:
                raise InputError(
                    f"has {len(read)}³ voxels for images of {particles.box} px", file=volume
                )
            views = ray.put(read)
        waiting = []
        for number in numbers_of.tolist():
            rows = np.flatnonzero(classes == number)
            rng = np.random.default_rng((chosen.seed, number))
            rows = np.sort(rng.permutation(rows)[: chosen.class_particles])
            waiting.append(
                _of_class.remote(number, particles[rows], person[rows], ours[rows], chosen, views)
            )
        results = []
        for done, one in enumerate(waiting, 1):
            results.append(ray.get(one))
            on_progress(Progress("classes", done, len(waiting), "classes"))
        alike = [one for one, _ in results if one is not None]
        if not alike:
            raise InputError("in no class did both keep four particles or more", file=opened.path)
        projected = {one.number: other for one, other in results if one and other}
        numbers = _similarity_numbers(alike, projected) | {
            "rows": len(opened),
            "used": len(particles),
            "left_out": len(opened) - len(particles),
            "classes": len(numbers_of),
            "classes_left_out": len(numbers_of) - len(alike),
        }
        report.render(
            partial / REPORT,
            "Do our class averages look like the person's?",
            [
                report.summary_section(
                    "For each 2D class, the average of what we kept is compared with the average of what a"
                    " person kept, aligned by the class's own poses, corrected for the CTF, low-passed to the"
                    " class's resolution, inside the mask, at zero mean and unit variance.",
                    {
                        "particles": f"{opened.path}: {len(particles):,} with a label and a verdict",
                        "selection": found,
                        "verdicts": verdicts,
                        "classes": f"{len(alike)} compared, {numbers['classes_left_out']} left out (fewer"
                        " than four particles kept)",
                    },
                    {"folder": out, "numbers": METRICS, "figures": "figures/ (SVG, PNG, CSV)"},
                    {
                        "median MSE": f"{numbers['ours']['mse']['median']:.3f}",
                        "at random": f"{numbers['chance']['mse']['median']:.3f}",
                        "two halves": f"{numbers['floor']['mse']['median']:.3f}",
                    },
                ),
                *report.similarity_sections(alike, projected, _SHOWN),
                report.provenance_section(
                    report.command(),
                    [chosen],
                    {"source": digest(opened.path), "verdicts": digest(_table(Path(verdicts)))},
                ),
            ],
            pictures=True,
        )
        write_json(partial / METRICS, numbers)
    on_event(
        Event(
            "validation.done",
            {"out": str(out), **{name: numbers[name]["mse"]["median"] for name in _REFERENCES}},
        )
    )
    return numbers


_REFERENCES = ("ours", "chance", "floor")


@ray.remote
def _of_class(
    number: int,
    particles: Particles,
    person: np.ndarray,
    ours: np.ndarray,
    chosen: ProofSettings,
    volume: np.ndarray | None,
) -> tuple[similarity.ClassLikeness | None, similarity.Likeness | None]:
    torch.set_num_threads(1)
    images, size = torch.from_numpy(read_images(particles)), particles.poses.pixel_size
    radius = chosen.diameter / 2 / size if chosen.diameter else None
    found = similarity.class_likeness(
        number, images, particles.poses, person, ours, radius=radius, seed=chosen.seed
    )
    if found is None or volume is None:
        return found, None
    box = particles.box
    mask = similarity.round_mask(box, radius or similarity.MASK_RADIUS * box / 2)
    views = similarity.projections(torch.from_numpy(volume.copy()), fsc.half_sphere(_VIEWS))
    mine = torch.from_numpy(found.images[0])
    return found, similarity.best_projection(mine, views, mask, size, found.limit)[1]


def _similarity_numbers(
    alike: Sequence[similarity.ClassLikeness], projected: Mapping[int, similarity.Likeness]
) -> dict[str, Any]:
    columns = {
        "ours": [one.likeness for one in alike],
        "chance": [one.chance for one in alike],
        "floor": [one.floor for one in alike],
    }
    if projected:
        columns["projections"] = list(projected.values())
    numbers: dict[str, Any] = {
        name: {
            of.name: _spread([getattr(one, of.name) for one in values])
            for of in fields(similarity.Likeness)
        }
        for name, values in columns.items()
    }
    numbers["by_class"] = [
        {
            "class": one.number,
            "person": one.person,
            "ours": one.ours,
            "shared": one.shared,
            "resolution": one.limit,
            **{name: asdict(getattr(one, name)) for name in ("likeness", "chance", "floor")},
            **({"projection": asdict(projected[one.number])} if one.number in projected else {}),
        }
        for one in alike
    ]
    numbers["ssim_window"], numbers["ssim_data_range"] = similarity.WINDOW, similarity.DATA_RANGE
    return numbers


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return {"median": median, "low": low, "high": high, "worst": float(np.max(values))}


def verdicts_of(path: Path, source: Source) -> np.ndarray:
    """Str objects [n]: the verdict about each row of a source, '' where there is none.

    Raises:
        InputError: there are no verdicts, or none about these images.
    """
    file = _table(path)
    if not file.is_file():
        raise InputError("there are no verdicts", file=path, remedy="give a folder of `classify`")
    table = pq.read_table(file, columns=["image", "verdict"])
    known = dict(zip(table["image"].to_pylist(), table["verdict"].to_pylist(), strict=True))
    found = np.array([known.get(name, "") for name in source.images], object)
    if not (found != "").any():
        raise InputError(
            f"says nothing of the images of {source.path}",
            file=file,
            remedy="judge these particles, or give those that were judged",
        )
    return found


def _table(path: Path) -> Path:
    return path / "verdicts.parquet" if path.is_dir() else path


@dataclass(frozen=True, slots=True, eq=False)
class _Set:
    """Two half-maps and the particles in them."""

    halves: tuple[torch.Tensor, torch.Tensor]
    particles: int


@dataclass(frozen=True, slots=True, eq=False)
class _Proof:
    """What can be said about a set's map."""

    particles: int
    curves: fsc.HalfMapFsc
    views: fsc.Directional
    truth: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        found: _Set,
        pixel_size: float,
        mask: torch.Tensor | None,
        truth: torch.Tensor | None,
        chosen: ProofSettings,
    ) -> _Proof:
        curves = fsc.half_map_fsc(
            *found.halves, pixel_size, mask, draws=chosen.random_phases, seed=chosen.seed
        )
        weight = torch.ones(()) if mask is None else mask
        first, second = (half * weight for half in found.halves)
        views = fsc.directional_fsc(first, second, pixel_size)
        against = None if truth is None else fsc.correlation((first + second) / 2, truth * weight)
        return cls(found.particles, curves, views, against)

    @property
    def resolution(self) -> float | None:
        return self.curves.resolution().interpolated

    @property
    def true_resolution(self) -> float | None:
        if self.truth is None:
            return None
        return fsc.resolution(self.curves.frequency, self.truth, 0.5).interpolated


class _Maps:
    """Half-maps of sets of particles, made on Ray."""

    def __init__(
        self,
        particles: Particles,
        operators: np.ndarray,
        chosen: ProofSettings,
        on_progress: OnProgress,
    ) -> None:
        self._particles, self._operators, self._chosen = particles, operators, chosen
        self._told, self._done = on_progress, 0
        self._total = 2 * chosen.random_subsets

    def of(self, rows: np.ndarray) -> _Set:
        """The half-maps of the rows where ``rows`` (bool [n]) holds."""
        sums = [self._sums(rows & (self._particles.half == half)) for half in (1, 2)]
        return self._maps(sums, int(rows.sum()))

    def levels(
        self, sides: Mapping[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, list[_Set]]:
        """Maps of ever more of each side and of all sides together, the last of everything.

        Sums only grow, so that each particle is inserted once.
        """
        self._total += 2 * (2 * _LEVELS + len(sides) - 1)
        level = {name: _levels(rows, self._particles.half, rng) for name, rows in sides.items()}
        sums: dict[str, list[Any]] = {name: [None, None] for name in sides}
        found: dict[str, list[_Set]] = {name: [] for name in (*sides, "all")}
        for number in range(_LEVELS):
            for name, of in level.items():
                for half in (1, 2):
                    more = self._sums((of == number) & (self._particles.half == half))
                    sums[name][half - 1] = total([sums[name][half - 1], more])
                last = number == _LEVELS - 1
                if all(sums[name]) and (name == "kept" or last):
                    found[name].append(
                        self._maps(sums[name], int(((of >= 0) & (of <= number)).sum()))
                    )
            both = [total([sums[name][half] for name in sides]) for half in (0, 1)]
            count = sum(int(((of >= 0) & (of <= number)).sum()) for of in level.values())
            found["all"].append(self._maps(both, count))
        return {name: series for name, series in found.items() if series}

    def _sums(self, rows: np.ndarray) -> Any:
        return accumulate(self._particles[np.flatnonzero(rows)], self._chosen.particles)

    def _maps(self, sums: Sequence[Any], particles: int) -> _Set:
        box = self._particles.box
        first, second = ray.get([invert(one, box, self._operators) for one in sums])
        self._done += 2
        self._told(Progress("maps", self._done, self._total, "maps"))
        return _Set((torch.from_numpy(first.copy()), torch.from_numpy(second.copy())), particles)


def _levels(rows: np.ndarray, half: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int8 [n]: the level at which each row comes in, a sixteenth, an eighth, … all; -1 outside ``rows``."""
    level = np.full(len(rows), -1, np.int8)
    for number in (1, 2):
        mine = rng.permutation(np.flatnonzero(rows & (half == number)))
        for i in reversed(range(_LEVELS)):
            level[mine[: -(-len(mine) // 2 ** (_LEVELS - 1 - i))]] = i
    return level


def _as_many(rows: np.ndarray, half: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many random rows of each half as ``rows`` has there: bool [n]."""
    drawn = np.zeros(len(rows), bool)
    for number in (1, 2):
        mine = np.flatnonzero(half == number)
        drawn[rng.choice(mine, int((rows & (half == number)).sum()), replace=False)] = True
    return drawn


def _true_map(truth: Path | None, source: Path, box: int) -> torch.Tensor | None:
    path = truth or source.parent / "truth.mrc"
    if truth is None and not path.is_file():
        return None
    volume, _ = read_volume(path)
    if len(volume) != box:
        raise InputError(f"has {len(volume)}³ voxels where the particles have {box} px", file=path)
    return torch.from_numpy(volume)


def _reconstruct_numbers(
    proofs: Mapping[str, _Proof], reslog: Mapping[str, Sequence[_Proof]]
) -> dict[str, Any]:
    numbers: dict[str, Any] = {"sets": {}, "reslog": {}}
    for name, proof in proofs.items():
        numbers["sets"][name] = {
            "particles": proof.particles,
            **fsc_numbers(proof.curves),
            "directional": directional_numbers(proof.views),
        }
        if proof.truth is not None:
            numbers["sets"][name]["fsc_true"] = proof.truth.tolist()
            numbers["sets"][name]["resolution_true_0.5"] = proof.true_resolution
    for name, series in reslog.items():
        count = np.array([proof.particles for proof in series], float)
        limit = np.array([proof.resolution or np.nan for proof in series])
        numbers["reslog"][name] = {
            "particles": count.tolist(),
            "resolution": limit.tolist(),
            "b_factor": b_factor(count, limit),
        }
    random = _random(proofs)
    numbers["random_spread"] = {
        "resolution": _range([proof.resolution for proof in random]),
        "area_ratio": _range([proof.views.area_ratio for proof in random]),
        "resolution_true_0.5": _range([proof.true_resolution for proof in random]),
    }
    least = numbers["random_spread"]["area_ratio"]
    whole, kept = (proofs[name].views.area_ratio for name in ("all", "kept"))
    numbers["more_anisotropic"] = bool(kept < whole and (least is None or kept < least["min"]))
    return numbers


def _random(proofs: Mapping[str, _Proof]) -> list[_Proof]:
    return [proof for name, proof in proofs.items() if name.startswith("random ")]


def _range(values: Sequence[float | None]) -> dict[str, float] | None:
    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return None
    std = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return {
        "mean": float(known.mean()),
        "std": std,
        "min": float(known.min()),
        "max": float(known.max()),
    }


def _reconstruct_sections(
    numbers: Mapping[str, Any],
    proofs: Mapping[str, _Proof],
    reslog: Mapping[str, Sequence[_Proof]],
    source: Path,
    verdicts: Path,
    out: Path,
) -> list[report.Section]:
    kept, whole, random = proofs["kept"], proofs["all"], _random(proofs)
    frequency = kept.curves.frequency
    looks = {"kept": ("keep", "-"), "all": ("ink", "-"), "discarded": ("discard", "-")}
    looks["review"] = ("review", "-")

    def lines(of: Callable[[_Proof], np.ndarray]) -> list[report.Line]:
        drawn = [
            report.Line(name, frequency, of(proofs[name]), colour, style)
            for name, (colour, style) in looks.items()
            if name in proofs
        ]
        if random:
            curves = np.stack([of(proof) for proof in random])
            band = np.stack([curves.min(0), curves.max(0)])
            drawn.append(
                report.Line("random, as many", frequency, curves.mean(0), "d1", (0, (5, 1.6)), band)
            )
        return drawn

    sections = [
        report.summary_section(
            "The same poses and half-sets, the same mask; only the choice of particles differs.",
            {
                "particles": f"{source}: {numbers['rows']:,} rows, of which {numbers['left_out']:,} were"
                " left out (not judged, in no half-set, without a pose, or unreadable)",
                "verdicts": verdicts,
                "symmetry": numbers["symmetry"],
            },
            {"folder": out, "half-maps": "kept_half1.mrc …", "figures": "figures/ (SVG, PNG, CSV)"},
            {
                f"kept ({kept.particles:,})": report.angstrom(kept.resolution),
                f"all ({whole.particles:,})": report.angstrom(whole.resolution),
            },
        ),
        report.sets_section(
            lines(lambda proof: proof.curves.best),
            [_set_row(name, proof) for name, proof in proofs.items()],
        ),
    ]
    if kept.truth is not None:
        sections.append(report.truth_section(lines(lambda proof: np.asarray(proof.truth))))
    sections.append(
        report.reslog_section(
            [
                report.Line(
                    f"{name}: B = {found['b_factor']:.0f} Å²" if found["b_factor"] else name,
                    np.array(found["particles"]),
                    1 / np.array(found["resolution"]) ** 2,
                    looks[name][0],
                )
                for name, found in numbers["reslog"].items()
            ]
        )
    )
    warning = (
        "The kept particles make a map that is more anisotropic than that of all, and than any random"
        " subset as large: views may have been lost."
        if numbers["more_anisotropic"]
        else ""
    )
    views = {name: proofs[name].views for name in ("kept", "all")}
    sections.append(report.directions_section(views, frequency, warning))
    doubts = [f"{name}: {said}." for name in proofs for said in proofs[name].curves.warnings]
    if doubts:
        sections.append(report.Section("Distrust", [], " ".join(doubts[:6])))
    return sections


def _set_row(name: str, proof: _Proof) -> tuple[str, ...]:
    at = {threshold: proof.curves.resolution(threshold) for threshold in fsc.THRESHOLDS}
    return (
        name,
        f"{proof.particles:,}",
        report.angstrom(at[0.143].last_shell),
        report.angstrom(at[0.143].interpolated),
        report.angstrom(at[0.5].interpolated),
        report.angstrom(proof.true_resolution),
        f"{proof.views.area_ratio:.3f}",
    )


def is_validation(folder: Path) -> bool:
    """Whether a folder is one of ours, which may be replaced."""
    return (folder / METRICS).is_file() and (folder / REPORT).is_file()


def read_halves(
    half1: Path, half2: Path, pixel_size: float | None
) -> tuple[tuple[torch.Tensor, torch.Tensor], float]:
    """Two half-maps and their pixel size in Å, which may be given.

    Raises:
        FormatError: one cannot be read.
        InputError: they differ in size, or the pixel size is unknown.
    """
    (first, size1), (second, size2) = read_volume(half1), read_volume(half2)
    if first.shape != second.shape:
        raise InputError(f"has {len(second)}³ voxels where {half1} has {len(first)}³", file=half2)
    if np.array_equal(first, second):
        raise InputError(f"is the same map as {half1}", file=half2, remedy="give the other half")
    size = pixel_size or size1 or size2
    if size is None:
        raise InputError("does not say its pixel size", file=half1, remedy="give --pixel-size")
    if pixel_size is None and size2 and abs(size2 / size - 1) > _SAME_PIXEL:
        raise InputError(
            f"has {size2:.4f} Å/px where {half1} has {size:.4f}",
            file=half2,
            remedy="give --pixel-size",
        )
    return (torch.from_numpy(first), torch.from_numpy(second)), size


def _mask(
    mask: str | None,
    halves: tuple[torch.Tensor, torch.Tensor],
    pixel_size: float,
    chosen: ProofSettings,
    out: Path,
) -> tuple[torch.Tensor | None, dict[str, Any] | None]:
    """The mask and what to say about it."""
    if mask is None:
        return None, None
    if mask == "auto":
        made, level = fsc.automatic_mask(
            (halves[0] + halves[1]) / 2,
            pixel_size,
            chosen.mask_threshold,
            lowpass=chosen.mask_lowpass,
            extend=chosen.mask_extend,
            soft_edge=chosen.mask_edge,
        )
        write_volume(out / "mask.mrc", made.numpy(), pixel_size)
        return made, {"file": "mask.mrc", "threshold": level, "fraction": float(made.mean())}
    volume, _ = read_volume(Path(mask))
    if volume.shape != tuple(halves[0].shape):
        raise InputError(
            f"has {len(volume)}³ voxels where the maps have {len(halves[0])}³", file=mask
        )
    if volume.min() < -1e-6 or volume.max() > 1 + 1e-6:
        raise InputError("is no mask: its values are not between 0 and 1", file=mask)
    return torch.from_numpy(volume), {"file": str(mask), "fraction": float(volume.mean())}


def fsc_numbers(curves: fsc.HalfMapFsc) -> dict[str, Any]:
    """The curves and resolutions as ``metrics.json`` has them."""
    return {
        "fsc": {
            "frequency": curves.frequency.tolist(),
            **{name: curve.tolist() for name, curve in curves.curves.items()},
        },
        "resolution": resolution_numbers(curves.frequency, curves.best),
        "resolution_unmasked": resolution_numbers(curves.frequency, curves.unmasked),
        "randomised_from": curves.randomised_from,
        "warnings": list(curves.warnings),
    }


def resolution_numbers(frequency: np.ndarray, curve: np.ndarray) -> dict[str, dict[str, Any]]:
    """Å at both thresholds by both definitions."""
    return {
        f"{threshold:g}": asdict(fsc.resolution(frequency, curve, threshold))
        for threshold in fsc.THRESHOLDS
    }


def directional_numbers(views: fsc.Directional) -> dict[str, Any]:
    """How a map's resolution depends on direction."""
    known = views.resolution[np.isfinite(views.resolution)]
    return {
        "area_ratio": views.area_ratio,
        "best": float(known.min()) if len(known) else None,
        "worst": float(known.max()) if len(known) == len(views.resolution) else None,
        "worst_direction": views.worst.tolist(),
    }


def _compared(
    curves: fsc.HalfMapFsc, frequency: np.ndarray, published: np.ndarray
) -> tuple[dict[str, Any], str]:
    """The published curve's resolution beside ours, as numbers and as a sentence."""
    theirs = resolution_numbers(frequency, published)
    ours = resolution_numbers(curves.frequency, curves.best)
    numbers: dict[str, Any] = {"resolution": theirs, "difference": {}}
    said = []
    for threshold in theirs:
        mine, other = ours[threshold]["interpolated"], theirs[threshold]["interpolated"]
        if mine is None or other is None:
            continue
        numbers["difference"][threshold] = mine - other
        word = "better" if mine < other else "worse"
        said.append(
            f"at {threshold} this map's {mine:.2f} Å is {abs(mine - other):.2f} Å {word} than the"
            f" published curve's {other:.2f} Å"
        )
    text = "; ".join(said)
    return numbers, f"{text[:1].upper()}{text[1:]}." if text else ""


def _fsc_summary(
    half1: Path,
    half2: Path,
    mask: Mapping[str, Any] | None,
    out: Path,
    curves: fsc.HalfMapFsc,
    pixel_size: float,
    side: int,
) -> report.Section:
    at = {threshold: curves.resolution(threshold) for threshold in fsc.THRESHOLDS}
    which = "corrected for the mask" if curves.corrected is not None else "without a correction"
    return report.summary_section(
        f"How far two half-maps agree, {which}. Each half must have been refined on its own; nothing here"
        " can tell whether that was so.",
        {
            "half-maps": f"{half1}, {half2}",
            "box": f"{side} px at {pixel_size:.4g} Å/px",
            "mask": "none"
            if mask is None
            else f"{mask['file']}, {mask['fraction']:.1%} of the box",
        },
        {"folder": out, "numbers": METRICS, "figures": "figures/ (SVG, PNG, CSV)"},
        {f"at {threshold}": report.angstrom(found.last_shell) for threshold, found in at.items()},
    )


def _step(steps: Progress, done: int) -> Progress:
    return Progress(steps.stage, done, steps.total, steps.unit)


def _told(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"resolution_{threshold}": found["last_shell"]
        for threshold, found in numbers["resolution"].items()
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain numbers; what is not a number is null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
