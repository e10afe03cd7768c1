"""Pictures for people: what is too fine is gone, and each has a contrast of its own."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from cryoray.imaging import pictures


def wave(cycles: float, side: int = 64) -> np.ndarray:
    """float32 [side, side]: so many cycles per box along x."""
    return np.tile(np.sin(2 * np.pi * cycles * np.arange(side) / side), (side, 1)).astype("f4")


def read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_the_low_pass_halves_its_own_resolution_and_spares_what_is_coarse() -> None:
    # 64 px of 2.5 Å are 160 Å: 8 cycles are 20 Å, 2 are 80 Å, 24 are 6.7 Å.
    images = np.stack([wave(2), wave(8), wave(24)])
    passed = pictures.low_passed(images, 2.5, 20.0)
    assert passed.std((1, 2)) / images.std((1, 2)) == pytest.approx([0.96, 0.5, 0.0], abs=0.01)


def test_images_of_several_pixel_sizes_are_filtered_each_by_its_own() -> None:
    images = np.stack([wave(8)] * 3)
    passed = pictures.low_passed(images, np.array([2.5, 1.25, np.nan]), 20.0)
    # The second has 20 Å at 4 cycles; the third is filtered at a twelfth of its box.
    assert passed.std((1, 2)) / images.std((1, 2)) == pytest.approx(
        [0.5, 2**-4, 2 ** -((8 / 12) ** 2)], rel=0.01
    )
    assert pictures.low_passed(images, 2.5, 0.0) == pytest.approx(images)
    assert len(pictures.low_passed(images[:0], None)) == 0


def test_a_picture_runs_from_black_to_white_whatever_its_numbers_are() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (40, 40))
    image = np.stack([noise, 1000 + 0.5 * noise])
    first, second = pictures.greys(image, cut=1.0)
    assert np.abs(first.astype(int) - second).max() <= 5
    assert np.mean(first == 0) == pytest.approx(0.01, abs=0.02)
    assert first.max() == 255
    assert pictures.greys(image, 96).shape == (2, 96, 96)
    sharper = pictures.greys(image, cut=10.0)[0]
    assert np.mean((sharper == 0) | (sharper == 255)) > 0.2


def test_what_is_no_image_is_grey_and_not_an_error() -> None:
    nothing = np.zeros((3, 8, 8))
    nothing[1, 2, 2] = np.nan
    nothing[2] = 1e30
    assert np.unique(pictures.greys(nothing)).tolist() == [129]
    assert pictures.greys(nothing[:0], 96).shape[0] == 0


def test_a_strip_and_its_png_hold_the_pictures_side_by_side() -> None:
    greys = np.stack([np.full((4, 4), level, np.uint8) for level in (0, 100, 255)])
    shown = read(pictures.png(pictures.strip(greys), small=False))
    assert shown.shape == (4, 12)
    assert shown[0, ::4].tolist() == [0, 100, 255]


def test_addresses_hold_a_picture_no_larger_than_asked_for() -> None:
    image = np.zeros((1, 200, 200))
    image[0, 80:120, 80:120] = 1000.0
    (address,) = pictures.data_uris(image, 80)
    shown = read(base64.b64decode(address.removeprefix("data:image/png;base64,")))
    assert shown.shape == (80, 80)
    assert shown[40, 40] > 200
    assert pictures.data_uris(np.empty((0, 8, 8)), 80) == []


def test_a_few_extreme_pixels_take_no_contrast_from_a_noisy_picture() -> None:
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(1, 64, 64)).astype(np.float32)
    plain[0, 24:40, 24:40] += 2
    striped = plain.copy()
    striped[0, :6, ::2], striped[0, :6, 1::2] = 40, -40  # as at the edge of a micrograph
    inside = np.s_[0, 6:]

    def contrast(images: np.ndarray, *, noisy: bool) -> float:
        return float(pictures.greys(images, noisy=noisy)[inside].std())

    whole = contrast(plain, noisy=True)
    assert contrast(striped, noisy=False) < 0.2 * whole, "percentiles alone"
    assert contrast(striped, noisy=True) > 0.6 * whole


def test_bright_protein_keeps_its_shades_in_a_noisy_picture() -> None:
    rng = np.random.default_rng(0)
    image = 0.1 * rng.normal(size=(1, 64, 64))
    image[0, 16:48, 16:48] += np.linspace(3, 9, 32)
    assert len(np.unique(pictures.greys(image, noisy=True)[0, 16:48, 16:48])) > 20
