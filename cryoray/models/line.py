"""A whole source's verdicts once more: the line that a share draws, and a review list that can be finished.

What the ensemble alone decides, image by image, is the same in a table, in the service and in a session.
This comes after it, where a whole source is at hand: it only takes images off the list of those under
review, which the threshold then decides, and never changes a score or a forced decision.
"""

from __future__ import annotations

from cryoray.boosting.operating_point import narrowed, threshold_for_share
from cryoray.boosting.voting import verdicts as verdicts_of
from cryoray.models.ensemble import Ensemble
from cryoray.records import VERDICTS, Verdicts


def settled(verdicts: Verdicts, ensemble: Ensemble, at_most: float) -> tuple[Verdicts, Ensemble]:
    """The verdicts on all of a source, at a line that is known only now, with few under review.

    Args:
        verdicts: on every row of a source.
        ensemble: that judged.
        at_most: share of the images that may be under review, rounded up.

    Returns:
        the verdicts, whose `about` names the threshold and the band, and the ensemble with that line.
    """
    score = verdicts.score
    if ensemble.awaits_share:
        line = threshold_for_share(score, float(ensemble.policy.partition("=")[2]))
        ensemble = ensemble.with_line(line, (line, line))
    band = narrowed(score, ensemble.review, ensemble.threshold, at_most)
    ensemble = ensemble.with_line(ensemble.threshold, band)
    verdict = verdicts_of(score, band)
    reason = verdicts.reason.copy()
    reason[verdict != VERDICTS[1]] = None
    made = verdicts.with_column("verdict", verdict).with_column("reason", reason)
    return made.with_about(ensemble.about), ensemble
