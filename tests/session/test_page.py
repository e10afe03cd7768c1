"""The session page over HTTP: who sees what, what a click does, and that nothing gets in or out."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from cryoray.formats.opening import Scope
from cryoray.formats.selection import read_selection
from cryoray.formats.source import open_source
from cryoray.records import VERDICTS_SCHEMA
from cryoray.session.labels import image_place
from cryoray.session.ledger import Ledger
from cryoray.session.page import access, charts, router, views
from cryoray.session.page.entry import own_path
from cryoray.session.page.views import _tile
from cryoray.session.watcher import Watcher
from cryoray.settings import WatchSettings
from tests import examples
from tests.classes import write_class_job
from tests.session.service import running
from tests.web import malformed

pytestmark = pytest.mark.long

OPERATOR = "the operator's token"
IMAGES = 40


def served(ledger: Ledger, root: Path) -> FastAPI:
    app = FastAPI()
    app.include_router(router(ledger, OPERATOR, Scope((root,))))
    return app


class Site:
    """A session that was judged, behind a real server."""

    def __init__(self, root: Path, ledger: Ledger, url: str, token: str) -> None:
        self.root, self.ledger, self.url, self.token = root, ledger, url, token
        rows = ledger.stacks("s", "judged", kind="particle")
        self.stack = rows[0]

    def client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **settings)

    @contextmanager
    def browser(
        self, token: str | None = None, who: str = "Ada <b>L</b>"
    ) -> Iterator[httpx.Client]:
        with self.client(follow_redirects=True, headers={"Accept": "text/html"}) as client:
            client.post("/login", data={"token": token or self.token, "who": who})
            yield client

    def program(self, token: str | None = None) -> httpx.Client:
        return self.client(headers={"Authorization": f"Bearer {token or self.token}"})


@pytest.fixture
def site(judged: Path, tmp_path: Path) -> Iterator[Site]:
    """The session with a ledger of its own for each test: it is written to."""
    shutil.copy(judged / "cryoray/ledger.sqlite", tmp_path)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    token = (judged / "cryoray/s/token").read_text().strip()
    ledger.open_session("other", root=tmp_path / "elsewhere", folder=tmp_path / "elsewhere/cryoray")
    server = uvicorn.Server(uvicorn.Config(served(ledger, judged), port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Site(judged, ledger, f"http://127.0.0.1:{port}", token)
    server.should_exit = True
    thread.join()
    ledger.close()


@pytest.fixture(scope="module")
def judged(tiny_ensemble: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a session of two stacks, one with a name that nobody should give; read only."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("mic_1", "a<script>alert(1)<&script>")):
        examples.write_stack(root / f"{name}.mrcs", examples.particles(IMAGES, seed=number))
        rows = [
            f"{i:06d}@{name}.mrcs {name}.mrc 1 {9000 + 90 * i} 9000 4" for i in range(1, IMAGES + 1)
        ]
        examples.write_star(root / f"{name}_extract.star", rows)
    settings = WatchSettings(poll=0.05, settle=0.05, rescan=0.1, audit=6)
    with running([root], {"tiny": tiny_ensemble}) as service:
        watcher = Watcher(root, "s", settings, service.client())
        watcher.run(threading.Event(), once=True)
        watcher.close()
    return root


class Form(HTMLParser):
    """All forms of a page: their fields by name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: list[dict[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append({"action": found["action"]})
        elif tag == "input" and self.forms and "name" in found:
            self.forms[-1][found["name"]] = found.get("value", "")


def tiles(html: str) -> list[dict[str, str]]:
    return [form for form in Form(html).forms if "stack" in form]


def test_nobody_sees_anything_without_a_token(site: Site) -> None:
    with site.client() as client:
        for path in (
            "/",
            "/sessions/s",
            "/sessions/s/live",
            "/sessions/s/review",
            "/v1/sessions/s",
        ):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers={"Authorization": "Bearer x"}).status_code == 401
        answer = client.get("/sessions/s", headers={"Accept": "text/html"})
        assert (answer.status_code, answer.headers["Location"]) == (303, "/login?next=/sessions/s")
        image = f"/sessions/s/image/{site.stack.id}/0.png"
        assert client.get(image).status_code == 401
        wrong = client.post("/login", data={"token": "wrong", "who": "Eve"})
        assert (wrong.status_code, wrong.cookies) == (401, httpx.Cookies())


def test_a_sessions_token_opens_that_session_and_the_operators_all(site: Site) -> None:
    with site.program() as owner, site.program(OPERATOR) as operator:
        assert [one["name"] for one in owner.get("/v1/sessions").json()] == ["s"]
        assert {one["name"] for one in operator.get("/v1/sessions").json()} == {"s", "other"}
        assert owner.get("/v1/sessions/other").status_code == 404
        assert owner.get("/v1/sessions/none").status_code == 404
        assert operator.get("/v1/sessions/other").status_code == 200
        assert owner.get(f"/sessions/other/image/{site.stack.id}/0.png").status_code == 404
        assert operator.get(f"/sessions/other/image/{site.stack.id}/0.png").status_code == 404
        assert owner.get("/v1/sessions/s").json()["stacks"] == {"particle/judged": 2}


def test_a_cookie_holds_no_token_cannot_be_made_up_and_ends_with_its_token(site: Site) -> None:
    with site.browser() as browser:
        cookie = browser.cookies["cryoray"]
        assert site.token not in cookie
        assert browser.get("/").url.path == "/sessions/s"
        other = cookie[:-1] + ("1" if cookie[-1] == "0" else "0")
        for forged in (f"{cookie}x", other, cookie[:-1], ".", "%", "x" * 9000):
            with site.client(cookies={"cryoray": forged}) as thief:
                assert thief.get("/v1/sessions").status_code == 401
        site.ledger.new_token("s")
        assert browser.get("/sessions/s/live").url.path == "/login"


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(site: Site) -> None:
    with site.client() as client:
        answer = client.post("/login", data={"token": site.token, "who": "Ada"})
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(
            answer.headers["Set-Cookie"].split("; ")
        )
        for elsewhere in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            given = {"token": site.token, "who": "Ada"}
            assert client.post("/login", data=given, headers=elsewhere).status_code == 403


def test_every_page_is_whole_light_and_lets_nothing_of_others_in(site: Site) -> None:
    with site.browser() as browser:
        shared = sum(len(browser.get(f"/static/page.{end}").content) for end in ("css", "js"))
        for path in ("", "/review", "/informative", "/audit", "/login"):
            path = path if path == "/login" else f"/sessions/s{path}"
            answer = browser.get(path)
            assert answer.status_code == 200
            assert len(answer.content) + shared < 200_000
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"
            assert not re.search(r"(src|href)=\"(https?:)?//", answer.text)
            assert not re.search(r"<[^>]+\s(style|on\w+)=", answer.text), "the policy forbids these"
            assert "<script>alert" not in answer.text
            assert "<b>L</b>" not in answer.text
        assert "a&lt;script&gt;" in browser.get("/sessions/s").text
    with site.program(OPERATOR) as operator:
        assert 'href="/sessions/s"' in operator.get("/").text


def test_a_click_overrides_a_verdict_and_is_kept_with_name_and_time(
    site: Site, tmp_path: Path
) -> None:
    with site.browser() as browser:
        page = browser.get("/sessions/s").text
        form = next(one for one in tiles(page) if one["stack"] == site.stack.id)
        browser.post(form["action"], data={**form, "say": "keep"})
        (said,) = site.ledger.overrides("s")
        assert (said.keep, said.who) == (True, "Ada <b>L</b>")
        assert abs(said.at - time.time()) < 60
        assert (
            f"{said.stack}:{said.row}"
            in site.ledger.events("s", names=["verdict.overridden"])[0].id
        )

        browser.post(form["action"], data={**form, "say": "discard"})
        table = browser.get("/v1/sessions/s/overrides.csv")
        assert table.headers["Content-Type"].startswith("text/csv")
        file = tmp_path / "overrides.csv"
        file.write_bytes(table.content)
        source = open_source(Path(said.described_by))
        assert (read_selection(file, source) == 0).sum() == 1

        browser.post(form["action"], data={**form, "say": "none"})
        assert not site.ledger.overrides("s")


def test_a_discard_says_why_in_words(site: Site) -> None:
    row = {
        "image": "1@a.mrcs",
        "score": 0.1,
        "verdict": "discard",
        "d1": 0.1,
        "d2": 0.1,
        "d3": None,
    }
    for given, shown in (
        ("off_centre", "off-centre"),
        ("its class 3 is discarded",) * 2,
        (None,) * 2,
    ):
        table = pa.Table.from_pylist([{**row, "reason": given}], VERDICTS_SCHEMA)
        assert _tile(site.stack, table, 0, None).reason == shown


def test_what_a_page_of_another_site_sends_does_nothing(site: Site) -> None:
    with site.browser() as browser:
        form = tiles(browser.get("/sessions/s").text)[0]
        say = {**form, "say": "keep"}
        refused = [
            browser.post(form["action"], data={**say, "csrf": ""}),
            browser.post(form["action"], data={**say, "csrf": "0" * 64}),
            browser.post(form["action"], data=say, headers={"Sec-Fetch-Site": "cross-site"}),
            browser.post(form["action"], data=say, headers={"Origin": "https://evil.example"}),
        ]
        assert [one.status_code for one in refused] == [403] * 4
        with site.browser(OPERATOR) as operator:
            theirs = operator.post(form["action"], data=say)
            assert theirs.status_code == 403, "each visitor's word is their own"
    assert not site.ledger.overrides("s")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"stack": "x", "row": "0", "say": "keep"}, 404),
        ({"row": "99999", "say": "keep"}, 404),
        ({"row": "-1", "say": "keep"}, 422),
        ({"row": "9" * 30, "say": "keep"}, 422),
        ({"row": "0", "say": "maybe"}, 422),
        ({"row": "0", "say": "keep", "who": "x" * 20_000}, 422),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    site: Site, said: dict[str, str], status: int
) -> None:
    with site.program() as program:
        answer = program.post("/v1/sessions/s/overrides", json={"stack": site.stack.id, **said})
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


def test_a_name_is_no_formula_in_a_spreadsheet(site: Site) -> None:
    hidden = {(row.stack, row.row) for row in site.ledger.audit_sample("s")}
    row = next(row for row in range(IMAGES) if (site.stack.id, row) not in hidden)
    with site.program() as program:
        who = '=HYPERLINK("http://evil.example")\x1b[2J'
        body = {"stack": site.stack.id, "row": row, "say": "discard", "who": who}
        program.post("/v1/sessions/s/overrides", json=body)
        text = program.get("/v1/sessions/s/overrides.csv").text
    (line,) = csv.DictReader(text.splitlines())
    assert line["who"] == '\'=HYPERLINK("http://evil.example")\\x1b[2J'
    assert image_place("1@=1+1.mrcs", "") == ("./=1+1.mrcs", 1)


def test_a_program_says_who_speaks(site: Site) -> None:
    hidden = {(row.stack, row.row) for row in site.ledger.audit_sample("s")}
    row = next(row for row in range(IMAGES) if (site.stack.id, row) not in hidden)
    with site.program() as program:
        body = {"stack": site.stack.id, "row": row, "say": "discard", "who": "Grace"}
        answer = program.post("/v1/sessions/s/overrides", json=body)
    assert (answer.status_code, answer.json()["keep"]) == (200, False)
    assert site.ledger.overrides("s")[0].who == "Grace"


def test_the_blind_sample_is_labelled_before_its_verdicts_are_shown(site: Site) -> None:
    sample = site.ledger.audit_sample("s")
    assert len(sample) == 6
    first = sample[0]
    with site.browser() as browser:
        everywhere = tiles(browser.get("/sessions/s").text) + tiles(
            browser.get("/sessions/s/review").text + browser.get("/sessions/s/informative").text
        )
        shown = {(form["stack"], int(form["row"])) for form in everywhere}
        assert not shown & {(row.stack, row.row) for row in sample}
        page = browser.get("/sessions/s/audit").text
        assert 'class="score"' not in page
        assert escape(first.image) not in page
        form = next(
            one
            for one in tiles(page)
            if (one["stack"], one["row"]) == (first.stack, str(first.row))
        )
        over = "/sessions/s/say"
        assert browser.post(over, data={**form, "say": "keep"}).status_code == 403
        browser.post(form["action"], data={**form, "say": "keep"})
        browser.post(form["action"], data={**form, "say": "discard"})
        page = browser.get("/sessions/s/audit").text
        assert (words(page), page.count('class="score"')) == ("1 of 6 labelled", 0)
        assert browser.post(over, data={**form, "say": "keep"}).status_code == 403
        (line,) = csv.DictReader(browser.get("/v1/sessions/s/audit.csv").text.splitlines())
        assert (line["label"], line["before"], line["score"]) == ("1", "", "")
        a_minute_passes(site.ledger)
        page = browser.get("/sessions/s/audit").text
        assert (words(page), page.count('class="score"')) == ("1 of 6 labelled", 1)
        assert escape(first.image) in page
        (line,) = csv.DictReader(browser.get("/v1/sessions/s/audit.csv").text.splitlines())
    verdicts = site.root / "cryoray/s/verdicts" / Path(first.path).name / "verdicts.parquet"
    row = pq.read_table(verdicts).to_pylist()[first.row]
    assert line["label"] == "1", "the first label stands"
    assert (line["before"], line["score"]) == (row["verdict"], f"{row['score']:.6f}")


def words(page: str) -> str:
    """How far people are, as the page says it."""
    found = re.search(r"<span data-done=.*?>([\d,]+)</span> (of [\d,]+ \w+)", page)
    assert found
    return f"{found[1]} {found[2]}"


def a_minute_passes(ledger: Ledger) -> None:
    """Move the labels of the blind sample into the past, as if somebody had waited."""
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE audit SET at = at - 61")


def test_a_wrong_key_costs_no_blind_label_until_its_verdict_is_shown(site: Site) -> None:
    with site.browser() as browser:
        form = tiles(browser.get("/sessions/s/audit").text)[0]

        def label() -> list[bool]:
            return [row.keep for row in site.ledger.audit_sample("s") if row.keep is not None]

        browser.post(form["action"], data={**form, "say": "discard"})
        assert label() == [False]
        browser.post(form["action"], data={**form, "say": "none"})
        assert label() == []
        browser.post(form["action"], data={**form, "say": "keep"})
        a_minute_passes(site.ledger)
        assert browser.post(form["action"], data={**form, "say": "none"}).status_code == 403
        assert label() == [True]


def test_review_is_the_whole_list_with_a_way_through_it(site: Site) -> None:
    with site.ledger.engine.begin() as connection:  # the sample may hold most of the few
        connection.exec_driver_sql("UPDATE sessions SET audit = 0")
    expected = []
    for stack in site.ledger.stacks("s", "judged"):
        folder = site.root / "cryoray/s/verdicts" / Path(stack.path).name
        verdicts = pq.read_table(folder / "verdicts.parquet")["verdict"].to_pylist()
        expected += [(stack.id, row) for row, verdict in enumerate(verdicts) if verdict == "review"]
    assert len(expected) > 2

    def places(page: str) -> list[tuple[str, int]]:
        queue = page.partition("Decided last")[0]
        return [(form["stack"], int(form["row"])) for form in tiles(queue)]

    with site.browser() as browser, pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "_QUEUE", 2)
        page = browser.get("/sessions/s/review").text
        assert words(page) == f"0 of {len(expected)} decided"
        seen = places(page)
        while following := re.search(r'data-next="([^"]+)"', page):
            page = browser.get(following[1]).text
            seen += places(page)
        assert seen == expected
        form = tiles(browser.get("/sessions/s/review").text)[0]
        page = browser.post(form["action"], data={**form, "say": "discard"}).text
        assert words(page) == f"1 of {len(expected)} decided"
        assert places(page) == expected[1:3]
        assert tiles(page.partition("Decided last")[2])[0]["row"] == form["row"]
        page = browser.post(form["action"], data={**form, "say": "none"}).text
        assert words(page) == f"0 of {len(expected)} decided"
        assert browser.get("/sessions/s/review?after=nonsense:x").status_code == 200


def test_counters_follow_what_people_said(site: Site) -> None:
    def counts(browser: httpx.Client) -> tuple[int, ...]:
        page = browser.get("/sessions/s/live").text
        found = re.findall(r"<small>([\d,]+) (?:kept|discarded|to review)</small>", page)
        return tuple(int(one.replace(",", "")) for one in found)

    with site.browser() as browser:
        kept, discarded, review = counts(browser)
        form = tiles(browser.get("/sessions/s/review").text)[0]
        browser.post(form["action"], data={**form, "say": "keep"})
        assert counts(browser) == (kept + 1, discarded, review - 1)
        browser.post(form["action"], data={**form, "say": "discard"})
        assert counts(browser) == (kept, discarded + 1, review - 1)
    with site.program() as program:
        plain = program.get("/v1/sessions/s").json()
        assert (plain["kept"], plain["discarded"]) == (kept, discarded + 1)


def test_classes_are_listed_with_those_that_have_no_verdict_and_an_empty_one_is_no_fault(
    tiny_ensemble: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    counts = (7, 4, 0, 9, 2, 0)
    write_class_job(root, counts)
    examples.save_ensemble(tmp_path / "classes", "class2d")
    ensembles = {"tiny": tiny_ensemble, "classes": tmp_path / "classes"}
    url = str(root / "cryoray/ledger.sqlite")
    with running([root], ensembles, ledger=url) as service:
        settings = WatchSettings(poll=0.05, settle=0.05, rescan=0.1)
        watcher = Watcher(root, "s", settings, service.client())
        watcher.run(threading.Event(), once=True)
        watcher.close()
        token = watcher.token_file.read_text().strip()
        headers = {"Accept": "text/html"}
        with httpx.Client(
            base_url=service.url, timeout=30, follow_redirects=True, headers=headers
        ) as client:
            client.post("/login", data={"token": token, "who": "Ada"})
            page = client.get("/sessions/s").text
    panel = page.split("2D classes of the latest job")[1].split("</section>")[0]
    assert len(tiles(panel)) == 4
    assert re.search(r"\d of 6 kept", panel)
    assert "class 4 · 40.9 % · 16.5 Å" in panel
    listed = re.findall(r"<li><b>([^<]*)</b> ([^<]*)</li>", panel)
    assert listed == [(f"class {n}", "empty class, no particles") for n in (3, 6)]


def test_what_is_not_there_is_a_page_for_a_person_and_json_for_a_program(site: Site) -> None:
    with site.browser() as browser, site.program() as program:
        answer = browser.get("/sessions/nothing")
        assert (answer.status_code, answer.headers["Content-Type"]) == (
            404, "text/html; charset=utf-8",
        )  # fmt: skip
        assert "There is no session" in answer.text
        assert 'href="/"' in answer.text
        assert list(program.get("/sessions/nothing").json()) == ["error"]


def test_dates_have_a_zone(site: Site) -> None:
    zone = time.strftime("%Z")
    with site.browser() as browser:
        page = browser.get("/sessions/s").text
    for date in re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d[^<]*", page):
        assert date.endswith(f" {zone}")
    assert f"Keep rate over time ({zone})" in page


def test_an_image_of_the_blind_sample_never_becomes_a_training_label(site: Site) -> None:
    first = site.ledger.audit_sample("s")[0]
    site.ledger.label_blind("s", first.stack, first.row, keep=True, who="Ada")
    with site.browser() as browser:
        a_minute_passes(site.ledger)
        csrf = tiles(browser.get("/sessions/s").text)[0]["csrf"]
        said = {"stack": first.stack, "row": str(first.row), "csrf": csrf, "say": "keep"}
        assert browser.post("/sessions/s/say", data=said).status_code == 200
        assert len(browser.get("/v1/sessions/s/overrides.csv").text.splitlines()) == 2
        assert browser.get("/v1/sessions/s/labels.csv").status_code == 403
        browser.post("/sessions/s/trainable", data={"csrf": csrf, "trainable": "on"})
        assert len(browser.get("/v1/sessions/s/labels.csv").text.splitlines()) == 1


def test_only_its_owner_releases_a_session_for_training(site: Site) -> None:
    def trainable() -> bool:
        row = site.ledger.session("s")
        assert row is not None
        return bool(row.trainable)

    assert not trainable()
    with site.browser(OPERATOR) as operator:
        csrf = tiles(operator.get("/sessions/s").text)[0]["csrf"]
        lend = {"csrf": csrf, "trainable": "on"}
        assert operator.post("/sessions/s/trainable", data=lend).status_code == 403
    assert not trainable()
    with site.browser() as owner:
        csrf = tiles(owner.get("/sessions/s").text)[0]["csrf"]
        owner.post("/sessions/s/trainable", data={"csrf": csrf, "trainable": "on"})
        assert trainable()
        owner.post("/sessions/s/trainable", data={"csrf": csrf, "trainable": "off"})
    assert not trainable()


def test_images_are_drawn_on_demand_and_only_from_where_they_may_be_read(
    site: Site, tmp_path: Path
) -> None:
    path = f"/sessions/s/image/{site.stack.id}/0.png"
    with site.program() as program:
        answer = program.get(path)
        assert answer.headers["Content-Type"] == "image/png"
        image = np.asarray(Image.open(io.BytesIO(answer.content)), float)
        assert image.shape == (128, 128)
        assert image.std() > 10
        assert program.get(path, params={"side": 320}).status_code == 200
        for wrong in ({"side": 20_000}, {"low": -1}, {"low": "nan"}, {"cut": 50}, {"view": "x"}):
            assert program.get(path, params=wrong).status_code == 422, wrong
        assert program.get(f"/sessions/s/image/{site.stack.id}/4000.png").status_code == 422
        assert program.get("/sessions/s/image/..%2f..%2fetc/0.png").status_code == 404
        secret = examples.write_stack(tmp_path / "secret.mrcs", examples.particles(IMAGES))
        stack = Path(site.stack.path)
        aside = stack.rename(tmp_path / "aside.mrcs")
        stack.symlink_to(secret)
        try:
            refused = program.get(f"/sessions/s/image/{site.stack.id}/1.png")
        finally:
            shutil.move(aside, stack)
        assert (refused.status_code, list(refused.json())) == (422, ["error"])


def test_the_page_says_what_is_not_known_of_the_merged_files(site: Site) -> None:
    with site.browser() as browser:
        page = browser.get("/sessions/s").text
    assert "Not known: rlnVoltage, rlnSphericalAberration of kept.star" in page


def test_the_queue_is_sorted_by_what_a_label_tells(site: Site) -> None:
    worth = [row.information for row in site.ledger.candidates("s", 10)]
    assert worth == sorted(worth, reverse=True)
    assert len(worth) > 2
    with site.browser() as browser:
        shown = [
            (form["stack"], int(form["row"]))
            for form in tiles(browser.get("/sessions/s/informative").text)
        ]
    assert shown == [(row.stack, row.row) for row in site.ledger.candidates("s", 24)]


@pytest.mark.parametrize(
    "path", ["//evil.example", "/\\evil.example", "https://evil.example", "", "/a\nb"]
)
def test_after_coming_in_one_stays_on_this_site(path: str) -> None:
    assert own_path(path) == "/"


def test_bins_hold_every_image_once_and_the_band_is_of_the_sessions_own_past() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(1, 100, 500)
    kept = rng.binomial(images, 0.6)
    x = rng.normal(size=500)
    x[:20] = np.nan
    bins = charts.binned(x, kept, images, 12)
    assert sum(one.images for one in bins) == images[20:].sum()
    assert sum(one.rate * one.images for one in bins) == pytest.approx(kept[20:].sum())
    limits = charts.band(kept / images)
    assert limits is not None
    assert limits.centre == pytest.approx(0.6, abs=0.02)
    low, high = limits.limits(40)
    assert 0.5 < low < 0.6 < high < 0.7


def test_an_override_waits_for_a_locked_ledger_and_then_says_so(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.program() as program:
        hidden = {(row.stack, row.row) for row in site.ledger.audit_sample("s")}
        row = next(row for row in range(IMAGES) if (site.stack.id, row) not in hidden)
        body = {"stack": site.stack.id, "row": row, "say": "discard", "who": "Grace"}
        site.ledger.engine.dispose()  # connections from now on wait for a moment
        monkeypatch.setattr("cryoray.session.database._BUSY_MS", 50)
        with closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = program.post("/v1/sessions/s/overrides", json=body)
            assert answer.status_code == 503
            assert "another program holds its lock" in answer.json()["error"]
            assert answer.headers["Retry-After"] == "10"
            other.execute("ROLLBACK")
        assert program.post("/v1/sessions/s/overrides", json=body).status_code == 200


def test_leaving_ends_what_the_cookie_was_good_for(site: Site) -> None:
    with site.browser() as browser:
        cookie = browser.cookies["cryoray"]
        with site.client(cookies={"cryoray": cookie}) as thief:
            assert thief.get("/v1/sessions").status_code == 200
            browser.post("/logout")
            assert thief.get("/v1/sessions").status_code == 401


def test_who_guesses_waits_and_keeps_nobody_else_out(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"token": "wrong", "who": "Eve"}
    gate, late = threading.Event(), access.Access.refuse

    async def held(self: access.Access) -> None:
        """As late as this test wants, and then as it would be."""
        self._waiting += 1
        while not gate.is_set():
            await asyncio.sleep(0.005)
        self._waiting -= 1
        await late(self)

    monkeypatch.setattr(access, "_DELAY", 0.01)
    monkeypatch.setattr(access.Access, "refuse", held)
    with ThreadPoolExecutor(20) as pool, site.client() as client:
        guessing = [pool.submit(client.post, "/login", data=wrong) for _ in range(20)]
        while sum(one.done() for one in guessing) < 12:  # the others wait
            time.sleep(0.005)
        right = client.post("/login", data={"token": site.token, "who": "Ada"})
        gate.set()
        assert right.status_code == 303
        guesses = {one.result().status_code for one in guessing}
        assert guesses == {401, 429}


def test_a_malformed_request_is_no_fault_of_ours(
    site: Site, judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_DELAY", 0.0)
    app = served(site.ledger, judged)
    known = {"name": "s", "stack": site.stack.id, "row": "0", "number": "0"}
    fields = {"stack": site.stack.id, "row": "0", "say": "none", "who": "x", "token": "x"}
    fields |= {"next": "/", "from": "review", "csrf": "x", "trainable": "on"}
    asked = list(malformed.requests(app, known, fields))
    assert len(asked) > 1000
    with site.program(OPERATOR) as program, site.browser(OPERATOR) as browser:
        browser.follow_redirects = False
        for client in (program, browser):
            faults = [
                (what, response.text[:200])
                for what, response in malformed.answers(client, asked)
                if response.status_code >= 500
            ]
            assert faults == []
