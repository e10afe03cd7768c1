"""Coming in by a token, leaving, and what a page needs beside itself."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from cryoray.errors import printable
from cryoray.session.ledger_sessions import OPERATOR
from cryoray.session.page.access import COOKIE
from cryoray.session.page.site import HERE, Site, show, threaded
from cryoray.web.guard import AbsentError, form
from cryoray.web.looks import SHARED_STYLE

_STATIC = {
    "shared.css": (SHARED_STYLE, "text/css"),
    "page.css": (HERE / "page.css", "text/css"),
    "page.js": (HERE / "page.js", "text/javascript"),
}


def add_entry(made: APIRouter, site: Site) -> None:
    """Add the routes that ask for no token."""

    @made.get("/login", include_in_schema=False)
    def login(next: str = "/") -> Response:  # noqa: A002
        return show("login.html", next=own_path(next), problem=None)

    @made.post("/login", include_in_schema=False)
    async def enter_by_token(request: Request) -> Response:
        fields = await form(request)
        scope = await threaded(lambda: site.access.scope(fields.get("token", "").strip()))
        who = printable(" ".join(fields.get("who", "").split()))[:80]
        if scope is None:  # who has a token comes in, however many guess
            site.access.check_calm()
            await site.access.refuse()
        if scope is None or not who:
            problem = "Give your name." if scope else "No session has this token."
            return show(
                "login.html", status=401, next=own_path(fields.get("next", "/")), problem=problem
            )
        to = "/" if scope == OPERATOR else f"/sessions/{scope}"
        wanted = own_path(fields.get("next", "/"))
        response = RedirectResponse(wanted if wanted != "/" else to, 303)
        cookie = await threaded(lambda: site.access.cookie(scope, who))
        secure = request.url.scheme == "https"
        response.set_cookie(
            COOKIE, cookie, httponly=True, samesite="strict", secure=secure, path="/"
        )
        return response

    @made.post("/logout", include_in_schema=False)
    async def leave(request: Request) -> Response:
        await form(request)
        await threaded(lambda: site.access.leave(request))
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, path="/")
        return response

    @made.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        if name not in _STATIC:
            raise AbsentError("there is no such file")
        headers = {"Cache-Control": "private, max-age=600"}
        file, kind = _STATIC[name]
        return Response(file.read_bytes(), media_type=kind, headers=headers)

    @made.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(status_code=204)


def own_path(path: str) -> str:
    """A path of this site; anything else is the first page."""
    fine = path.startswith("/") and not path.startswith("//") and "\\" not in path
    return path if fine and path.isprintable() else "/"
