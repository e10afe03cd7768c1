"""The session page's charts: lines and bars as SVG, made of numbers alone, so with nothing to escape.

Colours are the style sheet's, so that the charts follow night and day.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460.0, 170.0, 38.0, 8.0, 8.0, 26.0


@dataclass(frozen=True, slots=True)
class Bin:
    """Micrographs together: their place on the x axis, images, and the share that was kept."""

    x: float
    rate: float
    images: int
    micrographs: int


def binned(x: np.ndarray, kept: np.ndarray, images: np.ndarray, bins: int) -> list[Bin]:
    """Micrographs in bins of about as many of them, in the order of ``x``; NaN ones are left out.

    Args:
        x: float [n].
        kept: int [n], images kept of each micrograph.
        images: int [n], images judged.
        bins: how many at most.
    """
    there = np.flatnonzero(np.isfinite(x) & (images > 0))
    there = there[np.argsort(x[there], kind="stable")]
    made = []
    for some in np.array_split(there, min(bins, max(1, len(there)))):
        if len(some):
            total = int(images[some].sum())
            made.append(
                Bin(float(x[some].mean()), float(kept[some].sum() / total), total, len(some))
            )
    return made


@dataclass(frozen=True, slots=True)
class Band:
    """Where keep rates lie while nothing changes: centre, and deviation of one micrograph's."""

    centre: float
    deviation: float

    def limits(self, micrographs: int) -> tuple[float, float]:
        """Three deviations of the mean of so many."""
        half = 3 * self.deviation / math.sqrt(max(1, micrographs))
        return max(0.0, self.centre - half), min(1.0, self.centre + half)


def band(rates: np.ndarray) -> Band | None:
    """The band of a session's own past, by medians, so that a bad stretch does not widen it."""
    if len(rates) < 10:
        return None
    centre = float(np.median(rates))
    return Band(centre, 1.4826 * float(np.median(np.abs(rates - centre))))


def over_time(
    bins: Sequence[Bin],
    limits: Band | None,
    alarms: Sequence[float],
    ticks: Sequence[tuple[float, str]],
) -> Markup:
    """Keep rate over time, with the alarm band and a mark for each alarm.

    Args:
        bins: in order of time.
        limits: of the band.
        alarms: their times.
        ticks: times and what to write below them.
    """
    if len(bins) < 2 or bins[0].x == bins[-1].x:
        return _empty("Keep rate over time")
    low, high = bins[0].x, bins[-1].x
    at = _scale(low, high)
    parts = []
    if limits is not None:
        sides = [limits.limits(one.micrographs) for one in bins]
        outline = [(at(one.x), _y(top)) for one, (_, top) in zip(bins, sides, strict=True)]
        outline += [
            (at(one.x), _y(bottom))
            for one, (bottom, _) in zip(bins[::-1], sides[::-1], strict=True)
        ]
        parts.append(f'<polygon class="band" points="{_points(outline)}"/>')
    parts += [
        f'<line class="alarm" x1="{at(x):.1f}" x2="{at(x):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        for x in alarms
        if low <= x <= high
    ]
    parts.append(
        f'<polyline class="line" points="{_points([(at(b.x), _y(b.rate)) for b in bins])}"/>'
    )
    last = f"Keep rate over time; now {100 * bins[-1].rate:.0f}%"
    return _chart(last, parts, [(at(min(high, max(low, x))), text) for x, text in ticks])


def against(bins: Sequence[Bin], title: str, unit: str) -> Markup:
    """Keep rate against a number of the micrographs, with standard errors."""
    if len(bins) < 2:
        return _empty(title, "not enough micrographs yet" if bins else "not known")
    low, high = bins[0].x, bins[-1].x
    at = _scale(low, high)
    parts = [f'<polyline class="line" points="{_points([(at(b.x), _y(b.rate)) for b in bins])}"/>']
    for one in bins:
        error = math.sqrt(max(1e-9, one.rate * (1 - one.rate)) / one.images)
        top, bottom = _y(min(1.0, one.rate + error)), _y(max(0.0, one.rate - error))
        x = at(one.x)
        parts.append(
            f'<line class="error" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        )
        parts.append(f'<circle class="point" cx="{x:.1f}" cy="{_y(one.rate):.1f}" r="3"/>')
    ticks = [
        (at(x), f"{x:.3g}{' ' + unit if x == high else ''}") for x in np.linspace(low, high, 4)
    ]
    return _chart(title, parts, ticks)


def _scale(low: float, high: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda x: _LEFT + (x - low) / span * (_WIDTH - _LEFT - _RIGHT)


def _y(rate: float) -> float:
    return _TOP + (1 - rate) * (_HEIGHT - _TOP - _BOTTOM)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _chart(title: str, parts: Sequence[str], ticks: Sequence[tuple[float, str]]) -> Markup:
    grid = []
    for rate in (0.0, 0.5, 1.0):
        y = _y(rate)
        grid.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        grid.append(
            f'<text class="axis end" x="{_LEFT - 5}" y="{y + 4:.1f}">{100 * rate:.0f}%</text>'
        )
    for number, (x, text) in enumerate(ticks):
        side = "start" if number == 0 else "end" if number == len(ticks) - 1 else "middle"
        grid.append(
            f'<text class="axis {side}" x="{x:.1f}" y="{_HEIGHT - 8}">{escape(text)}</text>'
        )
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(title)}">'
        + "".join([*grid, *parts])
        + "</svg>"
    )


def _empty(title: str, why: str = "not enough micrographs yet") -> Markup:
    return Markup(f'<p class="none" aria-label="{escape(title)}">{escape(why)}</p>')
