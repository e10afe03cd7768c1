"""Which labels would be most informative: where the members are sure and disagree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def information_gain(members: NDArray[np.floating]) -> NDArray[np.float64]:
    """Expected information gain of a label: bits about which member is right.

    The entropy of the mean prediction less the mean entropy of the predictions (Houlsby et al.,
    arXiv:1112.5745): large where members are sure and disagree, small where all are unsure alike, since
    such an image is unclear and not unknown.

    Args:
        members: float [3, n], calibrated probabilities of keep, NaN where a member did not judge.

    Returns:
        float64 [n].
    """
    p = np.clip(np.asarray(members, float), 1e-6, 1 - 1e-6)
    return _entropy(np.nanmean(p, 0)) - np.nanmean(_entropy(p), 0)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
