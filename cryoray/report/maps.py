"""Sections about maps: curves of half-maps, of choices, by direction and against number of particles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cryoray.maps import fsc
from cryoray.maps.fsc import Directional, HalfMapFsc
from cryoray.report import plots
from cryoray.report.blocks import Figure, Section, Table, angstrom


def fsc_section(
    curves: HalfMapFsc,
    published: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    lead: str = "",
) -> Section:
    """The curves of two half-maps, and their resolutions by both definitions and at both thresholds.

    Args:
        curves: of the half-maps.
        published: name to frequency (1/Å) and FSC of curves to compare with, the one that matters first.
        lead: a paragraph before.
    """
    looks: dict[str, tuple[str, Any, float]] = {
        "unmasked": ("muted", "-", 1.3),
        "masked": ("d1", (0, (5, 1.6)), 1.3),
        "phase_randomised": ("discard", (0, (1.2, 1.4)), 1.3),
        "corrected": ("ink", "-", 2.0),
    }
    lines = [
        plots.Line(name.replace("_", " "), curves.frequency, curve, colour, style, width=width)
        for name, curve in curves.curves.items()
        for colour, style, width in [looks[name]]
    ]
    rows = [
        _resolutions(line.label, line.x, line.y)
        for line in reversed(lines)
        if line.label != "phase randomised"
    ]
    for name, (frequency, curve) in (published or {}).items():
        rows.append(_resolutions(name, frequency, curve))
        within = frequency <= curves.frequency[-1] * 1.0001
        lines.append(
            plots.Line(name, frequency[within], curve[within], "review", (0, (6, 2, 1, 2)))
        )
    figure = Figure(
        plots.shells(lines, "fsc"),
        f"FSC curves; {rows[0][0]} {rows[0][2]} at 0.143",
        "Against spatial frequency, with the resolution above."
        + (
            f" Phases were randomised from {angstrom(curves.randomised_from)}; the corrected curve is the"
            " masked one less what the mask alone correlates."
            if curves.randomised_from
            else ""
        ),
        wide=True,
    )
    heads = ("curve", "0.143, last shell", "0.143, crossing", "0.5, last shell", "0.5, crossing")
    caption = (
        "Last shell: of the last shell before the first one below the threshold, as RELION gives it."
        " Crossing: linear between that shell and the next. ≤ where the curve ends at Nyquist."
    )
    return Section("Fourier shell correlation", [figure, Table(heads, tuple(rows), caption)], lead)


def sets_section(lines: Sequence[plots.Line], rows: Sequence[tuple[str, ...]]) -> Section:
    """FSC of the maps of several sets of particles, one curve each, and a row of numbers for each."""
    figure = Figure(
        plots.shells(lines, "sets"),
        "FSC of the maps of the kept, of all, of the discarded and of random subsets",
        "FSC between half-maps, corrected for the mask where there is one. Random subsets are as large as"
        " the kept; their band is from the worst to the best.",
        wide=True,
    )
    heads = (
        "particles in the map",
        "how many",
        "0.143, last shell",
        "0.143, crossing",
        "0.5, crossing",
        "true map, 0.5",
        "area ratio",
    )
    caption = (
        "Resolutions. A choice that helps has the kept at least as good as all; one that is no better than"
        " chance has them as good as random subsets. Area ratio: see Directions."
    )
    lead = (
        "Half-maps of particles that were chosen for resembling a reference can agree about that reference:"
        " the choice sees both halves. So a gain here is a gain only if it is also one against something"
        " that the choice did not know."
    )
    return Section("Maps of the choices", [figure, Table(heads, tuple(rows), caption)], lead)


def truth_section(lines: Sequence[plots.Line]) -> Section:
    """FSC against the true map, which only simulated particles have."""
    figure = Figure(
        plots.shells(lines, "truth", thresholds=(0.5,), label="FSC with the true map"),
        "FSC with the true map of the kept, of all, of the discarded and of random subsets",
        "At 0.5, since the true map has no noise. What half-maps share without its being true, such as a"
        " bias of the choice, is no gain here.",
        wide=True,
    )
    return Section("Against the truth", [figure])


def reslog_section(lines: Sequence[plots.Line]) -> Section:
    """Resolution against number of particles, as squared spatial frequency against its logarithm."""
    svg = plots.against(lines, "reslog", "particles", "1/resolution², 1/Å²", logarithmic=True)
    figure = Figure(
        svg,
        "Squared resolution against number of particles",
        "From a sixteenth of the particles to all (ResLog; Stagg et al. 2014). The slope is 2/B (Rosenthal"
        " and Henderson 2003): a lower B reaches a resolution with fewer particles.",
    )
    return Section("Resolution and number of particles", [figure])


def directions_section(
    views: Mapping[str, Directional], frequency: np.ndarray, lead: str = ""
) -> Section:
    """FSC in cones: how far it depends on direction.

    Args:
        views: name to the directional FSC of each map, the one that matters first.
        frequency: of their curves, 1/Å.
        lead: a warning.
    """
    colours = ("ink", "d1", "discard", "review", "d2")
    lines = [
        plots.Line(
            f"{name}: mean of cones, and their range",
            frequency,
            view.fsc.mean(0),
            colour,
            band=np.stack([view.fsc.min(0), view.fsc.max(0)]),
        )
        for (name, view), colour in zip(views.items(), colours, strict=False)
    ]
    rows = []
    for name, view in views.items():
        known = view.resolution[np.isfinite(view.resolution)]
        x, y, z = view.worst
        rows.append(
            (
                name,
                angstrom(float(known.min()) if len(known) else None),
                angstrom(float(known.max()) if len(known) == len(view.resolution) else None),
                f"{view.area_ratio:.3f}",
                f"{x:.2f}, {y:.2f}, {z:.2f}",
            )
        )
    caption = (
        f"{fsc.DIRECTIONS} cones of {fsc.CONE:.0f}° half-angle; resolution at 0.143. Area ratio: the smallest"
        " area under a cone's curve over the largest; 1 where all directions are alike."
    )
    heads = ("map", "best cone", "worst cone", "area ratio", "worst direction x, y, z")
    figure = Figure(
        plots.shells(lines, "directions", thresholds=(0.143,)),
        f"Directional FSC; area ratio {rows[0][3]}",
        "FSC in cones: the mean over directions, and from the worst to the best of them.",
        wide=True,
    )
    return Section("Directions", [figure, Table(heads, tuple(rows), caption)], lead)


def _resolutions(name: str, frequency: np.ndarray, curve: np.ndarray) -> tuple[str, ...]:
    cells = [name]
    for threshold in fsc.THRESHOLDS:
        found = fsc.resolution(frequency, curve, threshold)
        sign = "≤\N{NO-BREAK SPACE}" if found.nyquist else ""
        cells += [sign + angstrom(found.last_shell), sign + angstrom(found.interpolated)]
    return tuple(cells)
