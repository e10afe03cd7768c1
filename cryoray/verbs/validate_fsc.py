"""FSC of two half-maps, by direction and beside a published curve: numbers, curves and one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryoray.formats.files import replacing_folder
from cryoray.formats.fsc_curve import read_curve
from cryoray.formats.names import METRICS, REPORT
from cryoray.maps import fsc
from cryoray.maps.halves import mask_for, read_halves
from cryoray.maps.numbers import compared, directional_numbers, fsc_numbers
from cryoray.records import Event, OnEvent, OnProgress, Progress, ignore
from cryoray.report.half_maps import FscPage
from cryoray.settings import Settings
from cryoray.verbs.validation import digest, is_validation, write_json


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
        settings: ``validation`` is used.
        mask: file of a soft mask, or ``auto``; None: no mask.
        published: curve to compare with (`cryoray.formats.fsc_curve`).
        on_progress: called after each step.
        on_event: ``validation.done``, with the resolutions.

    Returns:
        what ``metrics.json`` holds: the curves, ``fsc.…``, and ``resolution`` by each definition.

    Raises:
        FormatError: a map or curve cannot be read.
        InputError: the maps do not belong together, or ``out`` holds something else.
    """
    chosen = settings.validation
    steps = Progress("fsc", 0, 4, "steps")
    on_progress(steps)
    halves, pixel_size = read_halves(half1, half2, chosen.pixel_size)
    of = {"half-map": [str(Path(half).absolute()) for half in (half1, half2)]}
    with replacing_folder(
        Path(out).absolute(), "validation", is_validation, of, replace=chosen.replace
    ) as partial:
        weights, masked_by = mask_for(mask, halves, pixel_size, chosen, partial)
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
        overlay = None
        if against is not None:
            overlay = {f"published ({against.path.name})": (against.frequency, against.main)}
            numbers["published"] = compared(curves, against.frequency, against.main)
        page = FscPage(half1, half2, out, curves, views, pixel_size, len(halves[0]), overlay)
        page.write(partial / REPORT, numbers, chosen, {p.name: digest(p) for p in (half1, half2)})
        write_json(partial / METRICS, numbers)
    on_progress(_step(steps, 4))
    on_event(Event("validation.done", {"out": str(out), **_resolutions(numbers)}))
    return numbers


def _step(steps: Progress, done: int) -> Progress:
    return Progress(steps.stage, done, steps.total, steps.unit)


def _resolutions(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"resolution_{threshold}": found["last_shell"]
        for threshold, found in numbers["resolution"].items()
    }
