"""How alike two averages of one 2D class are: squared error, SSIM and FRC, after both were made comparable.

Averages are of images aligned by their class's own poses and corrected for the CTF. Before they are compared,
both are low-passed to the class's resolution and brought to zero mean and unit variance inside the mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity

from cryoray.imaging.pose import rotations
from cryoray.maps import fsc
from cryoray.maps.particles import Particles, read_images
from cryoray.maps.reconstruct import Poses, contrast_transfer
from cryoray.settings import ValidationSettings

#: Side of SSIM's sliding window, px; class averages are small.
WINDOW = 7
#: SSIM's data range: that of unit-variance images from three deviations below the mean to three above.
DATA_RANGE = 6.0
#: Radius of the mask over half the box, where nobody says the diameter.
MASK_RADIUS = 0.8
#: The columns in which classes are compared, as ``metrics.json`` names them.
REFERENCES = ("ours", "chance", "floor")
#: Directions over half a sphere from which a map is compared with class averages.
VIEWS = 150
#: Of the CTF's mean square, added to it before images are divided by it.
_WIENER = 0.1


@dataclass(frozen=True, slots=True)
class Similarity:
    """How alike two images are.

    Attributes:
        mse: mean squared difference inside the mask, of images of unit variance: 0 the same, 2 unrelated.
        ssim: structural similarity inside the mask, 1 the same.
        frc: mean Fourier ring correlation up to the resolution, 1 the same.
    """

    mse: float
    ssim: float
    frc: float


def mean_of(similarities: Sequence[Similarity]) -> Similarity:
    """The mean of each number."""
    columns = {
        field.name: float(np.mean([getattr(one, field.name) for one in similarities]))
        for field in fields(Similarity)
    }
    return Similarity(**columns)


def align(images: torch.Tensor, poses: Poses) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as their class has them, times their CTF; and CTF².

    Args:
        images: float32 [n, box, box].
        poses: of these n; only psi of the angles counts.

    Returns:
        float32 [n, box, box], moved by the origin and turned by psi; float32 [n, box, box // 2 + 1].
    """
    n, box = len(images), images.shape[-1]
    y, x = torch.meshgrid(torch.fft.fftfreq(box), torch.fft.rfftfreq(box), indexing="ij")
    power = torch.ones(n, box, box // 2 + 1)
    if poses.ctf is not None:
        frequency = [axis.flatten() / poses.pixel_size for axis in (x, y)]
        ctf = contrast_transfer(poses.ctf, *frequency).reshape(power.shape)
        power = ctf.square()
        if not poses.premultiplied:
            images = torch.fft.irfft2(torch.fft.rfft2(images) * ctf, s=(box, box))
    flat = np.zeros((n, 3))
    flat[:, 2] = poses.angles[:, 2]
    turn = torch.from_numpy(rotations(flat)[:, :2, :2]).float()
    axis = torch.arange(box) - float(box // 2)
    place = axis[:, None, None] * torch.tensor([0.0, 1.0]) + axis[:, None] * torch.tensor(
        [1.0, 0.0]
    )
    origin = torch.from_numpy(poses.origins / poses.pixel_size).float()
    grid = torch.einsum("nij,hwj->nhwi", turn, place) - origin[:, None, None]
    grid = (grid + box // 2) * (2 / (box - 1)) - 1
    moved = torch.nn.functional.grid_sample(
        images[:, None], grid, mode="bicubic", padding_mode="border", align_corners=True
    )
    return moved[:, 0], power


def average(aligned: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """The CTF-corrected mean of what `align` gives: float32 [box, box].

    CTFs are taken as round: each was turned with its image by no more than its astigmatism tells apart.
    """
    weight = power.mean(0)
    spectrum = torch.fft.rfft2(aligned.mean(0)) / (weight + _WIENER * weight.mean())
    return torch.fft.irfft2(spectrum, s=aligned.shape[-2:])


def round_mask(box: int, radius: float) -> torch.Tensor:
    """Bool [box, box], True within ``radius`` px of the centre."""
    axis = torch.arange(box) - box // 2
    return axis[:, None] ** 2 + axis**2 <= radius**2


def compare(
    image: torch.Tensor,
    reference: torch.Tensor,
    mask: torch.Tensor,
    pixel_size: float,
    limit: float,
) -> Similarity:
    """How alike two averages are.

    Args:
        image: float32 [box, box].
        reference: the same.
        mask: bool [box, box].
        pixel_size: Å/px.
        limit: the class's resolution, Å; finer detail is left out.
    """
    first, second = (_comparable(one, mask, pixel_size, limit) for one in (image, reference))
    _, local = structural_similarity(
        first.numpy(), second.numpy(), win_size=WINDOW, data_range=DATA_RANGE, full=True
    )
    ring = fsc.correlation(first * mask, second * mask)
    last = max(2, min(len(ring) - 1, round(len(image) * pixel_size / limit)))
    return Similarity(
        mse=float((first - second)[mask].square().mean()),
        ssim=float(local[mask.numpy()].mean()),
        frc=float(ring[1 : last + 1].mean()),
    )


def _comparable(
    image: torch.Tensor, mask: torch.Tensor, pixel_size: float, limit: float
) -> torch.Tensor:
    smooth = fsc.low_passed(image, pixel_size, limit)
    inside = smooth[mask]
    return (smooth - inside.mean()) / inside.std().clamp(min=1e-12)


@dataclass(frozen=True, slots=True, eq=False)
class ClassSimilarity:
    """One class: what we kept of it against what the person kept, between two references.

    Attributes:
        number: of the class.
        person: particles that the person kept.
        ours: particles that we kept.
        shared: particles that both kept.
        limit: Å, to which averages were low-passed.
        similarity: of the average of ours with that of the person's.
        floor: of the averages of two random halves of the person's own.
        chance: of the person's with it after as many particles as we lack were removed at random.
        images: float32 [2, box, box], ours and the person's as they were compared.
    """

    number: int
    person: int
    ours: int
    shared: int
    limit: float
    similarity: Similarity
    floor: Similarity
    chance: Similarity
    images: np.ndarray


def class_similarity(
    number: int,
    images: torch.Tensor,
    poses: Poses,
    person: np.ndarray,
    ours: np.ndarray,
    *,
    radius: float | None = None,
    draws: int = 3,
    seed: int = 0,
) -> ClassSimilarity | None:
    """Compare the averages of one class.

    Args:
        number: of the class.
        images: float32 [n, box, box], all its particles.
        poses: theirs.
        person: bool [n], kept by the person.
        ours: bool [n], kept by us.
        radius: of the mask, px; None: 0.8 of half the box.
        draws: of the random references, whose means are taken.
        seed: of the draws.

    Returns:
        None where either kept fewer than four particles, which make no average.
    """
    if min(person.sum(), ours.sum()) < 4:
        return None
    rng = np.random.default_rng((seed, number))
    aligned, power = align(images, poses)
    mask = round_mask(images.shape[-1], radius or MASK_RADIUS * images.shape[-1] / 2)

    def of(rows: np.ndarray) -> torch.Tensor:
        return average(aligned[rows], power[rows])

    theirs = np.flatnonzero(person)
    shuffled = [rng.permutation(theirs) for _ in range(draws)]
    halves = [(of(rows[::2]), of(rows[1::2])) for rows in shuffled]
    size = poses.pixel_size
    ring = np.mean([fsc.correlation(a * mask, b * mask) for a, b in halves], 0)
    found = fsc.resolution(fsc.frequencies(len(images[0]), size), ring, fsc.THRESHOLDS[0])
    limit = min(found.interpolated or math.inf, len(images[0]) * size / 4)
    reference, mine = of(person), of(ours)
    shared = int((person & ours).sum())
    fewer = max(4, shared)
    return ClassSimilarity(
        number=number,
        person=int(person.sum()),
        ours=int(ours.sum()),
        shared=shared,
        limit=limit,
        similarity=compare(mine, reference, mask, size, limit),
        floor=mean_of([compare(a, b, mask, size, limit) for a, b in halves]),
        chance=mean_of(
            [compare(of(rows[:fewer]), reference, mask, size, limit) for rows in shuffled]
        ),
        images=np.stack([_comparable(one, mask, size, limit).numpy() for one in (mine, reference)]),
    )


def projections(volume: torch.Tensor, directions: np.ndarray) -> torch.Tensor:
    """Sums of a map along the beam, seen from ``directions``.

    Args:
        volume: float32 [side, side, side].
        directions: float64 [d, 3], unit vectors x, y, z.

    Returns:
        float32 [d, side, side].
    """
    side = len(volume)
    axis = torch.arange(side) - float(side // 2)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    place = torch.stack([x, y, z], -1)
    tilt = np.degrees(np.arccos(np.clip(directions[:, 2], -1, 1)))
    rot = np.degrees(np.arctan2(directions[:, 1], directions[:, 0]))
    matrices = torch.from_numpy(rotations(np.stack([rot, tilt, 0 * rot], 1))).float()
    seen = []
    for matrix in matrices:
        grid = ((place @ matrix) + side // 2) * (2 / (side - 1)) - 1
        turned = torch.nn.functional.grid_sample(volume[None, None], grid[None], align_corners=True)
        seen.append(turned[0, 0].sum(0))
    return torch.stack(seen)


def best_projection(
    image: torch.Tensor,
    views: torch.Tensor,
    mask: torch.Tensor,
    pixel_size: float,
    limit: float,
    *,
    step: float = 5.0,
) -> tuple[torch.Tensor, Similarity]:
    """The projection that an average resembles most, turned as it is, and how alike they are.

    Args:
        image: float32 [box, box], a class average.
        views: float32 [d, box, box], of `projections`; over half a sphere, so mirrors are tried too.
        mask: bool [box, box].
        pixel_size: Å/px.
        limit: Å, of the class.
        step: between in-plane angles, degrees.
    """
    box = len(image)
    angles = np.arange(0, 360, step)
    target = _comparable(image, mask, pixel_size, limit)[mask]
    best, found = -math.inf, views[0]
    smooth = torch.stack([fsc.low_passed(view, pixel_size, limit) for view in views])
    smooth = torch.cat([smooth, smooth.flip(-1)])
    for angle in angles:
        pose = Poses(
            np.tile([0.0, 0.0, angle], (len(smooth), 1)),
            np.zeros((len(smooth), 2)),
            None,
            pixel_size,
        )
        turned, _ = align(smooth, pose)
        inside = turned[:, mask]
        inside = inside - inside.mean(1, keepdim=True)
        score = (inside @ target) / inside.norm(dim=1).clamp(min=1e-12)
        top = int(score.argmax())
        if float(score[top]) > best:
            best, found = float(score[top]), turned[top]
    return found.reshape(box, box), compare(image, found, mask, pixel_size, limit)


@dataclass(frozen=True, slots=True, eq=False)
class ChosenClass:
    """The particles of one 2D class, and who kept which.

    Attributes:
        number: of the class.
        particles: n of them.
        person: bool [n], kept by the person.
        ours: bool [n], kept by us.
    """

    number: int
    particles: Particles
    person: np.ndarray
    ours: np.ndarray


def compare_choices(
    one: ChosenClass, chosen: ValidationSettings, volume: np.ndarray | None
) -> tuple[ClassSimilarity | None, Similarity | None]:
    """Read the images of a class and compare the average of what we kept with that of the person's.

    Args:
        one: the class.
        chosen: ``diameter`` and ``seed`` are used.
        volume: float32 [box, box, box], a map whose projections are compared with our average, too.

    Returns:
        as `class_similarity` gives it; and how alike our average and the map's nearest projection are, where
        there are both.
    """
    particles = one.particles
    images, size = torch.from_numpy(read_images(particles)), particles.poses.pixel_size
    radius = chosen.diameter / 2 / size if chosen.diameter else None
    found = class_similarity(
        one.number, images, particles.poses, one.person, one.ours, radius=radius, seed=chosen.seed
    )
    if found is None or volume is None:
        return found, None
    box = particles.box
    mask = round_mask(box, radius or MASK_RADIUS * box / 2)
    views = projections(torch.from_numpy(volume.copy()), fsc.half_sphere(VIEWS))
    mine = torch.from_numpy(found.images[0])
    return found, best_projection(mine, views, mask, size, found.limit)[1]


def similarity_numbers(
    alike: Sequence[ClassSimilarity], projected: Mapping[int, Similarity]
) -> dict[str, Any]:
    """What ``metrics.json`` says of classes, and of the projections nearest to them."""
    columns = {
        "ours": [one.similarity for one in alike],
        "chance": [one.chance for one in alike],
        "floor": [one.floor for one in alike],
    }
    if projected:
        columns["projections"] = list(projected.values())
    numbers: dict[str, Any] = {
        name: {
            of.name: _spread([getattr(one, of.name) for one in values]) for of in fields(Similarity)
        }
        for name, values in columns.items()
    }
    numbers["by_class"] = [
        {
            "class": one.number,
            "person": one.person,
            "ours": one.ours,
            "shared": one.shared,
            "resolution": one.limit,
            "likeness": asdict(one.similarity),
            "chance": asdict(one.chance),
            "floor": asdict(one.floor),
            **({"projection": asdict(projected[one.number])} if one.number in projected else {}),
        }
        for one in alike
    ]
    numbers["ssim_window"], numbers["ssim_data_range"] = WINDOW, DATA_RANGE
    return numbers


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return {"median": median, "low": low, "high": high, "worst": float(np.max(values))}
