"""The session page as the service mounts it: its own door, and what a session's token may have judged."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cryoray.protocol.client import RefusedError
from cryoray.session.watcher import Watcher
from cryoray.settings import WatchSettings
from tests import examples
from tests.session.service import TOKEN, Service, running

pytestmark = pytest.mark.long


@pytest.fixture
def service(tiny_ensemble: Path, tmp_path: Path) -> Iterator[Service]:
    ledger = str(tmp_path / "mine/cryoray/ledger.sqlite")
    with running([tmp_path], {"tiny": tiny_ensemble}, ledger=ledger) as made:
        yield made


@pytest.fixture
def session(service: Service, tmp_path: Path) -> str:
    """The token of a session that was judged."""
    examples.write_stack(tmp_path / "mine/a.mrcs", examples.particles(12))
    (tmp_path / "other").mkdir()
    examples.write_stack(tmp_path / "other/b.mrcs", examples.particles(12))
    settings = WatchSettings(poll=0.05, settle=0.05)
    watcher = Watcher(tmp_path / "mine", "s", settings, service.client())
    watcher.run(threading.Event(), once=True)
    watcher.close()
    return watcher.token_file.read_text().strip()


def test_a_watcher_s_session_is_on_the_service_s_page(service: Service, session: str) -> None:
    with httpx.Client(base_url=service.url, follow_redirects=True) as browser:
        assert browser.get("/", headers={"Accept": "text/html"}).url.path == "/login"
        browser.post("/login", data={"token": session, "who": "Ada"})
        page = browser.get("/")
        assert (page.status_code, page.url.path) == (200, "/sessions/s")
        assert "12" in browser.get("/sessions/s/live").text
        tiles = browser.get("/sessions/s/audit").text
        picture = browser.get(re.findall(r' src="([^"]+\.png)"', tiles)[0])
        assert picture.headers["Content-Type"] == "image/png"
    with httpx.Client(
        base_url=service.url, headers={"Authorization": f"Bearer {TOKEN}"}
    ) as operator:
        assert operator.get("/v1/sessions").json()[0]["name"] == "s"


def test_a_session_s_token_judges_its_own_folder_and_nothing_else(
    service: Service, session: str, tmp_path: Path
) -> None:
    with service.client(session) as owner:
        assert len(owner.judge(tmp_path / "mine/a.mrcs")) == 12
        assert owner.ensembles().ensembles[0].name == "tiny"
        (tmp_path / "mine/link.mrcs").symlink_to(tmp_path / "other/b.mrcs")
        for path in ("other/b.mrcs", "mine/../other/b.mrcs", "mine/link.mrcs"):
            with pytest.raises(RefusedError, match="none of the folders") as refused:
                owner.judge(tmp_path / path)
            assert refused.value.status == 403
        with pytest.raises(RefusedError, match="token"):
            owner.shadow()
    with service.client("nobody's") as stranger, pytest.raises(RefusedError, match="token"):
        stranger.judge(tmp_path / "mine/a.mrcs")


def test_without_a_ledger_there_are_no_pages(tiny_ensemble: Path, tmp_path: Path) -> None:
    with running([tmp_path], {"tiny": tiny_ensemble}) as service:
        assert httpx.get(f"{service.url}/").status_code == 404
        assert httpx.get(f"{service.url}/v1/sessions").status_code == 401


@pytest.mark.parametrize("knows", [True, False], ids=["by its token", "by itself"])
def test_a_star_file_in_a_session_shows_nothing_of_its_neighbour(
    tiny_ensemble: Path, tmp_path: Path, knows: bool
) -> None:
    """Alice's folder names Bob's stack, which the service and the operator may read."""
    mine, other = tmp_path / "alice", tmp_path / "bob"
    examples.write_stack(mine / "a.mrcs", examples.particles(6))
    examples.write_stack(other / "b.mrcs", examples.particles(6, seed=1))
    examples.write_stack(other / "c.mrcs", examples.particles(6, seed=2))
    rows = [f"{i:06d}@{other}/c.mrcs mic.mrc 1 9000 8800 4.5" for i in range(1, 7)]
    examples.write_star(mine / "joined.star", rows)
    (mine / "linked.mrcs").symlink_to(other / "b.mrcs")
    ledger = str(mine / "cryoray/ledger.sqlite")
    settings = WatchSettings(poll=0.05, settle=0.05)
    with running([tmp_path], {"tiny": tiny_ensemble}, ledger=ledger if knows else None) as service:
        watcher = Watcher(mine, "s", settings, service.client())
        watcher.run(threading.Event(), once=True)
        rejected = {Path(row.path).name: row for row in watcher.ledger.stacks("s", "rejected")}
        assert set(rejected) == {"joined.star", "linked.mrcs"}
        assert all("outside of the session's folders" in row.reason for row in rejected.values())
        (judged,) = watcher.ledger.stacks("s", "judged")
        assert judged.path == str(mine / "a.mrcs")
        # The page does not follow either, should the stack become a link afterwards.
        (mine / "a.mrcs").unlink()
        (mine / "a.mrcs").symlink_to(other / "b.mrcs")
        if knows:
            token = {"Authorization": f"Bearer {watcher.token_file.read_text().strip()}"}
            image = f"{service.url}/sessions/s/image/{judged.id}/0.png"
            assert httpx.get(image, headers=token).status_code == 422
        watcher.close()


def test_a_folder_that_was_allowed_may_be_led_to(tiny_ensemble: Path, tmp_path: Path) -> None:
    mine, raw = tmp_path / "mine", tmp_path / "raw"
    mine.mkdir()
    examples.write_stack(raw / "b.mrcs", examples.particles(6, seed=1))
    (mine / "linked.mrcs").symlink_to(raw / "b.mrcs")
    ledger = str(mine / "cryoray/ledger.sqlite")
    settings = WatchSettings(
        poll=0.05, settle=0.05, roots=(raw, tmp_path.parent / "not-the-service-s")
    )
    with running([tmp_path], {"tiny": tiny_ensemble}, ledger=ledger) as service:
        watcher = Watcher(mine, "s", settings, service.client())
        watcher.run(threading.Event(), once=True)
        (judged,) = watcher.ledger.stacks("s", "judged")
        word = watcher.token_file.read_text().strip()
        image = f"{service.url}/sessions/s/image/{judged.id}/0.png"
        assert httpx.get(image, headers={"Authorization": f"Bearer {word}"}).status_code == 200
        # It was the session that asked, whose token opens these folders and no others.
        assert watcher.service.client is not watcher.client
        examples.write_stack(tmp_path / "other/c.mrcs", examples.particles(6, seed=2))
        with service.client(word) as owner:
            assert len(owner.judge(raw / "b.mrcs")) == 6
            raw.rename(tmp_path / "kept")
            raw.symlink_to(tmp_path / "other")
            with pytest.raises(RefusedError, match="none of the folders"):
                owner.judge(raw / "c.mrcs")
            with pytest.raises(RefusedError, match="none of the folders"):
                owner.judge(tmp_path / "other/c.mrcs")
        watcher.close()
