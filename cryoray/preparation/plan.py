"""Plan: rows become ranges that can be read, and rows that cannot become reasons.

That takes the headers of the stacks. Pixels are read in two cases: of up to 200 images where nobody says
whether protein is bright or dark, and of the 2D classes of a job, whose features and windows follow from all.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cryoray.errors import FormatError, printable
from cryoray.formats.mrc import absence, read_frames
from cryoray.formats.opening import in_scope
from cryoray.formats.source import Source
from cryoray.preparation.features import chosen_features, job_windows, source_features
from cryoray.preparation.prepare import prepare_images, window_sides
from cryoray.preparation.reader import Headers, reason
from cryoray.records import RowRange, Stack
from cryoray.settings import PreparationSettings

#: Images looked at to find out whether protein is bright, and how sure one must be to depart from
#: RELION's convention that it is (standard errors).
_LOOKED_AT, _SURE = 200, 4.0
#: The particle's middle, in which its sign shows (fraction of the box).
_MIDDLE = 0.2
#: Stacks looked into at once: across a network each is late, and many together are not later.
_AT_ONCE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What will be read of a source.

    Attributes:
        source: all of it.
        wanted: int64 [n], the 0-based rows planned for, ascending.
        ranges: the rows that can be read, as far as headers tell, each in one range; those of a stack
            one after the other.
        quarantined: (0-based row, reason) of the others.
        features: names of the ranges' feature columns.
        pixel_size: float32 [n] of all rows, Å/px: the source's, else the stack's, else NaN.
        prepared_pixel_size: float32 [n], Å/px of the network's input.
        invert: whether protein is dark in the source.
    """

    source: Source
    wanted: np.ndarray
    ranges: tuple[RowRange, ...]
    quarantined: tuple[tuple[int, str], ...]
    features: tuple[str, ...]
    pixel_size: np.ndarray
    prepared_pixel_size: np.ndarray
    invert: bool

    @property
    def rows(self) -> int:
        """How many rows are planned for, quarantined ones included."""
        return sum(len(part.rows) for part in self.ranges) + len(self.quarantined)

    @property
    def bytes(self) -> int:
        """Raw bytes that will be read."""
        return sum(part.bytes for part in self.ranges)


def plan(
    source: Source,
    settings: PreparationSettings,
    range_mib: int,
    *,
    rows: np.ndarray | None = None,
    invert: bool | None = None,
) -> Plan:
    """Divide a source's rows into ranges of one stack each, of ``range_mib`` to twice as many raw MiB.

    A smaller stack is one range; `grouped` puts those together. Headers of the stacks that are needed
    are read, side by side, and up to 200 images where ``settings.contrast`` is ``auto``. What becomes
    of a row does not depend on which others are asked for. Beyond the headers, the time is that of
    one sort of the rows.

    Args:
        source: what to read.
        settings: how it will be prepared.
        range_mib: raw MiB in a range, at least, where the stack has them.
        rows: int64, 0-based, the rows wanted; None for all.
        invert: whether protein is dark, where a caller knows it from an earlier plan.

    Raises:
        SettingsError: there is no such feature.
    """
    headers = Headers(source.stacks)
    wanted = np.arange(len(source)) if rows is None else np.unique(np.asarray(rows, np.int64))
    reasons = _repeated(source, wanted)
    if source.problems:
        asked = np.zeros(len(source), bool)
        asked[wanted] = True
        reasons |= {row: why for row, why in source.problems.items() if asked[row]}
    usable = np.zeros(len(source), bool)
    usable[wanted] = True
    usable[list(reasons)] = False
    reasons |= dict.fromkeys(np.flatnonzero(usable & (source.stack < 0)).tolist(), "names no image")
    usable &= source.stack >= 0
    # From here on the rows are by stack, and in each by place: read in order, whatever the source's.
    here = np.flatnonzero(usable)
    here = here[np.lexsort((source.frame[here], source.stack[here]))]
    needed = np.unique(source.stack[here]).tolist()
    headers.read(needed)
    count, height, width = (np.zeros(len(source.stacks), np.int64) for _ in range(3))
    in_header = np.full(len(source.stacks), np.nan, np.float32)
    for index in needed:
        stack = headers[index]
        if isinstance(stack, Stack):
            count[index], height[index], width[index] = stack.count, stack.height, stack.width
            in_header[index] = np.nan if stack.pixel_size is None else stack.pixel_size
    inside = (source.frame[here] >= 0) & (source.frame[here] < count[source.stack[here]])
    reasons |= _unreadable(source, here[~inside], headers)
    here = here[inside]
    if source.whole is not None:
        of = source.stack[here]
        several = source.whole[here] & (count[of] > 1)
        for row, index in zip(here[several].tolist(), of[several].tolist(), strict=True):
            reasons[row] = (
                f"names {printable(source.stacks[index].name)} without the number of an image, and that"
                f" holds {count[index]:,}: it is a stack or a volume"
            )
        here = here[~several]
    pixel_size = source.pixel_size.astype(np.float32, copy=True)
    of = source.stack[here]
    pixel_size[here] = np.where(np.isfinite(pixel_size[here]), pixel_size[here], in_header[of])
    if invert is None:
        invert = protein_is_dark(source, settings, headers)
    by_job = settings.geometry == "job" and source.kind == "class2d"
    sides = window_sides((height[of], width[of]), pixel_size[here], settings)
    if by_job:
        windows = job_windows(source, settings.diameter, invert)[here]
        whole = np.minimum(height[of], width[of])
        sides = np.where(np.isfinite(windows), windows, whole).astype(np.int64)
    prepared_pixel_size = np.full(len(source), np.nan, np.float32)
    prepared_pixel_size[here] = pixel_size[here] * sides / settings.box
    names = settings.features
    table = source_features(
        source,
        names,
        rows=here,
        prepared_pixel_size=prepared_pixel_size[here],
        diameter=settings.diameter,
        invert=invert,
    )
    frames, sizes = source.frame[here], pixel_size[here]
    ranges: list[RowRange] = []
    for start, end in pairwise([0, *(np.flatnonzero(np.diff(of)) + 1).tolist(), len(here)]):
        if start == end:
            continue
        stack = headers[int(of[start])]
        assert isinstance(stack, Stack)
        # As few as may be, since each costs the cluster the same, however small. A compressed stack is
        # unpacked from its beginning by whoever reads any of it.
        most = max(1, 2 * (range_mib << 20) // stack.image_bytes)
        parts = 1 if stack.compression else -(-(end - start) // most)
        for first, last in pairwise(np.linspace(start, end, parts + 1).astype(int).tolist()):
            ranges.append(
                RowRange(
                    index=len(ranges),
                    stack=stack,
                    frames=frames[first:last],
                    rows=here[first:last],
                    pixel_size=sizes[first:last],
                    features=table[first:last],
                    invert=invert,
                    window=int(sides[first]) if by_job else None,
                )
            )
    return Plan(
        source=source,
        wanted=wanted,
        ranges=tuple(ranges),
        quarantined=tuple(sorted(reasons.items())),
        features=tuple(feature.name for feature in chosen_features(source.kind, names)),
        pixel_size=pixel_size,
        prepared_pixel_size=prepared_pixel_size,
        invert=invert,
    )


def grouped(
    ranges: Sequence[RowRange], range_mib: int, images: int | None = None
) -> list[list[RowRange]]:
    """Neighbouring ranges put together: one task's work.

    Args:
        ranges: of a plan.
        range_mib: a group has up to twice as many raw MiB, and at least one range.
        images: most rows of a group; a longer range is cut, unless its stack is compressed, which whoever
            reads any of it unpacks from its beginning. None: ranges stay whole.
    """
    groups: list[list[RowRange]] = []
    room_bytes, room_rows = 0, 0
    for whole in ranges:
        step = len(whole.rows) if images is None or whole.stack.compression else images
        for start in range(0, len(whole.rows), step):
            part = whole[start : start + step] if step < len(whole.rows) else whole
            if not groups or part.bytes > room_bytes or (images and len(part.rows) > room_rows):
                groups.append([])
                room_bytes, room_rows = 2 * (range_mib << 20), images or 0
            groups[-1].append(part)
            room_bytes -= part.bytes
            room_rows -= len(part.rows)
    return groups


def protein_is_dark(
    source: Source, settings: PreparationSettings, headers: Headers | None = None
) -> bool:
    """Whether pixels must change sign to make protein bright.

    For ``contrast="auto"`` up to 200 images spread evenly over the source are prepared as they are,
    and their middles compared with their backgrounds: the median over images against its standard
    error. Where that is weak (few images, mostly junk), RELION's convention decides: bright.
    """
    if settings.contrast != "auto":
        return settings.contrast == "dark"
    usable = np.flatnonzero((source.stack >= 0) & (source.frame >= 0))
    if not len(usable):
        return False
    spread = usable[np.unique(np.linspace(0, len(usable) - 1, _LOOKED_AT).round().astype(np.int64))]
    spread = spread[np.lexsort((source.frame[spread], source.stack[spread]))]
    headers = headers or Headers(source.stacks)
    cuts = np.flatnonzero(np.diff(source.stack[spread])) + 1
    of_stack = np.split(spread, cuts.tolist())
    headers.read(source.stack[rows[0]] for rows in of_stack)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        read = list(pool.map(in_scope(lambda rows: _look(source, rows, headers)), of_stack))
    # A small box is a low-pass filter.
    small, middles = settings.model_copy(update={"box": 32}), []
    for shape in {images.shape[1:] for images, _ in read if len(images)}:
        alike = [(images, size) for images, size in read if images.shape[1:] == shape]
        raw, size = (np.concatenate(column) for column in zip(*alike, strict=True))
        prepared, bad = prepare_images(raw, size, False, small)
        good = np.setdiff1d(np.arange(len(raw)), list(bad))
        middles.append(prepared[good][:, _disc()].mean(1))
    middle = np.concatenate([np.empty(0, np.float32), *middles])
    if len(middle) < 2:
        return False
    median = float(np.median(middle))
    error = 1.858 * float(np.median(np.abs(middle - median))) / np.sqrt(len(middle))
    return bool(median < -_SURE * max(error, 1e-6))


def _look(source: Source, rows: np.ndarray, headers: Headers) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, H, W] of some rows of one stack and their Å/px; none where they cannot be read."""
    stack = headers[int(source.stack[rows[0]])]
    nothing = np.empty((0, 0, 0), np.float32), np.empty(0, np.float32)
    if isinstance(stack, str):
        return nothing
    rows = rows[source.frame[rows] < stack.count]
    size = source.pixel_size[rows]
    if stack.pixel_size is not None:
        size = np.where(np.isfinite(size), size, stack.pixel_size)
    try:
        return read_frames(stack, source.frame[rows]), size.astype(np.float32)
    except FormatError:
        return nothing


def _disc() -> np.ndarray:
    axis = (np.arange(32) - 16) / 32
    return np.hypot(axis[:, None], axis) <= _MIDDLE


def _repeated(source: Source, wanted: np.ndarray) -> dict[int, str]:
    """The rows wanted that name an image which an earlier row names: judged once, counted once."""
    concerned = np.zeros(len(source.stacks) + 1, bool)  # the last stands for -1, no stack
    concerned[source.stack[wanted]] = True
    concerned[-1] = False
    frames = source.frame[wanted]
    frames = frames[frames >= 0]
    if not len(frames):
        return {}
    # Of a stack that may have millions, only rows on images from the first to the last that is wanted.
    near = (source.frame >= frames.min()) & (source.frame <= frames.max())
    rows = np.flatnonzero(concerned[source.stack] & near)
    keys = source.stack[rows].astype(np.int64) << 40 | source.frame[rows]
    order = np.argsort(keys, kind="stable")
    rows, keys = rows[order], keys[order]
    new = np.append(True, keys[1:] != keys[:-1])[: len(rows)]
    again = rows[~new]
    earlier = rows[new][np.cumsum(new) - 1][~new]
    asked = np.zeros(len(source), bool)
    asked[wanted] = True
    return {
        row: f"is the same image as row {first + 1:,}"
        for row, first in zip(
            again[asked[again]].tolist(), earlier[asked[again]].tolist(), strict=True
        )
    }


def _unreadable(source: Source, rows: np.ndarray, headers: Headers) -> dict[int, str]:
    """Why these rows cannot be read: their stack cannot, or has no such image."""
    reasons: dict[int, str] = {}
    missing: dict[int, str] = {}
    for row, index in zip(rows.tolist(), source.stack[rows].tolist(), strict=True):
        stack = headers[index]
        if isinstance(stack, str):
            reasons[row] = stack
            continue
        if index not in missing:
            try:
                missing[index] = absence(stack)
            except FormatError as error:
                missing[index] = reason(error)
        reasons[row] = f"image {source.frame[row] + 1:,} is not there: {missing[index]}"
    return reasons
