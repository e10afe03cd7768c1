"""Classes held against the best of their job, where nothing vouches for the level of a score.

The ensemble of 2D classes ranks the 3D classes of a job, by their pictures and maps, but was calibrated
on none. So the best of a job is always kept, and the others are as far as they come close to it.
"""

from __future__ import annotations

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
