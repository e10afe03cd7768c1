"""Where images come from: files of RELION and cryoSPARC, stacks, and folders of those, found and opened.

Nothing is read here but names, numbers and headers of bare stacks; whether the pixels are there is
for the plan to find out. Every row of the source is a row here, in the source's order.
"""

from __future__ import annotations

from pathlib import Path

from cryoray.errors import FormatError, InputError
from cryoray.formats import cryosparc, relion
from cryoray.formats.opening import way_out
from cryoray.formats.rows import CS_SUFFIXES, FILE_SUFFIXES, PACKED_SUFFIXES, Source
from cryoray.formats.stacks import open_stacks
from cryoray.records import Kind

__all__ = ["Source", "find_sources", "open_source"]

READABLE = "a RELION .star, a cryoSPARC .cs, an .mrcs stack, or a folder of those"


def find_sources(path: Path, kind: Kind = "particle") -> list[Path]:
    """The sources under ``path``: itself, or those of a folder, or those of the folders in it.

    In a folder, ``particles.star`` or the last ``*_data.star`` is the source, or every other STAR file
    that names particles; for classes, the last model of every run; else the tables of a cryoSPARC job,
    of the last iteration. A folder without any is a source if it holds stacks that no file there names.

    Raises:
        InputError: there is nothing to read.
    """
    path = Path(path).absolute()
    if path.is_file():
        _check_readable(path)
        return [path]
    if not path.is_dir():
        raise InputError("there is no such file or folder", file=path, remedy=way_out(path))
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
        path: a STAR file, a cryoSPARC table or group, a stack, or a folder that is or holds just one
            source. RELION's ``*_optimiser.star`` stands for the data or model that it names.
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
        return open_stacks(path, _bare_stacks(path), kind)
    if not path.exists():
        raise InputError("there is no such file or folder", file=path, remedy=way_out(path))
    _check_readable(path)
    if path.suffix == ".star":
        return relion.open_star(path, kind)
    if path.suffix in CS_SUFFIXES:
        return cryosparc.open_cs(path, kind)
    return open_stacks(path, [path], kind)


def _check_readable(path: Path) -> None:
    if not path.name.endswith(FILE_SUFFIXES):
        raise FormatError(
            "is of a kind that cryoray does not read", file=path, remedy=f"give {READABLE}"
        )


def _in_folder(folder: Path, kind: Kind) -> list[Path]:
    return (
        relion.stars_in(folder, kind)
        or cryosparc.tables_in(folder, kind)
        or ([folder] if _bare_stacks(folder) else [])
    )


def _bare_stacks(folder: Path) -> list[Path]:
    """Stacks in a folder that no STAR file or table there names."""
    stacks = sorted(
        file
        for file in folder.iterdir()
        if file.name.endswith(tuple(f".mrcs{packed}" for packed in PACKED_SUFFIXES))
        and not file.name.startswith(".")
    )
    if not stacks:
        return []
    named = relion.named_stacks(folder) | cryosparc.named_stacks(folder)
    return [stack for stack in stacks if stack not in named]
