"""The same for programs: JSON under ``/v1/sessions``, and labels as CSV."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from cryoray.session import labels
from cryoray.session.ledger import Ledger
from cryoray.session.page.actions import override
from cryoray.session.page.site import Site, threaded
from cryoray.session.schema import FATES
from cryoray.web.guard import ForbiddenError


def add_programs(made: APIRouter, site: Site) -> None:
    """Add what programs ask for and send."""

    @made.get("/v1/sessions")
    def list_sessions(request: Request) -> JSONResponse:
        """The sessions that the token opens."""
        visitor = site.enter(request)
        return JSONResponse(
            [_plain(row, site.ledger) for row in site.ledger.sessions() if visitor.may(row.name)]
        )

    @made.get("/v1/sessions/{name}")
    def one_session(request: Request, name: str) -> JSONResponse:
        """One session: counts by fate and state, and its latest alarms."""
        _, session = site.known(request, name)
        alarms = site.ledger.events(name, names=["drift.alarm"], latest=10)
        return JSONResponse(
            {**_plain(session, site.ledger), "alarms": [row.data for row in alarms]}
        )

    @made.post("/v1/sessions/{name}/overrides")
    async def post_override(request: Request, name: str) -> JSONResponse:
        """Say of an image: ``{"stack": ID, "row": N, "say": "keep" | "discard" | "none", "who": NAME}``."""
        visitor, session, fields = await site.change(request, name)
        return JSONResponse(await threaded(lambda: override(site, visitor, session, fields)))

    @made.post("/v1/sessions/{name}/merge")
    async def post_merge(request: Request, name: str) -> JSONResponse:
        """Ask for merged files now."""
        await site.change(request, name)
        await threaded(lambda: site.ledger.want_merge(name))
        return JSONResponse({"wanted": True})

    @made.get("/v1/sessions/{name}/overrides.csv")
    def get_overrides(request: Request, name: str) -> Response:
        """What people fields, as a selection that `cryoray ingest` reads."""
        site.known(request, name)
        return _csv(labels.overrides_csv(site.ledger, name), f"{name}-overrides.csv")

    @made.get("/v1/sessions/{name}/labels.csv")
    def get_labels(request: Request, name: str) -> Response:
        """The same as training labels, without the blind sample; 403 where the session is not released."""
        _, session = site.known(request, name)
        if not session.trainable:
            raise ForbiddenError("this session's owner has not released it for training")
        return _csv(labels.training_csv(site.ledger, name), f"{name}-labels.csv")

    @made.get("/v1/sessions/{name}/audit.csv")
    def get_audit(request: Request, name: str) -> Response:
        """The labels of the blind sample."""
        _, session = site.known(request, name)
        table = labels.audit_csv(
            site.ledger, name, lambda row: site.views.verdict_of_blind(session, row)
        )
        return _csv(table, f"{name}-audit.csv")


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
