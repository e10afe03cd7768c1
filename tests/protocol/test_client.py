"""The client against a real server that says what a service may say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cryoray.errors import CryorayError, InputError
from cryoray.protocol.client import Client
from cryoray.protocol.messages import STACK_TYPE, JudgeAnswer, JudgeRequest, Problem
from cryoray.protocol.network import by_proxy

ANSWER = JudgeAnswer(ensemble="abc", verdicts=[], quarantined=[])


class Service(ThreadingHTTPServer):
    """Gives the replies it was told to, in order, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[tuple[int, dict[str, str], bytes]] = []
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.replies.append((status, {k.replace("_", "-"): v for k, v in headers.items()}, body))


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Service)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, dict(self.headers), body))
        status, headers, reply = self.server.replies.pop(0)
        if not status:  # whoever was to answer is gone
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(reply))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_request_has_the_address_and_form_that_the_service_takes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/tmp")
    service.reply(200, ANSWER.model_dump_json().encode())
    with Client(service.url + "/", "secret") as client:
        assert client.judge("a.star", (3, 5), ensemble="tiny").ensemble == "abc"
    path, headers, body = service.asked[0]
    assert path == "/v1/judge"
    assert headers["Authorization"] == "Bearer secret"
    asked = JudgeRequest.model_validate_json(body)
    assert asked == JudgeRequest(source="/tmp/a.star", rows=(3, 5), ensemble="tiny")


def test_a_stack_is_sent_whole_from_a_file_or_from_memory(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "a.mrcs"
    file.write_bytes(bytes(range(256)) * 1000)
    with Client(service.url, "secret") as client:
        for stack in (file, file.read_bytes()):
            service.reply(200, ANSWER.model_dump_json().encode())
            assert client.judge_upload(stack, ensemble="tiny").ensemble == "abc"
    for path, headers, body in service.asked:
        assert path == "/v1/judge?ensemble=tiny"
        assert headers["Content-Type"] == STACK_TYPE
        assert body == file.read_bytes()


def test_a_full_service_is_asked_again_when_it_says_so(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "a.mrcs"
    file.write_bytes(b"stack")
    for _ in range(2):
        service.reply(429, b"", Retry_After="0.1")
    service.reply(200, ANSWER.model_dump_json().encode())
    with Client(service.url, "secret") as client:
        assert client.judge_upload(file).ensemble == "abc"
    assert [body for _, _, body in service.asked] == [b"stack"] * 3


def test_patience_ends(service: Service) -> None:
    service.reply(
        429, Problem(error="The service is full.").model_dump_json().encode(), Retry_After="5"
    )
    with Client(service.url, "secret", patience=1) as client, pytest.raises(CryorayError) as full:
        client.judge("a.star")
    assert str(full.value) == "The service is full."
    assert full.value.exit_code == 1


@pytest.mark.parametrize(
    ("status", "exit_code"), [(403, 2), (408, 1), (422, 2), (500, 1), (503, 1)]
)
def test_a_refusal_is_the_askers_and_a_failure_is_not(
    service: Service, status: int, exit_code: int
) -> None:
    service.reply(status, Problem(error="a.star: is odd.").model_dump_json().encode())
    with Client(service.url, "secret") as client, pytest.raises(CryorayError) as error:
        client.judge("a.star")
    assert str(error.value) == "a.star: is odd."
    assert error.value.exit_code == exit_code
    assert len(service.asked) == 1


def test_something_else_that_answers_is_named(service: Service) -> None:
    service.reply(404, b"<html>")
    with (
        Client(service.url, "s") as client,
        pytest.raises(InputError, match="answered 404 Not Found"),
    ):
        client.judge("a.star")


def test_health(service: Service) -> None:
    with Client(service.url, "secret") as client:
        service.reply(200, b"{}")
        assert client.healthy()
        service.reply(503, b"{}")
        assert not client.healthy()


def test_nobody_there_is_said_with_the_way_out() -> None:
    with Client("http://127.0.0.1:1", "secret") as client:
        assert not client.healthy()
        with pytest.raises(
            InputError, match=r"no service answers at http://127.0.0.1:1; start one"
        ):
            client.judge("a.star")


LOST = [(0, b""), (500, b"Internal Server Error"), (503, b"no replica")]


@pytest.mark.parametrize(("status", "body"), LOST)
def test_what_was_under_way_when_a_node_died_is_asked_once_more(
    service: Service, status: int, body: bytes
) -> None:
    service.reply(status, body)
    service.reply(200, ANSWER.model_dump_json().encode())
    with Client(service.url, "secret") as client:
        assert client.judge("a.star").ensemble == "abc"
    assert len(service.asked) == 2


@pytest.mark.parametrize(("status", "body"), LOST)
def test_and_not_a_third_time(service: Service, status: int, body: bytes) -> None:
    for _ in range(3):
        service.reply(status, body)
    with Client(service.url, "secret") as client, pytest.raises(CryorayError):
        client.judge("a.star")
    assert len(service.asked) == 2


def test_what_the_service_itself_says_is_not_asked_again(service: Service) -> None:
    service.reply(503, Problem(error="The judges failed.").model_dump_json().encode())
    with (
        Client(service.url, "secret") as client,
        pytest.raises(CryorayError, match="judges failed"),
    ):
        client.judge("a.star")
    assert len(service.asked) == 1


def test_a_proxy_for_the_web_never_sees_a_token_meant_for_here(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Service()
    thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
    thread.start()
    try:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        service.reply(200, ANSWER.model_dump_json().encode())
        with Client(service.url, "secret") as client:
            assert client.judge("a.star").ensemble == "abc"
        assert not proxy.asked
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


@pytest.mark.parametrize(
    ("url", "outside"),
    [
        ("http://127.0.0.1:8000", False), ("http://[::1]:8000", False), ("http://localhost", False),
        ("http://10.1.2.3", False), ("http://192.168.0.9:1", False), ("http://172.20.0.1", False),
        ("http://169.254.1.1", False), ("http://8.8.8.8", True), ("http://gpu1-that-is-nowhere", False),
        ("https://nowhere.invalid", True), ("", False),
    ],
)  # fmt: skip
def test_what_is_asked_through_a_proxy(url: str, outside: bool) -> None:
    assert by_proxy(url) is outside
