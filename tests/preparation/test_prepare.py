"""Preparation: each image by itself, and a reason for each that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.formats.mrc import read_frames
from cryoray.preparation import prepare, reader
from cryoray.preparation.plan import plan
from cryoray.preparation.prepare import prepare_images, prepare_range, window_sides
from cryoray.preparation.reader import by_reason, defects
from cryoray.records import Stack
from cryoray.settings import PreparationSettings
from tests.preparation.sources import particles, write_source

SETTINGS = PreparationSettings(box=32)


def unknown(n: int) -> np.ndarray:
    return np.full(n, np.nan, np.float32)


def test_a_row_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    images = particles(70)
    images[::3] *= 100
    together, _ = prepare_images(images, unknown(70), False, SETTINGS)
    for some in (slice(0, 1), slice(40, 41), slice(69, 70), slice(5, 50)):
        alone, _ = prepare_images(images[some], unknown(len(images[some])), False, SETTINGS)
        np.testing.assert_array_equal(together[some], alone)


def test_bad_images_get_a_reason_and_leave_the_others_alone() -> None:
    images = particles(6)
    clean, none = prepare_images(images, unknown(6), False, SETTINGS)
    assert none == {}
    images[0, 3, 4:6] = np.nan
    images[2] = 7
    images[3, 0, 0] = np.inf
    images[4] *= 1e30
    prepared, reasons = prepare_images(images, unknown(6), False, SETTINGS)
    assert reasons[0] == "2 of 1,600 pixels are NaN or infinite"
    assert reasons[2] == "all pixels are 7"
    assert reasons[3] == "1 of 1,600 pixels are NaN or infinite"
    assert reasons[4].startswith("pixels run from -")
    assert sorted(reasons) == [0, 2, 3, 4]
    np.testing.assert_array_equal(prepared[[1, 5]], clean[[1, 5]])
    assert not prepared[list(reasons)].any()


@pytest.mark.parametrize("diameter", [None, 60])
def test_no_defect_is_missed_for_being_small(diameter: float | None) -> None:
    """Also of one pixel in a corner, of a constant far from zero, and where a window hides it."""
    settings = PreparationSettings(box=32, diameter=diameter)
    images = particles(40, 128)
    images[3] = 1234.5
    images[4] = 0
    images[5, 0, 0] = np.nan
    images[6, 127, 127] = -np.inf
    images[7, 64, 64] = 2e15
    images[8, 0, 127] = -2e15
    images[9] = -3e30
    images[10] += 1e6  # a strange offset is no defect
    images[11, 127, 0] = 1e9
    prepared, reasons = prepare_images(images, np.full(40, 1.0, np.float32), False, settings)
    assert sorted(reasons) == [3, 4, 5, 6, 7, 8, 9]
    assert reasons == defects(images)
    assert not prepared[3:10].any()
    assert np.isfinite(prepared).all()


def test_dark_protein_is_made_bright() -> None:
    bright, _ = prepare_images(particles(3), unknown(3), False, SETTINGS)
    dark, _ = prepare_images(-particles(3), unknown(3), True, SETTINGS)
    np.testing.assert_allclose(bright, dark, atol=1e-6)


def test_grey_scale_and_offset_do_not_matter_and_outliers_are_cut() -> None:
    images = particles(3)
    images[0, 20, 20] = 500
    a, _ = prepare_images(images, unknown(3), False, SETTINGS)
    b, _ = prepare_images(images * 3 + 40, unknown(3), False, SETTINGS)
    np.testing.assert_allclose(a, b, atol=1e-3)
    assert np.abs(a).max() == SETTINGS.clip


def test_a_particle_fills_the_same_part_of_the_box_at_any_pixel_size() -> None:
    settings = PreparationSettings(box=32, diameter=48)
    fine, _ = prepare_images(particles(300, 96), np.full(300, 1.0), False, settings)
    coarse, _ = prepare_images(particles(300, 48), np.full(300, 2.0), False, settings)
    assert np.corrcoef(fine.mean(0).ravel(), coarse.mean(0).ravel())[0, 1] > 0.9
    mixed = np.array([1.0, np.nan, 2.0, 0.01], np.float32)
    assert window_sides((96, 100), mixed, settings).tolist() == [72, 96, 36, 96]


def test_rows_of_different_pixel_size_in_one_stack_are_windowed_each_by_its_own() -> None:
    settings = PreparationSettings(box=32, diameter=40)
    images, sizes = particles(4, 60), np.array([1.2, 2.0, 1.2, np.nan], np.float32)
    together, _ = prepare_images(images, sizes, False, settings)
    for i in range(4):
        alone, _ = prepare_images(images[i : i + 1], sizes[i : i + 1], False, settings)
        np.testing.assert_array_equal(together[i], alone[0])


def test_a_stack_that_changes_after_planning_quarantines_the_whole_range(
    tmp_path: Path,
) -> None:
    source = write_source(tmp_path, [particles(5)])
    (only,) = plan(source, SETTINGS, 64).ranges
    source.stacks[0].write_bytes(source.stacks[0].read_bytes()[:-100])
    prepared = prepare_range(only, SETTINGS)
    assert len(prepared.images) == len(prepared.rows) == len(prepared.features) == 0
    assert [row for row, _ in prepared.quarantined] == list(range(5))
    assert "a.mrcs: changed" in prepared.quarantined[0][1]


def test_a_stack_that_grows_while_it_is_read_quarantines_the_whole_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images may be another program's half-written ones: none of them is believed."""
    source = write_source(tmp_path, [particles(100)])
    (only,) = plan(source, SETTINGS, 64).ranges
    monkeypatch.setattr(prepare, "_BLOCK", 1)  # a block of 32 images
    seen = []

    def grow(stack: Stack, frames: np.ndarray) -> np.ndarray:
        seen.append(len(frames))
        images = read_frames(stack, frames)
        if len(seen) == 4:  # after the last read
            with stack.path.open("ab") as file:
                file.write(bytes(6400))
        return images

    monkeypatch.setattr(reader, "read_frames", grow)
    prepared = prepare_range(only, SETTINGS)
    assert seen == [32, 32, 32, 4, 0]
    assert len(prepared.rows) == 0
    assert len(prepared.quarantined) == 100
    assert "a.mrcs: changed while it was being read" in prepared.quarantined[0][1]


def test_a_range_comes_out_the_same_in_blocks_and_on_a_device_named_by_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = particles(100)
    images[40] = 3
    source = write_source(tmp_path, [images])
    (only,) = plan(source, SETTINGS, 64).ranges
    whole = prepare_range(only, SETTINGS)
    monkeypatch.setattr(prepare, "_BLOCK", 1)
    blocks = prepare_range(only, SETTINGS)
    np.testing.assert_array_equal(whole.images, blocks.images)
    assert whole.quarantined == blocks.quarantined == ((40, "a.mrcs, image 41: all pixels are 3"),)
    device = prepare_range(only, SETTINGS, device="cpu:0")  # takes the way of a GPU
    np.testing.assert_allclose(device.images, whole.images, atol=1e-4)


def test_reasons_are_counted_by_their_sort() -> None:
    counted = by_reason(
        [
            "a.mrcs, image 5: 4,096 of 4,096 pixels are NaN or infinite",
            "b c.mrcs, image 1,005: 2 of 4,096 pixels are NaN or infinite",
            "/data/Extract/job012/gone.mrcs: there is no such stack",
            "/data/Extract/job012/gone2.mrcs: there is no such stack",
            "/data/x.mrcs: cannot be read: Permission denied",
            "image 9 is not there: a.mrcs holds 3 images",
            "is the same image as row 1,234",
            "is the same image as row 2",
            "is the same image as row 3",
            "x.mrcs, image 2: all pixels are -1.5e+09",
        ]
    )
    assert counted == {
        "is the same image as row …": 3,
        "… of … pixels are NaN or infinite": 2,
        "there is no such stack": 2,
        "cannot be read: Permission denied": 1,
        "is not there: … holds … images": 1,
        "all pixels are …": 1,
    }


def test_reasons_of_a_range_name_the_source_s_row_and_the_stack_s_image(
    tmp_path: Path,
) -> None:
    bad = particles(3)
    bad[1] = 0
    source = write_source(tmp_path, [particles(3), bad])  # rows alternate: a1 b1 a2 b2 a3 b3
    _, b = plan(source, SETTINGS, 64).ranges
    prepared = prepare_range(b, SETTINGS)
    assert prepared.quarantined == ((3, "b.mrcs, image 2: all pixels are 0"),)
    assert prepared.rows.tolist() == [1, 5]
    assert prepared.features.shape == (2, b.features.shape[1])


@pytest.mark.parametrize("images", [particles(40, 56)[:, 8:48], particles(40, 41)])
def test_odd_and_oblong_images_are_prepared_from_their_middle(images: np.ndarray) -> None:
    prepared, reasons = prepare_images(images, unknown(40), False, SETTINGS)
    assert not reasons
    mean = prepared.mean(0)
    assert np.unravel_index(mean.argmax(), mean.shape)[0] in (15, 16, 17)
    assert mean[14:19, 14:19].mean() > 5 * np.abs(mean[:6]).mean()
