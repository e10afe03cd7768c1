"""Champion and challenger on images that were labelled blind: scores, and the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryoray.engine.local import judge_set
from cryoray.metrics.comparison import Comparison, Scores, compare
from cryoray.models.ensemble import Ensemble
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import Event, OnEvent, ignore
from cryoray.settings import Settings
from cryoray.verbs.predictions import with_profiles
from cryoray.verbs.suitability import check_same_preparation, unseen


def challenge(
    champion: Path,
    challenger: Path,
    sets: Sequence[Path],
    settings: Settings,
    *,
    on_event: OnEvent = ignore,
) -> Comparison:
    """Compare two ensembles on the labelled images of groups that neither knows.

    Args:
        champion: folder of the ensemble that is served.
        challenger: folder of the one that may take its place.
        sets: prepared sets of images that were labelled blind.
        settings: ``nightly``, and the bound of ``train.operating_point``, are used.
        on_event: ``challenge.decided`` with the outcome.

    Raises:
        EnsembleError: a set holds images of another kind or look than an ensemble judges.
    """
    both = [Ensemble.load(path) for path in (champion, challenger)]
    scores: list[list[np.ndarray]] = [[], []]
    keep, groups = [], []
    for path in sets:
        examples = PreparedSet.open(path)
        new = examples.labels >= 0
        for ensemble in both:
            check_same_preparation(ensemble, examples)
            new &= unseen(ensemble, examples)
        rows = np.flatnonzero(new)
        keep.append(examples.labels[rows] == 1)
        groups.append(examples.groups("project")[rows])
        for ensemble, scores_of_one in zip(both, scores, strict=True):
            # Above or below the line: a project may have one of its own.
            margin = np.empty(len(rows), np.float32)
            for some, judge in with_profiles(ensemble, examples, rows):
                judged = judge_set(examples, rows[some], judge, ignore, everyone=True)
                margin[some] = judged.score - np.float32(judge.threshold)
            scores_of_one.append(margin)
    ours, theirs = (
        Scores(np.concatenate([np.empty(0, np.float32), *margins]), 0.0) for margins in scores
    )
    chosen = settings.nightly
    outcome = compare(
        ours,
        theirs,
        np.concatenate([np.empty(0, bool), *keep]),
        np.concatenate([np.empty(0, object), *groups]),
        bound=settings.train.operating_point.bound,
        confidence=chosen.confidence,
        least=chosen.least,
        resamples=chosen.resamples,
        seed=chosen.seed,
    )
    on_event(
        Event(
            "challenge.decided",
            {
                "champion": both[0].digest,
                "challenger": both[1].digest,
                "better": outcome.better,
                "why": outcome.why,
            },
        )
    )
    return outcome
