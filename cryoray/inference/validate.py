"""Proof on disk: numbers, curves and one page about what choices did to the map and to 2D images."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoray.errors import InputError
from cryoray.formats.files import replacing, replacing_folder
from cryoray.formats.fsc_curve import read_curve
from cryoray.formats.volume import read_volume, write_volume
from cryoray.records import Event, OnEvent, OnProgress, Progress, ignore
from cryoray.settings import ProofSettings, Settings
from cryoray.validation import fsc, report

METRICS, REPORT = "metrics.json", "report.html"

#: Beyond this, pixel sizes are taken to differ, and not to be rounded differently.
_SAME_PIXEL = 1e-3


def validate_fsc(
    half1: Path,
    half2: Path,
    out: Path,
    settings: Settings,
    *,
    mask: str | None = None,
    published: Path | None = None,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """FSC of two half-maps as RELION's postprocess defines it, and by direction.

    Args:
        half1: unfiltered half-map.
        half2: the other.
        out: folder of ``metrics.json``, ``report.html``, the figures and the automatic mask; appears when
            all is done, in place of an older one.
        settings: ``proof`` is used.
        mask: file of a soft mask, or ``auto``; None: no mask.
        published: curve to compare with (`cryoray.formats.fsc_curve`).
        on_progress: told of each step.
        on_event: ``validation.done``, with the resolutions.

    Returns:
        what ``metrics.json`` holds (contracts: FSC metrics).

    Raises:
        FormatError: a map or curve cannot be read.
        InputError: the maps do not belong together, or ``out`` holds something else.
    """
    chosen = settings.proof
    steps = Progress("fsc", 0, 4, "steps")
    on_progress(steps)
    halves, pixel_size = read_halves(half1, half2, chosen.pixel_size)
    with replacing_folder(Path(out).absolute(), "folder of a validation", is_validation) as partial:
        weights, masked_by = _mask(mask, halves, pixel_size, chosen, partial)
        on_progress(_step(steps, 1))
        curves = fsc.half_map_fsc(
            *halves, pixel_size, weights, draws=chosen.random_phases, seed=chosen.seed
        )
        on_progress(_step(steps, 2))
        first, second = (half if weights is None else half * weights for half in halves)
        views = fsc.directional_fsc(first, second, pixel_size)
        on_progress(_step(steps, 3))
        extent = len(halves[0]) * pixel_size
        against = None if published is None else read_curve(published, extent)
        numbers = fsc_numbers(curves) | {"directional": directional_numbers(views)}
        numbers["mask"] = masked_by
        lead, overlay = "", None
        if against is not None:
            overlay = {f"published ({against.path.name})": (against.frequency, against.main)}
            numbers["published"], lead = _compared(curves, against.frequency, against.main)
        for warning in curves.warnings:
            lead += f" Distrust: {warning}."
        report.render(
            partial / REPORT,
            "Resolution of two half-maps",
            [
                _fsc_summary(half1, half2, masked_by, out, curves, pixel_size, len(halves[0])),
                report.fsc_section(curves, overlay, lead.strip()),
                report.directions_section({"this map": views}, curves.frequency),
                report.provenance_section(
                    command(), [chosen], {path.name: digest(path) for path in (half1, half2)}
                ),
            ],
            pictures=True,
        )
        write_json(partial / METRICS, numbers)
    on_progress(_step(steps, 4))
    on_event(Event("validation.done", {"out": str(out), **_told(numbers)}))
    return numbers


def is_validation(folder: Path) -> bool:
    """Whether a folder is one of ours, which may be replaced."""
    return (folder / METRICS).is_file() and (folder / REPORT).is_file()


def read_halves(
    half1: Path, half2: Path, pixel_size: float | None
) -> tuple[tuple[torch.Tensor, torch.Tensor], float]:
    """Two half-maps and their pixel size in Å, which may be given.

    Raises:
        FormatError: one cannot be read.
        InputError: they differ in size, or the pixel size is unknown.
    """
    (first, size1), (second, size2) = read_volume(half1), read_volume(half2)
    if first.shape != second.shape:
        raise InputError(f"has {len(second)}³ voxels where {half1} has {len(first)}³", file=half2)
    if np.array_equal(first, second):
        raise InputError(f"is the same map as {half1}", file=half2, remedy="give the other half")
    size = pixel_size or size1 or size2
    if size is None:
        raise InputError("does not say its pixel size", file=half1, remedy="give --pixel-size")
    if pixel_size is None and size2 and abs(size2 / size - 1) > _SAME_PIXEL:
        raise InputError(
            f"has {size2:.4f} Å/px where {half1} has {size:.4f}",
            file=half2,
            remedy="give --pixel-size",
        )
    return (torch.from_numpy(first), torch.from_numpy(second)), size


def _mask(
    mask: str | None,
    halves: tuple[torch.Tensor, torch.Tensor],
    pixel_size: float,
    chosen: ProofSettings,
    out: Path,
) -> tuple[torch.Tensor | None, dict[str, Any] | None]:
    """The mask and what to say about it."""
    if mask is None:
        return None, None
    if mask == "auto":
        made, level = fsc.automatic_mask(
            (halves[0] + halves[1]) / 2,
            pixel_size,
            chosen.mask_threshold,
            lowpass=chosen.mask_lowpass,
            extend=chosen.mask_extend,
            soft_edge=chosen.mask_edge,
        )
        write_volume(out / "mask.mrc", made.numpy(), pixel_size)
        return made, {"file": "mask.mrc", "threshold": level, "fraction": float(made.mean())}
    volume, _ = read_volume(Path(mask))
    if volume.shape != tuple(halves[0].shape):
        raise InputError(
            f"has {len(volume)}³ voxels where the maps have {len(halves[0])}³", file=mask
        )
    if volume.min() < -1e-6 or volume.max() > 1 + 1e-6:
        raise InputError("is no mask: its values are not between 0 and 1", file=mask)
    return torch.from_numpy(volume), {"file": str(mask), "fraction": float(volume.mean())}


def fsc_numbers(curves: fsc.HalfMapFsc) -> dict[str, Any]:
    """The curves and resolutions as ``metrics.json`` has them."""
    return {
        "fsc": {
            "frequency": curves.frequency.tolist(),
            **{name: curve.tolist() for name, curve in curves.curves.items()},
        },
        "resolution": resolution_numbers(curves.frequency, curves.best),
        "resolution_unmasked": resolution_numbers(curves.frequency, curves.unmasked),
        "randomised_from": curves.randomised_from,
        "warnings": list(curves.warnings),
    }


def resolution_numbers(frequency: np.ndarray, curve: np.ndarray) -> dict[str, dict[str, Any]]:
    """Å at both thresholds by both definitions."""
    return {
        f"{threshold:g}": asdict(fsc.resolution(frequency, curve, threshold))
        for threshold in fsc.THRESHOLDS
    }


def directional_numbers(views: fsc.Directional) -> dict[str, Any]:
    """How a map's resolution depends on direction."""
    known = views.resolution[np.isfinite(views.resolution)]
    return {
        "area_ratio": views.area_ratio,
        "best": float(known.min()) if len(known) else None,
        "worst": float(known.max()) if len(known) == len(views.resolution) else None,
        "worst_direction": views.worst.tolist(),
    }


def _compared(
    curves: fsc.HalfMapFsc, frequency: np.ndarray, published: np.ndarray
) -> tuple[dict[str, Any], str]:
    """The published curve's resolution beside ours, as numbers and as a sentence."""
    theirs = resolution_numbers(frequency, published)
    ours = resolution_numbers(curves.frequency, curves.best)
    numbers: dict[str, Any] = {"resolution": theirs, "difference": {}}
    said = []
    for threshold in theirs:
        mine, other = ours[threshold]["interpolated"], theirs[threshold]["interpolated"]
        if mine is None or other is None:
            continue
        numbers["difference"][threshold] = mine - other
        word = "better" if mine < other else "worse"
        said.append(
            f"at {threshold} this map's {mine:.2f} Å is {abs(mine - other):.2f} Å {word} than the"
            f" published curve's {other:.2f} Å"
        )
    text = "; ".join(said)
    return numbers, f"{text[:1].upper()}{text[1:]}." if text else ""


def _fsc_summary(
    half1: Path,
    half2: Path,
    mask: Mapping[str, Any] | None,
    out: Path,
    curves: fsc.HalfMapFsc,
    pixel_size: float,
    side: int,
) -> report.Section:
    at = {threshold: curves.resolution(threshold) for threshold in fsc.THRESHOLDS}
    which = "corrected for the mask" if curves.corrected is not None else "without a correction"
    return report.summary_section(
        f"How far two half-maps agree, {which}. Each half must have been refined on its own; nothing here"
        " can tell whether that was so.",
        {
            "half-maps": f"{half1}, {half2}",
            "box": f"{side} px at {pixel_size:.4g} Å/px",
            "mask": "none"
            if mask is None
            else f"{mask['file']}, {mask['fraction']:.1%} of the box",
        },
        {"folder": out, "numbers": METRICS, "figures": "figures/ (SVG, PNG, CSV)"},
        {f"at {threshold}": report.angstrom(found.last_shell) for threshold, found in at.items()},
    )


def _step(steps: Progress, done: int) -> Progress:
    return Progress(steps.stage, done, steps.total, steps.unit)


def _told(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"resolution_{threshold}": found["last_shell"]
        for threshold, found in numbers["resolution"].items()
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain numbers; what is not a number is null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def command() -> str:
    """What was typed, as it can be typed again."""
    program = Path(sys.argv[0]).name
    return shlex.join([program if program != "__main__.py" else "cryoray", *sys.argv[1:]])


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
