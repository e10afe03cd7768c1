"""The page of a challenge: champion and challenger on images that were labelled blind."""

from __future__ import annotations

from pathlib import Path

from cryoray import report
from cryoray.metrics.comparison import Comparison

_BOTH = ("champion", "challenger")


def challenge_page(out: Path, outcome: Comparison, champion: Path, challenger: Path) -> Path:
    """Write the comparison as a page that a person can read and file away."""
    verdict = "The challenger is better" if outcome.better else "The champion stays"
    sections = [
        report.summary_section(
            f"{verdict}: {outcome.why}.",
            {"champion": champion, "challenger": challenger},
            {
                "good images, labelled blind": f"{outcome.good:,}",
                "bad images, labelled blind": f"{outcome.bad:,}",
                "groups": outcome.groups,
            },
        )
    ]
    if rows := outcome.table():
        cells = [
            (str(row["what"]), *(report.percent(_number(row[name])) for name in _BOTH))
            for row in rows
        ]
        sections.append(report.table_section("Numbers", ("", *_BOTH), cells))
        curves = [
            (f"{bound:.1%}", report.percent(ours), report.percent(theirs))
            for bound, ours, theirs in outcome.curves
        ]
        sections.append(
            report.table_section("Junk removed, by good images lost", ("lost", *_BOTH), curves)
        )
    return report.render(out, "Champion and challenger", sections)


def _number(value: object) -> float:
    assert isinstance(value, float)
    return value
