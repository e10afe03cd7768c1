"""Pages at ``/`` and JSON under ``/v1/sessions``, for one ledger; what serving mounts.

Pages are made here from templates that escape everything, need nothing from other sites, and work
without scripts; the script only spares reloading. The page writes the ledger and nothing else.
"""

# No `from __future__ import annotations` here: FastAPI reads the annotations of functions made below.

import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import anyio.to_thread
import jinja2
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.routing import APIRoute

from cryoray.errors import CryorayError, InputError
from cryoray.formats.opening import Scope
from cryoray.session import labels
from cryoray.session.ledger import OPERATOR, SECOND_THOUGHTS, Ledger, LedgerAwayError
from cryoray.session.page.access import (
    COOKIE,
    Access,
    BusyError,
    ForbiddenError,
    NoEntryError,
    Visitor,
    check_csrf,
    check_origin,
)
from cryoray.session.page.pictures import SIZES, Pictures
from cryoray.session.page.views import Views
from cryoray.session.schema import FATES

_HERE = Path(__file__).parent
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
_STATIC = {"page.css": "text/css", "page.js": "text/javascript"}


class _AbsentError(InputError):
    """There is no such session or image."""


class _Guarded(APIRoute):
    """A route whose answers carry the security headers, and whose refusals are one sentence."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
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
    known = {ForbiddenError: 403, _AbsentError: 404, BusyError: 429, LedgerAwayError: 503}
    status = known.get(type(error), 422)
    if "text/html" not in request.headers.get("Accept", ""):
        return JSONResponse({"error": str(error)}, status)
    html = _templates().get_template("error.html").render(visitor=None, problem=str(error))
    return Response(html, status, media_type="text/html")


def router(ledger: Ledger, operator: str, scope: Scope) -> APIRouter:
    """The pages and the JSON of a ledger's sessions.

    Args:
        ledger: of the sessions.
        operator: the operator's token.
        scope: what the service may read; for a session, what of it lies in that session's folders.

    Raises:
        SettingsError: the ledger is an SQLite file that another machine writes.
    """
    ledger.check_host()
    access, pictures = Access(ledger, operator), Pictures(scope)
    views = Views(ledger, pictures)
    made = APIRouter(route_class=_Guarded)
    page = _templates()

    def enter(request: Request) -> Visitor:
        visitor = access.visitor(request)
        if visitor is None:
            raise NoEntryError("a token is needed, this session's or the operator's")
        return visitor

    def known(request: Request, name: str) -> tuple[Visitor, Any]:
        """The visitor and the session, which they may see; others do not learn that it is there."""
        visitor = enter(request)
        session = ledger.session(name) if visitor.may(name) else None
        if session is None:
            raise _AbsentError(f"there is no session {name!r} that this token opens")
        return visitor, session

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
                said = json.loads(body or b"{}")
            except ValueError as error:
                raise InputError(f"is no JSON: {error}") from error
            if not isinstance(said, dict):
                raise InputError("give a JSON object")
            return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in said.items()}
        try:
            parsed = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=50)
        except ValueError as error:
            raise InputError(f"is no form: {error}") from error
        return {name: values[-1] for name, values in parsed.items()}

    async def spoken(request: Request, name: str) -> tuple[Visitor, Any, dict[str, str]]:
        visitor, session = await threaded(lambda: known(request, name))
        said = await form(request)
        check_csrf(visitor, request.headers.get("X-CSRF") or said.get("csrf", ""))
        return visitor, session, said

    def show(
        template: str, visitor: Visitor | None = None, status: int = 200, **data: Any
    ) -> Response:
        html = page.get_template(template).render(visitor=visitor, operator=OPERATOR, **data)
        return Response(html, status, media_type="text/html")

    # --- coming in

    @made.get("/login", include_in_schema=False)
    def login(next: str = "/") -> Response:  # noqa: A002
        return show("login.html", next=_own(next), problem=None)

    @made.post("/login", include_in_schema=False)
    async def enter_by_token(request: Request) -> Response:
        access.check_calm()
        said = await form(request)
        scope = await threaded(lambda: access.scope(said.get("token", "").strip()))
        who = " ".join(said.get("who", "").split())[:80]
        if scope is None:
            await access.refuse()
        if scope is None or not who:
            problem = "Give your name." if scope else "No session has this token."
            return show("login.html", status=401, next=_own(said.get("next", "/")), problem=problem)
        to = "/" if scope == OPERATOR else f"/sessions/{scope}"
        wanted = _own(said.get("next", "/"))
        response = RedirectResponse(wanted if wanted != "/" else to, 303)
        cookie = await threaded(lambda: access.cookie(scope, who))
        secure = request.url.scheme == "https"
        response.set_cookie(
            COOKIE, cookie, httponly=True, samesite="strict", secure=secure, path="/"
        )
        return response

    @made.post("/logout", include_in_schema=False)
    async def leave(request: Request) -> Response:
        await form(request)
        await threaded(lambda: access.leave(request))
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, path="/")
        return response

    @made.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        if name not in _STATIC:
            raise _AbsentError("there is no such file")
        headers = {"Cache-Control": "private, max-age=600"}
        return Response((_HERE / name).read_bytes(), media_type=_STATIC[name], headers=headers)

    @made.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(status_code=204)

    # --- pages

    @made.get("/", include_in_schema=False)
    def overview(request: Request) -> Response:
        visitor = enter(request)
        if visitor.scope != OPERATOR:
            return RedirectResponse(f"/sessions/{visitor.scope}", 303)
        rows = ledger.sessions()
        lives = {row.name: views.live(row) for row in rows[:50]}
        return show("sessions.html", visitor, sessions=rows, lives=lives)

    @made.get("/sessions/{name}", include_in_schema=False)
    def session_page(request: Request, name: str) -> Response:
        visitor, session = known(request, name)
        return show(
            "session.html",
            visitor,
            session=session,
            live=views.live(session),
            gallery=views.gallery(session),
            classes=views.gallery(session, "class2d"),
            unknown=views.unknown(session),
        )

    @made.get("/sessions/{name}/live", include_in_schema=False)
    def live_part(request: Request, name: str) -> Response:
        visitor, session = known(request, name)
        return show("_live.html", visitor, session=session, live=views.live(session))

    @made.get("/sessions/{name}/gallery", include_in_schema=False)
    def gallery_part(request: Request, name: str) -> Response:
        visitor, session = known(request, name)
        return show(
            "_gallery.html",
            visitor,
            session=session,
            gallery=views.gallery(session),
            classes=views.gallery(session, "class2d"),
        )

    @made.get("/sessions/{name}/review", include_in_schema=False)
    def review(request: Request, name: str, after: str | None = None) -> Response:
        visitor, session = known(request, name)
        return show("review.html", visitor, session=session, review=views.review(session, after))

    @made.get("/sessions/{name}/informative", include_in_schema=False)
    def informative(request: Request, name: str) -> Response:
        visitor, session = known(request, name)
        return show("informative.html", visitor, session=session, tiles=views.informative(session))

    @made.get("/sessions/{name}/audit", include_in_schema=False)
    def audit(request: Request, name: str) -> Response:
        visitor, session = known(request, name)
        return show(
            "audit.html",
            visitor,
            session=session,
            audit=views.audit(session),
            seconds=SECOND_THOUGHTS,
        )

    @made.get("/sessions/{name}/image/{stack}/{row}.png", include_in_schema=False)
    def image(request: Request, name: str, stack: str, row: int, size: int = SIZES[0]) -> Response:
        _, session = known(request, name)
        if size not in SIZES:
            raise InputError(f"images have {' or '.join(map(str, SIZES))} px")
        found = ledger.stack(stack)
        if found is None or found.session != name or found.state != "judged":
            raise _AbsentError("there is no such image")
        png = pictures.png(session, found, row, size)
        headers = {"Cache-Control": "private, max-age=3600"}
        return Response(png, media_type="image/png", headers=headers)

    # --- what people say

    def override(visitor: Visitor, session: Any, said: dict[str, str]) -> dict[str, object]:
        key, row, keep = said.get("stack", ""), _number(said.get("row", "")), _keep(said)
        tile = views.tile(session, key, row)
        stack = ledger.stack(key)
        if tile is None or stack is None or tile.verdict is None or tile.score is None:
            raise _AbsentError("there is no such image, or its stack was rewritten")
        if views.hidden(session.name, key, row):
            raise ForbiddenError("this image is of the blind sample", remedy="label it there first")
        ledger.override(
            session.name,
            key,
            row,
            keep,
            image=tile.image,
            before=tile.verdict,
            score=tile.score,
            digest=stack.digest,
            who=_who(visitor, said),
        )
        views.renew(session.name)
        return {"stack": key, "row": row, "image": tile.image, "keep": keep}

    @made.post("/sessions/{name}/say", include_in_schema=False)
    async def say(request: Request, name: str) -> Response:
        visitor, session, said = await spoken(request, name)
        done = await threaded(lambda: override(visitor, session, said))
        return _answer(request, f"/sessions/{name}{_own_part(said)}", done)

    @made.post("/sessions/{name}/audit", include_in_schema=False)
    async def label(request: Request, name: str) -> Response:
        visitor, _, said = await spoken(request, name)
        keep = _keep(said)
        key, row = said.get("stack", ""), _number(said.get("row", ""))
        who = _who(visitor, said)
        if keep is None:
            if not await threaded(lambda: ledger.take_back_blind(name, key, row)):
                raise ForbiddenError(
                    f"a label can be taken back for {SECOND_THOUGHTS:.0f} s, then it stands",
                    remedy="label the images that are left",
                )
            taken = False
        else:
            taken = await threaded(lambda: ledger.label_blind(name, key, row, keep=keep, who=who))
        return _answer(request, f"/sessions/{name}/audit", {"taken": taken})

    @made.post("/sessions/{name}/trainable", include_in_schema=False)
    async def lend(request: Request, name: str) -> Response:
        visitor, _, said = await spoken(request, name)
        if visitor.scope != name:
            raise ForbiddenError(
                "only the session's owner lends it", remedy="come with its own token"
            )
        await threaded(lambda: ledger.set_trainable(name, trainable=said.get("trainable") == "on"))
        return _answer(request, f"/sessions/{name}", {"trainable": said.get("trainable") == "on"})

    @made.post("/sessions/{name}/merge", include_in_schema=False)
    async def merge_now(request: Request, name: str) -> Response:
        await spoken(request, name)
        await threaded(lambda: ledger.want_merge(name))
        return _answer(request, f"/sessions/{name}", {"wanted": True})

    # --- for programs

    @made.get("/v1/sessions")
    def list_sessions(request: Request) -> JSONResponse:
        """The sessions that the token opens."""
        visitor = enter(request)
        return JSONResponse(
            [_plain(row, ledger) for row in ledger.sessions() if visitor.may(row.name)]
        )

    @made.get("/v1/sessions/{name}")
    def one_session(request: Request, name: str) -> JSONResponse:
        """One session: counts by fate and state, and its latest alarms."""
        _, session = known(request, name)
        alarms = ledger.events(name, names=["drift.alarm"], latest=10)
        return JSONResponse({**_plain(session, ledger), "alarms": [row.data for row in alarms]})

    @made.post("/v1/sessions/{name}/overrides")
    async def post_override(request: Request, name: str) -> JSONResponse:
        """Say of an image: ``{"stack": ID, "row": N, "say": "keep" | "discard" | "none", "who": NAME}``."""
        visitor, session, said = await spoken(request, name)
        return JSONResponse(await threaded(lambda: override(visitor, session, said)))

    @made.post("/v1/sessions/{name}/merge")
    async def post_merge(request: Request, name: str) -> JSONResponse:
        """Ask for merged files now."""
        await spoken(request, name)
        await threaded(lambda: ledger.want_merge(name))
        return JSONResponse({"wanted": True})

    @made.get("/v1/sessions/{name}/overrides.csv")
    def get_overrides(request: Request, name: str) -> Response:
        """What people said, as a selection that `cryoray ingest` reads."""
        known(request, name)
        return _csv(labels.overrides_csv(ledger, name), f"{name}-overrides.csv")

    @made.get("/v1/sessions/{name}/labels.csv")
    def get_labels(request: Request, name: str) -> Response:
        """The same as training labels, without the blind sample; 403 where the session is not lent."""
        _, session = known(request, name)
        if not session.trainable:
            raise ForbiddenError("this session's owner has not lent it for training")
        return _csv(labels.training_csv(ledger, name), f"{name}-labels.csv")

    @made.get("/v1/sessions/{name}/audit.csv")
    def get_audit(request: Request, name: str) -> Response:
        """The labels of the blind sample."""
        _, session = known(request, name)
        table = labels.audit_csv(ledger, name, lambda row: views.verdict_of_blind(session, row))
        return _csv(table, f"{name}-audit.csv")

    return made


async def threaded(work: Callable[[], Any]) -> Any:
    """Work that waits for a disk, off the event loop."""
    return await anyio.to_thread.run_sync(work)


@cache
def _templates() -> jinja2.Environment:
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
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


def _own(path: str) -> str:
    """A path of this site; anything else is the first page."""
    fine = path.startswith("/") and not path.startswith("//") and "\\" not in path
    return path if fine and path.isprintable() else "/"


def _own_part(said: dict[str, str]) -> str:
    return f"/{page}" if (page := said.get("from", "")) in ("review", "informative") else ""


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise InputError(f"row {text!r} is no number")
    return int(text)


def _keep(said: dict[str, str]) -> bool | None:
    try:
        return {"keep": True, "discard": False, "none": None}[said.get("say", "")]
    except KeyError:
        raise InputError("say keep, discard or none") from None


def _who(visitor: Visitor, said: dict[str, str]) -> str:
    """A browser's visitor has said who they are when they came in; a program says it each time."""
    named = "" if visitor.csrf else " ".join(said.get("who", "").split())
    return (named or visitor.who)[:80]


def _answer(request: Request, page: str, done: dict[str, object]) -> Response:
    if "application/json" in request.headers.get("Accept", ""):
        return JSONResponse(done)
    return RedirectResponse(page, 303)


def _csv(text: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type="text/csv", headers=headers)


def _plain(session: Any, ledger: Ledger) -> dict[str, object]:
    totals = ledger.totals(session.name)
    return {
        "name": session.name,
        "state": session.state,
        "opened": session.opened,
        "seen": session.seen,
        "trainable": session.trainable,
        "merged": session.merged,
        **{name: sum(one[name] for one in totals.values()) for name in FATES},
        "stacks": {name: one["stacks"] for name, one in totals.items()},
    }
