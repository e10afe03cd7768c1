"""Who reads what: from the headers alone, rows become ranges, and unusable rows become reasons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cryoray.errors import FormatError
from cryoray.formats.mrc import absence
from cryoray.formats.source import Source
from cryoray.preparation.features import chosen_features, source_features
from cryoray.preparation.prepare import prepare_range, window_sides
from cryoray.preparation.reader import Headers, reason
from cryoray.records import RowRange, Stack
from cryoray.settings import PreparationSettings

#: Images looked at to find out whether protein is bright, and how sure one must be to depart from
#: RELION's convention that it is (standard errors).
_LOOKED_AT, _SURE = 200, 4.0
#: The particle's middle, in which its sign shows (fraction of the box).
_MIDDLE = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What will be read of a source.

    Attributes:
        source: all of it.
        ranges: the rows that can be read, as far as headers tell, each in one range.
        quarantined: (0-based row, reason) of the others.
        features: names of the ranges' feature columns.
        pixel_size: float32 [n] of all rows, Å/px: the source's, else the stack's, else NaN.
        prepared_pixel_size: float32 [n], Å/px of the network's input.
        invert: whether protein is dark in the source.
    """

    source: Source
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


def plan(
    source: Source,
    settings: PreparationSettings,
    range_mib: int,
    *,
    rows: np.ndarray | None = None,
    invert: bool | None = None,
) -> Plan:
    """Divide a source's rows into ranges of one stack each, of at most ``range_mib`` raw MiB.

    Headers of the stacks that are needed are read, and up to 200 images where ``settings.contrast``
    is ``auto``. What becomes of a row does not depend on which others are asked for.

    Args:
        source: what to read.
        settings: how it will be prepared.
        range_mib: raw MiB in a range.
        rows: int64, 0-based, the rows wanted; None for all.
        invert: whether protein is dark, where a caller knows it from an earlier plan.

    Raises:
        SettingsError: there is no such feature.
    """
    headers = Headers(source.stacks)
    wanted = np.arange(len(source)) if rows is None else np.unique(np.asarray(rows, np.int64))
    asked = set(wanted.tolist())
    reasons = _repeated(source, wanted)
    reasons |= {row: why for row, why in source.problems.items() if row in asked}
    pixel_size = source.pixel_size.astype(np.float32, copy=True)
    prepared_pixel_size = np.full(len(source), np.nan, np.float32)
    found: list[tuple[Stack, np.ndarray]] = []
    left = wanted[~np.isin(wanted, list(reasons))]
    for index in np.unique(source.stack[left]).tolist():
        here = left[source.stack[left] == index]
        stack = headers[index] if index >= 0 else "names no image"
        if isinstance(stack, str):
            reasons |= dict.fromkeys(here.tolist(), stack)
            continue
        inside = (source.frame[here] >= 0) & (source.frame[here] < stack.count)
        reasons |= {row: _outside(stack, int(source.frame[row])) for row in here[~inside].tolist()}
        here = here[inside]
        if stack.pixel_size is not None:
            pixel_size[here] = np.where(
                np.isfinite(pixel_size[here]), pixel_size[here], stack.pixel_size
            )
        sides = window_sides((stack.height, stack.width), pixel_size[here], settings)
        prepared_pixel_size[here] = pixel_size[here] * sides / settings.box
        found.append((stack, here[np.argsort(source.frame[here], kind="stable")]))
    if invert is None:
        invert = protein_is_dark(source, settings)
    names = settings.features
    ranges: list[RowRange] = []
    for stack, here in found:
        table = source_features(
            source,
            names,
            rows=here,
            prepared_pixel_size=prepared_pixel_size[here],
            diameter=settings.diameter,
            invert=invert,
        )
        size = max(1, (range_mib << 20) // stack.image_bytes)
        for start in range(0, len(here), size):
            some = here[start : start + size]
            ranges.append(
                RowRange(
                    index=len(ranges),
                    stack=stack,
                    frames=source.frame[some],
                    rows=some,
                    pixel_size=pixel_size[some],
                    features=table[start : start + size],
                    invert=invert,
                )
            )
    return Plan(
        source=source,
        ranges=tuple(ranges),
        quarantined=tuple(sorted(reasons.items())),
        features=tuple(feature.name for feature in chosen_features(source.kind, names)),
        pixel_size=pixel_size,
        prepared_pixel_size=prepared_pixel_size,
        invert=invert,
    )


def protein_is_dark(source: Source, settings: PreparationSettings) -> bool:
    """Whether pixels must change sign to make protein bright.

    For ``contrast="auto"`` up to 200 images spread evenly over the source are prepared as they are,
    and their middles compared with their backgrounds: the median over images against its standard
    error. Where that is weak (few images, mostly junk), RELION's convention decides: bright.
    """
    if settings.contrast != "auto":
        return settings.contrast == "dark"
    usable = np.flatnonzero((source.stack >= 0) & (source.frame >= 0))
    spread = np.unique(np.linspace(0, len(usable) - 1, _LOOKED_AT).round().astype(np.int64))
    headers, middles = Headers(source.stacks), []
    for index in np.unique(source.stack[usable[spread]]).tolist() if len(usable) else ():
        stack = headers[index]
        if isinstance(stack, str):
            continue
        here = usable[spread][source.stack[usable[spread]] == index]
        here = here[source.frame[here] < stack.count]
        pixel_size = source.pixel_size[here]
        if stack.pixel_size is not None:
            pixel_size = np.where(np.isfinite(pixel_size), pixel_size, stack.pixel_size)
        order = np.argsort(source.frame[here], kind="stable")
        looked_at = RowRange(
            index=0,
            stack=stack,
            frames=source.frame[here][order],
            rows=here[order],
            pixel_size=pixel_size[order].astype(np.float32),
            features=np.empty((len(here), 0), np.float32),
        )
        # A small box is a low-pass filter.
        images = prepare_range(looked_at, settings.model_copy(update={"box": 32})).images
        middles.append(images[:, _disc()].mean(1))
    middle = np.concatenate([np.empty(0, np.float32), *middles])
    if len(middle) < 2:
        return False
    median = float(np.median(middle))
    error = 1.858 * float(np.median(np.abs(middle - median))) / np.sqrt(len(middle))
    return bool(median < -_SURE * max(error, 1e-6))


def _disc() -> np.ndarray:
    axis = (np.arange(32) - 16) / 32
    return np.hypot(axis[:, None], axis) <= _MIDDLE


def _repeated(source: Source, wanted: np.ndarray) -> dict[int, str]:
    """The rows wanted that name an image which an earlier row names: judged once, counted once."""
    named = np.flatnonzero((source.stack >= 0) & (source.frame >= 0))
    keys = source.stack[named].astype(np.int64) << 40 | source.frame[named]
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    earlier = np.arange(len(source))
    earlier[named] = named[first[which]]
    again = wanted[earlier[wanted] < wanted]
    return {row: f"is the same image as row {earlier[row] + 1:,}" for row in again.tolist()}


def _outside(stack: Stack, frame: int) -> str:
    try:
        return f"image {frame + 1:,} is not there: {absence(stack)}"
    except FormatError as error:
        return reason(error)
