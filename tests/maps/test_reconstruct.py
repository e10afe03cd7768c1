"""Reconstruction against a phantom, symmetric copies, and the mathematics of the CTF."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryoray.errors import SettingsError
from cryoray.imaging.pose import rotations
from cryoray.maps import fsc, reconstruct
from cryoray.simulation import microscope
from cryoray.simulation.phantom import blurred_density, random_structure
from tests.half_maps import PIXEL

pytestmark = pytest.mark.long

BOX = 32
STRUCTURE = random_structure(np.random.default_rng(3), 60.0, "multi-domain")
TRUTH = torch.from_numpy(blurred_density(STRUCTURE, BOX, PIXEL))


def particles(
    n: int, seed: int = 0, optics: np.ndarray | None = None
) -> tuple[torch.Tensor, reconstruct.Poses]:
    """Projections of the phantom by the simulation's own projector, moved off centre, without noise."""
    rng = np.random.default_rng(seed)
    angles = microscope.random_angles(rng, n)
    places = rng.uniform(-2, 2, (n, 2))
    slices = microscope.Projector(STRUCTURE, 2 * BOX, PIXEL).slices(angles)
    ctf = None
    if optics is not None:
        ctf = np.repeat(optics[None], n, 0)
        ctf[:, 0] += rng.uniform(-4000, 4000, n)
        y, x = microscope.frequencies(2 * BOX)
        x, y = (part.expand(2 * BOX, BOX + 1).flatten() / PIXEL for part in (x, y))
        slices = slices * reconstruct.contrast_transfer(ctf, x, y).reshape(slices.shape)
    moved = microscope.shifted(slices, torch.from_numpy(places + BOX).float())
    images = torch.fft.irfft2(moved, s=(2 * BOX, 2 * BOX))[
        :, BOX // 2 : -BOX // 2, BOX // 2 : -BOX // 2
    ]
    return images, reconstruct.Poses(angles, -places * PIXEL, ctf, PIXEL)


def reconstructed(
    images: torch.Tensor, poses: reconstruct.Poses, group: str = "C1"
) -> torch.Tensor:
    sums = reconstruct.empty(BOX)
    reconstruct.insert(sums, images, poses)
    return reconstruct.invert(sums, BOX, reconstruct.symmetry_operators(group))


def test_projections_give_the_phantom_back() -> None:
    volume = reconstructed(*particles(800))
    curve = fsc.correlation(volume, TRUTH)
    assert curve[1:14].min() > 0.98
    inner = slice(8, 24)
    true = (TRUTH - TRUTH.mean())[inner, inner, inner]  # the mean of images is left out
    scale = (volume[inner, inner, inner] * true).sum() / true.square().sum()
    assert float(scale) == pytest.approx(1, abs=0.05)  # images are sums along the beam


def test_a_handful_of_particles_is_a_map_however_much_of_space_they_leave_empty() -> None:
    volume = reconstructed(*particles(3))
    assert volume.isfinite().all()
    assert volume.std() > 0.01 * TRUTH.std()


def test_the_ctf_is_corrected_for() -> None:
    optics = np.array([15000, 14000, 30, 300, 2.7, 0.1, 0, 0, 1], float)
    images, poses = particles(800, optics=optics)
    with_ctf = fsc.correlation(reconstructed(images, poses), TRUTH)
    blind = fsc.correlation(
        reconstructed(images, reconstruct.Poses(poses.angles, poses.origins, None, PIXEL)), TRUTH
    )
    assert with_ctf[1:13].min() > 0.95
    assert blind[1:13].min() < 0.5


def test_sums_of_parts_are_the_sum_of_all() -> None:
    images, poses = particles(60)
    whole, parts = reconstruct.empty(BOX), [reconstruct.empty(BOX) for _ in range(2)]
    reconstruct.insert(whole, images, poses)
    for part, rows in zip(parts, (slice(0, 25), slice(25, 60)), strict=True):
        reconstruct.insert(part, images[rows], poses[rows])
    assert torch.allclose(parts[0] + parts[1], whole, atol=1e-3 * float(whole.abs().max()))


def test_insertion_is_trilinear_spreading_component_by_component() -> None:
    images, poses = particles(1)
    sums = reconstruct.empty(BOX)
    reconstruct.insert(sums, images, poses)
    spectrum = torch.fft.rfft2(torch.fft.ifftshift(images[0])).numpy()
    matrix, brute = rotations(poses.angles)[0], np.zeros(sums.shape)
    for j, i in np.ndindex(*spectrum.shape):
        y, x = (j if j < BOX // 2 else j - BOX), i
        if not (x * x + y * y < (BOX / 2) ** 2 and (x > 0 or y > 0)):
            continue
        moved = np.exp(-2j * np.pi / BOX * (poses.origins[0] / PIXEL) @ [x, y])
        value, place = spectrum[j, i] * moved, 2 * (np.array([x, y, 0]) @ matrix)
        if place[0] < 0:
            value, place = value.conjugate(), -place
        low = np.floor(place).astype(int)
        for step in np.ndindex(2, 2, 2):
            share = np.prod(np.where(step, place - low, 1 - place + low))
            dx, dy, dz = low + step
            brute[:, dz + BOX, dy + BOX, dx] += share * np.array([value.real, value.imag, 1])
    assert sums.numpy() == pytest.approx(brute, abs=2e-3 * np.abs(brute).max())


def test_the_ctf_is_torch_ctfs() -> None:
    """An independent program, of the same convention."""
    from torch_ctf import calculate_ctf_2d

    values = np.array([[18000, 15000, 25, 300, 2.7, 0.07, 40, 0, 1]], float)
    theirs = calculate_ctf_2d(
        defocus=1.65, astigmatism=0.15, astigmatism_angle=25.0, voltage=300.0,
        spherical_aberration=2.7, amplitude_contrast=0.07, phase_shift=40.0, pixel_size=1.5,
        image_shape=(64, 64), rfft=True, fftshift=False,
    )  # fmt: skip
    y, x = torch.meshgrid(torch.fft.fftfreq(64) / 1.5, torch.fft.rfftfreq(64) / 1.5, indexing="ij")
    ours = reconstruct.contrast_transfer(values, x.flatten(), y.flatten()).reshape(theirs.shape)
    assert (ours - theirs).abs().max() < 0.01


@pytest.mark.parametrize(
    ("group", "order"),
    [("C1", 1), ("c7", 7), ("D2", 4), ("D5", 10), ("T", 12), ("O", 24), ("I", 60)],
)
def test_groups_are_complete_and_closed(group: str, order: int) -> None:
    members = reconstruct.symmetry_operators(group)
    assert len(members) == order
    assert np.allclose(members[0], np.eye(3))
    assert np.allclose(np.linalg.det(members), 1)
    for a in members[:6]:
        for b in members:
            assert np.abs(members - a @ b).max((1, 2)).min() < 1e-6
    with pytest.raises(SettingsError, match="no symmetry"):
        reconstruct.symmetry_operators("K9")


@pytest.mark.parametrize("group", ["C4", "D2", "T", "O", "I"])
def test_symmetry_is_the_mean_over_turned_copies(group: str) -> None:
    """Particles inserted once and symmetrised, against particles inserted with every turned pose."""
    images, poses = particles(150 if group == "I" else 300)
    ours = reconstructed(images, poses, group)
    operators = reconstruct.symmetry_operators(group)
    sums = reconstruct.empty(BOX)
    for operator in operators:
        # A' = A R, written as angles: RELION's matrix has psi and rot about z, tilt about y
        matrices = rotations(poses.angles) @ operator
        tilt = np.arccos(np.clip(matrices[:, 2, 2], -1, 1))
        angles = np.degrees(
            np.stack(
                [
                    np.arctan2(matrices[:, 2, 1], matrices[:, 2, 0]),
                    tilt,
                    np.arctan2(matrices[:, 1, 2], -matrices[:, 0, 2]),
                ],
                1,
            )
        )
        assert np.allclose(rotations(angles), matrices, atol=1e-6)
        reconstruct.insert(sums, images, reconstruct.Poses(angles, poses.origins, None, PIXEL))
    theirs = reconstruct.invert(sums, BOX)
    assert fsc.correlation(ours, theirs)[1:14].min() > 0.97


def test_b_factor_is_the_slope_of_reslog() -> None:
    resolution = np.array([8.0, 6.0, 5.0, 4.0])
    particles_ = np.exp(120 / 2 / resolution**2 + 3)
    assert reconstruct.b_factor(particles_, resolution) == pytest.approx(120)
    assert reconstruct.b_factor(particles_[::-1], resolution) is None
    assert reconstruct.b_factor(particles_[:2], resolution[:2]) is None


def test_the_memory_of_sums_is_known_before_they_are_made() -> None:
    for box in (16, BOX):
        assert reconstruct.sums_bytes(box) == reconstruct.empty(box).nbytes
