"""The page of ``validate similarity``: do our class averages look like the person's?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoray import report
from cryoray.formats.names import METRICS
from cryoray.maps import similarity
from cryoray.maps.similarity import ClassSimilarity, Similarity
from cryoray.report import plots
from cryoray.report.blocks import Block, Figure, Section, Strip, Table
from cryoray.settings import ValidationSettings

#: Classes whose pictures are shown, the worst.
_SHOWN = 8


@dataclass(frozen=True, slots=True, eq=False)
class AveragesPage:
    """What is shown of class averages.

    Attributes:
        source: file of the particles.
        particles: how many have a label and a verdict.
        selection: the person's.
        verdicts: ours, folder or table.
        out: folder of the validation.
        alike: one for each class that was compared.
        projected: by class, with the projection of the map that is most like our average.
    """

    source: Path
    particles: int
    selection: Path
    verdicts: Path
    out: Path
    alike: Sequence[ClassSimilarity]
    projected: Mapping[int, Similarity]

    def write(
        self,
        file: Path,
        numbers: Mapping[str, Any],
        chosen: ValidationSettings,
        digests: Mapping[str, str],
    ) -> None:
        """Write the page and its figures; ``numbers`` are those of ``metrics.json``."""
        report.render(
            file,
            "Do our class averages look like the person's?",
            [
                report.summary_section(
                    "For each 2D class, the average of what we kept is compared with the average of what a"
                    " person kept, aligned by the class's own poses, corrected for the CTF, low-passed to the"
                    " class's resolution, inside the mask, at zero mean and unit variance.",
                    {
                        "particles": f"{self.source}: {self.particles:,} with a label and a verdict",
                        "selection": self.selection,
                        "verdicts": self.verdicts,
                        "classes": f"{len(self.alike)} compared, {numbers['classes_left_out']} left out"
                        " (fewer than four particles kept)",
                    },
                    {
                        "folder": self.out,
                        "numbers": METRICS,
                        "figures": "figures/ (SVG, PNG, CSV)",
                    },
                    {
                        "median MSE": f"{numbers['ours']['mse']['median']:.3f}",
                        "at random": f"{numbers['chance']['mse']['median']:.3f}",
                        "two halves": f"{numbers['floor']['mse']['median']:.3f}",
                    },
                ),
                *_similarity_sections(self.alike, self.projected, _SHOWN),
                report.provenance_section(report.command(), [chosen], digests),
            ],
            pictures=True,
        )


def _similarity_sections(
    alike: Sequence[ClassSimilarity], projected: Mapping[int, Similarity], shown: int
) -> list[Section]:
    """Distributions over classes, each number beside its two references, and the worst as pictures.

    Args:
        alike: one for each class.
        projected: by class, of the average of the kept with the projection of the map that is most like it.
        shown: how many of the worst.
    """
    kinds = (
        ("ours and the person's", "similarity", "ink", "-"),
        ("as many removed at random", "chance", "d1", (0, (5, 1.6))),
        ("two halves of the person's", "floor", "discard", (0, (1.2, 1.4))),
    )
    titles = {
        "mse": "squared difference (lower is more alike)",
        "ssim": "SSIM (higher is more alike)",
        "frc": "FRC up to the resolution (higher is more alike)",
    }
    blocks: list[Block] = []
    rows = []
    part = np.linspace(0, 1, len(alike)) if len(alike) > 1 else np.array([0.5])
    for number, title in titles.items():
        values = {
            label: np.array([getattr(getattr(one, kind), number) for one in alike])
            for label, kind, _, _ in kinds
        }
        lines = [
            plots.Line(label, part, np.sort(values[label]), colour, style)
            for label, _, colour, style in kinds
        ]
        if projected:
            values["ours and the map's projection"] = np.array(
                [getattr(one, number) for one in projected.values()]
            )
        svg = plots.against(lines, f"similarity-{number}", "fraction of classes", number.upper())
        alt = f"Distribution over classes of {title}"
        blocks.append(
            Figure(svg, alt, f"{title[:1].upper()}{title[1:]} over {len(alike)} classes, sorted.")
        )
        for label, found in values.items():
            low, median, high = np.quantile(found, (0.05, 0.5, 0.95))
            rows.append(
                (f"{number.upper()}, {label}", f"{median:.3f}", f"{low:.3f}", f"{high:.3f}")
            )
    caption = (
        f"SSIM: uniform window of {similarity.WINDOW} px, data range {similarity.DATA_RANGE:g} (±3 standard"
        " deviations), mean inside the mask. At random: the person's own, less as many random particles as"
        " they kept and we did not. Two halves: of the person's own; each has half the particles, so a"
        " selection that lost few lies well below its MSE."
    )
    blocks.append(Table(("", "median", "5%", "95%"), tuple(rows), caption))
    worst = sorted(alike, key=lambda one: one.chance.mse - one.similarity.mse)[:shown]
    strips = [
        Strip(
            f"Class {one.number}",
            "discard" if one.similarity.mse > 2 * one.chance.mse else "review",
            one.images,
            np.array([one.similarity.mse, one.chance.mse]),
            ["ours", "the person's"],
            f"Ours ({one.ours:,} particles) and the person's ({one.person:,}), {one.shared:,} in common:"
            f" MSE {one.similarity.mse:.4f}, at random {one.chance.mse:.4f}.",
        )
        for one in worst
    ]
    lead = (
        "What we kept should look no less like the person's average than that average does with as many"
        " particles removed at random. Where it does, the choice changes what the class shows."
    )
    return [
        Section("Similarity of class averages", blocks, lead),
        Section("Worst classes", strips, "Farthest beyond chance first."),
    ]
