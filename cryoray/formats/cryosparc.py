"""cryoSPARC's tables as sources: which files make one, what its columns mean, where the images lie.

A job writes its result as ``J26_005_particles.cs``, and what it merely passed on as
``J26_passthrough_particles.cs``; both have the same ``uid`` and are joined on it. Jobs of several outputs
(heterogeneous refinement, ab initio, 3D classification, clusters, subsets) have such a pair for each, with
names that depend on the job: ``J14_class_00_00062_particles.cs`` (``…_final_…`` of ab initio) goes with
``J14_passthrough_particles_class_0.cs``. Where names do not tell, the ``uid`` do. Some have a table for
each group of fields, ``…_blob.cs``, ``…_ctf.cs``. An exported group is a ``.csg`` file (YAML) that names
the tables of each field. Paths are relative to the project's folder, or, after a ``>``, to the table's own.

Metadata are given under RELION's names, in its units and conventions, so that nothing that uses them
needs to know both programs; what RELION has no name for keeps cryoSPARC's. Fields after cryosparc-tools
(docs) and D. Asarnow's pyem (metadata/cryosparc2.py), whose conversions are those that people rely on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cryoray.errors import FormatError, printable
from cryoray.formats import mrc, rln
from cryoray.formats.csfile import CsTable, read_table
from cryoray.formats.rows import Source, resolve, unique
from cryoray.records import Kind

_LOOKED_AT = 8  # stacks whose headers are looked into where no row is a stack's first image
_MOST_IMAGES = 1 << 40  # in a stack; a place beyond is none
_LARGEST_GROUP = 1 << 20  # bytes of a .csg file
#: Fields that particles have and class averages do not.
_PARTICLE = re.compile(r"(ctf|alignments\w*|location|pick_stats|filament|motion)/")
#: P3_J26_005_particles, J26_00120_class_averages, cryosparc_P3_J26_005_particles,
#: J14_class_00_00062_particles, J12_class_01_final_particles
_ITERATION = re.compile(r"^((?:cryosparc_)?(?:P\d+_)?J\d+_(?:class_(\d+)_)?)(\d+|final)_")
_SELECT = re.compile(r"(?:^|_)(selected|excluded)$")
#: The end of the name of a table that has one group of a result's fields alone.
_SLOT = re.compile(
    r"_(blob|ctf|alignments[23]D(_multi)?|location|pick_stats|filament|motion|sym_expand|ml_properties)$"
)


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _next(x: np.ndarray) -> np.ndarray:
    return x + 1


@dataclass(frozen=True, slots=True)
class _Meaning:
    """One of RELION's columns, the cryoSPARC field that it comes from, and what is done to it."""

    relion: str
    field: str
    convert: Callable[[np.ndarray], np.ndarray] = _same


#: Where two have the same name, the first that a table has counts.
_MEANINGS = (
    _Meaning(rln.VOLTAGE, "ctf/accel_kv"),
    _Meaning(rln.SPHERICAL_ABERRATION, "ctf/cs_mm"),
    _Meaning(rln.AMPLITUDE_CONTRAST, "ctf/amp_contrast"),
    _Meaning(rln.DEFOCUS_U, "ctf/df1_A"),
    _Meaning(rln.DEFOCUS_V, "ctf/df2_A"),
    _Meaning(rln.DEFOCUS_ANGLE, "ctf/df_angle_rad", np.degrees),
    _Meaning(rln.PHASE_SHIFT, "ctf/phase_shift_rad", np.degrees),
    _Meaning(rln.CTF_BFACTOR, "ctf/bfactor"),
    _Meaning(rln.CTF_SCALEFACTOR, "ctf/scale"),
    _Meaning(rln.CTF_MAX_RESOLUTION, "ctf/ctf_fit_to_A"),
    _Meaning(rln.CTF_FIGURE_OF_MERIT, "ctf/cross_corr_ctffind4"),
    _Meaning(rln.IMAGE_PIXEL_SIZE, "blob/psize_A"),
    _Meaning(rln.MICROGRAPH_PIXEL_SIZE, "location/micrograph_psize_A"),
    _Meaning(rln.ESTIMATED_RESOLUTION, "blob/res_A"),
    _Meaning(rln.CLASS_NUMBER, "alignments2D/class", _next),
    _Meaning(rln.CLASS_NUMBER, "alignments3D/class", _next),
    _Meaning(rln.RANDOM_SUBSET, "alignments3D/split", _next),
)  # fmt: skip
#: Numbers that keep cryoSPARC's name: how well a particle fitted, how sure the picker was.
_OWN = re.compile(
    r"(alignments[23]D/(?!split|psize_A|class$|pose$|shift$)|pick_stats/(?!template_idx))\w+"
)
#: Fields of more than one number a row, or of meaning to each other.
_NUMBERS = (
    "blob/idx",
    "location/micrograph_uid",
    "blob/shape",
    "location/micrograph_shape",
    "location/center_x_frac",
    "location/center_y_frac",
    "ctf/exp_group_id",
    "ctf/tilt_A",
    "alignments3D/pose",
    "alignments3D/shift",
    "alignments3D/psize_A",
    "alignments2D/pose",
    "alignments2D/shift",
    "alignments2D/psize_A",
)
_STRINGS = ("blob/path", "location/micrograph_path")


class Joined:
    """Tables that are about the same rows, joined on ``uid``; the first says which rows, and in which order.

    Args:
        tables: the main one, then those passed through.
    """

    def __init__(self, tables: Sequence[CsTable]) -> None:
        self.tables = tuple(tables)
        self.main = self.tables[0]

    def __contains__(self, name: object) -> bool:
        return any(name in table for table in self.tables)

    @cached_property
    def uid(self) -> np.ndarray:
        """uint64 [n], of the main table's rows."""
        return self.main.column("uid")

    @property
    def fields(self) -> dict[str, np.dtype]:
        """The dtype of each column, the first table's where several have it."""
        return {name: table.fields[name] for table in self.tables[::-1] for name in table.fields}

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some columns by row of the main table; names that no table has are left out.

        Numbers are float64, NaN where a table lacks the row; 64-bit ids uint64, 0 there; strings are
        str objects, '' there.
        """
        made: dict[str, np.ndarray] = {}
        for table in self.tables:
            wanted = [name for name in names if name in table and name not in made]
            if not wanted:
                continue
            at = None if table is self.main else self._rows_in(table)
            for name, column in table.read(wanted).items():
                made[name] = _aligned(column, at)
        return {name: made[name] for name in names if name in made}

    def cut(self, table: CsTable, rows: np.ndarray) -> np.ndarray:
        """Where some of our rows are in one of the tables: int64, ascending."""
        if table is self.main:
            return rows
        at = self._rows_in(table)[rows]
        return np.sort(at[at >= 0])

    def _rows_in(self, table: CsTable) -> np.ndarray:
        """The row of a table that each of our rows is, -1 where it has none."""
        uid = table.column("uid")
        if np.array_equal(uid, self.uid):
            return np.arange(len(uid))
        if not len(uid):
            return np.full(len(self.uid), -1)
        order = np.argsort(uid, kind="stable")
        at = np.searchsorted(uid[order], self.uid).clip(max=len(uid) - 1)
        return np.where(uid[order][at] == self.uid, order[at], -1)


def _aligned(column: np.ndarray, at: np.ndarray | None) -> np.ndarray:
    if column.dtype not in (object, np.uint64):  # a uid does not fit into a float
        column = column.astype(np.float64)
    if at is None:
        return column
    absent = "" if column.dtype == object else 0 if column.dtype == np.uint64 else np.nan
    return np.concatenate([column, np.full((1, *column.shape[1:]), absent, column.dtype)])[at]


def open_joined(path: Path) -> Joined:
    """The tables that make a source: a ``.cs`` file and what was passed through beside it, or a ``.csg``.

    Raises:
        FormatError: one cannot be read.
    """
    if path.suffix == ".csg":
        tables = [read_table(file) for file in _metafiles(path)]
        with_images = [table for table in tables if "blob/path" in table]
        main = (with_images or tables)[0]
        return Joined([main, *(table for table in tables if table is not main)])
    main = read_table(path)
    return Joined([main, *(read_table(file) for file in _companions(main))])


def open_cs(path: Path, kind: Kind) -> Source:
    """The rows of a cryoSPARC table, or of an exported group.

    Raises:
        FormatError: it cannot be read, or has no images of this kind.
    """
    joined = open_joined(path)
    _check_kind(path, joined, kind)
    n = len(joined.main)
    if not n:
        raise FormatError("has no rows", file=path)
    meanings = [each for each in _MEANINGS if _is_numeric(joined, each.field)]
    own = [name for name in joined.fields if _OWN.fullmatch(name) and _is_numeric(joined, name)]
    fields = joined.fields
    wanted = [name for name in _STRINGS if name in fields and fields[name].base.kind in "SO"]
    wanted += [name for name in _NUMBERS if name in fields and fields[name].base.kind in "fiu"]
    columns = joined.read([*wanted, *(each.field for each in meanings), *own])
    names, frame = columns["blob/path"], columns["blob/idx"]
    there = (names != "") & (frame >= 0) & (frame < _MOST_IMAGES)
    undecoded = np.array([not _is_utf8(name) for name in names.tolist()], bool)
    stack, stacks = _stacks(names, there & ~undecoded, path.parent)
    position = np.where(there, frame, -1).astype(np.int64)
    _refuse_one_based(path, stacks, stack, position)
    metadata: dict[str, np.ndarray] = {}
    with np.errstate(all="ignore"):  # what makes no sense becomes NaN
        for each in meanings:
            metadata.setdefault(each.relion, each.convert(columns[each.field]))
        metadata |= {name: columns[name] for name in own}
        metadata |= _in_relions_terms(columns)
    if kind == "class2d":
        metadata[rln.CLASS_NUMBER] = position + 1.0
        metadata |= _distribution(path, position)
    pixel = metadata.get(rln.IMAGE_PIXEL_SIZE, np.full(n, np.nan))
    return Source(
        path=path,
        kind=kind,
        images=_image_names(names, position),
        stacks=stacks,
        stack=stack,
        frame=position,
        micrograph=_micrographs(columns, n),
        pixel_size=np.where(np.isfinite(pixel) & (pixel > 0), pixel, np.nan).astype(np.float32),
        metadata=metadata,
        problems={
            int(row): "has no row in the table that says where the images are"
            if np.isnan(frame[row])
            else "has no blob/path"
            for row in np.flatnonzero(~there)
        }
        | {
            int(row): "has a blob/path with bytes that are not UTF-8: rename the file"
            for row in np.flatnonzero(there & undecoded)
        },
        uid=joined.uid,
        format="cs",
    )


def tables_in(folder: Path, kind: Kind) -> list[Path]:
    """The tables of a job's folder that are sources of this kind.

    Of an iterating job the last, never what was passed through, and none whose rows another has too, such
    as a class's beside that of all classes. What a Select 2D job selected and excluded are sources only
    where there is no other.
    """
    latest: dict[str, tuple[float, Path]] = {}
    for file in sorted(folder.glob("*.cs")):
        if file.name.startswith(".") or "passthrough" in file.name:
            continue
        found = _ITERATION.match(file.name)
        run = _ITERATION.sub(r"\1", file.name)
        number = -1.0 if not found else math.inf if found[3] == "final" else float(found[3])
        if number >= latest.get(run, (-1, file))[0] and _names_images(file, kind):
            latest[run] = (number, file)
    files = sorted(file for _, file in latest.values())
    files = [file for file in files if not _SELECT.search(file.stem)] or files
    return _without_parts(files) if len(files) > 1 else files


def _without_parts(files: Sequence[Path]) -> list[Path]:
    """Tables without those of which another has all rows, or the same rows and the images beside."""
    tables = {file: read_table(file) for file in files}
    first = sorted(
        files, key=lambda file: (-len(tables[file]), "blob/path" not in tables[file], file)
    )
    uids: dict[Path, np.ndarray] = {}
    for file in first:
        mine = tables[file].column("uid")
        if not any(np.isin(mine, others).all() for others in uids.values()):
            uids[file] = mine
    return sorted(uids)


def named_stacks(folder: Path) -> set[Path]:
    """The stacks that tables of a folder name."""
    named: set[Path] = set()
    for file in folder.glob("*.cs"):
        try:
            table = read_table(file)
            if "blob/path" in table:
                paths = np.unique(table.column("blob/path"))
                named.update(resolve((_path(name) for name in paths), folder, project(folder)))
        except FormatError:
            continue
    return named


def selected_and_excluded(path: Path) -> dict[bool, Path]:
    """The tables of a Select 2D job by what became of their rows (True: selected), given either or both.

    Args:
        path: ``particles_selected.cs``, ``templates_excluded.cs`` and the like.
    """
    found = _SELECT.search(path.stem)
    if not found:
        return {}
    base = path.stem[: found.start(1)]
    files = {
        word == "selected": path.with_name(f"{base}{word}{path.suffix}")
        for word in ("selected", "excluded")
    }
    return {kept: file for kept, file in files.items() if file.is_file()}


def group_text(joined: Joined, files: Sequence[str], name: str, kind: Kind, n: int) -> str:
    """A ``.csg`` file about some rows of joined tables, as cryoSPARC exports and imports results.

    Args:
        joined: the tables.
        files: for each of them, the name of the one that holds the rows, beside the group file.
        name: of the group.
        kind: what the rows are.
        n: rows.
    """
    results: dict[str, str] = {}
    for table, file in zip(joined.tables, files, strict=True):
        for field in table.fields:
            if "/" in field:
                results.setdefault(field.partition("/")[0], file)
    result = "particle" if kind == "particle" else "template"
    group = {
        "created": datetime.fromtimestamp(joined.main.path.stat().st_mtime, UTC).isoformat(" "),
        "group": {
            "description": f"{name} by cryoray",
            "name": name,
            "title": name.capitalize(),
            "type": result,
        },
        "results": {
            field: {"metafile": f">{file}", "num_items": n, "type": f"{result}.{field}"}
            for field, file in sorted(results.items())
        },
        "version": "v4.0.0",
    }
    return str(yaml.safe_dump(group, sort_keys=False))


def project(folder: Path) -> Path | None:
    """The project's folder, which is ``folder`` or above it: the one with cryoSPARC's own files in it."""
    for above in (folder, *folder.parents):
        if any((above / name).is_file() for name in ("project.json", "cs.lock", "workspaces.json")):
            return above
        if re.fullmatch(r"J\d+", above.name):
            return above.parent
    return None


def _check_kind(path: Path, joined: Joined, kind: Kind) -> None:
    if "blob/path" not in joined:
        raise FormatError(
            "has no field blob/path, so no images",
            file=path,
            remedy="give the job's own .cs file of particles or class averages"
            if "passthrough" in path.name
            else "give a .cs file of particles or of class averages, not a passthrough file",
        )
    if joined.fields["blob/path"].kind not in "SO" or not _is_numeric(joined, "blob/idx"):
        raise FormatError("has a field blob/path or blob/idx of another type", file=path)
    if joined.fields["blob/path"].shape:
        raise FormatError("has more than one blob/path in a row", file=path)
    other = _kind_of(joined)
    if other is not None and other != kind:
        raise FormatError(
            f"holds images of kind {other}, not {kind}", file=path, remedy=f"give --kind {other}"
        )


def _kind_of(joined: Joined) -> Kind | None:
    """What the rows are, None where only the blobs are there, which both have."""
    if any(_PARTICLE.match(name) for name in joined.fields):
        return "particle"
    return "class2d" if "blob/res_A" in joined else None


def _names_images(path: Path, kind: Kind) -> bool:
    try:
        joined = open_joined(path)
        _check_kind(path, joined, kind)
    except FormatError:
        return False
    classes = re.search(r"class_averages|templates", path.stem) is not None
    return _kind_of(joined) is not None or (kind == "class2d") == classes


def _is_numeric(joined: Joined, name: str) -> bool:
    return any(table.numeric(name) for table in joined.tables)


def _companions(main: CsTable) -> list[Path]:
    """The tables beside one that have more about its rows: of its group, by their names, or by ``uid``."""
    path = main.path
    for group in sorted(path.parent.glob("*.csg")):
        try:
            files = _metafiles(group)
        except FormatError:
            continue
        if path in files:
            return [file for file in files if file != path and file.is_file()]
    if "passthrough" in path.name:
        return []
    slots, base = [], _SLOT.sub("", path.stem)
    if base != path.stem:
        slots = [
            file
            for file in sorted(path.parent.glob("*.cs"))
            if file != path and _SLOT.search(file.stem) and _SLOT.sub("", file.stem) == base
        ]
    outputs = _outputs(base)
    passed = sorted(path.parent.glob("*passthrough_*.cs"))
    fit = {file: _fit(file.stem.partition("passthrough_")[2], outputs) for file in passed}
    named = [file for file in passed if fit[file]]
    if len(named) == 1 or not len(main):
        return [*slots, *sorted(named, key=lambda file: -fit[file])[:1]]
    shared = {file: _shared(main, file) for file in named or passed}
    found = max(shared, key=lambda file: (shared[file], fit[file]), default=None)
    return [*slots, found] if found is not None and shared[found][0] else slots


def _outputs(stem: str) -> list[str]:
    """What the output of a job may be called whose table has this name."""
    found = _ITERATION.match(stem)
    result = _ITERATION.sub("", stem)
    if found and found[2]:
        return [f"{result}_class_{int(found[2])}"]
    return [stem, result, f"{result}_all_classes"] if found else [stem]


def _fit(output: str, outputs: Sequence[str]) -> int:
    """How well the name of what was passed through fits one of some outputs; 0: not at all."""
    fits = any(each == output or each.endswith(f"_{output}") for each in outputs)
    return len(output) if fits else 0


def _shared(main: CsTable, file: Path) -> tuple[int, int]:
    """How many rows of a table another has, too, and fewer of others before more."""
    try:
        uid = read_table(file).column("uid")
    except FormatError:
        return 0, 0
    return int(np.isin(main.column("uid"), uid).sum()), -len(uid)


def _metafiles(path: Path) -> list[Path]:
    """The tables that a .csg file names, each once."""
    try:
        if path.stat().st_size > _LARGEST_GROUP:
            raise FormatError("is too large for a group of results", file=path)
        group: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = [str(result["metafile"]) for result in group["results"].values()]
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", file=path) from error
    except (
        yaml.YAMLError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise FormatError(
            "is not a group of cryoSPARC results: it names no metafile of a result", file=path
        ) from error
    if not names:
        raise FormatError("is a group without results", file=path)
    return list(
        dict.fromkeys(resolve((_path(name) for name in names), path.parent, project(path.parent)))
    )


def _path(name: str) -> str:
    return name.removeprefix(">")


def _is_utf8(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _refuse_one_based(
    path: Path, stacks: Sequence[Path], stack: np.ndarray, position: np.ndarray
) -> None:
    """Refuse a table that counts the images of a stack from 1, as RELION does and cryoSPARC does not.

    No row of it is a first image, and one is beyond the last of a stack by one.
    """
    rows = np.flatnonzero(stack >= 0)
    if not len(rows) or not position[rows].all():
        return
    last = np.full(len(stacks), -1, np.int64)
    np.maximum.at(last, stack[rows], position[rows])
    for number in range(min(len(stacks), _LOOKED_AT)):
        try:
            beyond = last[number] == mrc.promised(mrc.read_header(stacks[number]))
        except FormatError:
            continue
        if beyond:
            row = int(rows[(stack[rows] == number) & (position[rows] == last[number])][0])
            raise FormatError(
                f"counts the images of {stacks[number].name} from 1 (blob/idx is {last[number]}, and none"
                " is 0), and cryoSPARC counts them from 0: each image would be taken for the one after it",
                file=path,
                row=row + 1,
                remedy="subtract 1 from blob/idx",
            )


def _stacks(
    names: np.ndarray, there: np.ndarray, folder: Path
) -> tuple[np.ndarray, tuple[Path, ...]]:
    """int32 [n], the index of each row's stack, -1 without one; and the stacks."""
    named = list(dict.fromkeys(names[there].tolist()))
    stacks, index = unique(resolve((_path(name) for name in named), folder, project(folder)))
    place = dict(zip(named, index.tolist(), strict=True))
    return np.array([place.get(name, -1) for name in names.tolist()], np.int32), stacks


def _image_names(names: np.ndarray, position: np.ndarray) -> np.ndarray:
    made = np.empty(len(names), object)
    made[:] = [
        f"{at + 1:06d}@{printable(_path(name))}" if at >= 0 else ""
        for name, at in zip(names.tolist(), position.tolist(), strict=True)
    ]
    return made


def _micrographs(columns: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """Names, or numbers where cryoSPARC did not keep the name; '' where it knows neither."""
    names = columns.get("location/micrograph_path", np.full(n, "", object))
    uids = columns.get("location/micrograph_uid", np.zeros(n))
    made = np.empty(n, object)
    made[:] = [
        printable(_path(name)) or (f"{uid:.0f}" if uid > 0 else "")
        for name, uid in zip(names.tolist(), uids.tolist(), strict=True)
    ]
    return made


def _in_relions_terms(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """RELION's columns that are made of several numbers."""
    made: dict[str, np.ndarray] = {}
    if _has(columns, "blob/shape", 2):
        made[rln.IMAGE_SIZE] = columns["blob/shape"][:, 0]
    if "ctf/exp_group_id" in columns:
        made[rln.OPTICS_GROUP] = columns["ctf/exp_group_id"] + 1
    if _has(columns, "location/micrograph_shape", 2):
        height, width = columns["location/micrograph_shape"].T
        made["micrographWidth"], made["micrographHeight"] = width, height
        if {"location/center_x_frac", "location/center_y_frac"} <= columns.keys():
            # cryoSPARC counts y from the bottom, RELION from the top (pyem issues 81 and 101).
            made[rln.COORDINATE_X] = columns["location/center_x_frac"] * width
            made[rln.COORDINATE_Y] = (1 - columns["location/center_y_frac"]) * height
    if _has(columns, "ctf/tilt_A", 2) and "ctf/cs_mm" in columns:
        with np.errstate(divide="ignore", invalid="ignore"):
            tilt = np.arcsin(columns["ctf/tilt_A"] / (columns["ctf/cs_mm"][:, None] * 1e7)) * 1e3
        made[rln.BEAM_TILT_X], made[rln.BEAM_TILT_Y] = np.where(np.isfinite(tilt), tilt, 0).T
    for name in ("alignments3D", "alignments2D"):
        if not (_has(columns, f"{name}/shift", 2) and f"{name}/psize_A" in columns):
            continue
        if name == "alignments3D" and _has(columns, "alignments3D/pose", 3):
            angles = euler_angles(columns["alignments3D/pose"])
            made[rln.ANGLE_ROT], made[rln.ANGLE_TILT], made[rln.ANGLE_PSI] = angles.T
        elif (
            name == "alignments2D" and columns.get("alignments2D/pose", np.empty((0, 0))).ndim == 1
        ):
            made[rln.ANGLE_PSI] = _wrapped(np.degrees(columns["alignments2D/pose"]))
        else:
            continue
        shift = columns[f"{name}/shift"] * columns[f"{name}/psize_A"][:, None]
        made[rln.ORIGIN_X_ANGST], made[rln.ORIGIN_Y_ANGST] = shift.T
        break
    return made


def _has(columns: Mapping[str, np.ndarray], name: str, width: int) -> bool:
    return name in columns and columns[name].shape[1:] == (width,)


def euler_angles(pose: np.ndarray) -> np.ndarray:
    """RELION's Euler angles (rot, tilt, psi; ZYZ) of cryoSPARC's rotation vectors.

    A pose is an axis times an angle (radians), and turns the particle to the image; RELION's matrix is
    of the opposite turn (euler.cpp), so rotation R = Rz(rot) Ry(tilt) Rz(psi). At tilt 0 and 180 rot is
    0, as RELION has it.

    Args:
        pose: float [n, 3].

    Returns:
        float64 [n, 3], degrees, in (-180, 180], tilt in [0, 180].
    """
    pose = np.asarray(pose, np.float64)
    angle = np.linalg.norm(pose, axis=1)
    x, y, z = (pose / np.where(angle > 0, angle, 1)[:, None]).T
    c, s = np.cos(angle), np.sin(angle)
    v = 1 - c  # Rodrigues' formula, the entries that are needed
    r00, r01 = c + x * x * v, x * y * v - z * s
    r02, r12, r22 = x * z * v + y * s, y * z * v - x * s, c + z * z * v
    r20, r21 = x * z * v - y * s, y * z * v + x * s
    tilt = np.arctan2(np.hypot(r02, r12), r22)
    upright = np.hypot(r02, r12) < 1e-12
    rot = np.where(upright, 0, np.arctan2(r12, r02))
    psi = np.where(
        upright, np.arctan2(-np.sign(r22) * r01, np.sign(r22) * r00), np.arctan2(r21, -r20)
    )
    return _wrapped(np.degrees(np.stack([rot, tilt, psi], axis=1)))


def _wrapped(degrees: np.ndarray) -> np.ndarray:
    """The same angle in (-180, 180]."""
    return 180 - (180 - degrees) % 360


def _distribution(path: Path, position: np.ndarray) -> dict[str, np.ndarray]:
    """The fraction of particles in each class, counted in the job's own particles where they are.

    A class is known by its place in the stack of all classes, which Select 2D keeps.
    """
    classes: list[np.ndarray] = []
    for file in _particles_beside(path):
        try:
            joined = open_joined(file)
            if _is_numeric(joined, "alignments2D/class"):
                classes.append(joined.read(["alignments2D/class"])["alignments2D/class"])
        except FormatError:
            continue
    if not sum(len(each) for each in classes):
        return {}
    numbers, counts = np.unique(np.concatenate(classes), return_counts=True)
    at = np.searchsorted(numbers, position).clip(max=len(numbers) - 1)
    return {rln.CLASS_DISTRIBUTION: np.where(numbers[at] == position, counts[at], 0) / counts.sum()}


def _particles_beside(path: Path) -> Iterator[Path]:
    for classes, particles in (("class_averages", "particles"), ("templates", "particles")):
        if classes in path.stem:
            table = path.with_name(path.name.replace(classes, particles))
            yield from selected_and_excluded(table).values() or [table]
