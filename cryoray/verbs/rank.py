"""Rank: the 2D classes of a job, scored and selected in place of RELION's class_ranker."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryoray.boosting.class_choice import Choice
from cryoray.formats import class_selection, rln
from cryoray.formats.class_selection import (
    class_numbers,
    particle_counts,
    write_class_selection,
)
from cryoray.formats.names import QUARANTINE_TABLE
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from cryoray.formats.verdicts import write_verdicts
from cryoray.models.class_verdicts import judge_classes
from cryoray.models.ensemble import Ensemble
from cryoray.models.registry import resolve
from cryoray.records import Event, OnEvent, RowCounts, ignore
from cryoray.settings import Settings


def rank(
    optimiser: Path,
    out: Path,
    settings: Settings,
    choice: Choice | None,
    *,
    root: str = "rank",
    particles: str = class_selection.PARTICLES,
    averages: str = class_selection.AVERAGES,
    names: str | None = None,
    on_event: OnEvent = ignore,
) -> RowCounts:
    """Score the classes of a job and select some, with the files that relion_class_ranker writes.

    Beside them, ``OUT/cryoray`` has the verdicts in full. An empty class scores 0, as does one whose
    image cannot be read, and is never selected.

    Args:
        optimiser: the ``run_itNNN_optimiser.star`` of a Class2D job.
        out: folder, made where it is missing; older files of these names are replaced.
        settings: ``registry``, ``rank`` and ``classify.ensemble`` are used.
        choice: how to select; None writes the scores alone.
        root: what the names of the ranked model, data and optimiser begin with.
        particles: name of the file of particles selected.
        averages: name of the table of classes selected.
        names: ``out`` as the ranked optimiser shall name it.
        on_event: ``rank.done``.

    Returns:
        the row counts of the classes.

    Raises:
        InputError: something cannot be read.
        EnsembleError: there is none, or it judges particles.
    """
    files = class_selection.read_optimiser(optimiser)
    chosen = settings.rank.ensemble or settings.classify.ensemble
    ensemble = Ensemble.load(resolve(chosen, settings.registry, "class2d"))
    classes = judge_classes(open_source(files.model, "class2d"), ensemble)
    numbers = class_numbers(parse(files.data))
    counts = particle_counts(
        np.empty(0, np.int64) if numbers is None else numbers, len(classes.score)
    )
    distribution = classes.source.metadata.get(rln.CLASS_DISTRIBUTION, np.zeros(len(classes.score)))
    ranked = (classes.verdict != "") & ((counts > 0) | (distribution > 0))
    score = np.where(ranked, classes.score, 0).astype(np.float32)
    keep = (
        choice(score, counts, ranked, ensemble.threshold) if choice else np.zeros(len(score), bool)
    )
    row_counts = write_verdicts(out / "cryoray", classes.source, classes.verdicts)
    class_selection.write_ranking(out, root, files, score, names)
    if choice is None:
        class_selection.write_backup(out, keep)
        written = None
    else:
        written = write_class_selection(
            out,
            classes.source,
            keep,
            score=score,
            data=files.data,
            averages=averages,
            particles=particles,
        )
    on_event(
        Event(
            "rank.done",
            {
                "out": str(out),
                "ensemble": ensemble.digest,
                "classes": len(score),
                "empty": int((~ranked).sum()),
                "selected": int(keep.sum()),
                "particles_in": len(numbers) if numbers is not None else None,
                "particles_selected": written,
                "highest": float(score.max(initial=0)),
            },
        )
    )
    listed = out / "cryoray" / QUARANTINE_TABLE
    return row_counts.check(max_quarantined=1.0, listed_in=listed)  # empty classes are no fault
