"""Who may come in, how many at once, and for how long a body is waited for.

Nothing waits for the network while it holds a slot: a body is there before work begins, or it is refused.
Health and metrics need no slot. Those without a token get few slots, and take none from those with one.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from hmac import compare_digest

from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cryoray.errors import CryorayError
from cryoray.protocol.messages import HEALTH, JUDGE, METRICS, STACK_TYPE, Problem
from cryoray.serving.counts import Counts
from cryoray.serving.sources import TooMuchError
from cryoray.session.ledger import Ledger

#: A request in JSON is a path and two numbers, a form two names.
SMALL_BYTES = 64 << 10
#: Seconds for a small body, and in which a stack has to bring `BODY_BYTES` for each.
BODY_SECONDS, BODY_BYTES = 10.0, 64 << 10
#: Requests of pages at once; and small bodies that are waited for at once, of whoever. Each holds a
#: descriptor, of which a process often has 1,024.
_PAGES, _BODIES = 16, 256
#: These have to answer when nothing else does.
_ALWAYS = (HEALTH, METRICS)


class UnknownError(CryorayError):
    """There is no token, or a wrong one."""


class FullError(CryorayError):
    """The service has enough to do."""


class SlowError(CryorayError):
    """A body did not come."""


class Bearer(HTTPBearer):
    """Tells by its token who asks; the dependency of every route that is not public.

    A session's token may ask for judgements in that session's folder, and which ensembles there are.
    ``request.state.session`` is its session, None for the operator.

    Args:
        token: the operator's.
        ledger: knows the sessions' tokens; None where there are none.
        sessions: whether a session's token will do.
    """

    def __init__(self, token: str, ledger: Ledger | None, *, sessions: bool) -> None:
        super().__init__(auto_error=False, scheme_name="HTTPBearer", description="A token.")
        self._token, self._ledger, self._sessions = token.encode(), ledger, sessions
        # Threads of their own: those who come with wrong tokens take none from those who were let in.
        self._threads = ThreadPoolExecutor(4, "tokens")

    async def __call__(self, request: HTTPConnection) -> HTTPAuthorizationCredentials | None:
        """Let a request in.

        Raises:
            UnknownError: there is no token, or a wrong one.
        """
        given = await super().__call__(request)
        word = given.credentials.strip() if given is not None else ""
        request.state.session = None
        if not compare_digest(word.encode(), self._token):
            if word and self._sessions and self._ledger is not None:
                loop = asyncio.get_running_loop()
                request.state.session = await loop.run_in_executor(
                    self._threads, self._ledger.scope, word
                )
            if request.state.session is None:
                raise UnknownError("This service needs its bearer token.")
        return given


class Doors:
    """The outermost layer of the application: bodies with a deadline, pages by number, and the way out.

    Args:
        app: the application.
        counts: where every answer is counted, of pages too.
    """

    def __init__(self, app: ASGIApp, counts: Counts) -> None:
        self._app, self._counts = app, counts
        self._pages = 0
        self._bodies: dict[
            asyncio.Timeout, None
        ] = {}  # in the order in which they began to be waited for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        counts = self._counts
        if scope["path"] in _ALWAYS:
            return await self._app(scope, _nothing_of(receive), send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                counts.requests.labels(str(message["status"])).inc()
                if counts.draining:
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        if counts.draining:
            problem = refusal(503, "The service is being stopped.", {"Retry-After": "5"})
            return await problem(scope, receive, counted)
        with counts.here():
            await self._within(scope, receive, counted)
        return None

    async def _within(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["path"] == JUDGE and kind == STACK_TYPE.encode():
            # Taken piece by piece, by a route that has looked at the token before.
            return await self._app(scope, _with_deadline(receive), send)
        try:
            body = await self._body(receive, headers.get(b"content-length", b""))
            if not scope["path"].startswith("/v1") or scope["path"].startswith("/v1/sessions"):
                return await self._page(scope, _given(body, receive), send)
            return await self._app(scope, _given(body, receive), send)
        except FullError as error:
            problem = refusal(429, str(error), {"Retry-After": "1"})
        except SlowError as error:
            problem = refusal(408, str(error), {"Connection": "close"})
        except TooMuchError as error:
            problem = refusal(413, str(error), {"Connection": "close"})
        except _GoneError:
            return None
        return await problem(scope, receive, send)

    async def _body(self, receive: Receive, length: bytes) -> bytes:
        """A small body; where too many are waited for, the one that began first is given up.

        Raises:
            TooMuchError: it is larger.
            SlowError: it does not come in time, or others need its place.
            _GoneError: it will not come.
        """
        limit = asyncio.timeout(BODY_SECONDS)
        if len(self._bodies) >= _BODIES:
            first = next(iter(self._bodies))
            del self._bodies[first]
            first.reschedule(asyncio.get_running_loop().time())
        try:
            async with limit:
                self._bodies[limit] = None
                return await _whole(receive, length)
        except TimeoutError:
            raise SlowError(f"The body did not come within {BODY_SECONDS:g} seconds.") from None
        finally:
            self._bodies.pop(limit, None)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a page; its place is free again before anybody has to read it.

        Raises:
            FullError: there is no place.
        """
        if self._pages >= _PAGES:
            raise FullError("The service is full; ask again later.")
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        self._pages += 1
        try:
            await self._app(scope, receive, keep)
        finally:
            self._pages -= 1
        for message in answer:
            await send(message)


class _GoneError(Exception):
    """Whoever asked has gone."""


def refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says what is wrong."""
    return JSONResponse(Problem(error=sentence).model_dump(), status, headers)


async def _whole(receive: Receive, length: bytes) -> bytes:
    """A small body.

    Raises:
        TooMuchError: it is larger.
        _GoneError: it will not come.
    """
    too_much = TooMuchError(f"the body is larger than {SMALL_BYTES:,} bytes")
    if length.isdigit() and int(length) > SMALL_BYTES:
        raise too_much
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        body += message.get("body", b"")
        if len(body) > SMALL_BYTES:
            raise too_much
        if not message.get("more_body"):
            return bytes(body)


def _given(body: bytes, receive: Receive) -> Receive:
    """A body that is there already, and then whatever else is heard of the client."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return first.pop() if first else await receive()

    return next_message


def _nothing_of(receive: Receive) -> Receive:
    """No body, whatever is sent."""
    return _given(b"", receive)


def _with_deadline(receive: Receive) -> Receive:
    """A body that has to keep coming: whoever waits has some patience, and every byte renews a bit of it."""
    more, patience = True, BODY_SECONDS

    async def next_message() -> Message:
        nonlocal more, patience
        if not more:
            return await receive()
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            async with asyncio.timeout(patience):
                message = await receive()
        except TimeoutError:
            raise SlowError(
                f"The body came slower than {BODY_BYTES >> 10} KiB a second for {BODY_SECONDS:g} seconds."
            ) from None
        patience += len(message.get("body", b"")) / BODY_BYTES - (clock() - begun)
        patience = min(patience, BODY_SECONDS)
        more = bool(message.get("more_body"))
        return message

    return next_message
