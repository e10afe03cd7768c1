"""The file that a browser is started with, in place of the link."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cryoray.cli.main import app
from cryoray.select.link import private
from cryoray.verbs.select import Opened

URL = "http://127.0.0.1:8123/?token=secret&x=1"


def test_a_browser_gets_the_link_in_a_file_that_its_owner_alone_reads() -> None:
    with private(URL) as address:
        assert "secret" not in address
        file = Path(urlsplit(address).path)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert "url=http://127.0.0.1:8123/?token=secret&amp;x=1" in file.read_text()
    assert not file.parent.exists()


def test_no_browser_is_started_with_the_token_among_its_arguments(
    particles: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[tuple[str, str]] = []

    def browse(address: str) -> bool:
        opened.append((address, Path(urlsplit(address).path).read_text()))
        return True

    monkeypatch.setattr("webbrowser.open", browse)
    monkeypatch.setattr(Opened, "serve", lambda self: None)
    app(["select", str(particles)], standalone_mode=False)
    (link,) = re.findall(r"http://\S+", capsys.readouterr().out)
    ((address, page),) = opened
    token = link.partition("token=")[2]
    assert len(token) > 30
    assert token not in address
    assert token in page
