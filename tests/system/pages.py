"""What tests of pages in Chromium share: pictures of pages, and the accessibility checker."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

AXE = Path(__file__).parent / "vendor/axe-core/axe.min.js"


def shot(page: Page, name: str) -> None:
    """A picture of the page, in the folder that ``CRYORAY_SCREENSHOTS`` names; small enough for the docs."""
    if folder := os.environ.get("CRYORAY_SCREENSHOTS"):
        file = Path(folder) / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=file)
        with Image.open(file) as picture:
            # The column of the site is narrower; few colours are enough, but of all hues.
            large = picture.width > 1000
            size = (900, 900 * picture.height // picture.width) if large else picture.size
            smaller = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            few = smaller.quantize(128, Image.Quantize.MAXCOVERAGE, kmeans=4)
        few.save(file, optimize=True)


def serious(page: Page) -> list[str]:
    """What axe-core finds that is serious or worse."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return [
        f"{one['id']}: {node['html'][:160]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]
