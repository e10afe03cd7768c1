"""What may be expected of a choice in the project at hand, by the calibrated scores of its own images.

Not to be mixed up with what an ensemble's held-out projects lost at a line, in the mean over projects
(`operating_point.expectation`), nor with what a policy bounds in the mean over new projects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: In place of a label: nobody said anything of the image.
OPEN = -1


@dataclass(frozen=True, slots=True)
class Expected:
    """What a choice keeps, and what may be expected of it by the ensemble's own calibration.

    A calibrated score is the probability that an image is good, so among the images discarded the sum of
    their scores is the number of good ones that is expected to be lost, and among those kept the sum of
    one less the score is the junk that is expected to stay. What a person said of an image is taken as
    certain. Of a project unlike those that the ensemble was calibrated on, it says little.

    Attributes:
        kept: images.
        particles: that these stand for.
        images: of all.
        all_particles: that these stand for.
        loss: share of the good, by particles.
        junk: share of the kept, by particles.
    """

    kept: int
    particles: float
    images: int
    all_particles: float
    loss: float
    junk: float


def expected(
    good: np.ndarray, turned: np.ndarray, keep: np.ndarray, weight: np.ndarray
) -> Expected:
    """What may be expected of a choice.

    Args:
        good: float [n], probability that an image is good.
        turned: int8 [n]: 1 or 0 where a person said so, `OPEN` elsewhere.
        keep: bool [n].
        weight: float [n], particles that each stands for.
    """
    p = np.where(turned == OPEN, np.asarray(good, np.float64), turned)
    some = float((weight * keep).sum())
    all_good = float((weight * p).sum())
    return Expected(
        kept=int(keep.sum()),
        particles=some,
        images=len(keep),
        all_particles=float(weight.sum()),
        loss=float((weight * p)[~keep].sum()) / all_good if all_good else 0.0,
        junk=float((weight * (1 - p))[keep].sum()) / some if some else 0.0,
    )


def weights(particles: np.ndarray) -> np.ndarray:
    """Particles that each image stands for, float64 [n]: a class's own, else one each.

    A class whose particles are not known stands for none where others' are.

    Args:
        particles: float [n], of each class; NaN where that is not known.
    """
    known = np.isfinite(particles)
    return (
        np.where(known, particles, 0.0).astype(np.float64) if known.any() else np.ones(len(known))
    )
