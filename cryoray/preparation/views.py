"""From which direction an image is, and in which class it was put: bins in which losses are counted.

Three good images lost in a hundred can be all of one rare view. What a refinement or a classification
said of an image is no feature (the networks shall not learn it), so the prepared set does not have it;
its sources have, where they are still there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cryoray.errors import InputError
from cryoray.formats import rln
from cryoray.formats.source import open_source
from cryoray.preparation.prepared import PreparedSet

#: Twelve bins of equal area on the half sphere of views: a cap, a ring of three and a ring of eight.
#: Least cosine of the tilt, and parts of the circle.
_RINGS = ((11 / 12, 1), (8 / 12, 3), (0.0, 8))

_ANGLES, _CLASS = (rln.ANGLE_ROT, rln.ANGLE_TILT), rln.CLASS_NUMBER
MISSING = "missing"


def views(examples: PreparedSet, rows: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
    """The bins of some rows of a set.

    Args:
        examples: the set.
        rows: int64 [n].

    Returns:
        ``orientation`` and ``class``, as far as they are known, each object [n] of str, where a project's
        name stands before what is its own; and a sentence for each source that could not be asked.
    """
    if examples.kind != "particle":
        return {}, []  # a class is an average of one view
    complaints = []
    projects = examples.groups("project")[rows].astype(str)
    several = len(np.unique(projects)) > 1
    names = {name: np.full(len(rows), MISSING, object) for name in ("orientation", "class")}
    for part, first in _parts(examples):
        here = np.flatnonzero((rows >= first) & (rows < first + part["counts"]["images"]))
        if not len(here):
            continue
        try:
            source = open_source(part["source"])
        except (InputError, OSError) as error:
            complaints.append(str(error))
            continue
        place = {str(image): row for row, image in enumerate(source.images)}
        at = np.array(
            [place.get(n, -1) for n in examples.table["image"].take(rows[here]).to_pylist()]
        )
        here, at = here[at >= 0], at[at >= 0]
        before = f"{projects[here[0]]}, " if several and len(here) else ""
        if set(_ANGLES) <= source.metadata.keys():
            rot, tilt = (source.metadata[name][at] for name in _ANGLES)
            names["orientation"][here] = [
                name if name == MISSING else before + name for name in directions(rot, tilt)
            ]
        if _CLASS in source.metadata:
            number = source.metadata[_CLASS][at]
            names["class"][here] = [
                f"{before}class {n:.0f}" if np.isfinite(n) else MISSING for n in number
            ]
    return {view: v for view, v in names.items() if (v != MISSING).any()}, complaints


def directions(rot: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """Name the bin of each viewing direction, object [n], of RELION's angles in degrees, [n].

    Opposite directions are one: their projections are mirror images of each other.
    """
    cosine = np.cos(np.radians(tilt))
    turn = np.where(cosine < 0, rot + 180, rot) % 360
    names = np.full(len(turn), MISSING, object)
    todo = np.isfinite(cosine) & np.isfinite(turn)
    above = 0
    for least, parts in _RINGS:
        below = round(np.degrees(np.arccos(least)))
        ring = todo & (np.abs(cosine) >= least)
        sector = (turn[ring] // (360 / parts)).astype(int)
        names[ring] = [
            f"tilt {above} to {below}°"
            + (f", rot {s * 360 // parts} to {(s + 1) * 360 // parts}°" if parts > 1 else "")
            for s in sector
        ]
        todo &= ~ring
        above = below
    return names


def _parts(examples: PreparedSet) -> Iterator[tuple[dict[str, Any], int]]:
    first = 0
    for part in examples.parts:
        yield part, first
        first += part["counts"]["images"]
