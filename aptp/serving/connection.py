"""One client's connection, which lasts no longer than it is used."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from aptp.serving.errors import Refusal
from aptp.serving.limits import Limits


class Connection(H11Protocol):
    """uvicorn's, with the bounds that it lacks: on the connections there are, on the time until a request's head is
    whole, whether it is the first of its connection or a later one, and on the time in which an answer is fetched.

    Args:
        limits: `connections`, `reading` and `timeout` are those bounds.
        given: what uvicorn gives.
    """

    def __init__(self, *, limits: Limits, **given: Any) -> None:
        super().__init__(**given)
        self.limits = limits
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._turn_away()
        else:
            self._wait(self.limits.reading)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle and not self.cycle.response_complete:
            self._wait(None)

    def on_response_complete(self) -> None:
        held = bool(self.transport.get_write_buffer_size())
        self._wait(self.limits.timeout if held else self.limits.reading)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        super().connection_lost(exc)

    def _wait(self, seconds: float | None) -> None:
        """Close the connection after so many seconds; with None, do not."""
        if self._end:
            self._end.cancel()
        self._end = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _turn_away(self) -> None:
        message = f"{self.limits.connections} connections are open already; ask again later."
        answer = Refusal(503, message, "too_many_connections", retry_after=1).response()
        fields = [*answer.raw_headers, (b"connection", b"close")]
        head = [b"HTTP/1.1 503 Service Unavailable", *(b": ".join(field) for field in fields), b"", b""]
        self.transport.write(b"\r\n".join(head) + bytes(answer.body))
        self.transport.close()
