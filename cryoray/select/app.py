"""The page's server: one person's, on this machine, with a token of its own in the link.

The page is three files without a build step; it asks for columns once, for pictures as they come into view,
and sends what the person does. Nothing that it sends is answered before it is on disk.
"""

# No `from __future__ import annotations` here: FastAPI reads annotations of routes.

import html
import secrets
import socket
import threading
from hmac import compare_digest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import numpy as np
import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from cryoray.errors import CryorayError, InputError, printable
from cryoray.imaging import pictures
from cryoray.select import saving
from cryoray.select.gallery import CANDIDATES, MOST, Gallery
from cryoray.select.link import leading_to
from cryoray.select.selection import Selection
from cryoray.web.guard import (
    AbsentError,
    ForbiddenError,
    GuardedRoute,
    NoEntryError,
    as_json,
    body_of,
)
from cryoray.web.looks import SHARED_STYLE, SIDES, VIEWS, Look
from cryoray.web.server import config

_HERE = Path(__file__).parent / "page"
_STATIC = {
    "shared.css": (SHARED_STYLE, "text/css"),
    "select.css": (_HERE / "select.css", "text/css"),
    "select.js": (_HERE / "select.js", "text/javascript"),
}
#: A list of every place of three million images has about so many bytes.
_MOST_BYTES = 32 << 20
#: Rows without a verdict that are listed.
_LISTED = 200
#: Strips drawn at the same time.
_AT_ONCE = 2
_OWN = ("127.0.0.1", "localhost", "[::1]")


class _Route(GuardedRoute):
    def refusal(self, request: Request, error: CryorayError) -> Response:
        """A page for a person who came without the link, one sentence for the page."""
        answer = super().refusal(request, error)
        if "text/html" in request.headers.get("Accept", ""):
            text = f"<!doctype html><html lang=en><title>cryoray select</title><p>{html.escape(str(error))}"
            return Response(text, answer.status_code, media_type="text/html")
        return answer


class Page:
    """The page of one selection.

    Args:
        selection: what is made on it.
        gallery: draws its pictures.
        out: folder that *save* writes.
        low_pass: Å, what particles are shown at first.
    """

    def __init__(
        self,
        selection: Selection,
        gallery: Gallery,
        out: Path,
        *,
        low_pass: float = pictures.LOW_PASS,
    ) -> None:
        self.selection, self.gallery, self.out = selection, gallery, out
        self.token = secrets.token_urlsafe(32)
        self._csrf, self._cookie = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        # Browsers keep one jar for all ports of a machine, and there may be several pages.
        self._name = f"cryoray-select-{secrets.token_hex(4)}"
        # A view asks for many, and a click must not wait behind them.
        self._drawing = anyio.CapacityLimiter(_AT_ONCE)
        self._saving = threading.Lock()
        self._low_pass = low_pass if selection.table.kind == "particle" else 0.0

    def app(self) -> FastAPI:
        """The application."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        routes = APIRouter(route_class=_Route)
        self._add_pages(routes)
        self._add_actions(routes)
        app.include_router(routes)
        return app

    def serve(self, listening: socket.socket) -> None:
        """Answer at a socket until the process is interrupted."""
        how = config(self.app(), log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(how).run(sockets=[listening])

    def _enter(self, request: Request) -> None:
        """Refuse whoever does not come from this machine, by the link.

        Raises:
            ForbiddenError: another name than this machine's own was asked for, as DNS rebinding does.
            NoEntryError: without the link.
        """
        host = urlsplit(f"//{request.headers.get('Host', '')}")
        if host.hostname is None or host.netloc.removesuffix(f":{host.port}") not in _OWN:
            raise ForbiddenError("this page answers to 127.0.0.1 and localhost alone")
        if not compare_digest(request.cookies.get(self._name, "").encode(), self._cookie.encode()):
            raise NoEntryError(
                "this page opens by the link that `cryoray select` printed",
                remedy="copy it from the terminal",
            )

    async def _sent(self, request: Request) -> dict[str, Any]:
        """The fields of what our own page sent."""
        self._enter(request)
        if not compare_digest(request.headers.get("X-CSRF", "").encode(), self._csrf.encode()):
            raise ForbiddenError(
                "the page is too old, or this did not come from it", remedy="reload it"
            )
        return as_json(await body_of(request, _MOST_BYTES))

    def _add_pages(self, made: APIRouter) -> None:
        @made.get("/", include_in_schema=False)
        def page(request: Request, token: str | None = None) -> Response:
            if token is not None:
                if not compare_digest(token.encode(), self.token.encode()):
                    raise NoEntryError("the token in this link is wrong, or of an earlier start")
                # No redirect: a browser that came from elsewhere, as from the file of `select.link`, would
                # follow it without the cookie.
                answer = Response(leading_to("/", "cryoray select"), media_type="text/html")
                answer.set_cookie(self._name, self._cookie, httponly=True, samesite="strict")
                return answer
            self._enter(request)
            text = (_HERE / "select.html").read_text(encoding="utf-8")
            title = printable(self.selection.table.folder.name)
            text = text.replace("{{title}}", html.escape(title)).replace("{{csrf}}", self._csrf)
            return Response(text, media_type="text/html")

        @made.get("/static/{name}", include_in_schema=False)
        def static(name: str) -> Response:
            if name not in _STATIC:
                raise AbsentError("there is no such file")
            file, kind = _STATIC[name]
            return Response(file.read_bytes(), media_type=kind)

        @made.get("/favicon.ico", include_in_schema=False)
        def icon() -> Response:
            return Response(status_code=204)

        @made.get("/facts", include_in_schema=False)
        def facts(request: Request) -> Response:
            self._enter(request)
            return JSONResponse(self._facts())

        @made.get("/columns", include_in_schema=False)
        def columns(request: Request) -> Response:
            self._enter(request)
            scores = self.selection.scores(self.selection.clicks.state)
            return Response(
                self.selection.table.packed(scores), media_type="application/octet-stream"
            )

        @made.get("/strip.png", include_in_schema=False)
        async def strip(
            request: Request,
            places: str,
            view: str = VIEWS[0],
            side: int = SIDES[1],
            low: float = pictures.LOW_PASS,
            cut: float = pictures.CUT,
        ) -> Response:
            self._enter(request)
            look = Look.asked(view, side, low, cut)
            wanted = self._places(places.split(",") if places else [], MOST)
            png = await anyio.to_thread.run_sync(
                lambda: self.gallery.strip(wanted, look), limiter=self._drawing
            )
            headers = {"Cache-Control": "private, max-age=3600"}
            return Response(png, media_type="image/png", headers=headers)

        @made.get("/similar", include_in_schema=False)
        def similar(request: Request, place: int) -> Response:
            self._enter(request)
            (one,) = self._places([place], 1).tolist()
            scores = self.selection.scores(self.selection.clicks.state)
            near = np.argsort(np.abs(scores - scores[one]), kind="stable")[:CANDIDATES]
            return JSONResponse(
                {"places": self.gallery.similar(one, near).tolist(), "among": len(near)}
            )

    def _add_actions(self, made: APIRouter) -> None:
        @made.get("/since", include_in_schema=False)
        def since(request: Request, tab: str, rev: int = -1) -> Response:
            self._enter(request)
            return JSONResponse(self.selection.clicks.since(_tab(tab), rev).as_json())

        @made.post("/do", include_in_schema=False)
        async def do(request: Request) -> Response:
            fields = await self._sent(request)
            return JSONResponse(await anyio.to_thread.run_sync(lambda: self._do(fields)))

        @made.post("/save", include_in_schema=False)
        async def save(request: Request) -> Response:
            await self._sent(request)
            return JSONResponse(await anyio.to_thread.run_sync(self._save))

    def _save(self) -> dict[str, Any]:
        """One after the other, as two tabs may ask at once, or a key that is held down."""
        with self._saving:
            return saving.save(self.selection, self.out)

    def _do(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Do what the page sent, and say what changed since the revision that it had seen."""
        clicks, tab = self.selection.clicks, _tab(fields.get("tab"))
        what, seen, told = fields.get("what"), fields.get("seen"), None
        if what == "turn":
            rows, value = fields.get("rows"), fields.get("value")
            clicks.turn(tab, rows if isinstance(rows, list) else [], value)  # type: ignore[arg-type]
        elif what == "line":
            line, policy = fields.get("line"), fields.get("policy")
            if not isinstance(line, int | float):
                raise InputError("the line is a score, 0 to 1")
            clicks.draw(tab, line, policy[:40] if isinstance(policy, str) else "")
        elif what == "ask":
            told = {"places": self.selection.ask(tab).tolist()}
        elif what == "adapt":
            told = self.selection.adapt(tab)
        elif what == "undo":
            clicks.undo(tab)
        elif what == "redo":
            clicks.redo(tab)
        else:
            raise InputError(f"there is no action {what!r}")
        delta = clicks.since(tab, seen if isinstance(seen, int) else -1).as_json()
        return {**delta, "told": told}

    def _places(self, given: list[Any], most: int) -> np.ndarray:
        try:
            wanted = np.array([int(one) for one in given], np.int64)
        except (ValueError, OverflowError) as error:
            raise InputError("give places as numbers") from error
        if not 0 < len(wanted) <= most:
            raise InputError(f"give 1 to {most} places")
        if wanted.min() < 0 or wanted.max() >= len(self.selection.table):
            raise AbsentError("there is no such image")
        return wanted

    def _facts(self) -> dict[str, Any]:
        table, state = self.selection.table, self.selection.clicks.state
        return {
            "source": printable(table.source.path),
            "folder": printable(table.folder),
            "out": printable(self.out),
            "kind": table.kind,
            "quarantined": len(table.source) - len(table),
            "lost": [[printable(name), why] for name, why in table.lost(_LISTED)],
            "line": self.selection.line(state),
            "threshold": table.threshold,
            "presets": self.selection.presets(),
            "low_pass": self._low_pass,
            "cut": pictures.CUT,
            "judge": self.selection.judge.name if self.selection.judge else None,
            "saved": saving.saved(self.out),
        }


def _tab(given: object) -> str:
    if not isinstance(given, str) or not 0 < len(given) <= 40:
        raise InputError("a tab names itself")
    return given
