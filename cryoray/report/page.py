"""One self-contained HTML page of sections, and its figures beside it as files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from itertools import zip_longest
from pathlib import Path

import jinja2
from markupsafe import Markup

from cryoray.formats.files import replacing, write_csv
from cryoray.report.blocks import Figure, Section
from cryoray.report.plots import Drawing
from cryoray.version import __version__


def render(out: Path, title: str, sections: Sequence[Section], *, pictures: bool = False) -> Path:
    """Write the page, and its figures beside it in ``figures``: each as SVG, and as CSV what it shows.

    It loads nothing from anywhere: type is the reader's own, plots are inline SVG, images are data
    URIs, there is no script.

    Args:
        out: the file, written under another name and renamed.
        title: of the page.
        sections: in order.
        pictures: figures as PNG, too.

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
        version=__version__,
    )
    out = Path(out)
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Figure) and isinstance(block.svg, Drawing):
                _write_figure(out.parent / "figures", block.svg, pictures)
    with replacing(out) as partial:
        partial.write_text(page.strip() + "\n", encoding="utf-8", errors="backslashreplace")
    return out


def _write_figure(folder: Path, drawing: Drawing, pictures: bool) -> None:
    with replacing(folder / f"{drawing.name}.svg") as partial:
        partial.write_text(drawing.svg() + "\n", encoding="utf-8", errors="backslashreplace")
    if pictures:
        with replacing(folder / f"{drawing.name}.png") as partial:
            partial.write_bytes(drawing.png())
    if drawing.columns:
        lines = zip_longest(*drawing.columns.values(), fillvalue="")
        write_csv(folder / f"{drawing.name}.csv", drawing.columns, lines)
