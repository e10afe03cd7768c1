"""Window, rescale and normalise: what must stay the same, and what must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fourier_rescale import fourier_rescale_2d

from cryoray.imaging.normalize import clip, normalize_background
from cryoray.imaging.rescale import fourier_rescale
from cryoray.imaging.window import window


def blob(size: int, sigma: float, box: float) -> torch.Tensor:
    """A Gaussian at pixel size // 2, of ``sigma`` in units where the field is ``box`` wide."""
    axis = (torch.arange(size) - size // 2) * (box / size)
    return torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2))[None]


@pytest.mark.parametrize(("size", "side"), [(8, 4), (9, 4), (8, 5), (9, 5)])
def test_a_window_keeps_the_centre_where_the_field_has_it(size: int, side: int) -> None:
    image = torch.zeros(1, size, size)
    image[0, size // 2, size // 2] = 1
    assert window(image, side)[0, side // 2, side // 2] == 1
    assert window(image, side).shape == (1, side, side)


def test_a_window_larger_than_the_image_leaves_it() -> None:
    image = torch.randn(2, 6, 8)
    assert torch.equal(window(image, 7), image[:, :, 1:])
    assert torch.equal(window(image, 20), image)


@pytest.mark.parametrize("size", [48, 49, 64, 101, 128])
@pytest.mark.parametrize("box", [48, 63, 64])
def test_rescaling_keeps_centre_scale_and_grey_values_for_any_sizes(size: int, box: int) -> None:
    rescaled = fourier_rescale(blob(size, 3.0, 48) * 5 + 7, box)
    torch.testing.assert_close(rescaled, blob(box, 3.0, 48) * 5 + 7, atol=2e-4, rtol=0)


def test_rescaling_agrees_with_torch_fourier_rescale() -> None:
    images = fourier_rescale(torch.randn(3, 40, 40), 96)  # band-limited
    theirs, _ = fourier_rescale_2d(images, target_shape=(64, 64))
    torch.testing.assert_close(fourier_rescale(images, 64), theirs, atol=1e-5, rtol=0)


def test_rescaling_of_oblong_images_fills_the_square() -> None:
    assert fourier_rescale(torch.ones(2, 50, 70), 64).sub(1).abs().max() < 1e-5


def test_there_and_back_loses_nothing_below_nyquist() -> None:
    small = fourier_rescale(torch.randn(2, 31, 31), 33)
    torch.testing.assert_close(
        fourier_rescale(fourier_rescale(small, 80), 33), small, atol=1e-5, rtol=0
    )


def noisy(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 64, 64, generator=torch.Generator().manual_seed(1))


def ring(images: torch.Tensor) -> torch.Tensor:
    axis = torch.arange(64) - 32
    return images[:, torch.hypot(axis[:, None].float(), axis.float()) > 0.45 * 64]


def test_the_background_comes_out_flat_with_unit_variance() -> None:
    axis = torch.arange(64)
    ramp = 40 + 0.3 * axis[:, None] - 0.2 * axis
    normal = normalize_background(5 * noisy() + ramp + 20 * blob(64, 6, 64), 0.45)
    assert ring(normal).mean(1).abs().max() < 0.05
    assert (ring(normal).std(1) - 1).abs().max() < 0.05
    torch.testing.assert_close(
        normal, normalize_background(noisy() + 4 * blob(64, 6, 64), 0.45), atol=1e-4, rtol=0
    )


def test_a_neighbour_in_a_corner_hardly_moves_the_background() -> None:
    with_neighbour = noisy()
    with_neighbour[:, :10, :10] += 10
    change = normalize_background(with_neighbour, 0.45) - normalize_background(noisy(), 0.45)
    # Plain least squares and deviation move it by more than half a unit.
    assert (change[:, 10:].square().mean((1, 2)).sqrt() < 0.3).all()


def test_masked_class_averages_keep_their_shape_and_constant_images_become_zero() -> None:
    masked = blob(64, 9, 64) + 0.1 * noisy()
    axis = torch.arange(64) - 32
    masked[:, torch.hypot(axis[:, None].float(), axis.float()) > 25] = 0
    normal = normalize_background(masked, 0.45)
    assert normal.square().mean((1, 2)).sqrt().max() < 1.6
    assert normal.abs().max() < 6
    assert np.corrcoef(normal.flatten(), masked.flatten())[0, 1] > 0.999
    assert not normalize_background(torch.full((1, 64, 64), 3.0), 0.45).any()


def test_each_image_is_normalised_by_itself() -> None:
    images = noisy(8)
    together = normalize_background(fourier_rescale(images, 48), 0.45)
    alone = torch.cat([normalize_background(fourier_rescale(i[None], 48), 0.45) for i in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


def test_clipping_cuts_both_sides() -> None:
    assert clip(torch.tensor([[[-9.0, 0.5, 9.0]]]), 6).tolist() == [[[-6.0, 0.5, 6.0]]]
