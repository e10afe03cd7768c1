"""2D classes: judged in this process, ranked as RELION's class_ranker does; for their particles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cryoray.boosting.voting import with_class
from cryoray.errors import FormatError
from cryoray.formats import class_selection
from cryoray.formats.class_selection import (
    class_numbers,
    model_of,
    particle_counts,
    write_class_selection,
)
from cryoray.formats.source import Source, open_source
from cryoray.formats.star import parse
from cryoray.formats.verdicts import write_verdicts
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import judge_source
from cryoray.models.registry import resolve
from cryoray.records import Event, OnEvent, RowCounts, Verdicts, ignore
from cryoray.settings import Settings


class ClassVerdicts(NamedTuple):
    """What became of the classes of a job.

    Attributes:
        source: the classes.
        verdicts: on them; those that are no images, such as empty ones, are quarantined.
        verdict: object [classes], '' where there is none.
        score: float32 [classes], NaN where there is none.
    """

    source: Source
    verdicts: Verdicts
    verdict: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, source: Source, verdicts: Verdicts) -> ClassVerdicts:
        """As places of classes what is rows of a table."""
        verdict = np.full(len(source), "", object)
        score = np.full(len(source), np.nan, np.float32)
        verdict[verdicts.rows] = verdicts.verdict
        score[verdicts.rows] = verdicts.score
        return cls(source, verdicts, verdict, score)


def judge_classes(source: Source, ensemble: Ensemble) -> ClassVerdicts:
    """Judge all classes of a job in this process.

    Raises:
        EnsembleError: the ensemble judges particles.
    """
    return ClassVerdicts.of(source, judge_source(source, ensemble))


def judge_classes_of(particles: Source, ensemble: Ensemble) -> ClassVerdicts:
    """Judge the classes of the job in which these particles were classified.

    Raises:
        InputError: it has no model beside its particles, or these have no class numbers.
        EnsembleError: the ensemble judges particles.
    """
    if "rlnClassNumber" not in particles.metadata:
        raise FormatError(
            "has no column rlnClassNumber",
            file=particles.path,
            remedy="give the run_itNNN_data.star of a Class2D job",
        )
    return judge_classes(open_source(model_of(particles.path), "class2d"), ensemble)


def with_classes(verdicts: Verdicts, particles: Source, classes: ClassVerdicts) -> Verdicts:
    """Verdicts of particles in the light of their classes' (`boosting.voting.with_class`).

    Args:
        verdicts: on particles.
        particles: whose rows they are.
        classes: those of the same job.

    Returns:
        the verdicts with what becomes of each particle as its verdict, the reason where its class is why
        it is discarded, and ``class_score`` float32, null where its class has no verdict.
    """
    number = np.nan_to_num(particles.metadata["rlnClassNumber"], posinf=0, neginf=0)
    number = number[verdicts.rows].astype(np.int64)
    known = (number >= 1) & (number <= len(classes.score))
    place = np.where(known, number - 1, len(classes.score))
    of_class = np.append(classes.verdict, "")[place]
    class_score = np.append(classes.score, np.float32(np.nan))[place]
    own = verdicts.verdict
    verdict = with_class(own, of_class)
    by_class = (verdict == "discard") & (own != "discard")
    reason = verdicts.reason.copy()
    reason[by_class] = [f"its class {n} is discarded" for n in number[by_class].tolist()]
    made = verdicts.with_column("verdict", verdict).with_column("reason", reason)
    about = dict(made.about)
    if "threshold" in classes.verdicts.about:
        about["class_threshold"] = classes.verdicts.about["threshold"]
    return made.with_column("class_score", class_score).with_about(about)


def write_classes(out: Path, classes: ClassVerdicts, *, with_score: bool) -> None:
    """Write the verdicts on a job's classes, and what RELION's Select job writes of those kept."""
    columns = ["score"] if with_score else []
    write_verdicts(out, classes.source, classes.verdicts, star_columns=columns)
    write_selection(out, classes, with_score=with_score)


def write_selection(out: Path, classes: ClassVerdicts, *, with_score: bool) -> None:
    """Write what RELION's Select job writes of the classes kept."""
    score = classes.score if with_score else None
    write_class_selection(out, classes.source, classes.verdict == "keep", score=score)


#: RELION's default of --min_score, where it is a fraction of the highest score.
_RELATIVE = 0.5


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the ranked classes are selected: the options of RELION's class_ranker.

    Attributes:
        min_score: the lowest score selected. None: what the ensemble decides, which are the classes that
            ``classify --no-review`` keeps; where thresholds are relative, RELION's default of 0.5.
        max_score: the highest.
        relative: both are fractions of the highest score of a class.
        min_particles: of the best classes left, as many are added as it takes to have so many
            particles by hard assignment; -1 for none.
        min_classes: the same for classes.
    """

    min_score: float | None = None
    max_score: float = 999.0
    relative: bool = False
    min_particles: int = -1
    min_classes: int = -1

    def __call__(
        self, score: np.ndarray, particles: np.ndarray, ranked: np.ndarray, threshold: float
    ) -> np.ndarray:
        """Choose.

        Args:
            score: float32 [classes].
            particles: int64 [classes], particles of each.
            ranked: bool [classes], the classes that have a score; no others are chosen.
            threshold: the ensemble's.

        Returns:
            bool [classes].
        """
        highest = score[ranked].max(initial=0.0) if self.relative else 1.0
        if self.min_score is not None:
            low = self.min_score * highest
        else:
            low = _RELATIVE * highest if self.relative else threshold
        # In float32, a threshold that was read from a class's score includes that class.
        chosen = ranked & (score >= np.float32(low))
        chosen &= score <= np.float32(self.max_score * highest)
        for best in np.argsort(-score, kind="stable").tolist():
            if particles[chosen].sum() >= self.min_particles and chosen.sum() >= self.min_classes:
                break
            chosen[best] |= ranked[best]
        return chosen


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
    judged_classes = judge_classes(open_source(files.model, "class2d"), ensemble)
    numbers = class_numbers(parse(files.data))
    counts = particle_counts(
        np.empty(0, np.int64) if numbers is None else numbers, len(judged_classes.score)
    )
    distribution = judged_classes.source.metadata.get(
        "rlnClassDistribution", np.zeros(len(judged_classes.score))
    )
    ranked = (judged_classes.verdict != "") & ((counts > 0) | (distribution > 0))
    score = np.where(ranked, judged_classes.score, 0).astype(np.float32)
    keep = (
        choice(score, counts, ranked, ensemble.threshold) if choice else np.zeros(len(score), bool)
    )
    row_counts = write_verdicts(out / "cryoray", judged_classes.source, judged_classes.verdicts)
    class_selection.write_ranking(out, root, files, score, names)
    if choice is None:
        class_selection.write_backup(out, keep)
        written = None
    else:
        written = write_class_selection(
            out,
            judged_classes.source,
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
    return row_counts.check(max_quarantined=1.0, listed_in=out / "cryoray" / "quarantine.parquet")
