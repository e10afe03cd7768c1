"""One self-contained HTML page of sections: reads in any browser, on paper, by day and by night.

What is exported is imported when it is first used: matplotlib when something is drawn, and not before.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryoray.report.accuracy import (
        ablation_section,
        bound_held_section,
        calibration_section,
        confusion_section,
        result_section,
        roc_section,
        scores_section,
        views_section,
    )
    from cryoray.report.blocks import (
        Block,
        Figure,
        Section,
        Strip,
        angstrom,
        decimal,
        gallery_section,
        percent,
        table_section,
    )
    from cryoray.report.maps import (
        directions_section,
        fsc_section,
        reslog_section,
        sets_section,
        truth_section,
    )
    from cryoray.report.page import (
        render,
    )
    from cryoray.report.plots import (
        Drawing,
        Line,
        against,
    )
    from cryoray.report.provenance import (
        command,
        provenance_section,
        summary_section,
    )
    from cryoray.report.training import (
        bound_section,
        curves_section,
    )

__all__ = [
    "Block",
    "Drawing",
    "Figure",
    "Line",
    "Section",
    "Strip",
    "ablation_section",
    "against",
    "angstrom",
    "bound_held_section",
    "bound_section",
    "calibration_section",
    "command",
    "confusion_section",
    "curves_section",
    "decimal",
    "directions_section",
    "fsc_section",
    "gallery_section",
    "percent",
    "provenance_section",
    "render",
    "reslog_section",
    "result_section",
    "roc_section",
    "scores_section",
    "sets_section",
    "summary_section",
    "table_section",
    "truth_section",
    "views_section",
]

_EXPORTED = {
    "accuracy": (
        "ablation_section",
        "bound_held_section",
        "calibration_section",
        "confusion_section",
        "result_section",
        "roc_section",
        "scores_section",
        "views_section",
    ),
    "blocks": (
        "Block",
        "Figure",
        "Section",
        "Strip",
        "angstrom",
        "decimal",
        "gallery_section",
        "percent",
        "table_section",
    ),
    "maps": (
        "directions_section",
        "fsc_section",
        "reslog_section",
        "sets_section",
        "truth_section",
    ),
    "page": ("render",),
    "plots": (
        "Drawing",
        "Line",
        "against",
    ),
    "provenance": (
        "command",
        "provenance_section",
        "summary_section",
    ),
    "training": (
        "bound_section",
        "curves_section",
    ),
}
_MODULE = {name: module for module, names in _EXPORTED.items() for name in names}


# A verb that will write a page finds out before it works, not after.
for _needed in ("jinja2", "markupsafe", "matplotlib", "PIL"):
    if importlib.util.find_spec(_needed) is None:
        raise ModuleNotFoundError(f"No module named {_needed!r}", name=_needed)


def __getattr__(name: str) -> object:
    """Import what is exported, at its first use."""
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
    globals()[name] = found
    return found
