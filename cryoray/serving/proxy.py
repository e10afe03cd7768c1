"""What an HTTP server does beyond uvicorn: it closes connections on which a request's head does not end.

uvicorn waits for the rest of a request's head for ever, and keeps as many connections as there are; each
takes a descriptor, which the service needs for files. Ray Serve's proxy is uvicorn, and Ray calls
`callback` in the proxy's process where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.middleware import Middleware
from uvicorn.protocols.http import auto

#: The variable, and what it is set to.
VARIABLE, CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "cryoray.serving.proxy.callback"
#: Seconds from a connection's, or a request's, first byte to the end of its head.
HEAD_SECONDS = 20.0
#: Connections without a request that is being answered; of more, the one that waits longest is closed.
WAITING = 256


def callback() -> list[Middleware]:
    """Have servers that are made from now on in this process close such connections."""
    auto.AutoHTTPProtocol = with_deadline(auto.AutoHTTPProtocol)
    return []


def with_deadline(protocol: Any, seconds: float = HEAD_SECONDS, most: int = WAITING) -> Any:
    """A protocol of uvicorn that closes a connection whose head does not come in time.

    Args:
        protocol: uvicorn's, of either sort.
        seconds: for the head.
        most: connections without a request; whoever has sent a whole head is never closed for another.
    """
    waiting: dict[Any, None] = {}  # in the order in which they began to

    class Deadline(protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._arm()
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._disarm()  # its head is there
                waiting.pop(self, None)
            elif self._timer is None:
                self._arm()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing() and (
                self.cycle is None or self.cycle.response_complete
            ):
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            waiting.pop(self, None)
            super().connection_lost(exc)

        def _arm(self) -> None:
            self._timer = self.loop.call_later(seconds, self._close)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _wait(self) -> None:
            waiting[self] = None
            if len(waiting) > most:
                longest = next(iter(waiting))
                del waiting[longest]
                longest._close()

        def _close(self) -> None:
            self._disarm()
            if not self.transport.is_closing():
                self.transport.close()

    return Deadline
