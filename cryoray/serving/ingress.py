"""The deployment that speaks HTTP: who may ask, what was asked, and the answer in the contract's words."""
# No `from __future__ import annotations` here: FastAPI reads the annotations of functions made below.

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import ray
from fastapi import FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from cryoray.errors import FULL, CryorayError, InputError, InternalError, SettingsError
from cryoray.protocol import answers
from cryoray.protocol.answers import ARROW_TYPE, JSON_TYPE
from cryoray.protocol.messages import (
    ENSEMBLES,
    HEALTH,
    JUDGE,
    METRICS,
    SHADOW,
    STACK_TYPE,
    Ensembles,
    JudgeAnswer,
    JudgeRequest,
    Problem,
    ServedEnsemble,
    ShadowReport,
)
from cryoray.records import RowRange, Verdicts
from cryoray.serving.counts import Counts
from cryoray.serving.lineup import Lineup, Served, attempt, sentence
from cryoray.serving.replica import JudgedRange
from cryoray.serving.sessions import OpenSessions
from cryoray.serving.shadow import Comparison
from cryoray.serving.sources import (
    AbsentError,
    Catalogue,
    Chosen,
    OutsideError,
    TooMuchError,
    confine,
)
from cryoray.session.ledger import Ledger
from cryoray.session.page import router as session_pages
from cryoray.settings import ServeSettings

_log = logging.getLogger("ray.serve.cryoray")

#: A request in JSON is a path and two numbers.
_JSON_BYTES = 64 << 10
_HEALTH_SECONDS = 3.0
_ATTEMPT_SECONDS = 120.0
_ATTEND_SECONDS = 10.0
#: Seconds before a range is asked about again whose replica was lost; a new one takes some to start.
_AGAIN_SECONDS = (0.1, 0.5, 2.0, 5.0)


#: What a replica or a node that is gone looks like from here.
_LOST = (RayActorError, NodeDiedError, ObjectLostError, RayServeException)


class JudgesFailedError(CryorayError):
    """The judges or preparers could not do what an ensemble asks of them."""


_STATUS: Mapping[type[CryorayError], int] = {
    OutsideError: 403,
    AbsentError: 404,
    TooMuchError: 413,
    JudgesFailedError: 503,
}


class Judging(Protocol):
    """Whatever prepares and judges for the ingress."""

    async def judge(self, served: Served, ranges: Sequence[RowRange]) -> list[JudgedRange]:
        """Judge ranges with an ensemble.

        Raises:
            JudgesFailedError: that cannot be done.
        """

    async def beside(self, shadow: Served, ranges: Sequence[RowRange]) -> list[JudgedRange]:
        """Judge ranges with a shadow, in what time is left."""

    async def ready(self) -> bool:
        """Whether a request would be judged now."""

    async def attend(self) -> None:
        """What is to be done every few seconds."""


def create(
    settings: ServeSettings,
    lineup: Lineup,
    judging: Judging,
    counts: Counts,
    shadow: str | None = None,
) -> FastAPI:
    """The HTTP application.

    Args:
        settings: with its token and roots.
        lineup: the ensembles; the first is the default.
        judging: does the work.
        counts: where it is counted.
        shadow: name of the one in the lineup that nobody can ask.

    Raises:
        SettingsError: there is no token.
    """
    if not settings.token:
        raise SettingsError("a service needs a token", remedy="set CRYORAY_TOKEN")
    token = settings.token.encode()
    catalogue = Catalogue(settings.roots, settings.max_rows)
    ledger = Ledger(settings.ledger) if settings.ledger else None
    comparison = Comparison(shadow, lineup, judging.beside, counts)

    async def keep_following() -> None:
        while True:
            try:
                await judging.attend()
                await lineup.follow()
            except Exception:  # this loop must not end
                _log.exception("the lineup could not be followed")
            await asyncio.sleep(settings.poll)

    @asynccontextmanager
    async def following(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(keep_following())
        yield
        task.cancel()

    app = FastAPI(title="cryoray", docs_url=None, redoc_url=None, lifespan=following)
    bearer = Security(HTTPBearer(auto_error=False, description="The token of this service."))

    @app.middleware("http")
    async def admit(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        path = request.url.path
        pages = ledger is not None and (path + "/").startswith("/v1/sessions/")
        if pages or not path.startswith("/v1"):  # the pages have a door of their own
            return await call_next(request)
        response = await admitted(request, call_next)
        counts.requests.labels(str(response.status_code)).inc()
        return response

    async def admitted(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        session = None
        if not compare_digest(given.encode(), token):
            # A session's token judges what lies in that session's folder, and sees nothing else.
            if given and ledger is not None and request.url.path in (JUDGE, ENSEMBLES):
                session = await asyncio.to_thread(ledger.scope, given)
            if session is None:
                return _problem(
                    401,
                    "A bearer token is needed, the one of this service.",
                    {"WWW-Authenticate": "Bearer"},
                )
        request.state.session = session
        if counts.waiting >= settings.max_queued:
            return _problem(429, "The service is full; ask again later.", {"Retry-After": "1"})
        with counts.in_flight():
            return await call_next(request)

    @app.exception_handler(CryorayError)
    async def refuse(request: Request, error: CryorayError) -> Response:
        status = _STATUS.get(type(error), 422 if isinstance(error, InputError) else 500)
        return _problem(status, str(error))

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, f"{error.detail}.", error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_query(request: Request, error: RequestValidationError) -> Response:
        return _problem(422, f"{_first(error.errors())}.")

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        if isinstance(error, OSError) and error.errno in FULL:
            where = error.filename or "the disk"
            return _problem(507, f"{where}: {os.strerror(error.errno)}; make room and try again.")
        return _problem(500, f"This is our fault, not yours: {type(error).__name__}: {error}.")

    @app.get(HEALTH, response_model=dict[str, str], responses={503: {"model": Problem}})
    async def healthy() -> Response:
        """200 when a request would be judged now, 503 when not."""
        if await judging.ready():
            return JSONResponse({"status": "ok"})
        return _problem(503, "The judges or the preparers do not answer.")

    @app.get(
        METRICS, responses={200: {"content": {"text/plain": {}}}}, response_class=PlainTextResponse
    )
    async def metrics() -> Response:
        """What this ingress has counted, for Prometheus."""
        text = await asyncio.to_thread(generate_latest, counts.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem} for status in (401, 429, 504)
    }

    @app.get(ENSEMBLES, responses=refusals, dependencies=[bearer])
    async def ensembles() -> Ensembles:
        """Which ensembles judge now, and what happened to them."""
        return Ensembles(
            ensembles=[
                ServedEnsemble(
                    name=name,
                    digest=served.digest,
                    kind=served.kind,
                    training=served.training,
                    before=before.digest if (before := lineup.before(served)) else None,
                )
                for name, served in lineup.items()
                if name != shadow
            ],
            events=list(lineup.events),
        )

    @app.get(SHADOW, responses=refusals, dependencies=[bearer])
    async def compared() -> ShadowReport:
        """How the shadow ensemble compares with those that answer."""
        return comparison.report()

    @app.post(
        JUDGE,
        response_model=JudgeAnswer,
        responses=refusals
        | {200: {"content": {ARROW_TYPE: {"schema": {"type": "string", "format": "binary"}}}}}
        | {status: {"model": Problem} for status in (400, 403, 404, 413, 415, 422, 500, 503, 507)},
        dependencies=[bearer],
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
    async def judge(request: Request, ensemble: Annotated[str | None, Query()] = None) -> Response:
        """Judge rows of a source under the roots, or all images of the `.mrcs` file in the body."""
        try:
            async with asyncio.timeout(settings.timeout) as limit:
                return await heard(request, ensemble)
        except TimeoutError:
            if not limit.expired():
                raise
            return _problem(
                504, f"This took longer than {settings.timeout:g} seconds; ask for fewer rows."
            )

    async def heard(request: Request, ensemble: str | None) -> Response:
        accept = request.headers.get("Accept", "")
        kind_of_body = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind_of_body == "application/json":
            asked = _asked(await _body(request, _JSON_BYTES))
            where = await asyncio.to_thread(_within, catalogue, ledger, request.state.session)
            return await answer(where, asked.source, asked.rows, asked.ensemble or ensemble, accept)
        if kind_of_body == STACK_TYPE:
            async with AsyncExitStack() as keep:
                stack = await keep.enter_async_context(
                    _uploaded(request, settings.max_upload_mib << 20)
                )
                itself = Catalogue((stack.parent,), settings.max_rows)
                return await answer(itself, stack.name, None, ensemble, accept, keep)
        return _problem(415, f"Send application/json, or a stack as {STACK_TYPE}.")

    async def answer(
        where: Catalogue,
        source: str,
        rows: tuple[int, int] | None,
        ensemble: str | None,
        accept: str,
        keep: AsyncExitStack | None = None,
    ) -> Response:
        names = [name for name in lineup if name != shadow]
        name = ensemble or names[0]
        if name not in names:
            raise InputError(
                f"there is no ensemble {name!r} here", remedy=f"take one of {', '.join(names)}"
            )

        def plan(whose: Served) -> Chosen:
            return where.choose(source, rows, whose.kind, whose.preparation, settings.batch)

        served: Served | None = lineup[name]
        while served is not None:
            by = served
            with counts.stages.labels("plan").time():
                chosen = await asyncio.to_thread(plan, by)
            try:
                judged = await judging.judge(by, chosen.ranges)
                break
            except JudgesFailedError as error:
                served = await lineup.failed(by, error)
                if served is None:
                    raise
        with counts.stages.labels("answer").time():
            answered = await asyncio.to_thread(_answer, by, chosen, judged)
            response = await asyncio.to_thread(_written, answered, accept)
        counts.count(name, answered)
        comparison.see(by, answered, plan, keep)
        return response

    if ledger is not None:
        counts.registry.register(OpenSessions(ledger))
        app.include_router(
            session_pages(ledger, settings.token, lambda path: confine(path, settings.roots))
        )
    return app


def _within(catalogue: Catalogue, ledger: Ledger | None, session: str | None) -> Catalogue:
    """What a token may have judged: everything, or what lies in its session's folder."""
    found = ledger.session(session) if ledger is not None and session is not None else None
    if found is None:
        return catalogue
    return Catalogue((confine(found.root, catalogue.roots),), catalogue.max_rows)


class Ingress:
    """The application on Ray Serve.

    Args:
        settings: with its token and roots.
        ensembles: by name; the first is the default.
        root: of the registry.
        preparer: the deployment of preparers.
        judges: the deployment of judges, by name of ensemble.
        shadow: the ensemble that judges beside them, and its deployment.
    """

    def __init__(
        self,
        settings: ServeSettings,
        ensembles: Mapping[str, Served],
        root: Path,
        preparer: DeploymentHandle,
        judges: Mapping[str, DeploymentHandle],
        shadow: tuple[Served, DeploymentHandle] | None = None,
    ) -> None:
        self.settings, self.preparer, self.judges = settings, preparer, dict(judges)
        self.counts = Counts(settings.batch)
        self._queued: Tally[str] = Tally()
        self._replicas: Tally[str] = Tally()
        self._slots = _Slots(4)
        self._shadow: str | None = None
        served = {name: one.now(root) for name, one in ensembles.items()}
        if shadow is not None:
            self._shadow = shadow[0].name
            served[self._shadow], self.judges[self._shadow] = shadow
        self.lineup = Lineup(
            served,
            root,
            probation=settings.probation,
            attempt=_attempt_elsewhere,
            hold=self.hold,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create(self.settings, self.lineup, self, self.counts, self._shadow)

    async def judge(self, served: Served, ranges: Sequence[RowRange]) -> list[JudgedRange]:
        """Have ranges prepared and judged; a range whose replica was lost goes to another.

        Raises:
            JudgesFailedError: judging failed, or replica after replica was lost.
        """
        images = sum(len(part.rows) for part in ranges)
        self._wait(served.name, images)
        # So that a request of a few rows need not wait for all of one with a million.
        mine = asyncio.Semaphore(self._slots.limit)

        async def one(part: RowRange) -> JudgedRange:
            nonlocal images
            async with mine, self._slots:
                begun = time.perf_counter()
                judged = await self._one(served, part)
                self.counts.measured(judged, time.perf_counter() - begun)
            self._wait(served.name, -len(part.rows))
            images -= len(part.rows)
            return judged

        tasks = [asyncio.ensure_future(one(part)) for part in ranges]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            self._wait(served.name, -images)

    async def _one(self, served: Served, part: RowRange) -> JudgedRange:
        # An ensemble that takes its judges down must not do so for long.
        again = _AGAIN_SECONDS[: 1 if self.lineup.before(served) else None]
        for pause in (*again, None):
            # The response is handed on unread: its pixels go from preparer to judge directly.
            prepared = self.preparer.remote(part, served.preparation)
            judged = self.judges[served.name].remote(prepared, served)
            try:
                return await judged
            except asyncio.CancelledError:
                judged.cancel()
                prepared.cancel()
                raise
            except _LOST as error:
                self.counts.lost.inc()
                if pause is None:
                    raise _failed(served, error) from error
                await asyncio.sleep(pause)
            except (RayError, CryorayError) as error:
                raise _failed(served, error) from error
        raise AssertionError

    async def beside(self, shadow: Served, ranges: Sequence[RowRange]) -> list[JudgedRange]:
        """Have the shadow judge ranges, one after the other."""
        return [await self.judges[shadow.name].remote(part, shadow) for part in ranges]

    async def hold(self, served: Served) -> None:
        """Have all judges of its name load an ensemble.

        Raises:
            JudgesFailedError: there is none.
            RayError: one of them failed to.
        """
        told = self.judges[served.name].broadcast("attend", served, self._queued[served.name])
        results = await told.results_async(timeout_s=_ATTEMPT_SECONDS)
        if not results:
            raise JudgesFailedError(f"No judge of {served.name} answers.")

    async def attend(self) -> None:
        """Tell all replicas what waits and which ensemble is active, and count them."""
        queued = {name: self._queued[name] for name in self.judges if name != self._shadow}
        told = {
            name: self.judges[name].broadcast("attend", self.lineup[name], waiting)
            for name, waiting in queued.items()
        }
        told[""] = self.preparer.broadcast("attend", sum(queued.values()))
        for name, responses in told.items():
            results = await responses.results_async(
                timeout_s=_ATTEND_SECONDS, return_exceptions=True
            )
            self._replicas[name] = sum(not isinstance(result, Exception) for result in results)
        # As many ranges under way as keep everyone busy; more would only fill the object store.
        self._slots.limit = max(4, 2 * sum(self._replicas.values()))

    def _wait(self, name: str, images: int) -> None:
        self._queued[name] += images
        self.counts.queued.labels(name).set(self._queued[name])

    async def ready(self) -> bool:
        """Whether the preparers and all ensembles' judges answer, with the ensemble that is active."""
        asked = [
            self.preparer.attend.remote(sum(self._queued.values())),
            *(
                self.judges[name].attend.remote(served, self._queued[name])
                for name, served in self.lineup.items()
                if name != self._shadow
            ),
        ]
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                await asyncio.gather(*asked)
        except Exception:
            return False
        return True


class _Slots:
    """A semaphore whose limit may change."""

    def __init__(self, limit: int) -> None:
        self.limit, self._taken = limit, 0
        self._freed = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._freed:
            await self._freed.wait_for(lambda: self._taken < self.limit)
            self._taken += 1

    async def __aexit__(self, *exception: object) -> None:
        async with self._freed:
            self._taken -= 1
            self._freed.notify()


async def _attempt_elsewhere(name: str, path: Path) -> Served:
    """Try an ensemble in a process of its own, which may die of it."""
    remote = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(attempt)
    return await asyncio.wait_for(remote.remote(name, path), _ATTEMPT_SECONDS)


def _failed(served: Served, error: BaseException) -> JudgesFailedError:
    return JudgesFailedError(
        f"The judges of {served.name} failed, ask again: {sentence(error).rstrip('.')}."
    )


def _problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(Problem(error=sentence).model_dump(), status, headers)


def _asked(body: bytes) -> JudgeRequest:
    try:
        return JudgeRequest.model_validate_json(body)
    except ValidationError as error:
        raise InputError(_first(error.errors())) from error


def _first(errors: Sequence[Any]) -> str:
    """The first of pydantic's complaints."""
    where = ".".join(map(str, errors[0]["loc"])) or "the request"
    return f"{where}: {errors[0]['msg'][0].lower()}{errors[0]['msg'][1:]}"


async def _body(request: Request, most: int) -> bytes:
    return b"".join([chunk async for chunk in _chunks(request, most)])


async def _chunks(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body as it comes in.

    Raises:
        TooMuchError: it is, or says that it is, longer than ``most`` bytes.
    """
    too_much = TooMuchError(f"the body is larger than {most:,} bytes")
    said = request.headers.get("Content-Length", "")
    if said.isdigit() and int(said) > most:
        raise too_much
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise too_much
        yield chunk


@asynccontextmanager
async def _uploaded(request: Request, most: int) -> AsyncIterator[Path]:
    """The body as a file, removed afterwards.

    It lies in the temporary folder (``TMPDIR``), which preparers on other machines must share.
    """
    folder = Path(tempfile.mkdtemp(prefix="cryoray-upload-"))
    try:
        stack = folder / "upload.mrcs"
        with stack.open("wb") as file:
            async for chunk in _chunks(request, most):
                file.write(chunk)
        yield stack
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answer(served: Served, chosen: Chosen, judged: Sequence[JudgedRange]) -> Verdicts:
    """All that was asked about, after a check that every row is in it once."""
    about = {"ensemble": served.digest, "threshold": repr(served.threshold)}
    planned = Verdicts.none(about).and_quarantined(chosen.quarantined)
    answer = Verdicts.together([planned, *(part.verdicts for part in judged)])
    rows = answer.table["row"].to_numpy()
    if not len(np.unique(rows)) == len(rows) == chosen.rows:
        raise InternalError(
            f"{chosen.rows} rows were asked about, and {len(rows)} judged or quarantined"
        )
    return answer.with_images(chosen.images)


def _written(answer: Verdicts, accept: str) -> Response:
    """The body in Arrow where the client asks for it, else in JSON."""
    if ARROW_TYPE in accept:
        return Response(answers.to_arrow(answer), media_type=ARROW_TYPE)
    return Response(answers.to_json(answer), media_type=JSON_TYPE)
