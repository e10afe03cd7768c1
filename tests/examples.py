"""Small things that tests of several floors need: an ensemble nobody trained, and a project."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from cryoray.formats.mrc import StackWriter
from cryoray.models.context import HeadConfig, Heads
from cryoray.models.ensemble import Calibration, Context, Ensemble, Manifest
from cryoray.models.networks import DEFAULT_MEMBERS, REASONS_NETWORK, build, logits, seeded
from cryoray.records import MEMBERS, Kind, Reason, Verdicts
from cryoray.settings import PreparationSettings

BOX = 32
FEATURES = ("defocus", "ctf_max_resolution", "prepared_pixel_size")
CLASS_FEATURES = ("class_distribution", "estimated_resolution", "prepared_pixel_size")

_STAR = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
1 2.5

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
_rlnDefocusU #4
_rlnDefocusV #5
_rlnCtfMaxResolution #6
"""


class Saved(Ensemble):
    """An ensemble that has a folder."""

    path: Path


def saved(ensemble: Ensemble, folder: Path, card: str) -> Saved:
    """The ensemble as it is once it is saved."""
    return cast(Saved, ensemble.save(folder, card))


def save_ensemble(
    path: Path,
    kind: Kind = "particle",
    seed: int = 0,
    box: int = BOX,
    reasons: tuple[Reason, ...] = (),
    threshold: float = 0.5,
) -> Saved:
    """An ensemble of untrained networks whose members disagree often: about half of the images.

    With ``reasons`` it names these, as untrained.
    """
    d1, d2, d3 = (
        build(config, len(FEATURES), seed + i) for i, config in enumerate(DEFAULT_MEMBERS)
    )
    networks = (d1, d2, d3)
    images = torch.from_numpy(particles(64, box, seed=1))
    features = torch.tensor([[1.5, 1.5, 1.0]]).repeat(len(images), 1)
    said = [logits(network, images, features) for network in networks]
    slopes = [float(2 / of.std()) for of in said]
    manifest = Manifest(
        kind=kind,
        members=DEFAULT_MEMBERS,
        features=FEATURES if kind == "particle" else CLASS_FEATURES,
        preparation=PreparationSettings(box=box),
        calibration=tuple(
            Calibration(slope=slope, offset=-slope * float(of.median()))
            for slope, of in zip(slopes, said, strict=True)
        ),
        threshold=threshold,
        review=(0.8 * threshold, 1.2 * threshold),
        operating_point={"level": "image", "bound": 0.03},
        prevalence=0.5,
        split_by="project",
        training_groups=("elsewhere",),
        calibration_groups=("elsewhere",),
    )
    ensemble = Ensemble(manifest, networks)
    if reasons:
        network = build(REASONS_NETWORK, 0, seed, outputs=len(reasons))
        of_reasons = logits(network, images, torch.empty((len(images), 0)))
        network.verdict.bias.data -= of_reasons.median(0).values  # each is the likeliest of some
        ensemble = ensemble.with_reasons(reasons, network)
    return saved(ensemble, path, "# Untrained\n")


def particles(n: int, box: int = 40, seed: int = 0) -> np.ndarray:
    """float32 [n, box, box]: bright blobs of various sizes in white noise."""
    rng = np.random.default_rng(seed)
    axis = np.arange(box) - box // 2
    width = rng.uniform(0.05, 0.2, (n, 1, 1)) * box
    blobs = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * width**2))
    return (rng.normal(size=(n, box, box)) + blobs).astype(np.float32)


def write_stack(path: Path, images: np.ndarray) -> Path:
    """The images as a float32 stack at 2.5 Å/px."""
    height, width = images.shape[1:]
    with StackWriter(path, height, width, dtype="float32", pixel_size=2.5) as stack:
        stack.append(images)
    return path


def write_project(folder: Path, sizes: tuple[int, ...] = (60, 35, 80)) -> Path:
    """A RELION project: stacks ``Extract/job001/mic_1.mrcs`` …, all their images in a `particles.star`.

    Every seventh image stands at the end of the STAR file, so that ranges are not its order.
    """
    names = []
    for number, size in enumerate(sizes, 1):
        name = f"Extract/job001/mic_{number}.mrcs"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_stack(folder / name, particles(size, seed=number))
        names += [(f"{frame:06d}@{name}", number) for frame in range(1, size + 1)]
    names = [*(n for i, n in enumerate(names) if i % 7), *names[::7]]
    write_star(
        folder / "particles.star",
        [
            f"{name} mic_{number}.mrc 1 {9000 + 50 * i} {8800 + 50 * i} {4 + i % 5}"
            for i, (name, number) in enumerate(names)
        ],
    )
    return folder / "particles.star"


def sparse_stack(path: Path, count: int, width: int, height: int, mode: int = 0) -> Path:
    """A stack whose header promises so much, and that has it: as holes, which take no room."""
    write_stack(path, particles(1))
    with path.open("r+b") as file:
        file.write(struct.pack("<4i", width, height, count, mode))
        file.truncate(1024 + count * width * height)
    return path


def write_star(path: Path, rows: list[str]) -> Path:
    """A STAR file of particles with the columns of `write_project`."""
    path.write_text(_STAR + "\n".join(rows) + "\n")
    return path


def verdicts_of(fates: Sequence[str], score: np.ndarray | None = None) -> Verdicts:
    """Rows with these fates, in reversed order, as tasks that finish when they finish would give them.

    Args:
        fates: of each row: keep, discard, review or quarantined.
        score: float32 [n], of the judged rows; None: from 1 down to 0.
    """
    rows = np.array([row for row, fate in enumerate(fates) if fate != "quarantined"], np.int64)
    said = np.linspace(1, 0, len(rows), dtype=np.float32) if score is None else score
    unknown = np.full(len(rows), np.nan, np.float32)
    columns = {
        "score": said[::-1],
        "verdict": np.array([fates[row] for row in rows], object)[::-1],
        **dict.fromkeys(MEMBERS, unknown),
    }
    lost = [(row, f"reason {row}") for row, fate in enumerate(fates) if fate == "quarantined"]
    return Verdicts.of(rows[::-1], columns, lost[::-1])


def with_heads(path: Path, familiar: float = 1e9, seed: int = 0) -> Ensemble:
    """The ensemble in a folder, saved there again with untrained heads for a context, far from its members.

    Args:
        path: of an ensemble of `save_ensemble`.
        familiar: distance within which a profile is used.
        seed: of the heads.
    """
    ensemble = Ensemble.load(path)
    d1, d2, d3 = (network.channels for network in ensemble.networks)
    heads = seeded(lambda: Heads((d1, d2, d3), HeadConfig(), 4, 2, 3), seed)
    torch.nn.init.normal_(heads.axes, generator=torch.Generator().manual_seed(seed))
    assert heads.shift is not None  # each project's scores are moved by what its profile says
    torch.nn.init.normal_(heads.shift.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    heads.shift.ends.copy_(torch.tensor([-2.0, 2.0]))
    for number in range(3):  # as large as the members' own, and not all on one side
        heads.head(number).verdict.weight.data *= 10
    manifest = ensemble.manifest
    context = Context(
        head=HeadConfig(),
        profiles=4,
        directions=2,
        shift=3,
        familiar=familiar,
        calibration=(Calibration(slope=1, offset=0.1),) * 3,
        threshold=0.55,
        review=(0.5, 0.6),
        operating_point={"level": "image", "bound": 0.03},
        operating_points={},
        expectation=(),
    )
    assert manifest.context is None
    return ensemble.with_context(context, heads).save(path, "# Untrained\n")
