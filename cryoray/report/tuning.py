"""The page of a search: what was tried, and what each axis buys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryoray import report
from cryoray.models.search import AXES, bought, first_rung
from cryoray.preparation.examples import SetExamples
from cryoray.settings import Settings, TuneSettings

TABLE = "trials.csv"


def write_page(
    out: Path,
    trials: Sequence[dict[str, Any]],
    chosen: TuneSettings,
    settings: Settings,
    examples: SetExamples,
    held_out: int,
    level: str,
) -> None:
    """Write the page of a search.

    Args:
        out: the file.
        trials: as `trials.csv` has them, the best first.
        chosen: the section ``tune`` of the settings.
        settings: all.
        examples: labelled images of the sets.
        held_out: so many of them were held out.
        level: of the groups that were held out, project or micrograph.
    """
    best, fit = trials[0], settings.train.fit
    lead = (
        f"{len(trials)} trials of one network on {len(examples) - held_out:,} images, measured on"
        f" {held_out:,} of {level}s held out. The best of many trials on one held-out fold is luckier than"
        " it is good: cross-validate before believing it."
    )
    rows = [
        [
            str(number),
            *(report.decimal(t[a]) if isinstance(t[a], float) else str(t[a]) for a in AXES),
            f"{t['parameters']:,}",
            str(t["epoch"]),
            report.decimal(t["loss"]),
            report.percent(t["accuracy"]),
        ]
        for number, t in enumerate(trials, 1)
    ]
    sections = [
        report.summary_section(
            lead,
            {"prepared sets": ", ".join(str(s.path) for s in examples.sets)},
            {TABLE: f"{len(trials)} rows"},
            {axis.replace("_", " "): f"{best[axis]:.3g}" if isinstance(best[axis], float) else str(best[axis])
             for axis in AXES},
        )
    ]  # fmt: skip
    for axis in AXES:
        table = bought(trials, axis)
        blocks: list[report.Block] = []
        if axis != "activation" and len(table) > 1:
            x = np.array([float(row["value"]) for row in table])
            lines = [
                report.Line("best", x, np.array([row["loss"] for row in table])),
                report.Line(
                    "median at the first rung",
                    x,
                    np.array([row["first_rung"] for row in table]),
                    "muted",
                    (0, (5, 1.6)),
                ),
            ]
            name = axis.replace("_", " ")
            svg = report.against(lines, f"axis-{axis}", name, "held-out loss")
            blocks.append(report.Figure(svg, f"Loss against {name}", f"Held-out loss and {name}."))
        cells = [
            [
                f"{row['value']:.2g}" if isinstance(row["value"], float) else str(row["value"]),
                str(row["trials"]),
                report.decimal(row["first_rung"]),
                report.decimal(row["loss"]),
                report.percent(row["accuracy"]),
            ]
            for row in table
        ]
        heads = (axis.replace("_", " "), "trials", "median, first rung", "best loss", "accuracy")
        blocks += report.table_section("", heads, cells).blocks
        sections.append(report.Section(f"What {axis.replace('_', ' ')} buys", blocks))
    columns = [axis.replace("_", " ") for axis in AXES]
    columns = ["trial", *columns, "weights", "epochs", "loss", "accuracy"]
    rung = first_rung(fit.epochs)
    caption = f"At most {fit.epochs} epochs; ASHA stops the worse ones from epoch {rung} on."
    sections.append(report.table_section("What was tried", columns, rows, caption))
    sections.append(report.provenance_section(report.command(), [chosen, settings.train]))
    report.render(out, "What was tried", sections)
