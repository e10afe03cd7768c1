"""One self-contained HTML page of sections: reads in any browser, on paper, by day and by night."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

import cryoray
from cryoray.validation.report.sections import (
    Block,
    Section,
    Strip,
    bound_section,
    calibration_section,
    confusion_section,
    curves_section,
    decimal,
    gallery_section,
    percent,
    provenance_section,
    result_section,
    roc_section,
    scores_section,
    summary_section,
    table_section,
    views_section,
)

__all__ = [
    "Block",
    "Section",
    "Strip",
    "bound_section",
    "calibration_section",
    "confusion_section",
    "curves_section",
    "decimal",
    "gallery_section",
    "percent",
    "provenance_section",
    "render",
    "result_section",
    "roc_section",
    "scores_section",
    "summary_section",
    "table_section",
    "views_section",
]


def render(out: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page.

    It loads nothing from anywhere: type is the reader's own, plots are inline SVG, images are data
    URIs, there is no script.

    Args:
        out: the file, written under another name and renamed.
        title: of the page.
        sections: in order.

    Returns:
        ``out``.
    """
    files = resources.files(__package__)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(files.joinpath("page.html").read_text("utf-8")).render(
        title=title,
        sections=sections,
        style=Markup(files.joinpath("page.css").read_text("utf-8")),
        version=cryoray.__version__,
    )
    out = Path(out)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(page.strip() + "\n", encoding="utf-8")
    partial.replace(out)
    return out
