"""The session page in a real browser: by mouse and by keyboard, by night and by day, large and small."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from cryoray.session.ledger import Ledger
from cryoray.session.watcher import Watcher
from cryoray.settings import WatchSettings
from tests import examples
from tests.session.service import Service, running

pytestmark = pytest.mark.system

MICROGRAPHS, IMAGES = 40, 14


@pytest.fixture(scope="module")
def session(
    tiny_ensemble: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Ledger, str]]:
    """A service with a session that was judged, its ledger, and the session's token."""
    root = tmp_path_factory.mktemp("data")
    for number in range(MICROGRAPHS):
        name = f"FoilHole_{number}_Data_1_2_20261120_101500"
        micrograph = f"GridSquare_{number // 10}/Data/{name}.mrc"
        rows = [
            f"{i:06d}@{name}.mrcs {micrograph} 1 {9000 + 500 * (number % 9)} 9000 {3 + number % 5}"
            for i in range(1, IMAGES + 1)
        ]
        examples.write_star(root / f"{name}_extract.star", rows)
        examples.write_stack(root / f"{name}.mrcs", examples.particles(IMAGES, seed=number))
    examples.write_stack(root / "unreadable.mrcs", examples.particles(3))
    (root / "unreadable.mrcs").write_bytes(b"no stack")
    ledger = Ledger(root / "cryoray/ledger.sqlite")
    with running(
        [root], {"tiny": tiny_ensemble}, ledger=str(root / "cryoray/ledger.sqlite")
    ) as service:
        settings = WatchSettings(poll=0.1, settle=0.1, patience=0.0)
        watcher = Watcher(root, "night", settings, service.client())
        watcher.run(threading.Event(), once=True)
        watcher.close()
        yield service, ledger, watcher.token_file.read_text().strip()
    ledger.close()


class Visit:
    """A page of the site, and what the browser complained about and asked for."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda one: self.complaints.append(one.text))
        page.on("pageerror", lambda one: self.complaints.append(str(one)))
        page.on("request", lambda one: self.asked.append(one.url))

    def come_in(self, token: str) -> None:
        """By keyboard alone."""
        self.page.goto(self.url)
        # The field takes the focus by itself, a moment after the page has loaded.
        self.page.wait_for_selector("input:focus")
        self.page.keyboard.type("Ada")
        self.page.keyboard.press("Tab")
        self.page.keyboard.type(token)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url("**/sessions/night")


@pytest.fixture(params=["dark", "light"])
def visit(
    browser: Browser, session: tuple[Service, Ledger, str], request: pytest.FixtureRequest
) -> Iterator[Visit]:
    context = browser.new_context(
        color_scheme=request.param, viewport={"width": 1440, "height": 900}
    )
    made = Visit(context.new_page(), session[0].url)
    made.come_in(session[2])
    yield made
    assert made.complaints == []
    assert {url for url in made.asked if not url.startswith(session[0].url)} == set()
    context.close()


def test_the_page_is_there_with_numbers_charts_and_images(visit: Visit) -> None:
    page = visit.page
    expect(page.get_by_label("counts")).to_contain_text(f"{MICROGRAPHS}")
    expect(page.locator("svg[role=img]")).to_have_count(3)
    expect(page.locator("svg .band")).to_have_count(1)
    expect(page.locator(".squares > div")).to_have_count(4)
    expect(page.get_by_text("1 stack rejected").first).to_be_visible()
    # Not wait_for_function, which the page's own policy forbids as soon as it has to ask twice.
    expect(page.locator(".gallery img").first).to_have_js_property("naturalWidth", 128)
    weight = page.evaluate(
        """() => performance.getEntries().filter(e => e.decodedBodySize && e.initiatorType !== "img")
          .reduce((sum, e) => sum + e.decodedBodySize, 0)"""
    )
    assert 20_000 < weight < 200_000


def test_the_words_can_be_read_by_night_and_by_day(visit: Visit) -> None:
    """Contrast of each text with what lies behind it: at least 4.5, as WCAG 2.2 has it for AA."""
    low = visit.page.evaluate(
        """() => {
          const rgb = text => text.match(/[\\d.]+/g).map(Number);
          const linear = v => v <= 10 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
          const light = c => { const [r, g, b] = rgb(c).slice(0, 3).map(linear);
            return .2126 * r + .7152 * g + .0722 * b; };
          const behind = e => {
            for (; e; e = e.parentElement) {
              const c = getComputedStyle(e).backgroundColor;
              if (rgb(c)[3] !== 0) return c;
            }
            return "rgb(255,255,255)";
          };
          const found = [];
          for (const e of document.querySelectorAll("main *, header *")) {
            const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
            if (!own || e.closest("meter, option, noscript") || !e.getClientRects().length) continue;
            const style = getComputedStyle(e), ink = e instanceof SVGElement ? style.fill : style.color;
            const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
            const ratio = (a + .05) / (b + .05);
            if (ratio < 4.5) found.push([String(e.className), e.textContent.slice(0, 20), ratio]);
          }
          return found;
        }"""
    )
    assert low == []


def test_a_click_turns_a_verdict_and_a_key_takes_it_back(
    visit: Visit, session: tuple[Service, Ledger, str]
) -> None:
    page, ledger = visit.page, session[1]
    before = len(ledger.overrides("night"))
    tile = page.locator(".gallery form.tile.keep").first
    key = tile.get_attribute("id")
    tile.locator(".picture").click()
    mine = page.locator(f"[id='{key}']")
    expect(mine).to_have_class(re.compile("discard decided"))
    assert len(ledger.overrides("night")) == before + 1
    assert ledger.overrides("night")[-1].who == "Ada"
    mine.locator(".picture").focus()
    page.keyboard.press("u")
    expect(page.locator(f"[id='{key}']")).to_have_class("tile keep")
    assert len(ledger.overrides("night")) == before


def test_the_review_queue_is_worked_off_by_keys_alone(
    visit: Visit, session: tuple[Service, Ledger, str]
) -> None:
    page, ledger = visit.page, session[1]
    page.get_by_role("link", name="most informative", exact=True).click()
    queue = page.locator("[data-queue] form.tile")
    page.wait_for_selector("form.tile.current")
    there, before = queue.count(), len(ledger.overrides("night"))
    for number, key in enumerate(("k", "d", "ArrowRight", "k"), 1):
        page.keyboard.press(key)
        expect(queue).to_have_count(there - (number if number < 3 else number - 1))
    assert len(ledger.overrides("night")) == before + 3
    assert sorted(row.keep for row in ledger.overrides("night"))[-2:] == [True, True]
    page.keyboard.press("u")
    expect(queue).to_have_count(there - 2)
    assert len(ledger.overrides("night")) == before + 2


def test_the_blind_sample_shows_nothing_before_its_label(
    visit: Visit, session: tuple[Service, Ledger, str]
) -> None:
    page, ledger = visit.page, session[1]
    page.locator("header").get_by_role("link", name="blind sample", exact=True).click()
    page.wait_for_selector("form.tile.current")
    assert page.locator("[data-queue] .score").count() == 0
    assert page.locator("[data-queue] .keep, [data-queue] .discard").count() == 0
    left = page.locator("[data-queue] form.tile").count()
    page.keyboard.press("d")
    expect(page.locator("[data-queue] form.tile")).to_have_count(left - 1)
    labelled = sum(row.keep is not None for row in ledger.audit_sample("night"))
    expect(page.locator("[data-done]")).to_have_text(str(labelled))
    expect(page.locator("progress")).to_have_js_property("value", labelled)
    page.keyboard.press("u")
    expect(page.locator("[data-queue] form.tile")).to_have_count(left)
    expect(page.locator("[data-done]")).to_have_text(str(labelled - 1))
    page.wait_for_selector("form.tile.current")
    page.keyboard.press("k")
    expect(page.locator("[data-queue] form.tile")).to_have_count(left - 1)
    page.reload()
    expect(page.get_by_text(f"{labelled} of 50 labelled")).to_be_visible()
    assert page.locator(".score").count() == 0, "the label can still be taken back"


def test_nothing_sticks_out_on_a_small_screen_and_scripts_are_not_needed(
    browser: Browser, session: tuple[Service, Ledger, str]
) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800}, java_script_enabled=False)
    visit = Visit(context.new_page(), session[0].url)
    visit.come_in(session[2])
    page = visit.page
    before = len(session[1].overrides("night"))
    # The page has loaded already: what is waited for is the answer to the click.
    with page.expect_response(lambda answer: answer.request.method == "POST"):
        page.locator(".gallery form.tile.discard .picture").first.click()
    assert len(session[1].overrides("night")) == before + 1
    context.close()
    context = browser.new_context(viewport={"width": 390, "height": 800})
    visit = Visit(context.new_page(), session[0].url)
    visit.come_in(session[2])
    for path in ("", "/review", "/informative", "/audit", "x"):
        visit.page.goto(f"{session[0].url}/sessions/night{path}")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_live_parts_renew_themselves_but_not_under_a_hand(
    visit: Visit, session: tuple[Service, Ledger, str]
) -> None:
    page = visit.page
    page.locator(".gallery form.tile").first.hover()
    first = page.locator(".gallery form.tile").first.element_handle()
    with page.expect_response("**/sessions/night/live", timeout=15_000):
        pass
    assert first is not None
    assert first.evaluate("tile => tile.isConnected")
    page.mouse.move(5, 5)
    page.evaluate("document.activeElement.blur()")
    with page.expect_response("**/sessions/night/gallery", timeout=15_000):
        pass
