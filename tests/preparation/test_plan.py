"""The plan: every row in one range or quarantined with its reason, whoever asks for which rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.formats.source import open_source
from cryoray.preparation.plan import plan, protein_is_dark
from cryoray.settings import PreparationSettings
from tests.preparation.sources import particles, write_source

SETTINGS = PreparationSettings(box=32, contrast="bright")


def test_every_row_is_in_one_range_in_the_order_of_its_stack(tmp_path: Path) -> None:
    source = write_source(tmp_path, [particles(300, 64), particles(200, 64)])
    planned = plan(source, SETTINGS, range_mib=1)
    assert len(planned.ranges) == 9  # 64 images of 16 KiB are a MiB
    assert all(part.bytes <= 1 << 20 for part in planned.ranges)
    assert [part.index for part in planned.ranges] == list(range(9))
    rows = np.concatenate([part.rows for part in planned.ranges])
    assert sorted(rows.tolist()) == list(range(500))
    for part in planned.ranges:
        assert (np.diff(part.frames) == 1).all()
        np.testing.assert_array_equal(source.frame[part.rows], part.frames)
    assert planned.rows == 500
    assert np.isfinite(planned.ranges[0].features[:, planned.features.index("defocus")]).all()


def test_rows_that_cannot_be_read_are_quarantined_with_their_reasons(
    tmp_path: Path,
) -> None:
    rest = "mic.mrc 1 1 1 4"
    source = write_source(
        tmp_path,
        [particles(3), particles(3)],
        extra=(
            f"000004@a.mrcs {rest}",
            f"000001@gone.mrcs {rest}",
            f"000002@b.mrcs {rest}",
            f"nothing {rest}",
        ),
    )
    stack = source.stacks[0]
    stack.write_bytes(stack.read_bytes()[: 1024 + 2 * 6400 + 17])  # a.mrcs: two of three left
    planned = plan(source, SETTINGS, 64)
    reasons = dict(planned.quarantined)
    assert planned.rows == len(source) == 10
    assert sorted(reasons) == [4, 6, 7, 8, 9]
    assert reasons[4].startswith("image 3 is not there: a.mrcs is shorter than its header says")
    assert reasons[6].startswith("image 4 is not there: a.mrcs")
    assert "gone.mrcs: there is no such stack" in reasons[7]
    assert reasons[8] == "is the same image as row 4"
    assert "'nothing' names no image" in reasons[9]


def test_a_row_beyond_a_whole_stack_says_how_many_images_there_are(
    tmp_path: Path,
) -> None:
    source = write_source(tmp_path, [particles(3)], extra=("000009@a.mrcs mic.mrc 1 1 1 4",))
    assert plan(source, SETTINGS, 64).quarantined == (
        (3, "image 9 is not there: a.mrcs holds 3 images"),
    )


def test_a_subset_of_rows_is_planned_as_in_the_whole(tmp_path: Path) -> None:
    source = write_source(
        tmp_path, [particles(30), particles(20)], extra=("000001@a.mrcs m 1 1 1 4",)
    )
    settings = PreparationSettings(box=32, diameter=60)
    whole, some = plan(source, settings, 64), plan(source, settings, 64, rows=np.array([50, 7, 8]))
    assert some.quarantined == whole.quarantined == ((50, "is the same image as row 1"),)
    assert some.rows == 3
    table = {
        row: features
        for part in whole.ranges
        for row, features in zip(part.rows.tolist(), part.features, strict=True)
    }
    for part in some.ranges:
        for row, features in zip(part.rows.tolist(), part.features, strict=True):
            np.testing.assert_array_equal(features, table[row])


def test_the_stack_s_pixel_size_stands_in_for_a_missing_one(tmp_path: Path) -> None:
    settings = PreparationSettings(box=32, diameter=60, contrast="bright")
    own = plan(write_source(tmp_path, [particles(3)]), settings, 64)
    assert own.pixel_size.tolist() == [2.5] * 3
    assert own.prepared_pixel_size.tolist() == [2.5 * 36 / 32] * 3
    header = plan(write_source(tmp_path, [particles(3)], pixel_size="nan"), settings, 64)
    assert header.pixel_size.tolist() == [3.0] * 3
    assert header.ranges[0].pixel_size.tolist() == [3.0] * 3


@pytest.mark.parametrize("sign", [1, -1])
def test_contrast_is_found_from_the_images(tmp_path: Path, sign: int) -> None:
    source = write_source(tmp_path, [particles(150, sign=sign), particles(150, seed=1, sign=sign)])
    settings = PreparationSettings(box=32)
    assert protein_is_dark(source, settings) is (sign < 0)
    assert plan(source, settings, 64, rows=np.array([1])).invert is (sign < 0)


def test_without_evidence_the_convention_decides(tmp_path: Path) -> None:
    noise = write_source(tmp_path, [particles(100, sign=0)])
    assert protein_is_dark(noise, PreparationSettings()) is False
    assert (
        protein_is_dark(write_source(tmp_path, [particles(1, sign=-1)]), PreparationSettings())
        is False
    )
    assert protein_is_dark(noise, PreparationSettings(contrast="dark")) is True


@pytest.mark.real
def test_contrast_of_real_particles_and_classes(real_data: Path) -> None:
    for path, kind in (
        ("particles-empiar10017", "particle"),
        ("relion5-project/Extract/job009", "particle"),
        ("relion5-project/Class2D/job010", "class2d"),
    ):
        source = open_source(real_data / path, kind)  # type: ignore[arg-type]
        assert protein_is_dark(source, PreparationSettings()) is False
