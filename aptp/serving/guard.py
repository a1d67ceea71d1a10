"""What stands before every endpoint: who may ask, bounds of bodies, headers of every answer, the count."""

from __future__ import annotations

import asyncio
import hmac
import time
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aptp.serving.errors import Refusal
from aptp.serving.limits import Limits
from aptp.serving.metrics import Metrics

OPEN = ("/", "/health/live", "/health/ready")
"""Paths that need no key: the page, which holds no secret, and what an orchestrator probes."""
IMAGES = "/v1/images/generations"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer that does not set its own."""


class Guard:
    """An application behind a guard.

    Args:
        app: what is guarded.
        key: what a request must carry as `Authorization: Bearer`. Without one, the server is for this machine alone,
            and a request must name it as its host: so no page of the web can reach it under a name of its own (DNS
            rebinding).
        hosts: the names of this machine that a request without key may use.
        revision: goes into every answer.
        limits: bound a request's body in size and time.
    """

    def __init__(
        self, app: ASGIApp, *, key: str | None, hosts: frozenset[str], revision: str, limits: Limits, metrics: Metrics
    ) -> None:
        self.app, self.hosts, self.limits, self.metrics = app, hosts, limits, metrics
        self._key = key.encode() if key else None
        self._headers = HEADERS | {"X-Aptp-Revision": revision}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        counted = scope["path"] == IMAGES and scope["method"] == "POST"

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if counted:
                    self.metrics.requests.labels(str(message["status"])).inc()
                    self.metrics.request_seconds.observe(time.perf_counter() - begun)
            await send(message)

        if refusal := self._refusal(scope["path"], Headers(scope=scope)):
            await refusal.response()(scope, receive, answer)
        else:
            await self.app(scope, self._bounded(receive), answer)

    def _refusal(self, path: str, headers: Headers) -> Refusal | None:
        """Why a request may not come in, if so."""
        if self._key is not None:
            if path in OPEN or hmac.compare_digest(_bearer(headers), self._key):
                return None
            return Refusal(401, "this server needs its API key, as 'Authorization: Bearer KEY'.", "invalid_api_key")
        with suppress(ValueError):  # what is no host at all
            if urlsplit(f"//{headers.get('host', '')}").hostname in self.hosts:
                return None
        return Refusal(403, "this server is for its own machine, under the name 'localhost'.", "wrong_host")

    def _bounded(self, receive: Receive) -> Receive:
        """`receive`, with bounds on the size of the body and on the time until it is whole."""
        end, size, whole = time.monotonic() + self.limits.reading, 0, False

        async def bounded() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except TimeoutError:
                raise Refusal(408, "the request's body did not come in time.", "timeout") from None
            size += len(message.get("body", b""))
            if size > self.limits.body:
                raise Refusal(413, f"the request has over {self.limits.body:,} bytes, the most taken.", "too_large")
            whole = not message.get("more_body", False)
            return message

        return bounded


def _bearer(headers: Headers) -> bytes:
    """The key that a request carries, or nothing."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode() if scheme.lower() == "bearer" else b""
