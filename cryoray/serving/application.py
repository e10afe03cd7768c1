"""The HTTP application: its addresses, and every answer as `protocol.messages` has it."""
# No `from __future__ import annotations` here: FastAPI reads the annotations of functions made below.

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from cryoray.errors import FULL, CryorayError, InputError, InternalError
from cryoray.formats.opening import OutsideError, Scope
from cryoray.models.predict import finished, profile_of, profiled_rows
from cryoray.models.profile import Profile
from cryoray.protocol import answers
from cryoray.protocol.answers import ARROW_TYPE, JSON_TYPE
from cryoray.protocol.messages import (
    ENSEMBLES,
    HEALTH,
    JUDGE,
    METRICS,
    PROFILES,
    SHADOW,
    STACK_TYPE,
    Ensembles,
    JudgeAnswer,
    JudgeRequest,
    Problem,
    ProfileRequest,
    ServedEnsemble,
    ShadowReport,
)
from cryoray.protocol.token import check_strength
from cryoray.records import Verdicts
from cryoray.serving import parsers
from cryoray.serving.admission import (
    Bearer,
    Doors,
    FullError,
    SlowError,
    UnknownError,
    refusal,
)
from cryoray.serving.counts import Counts
from cryoray.serving.judging import JudgedRange, JudgesFailedError, Judging, Work
from cryoray.serving.lineup import Active, Served
from cryoray.serving.parsers import BusyError, InThisProcess, Parsers, Question
from cryoray.serving.sessions import OpenSessions
from cryoray.serving.shadow import Comparison
from cryoray.serving.sources import AbsentError, Chosen, TooMuchError
from cryoray.serving.uploads import Places, sweep, uploaded
from cryoray.session.ledger import Ledger
from cryoray.session.page import router as session_pages
from cryoray.settings import PreparationSettings, ServeSettings


class OtherProfileError(InputError):
    """A profile is of another ensemble than the one that is active: one was promoted since."""


Asked = TypeVar("Asked", JudgeRequest, ProfileRequest)

_log = logging.getLogger("ray.serve.cryoray")

#: Processes that open sources, and seconds that one source may take.
_PARSERS, _PARSE_SECONDS = min(2, len(os.sched_getaffinity(0))), 120.0

_STATUS: Mapping[type[CryorayError], int] = {
    UnknownError: 401,
    OutsideError: 403,
    AbsentError: 404,
    SlowError: 408,
    OtherProfileError: 409,
    TooMuchError: 413,
    FullError: 429,
    BusyError: 503,
    JudgesFailedError: 503,
}
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}

#: What answers without a token, and is no page: pages have a door of their own (`session.page.access`).
PUBLIC = (HEALTH, METRICS, "/openapi.json")


def create(
    settings: ServeSettings,
    lineup: Active,
    judging: Judging,
    counts: Counts,
    comparison: Comparison | None = None,
) -> FastAPI:
    """The HTTP application.

    Args:
        settings: with its token and roots.
        lineup: the ensembles; the first is the default.
        judging: does the work.
        counts: where it is counted.
        comparison: with a shadow; None where there is none.

    Raises:
        SettingsError: there is no token, or one that can be guessed.
    """
    token = check_strength(settings.token)
    ledger = Ledger(settings.ledger) if settings.ledger else None
    comparison = comparison or Comparison(None, lineup, judging.beside, counts)
    scope = Scope(settings.roots)
    judge = Judge(settings, scope, lineup, judging, counts, comparison, ledger)

    async def keep_following() -> None:
        while True:
            try:
                await judging.attend()
                await lineup.follow()
            except Exception:  # this loop must not end
                _log.exception("the lineup could not be followed")
            await asyncio.sleep(settings.poll)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(sweep)
        await asyncio.to_thread(parsers.prepare)
        task = asyncio.create_task(keep_following())
        try:
            yield
        finally:
            task.cancel()
            judge.parsers.close()

    app = FastAPI(title="cryoray", docs_url=None, redoc_url=None, lifespan=running)
    app.add_middleware(Doors, counts=counts)
    _handle_errors(app)
    app.include_router(_open_to_all(judging, counts))
    anyone = Bearer(token, ledger, sessions=True)
    operator = Bearer(token, ledger, sessions=False)
    app.include_router(_about_ensembles(lineup, comparison, anyone, operator))
    app.include_router(_judgements(judge, anyone))
    if ledger is not None:
        counts.also(OpenSessions(ledger))

        def preparation_of(digest: str) -> PreparationSettings | None:
            """Of an ensemble that is active now."""
            there = (one for _, one in lineup.items() if one.digest == digest)
            return next((one.preparation for one in there), None)

        app.include_router(session_pages(ledger, token, scope, preparation_of))
    app.include_router(_nothing_else(operator))
    return app


def _open_to_all(judging: Judging, counts: Counts) -> APIRouter:
    made = APIRouter()
    # A thread of their own: whatever else waits for a disk, metrics are written.
    thread = ThreadPoolExecutor(1, "metrics")

    @made.get(HEALTH, response_model=dict[str, str], responses={503: {"model": Problem}})
    async def healthy() -> Response:
        """200 when a request would be judged now, 503 when not."""
        if not counts.draining and await judging.ready():
            return JSONResponse({"status": "ok"})
        return refusal(503, "The judges or the preparers do not answer.")

    @made.get(
        METRICS, responses={200: {"content": {"text/plain": {}}}}, response_class=PlainTextResponse
    )
    async def metrics() -> Response:
        """What this service has counted, for Prometheus."""
        text = await asyncio.get_running_loop().run_in_executor(thread, counts.text)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return made


_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (401, 408, 413, 429, 503, 504)
}


def _about_ensembles(
    lineup: Active, comparison: Comparison, anyone: Bearer, operator: Bearer
) -> APIRouter:
    made = APIRouter()

    @made.get(ENSEMBLES, responses=_REFUSALS, dependencies=[Security(anyone)])
    async def ensembles() -> Ensembles:
        """Which ensembles judge now, and what happened to them."""
        return Ensembles(
            ensembles=[
                ServedEnsemble(
                    name=name,
                    digest=served.digest,
                    kind=served.kind,
                    training=served.training,
                    context=served.context,
                    before=before.digest if (before := lineup.before(served)) else None,
                )
                for name, served in lineup.items()
                if name != comparison.name
            ],
            events=list(lineup.events),
        )

    @made.get(SHADOW, responses=_REFUSALS, dependencies=[Security(operator)])
    async def compared() -> ShadowReport:
        """How the shadow ensemble compares with those that answer."""
        return comparison.report()

    return made


def _judgements(judge: "Judge", anyone: Bearer) -> APIRouter:
    made = APIRouter()

    @made.post(
        JUDGE,
        response_model=JudgeAnswer,
        responses=_REFUSALS
        | {200: {"content": {ARROW_TYPE: {"schema": {"type": "string", "format": "binary"}}}}}
        | {status: {"model": Problem} for status in (400, 403, 404, 409, 415, 422, 500, 507)},
        dependencies=[Security(anyone)],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": JudgeRequest.model_json_schema(),
                        "example": {"source": "particles.star", "rows": [0, 9]},
                    },
                    STACK_TYPE: {"schema": {"type": "string", "format": "binary"}},
                },
            }
        },
    )
    async def judged(request: Request, ensemble: Annotated[str | None, Query()] = None) -> Response:
        """Judge rows of a source under the roots, or all images of the `.mrcs` file in the body."""
        return await judge(request, ensemble)

    @made.post(
        PROFILES,
        responses=_REFUSALS | {status: {"model": Problem} for status in (400, 403, 404, 422)},
        dependencies=[Security(anyone)],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": ProfileRequest.model_json_schema()}},
            }
        },
    )
    async def profiled(request: Request) -> Response:
        """What a project looks like, for `profile` of judge requests; its digest is in it."""
        return await judge.profile(request)

    return made


#: How each path of the protocol is asked.
_METHODS = {ENSEMBLES: "GET", SHADOW: "GET", JUDGE: "POST", PROFILES: "POST"}


def _nothing_else(operator: Bearer) -> APIRouter:
    """What is not there under /v1, or takes another method: who has no token learns not even that."""
    made = APIRouter()

    @made.api_route(
        "/v1{rest:path}",
        methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
        include_in_schema=False,
        dependencies=[Depends(operator)],
    )
    async def absent(request: Request) -> Response:
        if allowed := _METHODS.get(request.url.path):
            return refusal(405, "Method Not Allowed.", {"Allow": allowed})
        return refusal(404, "Not Found.")

    return made


class Judge:
    """Answers ``POST /v1/judge``.

    Args:
        settings: of the service.
        scope: what it may read.
        lineup: the ensembles.
        judging: does the work.
        counts: where it is counted.
        comparison: with a shadow.
        ledger: of the sessions, whose tokens come in; None where there are none.
    """

    def __init__(
        self,
        settings: ServeSettings,
        scope: Scope,
        lineup: Active,
        judging: Judging,
        counts: Counts,
        comparison: Comparison,
        ledger: Ledger | None,
    ) -> None:
        self._settings, self._scope, self._lineup = settings, scope, lineup
        self._judging, self._counts, self._comparison = judging, counts, comparison
        self._ledger = ledger
        self._uploads = Places(settings.max_queued)
        seconds = min(_PARSE_SECONDS, settings.timeout)
        self.parsers = Parsers(settings.max_rows, _PARSERS, seconds)

    async def __call__(self, request: Request, ensemble: str | None) -> Response:
        """The answer to a request that was let in."""
        return await self._in_time(self._heard(request, ensemble))

    async def profile(self, request: Request) -> Response:
        """The profile of a source, to a request that was let in."""
        return await self._in_time(self._profiled(request))

    async def _in_time(self, answer: Coroutine[Any, Any, Response]) -> Response:
        seconds = self._settings.timeout
        try:
            async with asyncio.timeout(seconds) as limit:
                return await answer
        except TimeoutError:
            if not limit.expired():
                raise
            return refusal(504, f"This took longer than {seconds:g} seconds; ask for fewer rows.")

    def _check_room(self) -> None:
        """Refuse what cannot be judged soon.

        Raises:
            FullError: the service is full.
        """
        if self._counts.waiting >= self._settings.max_queued:
            raise FullError("The service is full; ask again later.")

    async def _profiled(self, request: Request) -> Response:
        asked = _asked(ProfileRequest, await request.body())
        self._check_room()
        with self._counts.in_flight():
            return await self._profile_of(asked, request.state.session)

    async def _profile_of(self, asked: ProfileRequest, session: str | None) -> Response:
        scope = await asyncio.to_thread(self._scope_of, session)
        served = self._named(asked.ensemble)
        if not served.context:
            raise InputError(
                f"the ensemble {served.name!r} cannot judge within a project, so it makes no profiles",
                remedy="judge without a profile",
            )
        together = self._settings.batch
        questions = [
            Question(source, None, served.kind, served.preparation, together, scope)
            for source in asked.every
        ]
        chosen = await self._readable(questions)
        # One row after the other through all of the sources, as if they were one.
        starts = np.cumsum([0, *(each.rows for each in chosen)]).tolist()
        ranges = [
            replace(part, rows=part.rows + start)
            for each, start in zip(chosen, starts, strict=False)
            for part in each.ranges
        ]
        seen = await self._judging.embed(Work(served, profiled_rows(ranges), scope))
        made = await asyncio.to_thread(profile_of, seen, served.digest)
        if made is None:
            raise InputError("none of its images can be read", file=asked.every[0])
        return Response(made.model_dump_json(), media_type=JSON_TYPE)

    async def _readable(self, questions: Sequence[Question]) -> list[Chosen]:
        """What is chosen of several sources, those left out that cannot be read.

        Raises:
            InputError: none can.
        """
        found = await asyncio.gather(*map(self.parsers.choose, questions), return_exceptions=True)
        chosen = [one for one in found if isinstance(one, Chosen)]
        failures = [one for one in found if isinstance(one, BaseException)]
        grave = [one for one in failures if not isinstance(one, InputError)]
        for error in grave or (failures if not chosen else ()):
            raise error
        return chosen

    async def _heard(self, request: Request, ensemble: str | None) -> Response:
        accept = request.headers.get("Accept", "")
        kind_of_body = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind_of_body == JSON_TYPE:
            asked = _asked(JudgeRequest, await request.body())
            self._check_room()
            with self._counts.in_flight():
                scope = await asyncio.to_thread(self._scope_of, request.state.session)
                return await self._answer(
                    self.parsers,
                    scope,
                    asked.source,
                    asked.rows,
                    asked.ensemble or ensemble,
                    accept,
                    profile=_profile(asked.profile),
                )
        if kind_of_body == STACK_TYPE:
            self._check_room()
            async with AsyncExitStack() as keep:
                most = self._settings.max_upload_mib << 20
                with self._uploads.place(request.state.session):
                    stack = await keep.enter_async_context(uploaded(request, most))
                scope = Scope((stack.parent,))
                opened = InThisProcess(self._settings.max_rows)
                with self._counts.in_flight():  # it has come so far: it is not sent away any more
                    return await self._answer(
                        opened, scope, stack.name, None, ensemble, accept, keep
                    )
        return refusal(415, f"Send {JSON_TYPE}, or a stack as {STACK_TYPE}.")

    def _named(self, ensemble: str | None) -> Served:
        """The ensemble of a name; None for the first.

        Raises:
            InputError: there is none of this name.
        """
        names = [name for name, _ in self._lineup.items() if name != self._comparison.name]
        name = ensemble or names[0]
        if name not in names:
            raise InputError(
                f"there is no ensemble {name!r} here", remedy=f"take one of {', '.join(names)}"
            )
        return self._lineup[name]

    def _scope_of(self, session: str | None) -> Scope:
        """What a token may have judged: everything, or what lies in its session's folders."""
        if session is None:
            return self._scope
        found = self._ledger.session(session) if self._ledger is not None else None
        if found is None:  # gone since its token was looked at
            raise UnknownError("This service needs its bearer token.")
        folders = [Path(found.root)]
        for folder in map(Path, found.roots or ()):
            with suppress(OutsideError):  # it was allowed to the session, and not to this service
                self._scope.inside(folder)
                folders.append(folder)
        return self._scope.inside(*folders)

    async def _answer(
        self,
        opened: Parsers | InThisProcess,
        scope: Scope,
        source: str,
        rows: tuple[int, int] | None,
        ensemble: str | None,
        accept: str,
        keep: AsyncExitStack | None = None,
        profile: Profile | None = None,
    ) -> Response:
        served = self._named(ensemble)
        name = served.name

        async def plan(whose: Served) -> Chosen:
            together = self._settings.batch
            return await opened.choose(
                Question(source, rows, whose.kind, whose.preparation, together, scope)
            )

        counts = self._counts
        while True:
            if profile is not None and profile.ensemble != served.digest:
                raise OtherProfileError(
                    f"the profile {profile.digest[:12]} is of another ensemble than {served.digest[:12]}, "
                    f"which is active as {name!r}",
                    remedy=f"ask for one at {PROFILES}",
                )
            # Else judges would fail over it, which is taken for a fault of the ensemble.
            if profile is not None and profile.sizes != served.seen:
                raise InputError(
                    f"the profile {profile.digest[:12]} is not of the members of {name!r}",
                    remedy=f"ask for one at {PROFILES}",
                )
            with counts.stages.labels("plan").time():
                chosen = await plan(served)
            try:
                judged = await self._judging.judge(Work(served, chosen.ranges, scope, profile))
                break
            except JudgesFailedError as error:
                other = await self._lineup.failed(served, error)
                if other is None:
                    raise
                served = other
        with counts.stages.labels("answer").time():
            answered = await asyncio.to_thread(_answer, served, chosen, judged)
            response = await asyncio.to_thread(_written, answered, accept)
        counts.count(name, answered)
        self._comparison.see(served, answered, plan, scope, keep)
        return response


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(CryorayError)
    async def refuse(request: Request, error: CryorayError) -> Response:
        status = _STATUS.get(type(error), 422 if isinstance(error, InputError) else 500)
        return refusal(status, str(error), _HEADERS.get(status))

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, f"{error.detail}.", dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def refuse_query(request: Request, error: RequestValidationError) -> Response:
        return refusal(422, f"{_first(error.errors())}.")

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        if isinstance(error, OSError) and error.errno in FULL:
            where = error.filename or "the disk"
            return refusal(507, f"{where}: {os.strerror(error.errno)}; make room and try again.")
        return refusal(500, f"This is our fault, not yours: {type(error).__name__}: {error}.")


def _asked(kind: type[Asked], body: bytes) -> Asked:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise InputError(_first(error.errors())) from error


def _profile(given: dict[str, Any] | None) -> Profile | None:
    if given is None:
        return None
    try:
        return Profile.parse(json.dumps(given))
    except ValidationError as error:
        raise InputError(f"profile: {_first(error.errors())}") from error
    except ValueError as error:
        raise InputError(f"profile: {error}") from error


def _first(errors: Sequence[Any]) -> str:
    """The first of pydantic's complaints."""
    where = ".".join(map(str, errors[0]["loc"])) or "the request"
    return f"{where}: {errors[0]['msg'][0].lower()}{errors[0]['msg'][1:]}"


def _answer(served: Served, chosen: Chosen, judged: Sequence[JudgedRange]) -> Verdicts:
    """All that was asked about, after a check that every row is in it once."""
    about = {"ensemble": served.digest, "threshold": repr(served.threshold)}
    for part in judged[:1]:  # which know the profile and the policy, too
        about |= part.verdicts.about
    answer = finished(chosen.quarantined, (part.verdicts for part in judged), about)
    rows = answer.table["row"].to_numpy()
    if not len(np.unique(rows)) == len(rows) == chosen.rows:
        raise InternalError(
            f"{chosen.rows} rows were requested, and {len(rows)} judged or quarantined"
        )
    return answer.with_images(chosen.images, chosen.first)


def _written(answer: Verdicts, accept: str) -> Response:
    """The body in Arrow where the client asks for it, else in JSON."""
    if ARROW_TYPE in accept:
        return Response(answers.to_arrow(answer), media_type=ARROW_TYPE)
    return Response(answers.to_json(answer), media_type=JSON_TYPE)
