"""Decide: the line of a whole source, which its scores draw, and the verdicts at that line.

A line is a threshold with the review band around it, and `boosting.voting.decide` alone makes verdicts of
scores. `Ensemble.judge` has it do so by the ensemble's own line, image by image, for a table, the service
and a session alike. Where a whole source is at hand, a share can be turned into a threshold, and the review
band is narrowed to a list that a person can finish: images leave that list, and no score and no forced
decision changes.
"""

from __future__ import annotations

from cryoray.boosting.operating_point import narrowed, threshold_for_share
from cryoray.boosting.voting import decide
from cryoray.models.ensemble import Ensemble
from cryoray.policies import parsed
from cryoray.records import VERDICTS, Verdicts


def decide_source(
    verdicts: Verdicts, ensemble: Ensemble, at_most: float
) -> tuple[Verdicts, Ensemble]:
    """The verdicts on all of a source, at the line that its scores draw, with few under review.

    Args:
        verdicts: on every row of a source.
        ensemble: that judged.
        at_most: share of the images that may be under review, rounded up.

    Returns:
        the verdicts, whose `about` names the threshold and the band, and the ensemble with that line.
    """
    score = verdicts.score
    if ensemble.awaits_share:
        line = threshold_for_share(score, parsed(ensemble.policy).number or 0.0)
        ensemble = ensemble.with_line(line, (line, line))
    band = narrowed(score, ensemble.review, ensemble.threshold, at_most)
    ensemble = ensemble.with_line(ensemble.threshold, band)
    verdict = decide(score, band)
    reason = verdicts.reason.copy()
    reason[verdict != VERDICTS[1]] = None
    made = verdicts.with_column("verdict", verdict).with_column("reason", reason)
    return made.with_about(ensemble.about), ensemble
