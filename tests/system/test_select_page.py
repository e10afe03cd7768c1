"""The selection page in a real browser: by mouse, by keyboard alone, on a small screen, with many particles.

With ``CRYORAY_SCREENSHOTS`` set to a folder, pictures of the pages are written there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from cryoray.formats.source import open_source
from cryoray.select.link import private
from cryoray.settings import Settings
from cryoray.verbs.select import select
from tests import examples
from tests.classes import write_class_job
from tests.select.conftest import judged
from tests.select.server import serving
from tests.system.pages import AXE, shot

pytestmark = pytest.mark.system

#: A busy machine takes its time; what is waited for is what is seen, not when.
expect.set_options(timeout=60_000)
MANY, IN_A_STACK = 300_000, 3_000
COUNTS = (7, 4, 0, 9, 2, 120, 33, 18, 5, 61, 12, 3)


@pytest.fixture
def particles(tmp_path: Path) -> Path:
    star = examples.write_project(tmp_path / "project", (90, 60, 50))
    return judged(open_source(star), tmp_path / "verdicts", quarantined=(3, 17))


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    job = write_class_job(tmp_path / "project", COUNTS)
    return judged(open_source(job / "run_it025_model.star", "class2d"), tmp_path / "verdicts")


class Visit:
    """A tab, and what the browser complained about and asked for."""

    def __init__(self, browser: Browser, url: str, link: str, **how: Any) -> None:
        self.url = url
        self.context = browser.new_context(
            **{"color_scheme": "dark", "viewport": {"width": 1440, "height": 900}, **how}
        )
        self.complaints: list[str] = []
        self.page = self.tab(link)

    def tab(self, link: str = "") -> Page:
        page = self.context.new_page()
        page.on("console", lambda one: self.complaints.append(one.text))
        page.on("pageerror", lambda one: self.complaints.append(str(one)))
        page.on(
            "request",
            lambda one: None if one.url.startswith(self.url) else self.complaints.append(one.url),
        )
        page.goto(link or self.url)
        page.wait_for_selector(".tile")
        return page


@contextmanager
def visiting(folder: Path, browser: Browser, **how: Any) -> Iterator[tuple[Visit, Path]]:
    """A tab with the page of some verdicts, and the file of what is done on it."""
    with ExitStack() as stay:
        opened = stay.enter_context(select(folder, Settings()))
        url = stay.enter_context(serving(opened.page.app()))
        visit = Visit(browser, url, f"{url}/?token={opened.page.token}", **how)
        yield visit, folder / "selection.jsonl"
        visit.context.close()
        assert visit.complaints == []


def actions(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()[1:]]


def tile(page: Page, at: int) -> Any:
    return page.locator(f".tile[data-at='{at}']")


def test_the_file_that_a_browser_is_started_with_leads_to_the_page(
    particles: Path, browser: Browser
) -> None:
    with ExitStack() as stay:
        opened = stay.enter_context(select(particles, Settings()))
        url = stay.enter_context(serving(opened.page.app()))
        address = stay.enter_context(private(f"{url}/?token={opened.page.token}"))
        page = stay.enter_context(closing(browser.new_context())).new_page()
        page.goto(address)
        page.wait_for_selector(".tile")
        assert page.url == f"{url}/"


def test_the_line_is_dragged_and_moved_by_keys_and_says_what_it_does(
    particles: Path, browser: Browser
) -> None:
    with visiting(particles, browser) as (visit, file):
        page, line = visit.page, visit.page.get_by_label("The line: scores")
        expect(page.locator("#kept")).to_contain_text("120 of 200 particles")
        box = line.bounding_box()
        assert box is not None
        y = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 8 + 0.4 * (box["width"] - 16), y)
        page.mouse.down()
        page.mouse.move(box["x"] + 8 + 0.8 * (box["width"] - 16), y, steps=5)
        during = page.locator("#count").inner_text()
        page.mouse.up()
        expect(page.locator("#count")).to_have_text(during)
        expect(page.locator("#exact")).to_have_value(re.compile(r"0\.(79|8)"))
        (drawn,) = actions(file)
        assert drawn["line"] == pytest.approx(0.8, abs=0.01)
        kept = int(during.split()[0])
        assert kept == pytest.approx(198 * (0.98 - 0.8) / 0.96, abs=3)
        # By the scores' own calibration: a good part is lost, little junk is left.
        assert float(page.locator("#loss").inner_text().rstrip("\u00a0%")) > 50
        assert float(page.locator("#junk").inner_text().rstrip("\u00a0%")) == pytest.approx(
            11, abs=2
        )
        line.focus()
        before = page.locator("#exact").input_value()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#exact")).not_to_have_value(before)
        page.get_by_role("button", name="even odds").click()
        expect(page.locator("#exact")).to_have_value("0.5")
        expect(page.get_by_role("button", name="even odds")).to_have_attribute(
            "aria-pressed", "true"
        )
        assert actions(file)[-1]["policy"] == "even odds"
        page.locator("#share").fill("10")
        page.locator("#share").press("Enter")
        expect(page.locator("#count")).to_contain_text("20 of 200")
        page.locator("#lose").fill("3")
        page.locator("#lose").press("Enter")
        expect(page.locator("#loss")).to_have_text(re.compile(r"^(2\.[5-9]|3\.0)"))
        assert actions(file)[-1]["policy"] == "loss=3"
        shot(page, "select-particles-dark")


def test_clicks_turn_and_undo_takes_back_and_ranges_go_together(
    classes: Path, browser: Browser
) -> None:
    with visiting(classes, browser, color_scheme="light") as (visit, file):
        page = visit.page
        expect(tile(page, 0)).to_have_class("tile keep")
        expect(tile(page, 0)).to_have_attribute(
            "aria-label", "kept, score 0.98, class 1, 13.5\u00a0Å, 7 particles"
        )
        shot(page, "select-classes-light")
        tile(page, 0).click()
        expect(tile(page, 0)).to_have_class("tile discard")
        expect(tile(page, 0).locator(".pic")).to_have_css("opacity", "1")
        assert actions(file)[-1]["rows"] == [0]
        page.get_by_role("button", name="Undo").click()
        expect(tile(page, 0)).to_have_class("tile keep")
        page.get_by_role("button", name="Redo").click()
        expect(tile(page, 0)).to_have_class("tile discard")
        tile(page, 0).click()  # by hand back to what the line says
        expect(tile(page, 0)).to_have_class("tile keep")
        tile(page, 1).click()
        tile(page, 3).click(modifiers=["Shift"])
        expect(page.locator("#marks-text")).to_have_text("3 marked")
        shot(page, "select-marked-light")
        page.keyboard.press("d")
        for at in (1, 2, 3):
            expect(tile(page, at)).to_have_class(re.compile(r"^tile discard"))
        assert actions(file)[-1] == actions(file)[-1] | {"rows": [1, 2, 3], "value": 0}
        page.select_option("#sort", "particles")
        expect(tile(page, 0)).to_have_attribute("aria-label", re.compile("120 particles"))
        page.select_option("#show", "turned")
        expect(page.locator("#shown")).to_have_text("3 of 12 classes shown")


def test_rows_without_a_verdict_are_counted_and_listed(particles: Path, browser: Browser) -> None:
    with visiting(particles, browser) as (visit, _):
        page = visit.page
        expect(page.locator("#count")).to_have_text("120 of 200 particles kept")
        page.get_by_text("2 of 200 particles have no verdict").click()
        expect(page.locator("#lost-list li")).to_have_count(2)
        expect(page.locator("#lost-list")).to_contain_text("cannot be read")


def test_everything_is_done_by_keys_alone(particles: Path, browser: Browser) -> None:
    with visiting(particles, browser) as (visit, file):
        page = visit.page
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(tile(page, 0)).to_be_focused()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        expect(tile(page, 1)).to_have_class("tile discard")
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
        across = int(page.locator("#grid").get_attribute("aria-colcount") or 0)
        expect(page.locator("#marks-text")).to_have_text(f"{across + 2} marked")
        page.keyboard.press("k")
        expect(page.locator("#message")).to_have_text(f"{across + 2} kept.")
        page.keyboard.press("Control+z")
        expect(tile(page, 1)).to_have_class("tile discard")
        page.keyboard.press("v")
        expect(page.locator("#large")).to_be_visible()
        expect(page.locator("#large-facts")).to_contain_text("score")
        shot(page, "select-larger-view-dark")
        page.keyboard.press("Escape")
        # The review list, to its end.
        page.keyboard.press("n")
        expect(page.locator("#bar-text")).to_contain_text("0 of 41 for review decided")
        expect(tile(page, 0)).to_be_focused()
        for number in range(1, 42):
            page.keyboard.press("d" if number % 2 else "k")
            expect(page.locator("#bar-progress")).to_have_js_property("value", number)
        expect(page.locator("#bar-text")).to_have_text("All 41 for review are decided.")
        page.keyboard.press("n")
        expect(page.locator("#message")).to_have_text("Nothing under review is left to be decided.")
        page.keyboard.press("Escape")
        expect(page.locator("#shown")).to_be_empty()
        page.keyboard.press("Control+s")
        expect(page.locator("#message")).to_contain_text("Saved: ")
        assert sum(one["what"] == "turn" for one in actions(file)) == 43
        assert (particles / "selected/kept.star").is_file()


def test_teaching_adapts_the_scores_and_shows_before_and_after(
    particles: Path, browser: Browser
) -> None:
    with visiting(particles, browser) as (visit, file):
        page = visit.page
        before = page.locator("#count").inner_text()
        drawn = page.locator("#bars-low").get_attribute("d")
        page.keyboard.press("t")
        expect(page.locator("#bar-text")).to_contain_text("0 of 20 labelled")
        expect(page.locator("#adapt")).to_be_disabled()
        for number in range(1, 21):
            page.keyboard.press("d")
            expect(page.locator("#bar-progress")).to_have_js_property("value", number)
        page.locator("#adapt").focus()
        page.keyboard.press("Enter")
        table = page.locator("#adapted table")
        expect(table).to_contain_text("before")
        rows = [one.split("\t") for one in table.inner_text().splitlines()]
        line = next(one for one in rows if one[0] == "line")
        assert float(line[2]) != float(line[1])
        shot(page, "select-teach-dark")
        heights = page.locator("#bars-low").get_attribute("d")
        assert heights != drawn, "the histogram is of the new scores"
        assert actions(file)[-1]["what"] == "adapt"
        expect(page.locator("#back")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Home")  # where one was before is where the page goes back to
        expect(tile(page, 0)).not_to_have_attribute("aria-label", re.compile("score 0.98"))
        page.keyboard.press("u")
        expect(tile(page, 0)).to_have_attribute("aria-label", re.compile("score 0.98"))
        assert page.locator("#count").inner_text() != before, "the labels stand"
        page.keyboard.press("s")
        expect(page.locator("#bar-text")).to_contain_text("look most alike first")


def test_nothing_is_lost_when_browser_and_program_are_killed(
    particles: Path, browser: Browser
) -> None:
    with visiting(particles, browser) as (visit, _):
        tile(visit.page, 2).click()
        tile(visit.page, 5).click()
        expect(tile(visit.page, 5)).to_have_class("tile discard")
        visit.page.get_by_role("button", name="even odds").click()
        expect(visit.page.locator("#why")).to_contain_text("even odds")
        kept = visit.page.locator("#count").inner_text()
        # As a machine that loses its power leaves it: half a line, and nobody said good-bye.
    with (particles / "selection.jsonl").open("ab") as file:
        file.write(b'{"rev":4,"tab":"x","wh')
    with another(browser) as fresh, visiting(particles, fresh) as (visit, _):
        page = visit.page
        expect(page.locator("#message")).to_have_text(
            "Going on from before: 2 pictures decided by you."
        )
        expect(page.locator("#count")).to_have_text(kept)
        expect(tile(page, 2)).to_have_class("tile discard")
        page.keyboard.press("u")  # the line
        page.keyboard.press("u")
        expect(tile(page, 5)).to_have_class(re.compile("tile keep"))
        expect(tile(page, 2)).to_have_class("tile discard")


@contextmanager
def another(browser: Browser) -> Iterator[Browser]:
    """Another browser, of another process."""
    made = browser.browser_type.launch(
        executable_path=shutil.which("chromium"), args=["--no-sandbox"]
    )
    try:
        yield made
    finally:
        made.close()


def test_two_tabs_see_each_other_and_neither_overwrites(particles: Path, browser: Browser) -> None:
    with visiting(particles, browser) as (visit, _):
        first, second = visit.page, visit.tab()
        tile(first, 1).click()
        expect(tile(second, 1)).to_have_class("tile discard")
        tile(second, 4).click()
        expect(tile(second, 1)).to_have_class("tile discard")
        expect(tile(first, 4)).to_have_class("tile discard")
        first.bring_to_front()
        first.keyboard.press("u")
        expect(tile(first, 1)).to_have_class("tile keep")
        expect(tile(first, 4)).to_have_class("tile discard")
        first.keyboard.press("u")  # the other tab's is not this one's to take back
        expect(tile(second, 1)).to_have_class("tile keep")
        expect(tile(second, 4)).to_have_class("tile discard")


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_keeps_people_with_a_disability_out(
    particles: Path, browser: Browser, scheme: str, width: int
) -> None:
    size = {"width": width, "height": 800}
    with visiting(particles, browser, color_scheme=scheme, viewport=size) as (visit, _):
        page = visit.page
        page.evaluate(AXE.read_text())

        def serious() -> list[tuple[str, str]]:
            found = page.evaluate("axe.run()")["violations"]
            return [
                (one["id"], one["nodes"][0]["html"][:150])
                for one in found
                if one["impact"] in ("serious", "critical")
            ]

        assert serious() == []
        tile(page, 0).click()
        tile(page, 2).click(modifiers=["Shift"])
        assert serious() == []
        page.keyboard.press("Escape")
        page.keyboard.press("v")
        assert serious() == []
        page.keyboard.press("v")
        page.keyboard.press("t")
        expect(page.locator("#bar")).to_be_visible()
        assert serious() == []
        page.get_by_role("button", name="Help").click()
        assert serious() == []
        shot(page, f"select-help-{scheme}-{width}")


def test_a_small_screen_has_it_all(particles: Path, browser: Browser) -> None:
    size = {"width": 390, "height": 800}
    with visiting(particles, browser, viewport=size, has_touch=True) as (visit, file):
        page = visit.page
        shot(page, "select-390-dark")
        assert tile(page, 0).evaluate("one => one.getBoundingClientRect().bottom") < 800
        expect(page.get_by_role("button", name="even odds")).to_be_hidden()
        page.get_by_text("Draw the line").click()
        expect(page.get_by_role("button", name="even odds")).to_be_visible()
        page.get_by_text("Draw the line").click()
        page.locator("#grid").scroll_into_view_if_needed()
        page.mouse.wheel(0, 600)
        tile(page, 0).tap()
        expect(tile(page, 0)).to_have_class("tile discard")
        shot(page, "select-390-tiles-dark")
        for key in ("v", "Escape", "t", "Escape"):
            page.keyboard.press(key)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, key
        assert actions(file)[0]["rows"] == [0]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Verdicts on 300,000 particles: one stack of 3,000 under a hundred names."""
    return write_many(tmp_path_factory.mktemp("many"))


def write_many(root: Path) -> Path:
    images = np.tile(examples.particles(100, 32), (IN_A_STACK // 100, 1, 1))
    first = examples.write_stack(root / "mic_0.mrcs", images)
    for number in range(1, MANY // IN_A_STACK):
        os.link(first, root / f"mic_{number}.mrcs")
    rows = [
        f"{frame:06d}@mic_{number}.mrcs mic_{number}.mrc 1 9000 8800 {4 + number % 5}"
        for number in range(MANY // IN_A_STACK)
        for frame in range(1, IN_A_STACK + 1)
    ]
    examples.write_star(root / "particles.star", rows)
    return judged(open_source(root / "particles.star"), root / "verdicts")


def test_three_hundred_thousand_particles_are_scrolled_sorted_turned_and_saved(
    many: Path, browser: Browser
) -> None:
    with visiting(many, browser) as (visit, file):
        page = visit.page
        expect(page.locator("#count")).to_have_text("181,250 of 300,000 particles kept")
        assert page.locator(".tile").count() < 300, "the others are not in the document"
        tile(page, 0).focus()
        page.keyboard.press("End")
        last = tile(page, MANY - 1)
        expect(last).to_be_focused()
        expect(last).to_have_class("tile discard")
        picture = last.locator(".pic")
        expect(picture).to_have_css("background-image", re.compile("strip.png.places=.*299999"))
        assert page.locator(".tile").count() < 400
        page.keyboard.press("k")
        expect(last).to_have_class("tile keep")
        assert actions(file)[-1]["rows"] == [MANY - 1]
        page.select_option("#sort", "resolution")
        expect(tile(page, 0)).to_have_attribute("aria-label", re.compile("CTF 4.0"))
        page.select_option("#show", "discard")
        expect(page.locator("#shown")).to_have_text("118,749 of 300,000 particles shown")
        tile(page, 0).focus()
        page.keyboard.press("Control+a")
        expect(page.locator("#marks-text")).to_have_text("118,749 marked")
        page.get_by_role("button", name="Keep them").click()
        expect(page.locator("#count")).to_have_text("300,000 of 300,000 particles kept")
        page.get_by_role("button", name="Undo").click()
        expect(page.locator("#count")).to_have_text("181,251 of 300,000 particles kept")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#message")).to_contain_text("181,251 kept")
