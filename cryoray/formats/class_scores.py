"""How people graded 2D classes for RELION's class ranker: the layout of EMPIAR-10812.

Each of its folders is a Class2D job: ``run_model.star`` and ``run_data.star``, the averages in
``run_class.mrcs``, a ``backup_selection.star`` whose numbers are grades (the colours of RELION's display),
and the job's own score in ``job_score.txt``. RELION (``ClassRanker::getClassScoreFromJobScore``) makes a
score of them: the job's, times 0.75 (red), 0.5 (magenta), 0.25 (green) or 0 (blue, cyan), each with up to
0.25 more for resolution; yellow and uncoloured classes have 0. Its tables of features
(``features_normalized.star``, ``normalised_features.star``) have that score beside each class.

A class counts as kept where its score is at least half of the best of its job, so that a poor job still
says which of its classes a person would take: red and magenta.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from cryoray.formats import rln
from cryoray.formats.star import Block, StarFile

#: Marks a folder in which ``backup_selection.star`` holds grades.
JOB_SCORE = "job_score.txt"
#: Columns of the tables of features; the score, and an image cut to 64 px for RELION's own network.
SCORE, SUBIMAGES = rln.CLASS_SCORE, "rlnSubImageStack"
#: Files of them.
FEATURES = re.compile(r"^(features(_normali[sz]ed)?|normali[sz]ed_features)\.star$")
#: What RELION 4 and 5 and the entry call these tables.
_TABLES = ("normalized_features", "normalized_class_features", "class_features")
_KEPT_GRADES = (1, 5)
_LEAST = 0.5


def is_graded(selection: Path) -> bool:
    """Whether the numbers of a ``backup_selection.star`` are grades."""
    return (selection.parent / JOB_SCORE).is_file()


def of_grades(grades: np.ndarray) -> np.ndarray:
    """Grades, float [classes], as labels: int8, 1 keep, 0 discard, -1 where there is none."""
    kept = np.isin(grades, _KEPT_GRADES).astype(np.int8)
    return np.where(np.isnan(grades), np.int8(-1), kept)


def features_table(star: StarFile) -> Block | None:
    """The table of a class ranker's features, if the file is one."""
    named = (star[name] for name in _TABLES if name in star)
    return next(
        (table for table in named if SCORE in table.columns or SUBIMAGES in table.columns), None
    )


def of_scores(scores: np.ndarray, stacks: Sequence[str]) -> np.ndarray:
    """Scores as labels.

    Args:
        scores: float [n]; NaN or below 0 where a class was given none, which is of ten particles or fewer.
        stacks: of each row's image; jobs are their folders.

    Returns:
        int8 [n]: 1 keep, 0 discard, -1 no label.
    """
    jobs = np.array([str(PurePosixPath(stack).parent) for stack in stacks], object)
    known = np.isfinite(scores) & (scores >= 0)
    labels = np.full(len(scores), -1, np.int8)
    for job in set(jobs.tolist()):
        here = known & (jobs == job)
        best = scores[here].max(initial=0.0)
        labels[here] = (scores[here] >= _LEAST * best) & (best > 0)
    return labels
