"""Maps: one cubic MRC volume, read whole and written whole."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np

from cryoray.errors import FormatError
from cryoray.formats.files import replacing
from cryoray.formats.mrc import read_map


def read_volume(path: Path) -> tuple[np.ndarray, float | None]:
    """A map and its voxel size, whatever the order of its axes in the file.

    Returns:
        float32 [side, side, side], z, y, x; and Å/px, None where the header has none.

    Raises:
        FormatError: it cannot be read, is no cube, or has voxels that are not numbers.
    """
    volume, pixel_size = read_map(Path(path))
    if len(set(volume.shape)) > 1:
        raise FormatError(
            f"is not a cubic map: {' × '.join(map(str, volume.shape[::-1]))} voxels",
            file=path,
            remedy="give a map as RELION, cryoSPARC or EMDB have it",
        )
    if not np.isfinite(volume).all():
        raise FormatError("has voxels that are not numbers", file=path, remedy="write it again")
    return volume, pixel_size


def write_volume(path: Path, volume: np.ndarray, pixel_size: float) -> Path:
    """Write a map [z, y, x] as float32, its voxel size in Å/px; the name appears when it is whole."""
    with (
        replacing(Path(path)) as temporary,
        mrcfile.new(temporary, np.ascontiguousarray(volume, np.float32)) as file,
    ):
        file.voxel_size = pixel_size
        file.header.label[0] = "cryoray"  # in place of the date: the same map is the same file
    return Path(path)
