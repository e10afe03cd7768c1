"""Which of some ranked 2D classes are selected, by the options of RELION's class_ranker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
