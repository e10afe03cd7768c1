"""Augmentation: a function of the generator alone, and of nothing that changes what an image is."""

from __future__ import annotations

import pytest
import torch

from cryoray.imaging.augment import _noise as augment_noise
from cryoray.imaging.augment import augment, draw
from cryoray.imaging.rescale import fourier_rescale
from cryoray.settings import AugmentSettings

STILL = AugmentSettings(
    rotate=False, shift=0, magnify=0, contrast=0, filter=0, ctf_modulation=0, noise=0, mask=0
)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(n: int = 16) -> torch.Tensor:
    return fourier_rescale(torch.randn(n, 12, 12, generator=generator(1)), 64)


@pytest.mark.long
def test_a_slice_is_augmented_as_the_whole_batch_is() -> None:
    images, parameters = smooth(), draw(16, generator(), AugmentSettings(), 64)
    whole = augment(images, parameters)
    parts = [augment(images[i : i + 4], parameters[i : i + 4]) for i in range(0, 16, 4)]
    torch.testing.assert_close(whole, torch.cat(parts), atol=1e-5, rtol=1e-5)
    assert torch.equal(whole, augment(images, draw(16, generator(), AugmentSettings(), 64)))
    assert not torch.allclose(whole, augment(images, draw(16, generator(6), AugmentSettings(), 64)))


def test_the_generator_ends_where_it_does_whatever_the_settings() -> None:
    first, second = generator(), generator()
    draw(8, first, AugmentSettings(), 64)
    draw(8, second, STILL, 64)
    assert torch.equal(first.get_state(), second.get_state())


def test_nothing_asked_for_nothing_done() -> None:
    images = smooth()
    before = images.clone()
    torch.testing.assert_close(
        augment(images, draw(16, generator(), STILL, 64)), images, atol=1e-4, rtol=0
    )
    assert torch.equal(images, before)


def test_turning_and_mirroring_move_an_image_and_change_nothing_else() -> None:
    axis = torch.arange(64) - 31.5
    radial = torch.exp(-(axis[:, None] ** 2 + axis**2) / 200).expand(64, 64, 64)
    parameters = draw(64, generator(), STILL.model_copy(update={"rotate": True}), 64)
    inside = torch.hypot(axis[:, None], axis) < 31
    change = (augment(radial, parameters) - radial)[:, inside]
    assert change.abs().max() < 0.01
    turned = augment(smooth(1).expand(64, 64, 64), parameters)
    determinants = torch.linalg.det(parameters.motion[:, :, :2])
    torch.testing.assert_close(determinants.abs(), torch.ones(64))
    assert 16 < (determinants < 0).sum() < 48
    assert (turned - smooth(1)).std((1, 2)).median() > 0.1


def test_a_third_of_the_images_move_without_interpolation() -> None:
    images = torch.randn(400, 32, 32, generator=generator(2))
    moves = AugmentSettings(contrast=0, filter=0, ctf_modulation=0, noise=0, mask=0)
    moved = augment(images, draw(400, generator(), moves, 32))
    # Whole-pixel moves keep the very values, interpolation makes new ones.
    kept = torch.stack(
        [torch.isclose(a.flatten().sort().values.median(), b.flatten(), atol=1e-4).any()
         for a, b in zip(moved, images, strict=True)]
    )  # fmt: skip
    assert 0.25 < kept.float().mean() < 0.5


def test_shift_is_a_fraction_of_the_box_and_magnification_a_factor() -> None:
    axis = torch.arange(64) - 31.5
    spot = torch.exp(-(axis[:, None] ** 2 + axis**2) / 50).expand(500, 64, 64)
    shifted = augment(spot, draw(500, generator(), STILL.model_copy(update={"shift": 0.05}), 64))
    centre = (shifted.sum(1) * axis).sum(1) / shifted.sum((1, 2))
    assert 0.9 < centre.std() / (0.05 * 64) < 1.1
    grown = augment(spot, draw(500, generator(), STILL.model_copy(update={"magnify": 0.1}), 64))
    log_area = torch.log(grown.sum((1, 2)) / spot.sum((1, 2)))
    assert 0.85 < log_area[log_area.abs() > 1e-4].std() / 0.2 < 1.15


def test_added_noise_is_as_strong_as_drawn_and_differs_between_images() -> None:
    parameters = draw(64, generator(), STILL.model_copy(update={"noise": 0.5}), 64)
    added = augment(torch.zeros(64, 64, 64), parameters)
    deviation = added.std((1, 2))
    assert (deviation / parameters.noise - 1).abs().median() < 0.1
    flat = (added / deviation[:, None, None]).flatten(1)
    overlap = (flat @ flat.T / flat.shape[1]).fill_diagonal_(0)
    assert overlap.abs().max() < 0.5


def test_the_filter_is_radial_and_leaves_the_mean_by_its_gain_alone() -> None:
    impulse = torch.zeros(8, 64, 64)
    impulse[:, 32, 32] = 1
    parameters = draw(8, generator(), STILL.model_copy(update={"filter": 0.5}), 64)
    spread = augment(impulse, parameters)
    turned = torch.flip(spread.transpose(1, 2), (1,)).roll(1, 1)  # a quarter turn about pixel 32
    torch.testing.assert_close(spread, turned, atol=1e-4, rtol=0)
    torch.testing.assert_close(spread.sum((1, 2)), parameters.waves.sum(1).exp(), atol=1e-3, rtol=0)


def test_rings_weaken_as_a_ctf_does_and_leave_the_mean() -> None:
    impulse = torch.zeros(64, 64, 64)
    impulse[:, 32, 32] = 1
    parameters = draw(64, generator(), STILL.model_copy(update={"ctf_modulation": 1.0}), 64)
    gain = torch.fft.rfft2(augment(impulse, parameters)).abs()
    frequency = torch.fft.rfftfreq(64)
    for along, (depth, number) in zip(gain[:, 0], parameters.rings.tolist(), strict=True):
        expected = 1 - depth * torch.sin(torch.pi * number * (2 * frequency) ** 2) ** 2
        torch.testing.assert_close(along, expected, atol=1e-3, rtol=0)
    assert (gain[:, 0, 0] - 1).abs().max() < 1e-3
    assert parameters.rings[:, 1].min() >= 1
    assert parameters.rings[:, 1].max() <= 6


def test_a_mask_hides_what_is_outside_a_circle_and_nothing_inside() -> None:
    images = smooth(1).expand(200, 64, 64) + 2
    parameters = draw(200, generator(), STILL.model_copy(update={"mask": 0.3}), 64)
    masked = torch.isfinite(parameters.mask)
    assert 40 < masked.sum() < 80
    made = augment(images, parameters)
    torch.testing.assert_close(made[~masked], images[~masked], atol=1e-3, rtol=0)
    axis = (torch.arange(64) - 31.5) / 32
    radius = torch.hypot(axis[:, None], axis)
    for image, edge in zip(made[masked], parameters.mask[masked].tolist(), strict=True):
        assert not image[radius > edge + 0.051].any()
        inside = radius < edge - 0.051
        torch.testing.assert_close(image[inside], images[0][inside], atol=1e-3, rtol=0)


def test_smoothing_takes_fine_detail_away_and_leaves_the_background_its_unit() -> None:
    images = torch.randn(200, 64, 64, generator=generator(2))
    parameters = draw(200, generator(), STILL.model_copy(update={"smooth": 0.5}), 64)
    smoothed = torch.isfinite(parameters.smooth[:, 0])
    assert 70 < smoothed.sum() < 130
    made = augment(images, parameters)
    torch.testing.assert_close(made[~smoothed], images[~smoothed], atol=1e-3, rtol=0)
    power = torch.fft.rfft2(made[smoothed]).abs().square()
    passed = parameters.smooth[smoothed, 0]
    frequency = 2 * torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64))
    for one, edge in zip(power, passed, strict=True):
        fine, coarse = one[frequency > 1.5 * edge], one[frequency < 0.5 * edge]
        assert fine.mean() < 0.35 * coarse.mean()
    axis = (torch.arange(64) - 31.5) / 32
    background = made[smoothed][:, torch.hypot(axis[:, None], axis) > 0.9]
    torch.testing.assert_close(background.std(1), torch.ones(len(background)), atol=1e-3, rtol=0)


def test_noise_is_white_to_one_over_f() -> None:
    field = augment_noise(torch.device("cpu"))
    frequency = torch.fft.rfftfreq(1024)
    amplitude = torch.fft.rfft2(field).abs()[:, 0]
    low, high = (frequency > 0.05) & (frequency < 0.06), (frequency > 0.45) & (frequency < 0.5)
    ratio = amplitude[:, low].mean(1) / amplitude[:, high].mean(1)
    torch.testing.assert_close(
        ratio, (0.475 / 0.055) ** torch.tensor([0.0, 0.5, 1.0]), rtol=0.25, atol=0
    )
    torch.testing.assert_close(field.std((1, 2)), torch.ones(3))
