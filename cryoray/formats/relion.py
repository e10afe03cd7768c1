"""RELION's STAR files as sources: which table holds the images, what they are called, where they lie."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryoray.errors import FormatError, printable
from cryoray.formats import mrc, rln
from cryoray.formats.class_scores import FEATURES, SUBIMAGES, features_table
from cryoray.formats.rows import Source, exists, resolve, unique
from cryoray.formats.star import MALFORMED, Block, Columns, StarFile, as_objects, parse
from cryoray.formats.star import quoted as quoted
from cryoray.records import Kind

_log = logging.getLogger(__name__)

#: What RELION 3.1 to 5 read; a newer number would stop an older RELION.
VERSION = b"\n# version 30001\n\n"
#: What RELION writes for a number that it does not know; some of its programs write it negative.
UNKNOWN = 999.0
#: Columns that name an image, by kind.
IMAGE_COLUMNS: Mapping[Kind, str] = {"particle": rln.IMAGE_NAME, "class2d": rln.REFERENCE_IMAGE}
#: Tables in which RELION 3.1 to 5, 3.0 and 1.x keep particles; and classes, in a model or a selection.
_TABLES: Mapping[Kind, tuple[str, ...]] = {
    "particle": ("particles", "images", ""),
    "class2d": ("model_classes", ""),
}
#: Without these in the optics table, RELION stops.
NECESSARY_OPTICS = (
    (rln.VOLTAGE,),
    (rln.SPHERICAL_ABERRATION,),
    (rln.IMAGE_PIXEL_SIZE, rln.MICROGRAPH_PIXEL_SIZE, rln.MICROGRAPH_ORIGINAL_PIXEL_SIZE),
)
_SELECTION = re.compile(rf"_selected\.star$|^backup_selection\.star$|{FEATURES.pattern}")
#: run_it025_data.star, run_ct25_it030_data.star (continued), run_data.star (the end of a refinement)
_ITERATION = re.compile(r"(?:_ct(\d+))?(?:_it(\d+))?_(?=[a-z0-9]+\.star$)")


#: Labels that RELION keeps as text (metadata_label.h), however much a value looks like a number.
_TEXT = re.compile(r"(Name|Image|File|Mask|Comment)$")
#: Tables and columns that only tilt-series data have: RELION 4 and 5, Warp and M.
_TOMOGRAPHY = re.compile(r"rlnTomo[A-Z]|rlnCtfImage$|rlnSubtomogram|rlnCenteredCoordinateZAngst$")
_NOT_UTF8 = "has an image name with bytes that are not UTF-8: rename the file"


_ZERO = re.compile(r"0+@")
_LOOKED_AT = 8  # stacks whose headers are held against the optics table
_HEAD = 1 << 16  # bytes in which a file's version is looked for
_WITH_OPTICS = 30000  # the version of STAR files since RELION 3.1


def known(values: np.ndarray) -> np.ndarray:
    """Numbers as they are, NaN where RELION wrote that it does not know: 999, -999, or an infinity.

    Only of columns in which 999 is no measurement: of a resolution, not of a coordinate.

    Args:
        values: numbers, of any shape.

    Returns:
        float64 of the same shape.
    """
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values) & (np.abs(values) != UNKNOWN), values, np.nan)


class Optimiser(NamedTuple):
    """What an ``optimiser.star`` names: the files of one iteration, which may be missing."""

    path: Path
    model: Path
    data: Path


def read_optimiser(path: Path) -> Optimiser:
    """The model and the particles of an iteration.

    Raises:
        FormatError: it cannot be read, or names no model or no particles.
    """
    path = Path(path).absolute()
    star = parse(path)
    found: list[Path] = []
    for column in (rln.MODEL_STAR_FILE, rln.EXPERIMENTAL_DATA_STAR_FILE):
        table = next((b for b in star.blocks if not b.is_loop and column in b.columns), None)
        name = table.fields(0)[table.columns.index(column)] if table else ""
        if not name:
            raise FormatError(
                f"names no {column}", file=path, remedy="give the run_itNNN_optimiser.star of a job"
            )
        found += resolve([name], path.parent, project(path.parent))
    return Optimiser(path, *found)


def open_star(path: Path, kind: Kind) -> Source:
    """The rows of a STAR file's table of images; of an optimiser, those of the file that it names.

    Raises:
        FormatError: it cannot be read, or has no images of this kind.
    """
    star = parse(path)
    if "optimiser_general" in star:
        path = _of_optimiser(path, kind)
        star = parse(path)
    _refuse_volumes(star)
    table, image_column = _images(star, kind)
    _refuse_tomograms(star, table)
    texts = [name for name in (image_column, rln.MICROGRAPH_NAME) if name in table.columns]
    if not len(table):
        raise FormatError(f"has no rows in its table data_{table.name}", file=path)
    columns = table.read(texts, _numeric(table, texts))
    _mention_texts(path, columns)
    metadata = columns.numbers
    metadata.update(_optics(star, table, metadata))
    frame, names, stack = split_names(columns.strings[image_column])
    unusable = {
        **dict.fromkeys(columns.undecoded.get(image_column, ()), _NOT_UTF8),
        **columns.malformed,
    }
    bad = list(unusable)
    frame[bad], stack[bad] = -1, -1
    found = resolve(names, path.parent, project(path.parent))
    if kind == "class2d" and not any(map(exists, found)):
        found = [_beside(path, stack) for stack in found]
    stacks, index = unique(found)
    stack = np.where(stack < 0, -1, index[stack]) if len(index) else stack
    images = as_objects(columns.strings[image_column])
    refuse_zero_based(path, images, frame, np.flatnonzero(stack < 0))
    problems = {
        int(row): f"{images[row]!r} names no image, which would read 000001@stack.mrcs"
        if images[row]
        else f"has no {image_column}"
        for row in np.flatnonzero(stack < 0)
    }
    problems |= unusable
    return Source(
        path=path,
        format="star",
        kind=kind,
        images=images,
        stacks=stacks,
        stack=stack.astype(np.int32),
        frame=frame,
        micrograph=_micrographs(columns, image_column),
        pixel_size=_pixel_size(star, metadata, len(images)),
        metadata=metadata,
        problems=problems,
        whole=_whole(columns.strings[image_column]),
    )


def _whole(names: pa.ChunkedArray) -> np.ndarray | None:
    """Bool [n]: names of files without the number of an image in them; None where all have one."""
    alone = pc.invert(pc.match_substring(names, "@"))
    return alone.to_numpy() if pc.any(alone).as_py() else None


def _images(star: StarFile, kind: Kind) -> tuple[Block, str]:
    """The table of images and its column of them; of a class ranker's features, what was cut out."""
    features = features_table(star) if kind == "class2d" else None
    if features is not None and SUBIMAGES in features.columns:
        return features, SUBIMAGES
    return image_table(star, kind), IMAGE_COLUMNS[kind]


def _micrographs(columns: Columns, image_column: str) -> np.ndarray:
    """Object [n]: what rows are of; of images cut from classes the job, which must not be split."""
    if image_column == SUBIMAGES:
        names = columns.strings[SUBIMAGES].to_pylist()
        return np.array([str(PurePosixPath(name).parent) for name in names], object)
    if rln.MICROGRAPH_NAME in columns.strings:
        return as_objects(columns.strings[rln.MICROGRAPH_NAME])
    return np.full(len(columns.strings[image_column]), "", object)


def _beside(model: Path, stack: Path) -> Path:
    """The averages of a model that was copied out of its job, as EMPIAR-10812 has them: beside it."""
    run = model.name.removesuffix("_model.star")
    tried = (stack.name, f"{run}_classes.mrcs", f"{run}_class.mrcs")
    files = (model.with_name(name) for name in tried) if run != model.name else iter(())
    return next((file for file in files if exists(file)), stack)


def _numeric(table: Block, texts: Sequence[str]) -> list[str]:
    """The columns of numbers; what RELION keeps as text is none, even where it looks like one."""
    names = dict.fromkeys(table.columns)
    return table.numeric([name for name in names if name not in texts and not _TEXT.search(name)])


def _mention_texts(path: Path, columns: Columns) -> None:
    for name, (row, text) in columns.texts.items():
        _log.warning(
            "%s, row %d: %s is %r, which is not a number; it counts as missing, as do others like it",
            path,
            row + 1,
            name,
            text,
        )


def _optics(
    star: StarFile, table: Block, metadata: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The optics table's numbers for each row, where the row does not have its own."""
    optics = star.get("optics")
    if optics is None or not len(optics) or optics is table:
        return {}
    names = [
        name
        for name in _numeric(optics, ())
        if name != rln.OPTICS_GROUP
        and (name not in metadata or not np.isfinite(metadata[name]).any())
    ]
    columns = optics.read(numbers=names)
    _mention_texts(star.path, columns)
    values = columns.numbers
    groups = metadata.get(rln.OPTICS_GROUP)
    if len(optics) == 1 and groups is None:
        return {name: np.broadcast_to(values[name], len(table)) for name in names}
    if groups is None or rln.OPTICS_GROUP not in optics.columns:
        return {}
    known = optics.numbers(rln.OPTICS_GROUP)
    order = np.argsort(known)
    at = np.searchsorted(known[order], groups).clip(max=len(known) - 1)
    row = np.where(known[order][at] == groups, order[at], -1)
    if (row == row[0]).all() and row[0] >= 0:  # one group: nothing to hold for each row
        return {name: np.broadcast_to(values[name][row[0]], len(table)) for name in names}
    return {name: np.append(values[name], np.nan)[row] for name in names}


def _pixel_size(star: StarFile, metadata: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """Å/px of each row: as 3.1 has it, or 3.0 (detector µm over magnification), or a model."""
    sizes = []
    if rln.IMAGE_PIXEL_SIZE in metadata:
        sizes.append(metadata[rln.IMAGE_PIXEL_SIZE])
    if {rln.DETECTOR_PIXEL_SIZE, rln.MAGNIFICATION} <= metadata.keys():
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes.append(metadata[rln.DETECTOR_PIXEL_SIZE] / metadata[rln.MAGNIFICATION] * 1e4)
    if rln.PIXEL_SIZE in metadata:
        sizes.append(metadata[rln.PIXEL_SIZE])
    if "model_general" in star and rln.PIXEL_SIZE in star["model_general"].columns:
        sizes.append(np.broadcast_to(star["model_general"].numbers(rln.PIXEL_SIZE)[:1], n))
    size = np.full(n, np.nan)
    for each in sizes[::-1]:
        size = np.where(np.isfinite(each) & (each > 0), each, size)
    return size.astype(np.float32)


def image_table(star: StarFile, kind: Kind) -> Block:
    """The table that holds the images of this kind.

    Raises:
        FormatError: there is none.
    """
    wanted = IMAGE_COLUMNS[kind]
    table = star.with_column(wanted, prefer=_TABLES[kind])
    if table is None:
        other = next((k for k, name in IMAGE_COLUMNS.items() if name != wanted), kind)
        if star.with_column(IMAGE_COLUMNS[other], prefer=_TABLES[other]) is not None:
            raise FormatError(
                f"has no column {wanted}, so no images of kind {kind}",
                file=star.path,
                remedy=f"give --kind {other}",
            )
        raise FormatError(
            f"has no column {wanted}",
            file=star.path,
            remedy="give a STAR file of extracted particles or of 2D classes",
        )
    return table


def split_names(names: pa.ChunkedArray) -> tuple[np.ndarray, list[str], np.ndarray]:
    """RELION's image names taken apart.

    Returns:
        int64 [n], 0-based positions, -1 where the name is no image's; the stacks that are named; and
        int32 [n], the index of each row's stack among them, -1 likewise. A name without ``N@`` is a
        file's first image, if it is an MRC file's.
    """
    frames, indices = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    place: dict[str, int] = {}
    for chunk in names.chunks:
        parts = pc.split_pattern(chunk, "@", max_splits=1)
        first = parts.offsets[:-1]
        before = parts.values.take(first)
        two = pc.equal(pc.list_value_length(parts), 2)
        after = parts.values.take(pc.if_else(two, pc.add(first, 1), None))
        digits = pc.and_(pc.ascii_is_decimal(before), pc.less(pc.utf8_length(before), 16))
        counted = pc.and_(two, digits)
        is_mrc = pc.or_(pc.ends_with(before, ".mrc"), pc.ends_with(before, ".mrcs"))
        alone = pc.and_(pc.invert(two), is_mrc)
        number = pc.if_else(counted, before, pc.if_else(alone, "1", "0"))
        frame = pc.cast(number, pa.int64()).to_numpy() - 1
        stack = pc.if_else(pa.array(frame >= 0), pc.if_else(counted, after, before), None)
        encoded = stack.dictionary_encode()
        known = [
            place.setdefault(re.sub(r":mrcs?$", "", name), len(place))
            for name in encoded.dictionary.to_pylist()
        ]
        at = encoded.indices.fill_null(len(known)).to_numpy()
        frames.append(frame)
        indices.append(np.array([*known, -1], np.int32)[at])
    return np.concatenate(frames), list(place), np.concatenate(indices)


def loop(name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    """A table as RELION writes one."""
    labels = [f"_{label} #{number}" for number, label in enumerate(columns, 1)]
    lines = [f"data_{name}", "", "loop_", *labels, *(" ".join(row) for row in rows), "", ""]
    return "\n".join(lines).encode()


def field_texts(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> list[list[str]]:
    """The fields of each of some rows in columns of numbers [len(rows)]."""
    texts = [[f"{value:.6f}" for value in values.tolist()] for values in columns.values()]
    return [list(line) for line in zip(*texts, strict=True)] if texts else [[]] * len(rows)


def stars_in(folder: Path, kind: Kind) -> list[Path]:
    """The STAR files of a folder that are sources of this kind.

    ``particles.star`` or the last ``*_data.star``; for classes, the last model of every run; else every
    STAR file that names images of the kind. Selections are none.
    """
    stars = sorted(
        file
        for file in folder.glob("*.star")
        if not file.name.startswith(".") and not _SELECTION.search(file.name)
    )
    if kind == "particle":
        if (folder / "particles.star").is_file():
            return [folder / "particles.star"]
        data = [file for file in stars if file.name.endswith("_data.star")]
        if data:
            return [max(data, key=lambda file: (_iteration(file), file.name))]
    else:
        models: dict[str, Path] = {}
        for file in stars:
            if file.name.endswith("_model.star"):
                run = _ITERATION.sub("_", file.name)
                models[run] = max(models.get(run, file), file, key=_iteration)
        if models:
            return sorted(models.values())
    return [file for file in stars if _names_images(file, kind)]


def named_stacks(folder: Path) -> set[Path]:
    """The stacks that STAR files of a folder name, selections included."""
    named: set[Path] = set()
    for file in folder.glob("*.star"):
        for kind, column in IMAGE_COLUMNS.items():
            if _names_images(file, kind):
                names = image_table(parse(file), kind).read([column]).strings[column]
                named.update(resolve(split_names(names)[1], folder, project(folder)))
    return named


def project(folder: Path) -> Path | None:
    """RELION's project folder, which is ``folder`` or above it; None where nothing marks it.

    RELION 5 leaves a copy of ``default_pipeline.star`` in each job, so a job's folder is none.
    """
    for above in (folder, *folder.parents):
        if re.fullmatch(r"job\d+", above.name):
            continue
        if (above / "default_pipeline.star").is_file() or any(above.glob(".gui_*")):
            return above
    return None


def complaint(source: Source) -> str | None:
    """What RELION 3.1 to 5 would say to particles like these, None where it would read them.

    In RELION's own words (obs_model.cpp, star_converter.cpp, metadata_table.cpp), since its users know
    them. A file of RELION 3.0 or older is fine: RELION converts it, unless it says that it is newer.
    """
    if not source.is_star or source.kind != "particle":
        return None
    star = parse(source.path)
    table = image_table(star, source.kind)
    optics = star.get("optics")
    for block in (table,) if optics is None else (optics, table):
        twice = [name for name in block.columns if block.columns.count(name) > 1]
        if twice:
            return (
                "A line in the STAR file contains more columns than the number of labels"
                f" (it counts {twice[0]} once, and data_{block.name} has it twice)"
            )
    malformed = next((why for why in source.problems.values() if MALFORMED in why), None)
    if malformed is not None:
        return (
            "A line in the STAR file contains more or fewer columns than the number of labels"
            f" ({malformed})"
        )
    if optics is None or not len(optics):
        if rln.OPTICS_GROUP not in table.columns:
            return _already_converted(star)
        return (
            "seems to be from a previous version of Relion (it names optics groups, and has no table"
            " data_optics that would describe them)"
        )
    missing = [
        name for name in NECESSARY_OPTICS if not any(each in optics.columns for each in name)
    ]
    if missing:
        return "not all necessary variables defined in _optics.star file: " + ", ".join(
            " or ".join(name) for name in missing
        )
    if rln.OPTICS_GROUP not in table.columns:
        return "Failed to get optics group for particle #0"
    known = optics.numbers(rln.OPTICS_GROUP)
    used = np.unique(table.numbers(rln.OPTICS_GROUP))
    undefined = used[~np.isin(used, known)]
    if undefined.size:
        return "The following optics groups were not defined in the optics table: " + " ".join(
            f"{group:.0f}" for group in undefined
        )
    return _wrong_size(source)


def _wrong_size(source: Source) -> str | None:
    """What there is to say where the optics table and the headers of some stacks differ in box size."""
    image_size = source.metadata.get(rln.IMAGE_SIZE)
    if image_size is None:
        return None
    stacks, rows = np.unique(source.stack, return_index=True)
    named = [
        (stack, row)
        for stack, row in zip(stacks.tolist(), rows.tolist(), strict=True)
        if stack >= 0
    ]
    for stack, row in named[:_LOOKED_AT]:
        try:
            width = mrc.read_header(source.stacks[stack]).width
        except FormatError:
            continue
        if np.isfinite(image_size[row]) and image_size[row] != width:
            return (
                f"incorrect image size: rlnImageSize is {image_size[row]:.0f}, and the images of"
                f" {printable(source.stacks[stack].name)} have {width} px"
            )
    return None


def _already_converted(star: StarFile) -> str | None:
    """What RELION says where there is no optics table, and a line above says that it is of RELION 3.1."""
    with star.path.open("rb") as file:
        start = file.read(_HEAD)
    found = re.search(rb"^# version (\d{5,9})", start, re.MULTILINE)
    if found is None or int(found[1]) < _WITH_OPTICS:
        return None
    return (
        f"Star file is already at version {found[1].decode()} (it has no table data_optics; without the"
        " line that names the version RELION would convert it)"
    )


def _of_optimiser(path: Path, kind: Kind) -> Path:
    """The file that an optimiser names, or the one beside it where the job was copied elsewhere."""
    optimiser = read_optimiser(path)
    named = optimiser.data if kind == "particle" else optimiser.model
    for file in (named, path.with_name(named.name)):
        if file.is_file():
            return file
    raise FormatError(
        f"names a file that is not there: {named}",
        file=path,
        remedy="copy it from the job too, or give the *_data.star or *_model.star itself",
    )


def _refuse_volumes(star: StarFile) -> None:
    general = star.get("model_general")
    column = rln.REFERENCE_DIMENSIONALITY
    if general is None or column not in general.columns:
        return
    if general.numbers(column)[:1].tolist() == [3.0]:
        raise FormatError(
            "describes 3D classes, which are maps and not images",
            file=star.path,
            remedy="give --kind class3d, or the job's particles, its *_data.star",
        )


def refuse_zero_based(
    path: Path, images: np.ndarray, frame: np.ndarray, suspects: np.ndarray
) -> None:
    """Refuse a file that counts the images of a stack from 0, as some scripts do.

    A row that names image 0 says so, unless the last image of its stack is named by its number from 1:
    then that row alone is wrong.

    Args:
        path: the file.
        images: str objects [n], the names.
        frame: int64 [n], 0-based places by RELION's count.
        suspects: rows whose name was not understood.

    Raises:
        FormatError: it does.
    """
    zeros = [row for row in suspects.tolist() if _ZERO.match(images[row])]
    if not zeros:
        return
    named = [images[row].partition("@")[2] for row in zeros]
    stacks = dict(zip(named, resolve(named, path.parent, project(path.parent)), strict=True))
    for name, stack in stacks.items():
        rows = [row for row, image in enumerate(images) if image.endswith(f"@{name}")]
        try:
            if frame[rows].max() + 1 >= mrc.promised(mrc.read_header(stack)):
                return
        except FormatError:
            continue
    raise FormatError(
        f"counts the images of a stack from 0 ({images[zeros[0]]!r}), and RELION counts them from 1:"
        " each image would be taken for the one before it",
        file=path,
        row=zeros[0] + 1,
        remedy="add 1 to the number before each @",
    )


def _refuse_tomograms(star: StarFile, table: Block) -> None:
    """Refuse particles of tilt series, whose images are tilts, sections or volumes."""
    marks = [name for name in table.columns if _TOMOGRAPHY.match(name)]
    optics = star.get("optics")
    column = rln.IMAGE_DIMENSIONALITY
    if optics is not None and column in optics.columns and (optics.numbers(column) == 3).any():
        marks.append(f"{column} 3")
    general = star.get("general")
    if general is not None and not marks:
        marks += [name for name in general.columns if _TOMOGRAPHY.match(name)]
    if marks:
        raise FormatError(
            f"describes particles of tomograms ({marks[0]}), and only those of single-particle data"
            " are judged",
            file=star.path,
            remedy="give particles that were extracted from micrographs",
        )


def _iteration(file: Path) -> tuple[float, float]:
    """Later iterations are greater; a run that was continued, than one that was not; the end, than all."""
    found = _ITERATION.search(file.name)
    if not found or not found[2]:
        return (float("inf") if found and not found[1] else -1, 0)
    return (int(found[2]), int(found[1] or 0))


def _names_images(file: Path, kind: Kind) -> bool:
    try:
        star = parse(file)
        return star.with_column(IMAGE_COLUMNS[kind], prefer=_TABLES[kind]) is not None
    except FormatError:
        return False
