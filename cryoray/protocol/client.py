"""A client of the service, for watchers, flows and people's scripts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from cryoray.errors import CryorayError, InputError
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
    JudgeRequest,
    Message,
    Problem,
    ProfileRequest,
    ShadowReport,
)
from cryoray.protocol.network import by_proxy
from cryoray.protocol.token import find_token
from cryoray.records import Verdicts

M = TypeVar("M", bound=Message)

#: What a connection looks like whose other end died; one that is only late is not asked again.
_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
#: Before what was lost is asked once more.
_AGAIN_SECONDS = 1.0

#: Arrow, which takes a tenth of the time to write and read; a service without it answers in JSON.
_ANSWERS = f"{ARROW_TYPE}, {JSON_TYPE};q=0.5"


class UnreachableError(InputError):
    """Nothing answers where a service was expected."""


class RefusedError(InputError):
    """The service answered that it will not.

    Attributes:
        status: of HTTP, 400 to 499.
    """

    status = 400


class Client:
    """Talks to one service; safe to use from several threads.

    "Full" (429) is tried again after the time that the service asks for. What was under way when a node of
    the service died is asked once more: judging changes nothing, so the answer is the same.

    Args:
        url: of the service.
        token: None looks it up (`protocol.token.find_token`).
        timeout: seconds for one answer; more than the service gives itself.
        patience: seconds after which a full service is given up.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        *,
        timeout: float = 900.0,
        patience: float = 600.0,
    ) -> None:
        self.url = url.rstrip("/")
        self._patience = patience
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {find_token(token)}"},
            timeout=httpx.Timeout(timeout, connect=10.0),
            trust_env=by_proxy(self.url),
        )

    def judge(
        self,
        source: str | Path,
        rows: tuple[int, int] | None = None,
        *,
        ensemble: str | None = None,
        profile: Mapping[str, Any] | None = None,
    ) -> Verdicts:
        """Judge rows of a STAR file or stack that the service sees under the same path.

        Args:
            source: path; a relative one is meant from here.
            rows: (first, end), 0-based, end excluded; None for all.
            ensemble: name of one of the service's; None for its first.
            profile: of the project (see `profile`); None: judge without one.

        Returns:
            verdicts by row of the source, with the column `image`.

        Raises:
            RefusedError: the service refused, in its own words.
            UnreachableError: nothing answers.
            CryorayError: the service failed, or stayed full for longer than ``patience``.
        """
        some = None if rows is None else (int(rows[0]), int(rows[1]))
        request = JudgeRequest(
            source=_absolute(source),
            rows=some,
            ensemble=ensemble,
            profile=None if profile is None else dict(profile),
        )
        body = request.model_dump_json()
        headers = {"Content-Type": JSON_TYPE, "Accept": _ANSWERS}
        return self._verdicts(lambda: self._http.post(JUDGE, content=body, headers=headers))

    def profile(
        self, source: str | Path | Sequence[str | Path], *, ensemble: str | None = None
    ) -> dict[str, Any]:
        """The profile of the project whose images are a source's, as `profile.json` has it.

        Args:
            source: path of all of the project; a relative one is meant from here. Or several, at most
                `messages.MOST_SOURCES`, of which those that cannot be read are left out.
            ensemble: name of one of the service's; None for its first.

        Raises:
            RefusedError: the service refused, as where the ensemble cannot judge by a profile.
            UnreachableError: nothing answers.
            CryorayError: the service failed, or stayed full for longer than ``patience``.
        """
        if isinstance(source, str | Path):
            asked = ProfileRequest(source=_absolute(source), ensemble=ensemble)
        else:
            asked = ProfileRequest(sources=tuple(map(_absolute, source)), ensemble=ensemble)
        body, headers = asked.model_dump_json(), {"Content-Type": JSON_TYPE}
        response = self._successful(
            lambda: self._http.post(PROFILES, content=body, headers=headers)
        )
        made: dict[str, Any] = response.json()
        return made

    def judge_upload(self, stack: Path | bytes, *, ensemble: str | None = None) -> Verdicts:
        """Send a whole `.mrcs` file, or its bytes, and have all its images judged.

        Raises:
            RefusedError: the service refused, in its own words.
            UnreachableError: nothing answers.
            CryorayError: the service failed, or stayed full for longer than ``patience``.
        """
        query = {} if ensemble is None else {"ensemble": ensemble}
        headers = {"Content-Type": STACK_TYPE, "Accept": _ANSWERS}

        def send() -> httpx.Response:
            if isinstance(stack, bytes):
                return self._http.post(JUDGE, content=stack, headers=headers, params=query)
            with stack.open("rb") as file:
                size = {"Content-Length": str(stack.stat().st_size)}
                return self._http.post(
                    JUDGE, content=file, headers={**headers, **size}, params=query
                )

        return self._verdicts(send)

    def ensembles(self) -> Ensembles:
        """Which ensembles judge now, and what happened to them.

        Raises:
            RefusedError: the service refused, in its own words.
            UnreachableError: nothing answers.
            CryorayError: the service failed.
        """
        return self._answer(lambda: self._http.get(ENSEMBLES), Ensembles)

    def shadow(self) -> ShadowReport:
        """How the shadow ensemble compares with those that answer.

        Raises:
            RefusedError: the service refused, in its own words.
            UnreachableError: nothing answers.
            CryorayError: the service failed.
        """
        return self._answer(lambda: self._http.get(SHADOW), ShadowReport)

    def metrics(self) -> str:
        """What the service has counted, as Prometheus reads it.

        Raises:
            UnreachableError: nothing answers.
            CryorayError: the service failed.
        """
        return self._successful(lambda: self._http.get(METRICS)).text

    def healthy(self) -> bool:
        """Whether a request would be judged now; False where nothing answers."""
        try:
            return self._http.get(HEALTH, timeout=10.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _verdicts(self, send: Callable[[], httpx.Response]) -> Verdicts:
        response = self._successful(send)
        return answers.read(response.content, response.headers.get("Content-Type", ""))

    def _answer(self, send: Callable[[], httpx.Response], kind: type[M]) -> M:
        return kind.model_validate_json(self._successful(send).content)

    def _successful(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        until = time.monotonic() + self._patience
        again = True
        while True:
            try:
                response = send()
                if again and _lost(response):
                    again = False
                    time.sleep(_AGAIN_SECONDS)
                    continue
            except _BROKEN as error:
                if again:
                    again = False
                    time.sleep(_AGAIN_SECONDS)
                    continue
                raise CryorayError(f"The connection to {self.url} broke: {error!r}.") from error
            except httpx.ConnectError as error:
                raise UnreachableError(
                    f"no service answers at {self.url}", remedy="start one with `cryoray serve`"
                ) from error
            except httpx.TransportError as error:
                raise CryorayError(f"The connection to {self.url} broke: {error!r}.") from error
            if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                break
            wait = _seconds(response.headers.get("Retry-After"))
            if time.monotonic() + wait > until:
                break
            time.sleep(wait)
        if response.status_code == httpx.codes.OK:
            return response
        raise _failure(response)


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


def _lost(response: httpx.Response) -> bool:
    """Whether a proxy says that whoever was to answer is gone: the service itself says what is wrong."""
    if response.status_code not in (500, 502, 503):
        return False
    try:
        Problem.model_validate_json(response.content)
    except ValidationError:
        return True
    return False


def _failure(response: httpx.Response) -> CryorayError:
    sentence = _sentence(response)
    # What was asked cannot be had; it failing at the other end, being full or late, is nobody's input.
    passing = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT)
    if response.is_client_error and response.status_code not in passing:
        refused = RefusedError(sentence.removesuffix("."))
        refused.status = response.status_code
        return refused
    return CryorayError(sentence)


def _seconds(retry_after: str | None) -> float:
    try:
        return max(0.1, float(retry_after or 1.0))
    except ValueError:  # a date, which our service never sends but a proxy before it may
        return 1.0


def _sentence(response: httpx.Response) -> str:
    try:
        return Problem.model_validate_json(response.content).error
    except ValidationError:
        return f"{response.url} answered {response.status_code} {response.reason_phrase}."
