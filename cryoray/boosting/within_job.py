"""Classes held against the best of their job, where nothing vouches for the level of a score.

The ensemble of 2D classes ranks the 3D classes of a job, by their pictures and maps, but was calibrated
on none. So the best of a job is always kept, and the others are as far as they come close to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from cryoray.boosting.prevalence import log_odds

#: Log-odds by which a class may be worse than the best of its job and still be kept; and those between which
#: a person should look. In six Class3D jobs of RELION on simulated collections, classes of mostly good
#: particles were up to 4.3 behind; of those of mostly junk a few were nearer (losing good particles is the
#: worse error, and there are few 3D classes, each worth a look), the others 6.2 to 8.2: the line is in the
#: middle between. All follow the spread of the ensemble's log-odds: look at such jobs again when another
#: one ships.
_WITHIN, _DOUBTFUL = 5.25, (3.9, 6.1)


@dataclass(frozen=True, slots=True)
class Trait:
    """Something in which the classes of a job differ, and what it tells.

    Attributes:
        name: of a column of the job, or of what is measured on its maps.
        unit: in which a person reads it.
        step: a difference that tells; negative where less is better.
        weight: what one step from the job's mean adds to the log-odds of keep, at most two steps.
        ratio: whether what counts is the logarithm.
    """

    name: str
    unit: str
    step: float
    weight: float
    ratio: bool = False

    def evidence(self, values: np.ndarray) -> np.ndarray:
        """float64 [n], log-odds; 0 where the value is not known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.log(np.where(values > 0, values, np.nan)) if self.ratio else values
        known = np.isfinite(x)
        if known.sum() < 2:
            return np.zeros(len(x))
        steps = (x - x[known].mean()) / self.step
        return self.weight * np.clip(np.where(known, steps, 0.0), -2, 2)


#: Steps are about what parts maps of 300 noisy projections of one phantom from all sides, from few sides, at
#: a fifth of the signal, and of noise alone. What the job itself claims weighs less than what its maps
#: show: resolution and accuracies improve where a class is over-fitted. Connectedness and completeness weigh
#: little, since RELION's good classes of one job differ in them by as much.
TRAITS = (
    Trait("connectedness", "", 0.25, 0.4),
    Trait("solvent", "", -0.05, 1.0),
    Trait("anisotropy", "", -0.1, 0.8),
    Trait("share", "", 0.5, 0.6, ratio=True),
    Trait("completeness", "", 0.05, 0.25),
    Trait("resolution", "Å", -0.2, 0.25, ratio=True),
    Trait("rotations", "°", -0.3, 0.25, ratio=True),
    Trait("translations", "Å", -0.3, 0.25, ratio=True),
)


def evidence(traits: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """float64 [n], log-odds: what the traits of a job's n classes say, [n] each by name."""
    found = np.zeros(n)
    for trait in TRAITS:
        if trait.name in traits:
            found += trait.evidence(traits[trait.name])
    return found


def beside_the_best(odds: np.ndarray, threshold: float) -> np.ndarray:
    """Log-odds moved until the job's best class lies `_WITHIN` above the threshold.

    Args:
        odds: float64 [n, members], log-odds of keep of a job's classes; the best is that of the highest
            median.
        threshold: of the ensemble, a probability.

    Returns:
        float64 [n, members].
    """
    best = np.median(odds, axis=1).max(initial=-np.inf)
    return np.asarray(odds - best + float(log_odds(threshold)) + _WITHIN)


def review_band(threshold: float) -> tuple[float, float]:
    """The band of scores, around an ensemble's threshold, in which a person should look."""
    nearest, farthest = _DOUBTFUL
    line = float(log_odds(threshold)) + _WITHIN
    return float(expit(line - farthest)), float(expit(line - nearest))
