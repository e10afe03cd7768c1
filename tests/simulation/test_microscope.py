"""The microscope: projections, zeros of the CTF, noise of unit variance, motion, extraction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoray.imaging.pose import rotations
from cryoray.simulation import microscope
from cryoray.simulation.microscope import Exposure, Optics, Projector
from cryoray.simulation.phantom import density, random_structure

SIDE = 96
OPTICS = Optics(300.0, 2.7, 0.1, 2.0, 1.0, 0.6, 3.0, 2.0, 0.8)
EXPOSURE = Exposure(1.6e4, 1.5e4, 30.0, 0.0, 1.0)
WAVELENGTH = 0.0196875  # Å at 300 kV


def test_ctf_is_zero_where_its_phase_is_a_multiple_of_pi() -> None:
    side = 512
    contrast = microscope.transfer(OPTICS, EXPOSURE, side)
    assert contrast[0, 0] == pytest.approx(0.1)
    for angle, defocus in ((0.0, 1.6e4), (90.0, 1.5e4)):
        ctf = microscope.transfer(OPTICS, replace(EXPOSURE, defocus_angle=angle), side)[0]
        found = np.flatnonzero(np.diff(np.sign(ctf.numpy()))) + 0.5
        k2 = (found / side / OPTICS.pixel_size) ** 2
        phase = np.pi * WAVELENGTH * k2 * (defocus - 0.5 * 2.7e7 * WAVELENGTH**2 * k2)
        turns = (phase + np.arcsin(0.1)) / np.pi
        np.testing.assert_allclose(turns, np.arange(1, len(turns) + 1), atol=0.12)
        assert len(turns) > 8


def test_noise_has_unit_variance_and_thon_rings() -> None:
    contrast = microscope.transfer(OPTICS, replace(EXPOSURE, b_factor=60.0), SIDE)
    power = microscope.noise_power(OPTICS, contrast)
    white = torch.randn(50, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * power.sqrt())
    assert float(noise.var()) == pytest.approx(1.0, rel=0.02)
    row = contrast[0].abs()
    assert power[0][row > 0.7].mean() > 1.2 * power[0][(row < 0.1).nonzero()[1:]].mean()


@pytest.mark.long
def test_motion_blurs_the_specimen_and_not_the_shot_noise() -> None:
    blur = microscope.motion_blur(SIDE, torch.tensor([[8.0, 0.0]]))[0]
    assert float(blur[12, 0]) == pytest.approx(1.0)
    assert float(blur[0, SIDE // 8]) == pytest.approx(0.0, abs=1e-6)
    contrast = microscope.transfer(OPTICS, EXPOSURE, SIDE)
    still, moved = (microscope.noise_power(OPTICS, contrast, b) for b in (None, blur))
    assert float(moved[0, SIDE // 8]) < float(still[0, SIDE // 8])
    blind = replace(OPTICS, ice=0.0, debris=0.0, thickness=0.0)
    torch.testing.assert_close(
        microscope.noise_power(blind, contrast, blur), microscope.noise_power(blind, contrast)
    )


def test_a_slice_is_the_projection() -> None:
    structure = replace(random_structure(np.random.default_rng(2), 90.0, "multi-domain"), blur=4.0)
    projector = Projector(structure, SIDE, 2.0)
    angles = np.array([[0.0, 0.0, 0.0], [40.0, 65.0, -100.0]])
    middle = torch.full((2, 2), SIDE / 2)
    images = torch.fft.irfft2(microscope.shifted(projector.slices(angles), middle)).numpy()
    for image, matrix in zip(images, rotations(angles), strict=True):
        turned = replace(structure, points=(structure.points @ matrix.T).astype(np.float32))
        spectrum = np.fft.fft2(density(turned, SIDE, 2.0).sum(0))
        k2 = np.add.outer(np.fft.fftfreq(SIDE) ** 2, np.fft.fftfreq(SIDE) ** 2)
        straight = np.fft.ifft2(spectrum * np.exp(-2 * np.pi**2 * 4 * k2)).real
        assert np.corrcoef(image.ravel(), straight.ravel())[0, 1] > 0.99
        slope = (image * straight).sum() / (straight**2).sum()
        assert slope == pytest.approx(1, rel=0.05)


def test_orientations_are_uniform() -> None:
    ways = rotations(microscope.random_angles(np.random.default_rng(0), 4000))[:, 2]
    np.testing.assert_allclose(ways.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(ways.T @ ways / 4000, np.eye(3) / 3, atol=0.03)


def test_extraction_normalises_the_background_and_repeats_what_is_missing() -> None:
    box, missing = 32, np.zeros((2, 2, 2), np.int64)
    missing[1] = [[3, 0], [0, 2]]  # three rows at the top, two columns at the right
    ramp = torch.arange(48.0).expand(48, 48)
    canvas = ramp + 5 * torch.randn(2, 48, 48, generator=torch.Generator().manual_seed(0))
    images = microscope.extract(canvas, box, missing)
    axis = (np.arange(box) - box // 2) / (box / 2)
    outside = np.add.outer(axis**2, axis**2) > microscope.BACKGROUND_RADIUS**2
    ring = images.numpy()[:, outside]
    np.testing.assert_allclose(ring.mean(1), 0, atol=1e-4)
    np.testing.assert_allclose(ring.std(1), 1, atol=2e-3)
    # What repeats a row differs from it by the plane alone.
    assert float(images[1, :4].diff(dim=0).std()) < 1e-3
    assert float(images[0, :4].diff(dim=0).std()) > 0.5
    assert float(images[1, :, -3:].diff(dim=1).std()) < 1e-3
