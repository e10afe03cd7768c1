"""Class averages of what we kept beside those of what a person kept: numbers, pictures and one page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cryoray.engine import each, local
from cryoray.errors import InputError, SelectionError
from cryoray.formats import rln
from cryoray.formats.files import replacing_folder
from cryoray.formats.names import METRICS, REPORT
from cryoray.formats.selection import find_selection, read_selection
from cryoray.formats.source import open_source
from cryoray.formats.volume import read_volume
from cryoray.maps import similarity
from cryoray.maps.particles import particles_of
from cryoray.records import Event, OnEvent, OnProgress, Progress, ignore
from cryoray.report.class_averages import AveragesPage
from cryoray.settings import Settings
from cryoray.verbs.validation import (
    digest,
    is_validation,
    verdicts_of,
    verdicts_table,
    write_json,
)


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
        settings: ``runtime`` and ``validation`` are used.
        selection: the person's; None: that beside the source.
        volume: a map whose projections are compared with the class averages, too.
        on_progress: called as classes are done.
        on_event: ``validation.done``.

    Returns:
        what ``metrics.json`` holds.

    Raises:
        InputError: the source has no classes or poses, or nothing can be compared.
        SelectionError: there is no selection of these particles.
        SettingsError: no Ray.
    """
    chosen = settings.validation
    opened = open_source(Path(source))
    if rln.CLASS_NUMBER not in opened.metadata:
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
    classes = opened.metadata[rln.CLASS_NUMBER][particles.row].astype(np.int64)
    numbers_of = np.unique(classes)
    of = {
        "source": [str(opened.path)],
        "selection": [str(Path(found).absolute())],
        "folder of verdicts": [str(Path(verdicts).absolute())],
    }
    with replacing_folder(
        Path(out).absolute(), "validation", is_validation, of, replace=chosen.replace
    ) as folder:
        read = None
        if volume is not None:
            read, _ = read_volume(volume)
            if len(read) != particles.box:
                raise InputError(
                    f"has {len(read)}³ voxels for images of {particles.box} px", file=volume
                )
        chosen_classes = []
        for number in numbers_of.tolist():
            rows = np.flatnonzero(classes == number)
            rng = np.random.default_rng((chosen.seed, number))
            rows = np.sort(rng.permutation(rows)[: chosen.class_particles])
            chosen_classes.append(
                similarity.ChosenClass(number, particles[rows], person[rows], ours[rows])
            )
        drawn = sum(one.particles.bytes for one in chosen_classes)
        call = (
            each.by_threads
            if local.suffices(drawn, chosen.local_max_mib, settings.runtime)
            else partial(each.by_ray, settings.runtime)
        )
        results = []
        for one in call(similarity.compare_choices, chosen_classes, chosen, read):
            results.append(one)
            on_progress(Progress("classes", len(results), len(chosen_classes), "classes"))
        alike = [one for one, _ in results if one is not None]
        if not alike:
            raise InputError("in no class did both keep four particles or more", file=opened.path)
        projected = {one.number: other for one, other in results if one and other}
        numbers = similarity.similarity_numbers(alike, projected) | {
            "rows": len(opened),
            "used": len(particles),
            "left_out": len(opened) - len(particles),
            "classes": len(numbers_of),
            "classes_left_out": len(numbers_of) - len(alike),
        }
        page = AveragesPage(opened.path, len(particles), found, verdicts, out, alike, projected)
        page.write(
            folder / REPORT,
            numbers,
            chosen,
            {"source": digest(opened.path), "verdicts": digest(verdicts_table(Path(verdicts)))},
        )
        write_json(folder / METRICS, numbers)
    on_event(
        Event(
            "validation.done",
            {
                "out": str(out),
                **{name: numbers[name]["mse"]["median"] for name in similarity.REFERENCES},
            },
        )
    )
    return numbers
