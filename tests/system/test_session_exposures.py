"""Exposures, micrographs and pictures of the session page in a real browser, with simulated micrographs."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from cryoray.models import registry
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Happened
from cryoray.session.watcher import Watcher
from cryoray.settings import Settings, SimulateSettings, WatchSettings
from cryoray.simulation import simulate
from tests.session.service import Service, running
from tests.system.pages import serious, shot
from tests.system.test_session_page import Visit

pytestmark = pytest.mark.system

expect.set_options(timeout=60_000)
PATHS = ("", "/exposures", "/review", "/informative", "/audit")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Ledger, str]]:
    """A judged session of simulated micrographs and their particles."""
    out = tmp_path_factory.mktemp("data")
    wanted = SimulateSettings(
        projects=1, images=200, per_micrograph=25, micrographs=True, snr=0.3, seed=7
    )
    (root,) = simulate(out, Settings(simulate=wanted))
    ships = registry.shipped("particle")
    assert ships is not None
    ensembles = {"particle": ships}
    url = str(root / "cryoray/ledger.sqlite")
    ledger = Ledger(url)
    with running([root], ensembles, ledger=url) as service:
        watcher = Watcher(root, "night", WatchSettings(poll=0.1, settle=0.1), service.client())
        watcher.run(threading.Event(), once=True)
        watcher.close()
        yield service, ledger, watcher.token_file.read_text().strip()
    ledger.close()


@pytest.fixture
def visiting(browser: Browser, session: tuple[Service, Ledger, str]) -> Iterator[Any]:
    visits: list[Visit] = []

    def visit(width: int = 1440, scheme: str = "dark", **how: Any) -> Visit:
        context = browser.new_context(
            color_scheme=scheme,  # type: ignore[arg-type]
            viewport={"width": width, "height": 900},
            **how,
        )
        made = Visit(context.new_page(), session[0].url)
        made.come_in(session[2])
        visits.append(made)
        return made

    yield visit
    for one in visits:
        assert one.complaints == []
        assert {url for url in one.asked if not url.startswith(session[0].url)} == set()
        one.page.context.close()


def test_exposures_are_sorted_limited_and_looked_at_by_keys_alone(visiting: Any) -> None:
    page = visiting().page
    page.get_by_role("link", name="exposures", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_role("link", name="CTF resolution").focus()
    page.keyboard.press("Enter")
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("CTF resolution")
    shown = [
        float(one.split()[0])
        for one in page.locator("tbody td:nth-last-child(2)").all_inner_texts()
    ]
    assert shown == sorted(shown)
    assert len(set(shown)) > 1
    page.locator("[name=ctf-high]").focus()
    page.keyboard.type(str(shown[0]))
    page.keyboard.press("Enter")
    marked = sum(one > shown[0] for one in shown)
    expect(page.locator("tr.outside")).to_have_count(marked)
    expect(page.locator(".marks").first).to_contain_text("CTF resolution above")
    expect(page.locator(".thumbnail img").first).not_to_have_js_property("naturalWidth", 0)
    shot(page, "session-exposures")
    page.locator("tbody th a").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#picks g").first).to_be_attached()
    expect(page.locator("#micrograph img")).not_to_have_js_property("naturalWidth", 0)
    page.keyboard.press("h")
    expect(page.locator("#picks")).to_have_class(re.compile("hidden"))


def test_from_a_tile_one_comes_to_its_pick_in_the_micrograph(visiting: Any) -> None:
    page = visiting().page
    page.locator(".gallery form.tile .place").first.click()
    expect(page.locator("#picks .asked .ring")).to_have_count(1)
    expect(page.locator("#micrograph img")).not_to_have_js_property("naturalWidth", 0)
    shot(page, "session-micrograph")
    tile = page.locator("form.tile").nth(1)
    tile.hover()
    expect(
        page.locator(f"#picks .looked[data-row='{tile.get_attribute('data-row')}']")
    ).to_have_count(1)


def test_sliders_and_the_larger_view_show_pictures_anew_and_stay_as_they_were_left(
    visiting: Any,
) -> None:
    page = visiting().page
    first = page.locator(".gallery form.tile img").first
    page.get_by_role("slider", name="Low-pass").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(first).to_have_attribute("src", re.compile(r"low=25\b"))
    page.get_by_role("slider", name="Contrast").focus()
    page.keyboard.press("ArrowRight")
    expect(first).to_have_attribute("src", re.compile(r"cut=1\b"))
    page.locator(".gallery form.tile .picture").first.focus()
    page.keyboard.press("v")
    for view in ("clear", "network", "file"):
        expect(page.locator(f"#large-{view}")).not_to_have_js_property("naturalWidth", 0)
    expect(page.locator("#large-facts")).to_contain_text("score 0.")
    shot(page, "session-larger-view")
    page.keyboard.press("Escape")
    expect(page.locator("#large")).to_be_hidden()
    page.reload()
    expect(page.locator("#low-value")).to_have_text("25\u00a0Å")
    expect(page.locator(".gallery form.tile img").first).to_have_attribute(
        "src", re.compile("low=25")
    )


def test_an_alarm_is_in_the_panel_and_the_browser_tells_of_it_where_it_is_allowed(
    visiting: Any, session: tuple[Service, Ledger, str]
) -> None:
    page = visiting(permissions=["notifications"]).page
    # The browser shows it elsewhere than in the page: what the page asked for is noted on the way.
    page.add_init_script(
        """const Real = Notification; window.told = [];
        window.Notification = class extends Real {
          constructor(title, how) { super(title, how); window.told.push(`${title}: ${how.body}`); } };"""
    )
    page.reload()
    page.get_by_role("button", name="Notify me of alarms").click()
    expect(page.get_by_role("button", name="Notify me no more")).to_be_visible()
    data = {
        "reason": "the keep rate of the last 12 micrographs is 31 %; before, in this session, it was 78 %",
        "since": "MotionCorr/job001/micrograph_0004.mrc",
    }
    session[1].note("night", [Happened("test:drift", "drift.alarm", data)])
    expect(page.locator("[data-alarm]")).to_contain_text("The keep rate of the last 12")
    expect(page.locator("#drift")).to_contain_text("1 alarm")
    assert page.evaluate("window.told") == [f"night: drift: T{data['reason'][1:]}."]
    shot(page, "session")
    page.locator("[data-alarm] a").click()
    expect(page.locator("tbody tr")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_no_page_sticks_out_of_a_small_screen_nor_has_serious_faults_for_screen_readers(
    visiting: Any, session: tuple[Service, Ledger, str], scheme: str
) -> None:
    page = visiting(390, scheme).page
    page.goto(f"{session[0].url}/sessions/night/exposures")
    around = page.locator("tbody th a").first.get_attribute("href")
    for path in (*(f"/sessions/night{one}" for one in PATHS), around):
        page.goto(f"{session[0].url}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        assert serious(page) == [], path
        shot(page, f"small-{scheme}-{str(path).strip('/').replace('/', '-')[:30]}")
