"""The selection page: from opening to the first row of pictures, and from a click to the disk.

The page is opened in Chromium, of verdicts on 50 classes and on 300,000 particles, as `cryoray select`
serves it. The clock of the first row runs from the navigation until every picture of it is there; that of
a click from the press until the answer, which comes after fsync. The peer of a click is a line that a
program of a dozen lines appends to a file beside it, with fsync: what the disk alone takes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from benchmarks.common import Row, main, result
from cryoray.formats.source import open_source
from cryoray.settings import Settings
from cryoray.verbs.select import select
from tests.classes import write_class_job
from tests.select.conftest import judged
from tests.select.server import serving
from tests.system.test_select_page import write_many

TIMES, CLICKS = 5, 40

#: Milliseconds since the navigation at which the pictures of the first row were there.
_FIRST_ROW = """async () => {
  for (;;) {
    const row = document.querySelector(".tiles"), url = row?.firstChild.firstChild.style.backgroundImage;
    if (url) {
      const picture = new Image();
      picture.src = url.slice(5, -2);
      await picture.decode();
      return performance.now();
    }
    await new Promise(done => setTimeout(done, 5));
  }
}"""
#: Milliseconds of some clicks, one after the other, from the press until the tile is turned.
_CLICKS = """async times => {
  const took = [];
  for (let at = 0; at < times; at++) {
    const tile = document.querySelector(`.tile[data-at='${at % 8}']`), before = tile.className;
    const begun = performance.now();
    tile.click();
    while (tile.className === before || tile.classList.contains("sending"))
      await new Promise(done => setTimeout(done, 1));
    took.push(performance.now() - begun);
  }
  return took;
}"""


def disk(folder: Path) -> float:
    """Milliseconds in which the disk takes a line: the median."""
    took = []
    with (folder / "line").open("ab", buffering=0) as file:
        for _ in range(CLICKS):
            begun = time.perf_counter()
            file.write(
                b"a line of about as many bytes as an action has, one hundred or so, with its end\n"
            )
            os.fsync(file.fileno())
            took.append(1000 * (time.perf_counter() - begun))
    return median(took)


def page(case: str, verdicts: Path, browser: Browser) -> Row:
    """What one page takes."""
    begun = time.perf_counter()
    with select(verdicts, Settings()) as opened, serving(opened.page.app()) as url:
        ready = time.perf_counter() - begun
        link, first = f"{url}/?token={opened.page.token}", []
        for _ in range(TIMES):
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            tab = context.new_page()
            tab.goto(link)
            tab.wait_for_url(f"{url}/")  # the link's token makes way for a cookie
            first.append(float(tab.evaluate(_FIRST_ROW)))
            context.close()
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        tab.goto(link)
        tab.wait_for_url(f"{url}/")
        tab.evaluate(_FIRST_ROW)
        clicks = [float(one) for one in tab.evaluate(_CLICKS, CLICKS)]
        tab.close()
    return {
        "case": case,
        "program_ready_s": ready,
        "first_row_s": first[0] / 1000,
        "again_s": min(first) / 1000,
        "click_to_disk_ms": median(clicks),
        "slowest_click_ms": max(clicks),
        "fsync_alone_ms": disk(verdicts),
    }


def measure() -> dict[str, Any]:
    """Fifty classes and three hundred thousand particles."""
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        root = Path(temporary)
        counts = tuple(np.random.default_rng(0).integers(0, 900, 50).tolist())
        job = write_class_job(root / "job", counts)
        classes = judged(open_source(job / "run_it025_model.star", "class2d"), root / "classes")
        (root / "many").mkdir()
        many = write_many(root / "many")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        rows = [
            page("50 classes", classes, browser),
            page("300,000 particles", many, browser),
        ]
        browser.close()
    return result(
        "How long until the selection page shows its first row, and until a click is on disk?",
        rows,
        ratios=(),
        notes=[
            "program_ready_s: verdicts and source read, port open; imports are not counted.",
            "first_row_s: of the first browser, when the contrast of the source is found out, too;"
            f" again_s: the quickest of {TIMES}.",
            f"Clicks: {CLICKS}, the median, from the press until the picture is turned.",
        ],
    )


if __name__ == "__main__":
    main(measure)
