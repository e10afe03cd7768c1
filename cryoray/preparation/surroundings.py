"""Where a particle lies in its micrograph: how far from the next particle, how far from the edge.

Both are in box sizes, the unit that travels best between projects: a box is chosen to suit the
particle, so that a neighbour half a box away is in the picture, whatever the pixel size.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy.spatial import cKDTree

from cryoray.errors import FormatError
from cryoray.formats import rln
from cryoray.formats.mrc import read_header
from cryoray.formats.rows import resolve
from cryoray.formats.source import Source
from cryoray.records import Stack

#: Columns that are made here; a source that already has them keeps its own.
NEIGHBOUR_DISTANCE, EDGE_DISTANCE = "neighbourDistance", "edgeDistance"

#: Micrographs looked for before it is taken that the project does not have them.
_TRIED = 5
#: Micrographs whose header costs nothing: a compressed one would be unpacked for it.
_PLAIN = (".mrc", ".mrcs")


def surroundings(source: Source) -> dict[str, np.ndarray]:
    """Distances to the nearest particle of the same micrograph and to the micrograph's edge.

    All rows of the source are neighbours, whichever are asked for. The micrograph's size and pixel
    size are what the source says, else what the micrograph's own header does.

    Args:
        source: of particles.

    Returns:
        ``NEIGHBOUR_DISTANCE`` and ``EDGE_DISTANCE``, float64 [n], box sizes; NaN where unknown, or
        where a particle is alone. Empty where the source has no coordinates.
    """
    known = source.metadata
    if not {rln.COORDINATE_X, rln.COORDINATE_Y} <= known.keys():
        return {}
    at = np.stack([known[rln.COORDINATE_X], known[rln.COORDINATE_Y]], axis=1)
    encoded = pa.array(source.micrograph, pa.string()).dictionary_encode()
    names, micrograph = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    named = np.array([bool(name) for name in names], bool)
    placed = np.isfinite(at).all(axis=1) & named[micrograph]
    sizes = _sizes(source, names)
    width, height = (known.get(f"micrograph{side}") for side in ("Width", "Height"))
    if width is None or height is None:
        width, height = sizes.width[micrograph], sizes.height[micrograph]
    pixel = _first(
        known.get(rln.MICROGRAPH_PIXEL_SIZE),
        sizes.pixel_size[micrograph],
        known.get(rln.MICROGRAPH_ORIGINAL_PIXEL_SIZE),
    )
    boxes = pixel / _box(source)  # that a micrograph's pixel is
    x, y = at.T
    edge = np.minimum(np.minimum(x, width - x), np.minimum(y, height - y))
    return {
        NEIGHBOUR_DISTANCE: _nearest(at, np.where(placed, micrograph, -1)) * boxes,
        EDGE_DISTANCE: np.where(placed, edge * boxes, np.nan),
    }


def _nearest(at: np.ndarray, group: np.ndarray) -> np.ndarray:
    """float64 [n]: distance of each point to the nearest other of its group; NaN in group -1."""
    nearest = np.full(len(at), np.nan)
    order = np.argsort(group, kind="stable")
    order = order[np.searchsorted(group[order], 0) :]
    if not len(order):
        return nearest
    for some in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(some) > 1:
            nearest[some] = cKDTree(at[some]).query(at[some], k=2)[0][:, 1]
    return nearest


def _first(*values: np.ndarray | None) -> np.ndarray:
    """The first of several columns that is a positive number, row by row."""
    found = np.array(np.nan)
    for value in reversed(values):
        if value is not None:
            found = np.where(np.isfinite(value) & (value > 0), value, found)
    return found


def _box(source: Source) -> np.ndarray:
    """Side of the particle images, Å: what the source says, else the first stack that is there."""
    stated = source.metadata.get(rln.IMAGE_SIZE)
    if stated is not None and np.isfinite(source.pixel_size).all():
        return _first(stated) * source.pixel_size
    first = next(filter(None, map(_header, source.stacks[:_TRIED])), None)
    side = np.array(np.nan if first is None else first.width)
    pixel_size = np.array(np.nan if first is None else first.pixel_size or np.nan)
    return _first(stated, side) * _first(source.pixel_size, pixel_size)


class _Sizes(NamedTuple):
    width: np.ndarray  # float64, px, NaN where unknown
    height: np.ndarray
    pixel_size: np.ndarray  # Å/px


def _sizes(source: Source, names: list[str]) -> _Sizes:
    """What the headers of the micrographs say, each read once; NaN where there is none."""
    sizes = _Sizes(*np.full((3, len(names)), np.nan))
    there = [at for at, name in enumerate(names) if name]
    folder = source.path if source.path.is_dir() else source.path.parent
    tried = resolve((names[at] for at in there[:_TRIED]), folder)
    if not any(path.is_file() for path in tried):
        return sizes
    for at, path in zip(there, resolve((names[at] for at in there), folder), strict=True):
        header = _header(path) if path.suffix in _PLAIN and path.is_file() else None
        if header is not None:
            sizes.width[at], sizes.height[at] = header.width, header.height
            sizes.pixel_size[at] = header.pixel_size or np.nan
    return sizes


def _header(path: Path) -> Stack | None:
    try:
        return read_header(path)
    except FormatError:
        return None
