"""The HTTP server of every page and service: uvicorn, that gives up connections on which nothing moves.

uvicorn waits for the rest of a request's head, and for whoever does not read an answer, for ever, and keeps
as many connections as there are; each takes a descriptor, which the process needs for files.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

#: Seconds from a connection's, or a request's, first byte to the end of its head; and in which an answer that
#: fills the connection's buffers has to move on by `LEAST_BYTES` for each.
HEAD_SECONDS = 20.0
LEAST_BYTES = 16 << 10
#: Connections on which nothing moves, for want of a request or of a reader; of more, the one that waits
#: longest is closed.
WAITING = 256
#: How often in `HEAD_SECONDS` it is looked whether an answer is being read.
_LOOKS = 10


def config(app: Any, **how: Any) -> uvicorn.Config:
    """The configuration of a server of ours.

    Args:
        app: the ASGI application.
        how: whatever else `uvicorn.Config` takes.
    """
    return uvicorn.Config(
        app, **{"http": with_deadline(AutoHTTPProtocol), "access_log": False, **how}
    )


def with_deadline(protocol: Any, seconds: float = HEAD_SECONDS, most: int = WAITING) -> Any:
    """A protocol of uvicorn that closes connections on which nothing moves.

    Args:
        protocol: uvicorn's, of either sort.
        seconds: for a request's head, and for an answer to be read on.
        most: connections on which nothing moves. Whoever has sent a whole head, and reads its answer, is
            never closed for another.
    """
    waiting: dict[Any, None] = {}  # in the order in which they began to

    class Deadline(protocol):
        _timer: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # Writing pauses as soon as anything waits for the reader, and goes on when nothing does.
            transport.set_write_buffer_limits(high=0)
            self._arm()
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._disarm()  # its head is there
                if self._reading is None:
                    waiting.pop(self, None)
            elif self._timer is None:
                self._arm()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing() and (
                self.cycle is None or self.cycle.response_complete
            ):
                self._wait()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._look(self.transport.get_write_buffer_size(), 0)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._read_on()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            self._read_on()
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

        def _look(self, left: int, looks: int) -> None:
            """Look again whether what is left of an answer is read, ``looks`` after the first time."""
            self._reading = self.loop.call_later(
                seconds / _LOOKS, self._still_reading, left, looks + 1
            )

        def _still_reading(self, left: int, looks: int) -> None:
            now = self.transport.get_write_buffer_size()
            if left - now >= LEAST_BYTES * seconds * looks / _LOOKS:
                self._look(now, 0)
            elif looks >= _LOOKS:
                self.transport.abort()
            else:
                if now == left and self not in waiting:
                    self._wait()
                self._look(left, looks)

        def _read_on(self) -> None:
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None
                waiting.pop(self, None)

        def _close(self) -> None:
            self._disarm()
            if self.transport.is_closing():
                return
            if self.transport.get_write_buffer_size():
                self.transport.abort()  # else it would wait for the reader all the same
            else:
                self.transport.close()

    return Deadline
