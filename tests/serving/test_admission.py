"""Who comes in: every route asks for a token, and whoever is slow holds nothing that others need."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cryoray.errors import SettingsError
from cryoray.models.ensemble import Ensemble
from cryoray.protocol.messages import ENSEMBLES, HEALTH, JUDGE, METRICS, SHADOW, STACK_TYPE
from cryoray.serving import admission, proxy
from cryoray.serving.application import PUBLIC
from cryoray.serving.counts import Counts
from cryoray.serving.lineup import Served
from cryoray.session.ledger import Ledger
from cryoray.web.server import with_deadline
from tests.examples import particles, write_stack
from tests.serving.test_ingress import ALLOWED, InProcess, application, over_http

pytestmark = pytest.mark.long

#: What a browser may see before somebody has come in.
PUBLIC_PAGES = {"/login", "/logout", "/static/{name}", "/favicon.ico"}
#: Slow clients: more than there are slots for requests and pages together.
MANY = 90


@pytest.fixture(scope="module")
def judging(tiny_ensemble: Path) -> InProcess:
    return InProcess(Ensemble.load(tiny_ensemble))


@pytest.fixture
def app(judging: InProcess, tiny_ensemble: Path, project: Path, tmp_path: Path) -> FastAPI:
    served = Served.of("tiny", judging.ensemble, tiny_ensemble)
    ledger = str(tmp_path / "ledger.sqlite")
    return application(
        judging, served, roots=(project.parent,), ledger=ledger, max_queued=2, max_upload_mib=1
    )


@pytest.fixture(params=[H11Protocol, HttpToolsProtocol])
def protocol(request: pytest.FixtureRequest) -> type:
    made: type = request.param
    return made


@contextmanager
def half_sent(client: httpx.Client, count: int, head: str) -> Iterator[list[socket.socket]]:
    """So many connections on which a request was begun and is not gone on with."""
    with ExitStack() as stay:
        made = []
        for _ in range(count):
            one = socket.create_connection((client.base_url.host, client.base_url.port))
            made.append(stay.enter_context(one))
            one.sendall(head.encode())
        yield made


def test_every_route_but_the_public_ones_wants_a_token(app: FastAPI) -> None:
    asked = set()
    with over_http(app) as client:
        for route in routes_of(app):
            path = getattr(route, "path", "")
            if path in PUBLIC or path in PUBLIC_PAGES:
                continue
            assert isinstance(route, APIRoute), f"{path} has no door"
            for method in route.methods or ():
                real = path.replace("{rest:path}", "/anything").format_map(_Anything())
                for token in ({}, {"Authorization": "Bearer wrong"}):
                    answer = client.request(method, real, headers=token)
                    assert answer.status_code == 401, (method, path)
                asked.add(path)
    assert {JUDGE, ENSEMBLES, SHADOW, "/", "/v1/sessions", "/v1/sessions/{name}"} <= asked


def routes_of(holder: Any) -> Iterator[Any]:
    """All routes, those of routers that were included among them."""
    for route in holder.routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from routes_of(inner)


class _Anything(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "1"


def test_a_host_in_the_path_or_a_doubled_slash_opens_nothing(app: FastAPI) -> None:
    with over_http(app) as client:
        host, port = client.base_url.host, client.base_url.port
        for target in (
            f"http://x{ENSEMBLES}",
            f"/{ENSEMBLES}",
            f"/x/..{ENSEMBLES}",
            "/v1/../v1/shadow",
        ):
            with socket.create_connection((host, port)) as raw:
                raw.sendall(f"GET {target} HTTP/1.1\r\nHost: x/healthz?\r\n\r\n".encode())
                raw.settimeout(10)
                status = raw.recv(4096).split(b" ", 2)[1]
            assert status in (b"401", b"404"), target


def test_a_token_that_can_be_guessed_is_refused(judging: InProcess, tiny_ensemble: Path) -> None:
    served = Served.of("tiny", judging.ensemble, tiny_ensemble)
    with pytest.raises(SettingsError, match="1 characters, and fewer than 16 can be guessed"):
        application(judging, served, token="a", roots=(Path("/"),))


@pytest.mark.parametrize(
    "head",
    [
        "POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\ntoken=",
        f"POST {JUDGE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: 100\r\n\r\n{",
        f"POST {METRICS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx",
        f"POST {JUDGE} HTTP/1.1\r\nHost: x\r\nContent-Type: {STACK_TYPE}\r\n"
        "Content-Length: 100\r\n\r\nMAP",
    ],
)
def test_the_slow_without_a_token_keep_nobody_waiting(
    app: FastAPI, project: Path, head: str
) -> None:
    with over_http(app) as client, half_sent(client, MANY, head):
        assert client.get(HEALTH).status_code == 200
        assert client.get(METRICS).status_code == 200
        body = {"source": str(project), "rows": [0, 3]}
        assert client.post(JUDGE, json=body, headers=ALLOWED).status_code == 200
        assert client.get("/login").status_code == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\ntoken=", b"408"),
        (
            f"POST {JUDGE} HTTP/1.1\r\nHost: x\r\nContent-Type: {STACK_TYPE}\r\n"
            f"Authorization: {ALLOWED['Authorization']}\r\nContent-Length: 100\r\n\r\nMAP",
            b"408",
        ),
        ("POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\ntoken=", b"413"),
    ],
)
def test_a_body_that_does_not_come_is_not_waited_for(
    app: FastAPI, head: str, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "BODY_SECONDS", 0.3)
    with over_http(app) as client, half_sent(client, 1, head) as (slow,):
        slow.settimeout(20)
        assert slow.recv(4096).split(b" ", 2)[1] == status


def test_a_stack_that_drips_is_not_waited_for_either(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "BODY_SECONDS", 0.5)
    with over_http(app) as client, half_sent(client, 1, upload_head(ALLOWED)) as (slow,):
        slow.settimeout(0.1)
        answer = b""
        for _ in range(100):  # a byte comes more often than every half second
            slow.sendall(b"x")
            with suppress(TimeoutError):
                answer = slow.recv(4096)
                break
        assert b" 408 " in answer
        assert b"slower than 64 KiB a second" in answer


def test_uploads_of_one_session_leave_room_for_those_of_others(
    app: FastAPI, project: Path, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    token = ledger.open_session("mine", root=project.parent, folder=tmp_path)
    mine = {"Authorization": f"Bearer {token}"}
    stack = write_stack(tmp_path / "any.mrcs", particles(4)).read_bytes()
    kind = {"Content-Type": STACK_TYPE}
    body = {"source": str(project), "rows": [0, 3]}
    with over_http(app) as client, half_sent(client, 3, upload_head(mine)) as dripping:
        for late in dripping[1:]:  # one of two places is its share
            late.settimeout(20)
            assert b" 429 " in late.recv(4096)
        assert client.post(JUDGE, content=stack, headers=ALLOWED | kind).status_code == 200
        for _ in range(2):
            assert client.post(JUDGE, json=body, headers=ALLOWED).status_code == 200
        assert client.post(JUDGE, content=stack, headers=mine | kind).status_code == 429
        dripping[0].close()
        until = time.monotonic() + 20
        while client.post(JUDGE, content=stack, headers=mine | kind).status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.1)


def upload_head(token: dict[str, str]) -> str:
    return (
        f"POST {JUDGE} HTTP/1.1\r\nHost: x\r\nAuthorization: {token['Authorization']}\r\n"
        f"Content-Type: {STACK_TYPE}\r\nContent-Length: 100000\r\n\r\nMAP"
    )


def test_pages_are_counted_and_bounded_as_requests_are(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    entered = threading.Semaphore(0)

    def slow(self: Ledger, token: str) -> None:
        entered.release()
        gate.wait(20)

    monkeypatch.setattr(Ledger, "scope", slow)
    answers: list[int] = []

    def ask(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30) as http:
            answers.append(http.get("/", headers={"Authorization": "Bearer x"}).status_code)

    with over_http(app) as client:
        threads = [threading.Thread(target=ask, args=(str(client.base_url),)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert entered.acquire(timeout=20)
        full = client.get("/", headers={"Authorization": "Bearer x"})
        assert full.status_code == 429
        assert full.headers["Retry-After"]
        assert client.get(HEALTH).status_code == 200
        gate.set()
        for thread in threads:
            thread.join()
        assert answers == [401] * 16
        assert 'cryoray_requests_total{status="429"}' in client.get(METRICS).text


def test_a_ledger_that_somebody_has_locked_does_not_hold_the_metrics(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(Ledger, "sessions", lambda self: gate.wait(20) and [])
    try:
        with over_http(app) as client:
            assert "cryoray_requests_in_flight" in client.get(METRICS).text
            gate.set()
    finally:
        gate.set()


def test_wrong_tokens_that_wait_for_the_ledger_take_nothing_from_the_operator(
    app: FastAPI, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    entered = threading.Semaphore(0)

    def slow(self: Ledger, token: str) -> None:
        entered.release()
        gate.wait(30)

    monkeypatch.setattr(Ledger, "scope", slow)
    body = {"source": str(project), "rows": [0, 3]}

    def ask(url: httpx.URL) -> None:
        with httpx.Client(base_url=url, timeout=40) as http:
            http.post(JUDGE, json=body, headers={"Authorization": "Bearer x"})

    with over_http(app) as client:
        threads = [threading.Thread(target=ask, args=(client.base_url,)) for _ in range(40)]
        try:
            for thread in threads:
                thread.start()
            assert entered.acquire(timeout=20)
            for _ in range(3):
                assert client.post(JUDGE, json=body, headers=ALLOWED).status_code == 200
                assert client.get(METRICS).status_code == client.get(HEALTH).status_code == 200
        finally:
            gate.set()
            for thread in threads:
                thread.join()


def test_while_it_is_drained_what_was_begun_is_finished_and_nothing_more(
    judging: InProcess, tiny_ensemble: Path, project: Path
) -> None:
    judging.reset()
    served = Served.of("tiny", judging.ensemble, tiny_ensemble)
    app = application(judging, served, roots=(project.parent,))
    doors = {getattr(one.cls, "__name__", ""): one.kwargs for one in app.user_middleware}
    counts = cast(Counts, doors["Doors"]["counts"])
    body = {"source": str(project), "rows": [0, 3]}
    with over_http(app) as client:
        judging.gate.clear()
        under_way: list[int] = []

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, timeout=30) as http:
                under_way.append(http.post(JUDGE, json=body, headers=ALLOWED).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        assert judging.waiting.acquire(timeout=20)
        counts.draining = True
        assert counts.present == 1
        late = client.post(JUDGE, json=body, headers=ALLOWED)
        assert (late.status_code, late.headers["Retry-After"]) == (503, "5")
        assert client.get(HEALTH).status_code == 503
        judging.gate.set()
        thread.join()
        assert under_way == [200]
        assert counts.present == 0
    judging.reset()


def test_who_asks_for_pages_and_reads_none_keeps_nobody_from_them(app: FastAPI) -> None:
    ask = b"GET /static/page.js HTTP/1.1\r\nHost: x\r\n\r\n"
    with over_http(app, send_buffer=4096) as client, half_sent(client, 24, "") as deaf:
        for one in deaf:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.sendall(ask * 150)
        until = time.monotonic() + 15
        while client.get("/login").status_code != 200:  # while the first answers are made
            assert time.monotonic() < until
            time.sleep(0.1)


@contextmanager
def answering(app: Any, protocol: type, **limits: Any) -> Iterator[httpx.Client]:
    """A client of an application on a server of one sort, whose buffers are small."""
    how = {"log_level": "critical", "lifespan": "off", "http": with_deadline(protocol, **limits)}
    with over_http(app, send_buffer=4096, **how) as client:
        yield client


def test_an_answer_that_nobody_reads_is_given_up_and_a_slow_reader_gets_all(
    protocol: type,
) -> None:
    body = bytes(1 << 20)

    async def app(scope: object, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    ask = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with answering(app, protocol, seconds=0.5) as client, half_sent(client, 2, ask) as made:
        slow, deaf = made
        got = sum(map(len, pieces(slow, pause=0.05)))  # for some seconds in all
        assert got > len(body)
        assert sum(map(len, pieces(deaf))) < len(body)


def pieces(one: socket.socket, pause: float = 0.0) -> Iterator[bytes]:
    """What comes on a connection until it ends."""
    one.settimeout(20)
    while piece := one.recv(64 << 10):
        yield piece
        time.sleep(pause)


def test_a_head_that_does_not_end_is_cut_off(protocol: type) -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        await asyncio.sleep(1.0)  # longer than a head may take
        await send({"type": "http.response.start", "status": 204, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    with answering(app, protocol, seconds=0.5) as client:
        for begun in ("", "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "):
            with half_sent(client, 20, begun) as slow:
                for one in slow:
                    one.settimeout(20)
                    assert one.recv(100) == b""
        for _ in range(2):  # a whole request takes its time, and so does the next
            assert client.get("/").status_code == 204


def test_rays_proxy_would_call_what_closes_such_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.serve._private.http_util import call_function_from_import_path
    from uvicorn.protocols.http import auto

    before = auto.AutoHTTPProtocol
    monkeypatch.setattr(auto, "AutoHTTPProtocol", before)
    assert call_function_from_import_path(proxy.CALLBACK) == []
    assert issubclass(auto.AutoHTTPProtocol, before)
    assert auto.AutoHTTPProtocol is not before
    assert uvicorn.Config("x:y", log_config=None).http == "auto"  # what Ray leaves it at


def test_connections_that_ask_nothing_make_room_for_one_that_does(protocol: type) -> None:
    async def app(scope: object, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with answering(app, protocol, seconds=60, most=8) as client:
        assert client.get("/").status_code == 204  # and its connection stays
        with half_sent(client, 20, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ") as slow:
            for one in slow[:12]:
                one.settimeout(20)
                assert one.recv(100) == b""
            with httpx.Client(base_url=client.base_url, timeout=20) as fresh:
                assert fresh.get("/").status_code == 204


def test_of_many_bodies_that_do_not_come_the_first_makes_room(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_BODIES", 4)
    monkeypatch.setattr(admission, "BODY_SECONDS", 60.0)
    head = f"POST {JUDGE} HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n\r\n"
    with over_http(app) as client, half_sent(client, 6, head) as slow:
        for one in slow[:2]:
            one.settimeout(20)
            assert b" 408 " in one.recv(100)
        assert client.post(JUDGE, json={}, headers=ALLOWED).status_code == 422
