"""The pages that a person looks at, and their pictures."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from cryoray.imaging.pictures import CUT, LOW_PASS
from cryoray.session.ledger_labels import SECOND_THOUGHTS
from cryoray.session.ledger_sessions import OPERATOR
from cryoray.session.page.site import Site, show
from cryoray.web.guard import AbsentError
from cryoray.web.looks import SIDES, VIEWS, Look


def add_pages(made: APIRouter, site: Site) -> None:
    """Add the pages of all sessions and of one."""

    @made.get("/", include_in_schema=False)
    def overview(request: Request) -> Response:
        visitor = site.enter(request)
        if visitor.scope != OPERATOR:
            return RedirectResponse(f"/sessions/{visitor.scope}", 303)
        rows = site.ledger.sessions()
        lives = {row.name: site.views.live(row) for row in rows[:50]}
        return show("sessions.html", visitor, sessions=rows, lives=lives)

    @made.get("/sessions/{name}", include_in_schema=False)
    def session_page(request: Request, name: str) -> Response:
        visitor, session = site.known(request, name)
        return show(
            "session.html",
            visitor,
            session=session,
            live=site.views.live(session),
            gallery=site.views.gallery(session),
            classes=site.views.classes(session),
            unknown=site.views.unknown(session),
            unused=site.views.unused(session),
        )

    @made.get("/sessions/{name}/live", include_in_schema=False)
    def live_part(request: Request, name: str) -> Response:
        visitor, session = site.known(request, name)
        return show("_live.html", visitor, session=session, live=site.views.live(session))

    @made.get("/sessions/{name}/gallery", include_in_schema=False)
    def gallery_part(request: Request, name: str) -> Response:
        visitor, session = site.known(request, name)
        return show(
            "_gallery.html",
            visitor,
            session=session,
            gallery=site.views.gallery(session),
            classes=site.views.classes(session),
        )

    @made.get("/sessions/{name}/review", include_in_schema=False)
    def review(request: Request, name: str, after: str | None = None) -> Response:
        visitor, session = site.known(request, name)
        return show(
            "review.html", visitor, session=session, review=site.views.review(session, after)
        )

    @made.get("/sessions/{name}/informative", include_in_schema=False)
    def informative(request: Request, name: str) -> Response:
        visitor, session = site.known(request, name)
        return show(
            "informative.html", visitor, session=session, tiles=site.views.informative(session)
        )

    @made.get("/sessions/{name}/audit", include_in_schema=False)
    def audit(request: Request, name: str) -> Response:
        visitor, session = site.known(request, name)
        return show(
            "audit.html",
            visitor,
            session=session,
            audit=site.views.audit(session),
            seconds=SECOND_THOUGHTS,
        )

    @made.get("/sessions/{name}/image/{stack}/{row}.png", include_in_schema=False)
    def image(
        request: Request,
        name: str,
        stack: str,
        row: int,
        view: str = VIEWS[0],
        side: int = SIDES[2],
        low: float = LOW_PASS,
        cut: float = CUT,
    ) -> Response:
        _, session = site.known(request, name)
        look = Look.asked(view, side, low, cut)
        found = site.ledger.stack(stack)
        if found is None or found.session != name or found.state != "judged":
            raise AbsentError("there is no such image")
        png = site.pictures.png(session, found, row, look)
        headers = {"Cache-Control": "private, max-age=3600"}
        return Response(png, media_type="image/png", headers=headers)
