"""Particles with poses, in their stacks: read from a source, and summed up for a map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from cryoray.errors import FormatError, InputError
from cryoray.formats import mrc, rln
from cryoray.formats.source import Source
from cryoray.maps import reconstruct
from cryoray.maps.reconstruct import Poses
from cryoray.records import Stack

#: Images read at a time, which bounds memory.
_READ_TOGETHER = 512

_ANGLES = (rln.ANGLE_ROT, rln.ANGLE_TILT, rln.ANGLE_PSI)
_ORIGINS = ((rln.ORIGIN_X_ANGST, rln.ORIGIN_Y_ANGST), (rln.ORIGIN_X, rln.ORIGIN_Y))


@dataclass(frozen=True, slots=True, eq=False)
class Particles:
    """Images with poses, somewhere in stacks; n is their number.

    Attributes:
        stacks: as their headers describe them.
        stack: int32 [n], index into ``stacks``.
        frame: int64 [n], 0-based.
        poses: of all n.
        half: int8 [n], 1 or 2, the source's own; 0 where it says none.
        row: int64 [n], 0-based in the source.
    """

    stacks: tuple[Stack, ...]
    stack: np.ndarray
    frame: np.ndarray
    poses: Poses
    half: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: np.ndarray) -> Particles:
        """Some of them."""
        return replace(
            self,
            stack=self.stack[rows],
            frame=self.frame[rows],
            poses=self.poses[rows],
            half=self.half[rows],
            row=self.row[rows],
        )

    @property
    def box(self) -> int:
        """Side of the images, px."""
        return self.stacks[0].height

    @property
    def bytes(self) -> int:
        """Of their images in memory, as float32."""
        return len(self) * self.box**2 * 4


def particles_of(source: Source, *, in_plane: bool = False) -> Particles:
    """The rows of a source that can be read, with poses and CTF from its metadata.

    Args:
        source: of particles.
        in_plane: psi and origins are enough, as a 2D classification gives them, and the CTF may be absent.

    Raises:
        InputError: it has no poses, CTF or pixel size, or its images differ in size.
        FormatError: no stack of it can be read.
    """
    known, n = source.metadata, len(source)
    needed = _ANGLES[2:] if in_plane else _ANGLES
    missing = [name for name in needed if name not in known]
    origins = next((names for names in _ORIGINS if all(name in known for name in names)), None)
    if missing or origins is None:
        raise InputError(
            f"has no poses ({', '.join(missing or _ORIGINS[0])})",
            file=source.path,
            remedy=f"give the particles of a {'2D classification' if in_plane else '3D refinement'}",
        )
    headers: list[Stack | None] = []
    for path in source.stacks:
        try:
            headers.append(mrc.read_header(path))
        except FormatError:
            headers.append(None)
    counts = np.array([0 if header is None else header.count for header in headers], np.int64)
    there = (source.stack >= 0) & (source.frame < counts[source.stack])
    there[list(source.problems)] = False
    if not there.any():
        raise FormatError("names no image that can be read", file=source.path)
    sizes = {(header.height, header.width) for header in headers if header is not None}
    if len(sizes) > 1 or len(set(sizes.pop())) > 1:
        raise InputError(
            "has images of several sizes, or not square", file=source.path, remedy="rescale them"
        )
    pixels = np.unique(np.round(source.pixel_size[there].astype(float), 4))
    if len(pixels) != 1 or not np.isfinite(pixels[0]):
        which = "no pixel size" if not np.isfinite(pixels).all() else "several pixel sizes"
        raise InputError(
            f"has {which}", file=source.path, remedy="give particles of one pixel size"
        )
    pixel_size = float(source.pixel_size[there][0])
    unit = 1.0 if origins == _ORIGINS[0] else pixel_size
    premultiplied = known.get(rln.CTF_DATA_ARE_CTF_PREMULTIPLIED, np.zeros(n))
    poses = Poses(
        np.stack([known.get(name, np.zeros(n)) for name in _ANGLES], 1),
        np.stack([known[name] for name in origins], 1) * unit,
        _ctf(source, optional=in_plane),
        pixel_size,
        premultiplied=bool(premultiplied[there][0] > 0),
    )
    finite = np.isfinite(poses.angles).all(1) & np.isfinite(poses.origins).all(1)
    rows = np.flatnonzero(there & finite)
    half = known.get(rln.RANDOM_SUBSET, np.zeros(n))
    half = np.where(np.isin(half, (1, 2)), half, 0).astype(np.int8)
    renumber = np.cumsum([header is not None for header in headers]) - 1
    return Particles(
        tuple(header for header in headers if header is not None),
        renumber[source.stack[rows]].astype(np.int32),
        source.frame[rows],
        poses[rows],
        half[rows],
        rows,
    )


def _ctf(source: Source, *, optional: bool) -> np.ndarray | None:
    absent = [
        name
        for name, other in reconstruct.CTF_COLUMNS.items()
        if other is None and name not in source.metadata
    ]
    if absent and optional:
        return None
    if absent:
        raise InputError(
            f"has no {', '.join(absent)}, so the CTF cannot be corrected for",
            file=source.path,
            remedy="give particles with their optics table",
        )
    columns = [
        source.metadata.get(name, np.full(len(source), other, float))
        for name, other in reconstruct.CTF_COLUMNS.items()
    ]
    return np.stack([np.nan_to_num(np.asarray(column, float)) for column in columns], 1)


def read_images(particles: Particles) -> np.ndarray:
    """Float32 [n, box, box], in the particles' order."""
    images = np.empty((len(particles), particles.box, particles.box), np.float32)
    for number in np.unique(particles.stack):
        mine = np.flatnonzero(particles.stack == number)
        mine = mine[np.argsort(particles.frame[mine], kind="stable")]
        images[mine] = mrc.read_frames(particles.stacks[number], particles.frame[mine])
    return images


def summed(particles: Particles) -> np.ndarray:
    """`cryoray.maps.reconstruct.insert` of all of them, read piece by piece."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sums = reconstruct.empty(particles.box).to(device)
    order = np.lexsort((particles.frame, particles.stack))
    for first in range(0, len(order), _READ_TOGETHER):
        some = particles[order[first : first + _READ_TOGETHER]]
        reconstruct.insert(sums, torch.from_numpy(read_images(some)), some.poses)
    return sums.cpu().numpy()
