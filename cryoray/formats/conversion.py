"""cryoSPARC's particles and classes as STAR files for RELION 3.1 to 5.

The units and conventions are converted where the table is read (``cryosparc.py``); here is what the two
programs keep in different places. Paths are absolute, since the two have different project folders. A
stack of another name than ``.mrcs`` is named ``N@file.mrc:mrcs``, which makes RELION read it as one.
What RELION keeps for an optics group (cryoSPARC: for each particle) makes the groups, numbered from 1
without gaps, in the order of cryoSPARC's exposure groups, which their names tell; all partitions of a source
have the same optics table.

Coordinates are those of the micrograph that cryoSPARC picked from. Where RELION corrected the movies
anew, its micrographs may be upside down against cryoSPARC's (pyem issues 22 and 81).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cryoray.errors import FormatError, printable
from cryoray.formats import rln
from cryoray.formats.cryosparc import open_joined
from cryoray.formats.files import replacing
from cryoray.formats.relion import IMAGE_COLUMNS, VERSION, field_texts, loop, quoted
from cryoray.formats.rows import Source
from cryoray.formats.star import unwritable

_log = logging.getLogger(__name__)

_TILT = (rln.BEAM_TILT_X, rln.BEAM_TILT_Y)
#: What RELION keeps for an optics group, the first of which numbers them.
_OPTICS = (
    rln.OPTICS_GROUP,
    rln.VOLTAGE,
    rln.SPHERICAL_ABERRATION,
    rln.AMPLITUDE_CONTRAST,
    rln.IMAGE_PIXEL_SIZE,
    rln.IMAGE_SIZE,
    rln.MICROGRAPH_PIXEL_SIZE,
    *_TILT,
)
_NECESSARY = (rln.VOLTAGE, rln.SPHERICAL_ABERRATION, rln.IMAGE_PIXEL_SIZE, rln.IMAGE_SIZE)
#: What RELION keeps for a particle.
_PARTICLE = (
    rln.COORDINATE_X,
    rln.COORDINATE_Y,
    rln.DEFOCUS_U,
    rln.DEFOCUS_V,
    rln.DEFOCUS_ANGLE,
    rln.PHASE_SHIFT,
    rln.CTF_BFACTOR,
    rln.CTF_SCALEFACTOR,
    rln.CTF_MAX_RESOLUTION,
    rln.CTF_FIGURE_OF_MERIT,
    rln.ANGLE_ROT,
    rln.ANGLE_TILT,
    rln.ANGLE_PSI,
    rln.ORIGIN_X_ANGST,
    rln.ORIGIN_Y_ANGST,
    rln.CLASS_NUMBER,
    rln.RANDOM_SUBSET,
)
_CLASS = (rln.CLASS_DISTRIBUTION, rln.ESTIMATED_RESOLUTION)
_WHOLE = (rln.CLASS_NUMBER, rln.RANDOM_SUBSET, rln.IMAGE_SIZE)
#: What has no counterpart in RELION, or none that is known to be right.
_LEFT_OUT = ("ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag", "ctf/shift_A")


def check_convertible(source: Source) -> None:
    """Refuse what RELION could not read.

    Raises:
        FormatError: a particle's table lacks something that RELION needs, in RELION's words.
    """
    missing = [name for name in _NECESSARY if name not in source.metadata]
    if source.kind == "particle" and missing:
        raise FormatError(
            "not all necessary variables defined for RELION's optics table: " + ", ".join(missing),
            file=source.path,
            remedy="put the job's passthrough table beside it, or do without STAR files",
        )


def write_star(
    path: Path,
    source: Source,
    rows: np.ndarray | None = None,
    further: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write rows of a cryoSPARC source as a STAR file.

    Args:
        path: replaced when all is written.
        source: of format ``cs``.
        rows: int64 [k], 0-based, ascending; None for all.
        further: columns of numbers [k] to add.

    Rows of stacks whose path no STAR file can hold are left out, which a warning says.

    Raises:
        FormatError: RELION could not read it.
    """
    check_convertible(source)
    rows = np.arange(len(source)) if rows is None else rows
    further = dict(further or {})
    known = {number: unwritable(str(stack)) for number, stack in enumerate(source.stacks)}
    held = np.array([known.get(number) is None for number in source.stack[rows].tolist()], bool)
    if not held.all():
        number = int(source.stack[rows[~held]][0])
        _log.warning(
            "%s has %d rows less than were chosen: %s %s",
            printable(path),
            np.count_nonzero(~held),
            printable(source.stacks[number]),
            known[number],
        )
        rows, further = rows[held], {name: values[held] for name, values in further.items()}
    names = [_image(source, row) for row in rows.tolist()]
    column = IMAGE_COLUMNS[source.kind]
    kept = _PARTICLE if source.kind == "particle" else _CLASS
    columns = {name: source.metadata[name] for name in kept if name in source.metadata}
    if len(np.unique(columns.get(rln.RANDOM_SUBSET, ()))) == 1:
        del columns[rln.RANDOM_SUBSET]  # all in one half: RELION would refine nothing against it
    texts = [
        [f"{value:.0f}" if name in _WHOLE else f"{value:.6f}" for value in values[rows].tolist()]
        for name, values in columns.items()
    ]
    with replacing(path) as temporary, temporary.open("wb") as file:
        if source.kind == "class2d":
            lines = list(zip(names, *texts, strict=True))
            lines = _with(lines, further, rows)
            file.write(b"\n" + loop("", [column, *columns, *further], lines))
            return
        optics, group = _optics(source)
        for note in _notes(source):
            file.write(f"# {note}\n".encode())
        file.write(VERSION + optics)
        texts.insert(0, [_micrograph(source, row) for row in rows.tolist()])
        texts.insert(1, [str(number) for number in group[rows].tolist()])
        lines = _with(list(zip(names, *texts, strict=True)), further, rows)
        labels = [column, rln.MICROGRAPH_NAME, rln.OPTICS_GROUP, *columns, *further]
        file.write(VERSION + loop("particles", labels, lines))


def _with(
    lines: list[tuple[str, ...]], further: Mapping[str, np.ndarray], rows: np.ndarray
) -> list[tuple[str, ...]]:
    return [(*a, *b) for a, b in zip(lines, field_texts(further, rows), strict=True)]


def _image(source: Source, row: int) -> str:
    if source.stack[row] < 0:
        return "None"
    stack = source.stacks[source.stack[row]]
    kind = "" if stack.suffix == ".mrcs" else ":mrcs"
    return quoted(f"{source.frame[row] + 1:06d}@{stack}{kind}")


def _micrograph(source: Source, row: int) -> str:
    name = str(source.micrograph[row])
    return quoted(name) if name and unwritable(name) is None else "None"


def _optics(source: Source) -> tuple[bytes, np.ndarray]:
    """The optics table, and int64 [n], the group of each row."""
    present = [name for name in _OPTICS if name in source.metadata]
    values = np.stack([source.metadata[name] for name in present], axis=1)
    values = values.round(6)  # as it is written
    whole = np.isfinite(values).all(axis=1)
    code = np.zeros(np.count_nonzero(whole), np.int64)  # column by column: rows at once take long
    for column in values[whole].T:
        steps = np.unique(column, return_inverse=True)[1]
        code = np.unique(code * (steps.max(initial=0) + 1) + steps, return_inverse=True)[1]
    different = values[whole][np.unique(code, return_index=True)[1]]
    group = np.ones(len(source), np.int64)
    group[whole] = code + 1
    table = dict(zip(present, different.T, strict=True))
    exposure = table.pop(rln.OPTICS_GROUP, np.ones(len(different))) - 1
    tilted = any(np.any(table.get(name, 0)) for name in _TILT)
    columns = {
        name: [f"{value:.0f}" if name in _WHOLE else f"{value:.6f}" for value in column.tolist()]
        for name, column in table.items()
        if tilted or name not in _TILT
    }
    lines = [
        (f"{number}", f"exposureGroup{exposure[number - 1]:.0f}", "2", "0", *line)
        for number, line in enumerate(zip(*columns.values(), strict=True), start=1)
    ]
    labels = [rln.OPTICS_GROUP, rln.OPTICS_GROUP_NAME, rln.IMAGE_DIMENSIONALITY]
    labels += [rln.CTF_DATA_ARE_CTF_PREMULTIPLIED, *columns]
    return loop("optics", labels, lines), group


def _notes(source: Source) -> list[str]:
    """What a person should know who goes on in RELION with these particles."""
    joined = open_joined(source.path)
    columns = joined.read([*_LEFT_OUT, "blob/sign"])
    lost = [name for name in _LEFT_OUT if np.nan_to_num(columns.get(name, np.zeros(1))).any()]
    notes = [f"not carried over from cryoSPARC: {', '.join(lost)}"] if lost else []
    if np.any(columns.get("blob/sign", np.ones(1)) < 0):
        notes.append(
            "cryoSPARC says that protein is dark in these images (blob/sign -1), and RELION wants it"
            " bright: relion_image_handler --multiply_constant -1"
        )
    return notes
