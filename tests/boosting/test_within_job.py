"""Classes held against the others of their job: what tells them apart, and by how much."""

from __future__ import annotations

import numpy as np

from cryoray.boosting.within_job import TRAITS


def test_a_jobs_classes_are_compared_with_each_other_alone() -> None:
    for trait in TRAITS:
        alike = trait.evidence(np.full(4, 0.3))
        np.testing.assert_allclose(alike, 0, atol=1e-9)
        assert trait.evidence(np.array([0.3])) == 0
        better = trait.evidence(np.array([0.3, 0.3, np.nan, 0.9]))
        assert better[2] == 0
        assert (better[3] > better[0]) == (trait.step > 0)
        assert np.abs(better).max() <= 2 * trait.weight
