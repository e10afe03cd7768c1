"""The page of ``validate reconstruct``: what the verdicts did to the map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoray import report
from cryoray.maps import fsc
from cryoray.maps.choices import MeasuredSet, random_of
from cryoray.settings import ValidationSettings


@dataclass(frozen=True, slots=True, eq=False)
class ChoicesPage:
    """What is shown of maps of choices.

    Attributes:
        source: file of the particles.
        verdicts: folder or table.
        out: folder of the validation.
        measured: of each set: kept, all, discarded, review, random 1 …
    """

    source: Path
    verdicts: Path
    out: Path
    measured: Mapping[str, MeasuredSet]

    def write(
        self,
        file: Path,
        numbers: Mapping[str, Any],
        chosen: ValidationSettings,
        digests: Mapping[str, str],
    ) -> None:
        """Write the page and its figures; ``numbers`` are those of ``metrics.json``."""
        sections = self._sections(numbers)
        sections.append(report.provenance_section(report.command(), [chosen], digests))
        report.render(file, "What the verdicts did to the map", sections, pictures=True)

    def _sections(self, numbers: Mapping[str, Any]) -> list[report.Section]:
        kept, whole, random = self.measured["kept"], self.measured["all"], random_of(self.measured)
        frequency = kept.curves.frequency
        looks = {"kept": ("keep", "-"), "all": ("ink", "-"), "discarded": ("discard", "-")}
        looks["review"] = ("review", "-")

        def lines(of: Callable[[MeasuredSet], np.ndarray]) -> list[report.Line]:
            drawn = [
                report.Line(name, frequency, of(self.measured[name]), colour, style)
                for name, (colour, style) in looks.items()
                if name in self.measured
            ]
            if random:
                curves = np.stack([of(one) for one in random])
                band = np.stack([curves.min(0), curves.max(0)])
                drawn.append(
                    report.Line(
                        "random, as many", frequency, curves.mean(0), "d1", (0, (5, 1.6)), band
                    )
                )
            return drawn

        sections = [
            report.summary_section(
                "The same poses and half-sets, the same mask; only the choice of particles differs.",
                {
                    "particles": f"{self.source}: {numbers['rows']:,} rows, of which {numbers['left_out']:,}"
                    " were left out (not judged, in no half-set, without a pose, or unreadable)",
                    "verdicts": self.verdicts,
                    "symmetry": numbers["symmetry"],
                },
                {
                    "folder": self.out,
                    "half-maps": "kept_half1.mrc …",
                    "figures": "figures/ (SVG, PNG, CSV)",
                },
                {
                    f"kept ({kept.particles:,})": report.angstrom(kept.resolution),
                    f"all ({whole.particles:,})": report.angstrom(whole.resolution),
                },
            ),
            report.sets_section(
                lines(lambda one: one.curves.best),
                [_set_row(name, one) for name, one in self.measured.items()],
            ),
        ]
        if kept.truth is not None:
            sections.append(report.truth_section(lines(lambda one: np.asarray(one.truth))))
        sections.append(
            report.reslog_section(
                [
                    report.Line(
                        f"{name}: B = {found['b_factor']:.0f} Å²" if found["b_factor"] else name,
                        np.array(found["particles"]),
                        1 / np.array(found["resolution"]) ** 2,
                        looks[name][0],
                    )
                    for name, found in numbers["reslog"].items()
                ]
            )
        )
        warning = (
            "The kept particles make a map that is more anisotropic than that of all, and than any random"
            " subset as large: views may have been lost."
            if numbers["more_anisotropic"]
            else ""
        )
        views = {name: self.measured[name].views for name in ("kept", "all")}
        sections.append(report.directions_section(views, frequency, warning))
        doubts = [
            f"{name}: {warning}."
            for name in self.measured
            for warning in self.measured[name].curves.warnings
        ]
        if doubts:
            sections.append(report.Section("Distrust", [], " ".join(doubts[:6])))
        return sections


def _set_row(name: str, one: MeasuredSet) -> tuple[str, ...]:
    at = {threshold: one.curves.resolution(threshold) for threshold in fsc.THRESHOLDS}
    return (
        name,
        f"{one.particles:,}",
        report.angstrom(at[0.143].last_shell),
        report.angstrom(at[0.143].interpolated),
        report.angstrom(at[0.5].interpolated),
        report.angstrom(one.true_resolution),
        f"{one.views.area_ratio:.3f}",
    )
