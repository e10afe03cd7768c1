"""Which ranked classes are selected: as the manual of RELION's class_ranker says."""

from __future__ import annotations

import numpy as np
import pytest

from cryoray.boosting.class_choice import Choice
from tests.classes import COUNTS

SCORE = np.array([0.9, 0.2, 0.0, 0.6, 0.4], np.float32)
RANKED = np.array(COUNTS) > 0


def chosen(**options: float | bool | None) -> list[int]:
    """The classes, from 1, that the options select; at RELION's threshold where they name none."""
    choice = Choice(**{"min_score": 0.5, **options})  # type: ignore[arg-type]
    keep = choice(SCORE, np.array(COUNTS), RANKED, threshold=0.3)
    return (np.flatnonzero(keep) + 1).tolist()


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({}, [1, 4]),
        ({"min_score": 0.0}, [1, 2, 4, 5]),  # never the empty one, whatever the threshold
        ({"min_score": 0.6}, [1, 4]),  # a threshold is inclusive
        (
            {"min_score": float(f"{np.float32(0.6):.9g}")},
            [1, 4],
        ),  # also as read from rank_model.star
        ({"min_score": None}, [1, 4, 5]),  # the ensemble's own
        ({"min_score": None, "relative": True}, [1, 4]),  # RELION's default, of 0.9
        ({"max_score": 0.6}, [4]),
        ({"relative": True, "min_score": 0.5}, [1, 4]),  # of 0.9
        ({"relative": True, "min_score": 0.7}, [1]),
        ({"min_particles": 16}, [1, 4]),
        ({"min_particles": 17}, [1, 4, 5]),
        ({"min_particles": 19}, [1, 2, 4, 5]),
        ({"min_score": 2.0, "min_classes": 3}, [1, 4, 5]),
        ({"min_score": 2.0, "min_particles": 5, "min_classes": 2}, [1, 4]),  # both hold
        ({"max_score": 0.6, "min_classes": 2}, [1, 4]),  # the best left, regardless of its score
        ({"min_score": 2.0, "min_classes": 99}, [1, 2, 4, 5]),
        ({"min_score": 2.0}, []),
    ],
)
def test_classes_are_chosen_as_the_manual_says(
    options: dict[str, float | bool | None], classes: list[int]
) -> None:
    assert chosen(**options) == classes
