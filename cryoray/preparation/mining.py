"""Labelled images from picks alone: particles are cut out at the picks, negatives at random away from them.

So are data sets published that have micrographs and the picks that experts kept, but nothing of what they
discarded (CryoPPP: ``empiar-NNNNN_particles_selected.star`` and micrographs). What is cut away from all picks
is ice, carbon and solvent, seldom the hard cases that a person discards; and a pick that was missed
is a particle among the negatives. So mined rows are marked as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoray.errors import FormatError, InputError
from cryoray.formats import rln
from cryoray.formats.files import replacing, replacing_folder, write_csv
from cryoray.formats.mrc import StackWriter, read_frames, read_header
from cryoray.formats.relion import VERSION, loop, quoted
from cryoray.formats.star import StarFile, as_objects, parse
from cryoray.records import OnProgress, Progress, ignore

_COLUMNS = (rln.MICROGRAPH_NAME, rln.COORDINATE_X, rln.COORDINATE_Y)
#: What cryoSPARC puts before a micrograph's name.
_UID = re.compile(r"^\d{15,}_")
#: Places tried for each negative, before a micrograph is too full for more.
_TRIES = 40
#: Side of the box over the particle's diameter.
_BOX = 1.8
LABELS, PARTICLES = "labels.csv", "particles.star"
#: Folders of the stacks, so that an image's name says to the end which it is.
_PICKED, _MINED = "picked", "mined"


@dataclass(frozen=True, slots=True)
class Mined:
    """What came of it: counts of images, and of picks whose box reaches out of its micrograph."""

    positives: int
    negatives: int
    outside: int
    micrographs: int


def mine(
    picks: Path,
    micrographs: Path,
    out: Path,
    diameter: float,
    *,
    box: int | None = None,
    negatives: float = 1.0,
    seed: int = 0,
    replace: bool = False,
    on_progress: OnProgress = ignore,
) -> Mined:
    """Cut labelled images out of micrographs, as a source and its selection.

    Args:
        picks: STAR file with micrographs' names and coordinates, px, of what experts kept.
        micrographs: folder of MRC files.
        out: folder of ``particles.star``, its stacks and ``labels.csv``, whose column ``mined`` is 1 for
            what was cut at random, as the names of these images say, too (``Extract/mined``); protein is as
            bright or dark there as in the micrographs.
        diameter: of the particle, Å. Negatives keep their middle farther than it from every pick.
        box: px; None: 1.8 diameters.
        negatives: for each pick.
        seed: of the random places.
        replace: whether images that are there of other picks may be lost.
        on_progress: micrographs.

    Raises:
        FormatError: no picks in the STAR file, or a micrograph cannot be read or has no pixel size.
        InputError: a micrograph is not there, or ``out`` holds something else, or images of other
            picks.
    """
    what, is_one = "folder of mined images", lambda folder: (folder / LABELS).is_file()
    of = {"file of picks": [str(Path(picks).absolute())]}
    with replacing_folder(Path(out).absolute(), what, is_one, of, replace=replace) as partial:
        named = _picks(Path(picks).absolute())
        rng = np.random.default_rng(seed)
        rows: list[list[str]] = []
        labels: list[tuple[str, int, int, int]] = []
        outside, sizes = 0, set[tuple[float, int]]()
        for number, (name, places) in enumerate(sorted(named.items()), 1):
            on_progress(Progress("cut", number, len(named), "micrographs"))
            file = _find(micrographs, name, picks)
            header = read_header(file)
            if header.pixel_size is None:
                raise FormatError("has no pixel size", file=file, remedy="write it into the header")
            pixel_size = header.pixel_size
            side = box or 2 * round(_BOX * diameter / pixel_size / 2)
            image = read_frames(header, np.zeros(1, np.int64))[0]
            whole = np.round(places).astype(np.int64)
            inside = _inside(whole, image.shape, side)
            outside += int((~inside).sum())
            kept = whole[inside]
            wanted = round(negatives * len(kept))
            away = _away(rng, places, image.shape, side, diameter / pixel_size, wanted)
            if not len(kept) and not len(away):
                continue
            for source, cut in ((_PICKED, kept), (_MINED, away)):
                if not len(cut):
                    continue
                stack = f"Extract/{source}/{Path(name).stem}.mrcs"
                (partial / stack).parent.mkdir(parents=True, exist_ok=True)
                with StackWriter(partial / stack, side, side, "float32", pixel_size) as writer:
                    writer.append(np.stack([_box(image, place, side) for place in cut]))
                for index, (x, y) in enumerate(cut.tolist(), 1):
                    rows.append([quoted(f"{index:06d}@{stack}"), quoted(name), f"{x}", f"{y}", "1"])
                    labels.append((stack, index, int(source == _PICKED), int(source == _MINED)))
            sizes.add((round(pixel_size, 4), side))
        if len(sizes) > 1:
            raise InputError(
                f"has micrographs of {len(sizes)} pixel sizes",
                file=micrographs,
                remedy="mine each alone",
            )
        if not rows:
            raise InputError("has no pick whose box lies in its micrograph", file=picks)
        ((pixel_size, side),) = sizes
        _write(partial, rows, labels, pixel_size, side)
    good = sum(label[2] for label in labels)
    return Mined(good, len(labels) - good, outside, len(named))


def _picks(path: Path) -> dict[str, np.ndarray]:
    """float64 [n, 2], x and y in px, by micrograph."""
    star: StarFile = parse(path)
    table = next((b for b in star.blocks if set(_COLUMNS) <= set(b.columns) and len(b)), None)
    if table is None:
        raise FormatError(
            f"has no rows with {', '.join(_COLUMNS)}", file=path, remedy="give a STAR file of picks"
        )
    columns = table.read(_COLUMNS[:1], _COLUMNS[1:])
    names = as_objects(columns.strings[_COLUMNS[0]])
    places = np.stack([columns.numbers[name] for name in _COLUMNS[1:]], 1)
    bad = np.flatnonzero(~np.isfinite(places).all(1))
    if len(bad):
        raise FormatError("has no coordinates", file=path, row=int(bad[0]) + 1, remedy="correct it")
    return {str(name): places[names == name] for name in np.unique(names.astype(str))}


def _find(folder: Path, name: str, picks: Path) -> Path:
    """The micrograph of a name, which may have had cryoSPARC's number put before it."""
    base = Path(name).name
    for each in (base, _UID.sub("", base)):
        if (folder / each).is_file():
            return folder / each
    raise InputError(
        f"holds no micrograph {base}, which {picks} names",
        file=folder,
        remedy="give the folder of the motion-corrected micrographs",
    )


def _inside(places: np.ndarray, shape: tuple[int, ...], side: int) -> np.ndarray:
    first = places - side // 2
    return np.asarray(((first >= 0) & (first + side <= np.array(shape[::-1]))).all(1))


def _away(
    rng: np.random.Generator,
    picks: np.ndarray,
    shape: tuple[int, ...],
    side: int,
    distance: float,
    wanted: int,
) -> np.ndarray:
    """int64 [n, 2]: random places farther than ``distance`` from every pick and from each other."""
    found: list[np.ndarray] = []
    most = np.array(shape[::-1]) - side
    for place in _random(rng, side, most, wanted * _TRIES):
        taken = np.concatenate([picks, *(one[None] for one in found)])
        if len(found) < wanted and np.hypot(*(taken - place).T).min() > distance:
            found.append(place)
    return np.array(found, np.int64).reshape(-1, 2)


def _random(
    rng: np.random.Generator, side: int, most: np.ndarray, tries: int
) -> Iterator[np.ndarray]:
    if (most >= 0).all():
        yield from rng.integers(0, most + 1, (tries, 2)) + side // 2


def _box(image: np.ndarray, place: np.ndarray, side: int) -> np.ndarray:
    x, y = (place - side // 2).tolist()
    return image[y : y + side, x : x + side]


def _write(
    out: Path,
    rows: list[list[str]],
    labels: list[tuple[str, int, int, int]],
    pixel_size: float,
    side: int,
) -> None:
    optics = [rln.OPTICS_GROUP, rln.OPTICS_GROUP_NAME, rln.IMAGE_PIXEL_SIZE, rln.IMAGE_SIZE]
    optics += [rln.IMAGE_DIMENSIONALITY, rln.VOLTAGE, rln.SPHERICAL_ABERRATION]
    # Neither voltage nor aberration is known here; RELION wants both.
    values = ["1", "mined", f"{pixel_size:.4f}", f"{side}", "2", "0", "0"]
    columns = [rln.IMAGE_NAME, *_COLUMNS, rln.OPTICS_GROUP]
    with replacing(out / PARTICLES) as temporary:
        temporary.write_bytes(
            VERSION + loop("optics", optics, [values]) + VERSION + loop("particles", columns, rows)
        )
    write_csv(out / LABELS, ("stack", "index", "selected", "mined"), labels)
