"""Runs a server, and stops it gracefully."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from aptp.serving.connection import Connection
from aptp.serving.service import Service

BACKLOG = 1024
FLUSHING = 5
"""Seconds for the last answers to leave, once they are drawn, and then for a batch that nobody waits for to end."""


class Server(uvicorn.Server):
    """Stops gracefully at the first SIGTERM or SIGINT: refuses what is new, answers what it took, then leaves.

    A second signal, or `timeout` seconds, end the waiting; it does not wait for the engine, whose batch may never end.
    """

    def __init__(self, app: ASGIApp, service: Service, say: Callable[[str], None]) -> None:
        config = uvicorn.Config(
            app,
            http=partial(Connection, limits=service.limits),  # type: ignore[arg-type]  # called as a class is
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=FLUSHING,
        )
        super().__init__(config)
        self.service, self.say = service, say
        self._ticks_left = int(service.limits.timeout * 10)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where it can be reached once it can."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        engine = self.service.engine
        self.say(f"serving {engine.name}, revision {engine.revision[:12]}, at http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Close at the first signal, leave at the second."""
        if self.service.closing:
            self.should_exit = self.force_exit = True
        self.service.closing = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does it; the application is told of the end after a second signal, too."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to leave."""
        if self.service.closing:
            self._ticks_left -= 1
            self.should_exit = self.should_exit or not self.service.taken or self._ticks_left < 0
        return await super().on_tick(counter)
