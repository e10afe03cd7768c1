"""Requests that no browser sends, for every route of an application."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.routing import APIRoute

#: In an address: null bytes, bytes that are not UTF-8, numbers that nothing holds, and long words.
VALUES = (
    "%00", "a%00b", "%ff%fe", "%ed%a0%80", "-1", "9" * 30, "9" * 5000, "1e999", "nan", "%2e%2e%2f",
    "%0d%0aX:%20y", "x" * 300, "%F0%9F%94%AC", "%d9%a3", "'", "1:" + "9" * 5000,
)  # fmt: skip
#: In place of a field's value: texts that UTF-8 does not have, or a database does not take.
WORDS = ("\ud800", "\0", "9" * 5000, "x" * 5000, "٣", "²", "")
BODIES = (
    b"\xff\xfe", b"{", b"[1]", b"null", b"1", b'{"a": NaN}', b"[" * 12_000, b'{"a":' * 2_500,
    b"%ff=%00&%ed%a0%80=1", b"&" * 12_000, b"=" * 100, b"x" * 20_000, b'{"a":' + b"9" * 5_000 + b"}", b"",
)  # fmt: skip
HEADERS = (
    {"Host": "["}, {"Host": "x:99999999"}, {"Host": "x:y"}, {"Host": ""}, {"Host": "x/../y?"},
    {"Origin": "http://["}, {"Origin": "null"}, {"Sec-Fetch-Site": "\x85"},
    {"Cookie": "=;;;=\x85"}, {"Content-Type": "application/json; charset=\x85"}, {"Accept": "\x85"},
    {"X-CSRF": "\x85"}, {"Authorization": "Bearer \x85"}, {"Authorization": "Bearer"},
    {"Authorization": "\x85"},
)  # fmt: skip


def requests(
    app: FastAPI, known: Mapping[str, str], fields: Mapping[str, Any], queries: Iterable[str] = ()
) -> Iterator[tuple[str, str, dict[str, str], bytes | None]]:
    """Method, target, headers and body of requests to every route, each with one thing that is wrong.

    Args:
        app: whose routes are walked.
        known: what the parts of an address may well be, by name.
        fields: what a form or an object may well hold.
        queries: names of what may follow an address, for routes that do not declare it.
    """
    for route in _routes(app):
        for method in sorted((route.methods or set()) - {"HEAD", "OPTIONS"}):
            good = re.sub(r"\{(\w+)(:\w+)?\}", lambda found: known[found[1]], route.path)
            for name in re.findall(r"\{(\w+)", route.path):
                for value in VALUES:
                    parts = {**known, name: value}
                    yield (
                        method,
                        re.sub(r"\{(\w+)(:\w+)?\}", partial(_part, parts), route.path),
                        {},
                        None,
                    )
            for name in {*(one.name for one in route.dependant.query_params), *queries}:
                for value in VALUES:
                    yield method, f"{good}?{name}={value}", {}, None
            for header in HEADERS:
                yield method, good, header, None
            if method == "POST":
                for kind in ("application/json", "application/x-www-form-urlencoded", "\x85"):
                    for body in BODIES:
                        yield method, good, {"Content-Type": kind}, body
                for name in fields:
                    for word in (*WORDS, [[1]], {"a": 1}, 10**30, -1, 1e308, None, True):
                        body = json.dumps({**fields, name: word}).encode()
                        yield method, good, {"Content-Type": "application/json"}, body


def _part(parts: Mapping[str, str], found: re.Match[str]) -> str:
    return parts[found[1]]


def _routes(holder: Any) -> Iterator[APIRoute]:
    for route in holder.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _routes(inner)
        elif isinstance(route, APIRoute):
            yield route


def answers(
    client: httpx.Client, asked: Iterable[tuple[str, str, dict[str, str], bytes | None]]
) -> Iterator[tuple[str, httpx.Response]]:
    """What is answered to each, with what was asked."""
    for method, target, headers, body in asked:
        lines = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        lines.append((b"Connection", b"close"))  # else the next one might meet the end of this one
        request = client.build_request(method, "/", content=body, headers=lines)
        request.url = request.url.copy_with(raw_path=target.encode())
        try:
            response = client.send(request)
        except httpx.TransportError:  # it closed without reading the body, as it may
            assert body, (method, target[:80], headers)
            continue
        yield f"{method} {target[:80]} {headers} {(body or b'')[:60]!r}", response
