"""What all routes of the session page share: who requests what, the templates, and how it is refused."""

# No `from __future__ import annotations` in this package's routes: FastAPI reads their annotations.

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio.to_thread
import jinja2
from fastapi import Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from cryoray.errors import CryorayError
from cryoray.formats.opening import Scope
from cryoray.session.database import LedgerAwayError
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_sessions import OPERATOR
from cryoray.session.page.access import Access, Visitor, check_csrf
from cryoray.session.page.exposures import Exposures
from cryoray.session.page.micrographs import Micrographs
from cryoray.session.page.pictures import Pictures, PreparationOf
from cryoray.session.page.views import Views
from cryoray.web.guard import AbsentError, GuardedRoute, NoEntryError, form

HERE = Path(__file__).parent


class PageRoute(GuardedRoute):
    """A route of the session pages: people are led to the login, and read refusals as a page."""

    def refusal(self, request: Request, error: CryorayError) -> Response:
        """What is answered where something was refused."""
        page = "text/html" in request.headers.get("Accept", "")
        if isinstance(error, NoEntryError) and page and request.method == "GET":
            return RedirectResponse(f"/login?next={quote(request.url.path)}", 303)
        if isinstance(error, LedgerAwayError):
            answer: Response = JSONResponse({"error": str(error)}, 503)
        else:
            answer = super().refusal(request, error)
        if page and not isinstance(error, NoEntryError):
            html = _templates().get_template("error.html").render(visitor=None, problem=str(error))
            answer = Response(html, answer.status_code, media_type="text/html")
        if isinstance(error, LedgerAwayError):
            answer.headers["Retry-After"] = "10"
        return answer


class Site:
    """The ledger, the views of it, and what every route asks first.

    Args:
        ledger: of the sessions.
        operator: the operator's token.
        scope: what the service may read; for a session, what of it lies in that session's folders.
        preparation_of: how an ensemble has its images prepared, by its digest; None where that is not
            known here.
    """

    def __init__(
        self, ledger: Ledger, operator: str, scope: Scope, preparation_of: PreparationOf
    ) -> None:
        self.ledger, self.access = ledger, Access(ledger, operator)
        self.pictures = Pictures(scope, preparation_of)
        self.micrographs = Micrographs(self.pictures)
        self.exposures = Exposures(ledger)
        self.views = Views(ledger, self.pictures, self.micrographs, self.exposures)

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
    page.filters["percent"] = lambda value: f"{100 * value:.0f}%"
    page.filters["clock"] = _clock
    return page


def _clock(at: float | None) -> str:
    if at is None:
        return "–"
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M %Z")
