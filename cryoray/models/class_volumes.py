"""Verdicts on 3D classes: pictures of maps are judged, and the classes of a job held against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from cryoray.boosting.prevalence import log_odds
from cryoray.boosting.voting import decide
from cryoray.boosting.voting import score as vote_score
from cryoray.boosting.within_job import TRAITS, beside_the_best, evidence, review_band
from cryoray.formats.class_volumes import VolumeClasses
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import judge_prepared
from cryoray.preparation.volume_features import MEASURED
from cryoray.preparation.volumes import plan_volumes, prepare_volumes
from cryoray.records import MEMBERS, OnProgress, Verdicts, ignore

#: How the line is drawn among 3D classes: around the best of their job, by no policy of the ensemble.
POLICY = "best of the job"


@dataclass(frozen=True, slots=True, eq=False)
class VolumeVerdicts:
    """The verdicts on the classes of a job; n of them were judged.

    Attributes:
        classes: all of the job.
        verdicts: on the classes; every member was asked about each, and those that could not be read are
            quarantined. Further columns: particles, looks, and the traits.
        ensemble: that judged, with the line and the band within the job.
        traits: float64 [n] by name of `boosting.within_job.TRAITS`.
        pictures: float32 [n, SLICES + views, s, s], each with a scale of its own.
    """

    classes: VolumeClasses
    verdicts: Verdicts
    ensemble: Ensemble
    traits: Mapping[str, np.ndarray]
    pictures: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """int64 [n], 0-based, those that were judged."""
        return self.verdicts.rows


def judge_volumes(
    classes: VolumeClasses, ensemble: Ensemble, on_progress: OnProgress = ignore
) -> VolumeVerdicts:
    """Judge the classes of a job in this process.

    A class's three central slices and its projections are judged as 2D classes without metadata; the
    mean of the log-odds of each member is moved by the evidence of the job's traits, in which the classes
    are compared with each other; so the score is the median of three, and the vote cannot disagree with it.
    No calibration vouches for the level of a map's pictures, so it is that of the job's best class that
    counts: scores are moved until that one lies as far above the threshold as a good class may lie below
    it. The best class is always kept.

    Raises:
        EnsembleError: the ensemble judges something else than 2D classes.
    """
    ensemble.check_kind("class2d", classes.path)
    planned = plan_volumes(classes, on_progress)
    prepared = prepare_volumes(planned, ensemble.preparation)
    judged = judge_prepared(prepared, ensemble.to(), everyone=True) if prepared else []
    seen = [place for place, part in enumerate(prepared) if len(part.rows)]
    maps = [planned.maps[place] for place in seen]
    rows = np.array([one.row for one in maps], np.int64)
    odds = np.array([_log_odds(judged[place]) for place in seen]).reshape(-1, len(MEMBERS))
    traits = {name: np.array([one.measured[name] for one in maps]) for name in MEASURED}
    known = {**classes.statistics, "share": classes.share}
    for trait in TRAITS:
        if trait.name in known:
            traits[trait.name] = known[trait.name][rows]
    moved = beside_the_best(odds + evidence(traits, len(rows))[:, None], ensemble.threshold)
    d1, d2, d3 = (_probability(column) for column in moved.T)
    score = vote_score(d1, d2, d3)
    doubtful = ensemble.review[0] < ensemble.review[1]
    band = review_band(ensemble.threshold) if doubtful else ensemble.review
    ensemble = ensemble.with_line(ensemble.threshold, band, POLICY)
    columns = {
        "score": score,
        "verdict": decide(score, ensemble.review),
        "d1": d1,
        "d2": d2,
        "d3": d3,
        "particles": classes.particles[rows],
        # The mean probability of keep of a class's pictures alone.
        "looks": _probability(np.median(odds, axis=1)) if len(rows) else np.empty(0, np.float32),
        **traits,
    }
    lost = [*planned.quarantined, *(bad for part in prepared for bad in part.quarantined)]
    return VolumeVerdicts(
        classes,
        Verdicts.of(rows, columns, lost, ensemble.about),
        ensemble,
        traits,
        np.array([prepared[place].images for place in seen], np.float32),
    )


def _log_odds(pictures: Verdicts) -> np.ndarray:
    """float64 [members]: the mean of each over the pictures of a map."""
    # Cut at 1:1000: no single picture may outvote the others.
    return np.array([log_odds(np.clip(p, 1e-3, 1 - 1e-3)).mean() for p in pictures.members()])


def _probability(odds: np.ndarray) -> np.ndarray:
    return np.asarray(expit(odds), np.float32)
