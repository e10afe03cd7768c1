"""The page of ``validate fsc``: how far two half-maps agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoray import report
from cryoray.formats.names import METRICS
from cryoray.maps import fsc
from cryoray.settings import ValidationSettings


@dataclass(frozen=True, slots=True, eq=False)
class FscPage:
    """What is shown of two half-maps.

    Attributes:
        half1: file of a half-map.
        half2: of the other.
        out: folder of the validation.
        curves: of both.
        views: by direction.
        pixel_size: Å/px.
        side: of the maps, px.
        published: name to frequency (1/Å) and FSC of the curve that they are compared with.
    """

    half1: Path
    half2: Path
    out: Path
    curves: fsc.HalfMapFsc
    views: fsc.Directional
    pixel_size: float
    side: int
    published: Mapping[str, tuple[np.ndarray, np.ndarray]] | None

    def write(
        self,
        file: Path,
        numbers: Mapping[str, Any],
        chosen: ValidationSettings,
        digests: Mapping[str, str],
    ) -> None:
        """Write the page and its figures; ``numbers`` are those of ``metrics.json``."""
        lead = [_compared(numbers)] if "published" in numbers else []
        lead += [f"Distrust: {warning}." for warning in self.curves.warnings]
        report.render(
            file,
            "Resolution of two half-maps",
            [
                self._summary(numbers["mask"]),
                report.fsc_section(self.curves, self.published, " ".join(lead).strip()),
                report.directions_section({"this map": self.views}, self.curves.frequency),
                report.provenance_section(report.command(), [chosen], digests),
            ],
            pictures=True,
        )

    def _summary(self, mask: Mapping[str, Any] | None) -> report.Section:
        at = {threshold: self.curves.resolution(threshold) for threshold in fsc.THRESHOLDS}
        corrected = self.curves.corrected is not None
        which = "corrected for the mask" if corrected else "without a correction"
        return report.summary_section(
            f"How far two half-maps agree, {which}. Each half must have been refined on its own; nothing"
            " here can tell whether that was so.",
            {
                "half-maps": f"{self.half1}, {self.half2}",
                "box": f"{self.side} px at {self.pixel_size:.4g} Å/px",
                "mask": "none"
                if mask is None
                else f"{mask['file']}, {mask['fraction']:.1%} of the box",
            },
            {"folder": self.out, "numbers": METRICS, "figures": "figures/ (SVG, PNG, CSV)"},
            {
                f"at {threshold}": report.angstrom(found.last_shell)
                for threshold, found in at.items()
            },
        )


def _compared(numbers: Mapping[str, Any]) -> str:
    """The published curve's resolution beside this map's, as a sentence."""
    parts = []
    for threshold, difference in numbers["published"]["difference"].items():
        ours = numbers["resolution"][threshold]["interpolated"]
        theirs = numbers["published"]["resolution"][threshold]["interpolated"]
        word = "better" if difference < 0 else "worse"
        parts.append(
            f"at {threshold} this map's {ours:.2f} Å is {abs(difference):.2f} Å {word} than the"
            f" published curve's {theirs:.2f} Å"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
