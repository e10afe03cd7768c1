"""What all routes of the session page share: who asks for what, the templates, and how it is refused."""

# No `from __future__ import annotations` in this package's routes: FastAPI reads their annotations.

import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import anyio.to_thread
import jinja2
from fastapi import Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.routing import APIRoute

from cryoray.errors import CryorayError, InputError
from cryoray.formats.opening import Scope
from cryoray.session.ledger import OPERATOR, Ledger, LedgerAwayError
from cryoray.session.page.access import (
    Access,
    BusyError,
    ForbiddenError,
    NoEntryError,
    Visitor,
    check_csrf,
    check_origin,
)
from cryoray.session.page.pictures import Pictures
from cryoray.session.page.views import Views

HERE = Path(__file__).parent
_MOST_BYTES = 16 << 10
_HEADERS = {
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


class AbsentError(InputError):
    """There is no such session or image."""


class GuardedRoute(APIRoute):
    """A route whose answers carry the security headers, and whose refusals are one sentence."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of a route, with what every answer carries."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                response = await handle(request)
            except NoEntryError as error:
                if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
                    path = quote(request.url.path)
                    response = RedirectResponse(f"/login?next={path}", 303)
                else:
                    response = JSONResponse(
                        {"error": str(error)}, 401, {"WWW-Authenticate": "Bearer"}
                    )
            except LedgerAwayError as error:
                response = _refusal(request, error)
                response.headers["Retry-After"] = "10"
            except InputError as error:
                response = _refusal(request, error)
            for name, value in _HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return guarded


def _refusal(request: Request, error: CryorayError) -> Response:
    """What was wrong: a page for a person, JSON for a program."""
    known = {ForbiddenError: 403, AbsentError: 404, BusyError: 429, LedgerAwayError: 503}
    status = known.get(type(error), 422)
    if "text/html" not in request.headers.get("Accept", ""):
        return JSONResponse({"error": str(error)}, status)
    html = _templates().get_template("error.html").render(visitor=None, problem=str(error))
    return Response(html, status, media_type="text/html")


class Site:
    """The ledger, the views of it, and what every route asks first.

    Args:
        ledger: of the sessions.
        operator: the operator's token.
        scope: what the service may read; for a session, what of it lies in that session's folders.
    """

    def __init__(self, ledger: Ledger, operator: str, scope: Scope) -> None:
        self.ledger, self.access = ledger, Access(ledger, operator)
        self.pictures = Pictures(scope)
        self.views = Views(ledger, self.pictures)

    def enter(self, request: Request) -> Visitor:
        """Who asks.

        Raises:
            NoEntryError: nobody who may come in.
        """
        visitor = self.access.visitor(request)
        if visitor is None:
            raise NoEntryError("a token is needed, this session's or the operator's")
        return visitor

    def known(self, request: Request, name: str) -> tuple[Visitor, Any]:
        """The visitor and the session, which they may see; others do not learn that it is there.

        Raises:
            NoEntryError: nobody who may come in.
            AbsentError: there is no such session for them.
        """
        visitor = self.enter(request)
        session = self.ledger.session(name) if visitor.may(name) else None
        if session is None:
            raise AbsentError(f"there is no session {name!r} that this token opens")
        return visitor, session

    async def change(self, request: Request, name: str) -> tuple[Visitor, Any, dict[str, str]]:
        """The same of a request that changes something, with its fields.

        Raises:
            ForbiddenError: it did not come from our own page.
            InputError: it makes no sense.
        """
        visitor, session = await threaded(lambda: self.known(request, name))
        fields = await form(request)
        check_csrf(visitor, request.headers.get("X-CSRF") or fields.get("csrf", ""))
        return visitor, session, fields


async def form(request: Request) -> dict[str, str]:
    """The fields of a form or of a JSON object, once it is clear that our page sent them."""
    check_origin(request)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise InputError("the form is too long")
    if request.headers.get("Content-Type", "").startswith("application/json"):
        try:
            fields = json.loads(body or b"{}")
        except ValueError as error:
            raise InputError(f"is no JSON: {error}") from error
        if not isinstance(fields, dict):
            raise InputError("give a JSON object")
        return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}
    try:
        parsed = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=50)
    except ValueError as error:
        raise InputError(f"is no form: {error}") from error
    return {name: values[-1] for name, values in parsed.items()}


def show(template: str, visitor: Visitor | None = None, status: int = 200, **data: Any) -> Response:
    """A page of a template."""
    html = _templates().get_template(template).render(visitor=visitor, operator=OPERATOR, **data)
    return Response(html, status, media_type="text/html")


async def threaded(work: Callable[[], Any]) -> Any:
    """Work that waits for a disk, off the event loop."""
    return await anyio.to_thread.run_sync(work)


@cache
def _templates() -> jinja2.Environment:
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters["count"] = lambda value: f"{value:,}"
    page.filters["percent"] = lambda value: f"{100 * value:.0f} %"
    page.filters["clock"] = _clock
    return page


def _clock(at: float | None) -> str:
    if at is None:
        return "–"
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M %Z")
