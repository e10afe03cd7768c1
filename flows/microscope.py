"""A microscope that records a collection again: stack after stack, each with its rows of the STAR file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cryoray.formats.mrc import StackWriter, read_frames, read_header
from cryoray.formats.rows import Source
from cryoray.formats.subset import write_star


def record(source: Source, live: Path) -> Iterator[tuple[Path, np.ndarray]]:
    """Write the collection into ``live``, one stack for each micrograph (for each stack, where unknown).

    The STAR file ``STEM_extract.star`` is there before ``STEM.mrcs`` is; either appears whole.

    Args:
        source: the collection, whose images can all be read.
        live: folder to write into.

    Yields:
        the stack, and int64 [k], the source's row of each image in it.
    """
    for stem, rows in exposures(source):
        stack = live / f"{stem}.mrcs"
        names = [f"{frame:06d}@{stack.name}" for frame in range(1, len(rows) + 1)]
        write_star(live / f"{stem}_extract.star", source, rows, names)
        headers = {index: read_header(source.stacks[index]) for index in set(source.stack[rows])}
        first = headers[source.stack[rows[0]]]
        with StackWriter(
            stack,
            first.height,
            first.width,
            "float16" if first.dtype.endswith("f2") else "float32",
            first.pixel_size or float(source.pixel_size[rows[0]]),
        ) as writer:
            for index, frame in zip(source.stack[rows], source.frame[rows], strict=True):
                writer.append(read_frames(headers[index], np.array([frame])))
        yield stack, rows


def exposures(source: Source) -> Iterator[tuple[str, np.ndarray]]:
    """Name and rows (int64 [k]) of each micrograph, in the order in which micrographs are first mentioned."""
    names = np.where(source.micrograph == "", source.stack.astype(str), source.micrograph)
    _, first, which = np.unique(names.astype(str), return_index=True, return_inverse=True)
    for number, group in enumerate(np.argsort(first), start=1):
        yield f"exposure_{number:04d}", np.flatnonzero(which == group)
