"""What RELION's Select job and class_ranker write about the classes of a Class2D job.

``backup_selection.star`` has 0 or 1 for each class in the model's order, ``class_averages.star`` the
rows of the classes that are kept, ``particles.star`` their particles. File names and tables are those
of RELION's pipeline_jobs.cpp and class_ranker.cpp. Rows are copied verbatim; what is added stands in
columns behind them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np

from cryoray.errors import InputError, InternalError
from cryoray.formats import rln
from cryoray.formats.files import replacing
from cryoray.formats.relion import VERSION, image_table, loop
from cryoray.formats.relion import Optimiser as Optimiser
from cryoray.formats.relion import read_optimiser as read_optimiser
from cryoray.formats.rows import Source
from cryoray.formats.star import Block, StarFile, parse
from cryoray.formats.verdicts import write_partition

_MODEL = re.compile(r"(_half\d)?_model\.star$")
_CLASSES = "model_classes"
BACKUP, AVERAGES, PARTICLES = "backup_selection.star", "class_averages.star", "particles.star"


def is_model(source: Source) -> bool:
    """Whether the rows are all the classes of a job, so that class numbers are their places."""
    return (
        source.kind == "class2d"
        and source.path.suffix == ".star"
        and image_table(parse(source.path), "class2d").name == _CLASSES
    )


def particles_of(model: Path) -> Path | None:
    """The particles that were classified, beside the ``*_model.star`` of the same iteration."""
    data = model.with_name(_MODEL.sub("_data.star", model.name))
    return data if data != model and data.is_file() else None


def model_of(data: Path) -> Path:
    """The model beside the ``*_data.star`` of the same iteration.

    Raises:
        InputError: there is none.
    """
    name = re.sub(r"_data\.star$", "_model.star", data.name)
    model = data.with_name(name)
    if name == data.name or not model.is_file():
        raise InputError(
            "has no *_model.star of its classes beside it",
            file=data,
            remedy="give a Class2D job, or its run_itNNN_data.star, or judge particles alone",
        )
    return model


def class_numbers(data: StarFile) -> np.ndarray | None:
    """int64 [n]: the class of each particle, from 1; 0 where it has none; None without the column."""
    table = image_table(data, "particle")
    if rln.CLASS_NUMBER not in table.columns:
        return None
    return np.nan_to_num(table.numbers(rln.CLASS_NUMBER), posinf=0, neginf=0).astype(np.int64)


def particle_counts(numbers: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes]: the particles of each class by hard assignment.

    A class's ``rlnClassDistribution`` is a sum of probabilities; the particles that a selection gives
    are those whose most probable class it is (3dem/relion issue 815).
    """
    return np.bincount(numbers[(numbers >= 1) & (numbers <= classes)], minlength=classes + 1)[1:]


def write_class_selection(
    out: Path,
    source: Source,
    keep: np.ndarray,
    *,
    score: np.ndarray | None = None,
    data: Path | None = None,
    averages: str = AVERAGES,
    particles: str = PARTICLES,
) -> int | None:
    """Write what RELION's Select job writes of a choice of classes.

    Args:
        out: folder, made where it is missing.
        source: all the classes of a job (`is_model`).
        keep: bool [classes].
        score: float32 [classes] for the column rlnPredictedClassScore; None leaves it out.
        data: the particles; None: those beside the model, if any.
        averages: name of the table of the classes kept. Its column rlnParticleNr counts the particles
            of each by hard assignment, where the particles are there.
        particles: name of the file of their particles; not written where there are none beside.

    Returns:
        particles written, None without a file of them.

    Raises:
        FormatError: a file is gone, changed, or damaged.
    """
    model = parse(source.path)
    table = image_table(model, "class2d")
    data = data or particles_of(source.path)
    star = parse(data) if data else None
    numbers = class_numbers(star) if star else None
    added: dict[str, list[str]] = {}
    if score is not None:
        added["rlnPredictedClassScore"] = [f"{value:.9g}" for value in score.tolist()]
    if numbers is not None:
        counts = particle_counts(numbers, len(table))
        added["rlnParticleNr"] = [str(count) for count in counts.tolist()]
    write_backup(out, keep)
    _write(out / averages, b"\n" + _with_columns(table, "", np.flatnonzero(keep), added))
    if star is None or numbers is None:
        return None
    rows = np.flatnonzero(np.isin(numbers, np.flatnonzero(keep) + 1))
    if len(rows) != int(counts[keep].sum()):
        raise InternalError(f"{len(rows):,} particles of {counts[keep].sum():,} would be written")
    with replacing(out / particles) as temporary, temporary.open("wb") as file:
        write_partition(file, star, "particle", rows)
    return len(rows)


def write_backup(out: Path, keep: np.ndarray) -> None:
    """Write ``backup_selection.star``: 1 for each class that is kept (bool [classes]), 0 for others."""
    _write(out / BACKUP, b"\n" + loop("", [rln.SELECTED], [["01"[kept]] for kept in keep.tolist()]))


def write_ranking(
    out: Path, root: str, optimiser: Optimiser, score: np.ndarray, names: str | None = None
) -> None:
    """Write ``ROOT_model.star`` with rlnClassScore, ``ROOT_data.star`` and ``ROOT_optimiser.star``.

    Args:
        out: folder, made where it is missing.
        root: what the file names begin with.
        optimiser: the iteration that was ranked.
        score: float32 [classes].
        names: the folder as RELION names it in the optimiser's file, with its ``/``; None: ``out``.
    """
    names = f"{out}/" if names is None else names
    classes = image_table(parse(optimiser.model), "class2d")
    added = {rln.CLASS_SCORE: [f"{value:.9g}" for value in score.tolist()]}
    _write(
        out / f"{root}_model.star",
        VERSION + _with_columns(classes, _CLASSES, np.arange(len(classes)), added),
    )
    data = parse(optimiser.data)
    with replacing(out / f"{root}_data.star") as temporary, temporary.open("wb") as file:
        write_partition(file, data, "particle", np.arange(len(image_table(data, "particle"))))
    table = next(b for b in parse(optimiser.path).blocks if rln.MODEL_STAR_FILE in b.columns)
    text = BytesIO()
    table.copy(text)
    given = text.getvalue()
    for column, end in ((rln.MODEL_STAR_FILE, "model"), (rln.EXPERIMENTAL_DATA_STAR_FILE, "data")):
        head, tail = re.split(rb"(?m)^_%s\s.*$" % column.encode(), given)
        given = head + f"_{column:<45} {names}{root}_{end}.star".encode() + tail
    _write(out / f"{root}_optimiser.star", VERSION + given + b"\n")


def _write(path: Path, text: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(text)


def _with_columns(
    table: Block, name: str, rows: np.ndarray, added: Mapping[str, list[str]]
) -> bytes:
    """Rows of a small table verbatim, with columns behind them: one text for each row of the table."""
    lines = [
        [table.row_text(row).rstrip(), *(texts[row] for texts in added.values())]
        for row in rows.tolist()
    ]
    return loop(name, [*table.columns, *added], lines)
