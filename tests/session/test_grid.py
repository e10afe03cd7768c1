"""Places on the grid, from names as acquisition programs give them."""

from __future__ import annotations

import pytest

from cryoray.errors import SettingsError
from cryoray.session.grid import Grid, Place


@pytest.mark.parametrize(
    ("name", "square", "hole"),
    [
        (
            "MotionCorr/job002/Images-Disc1/GridSquare_30458884/Data/"
            "FoilHole_30593197_Data_30537205_30537207_20230430_084907_Fractions.mrc",
            "30458884",
            "30593197",
        ),
        (
            "FoilHole_30593197_Data_30537205_30537207_20230430_084907_fractions.mrc",
            None,
            "30593197",
        ),
        (
            "J12/motioncorrected/000022314839760130216_FoilHole_2230_Data_1_2_20230430_084907_patch_aligned.mrc",
            None,
            "2230",
        ),
        ("Grid_Screening_20240328_192116_001_X+1Y-1-1_fractions.tiff", None, "001:X+1Y-1"),
        (
            "VSM-71-3_815_005_Nov04_04.01.02_X+1Y-1-1_patch_aligned_doseweighted.mrc",
            None,
            "815:X+1Y-1",
        ),
        ("mic_12-34_X-2Y+0-3.mrc", "12", "34:X-2Y+0"),
        ("MotionCorr/job002/Movies/20170629_00026_frameImage.mrc", None, None),
        ("", None, None),
    ],
)
def test_epu_and_serialem_names_are_understood_and_others_left_alone(
    name: str, square: str | None, hole: str | None
) -> None:
    assert Grid("auto").place(name) == Place(square, hole)


def test_two_shots_in_one_hole_are_one_hole() -> None:
    grid = Grid("serialem")
    assert grid.place("a_7_X+1Y+0-1.mrc") == grid.place("a_7_X+1Y+0-2.mrc")
    assert grid.place("a_7_X+1Y+0-1.mrc") != grid.place("a_8_X+1Y+0-1.mrc")


def test_a_facility_may_have_names_of_its_own() -> None:
    grid = Grid(r".*sq(?P<square>\d+)_h(?P<hole>\d+)")
    assert grid.place("x/sq3_h7_0.mrc") == Place("3", "7")
    assert Grid("none").place("x/GridSquare_1/FoilHole_2_Data_3") == Place()


@pytest.mark.parametrize("pattern", ["(", r"(?P<where>\d+)"])
def test_a_pattern_that_says_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(SettingsError, match="pattern"):
        Grid(pattern)
