"""What RELION needs to extract particles again from their micrographs, and what it would stumble over.

Its Extract job (preprocessing.cpp and pipeline_jobs.cpp, 3.1 to 5; 3.1.3 was tried) takes a particle to be
of a micrograph if the particle's rlnMicrographName contains the micrograph's, the job's folder left out.
Re-centring moves its coordinates by the whole px of rlnOriginXAngst and rlnOriginYAngst, and
the rest stays its origin. What of a box is outside the micrograph is filled with the nearest px; where all of
one is outside, the job fails. Only helical segments near an edge are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from cryoray.errors import InputError
from cryoray.formats import rln
from cryoray.formats.files import replacing
from cryoray.formats.mrc import read_header
from cryoray.formats.relion import image_table
from cryoray.formats.star import parse
from cryoray.formats.verdicts import write_partition

_NAME, _PIXEL_SIZE = rln.MICROGRAPH_NAME, rln.MICROGRAPH_PIXEL_SIZE
#: Px of the micrograph, and Å.
_PLACE, _ORIGIN = (
    (rln.COORDINATE_X, rln.COORDINATE_Y),
    (rln.ORIGIN_X_ANGST, rln.ORIGIN_Y_ANGST),
)
_GIVE = "give workflow.micrographs, a STAR file of theirs"


class MissingMicrographsError(InputError):
    """Particles cannot be extracted again for want of their micrographs; they can go on as they are."""


@dataclass(frozen=True, slots=True)
class Micrographs:
    """What a STAR file of micrographs says.

    Attributes:
        star: the file.
        pixel_size: of the first optics group, Å/px.
        names: as the file has them, by what RELION compares: the name without the job's folder.
    """

    star: Path
    pixel_size: float
    names: Mapping[str, str]


def read_micrographs(star: Path) -> Micrographs:
    """Read a STAR file of micrographs, as the jobs from Import to CtfFind write it.

    Raises:
        MissingMicrographsError: there is no such file, it has no micrographs with their pixel size, or
            one of them twice.
    """
    if not star.is_file():
        raise MissingMicrographsError("is not there", file=star, remedy=_GIVE)
    tables = parse(star)
    optics, table = tables.get("optics"), tables.with_column(_NAME, prefer=("micrographs",))
    if optics is None or table is None or _PIXEL_SIZE not in optics.columns:
        raise MissingMicrographsError(
            "has no micrographs with their pixel size, as RELION writes it since 3.1",
            file=star,
            remedy=_GIVE,
        )
    names = {_compared(name): name for name in table.column(_NAME).tolist()}
    if len(names) < len(table):
        raise MissingMicrographsError(
            "has a micrograph twice, so that RELION would extract its particles twice",
            file=star,
            remedy=_GIVE,
        )
    return Micrographs(star, float(optics.numbers(_PIXEL_SIZE)[0]), names)


def _compared(name: str) -> str:
    """A micrograph's name without the job's folder."""
    return re.sub(r"^.*?/job\d+/", "", name)


def extractable(project: Path, particles: Path, micrographs: Micrographs, box: int) -> np.ndarray:
    """Which particles have something of their micrograph in their box once it is centred on them.

    Args:
        project: RELION's project folder, which names are relative to.
        particles: a STAR file with their micrographs, coordinates and origins, of RELION 3.1 or newer.
        micrographs: theirs, and perhaps others.
        box: px of the micrographs.

    Returns:
        bool [n], in the order of the file.

    Raises:
        MissingMicrographsError: a column or a micrograph is not there, or RELION would take particles of
            one micrograph to be of another.
    """
    table = image_table(parse(particles), "particle")
    for column in (_NAME, *_PLACE, *_ORIGIN):
        if column not in table.columns:
            raise MissingMicrographsError(
                f"has no {column}, without which particles are not found in micrographs",
                file=particles,
            )
    columns = table.read([_NAME], [*_PLACE, *_ORIGIN])
    of = columns.strings[_NAME].to_numpy(zero_copy_only=False)
    names, which = np.unique(of, return_inverse=True)
    _check_distinct(micrographs, names)
    listed = [micrographs.names.get(_compared(name)) for name in names]
    files = [None if name is None else project / name for name in listed]
    gone = [
        name for name, file in zip(names, files, strict=True) if file is None or not file.is_file()
    ]
    if gone:
        raise MissingMicrographsError(
            f"{len(gone):,} of the {len(names):,} micrographs of the particles are not listed or not"
            f" there, {gone[0]} the first of them",
            file=micrographs.star,
            remedy=_GIVE,
        )
    headers = [read_header(file) for file in files if file is not None]
    size = np.array([(header.width, header.height) for header in headers]).reshape(-1, 2)[which]
    place, origin = (
        np.stack([columns.numbers[name] for name in both], 1) for both in (_PLACE, _ORIGIN)
    )
    origin /= micrographs.pixel_size
    centre = np.trunc(place - np.trunc(origin + np.copysign(0.5, origin)))
    first = centre - box // 2
    return np.asarray(((first < size) & (first + box > 0)).all(1))


def _check_distinct(micrographs: Micrographs, names: np.ndarray) -> None:
    """RELION takes particles of 11.mrc to be of 1.mrc as well."""
    known = {_compared(name) for name in (*micrographs.names, *names)}
    # Backwards and sorted, a name is followed by those that end in it, and the nearest is enough.
    for one, longer in pairwise(sorted(name[::-1] for name in known)):
        if longer.startswith(one):
            raise MissingMicrographsError(
                f"RELION would take particles of {longer[::-1]} to be of {one[::-1]}, too, since"
                " that name is part of the other",
                file=micrographs.star,
                remedy="rename the micrographs, or extract by hand",
            )


def write_some(into: Path, particles: Path, kept: np.ndarray) -> None:
    """Write the particles that are ``kept`` [n], verbatim, as a STAR file of their own."""
    star = parse(particles)
    with replacing(into) as temporary, temporary.open("wb") as file:
        write_partition(file, star, "particle", np.flatnonzero(kept))
