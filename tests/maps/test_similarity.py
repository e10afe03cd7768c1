"""Similarity of averages: known cases, and the two references between which it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.source import open_source
from cryoray.maps import fsc, similarity
from cryoray.maps.particles import particles_of, read_images
from cryoray.maps.reconstruct import Poses, contrast_transfer
from cryoray.simulation import microscope
from cryoray.simulation.phantom import blurred_density, random_structure

BOX, PIXEL = 32, 4.0
STRUCTURE = random_structure(np.random.default_rng(3), 60.0, "multi-domain")
MASK = similarity.round_mask(BOX, 13)


def members(n: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, Poses]:
    """Noisy images of one view of the phantom, turned and moved, through CTFs."""
    rng = np.random.default_rng(seed)
    angles = np.stack([np.full(n, 20.0), np.full(n, 60.0), rng.uniform(-180, 180, n)], 1)
    places = rng.uniform(-2, 2, (n, 2))
    ctf = np.tile([15000, 15000, 0, 300, 2.7, 0.1, 0, 0, 1.0], (n, 1))
    ctf[:, :2] += rng.uniform(-4000, 4000, (n, 1))
    y, x = (axis.expand(BOX, BOX // 2 + 1).flatten() for axis in microscope.frequencies(BOX))
    slices = microscope.Projector(STRUCTURE, BOX, PIXEL).slices(angles)
    slices = slices * contrast_transfer(ctf, x / PIXEL, y / PIXEL).reshape(slices.shape)
    moved = microscope.shifted(slices, torch.from_numpy(places + BOX // 2).float())
    images = torch.fft.irfft2(moved, s=(BOX, BOX))
    images = images / images.std()
    generator = torch.Generator().manual_seed(seed)
    images = images + noise * torch.randn(images.shape, generator=generator)
    return images, Poses(angles, -places * PIXEL, ctf, PIXEL)


def test_members_of_a_class_are_laid_on_each_other_and_the_ctf_undone() -> None:
    images, poses = members(80, noise=0.0)
    mean = similarity.average(*similarity.align(images, poses))
    # as RELION's matrix has it, an aligned image is the view with psi = 0
    view = microscope.Projector(STRUCTURE, BOX, PIXEL).slices(np.array([[20.0, 60.0, 0.0]]))
    truth = torch.fft.irfft2(
        microscope.shifted(view, torch.full((1, 2), float(BOX // 2))), s=(BOX, BOX)
    )[0]
    assert similarity.compare(mean, truth, MASK, PIXEL, 16.0).frc > 0.97
    blind = similarity.average(images, torch.ones(80, BOX, BOX // 2 + 1))
    assert similarity.compare(blind, truth, MASK, PIXEL, 16.0).frc < 0.8


def test_an_image_is_like_itself_at_any_scale_and_unlike_noise() -> None:
    noise = torch.randn(2, BOX, BOX, generator=torch.Generator().manual_seed(1))
    same = similarity.compare(5 * noise[0] + 3, noise[0], MASK, PIXEL, 10.0)
    assert (same.mse, same.ssim, same.frc) == pytest.approx((0, 1, 1), abs=1e-4)
    other = similarity.compare(noise[0], noise[1], MASK, PIXEL, 10.0)
    assert other.mse == pytest.approx(2, abs=0.6)
    assert other.ssim < 0.4
    assert abs(other.frc) < 0.4


def test_numbers_are_those_of_the_definitions() -> None:
    a, b = torch.randn(2, BOX, BOX, generator=torch.Generator().manual_seed(2))
    b = a + 0.5 * b
    found = similarity.compare(a, b, MASK, PIXEL, 10.0)
    unit = []
    for image in (a, b):
        smooth = fsc.low_passed(image, PIXEL, 10.0).numpy()
        inside = smooth[MASK.numpy()]
        unit.append((smooth - inside.mean()) / inside.std(ddof=1))
    inside = MASK.numpy()
    assert found.mse == pytest.approx(float(((unit[0] - unit[1])[inside] ** 2).mean()), rel=1e-4)
    _, local = structural_similarity(*unit, win_size=7, data_range=6.0, full=True)
    assert found.ssim == pytest.approx(float(local[inside].mean()), rel=1e-4)


def test_a_selection_with_junk_falls_below_chance_and_one_like_the_persons_does_not() -> None:
    good, poses = members(120, noise=1.0)
    junk, others = members(60, noise=1.0, seed=9)
    junk = junk.roll((7, -6), (1, 2))  # off centre: what a person discards
    images = torch.cat([good, junk])
    together = Poses(
        np.concatenate([poses.angles, others.angles]),
        np.concatenate([poses.origins, others.origins]),
        np.concatenate([poses.ctf, others.ctf]),
        PIXEL,
    )
    person = np.arange(180) < 120
    rng = np.random.default_rng(0)
    close = person & (rng.random(180) < 0.9)
    spoilt = close | ~person
    near = similarity.class_similarity(1, images, together, person, close)
    far = similarity.class_similarity(1, images, together, person, spoilt)
    assert near is not None
    assert far is not None
    assert near.shared == far.shared == close.sum()
    # removing particles at random is what `close` is
    assert near.similarity.mse < 3 * near.chance.mse
    assert near.similarity.mse < near.floor.mse
    assert far.similarity.mse > 5 * far.chance.mse
    assert far.similarity.frc < near.similarity.frc
    assert similarity.class_similarity(1, images, together, person, np.arange(180) < 3) is None


@pytest.mark.long
def test_a_class_average_finds_its_view_of_the_map() -> None:
    truth = torch.from_numpy(blurred_density(STRUCTURE, BOX, PIXEL))
    images, poses = members(60, noise=0.3)
    poses.angles[:, 2] += 40  # the class lies as it likes
    mean = similarity.average(*similarity.align(images, poses))
    views = similarity.projections(truth, fsc.half_sphere(120))
    _, found = similarity.best_projection(mean, views, MASK, PIXEL, 18.0, step=10)
    stranger = random_structure(np.random.default_rng(8), 60.0, "elongated")
    other = similarity.projections(
        torch.from_numpy(blurred_density(stranger, BOX, PIXEL)), fsc.half_sphere(120)
    )
    _, wrong = similarity.best_projection(mean, other, MASK, PIXEL, 18.0, step=10)
    assert found.frc > 0.85
    assert found.mse < 0.6 * wrong.mse


@pytest.mark.real
def test_averages_of_a_real_job_are_relions_own(real_data: Path) -> None:
    job = real_data / "relion5-project" / "Class2D" / "job010"
    source = open_source(job / "run_it025_data.star")
    particles = particles_of(source, in_plane=True)
    classes = source.metadata["rlnClassNumber"][particles.row].astype(int)
    stack = read_header(job / "run_it025_classes.mrcs")
    mask = similarity.round_mask(particles.box, 22)
    for number in np.argsort(-np.bincount(classes))[:4]:
        rows = np.flatnonzero(classes == number)
        images = torch.from_numpy(read_images(particles[rows]))
        ours = similarity.average(*similarity.align(images, particles.poses[rows]))
        theirs = torch.from_numpy(read_frames(stack, np.array([number - 1])))[0]
        found = similarity.compare(ours, theirs, mask, particles.poses.pixel_size, 20.0)
        assert found.frc > 0.93
        assert found.mse < 0.1
