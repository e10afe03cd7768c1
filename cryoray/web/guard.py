"""Security headers on every answer, refusals of one sentence, requests that only our own page can send."""

# No `from __future__ import annotations` here: FastAPI reads annotations of routes.

import json
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from cryoray.errors import CryorayError, InputError

_MOST_BYTES = 16 << 10
#: Nothing from other sites, no script and no style that stands in a page, and no frame around it.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
        " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class NoEntryError(InputError):
    """Nobody who may come in."""


class MalformedError(InputError):
    """What no browser and no program of ours sends."""


class BusyError(InputError):
    """So many gave wrong tokens that no other is looked at now."""


class ForbiddenError(InputError):
    """Somebody who may not do this."""


class AbsentError(InputError):
    """There is no such page, session or image."""


#: HTTP status of each kind of refusal; that of any other is 422.
STATUS: dict[type[CryorayError], int] = {
    MalformedError: 400,
    NoEntryError: 401,
    ForbiddenError: 403,
    AbsentError: 404,
    BusyError: 429,
}


class GuardedRoute(APIRoute):
    """A route whose answers carry the security headers, and whose refusals are one sentence."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of a route, with what every answer carries."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                check_form(request)
                response = await handle(request)
            except CryorayError as error:
                response = self.refusal(request, error)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return guarded

    def refusal(self, request: Request, error: CryorayError) -> Response:
        """What is answered where something was refused.

        Raises:
            CryorayError: it is a fault of ours and no refusal.
        """
        if not isinstance(error, InputError):
            raise error
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, NoEntryError) else None
        return JSONResponse({"error": str(error)}, STATUS.get(type(error), 422), headers)


def check_form(request: Request) -> None:
    """Refuse a request that makes no sense, before anybody tries to understand it.

    Raises:
        MalformedError: no address, or with a null byte, which no file, database or page has in a name.
    """
    try:
        for name in ("Host", "Origin"):
            given = request.headers.get(name, "")
            _ = urlsplit(given if "//" in given else f"//{given}").port
    except ValueError:
        raise MalformedError("the request names no address that can be understood") from None
    if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise MalformedError("a null byte is in no address of ours")


def check_origin(request: Request) -> None:
    """Refuse what another site had the browser send.

    Raises:
        ForbiddenError: the browser says that it comes from elsewhere.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is None:  # an older browser, or a program; a proxy may have taken the scheme
        elsewhere = origin is not None and urlsplit(origin).netloc != request.headers.get("Host")
    else:
        elsewhere = site not in ("same-origin", "none")
    if elsewhere:
        raise ForbiddenError("this was sent by another site")


async def body_of(request: Request, most: int = _MOST_BYTES) -> bytes:
    """The body of a request, once it is clear that our page sent it.

    Raises:
        ForbiddenError: another site had the browser send it.
        InputError: it is longer than ``most`` bytes.
    """
    check_origin(request)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise InputError("the form is too long")
    return body


def as_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        InputError: it is none.
    """
    try:
        fields = json.loads(body or b"{}")
        _check_text(json.dumps(fields, ensure_ascii=False))
    except ValueError as error:
        raise InputError(f"is no JSON: {error}") from error
    except RecursionError:
        raise MalformedError("the JSON is nested too deeply") from None
    if not isinstance(fields, dict):
        raise InputError("give a JSON object")
    return fields


async def form(request: Request) -> dict[str, str]:
    """The fields of a form or of a JSON object, once it is clear that our page sent them."""
    body = await body_of(request)
    if request.headers.get("Content-Type", "").startswith("application/json"):
        fields = as_json(body)
        return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}
    try:
        parsed = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=50)
        _check_text(*parsed, *(values[-1] for values in parsed.values()))
    except ValueError as error:
        raise InputError(f"is not a form: {error}") from error
    return {name: values[-1] for name, values in parsed.items()}


def _check_text(*texts: str) -> None:
    """Refuse what UTF-8 does not have, and null bytes, which databases do not take.

    Raises:
        ValueError: there is some.
    """
    for text in texts:
        text.encode()
        if "\0" in text or "\\u0000" in text:
            raise ValueError("it holds a null byte")
