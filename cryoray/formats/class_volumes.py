"""The classes of a 3D classification: maps, what the job's files say of each, and their particles.

A job is RELION's Class3D job, or a folder of maps with a table ``classes.csv`` beside them: column
``volume`` names a map, and ``particles``, ``resolution`` (Å), ``completeness``, ``rotations`` (°) and
``translations`` (Å) say what is known of it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cryoray.errors import FormatError, InputError, printable
from cryoray.formats import relion, rln
from cryoray.formats.class_selection import class_numbers, model_of, particle_counts, particles_of
from cryoray.formats.files import changed, replacing, without_apostrophe
from cryoray.formats.opening import way_out
from cryoray.formats.rows import Source, resolve
from cryoray.formats.star import StarFile, as_objects, parse
from cryoray.formats.verdicts import write_partition
from cryoray.records import Verdicts

TABLE = "classes.csv"
#: The file of the particles of each verdict's classes: RELION's users look for particles.star.
PARTICLES: Mapping[str, str] = {
    "keep": "particles.star",
    "discard": "particles_discarded.star",
    "review": "particles_review.star",
    "quarantined": "particles_quarantined.star",
}
#: RELION's columns by what they are here. Of `metadata_label.h`; 3.0 has translations in pixels.
_COLUMNS: Mapping[str, str] = {
    "distribution": rln.CLASS_DISTRIBUTION,
    "resolution": rln.ESTIMATED_RESOLUTION,
    "completeness": "rlnOverallFourierCompleteness",
    "rotations": rln.ACCURACY_ROTATIONS,
    "translations": rln.ACCURACY_TRANSLATIONS_ANGST,
}


@dataclass(frozen=True, eq=False)
class VolumeClasses:
    """The classes of a job; n is their number.

    Attributes:
        path: the ``*_model.star``, or the folder of maps.
        images: str objects [n], the maps' names as the job has them.
        volumes: absolute paths of the maps; they may be missing.
        statistics: float64 [n] by name (``distribution``, ``resolution`` …), NaN where it is not known.
        data: the particles that were classified; None where they are not there.
        number: int64 [particles], the class of each, from 1; None without ``data``.
        diameter: of the particles, Å; None where the job does not say.
        pixel_size: of the maps, Å/px; None: their headers'.
    """

    path: Path
    images: np.ndarray
    volumes: tuple[Path, ...]
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)
    data: Path | None = None
    number: np.ndarray | None = None
    diameter: float | None = None
    pixel_size: float | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def particles(self) -> np.ndarray:
        """float64 [n]: particles of each class by hard assignment, NaN where nothing tells."""
        if self.number is not None:
            return particle_counts(self.number, len(self)).astype(np.float64)
        return self.statistics.get("particles", np.full(len(self), np.nan))

    @property
    def share(self) -> np.ndarray:
        """float64 [n]: of the particles, as counted, else as the job says; NaN where nothing tells."""
        counted = self.particles
        total = np.nansum(counted)
        if total > 0:
            return counted / total
        return self.statistics.get("distribution", np.full(len(self), np.nan))

    @property
    def source(self) -> Source:
        """The classes as rows of a source, which verdicts are written about."""
        n = len(self)
        return Source(
            path=self.path,
            kind="class2d",
            images=self.images,
            stacks=self.volumes,
            stack=np.arange(n, dtype=np.int32),
            frame=np.zeros(n, np.int64),
            micrograph=np.full(n, "", object),
            pixel_size=np.full(n, self.pixel_size or np.nan, np.float32),
            format="star" if self.path.suffix == ".star" else "stack",
        )


def open_volumes(path: Path) -> VolumeClasses:
    """The classes of a 3D classification.

    Args:
        path: the job's folder, its ``*_model.star``, ``*_data.star`` or ``*_optimiser.star``; or a folder
            of maps.

    Raises:
        InputError: there are none.
        FormatError: a file cannot be read, or the classes are 2D.
    """
    path = Path(path).absolute()
    if path.is_dir():
        models = [
            file
            for file in relion.stars_in(path, "class2d")
            if file.name.endswith("_model.star") and "_half" not in file.name
        ]
        if not models:
            return _of_folder(path)
        if len(models) > 1:
            raise InputError(
                f"holds {len(models)} runs", file=path, remedy=f"give one, such as {models[0].name}"
            )
        return _of_model(models[0])
    if not path.is_file():
        raise InputError("there is no such file or folder", file=path, remedy=way_out(path))
    if path.name.endswith("_optimiser.star"):
        named = relion.read_optimiser(path).model
        return _of_model(named if named.is_file() else path.with_name(named.name))
    if path.name.endswith("_data.star"):
        return _of_model(model_of(path))
    return _of_model(path)


def _of_model(path: Path) -> VolumeClasses:
    star = parse(path)
    classes = relion.image_table(star, "class2d")
    dimension = _one(star, "model_general", rln.REFERENCE_DIMENSIONALITY)
    if dimension != 3:
        raise FormatError(
            "describes no 3D classes", file=path, remedy="give a Class3D job, or --kind class2d"
        )
    statistics = {}
    for name, column in _COLUMNS.items():
        if column in classes.columns:
            statistics[name] = relion.known(classes.numbers(column))
    images = as_objects(classes.read([relion.IMAGE_COLUMNS["class2d"]]).strings.popitem()[1])
    data = particles_of(path)
    optimiser = path.with_name(path.name.replace("_model.star", "_optimiser.star"))
    general = parse(optimiser) if optimiser.is_file() else None
    return VolumeClasses(
        path=path,
        images=images,
        volumes=tuple(
            resolve([str(name) for name in images], path.parent, relion.project(path.parent))
        ),
        statistics=statistics,
        data=data,
        number=class_numbers(parse(data)) if data else None,
        diameter=_one(general, "optimiser_general", rln.PARTICLE_DIAMETER) if general else None,
        pixel_size=_one(star, "model_general", rln.PIXEL_SIZE),
    )


def write_particles(out: Path, classes: VolumeClasses, verdicts: Verdicts) -> dict[str, int] | None:
    """Write the particles by verdict of their class, those of quarantined classes as ``quarantined``.

    Args:
        out: folder, made where it is missing.
        classes: all of the job.
        verdicts: on the classes.

    Returns:
        how many there are of each; None where the job names no particles, and nothing is written.

    Raises:
        FormatError: the file of the particles changed since the job was opened.
    """
    if classes.data is None or classes.number is None:
        return None
    of_class = np.full(len(classes) + 1, "quarantined", object)
    of_class[verdicts.rows + 1] = verdicts.verdict
    fate = of_class[np.where(classes.number <= len(classes), classes.number, 0)]
    star = parse(classes.data)
    if len(relion.image_table(star, "particle")) != len(fate):
        raise changed(classes.data, "its classes were judged")
    for verdict, name in PARTICLES.items():
        with replacing(out / name) as temporary, temporary.open("wb") as file:
            write_partition(file, star, "particle", np.flatnonzero(fate == verdict))
    return {verdict: int((fate == verdict).sum()) for verdict in PARTICLES}


def _one(star: StarFile, table: str, column: str) -> float | None:
    """A positive number of a table with one row; None where there is none."""
    block = star.get(table)
    if block is None or column not in block.columns or not len(block):
        return None
    value = float(block.numbers(column)[0])
    return value if np.isfinite(value) and value > 0 else None


def _of_folder(folder: Path) -> VolumeClasses:
    table = folder / TABLE
    if not table.is_file():
        maps = sorted(folder.glob("*.mrc"))
        if not maps:
            raise InputError(
                "holds no 3D classes",
                file=folder,
                remedy=f"give a Class3D job, or a folder of maps (.mrc), with {TABLE} if more is known",
            )
        names = [printable(file.name) for file in maps]
        return VolumeClasses(folder, np.array(names, object), volumes=tuple(maps))
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise FormatError(
            f"is not a CSV table in UTF-8: {error}",
            file=table,
            remedy="save it again as CSV (UTF-8)",
        ) from error
    short = next((line for line, row in enumerate(rows, 2) if None in (*row, *row.values())), None)
    if short is not None:
        raise FormatError("has fewer or more fields than the first line", file=table, row=short)
    if not rows or "volume" not in rows[0]:
        raise FormatError(
            "has no column volume", file=table, remedy="name the map of each class in it"
        )
    known = [*_COLUMNS, "particles"]
    statistics = {
        name: np.array([_number(row[name], table, line) for line, row in enumerate(rows, 2)])
        for name in known
        if name in rows[0]
    }
    images = np.array([without_apostrophe(row["volume"]) for row in rows], object)
    return VolumeClasses(
        folder, images, tuple(folder / name for name in images.tolist()), statistics=statistics
    )


def _number(text: str | None, table: Path, line: int) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        raise FormatError(
            f"has {text!r} where a number should be", file=table, row=line, remedy="correct it"
        ) from None
