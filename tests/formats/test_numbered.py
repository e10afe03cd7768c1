"""Names of bare stacks' images: as an array of all of them would have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cryoray.formats.numbered import Numbered

ALL = np.array(
    [
        f"{frame:06d}@{name}"
        for name, n in (("a.mrcs", 3), ("c.mrcs", 4))
        for frame in range(1, n + 1)
    ],
    dtype=object,
)


@pytest.fixture
def names() -> Numbered:
    return Numbered(["a.mrcs", "empty.mrcs", "c.mrcs"], [3, 0, 4])


@pytest.mark.parametrize(
    "at",
    [
        slice(None),
        slice(2, 5),
        slice(None, None, -2),
        np.array([6, 0, 0, 3, -1]),
        np.array([[1, 2], [5, 4]]),
        np.arange(7) % 2 == 0,
        np.array([], np.int64),
    ],
)
def test_rows_have_the_names_that_an_array_would_give_them(names: Numbered, at: Any) -> None:
    found = names[at]
    assert (found.dtype, found.tolist()) == (object, ALL[at].tolist())


def test_one_row_all_rows_and_those_that_are_not_there(names: Numbered) -> None:
    assert [names[3], names[-7], names[np.int64(2)]] == [ALL[3], ALL[0], ALL[2]]
    assert names.tolist() == list(names) == ALL.tolist()
    assert len(names) == 7
    for row in (7, -8):
        with pytest.raises(IndexError):
            names[row]


def test_some_rows_have_names_of_their_own(names: Numbered) -> None:
    own = names.but(np.array([1, 6]), np.array(["x", "y"], object))
    assert own.tolist() == [ALL[0], "x", *ALL[2:6], "y"]
    assert own[np.array([6, 1, 6, 0])].tolist() == ["y", "x", "y", ALL[0]]
    assert names[1] == ALL[1]
