"""Some rows of a source as a STAR file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryoray.formats.files import replacing
from cryoray.formats.relion import IMAGE_COLUMNS, image_table, quoted
from cryoray.formats.rows import Source
from cryoray.formats.star import parse


def write_star(path: Path, source: Source, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write some rows of a source under other image names, with its optics table.

    Args:
        path: the STAR file to write.
        source: where the rows are; a bare stack's rows have names alone.
        rows: int64 [k], 0-based.
        names: of the images, ``000001@stack.mrcs``.

    Raises:
        ValueError: no STAR file can hold a name.
    """
    column = IMAGE_COLUMNS[source.kind]
    with replacing(path) as partial, partial.open("wb") as file:
        if not source.is_star:
            lines = ["data_particles", "", "loop_", f"_{column} #1", *map(quoted, names), ""]
            file.write("\n".join(lines).encode())
            return
        star = parse(source.path)
        table = image_table(star, source.kind)
        if "optics" in star:
            star["optics"].copy(file)
            file.write(b"\n")
        table.copy_head(file)
        place = table.columns.index(column)
        for row, name in zip(rows.tolist(), names, strict=True):
            file.write(table.with_field(row, place, name) + b"\n")
