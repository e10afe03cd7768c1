"""Who may come to the page, and what it answers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from cryoray.select.app import Page
from cryoray.select.clicks import Clicks
from cryoray.select.gallery import Gallery
from cryoray.select.selection import Selection
from cryoray.select.table import open_table
from cryoray.settings import PreparationSettings
from cryoray.web.looks import Look
from tests.select.server import serving
from tests.web import malformed


class Visitor:
    """A browser that came in by the link."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.client = httpx.Client(base_url=url, timeout=60)
        self.client.get(f"/?token={page.token}")
        text = self.client.get("/").text
        self.csrf = re.findall(r'name="csrf" content="([^"]+)"', text)[0]

    def do(self, tab: str = "a", seen: int = -1, **fields: object) -> dict[str, Any]:
        answer = self.client.post(
            "/do", json={"tab": tab, "seen": seen, **fields}, headers={"X-CSRF": self.csrf}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, **fields: object) -> str:
        answer = self.client.post("/do", json={"tab": "a", **fields}, headers={"X-CSRF": self.csrf})
        assert answer.status_code == 422
        return str(answer.json()["error"])


@pytest.fixture
def visitor(particles: Path) -> Iterator[Visitor]:
    table = open_table(particles)
    clicks = Clicks(particles, len(table), table.digest)
    settings = PreparationSettings(box=32)
    page = Page(Selection(table, clicks), Gallery(table, settings), particles / "selected")
    with serving(page.app()) as url:
        visitor = Visitor(page, url)
        yield visitor
        visitor.client.close()
    clicks.close()


PATHS = ("/", "/facts", "/columns", "/since?tab=a", "/strip.png?places=0", "/similar?place=0")


def test_nothing_is_shown_without_the_link(visitor: Visitor) -> None:
    stranger = httpx.Client(base_url=visitor.url, timeout=60)
    for path in PATHS:
        assert stranger.get(path).status_code == 401, path
        assert visitor.client.get(path).status_code == 200, path
    assert stranger.get("/?token=wrong").status_code == 401
    assert stranger.get("/", headers={"Accept": "text/html"}).text.startswith("<!doctype html>")
    for path in ("/do", "/save"):
        assert stranger.post(path, json={}).status_code == 401
    assert "Set-Cookie" not in stranger.get("/?token=wrong").headers
    cookie = stranger.get(f"/?token={visitor.page.token}").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    stranger.close()


def test_another_site_and_another_name_of_this_machine_get_nothing(visitor: Visitor) -> None:
    client, headers = visitor.client, {"X-CSRF": visitor.csrf}
    turn = {"tab": "a", "seen": -1, "what": "turn", "rows": [1], "value": 0}
    assert client.post("/do", json=turn).status_code == 403
    assert client.post("/do", json=turn, headers={"X-CSRF": "x"}).status_code == 403
    for elsewhere in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post("/do", json=turn, headers=headers | elsewhere).status_code == 403
    for host in ("evil.example:8123", "127.0.0.1.evil.example", "", "localhost@evil.example"):
        assert client.get("/facts", headers={"Host": host}).status_code == 403, host
        assert client.post("/do", json=turn, headers=headers | {"Host": host}).status_code == 403
    assert client.get("/facts", headers={"Host": "127.0.0.1:9000"}).status_code == 200
    assert client.post("/do", content=b"[1]", headers=headers).status_code == 422
    assert client.post("/do", content=b"{", headers=headers).status_code == 422
    assert visitor.page.selection.clicks.revision == 0


def test_every_answer_has_the_strict_policy_and_the_page_needs_no_other(visitor: Visitor) -> None:
    for path in (*PATHS, "/static/select.js", "/static/select.css", "/static/absent"):
        headers = visitor.client.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"], path
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    text = visitor.client.get("/").text
    assert not re.search(r"<[^>]+\s(style|on\w+)=", text), "the policy forbids these"
    assert not re.search(r"(src|href)=\"(https?:)?//", text)
    assert "<style" not in text
    assert re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL) == [""]


def test_a_name_of_a_folder_cannot_become_part_of_the_page(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = visitor.page.selection.table
    object.__setattr__(table, "folder", Path("/x/<script>alert(1)<"))
    assert "<script>alert" not in visitor.client.get("/").text


def test_an_action_answers_with_what_changed_for_this_tab_and_for_the_other(
    visitor: Visitor,
) -> None:
    first = visitor.do(what="turn", rows=[4, 2], value=0)
    assert (first["rev"], first["rows"], first["values"]) == (1, [2, 4], [0, 0])
    assert first["undo"]
    other = visitor.do("b", seen=1, what="turn", rows=[7], value=1)
    assert (other["rows"], other["values"]) == ([7], [1])
    news = visitor.client.get("/since?tab=a&rev=1").json()
    assert (news["rev"], news["rows"]) == (2, [7])
    undone = visitor.do("a", seen=2, what="undo")
    assert (undone["rows"], undone["values"]) == ([2, 4], [-1, -1])
    assert undone["redo"]
    assert visitor.do("a", seen=3, what="redo")["values"] == [0, 0]
    line = visitor.do(what="line", line=0.6, policy="even odds")
    assert (line["line"], line["policy"]) == (0.6, "even odds")


def test_what_makes_no_sense_is_refused_in_one_sentence(visitor: Visitor) -> None:
    assert "no action" in visitor.refused(what="explode")
    assert "rows of 0 to 39" in visitor.refused(what="turn", rows=[40], value=1)
    assert "say 1 for keep" in visitor.refused(what="turn", rows=[1], value="x")
    assert "0 to 1" in visitor.refused(what="line", line=7)
    assert "label some" in visitor.refused(what="adapt")
    for query in ("places=99", "places=x", "places=", "places=1&view=x", "places=1&side=7",
                  "places=1&low=-1", "places=1&cut=99", "places=" + ",".join(["1"] * 65)):  # fmt: skip
        assert visitor.client.get(f"/strip.png?{query}").status_code in (404, 422), query


def test_teaching_and_saving_from_the_page(visitor: Visitor) -> None:
    asked = visitor.do(what="ask")["told"]["places"]
    assert len(asked) == 20
    visitor.do(what="turn", rows=asked[:5], value=0)
    told = visitor.do(what="adapt")["told"]
    assert told["labels"] == 5
    answer = visitor.client.post("/save", headers={"X-CSRF": visitor.csrf})
    saved = answer.json()
    assert saved["kept"] + saved["discarded"] + saved["quarantined"] == saved["rows_in"]
    assert visitor.client.get("/facts").json()["saved"]["revision"] == saved["revision"] == 3


def read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("view", ["clear", "network", "file"])
def test_a_strip_has_a_picture_for_each_place_in_the_order_asked_for(
    visitor: Visitor, view: str
) -> None:
    query = f"view={view}&side=64&low=20&cut=1"
    shown = read(visitor.client.get(f"/strip.png?places=5,30,2&{query}").content)
    assert shown.shape == (64, 192)
    for at, place in enumerate((5, 30, 2)):
        one = read(visitor.client.get(f"/strip.png?places={place}&{query}").content)
        assert (shown[:, 64 * at : 64 * at + 64] == one).all()
        assert one.std() > 10


def test_protein_is_bright_whatever_it_is_in_the_file(visitor: Visitor) -> None:
    gallery = visitor.page.gallery
    middle = np.s_[28:36, 28:36]
    places = np.arange(8)

    def brightness(dark: bool, view: str) -> float:
        gallery._dark = dark
        strip = read(gallery.strip(places, Look(view, 64)))  # type: ignore[arg-type]
        return float(np.mean([strip[:, 64 * i : 64 * i + 64][middle].mean() for i in places]))

    assert brightness(False, "clear") > 150 > 105 > brightness(True, "clear")
    assert brightness(True, "file") == brightness(False, "file")


def test_an_image_whose_stack_is_gone_is_grey_and_the_others_are_shown(
    visitor: Visitor, tmp_path: Path
) -> None:
    (tmp_path / "project/Extract/job001/mic_2.mrcs").unlink()
    table = visitor.page.selection.table
    of = table.micrographs[1].tolist()
    there, gone = of.index(0), of.index(1)
    shown = read(visitor.client.get(f"/strip.png?places={there},{gone}&side=64").content)
    assert shown[:, :64].std() > 10
    assert np.unique(shown[:, 64:]).tolist() == [128]


def test_similar_ones_begin_with_the_image_itself_and_then_its_like(visitor: Visitor) -> None:
    told = visitor.client.get("/similar?place=6").json()
    assert told["places"][0] == 6
    assert sorted(told["places"]) == list(range(40))
    assert told["among"] == 40


def test_a_malformed_request_is_no_fault_of_ours(visitor: Visitor) -> None:
    fields = {
        "tab": "a",
        "seen": 0,
        "what": "turn",
        "rows": [1],
        "value": 1,
        "line": 0.5,
        "policy": "x",
    }
    asked = list(malformed.requests(visitor.page.app(), {"name": "select.js"}, fields))
    for what in ("line", "ask", "undo"):
        asked += malformed.requests(visitor.page.app(), {"name": "x"}, {**fields, "what": what})
    headers = {"X-CSRF": visitor.csrf}
    faults = []
    for what, response in malformed.answers(
        visitor.client, ((m, t, headers | h, b) for m, t, h, b in asked)
    ):
        if response.status_code >= 500:
            faults.append((what, response.text[:200]))
    assert len(asked) > 500
    assert faults == []
    headers["Content-Type"] = "application/json"
    assert visitor.client.post("/save", headers=headers).status_code == 200
