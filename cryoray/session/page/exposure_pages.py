"""The list of exposures, its limits, and the micrograph around an image."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from cryoray.errors import InputError
from cryoray.imaging.pictures import CUT, LOW_PASS
from cryoray.session.page.exposures import COLUMNS, Exposure, Listing, Query, read_limits
from cryoray.session.page.micrographs import SIDES_PX, Micrograph
from cryoray.session.page.site import Site, show, threaded
from cryoray.session.page.views import Tile
from cryoray.web.guard import AbsentError
from cryoray.web.looks import check_sliders

#: Tiles below a micrograph.
_TILES = 200
#: A mark's radius where the box is not known, fraction of the micrograph's longer side; of a box.
_RADIUS, _OF_BOX = 0.015, 0.3


@dataclass(frozen=True, slots=True)
class Mark:
    """A pick as it is drawn: px of the micrograph, and ``fate``: a verdict, or ``blind``."""

    row: int
    x: float
    y: float
    fate: str
    decided: bool


@dataclass(frozen=True, slots=True)
class Around:
    """A micrograph with its picks.

    Attributes:
        exposure: what is known of it.
        micrograph: its file, None where ``problem`` says why it is not shown.
        marks: its picks.
        radius: px, of a mark.
        counts: picks by fate, as people left them, and how many of them people decided.
        outside: picks that lie outside of the picture, so that the file is not the one they are from.
        tiles: the images, that which was asked for first.
        problem: why there is no picture, or no pick in it.
        row: that which was asked for.
    """

    exposure: Exposure
    micrograph: Micrograph | None
    marks: Sequence[Mark]
    radius: float
    counts: dict[str, int]
    outside: int
    tiles: Sequence[Tile]
    problem: str | None
    row: int | None


def add_exposures(made: APIRouter, site: Site) -> None:
    """Add the pages of exposures."""

    def listed(template: str, request: Request, name: str) -> Response:
        visitor, session = site.known(request, name)
        listing = site.exposures.list(name, Query.of(request.query_params))
        return show(
            template,
            visitor,
            session=session,
            listing=listing,
            columns=COLUMNS,
            pictured=_pictured(site, session, listing),
        )

    @made.get("/sessions/{name}/exposures", include_in_schema=False)
    def exposures(request: Request, name: str) -> Response:
        return listed("exposures.html", request, name)

    @made.get("/sessions/{name}/exposures/list", include_in_schema=False)
    def exposures_part(request: Request, name: str) -> Response:
        return listed("_exposures.html", request, name)

    @made.post("/sessions/{name}/limits", include_in_schema=False)
    async def limits(request: Request, name: str) -> Response:
        visitor, _, fields = await site.change(request, name)
        given = read_limits(fields)
        await threaded(lambda: site.exposures.set_limits(name, given, visitor.who))
        site.views.renew(name)
        return RedirectResponse(f"/sessions/{name}/exposures?{Query.of(fields).text()}", 303)

    @made.get("/v1/sessions/{name}/exposures.csv")
    def get_exposures(request: Request, name: str) -> Response:
        """The exposures of a session: what is known of each, and which limits it is outside of."""
        site.known(request, name)
        text = _csv(site.exposures.all(name))
        headers = {"Content-Disposition": f'attachment; filename="{name}-exposures.csv"'}
        return Response(text, media_type="text/csv", headers=headers)

    @made.get("/sessions/{name}/micrograph/{stack}/{number}.png", include_in_schema=False)
    def picture(
        request: Request,
        name: str,
        stack: str,
        number: int,
        side: int = SIDES_PX[0],
        low: float = LOW_PASS,
        cut: float = CUT,
    ) -> Response:
        _, session = site.known(request, name)
        if side not in SIDES_PX:
            raise InputError(f"micrographs have {' or '.join(map(str, SIDES_PX))} px")
        check_sliders(low, cut)
        found, exposure = _exposure(site, session, stack, number)
        png = site.micrographs.png(session, found, exposure.name, side, low, cut)
        headers = {"Cache-Control": "private, max-age=3600"}
        return Response(png, media_type="image/png", headers=headers)

    @made.get("/sessions/{name}/micrograph/{stack}/{number}", include_in_schema=False)
    def micrograph(
        request: Request, name: str, stack: str, number: int, row: int | None = None
    ) -> Response:
        visitor, session = site.known(request, name)
        found, exposure = _exposure(site, session, stack, number)
        return show(
            "micrograph.html",
            visitor,
            session=session,
            columns=COLUMNS,
            stack=found,
            around=_around(site, session, found, exposure, row),
        )

    @made.get("/sessions/{name}/around/{stack}/{row}", include_in_schema=False)
    def around(request: Request, name: str, stack: str, row: int) -> Response:
        _, session = site.known(request, name)
        names = site.exposures.of_stack(name, stack)
        found = site.ledger.stack(stack)
        if found is None or not names:
            raise AbsentError("there is no such image, or its stack was rewritten")
        of = names[0] if len(names) == 1 else site.micrographs.name_of(session, found, row)
        if of not in names:
            raise AbsentError("nothing says of which micrograph this image is")
        at = f"/sessions/{name}/micrograph/{stack}/{names.index(of)}?row={row}"
        return RedirectResponse(at, 303)


def _pictured(site: Site, session: Any, listing: Listing) -> set[tuple[str, int]]:
    """The exposures of a page whose micrographs can be shown."""
    found = set()
    for one in listing.rows:
        stack = site.ledger.stack(one.stack)
        if stack is not None and site.micrographs.is_there(session, stack, one.name):
            found.add((one.stack, one.number))
    return found


def _exposure(site: Site, session: Any, stack: str, number: int) -> tuple[Any, Exposure]:
    found = site.ledger.stack(stack)
    # A number that no database holds is none of an exposure either.
    known = 0 <= number < 1 << 31
    exposure = site.exposures.one(session.name, stack, number) if known else None
    if found is None or exposure is None:
        raise AbsentError("there is no such exposure, or its stack was rewritten")
    return found, exposure


def _around(site: Site, session: Any, stack: Any, exposure: Exposure, row: int | None) -> Around:
    problem: str | None = None
    shown: Micrograph | None = None
    marks: list[Mark] = []
    tiles: Sequence[Tile] = ()
    radius = 0.0
    try:
        shown = site.micrographs.find(session, stack, exposure.name)
        radius = _RADIUS * max(shown.width, shown.height)
        if shown.pixel_size and (box := site.pictures.box(session, stack)):
            radius = _OF_BOX * box / shown.pixel_size
    except InputError as error:
        problem = str(error)
    try:
        alone = len(site.exposures.of_stack(session.name, stack.id)) == 1
        picks = site.micrographs.picks(session, stack, exposure.name, alone)
        # The one that was asked for, then the best first: those that are hidden have no tile.
        images = site.views.tiles(session, stack, picks.rows.tolist())
        marks = [
            Mark(
                number,
                float(x),
                float(y),
                "blind" if image is None else _fate(image),
                image is not None and image.decision is not None,
            )
            for number, x, y, image in zip(
                picks.rows.tolist(), picks.x, picks.y, images, strict=True
            )
        ]
        there = [image for image in images if image is not None]
        tiles = sorted(there, key=lambda one: (one.row != row, -(one.score or 0.0)))[:_TILES]
    except InputError as error:
        problem = problem or str(error)
    counts = dict.fromkeys(("keep", "discard", "review", "blind", "decided"), 0)
    for mark in marks:
        counts[mark.fate] += 1
        counts["decided"] += mark.decided
    beyond = 0
    if shown is not None:
        beyond = sum(not (0 <= m.x <= shown.width and 0 <= m.y <= shown.height) for m in marks)
    return Around(exposure, shown, marks, radius, counts, beyond, tiles, problem, row)


def _fate(image: Tile) -> str:
    if image.decision is None:
        return image.verdict or "blind"
    return "keep" if image.decision else "discard"


def _csv(rows: Sequence[Exposure]) -> str:
    """A table of what is known; text that a spreadsheet would take for a formula is quoted."""
    known = [name for name in COLUMNS if any(one.values[name] is not None for one in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titles = [f"{COLUMNS[name].title} {COLUMNS[name].unit}".strip() for name in known]
    writer.writerow([*titles, "outside limits of"])
    for one in rows:
        values = [_cell(name, one.values[name]) for name in known]
        writer.writerow([*values, ", ".join(COLUMNS[name].title for name in one.outside)])
    return text.getvalue()


def _cell(name: str, value: Any) -> object:
    if name == "time":
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds")
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return "" if value is None else value
