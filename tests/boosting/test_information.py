"""Which label would tell most."""

from __future__ import annotations

import numpy as np
import pytest

from cryoray.boosting.information import information_gain


def test_a_label_informs_where_members_are_sure_and_disagree() -> None:
    worth = information_gain(np.array([[0.95, 0.5, 0.9], [0.05, 0.5, 0.9], [np.nan, 0.5, np.nan]]))
    assert worth[0] > 0.5
    assert worth[1:] == pytest.approx([0, 0], abs=1e-9)
