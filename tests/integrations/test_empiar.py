"""Entries are fetched whole, go on after an interruption, and are checked; from a real HTTP server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from cryoray.errors import InputError, SettingsError
from cryoray.integrations.empiar import Remote, entry_number, fetch
from cryoray.records import Event


@dataclass
class Server:
    """A web server that lists folders as Apache does, with ranges and validators.

    Attributes:
        files: content by path.
        cut: bytes after which it drops the connection, once.
        asked: method, path and range of each request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut: int | None = None
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def page(self, folder: str) -> str | None:
        """The index of a folder; None where there is none."""
        below = {path[len(folder) :] for path in self.files if path.startswith(folder)}
        names = sorted({n.split("/")[0] + ("/" if "/" in n else "") for n in below})
        links = "".join(f'<a href="{name.replace(" ", "%20")}">{name}</a>' for name in names)
        sort = '<a href="?C=N;O=D">Name</a><a href="/empiar/">Parent Directory</a>'
        return f"<html><body>{sort}{links}</body></html>" if names else None


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(self.path.split("?")[0]).removeprefix("/empiar/")
            served.asked.append((self.command, path, self.headers["Range"]))
            content = served.files.get(path)
            if content is None:
                page = served.page(path) if path.endswith("/") else None
                self.send_response(200 if page else 404)
                self.end_headers()
                self.wfile.write((page or "").encode())
                return
            tag = f'"{hashlib.sha256(content).hexdigest()[:12]}"'
            start = 0
            if self.headers["Range"] and self.headers["If-Range"] == tag:
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if body:
                cut, served.cut = served.cut, None
                self.wfile.write(content[start : start + cut] if cut else content[start:])

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{listening.server_port}/empiar"
    served.files = {
        "10812/10812.xml": b"<entry/>",
        "10812/data/particles.star": b"data_particles\n",
        "10812/data/stacks/a b.mrcs": bytes(range(256)) * 20,
        "10812/data/movies/m.tif": b"movie",
    }
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield served
    listening.shutdown()
    listening.server_close()


STACK = "data/stacks/a b.mrcs"


def test_the_files_of_the_patterns_come_whole_and_only_once(server: Server, tmp_path: Path) -> None:
    shown: list[Remote] = []
    events: list[Event] = []

    def confirm(files: Sequence[Remote]) -> bool:
        shown.extend(files)
        return True

    files = fetch(
        "EMPIAR-10812", tmp_path, base=server.url, confirm=confirm, on_event=events.append
    )
    assert [file.path for file in files] == ["data/particles.star", STACK]
    assert [file.size for file in shown] == [15, 5120]
    assert (tmp_path / STACK).read_bytes() == server.files[f"10812/{STACK}"]
    written = json.loads((tmp_path / "fetch.json").read_text())["files"]
    assert written[1]["sha256"] == hashlib.sha256(server.files[f"10812/{STACK}"]).hexdigest()
    server.asked.clear()
    shown.clear()
    fetch("10812", tmp_path, base=server.url, confirm=confirm, on_event=events.append)
    assert shown == []
    assert not any(path.endswith(".mrcs") and m == "GET" for m, path, _ in server.asked)
    assert [event.data.get("fetched") for event in events if event.name == "fetch.done"] == [2, 0]


def test_no_byte_comes_unasked(server: Server, tmp_path: Path) -> None:
    assert fetch("10812", tmp_path, base=server.url, confirm=lambda _: False) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_download_goes_on_unless_the_file_is_another(
    server: Server, tmp_path: Path, changed: bool
) -> None:
    server.cut = 2000
    with pytest.raises(InputError, match="goes on where it stopped"):
        fetch("10812", tmp_path, patterns=["*.mrcs"], base=server.url)
    assert not (tmp_path / STACK).exists()
    if changed:
        server.files[f"10812/{STACK}"] = bytes(5120)
    server.asked.clear()
    fetch("10812", tmp_path, patterns=["*.mrcs"], base=server.url)
    assert (tmp_path / STACK).read_bytes() == server.files[f"10812/{STACK}"]
    assert [one[2] for one in server.asked if one[0] == "GET" and one[1].endswith("mrcs")] == [
        "bytes=2000-"
    ]
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_the_entrys_own_checksums_count(server: Server, tmp_path: Path, kind: str) -> None:
    content = server.files[f"10812/{STACK}"]
    right = hashlib.new(kind, content).hexdigest()
    name = f"10812/data/{kind}sums.txt"
    server.files[name] = f"{right}  stacks/a b.mrcs\n".encode()
    fetch("10812", tmp_path / "right", patterns=["*.mrcs"], base=server.url)
    server.files[name] = server.files[name].replace(right[:4].encode(), b"0000")
    with pytest.raises(InputError, match="not what the entry's checksum says"):
        fetch("10812", tmp_path / "wrong", patterns=["*.mrcs"], base=server.url)
    assert not (tmp_path / "wrong" / STACK).exists()


def test_a_mirrored_entry_is_linked_and_not_copied(tmp_path: Path) -> None:
    (tmp_path / "mirror/10812/data").mkdir(parents=True)
    there = tmp_path / "mirror/10812/data/particles.star"
    there.write_text("data_\n")
    files = fetch("10812", tmp_path / "out", mirror=tmp_path / "mirror")
    assert [file.path for file in files] == ["data/particles.star"]
    assert (tmp_path / "out/data/particles.star").resolve() == there


def test_what_cannot_be_fetched_is_said_in_a_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such entry"):
        fetch("EMPIAR-99999", tmp_path, base=server.url)
    with pytest.raises(InputError, match=r"holds no file named \*\.dat among its 4"):
        fetch("10812", tmp_path, patterns=["*.dat"], base=server.url)
    with pytest.raises(SettingsError, match="is not an HTTPS address"):
        fetch("10812", tmp_path, base="http://empiar.example/")
    with pytest.raises(SettingsError, match="is not an entry of EMPIAR"):
        entry_number("PDB-1ABC")
