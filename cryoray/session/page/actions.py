"""What people do on the pages: overrides, labels of the blind sample, consent, and wishes."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from cryoray.errors import InputError, printable
from cryoray.session.ledger_labels import SECOND_THOUGHTS
from cryoray.session.page.access import Visitor
from cryoray.session.page.site import Site, threaded
from cryoray.web.guard import AbsentError, ForbiddenError


def add_actions(made: APIRouter, site: Site) -> None:
    """Add what the forms of the pages send."""

    @made.post("/sessions/{name}/say", include_in_schema=False)
    async def say(request: Request, name: str) -> Response:
        visitor, session, fields = await site.change(request, name)
        done = await threaded(lambda: override(site, visitor, session, fields))
        return _answer(request, f"/sessions/{name}{_own_part(fields, done)}", done)

    @made.post("/sessions/{name}/audit", include_in_schema=False)
    async def label(request: Request, name: str) -> Response:
        visitor, _, fields = await site.change(request, name)
        keep = _keep(fields)
        key, row = fields.get("stack", ""), _number(fields.get("row", ""))
        who = _who(visitor, fields)
        if keep is None:
            if not await threaded(lambda: site.ledger.take_back_blind(name, key, row)):
                raise ForbiddenError(
                    f"a label can be undone for {SECOND_THOUGHTS:.0f} s; this one is older",
                    remedy="label the images that are left",
                )
            taken = False
        else:
            taken = await threaded(
                lambda: site.ledger.label_blind(name, key, row, keep=keep, who=who)
            )
        return _answer(request, f"/sessions/{name}/audit", {"taken": taken})

    @made.post("/sessions/{name}/trainable", include_in_schema=False)
    async def set_trainable(request: Request, name: str) -> Response:
        visitor, _, fields = await site.change(request, name)
        if visitor.scope != name:
            raise ForbiddenError(
                "only the session's owner releases it for training",
                remedy="use the session's own token",
            )
        await threaded(
            lambda: site.ledger.set_trainable(name, trainable=fields.get("trainable") == "on")
        )
        return _answer(request, f"/sessions/{name}", {"trainable": fields.get("trainable") == "on"})

    @made.post("/sessions/{name}/merge", include_in_schema=False)
    async def merge_now(request: Request, name: str) -> Response:
        await site.change(request, name)
        await threaded(lambda: site.ledger.want_merge(name))
        return _answer(request, f"/sessions/{name}", {"wanted": True})


def override(
    site: Site, visitor: Visitor, session: Any, fields: dict[str, str]
) -> dict[str, object]:
    """Note what somebody says of an image.

    Raises:
        AbsentError: there is no such image.
        ForbiddenError: it is of the blind sample, and not labelled there.
    """
    key, row, keep = fields.get("stack", ""), _number(fields.get("row", "")), _keep(fields)
    tile = site.views.tile(session, key, row)
    stack = site.ledger.stack(key)
    if tile is None or stack is None or tile.verdict is None or tile.score is None:
        raise AbsentError("there is no such image, or its stack was rewritten")
    if site.views.hidden(session.name, key, row):
        raise ForbiddenError("this image is of the blind sample", remedy="label it there first")
    site.ledger.override(
        session.name,
        key,
        row,
        keep,
        image=tile.image,
        before=tile.verdict,
        score=tile.score,
        digest=stack.digest,
        who=_who(visitor, fields),
    )
    site.views.renew(session.name)
    return {"stack": key, "row": row, "image": tile.image, "keep": keep}


def _own_part(fields: dict[str, str], done: dict[str, object]) -> str:
    """The page of the session from which somebody said something."""
    page = fields.get("from", "")
    if page == "micrograph":
        return f"/around/{done['stack']}/{done['row']}"
    return f"/{page}" if page in ("review", "informative") else ""


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise InputError(f"row {text!r} is not a number")
    return int(text)


def _keep(fields: dict[str, str]) -> bool | None:
    try:
        return {"keep": True, "discard": False, "none": None}[fields.get("say", "")]
    except KeyError:
        raise InputError("say keep, discard or none") from None


def _who(visitor: Visitor, fields: dict[str, str]) -> str:
    """A browser's visitor has said who they are when they came in; a program says it each time."""
    named = "" if visitor.csrf else printable(" ".join(fields.get("who", "").split()))
    return (named or visitor.who)[:80]


def _answer(request: Request, page: str, done: dict[str, object]) -> Response:
    if "application/json" in request.headers.get("Accept", ""):
        return JSONResponse(done)
    return RedirectResponse(page, 303)
