"""Maps of the kept, of all, of the discarded and of random subsets: numbers, curves and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoray.engine import local
from cryoray.engine.reduce import ByThreads, OnRay, Reducer
from cryoray.errors import InputError
from cryoray.formats.files import replacing_folder
from cryoray.formats.names import METRICS, REPORT
from cryoray.formats.source import open_source
from cryoray.formats.volume import write_volume
from cryoray.maps.choices import (
    LEVELS,
    HalfMaps,
    MeasuredSet,
    as_many,
    levels,
    true_map,
    validation_numbers,
)
from cryoray.maps.halves import mask_for
from cryoray.maps.particles import Particles, particles_of
from cryoray.maps.reconstruct import sums_bytes, symmetry_operators
from cryoray.records import Event, OnEvent, OnProgress, Progress, ignore
from cryoray.report.choices import ChoicesPage
from cryoray.settings import Settings, ValidationSettings
from cryoray.verbs.validation import (
    digest,
    is_validation,
    verdicts_of,
    verdicts_table,
    write_json,
)

#: Below this many particles in a half-set there is no map to speak of.
_FEWEST = 10

#: Sums that are held at the same time (halves of three parts, their totals, two on their way to maps), and
#: the bytes that they may take in this process. Ray puts what does not fit on a disk.
_HELD, _MOST_SUMS = 10, 4 << 30


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
        settings: ``runtime`` and ``validation`` are used.
        mask: file, ``auto`` (made from the map of all) or None; the same for all sets.
        truth: the true map of simulated particles; None: ``truth.mrc`` beside the source, where it is.
        on_progress: called as maps are made.
        on_event: ``validation.done``.

    Returns:
        what ``metrics.json`` holds.

    Raises:
        InputError: the source has no poses or half-sets, or the verdicts are about other images.
        SettingsError: no Ray, or no such symmetry.
    """
    chosen = settings.validation
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
    of = {"source": [str(opened.path)], "folder of verdicts": [str(Path(verdicts).absolute())]}
    with replacing_folder(
        Path(out).absolute(), "validation", is_validation, of, replace=chosen.replace
    ) as partial:
        reducer: Reducer = (
            ByThreads()
            if _stays_here(particles, settings)
            else OnRay(settings.runtime, chosen.particles)
        )
        maps = _Maps(particles, operators, chosen, reducer, on_progress)
        rng = np.random.default_rng(chosen.seed)
        parts = {"kept": kept, "discarded": verdict == "discard", "review": verdict == "review"}
        steps = maps.levels({name: rows for name, rows in parts.items() if rows.any()}, rng)
        sets = {name: found[-1] for name, found in steps.items()}
        for number in range(chosen.random_subsets):
            sets[f"random {number + 1}"] = maps.of(as_many(kept, particles.half, rng))
        pixel_size = particles.poses.pixel_size
        whole = sets["all"]
        weights, masked_by = mask_for(mask, whole.halves, pixel_size, chosen, partial)
        true = true_map(truth, opened.path, particles.box)
        measured = {
            name: MeasuredSet.of(found, pixel_size, weights, true, chosen)
            for name, found in sets.items()
        }
        reslog = {
            name: [MeasuredSet.of(found, pixel_size, weights, None, chosen) for found in series]
            for name, series in steps.items()
            if name in ("kept", "all")
        }
        for name in ("kept", "all"):
            for number, half in enumerate(sets[name].halves, 1):
                write_volume(partial / f"{name}_half{number}.mrc", half.numpy(), pixel_size)
        numbers = validation_numbers(measured, reslog)
        numbers |= {
            "mask": masked_by,
            "rows": len(opened),
            "used": len(particles),
            "left_out": len(opened) - len(particles),
            "symmetry": chosen.symmetry,
        }
        page = ChoicesPage(opened.path, Path(verdicts), out, measured)
        page.write(
            partial / REPORT,
            numbers,
            chosen,
            {"source": digest(opened.path), "verdicts": digest(verdicts_table(Path(verdicts)))},
        )
        write_json(partial / METRICS, numbers)
    on_event(
        Event(
            "validation.done",
            {
                "out": str(out),
                **{name: one.resolution for name, one in measured.items()},
                "used": len(particles),
                "left_out": numbers["left_out"],
            },
        )
    )
    return numbers


def _stays_here(particles: Particles, settings: Settings) -> bool:
    """Whether the maps are made in this process: little to read, and sums that fit into its memory."""
    fits = _HELD * sums_bytes(particles.box) <= _MOST_SUMS
    return fits and local.suffices(
        particles.bytes, settings.validation.local_max_mib, settings.runtime
    )


class _Maps:
    """Half-maps of sets of particles, made by a reducer."""

    def __init__(
        self,
        particles: Particles,
        operators: np.ndarray,
        chosen: ValidationSettings,
        reducer: Reducer,
        on_progress: OnProgress,
    ) -> None:
        self._particles, self._operators, self._reducer = particles, operators, reducer
        self._on_progress, self._done = on_progress, 0
        self._total = 2 * chosen.random_subsets

    def of(self, rows: np.ndarray) -> HalfMaps:
        """The half-maps of the rows where ``rows`` (bool [n]) holds."""
        sums = [self._sums(rows & (self._particles.half == half)) for half in (1, 2)]
        return self._maps(sums, int(rows.sum()))

    def levels(
        self, parts: Mapping[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, list[HalfMaps]]:
        """Maps of ever more of each part and of all parts together, the last of everything.

        Sums only grow, so that each particle is inserted once.
        """
        self._total += 2 * (2 * LEVELS + len(parts) - 1)
        level = {name: levels(rows, self._particles.half, rng) for name, rows in parts.items()}
        sums: dict[str, list[Any]] = {name: [None, None] for name in parts}
        found: dict[str, list[HalfMaps]] = {name: [] for name in (*parts, "all")}
        for number in range(LEVELS):
            for name, of in level.items():
                for half in (1, 2):
                    more = self._sums((of == number) & (self._particles.half == half))
                    sums[name][half - 1] = self._reducer.total([sums[name][half - 1], more])
                last = number == LEVELS - 1
                if all(one is not None for one in sums[name]) and (name == "kept" or last):
                    found[name].append(
                        self._maps(sums[name], int(((of >= 0) & (of <= number)).sum()))
                    )
            both = [self._reducer.total([sums[name][half] for name in parts]) for half in (0, 1)]
            count = sum(int(((of >= 0) & (of <= number)).sum()) for of in level.values())
            found["all"].append(self._maps(both, count))
        return {name: series for name, series in found.items() if series}

    def _sums(self, rows: np.ndarray) -> Any:
        return self._reducer.accumulate(self._particles[np.flatnonzero(rows)])

    def _maps(self, sums: Sequence[Any], particles: int) -> HalfMaps:
        box = self._particles.box
        first, second = self._reducer.maps(sums, box, self._operators)
        self._done += 2
        self._on_progress(Progress("maps", self._done, self._total, "maps"))
        return HalfMaps((torch.from_numpy(first), torch.from_numpy(second)), particles)
