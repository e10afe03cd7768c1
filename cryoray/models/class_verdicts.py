"""Verdicts on the 2D classes of a job, and what they mean for the particles in those classes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from cryoray.boosting.voting import with_class
from cryoray.errors import FormatError
from cryoray.formats import rln
from cryoray.formats.class_selection import model_of, write_class_selection
from cryoray.formats.source import Source, open_source
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import judge_source
from cryoray.records import Verdicts


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
    if rln.CLASS_NUMBER not in particles.metadata:
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
    number = np.nan_to_num(particles.metadata[rln.CLASS_NUMBER], posinf=0, neginf=0)
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


def write_selection(out: Path, classes: ClassVerdicts, *, with_score: bool) -> None:
    """Write what RELION's Select job writes of the classes kept."""
    score = classes.score if with_score else None
    write_class_selection(out, classes.source, classes.verdict == "keep", score=score)
