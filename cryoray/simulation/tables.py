"""The tables of a simulated project: RELION's STAR files, the person's labels, and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryoray.formats.files import replacing, write_csv
from cryoray.simulation.junk import PARTICLE
from cryoray.simulation.microscope import Optics

#: STAR file of the micrographs that are written, in a project.
MICROGRAPHS = "MotionCorr/job001/corrected_micrographs.star"

_POSE = ("rot", "tilt", "psi", "x", "y")

Row = dict[str, object]


def stack_name(number: int) -> str:
    """The stack of a micrograph's particles, relative to the project; counted from 0."""
    return f"Extract/job001/micrograph_{number + 1:04d}.mrcs"


def micrograph_name(number: int) -> str:
    """A micrograph's file, relative to the project; counted from 0."""
    return f"MotionCorr/job001/micrograph_{number + 1:04d}.mrc"


def truth_row(stack: str, index: int, kind: str, pose: Sequence[float], detail: str = "") -> Row:
    """A row of ``truth.csv``.

    Args:
        stack: of the image.
        index: in it, from 1.
        kind: `junk.PARTICLE` or one of `junk.KINDS`.
        pose: rot, tilt, psi in degrees, x and y in px from the image's centre; or nothing.
        detail: more of the kind.
    """
    values = [f"{value:.3f}" for value in pose] or [""] * len(_POSE)
    row: Row = {"stack": stack, "index": index, "keep": int(kind == PARTICLE), "kind": kind}
    row |= dict(zip(_POSE, values, strict=True))
    return row | ({"detail": detail} if detail else {})


def write_tables(
    folder: Path,
    optics: Optics,
    box: int,
    pixel_size: float,
    rows: Sequence[Row],
    truth: Sequence[Row],
    ambiguity: np.ndarray,
    error: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Write ``particles.star``, ``labels.csv`` and ``truth.csv`` of a project.

    Args:
        folder: of the project.
        optics: of its group.
        box: of the images, px.
        pixel_size: of the images, Å/px.
        rows: of ``particles.star``.
        truth: of `truth_row`, in the same order.
        ambiguity: [n], how easily a person errs on each.
        error: share of the images that a person mislabels.
        rng: of which those are a function.

    Returns:
        what is true and what the person chose, int64 [n] each, 1 is keep.
    """
    keep = np.array([line["keep"] for line in truth], dtype=np.int64)
    selected = _select(keep, ambiguity, error, rng)
    image: Row = {
        "rlnImagePixelSize": f"{pixel_size:.6f}",
        "rlnImageSize": box,
        "rlnImageDimensionality": 2,
        "rlnCtfDataAreCtfPremultiplied": 0,
    }
    write_star(folder / "particles.star", optics, image, "particles", rows)
    labels = [
        {
            "stack": line["stack"],
            "index": line["index"],
            "selected": int(choice),
            "reason": "" if choice else reason_of(str(line["kind"])),
        }
        for line, choice in zip(truth, selected, strict=True)
    ]
    write_csv(folder / "labels.csv", labels[0], (row.values() for row in labels))
    write_csv(folder / "truth.csv", truth[0], (row.values() for row in truth))
    return keep, selected


def write_micrographs(folder: Path, optics: Optics, number: int) -> None:
    """Write the STAR file of so many micrographs."""
    write_star(
        folder / MICROGRAPHS,
        optics,
        {"rlnMicrographPixelSize": f"{optics.original_pixel_size:.6f}"},
        "micrographs",
        [{"rlnMicrographName": micrograph_name(m), "rlnOpticsGroup": 1} for m in range(number)],
    )


def reason_of(kind: str) -> str:
    """What a person says of an image of this kind that they discard; nothing of a good particle."""
    return {PARTICLE: "", "drift": "blurred"}.get(kind, kind)


def _select(
    keep: np.ndarray, ambiguity: np.ndarray, error: float, rng: np.random.Generator
) -> np.ndarray:
    """What a person chooses: the truth but for a share of mistakes, most of them on doubtful images."""
    mistakes = rng.choice(
        len(keep), round(error * len(keep)), replace=False, p=ambiguity / ambiguity.sum()
    )
    selected = keep.copy()
    selected[mistakes] = 1 - selected[mistakes]
    return selected


def write_star(path: Path, optics: Optics, of_group: Row, name: str, rows: Sequence[Row]) -> None:
    """A table of RELION's and the optics group of its rows, of which ``of_group`` gives the rest."""
    group = {
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnOpticsGroup": 1,
        "rlnMicrographOriginalPixelSize": f"{optics.original_pixel_size:.6f}",
        "rlnVoltage": f"{optics.voltage:.6f}",
        "rlnSphericalAberration": f"{optics.spherical_aberration:.6f}",
        "rlnAmplitudeContrast": f"{optics.amplitude_contrast:.6f}",
        **of_group,
    }
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for title, table in (("optics", [group]), (name, rows)):
            labels = [f"_{label} #{number}" for number, label in enumerate(table[0], 1)]
            file.write(
                "\n".join(["", "# version 30001", "", f"data_{title}", "", "loop_", *labels])
            )
            file.writelines("\n" + " ".join(map(str, row.values())) for row in table)
            file.write("\n\n")
