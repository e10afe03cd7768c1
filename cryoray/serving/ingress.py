"""The deployment that speaks HTTP: who may ask, what was asked, and the answer in the contract's words."""
# No `from __future__ import annotations` here: FastAPI reads the annotations of functions made below.

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Protocol

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from ray.serve.handle import DeploymentHandle

from cryoray.errors import CryorayError, InputError, InternalError, SettingsError
from cryoray.protocol.messages import (
    HEALTH,
    JUDGE,
    METRICS,
    STACK_TYPE,
    JudgeAnswer,
    JudgedRow,
    JudgeRequest,
    Problem,
    QuarantinedRow,
)
from cryoray.records import Kind, RowRange
from cryoray.serving.counts import Counts
from cryoray.serving.replica import Judged
from cryoray.serving.sources import AbsentError, Catalogue, Chosen, OutsideError, TooMuchError
from cryoray.settings import PreparationSettings, ServeSettings

#: A request in JSON is a path and two numbers.
_JSON_BYTES = 64 << 10
_HEALTH_SECONDS = 5.0
_STATUS: Mapping[type[CryorayError], int] = {OutsideError: 403, AbsentError: 404, TooMuchError: 413}


@dataclass(frozen=True, slots=True)
class Served:
    """An ensemble as the ingress knows it: everything but its weights."""

    path: Path
    digest: str
    kind: Kind
    preparation: PreparationSettings


class Judging(Protocol):
    """Whatever prepares and judges for the ingress."""

    async def judge(
        self, name: str, preparation: PreparationSettings, ranges: Sequence[RowRange]
    ) -> list[Judged]:
        """Judge ranges with the ensemble of this name."""

    async def ready(self) -> bool:
        """Whether a request would be judged now."""


def create(settings: ServeSettings, ensembles: Mapping[str, Served], judging: Judging) -> FastAPI:
    """The HTTP application.

    Args:
        settings: with its token and roots.
        ensembles: by name; the first is the default.
        judging: does the work.

    Raises:
        SettingsError: there is no token.
    """
    app = FastAPI(title="cryoray", docs_url=None, redoc_url=None)
    catalogue = Catalogue(settings.roots, settings.max_rows)
    if not settings.token:
        raise SettingsError("a service needs a token", remedy="set CRYORAY_TOKEN")
    token = settings.token.encode()
    counts = Counts()

    @app.middleware("http")
    async def admit(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if not request.url.path.startswith("/v1"):
            return await call_next(request)
        response = await admitted(request, call_next)
        counts.requests.labels(str(response.status_code)).inc()
        return response

    async def admitted(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not compare_digest(given.strip().encode(), token):
            return _problem(
                401,
                "A bearer token is needed, the one of this service.",
                {"WWW-Authenticate": "Bearer"},
            )
        if counts.waiting >= settings.max_queued:
            return _problem(429, "The service is full; ask again later.", {"Retry-After": "1"})
        with counts.in_flight():
            return await call_next(request)

    @app.exception_handler(CryorayError)
    async def refuse(request: Request, error: CryorayError) -> Response:
        status = _STATUS.get(type(error), 422 if isinstance(error, InputError) else 500)
        return _problem(status, str(error))

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return _problem(500, f"This is our fault, not yours: {type(error).__name__}: {error}.")

    @app.get(HEALTH, responses={503: {"model": Problem}})
    async def healthy() -> Response:
        """200 when a request would be judged now, 503 when not."""
        if await judging.ready():
            return JSONResponse({"status": "ok"})
        return _problem(503, "The judges or the preparers do not answer.")

    @app.get(METRICS)
    async def metrics() -> Response:
        """What this ingress has counted, for Prometheus."""
        return Response(generate_latest(counts.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post(
        JUDGE,
        response_model=JudgeAnswer,
        responses={status: {"model": Problem} for status in (401, 403, 404, 413, 415, 422, 429)},
        openapi_extra={
            "requestBody": {
                "content": {
                    "application/json": {"schema": JudgeRequest.model_json_schema()},
                    STACK_TYPE: {"schema": {"type": "string", "format": "binary"}},
                }
            }
        },
    )
    async def judge(request: Request, ensemble: Annotated[str | None, Query()] = None) -> Response:
        """Judge rows of a source under the roots, or all images of the `.mrcs` file in the body."""
        kind_of_body = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind_of_body == "application/json":
            asked = _asked(await _body(request, _JSON_BYTES))
            return await answer(catalogue, asked.source, asked.rows, asked.ensemble or ensemble)
        if kind_of_body == STACK_TYPE:
            async with _uploaded(request, settings.max_upload_mib << 20) as stack:
                itself = Catalogue((stack.parent,), settings.max_rows)
                return await answer(itself, stack.name, None, ensemble)
        return _problem(415, f"Send application/json, or a stack as {STACK_TYPE}.")

    async def answer(
        where: Catalogue, source: str, rows: tuple[int, int] | None, ensemble: str | None
    ) -> Response:
        name = ensemble or next(iter(ensembles))
        if name not in ensembles:
            raise InputError(
                f"there is no ensemble {name!r} here", remedy=f"take one of {', '.join(ensembles)}"
            )
        served = ensembles[name]
        chosen = await asyncio.to_thread(
            where.choose, source, rows, served.kind, served.preparation, settings.batch
        )
        judged = await judging.judge(name, served.preparation, chosen.ranges)
        body = await asyncio.to_thread(_answer, served.digest, chosen, judged)
        counts.count(name, chosen, judged)
        return Response(body, media_type="application/json")

    return app


class Ingress:
    """The application on Ray Serve.

    Args:
        settings: with its token and roots.
        ensembles: by name.
        preparer: the deployment of preparers.
        judges: the deployment of judges, by name of ensemble.
    """

    def __init__(
        self,
        settings: ServeSettings,
        ensembles: Mapping[str, Served],
        preparer: DeploymentHandle,
        judges: Mapping[str, DeploymentHandle],
    ) -> None:
        self.settings, self.ensembles = settings, ensembles
        self.preparer, self.judges = preparer, judges
        # As many ranges under way as keep everyone busy; more would only fill the object store.
        self._slots = asyncio.Semaphore(2 * (settings.preparers + settings.judges * len(judges)))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create(self.settings, self.ensembles, self)

    async def judge(
        self, name: str, preparation: PreparationSettings, ranges: Sequence[RowRange]
    ) -> list[Judged]:
        """Have ranges prepared and judged."""

        async def one(part: RowRange) -> Judged:
            async with self._slots:
                # The response is handed on unread: its pixels go from preparer to judge directly.
                return await self.judges[name].remote(self.preparer.remote(part, preparation))

        return list(await asyncio.gather(*map(one, ranges)))

    async def ready(self) -> bool:
        """Whether the preparers and all ensembles' judges answer."""
        handles = (self.preparer, *self.judges.values())
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                await asyncio.gather(*(handle.ready.remote() for handle in handles))
        except Exception:
            return False
        return True


def _problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(Problem(error=sentence).model_dump(), status, headers)


def _asked(body: bytes) -> JudgeRequest:
    try:
        return JudgeRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the request"
        raise InputError(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


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


def _answer(digest: str, chosen: Chosen, judged: Sequence[Judged]) -> bytes:
    """The body of the answer, after a check that every row is in it once."""
    verdicts = [
        JudgedRow.model_construct(
            row=row,
            image=chosen.images[row],
            score=score,
            verdict=verdict,
            d1=d1,
            d2=d2,
            d3=None if d3 != d3 else d3,
            reason=None,
        )
        for part in judged
        for row, score, verdict, d1, d2, d3 in zip(
            part.rows.tolist(),
            part.judgement.score.tolist(),
            part.judgement.verdict.tolist(),
            part.judgement.d1.tolist(),
            part.judgement.d2.tolist(),
            part.judgement.d3.tolist(),
            strict=True,
        )
    ]
    quarantined = [*chosen.quarantined, *(entry for part in judged for entry in part.quarantined)]
    rows = {entry.row for entry in verdicts} | {row for row, _ in quarantined}
    if not len(rows) == len(verdicts) + len(quarantined) == chosen.rows:
        raise InternalError(
            f"{chosen.rows} rows were asked about, {len(verdicts)} judged, {len(quarantined)} quarantined"
        )
    return (
        JudgeAnswer.model_construct(
            ensemble=digest,
            verdicts=sorted(verdicts, key=lambda entry: entry.row),
            quarantined=[
                QuarantinedRow.model_construct(row=row, reason=reason)
                for row, reason in sorted(quarantined)
            ],
        )
        .model_dump_json()
        .encode()
    )
