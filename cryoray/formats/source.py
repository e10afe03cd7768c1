"""Where images come from: a RELION STAR file, a stack, or a folder of those, as one table of rows.

Nothing is read here but names, numbers and headers of bare stacks; whether the pixels are there is
for the plan to find out. Every row of the source is a row here, in the source's order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryoray.errors import FormatError, InputError
from cryoray.formats import mrc
from cryoray.formats.star import Block, StarFile, as_objects, parse
from cryoray.records import Kind

READABLE = "a RELION .star, an .mrcs stack, or a folder of those"

#: Columns that name an image, by kind.
IMAGE_COLUMNS: Mapping[Kind, str] = {"particle": "rlnImageName", "class2d": "rlnReferenceImage"}
#: Tables in which RELION 3.1 to 5, 3.0 and 1.x keep particles; and classes, in a model or a selection.
_TABLES: Mapping[Kind, tuple[str, ...]] = {
    "particle": ("particles", "images", ""),
    "class2d": ("model_classes", ""),
}
_STACK_SUFFIXES = (".mrcs", ".mrc", ".st")
_SELECTION = re.compile(r"_selected\.star$|^backup_selection\.star$")
_ITERATION = re.compile(r"_it(\d+)(?=_)")
#: More absent images than this are a header that lies, not a stack that was cut short.
_MOST_ABSENT = 1_000_000


@dataclass(frozen=True, eq=False)
class Source:
    """The rows of a source; n is their number.

    Attributes:
        path: the STAR file, the stack, or the folder of bare stacks.
        kind: what the rows are.
        images: str objects [n], the images' names as the source has them, ``000001@file.mrcs`` for a
            bare stack.
        stacks: absolute paths of the stacks that rows name; they may be missing.
        stack: int32 [n], index into ``stacks``, -1 where the row names none.
        frame: int64 [n], 0-based position in the stack.
        micrograph: str objects [n], '' where unknown.
        pixel_size: float32 [n], Å/px, NaN where the STAR file does not say; a stack's header may.
        metadata: float64 [n] by RELION's column name; optics values are repeated for their rows.
        problems: reason by 0-based row, for rows that name no image.
    """

    path: Path
    kind: Kind
    images: np.ndarray
    stacks: tuple[Path, ...]
    stack: np.ndarray
    frame: np.ndarray
    micrograph: np.ndarray
    pixel_size: np.ndarray
    metadata: Mapping[str, np.ndarray] = field(default_factory=dict)
    problems: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def name(self) -> str:
        """The project's name if nobody gives one: its folder, above RELION's ``TYPE/jobNNN``."""
        folder = (
            self.path if self.path.suffix not in (".star", *_STACK_SUFFIXES) else self.path.parent
        )
        if re.fullmatch(r"job\d+", folder.name) and len(folder.parts) > 3:
            folder = folder.parent.parent
        return folder.name

    @property
    def is_star(self) -> bool:
        """Whether the rows are those of a STAR file."""
        return self.path.suffix == ".star"


def find_sources(path: Path, kind: Kind = "particle") -> list[Path]:
    """The sources under ``path``: itself, or those of a folder, or those of the folders in it.

    In a folder, ``particles.star`` or the last ``*_data.star`` is the source, or every other STAR file
    that names particles; for classes, the last model of every run. A folder without any is a source
    if it holds stacks that no STAR file there names.

    Raises:
        InputError: there is nothing to read.
    """
    path = Path(path).absolute()
    if path.is_file():
        _check_readable(path)
        return [path]
    if not path.is_dir():
        raise InputError("there is no such file or folder", file=path)
    found = _in_folder(path, kind) or [
        source
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for source in _in_folder(folder, kind)
    ]
    if not found:
        other: Kind = "class2d" if kind == "particle" else "particle"
        if _in_folder(path, other):
            raise InputError(
                f"holds no source of kind {kind}", file=path, remedy=f"give --kind {other}"
            )
        raise InputError(
            "there is nothing to read in this folder", file=path, remedy=f"give {READABLE}"
        )
    return found


def open_source(path: Path, kind: Kind = "particle") -> Source:
    """The rows of one source.

    Args:
        path: a STAR file, a stack, or a folder that is or holds just one source.
        kind: what its rows are, or which of a job's files to read.

    Raises:
        InputError: nothing is there, or more than one source is.
        FormatError: it cannot be read, or has no images of this kind.
    """
    path = Path(path).absolute()
    if path.is_dir():
        found = find_sources(path, kind)
        if len(found) > 1:
            names = ", ".join(str(source.relative_to(path)) for source in found[:3])
            raise InputError(
                f"holds {len(found)} sources ({names}{', …' if found[3:] else ''})",
                file=path,
                remedy="give one of them",
            )
        path = found[0]
    if path.is_dir():
        return _from_stacks(path, _bare_stacks(path, kind), kind)
    if not path.exists():
        raise InputError("there is no such file or folder", file=path)
    _check_readable(path)
    return _from_star(path, kind) if path.suffix == ".star" else _from_stacks(path, [path], kind)


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


def _check_readable(path: Path) -> None:
    if path.suffix not in (".star", *_STACK_SUFFIXES):
        raise FormatError("is of a kind that is not read", file=path, remedy=f"give {READABLE}")


def _in_folder(folder: Path, kind: Kind) -> list[Path]:
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
                run = _ITERATION.sub("", file.name)
                models[run] = max(models.get(run, file), file, key=_iteration)
        if models:
            return sorted(models.values())
    named = [file for file in stars if _names_images(file, kind)]
    if named:
        return named
    return [folder] if _bare_stacks(folder, kind) else []


def _iteration(file: Path) -> int:
    found = _ITERATION.search(file.name)
    return int(found[1]) if found else -1


def _names_images(file: Path, kind: Kind) -> bool:
    try:
        star = parse(file)
        return star.with_column(IMAGE_COLUMNS[kind], prefer=_TABLES[kind]) is not None
    except FormatError:
        return False


def _bare_stacks(folder: Path, kind: Kind) -> list[Path]:
    """Stacks in a folder that no STAR file there names."""
    stacks = sorted(
        file
        for file in folder.iterdir()
        if file.suffix in _STACK_SUFFIXES[:1] and not file.name.startswith(".")
    )
    if not stacks:
        return []
    named: set[Path] = set()
    for file in folder.glob("*.star"):
        for other in IMAGE_COLUMNS:
            if _names_images(file, other):
                table = image_table(parse(file), other)
                _, paths, _ = split_names(
                    table.read([IMAGE_COLUMNS[other]]).strings[IMAGE_COLUMNS[other]]
                )
                named.update(_resolve(paths, folder))
    return [stack for stack in stacks if stack not in named]


def _from_star(path: Path, kind: Kind) -> Source:
    star = parse(path)
    table = image_table(star, kind)
    image_column = IMAGE_COLUMNS[kind]
    texts = [name for name in (image_column, "rlnMicrographName") if name in table.columns]
    numeric = [
        name
        for name, value in zip(table.columns, table.fields(0) if len(table) else (), strict=False)
        if name not in texts and _is_number(value)
    ]
    if not len(table):
        raise FormatError(f"has no rows in its table data_{table.name}", file=path)
    columns = table.read(texts, numeric)
    metadata = columns.numbers
    metadata.update(_optics(star, table, metadata))
    frame, names, stack = split_names(columns.strings[image_column])
    stacks, index = _unique(_resolve(names, path.parent))
    stack = np.where(stack < 0, -1, index[stack]) if len(index) else stack
    images = as_objects(columns.strings[image_column])
    problems = {
        int(row): f"{images[row]!r} names no image, which would read 000001@stack.mrcs"
        if images[row]
        else f"has no {image_column}"
        for row in np.flatnonzero(stack < 0)
    }
    for row in columns.short.tolist():
        problems[row] = f"has fewer than the {len(table.columns)} fields of its table"
    return Source(
        path=path,
        kind=kind,
        images=images,
        stacks=stacks,
        stack=stack.astype(np.int32),
        frame=frame,
        micrograph=as_objects(columns.strings["rlnMicrographName"])
        if "rlnMicrographName" in columns.strings
        else np.full(len(images), "", object),
        pixel_size=_pixel_size(star, metadata, len(images)),
        metadata=metadata,
        problems=problems,
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _optics(
    star: StarFile, table: Block, metadata: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The optics table's numbers for each row, where the row does not have its own."""
    optics = star.get("optics")
    if optics is None or not len(optics) or optics is table:
        return {}
    names = [
        name
        for name, value in zip(optics.columns, optics.fields(0), strict=False)
        if name != "rlnOpticsGroup" and name not in metadata and _is_number(value)
    ]
    values = optics.read(numbers=names).numbers
    groups = metadata.get("rlnOpticsGroup")
    if len(optics) == 1 and groups is None:
        return {name: np.broadcast_to(values[name], len(table)) for name in names}
    if groups is None or "rlnOpticsGroup" not in optics.columns:
        return {}
    known = optics.numbers("rlnOpticsGroup")
    order = np.argsort(known)
    at = np.searchsorted(known[order], groups).clip(max=len(known) - 1)
    row = np.where(known[order][at] == groups, order[at], -1)
    if (row == row[0]).all() and row[0] >= 0:  # one group: nothing to hold for each row
        return {name: np.broadcast_to(values[name][row[0]], len(table)) for name in names}
    return {name: np.append(values[name], np.nan)[row] for name in names}


def _pixel_size(star: StarFile, metadata: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """Å/px of each row: as 3.1 has it, or 3.0 (detector µm over magnification), or a model."""
    size = np.full(n, np.nan)
    if "rlnImagePixelSize" in metadata:
        size = metadata["rlnImagePixelSize"]
    elif {"rlnDetectorPixelSize", "rlnMagnification"} <= metadata.keys():
        with np.errstate(divide="ignore", invalid="ignore"):
            size = metadata["rlnDetectorPixelSize"] / metadata["rlnMagnification"] * 1e4
    elif "rlnPixelSize" in metadata:
        size = metadata["rlnPixelSize"]
    elif "model_general" in star and "rlnPixelSize" in star["model_general"].columns:
        size = np.broadcast_to(star["model_general"].numbers("rlnPixelSize")[:1], n)
    return np.where(np.isfinite(size) & (size > 0), size, np.nan).astype(np.float32)


def _resolve(names: Iterable[str], folder: Path) -> list[Path]:
    """Absolute paths of stacks named in a STAR file of ``folder``.

    RELION names them from the project's folder, which is the STAR file's own or one above it. The
    folder in which the last one was found is tried first; a stack found nowhere is given as in the
    project's folder, if that is known.
    """
    above = [folder, *folder.parents]
    likely = folder
    resolved = []
    for name in names:
        if not Path(name).is_absolute():
            tried = (likely, *above)
            likely = next((root for root in tried if (root / name).exists()), likely)
        resolved.append(likely / name)
    return resolved


def _unique(paths: list[Path]) -> tuple[tuple[Path, ...], np.ndarray]:
    """Different paths in order of first mention, and the index of each among them."""
    place: dict[Path, int] = {}
    index = np.array([place.setdefault(path, len(place)) for path in paths], dtype=np.int32)
    return tuple(place), index


def _from_stacks(path: Path, stacks: list[Path], kind: Kind) -> Source:
    """Every image of some stacks, those that a truncated one lost included."""
    counts, problems = [], {}
    for stack in stacks:
        try:
            counts.append(_rows(stack))
        except FormatError as error:
            if len(stacks) == 1:
                raise
            problems[sum(counts)] = f"{stack.name} {error.what}"
            counts.append(1)
    folder = path if path.is_dir() else path.parent
    names = [stack.relative_to(folder).as_posix() for stack in stacks]
    n = sum(counts)
    if len(problems) == len(stacks):
        raise FormatError(f"holds no stack that can be read: {problems[0]}", file=path)
    index = np.repeat(np.arange(len(stacks), dtype=np.int32), counts)
    index[list(problems)] = -1
    return Source(
        path=path,
        kind=kind,
        images=np.array(
            [
                f"{frame:06d}@{name}"
                for name, count in zip(names, counts, strict=True)
                for frame in range(1, count + 1)
            ],
            dtype=object,
        ),
        stacks=tuple(stacks),
        stack=index,
        frame=np.concatenate([np.arange(count) for count in counts]),
        micrograph=np.full(n, "", object),
        pixel_size=np.full(n, np.nan, np.float32),
        problems=problems,
    )


def _rows(stack: Path) -> int:
    """Images that a stack has or should have."""
    header = mrc.read_header(stack)
    promised = mrc.promised(header)
    if promised - header.count > _MOST_ABSENT:
        raise FormatError(mrc.absence(header).removeprefix(f"{stack.name} "), file=stack)
    return promised
