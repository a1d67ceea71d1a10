"""A server's parts around an engine that draws nothing: its pictures say what they were asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

import pytest
from starlette.testclient import TestClient

from aptp.core.errors import RequestError
from aptp.routing import Route
from aptp.serving.app import create_app
from aptp.serving.engine import Engine, Manner, Painting, Sketch
from aptp.serving.limits import Limits
from aptp.serving.service import Service


class Pen(Engine):
    """Sends a prompt to the expert that its length says; `batches` keeps what it drew. Held, it draws nothing."""

    name, revision, costs, size = "demo", "abc123", (0.5, 0.75), "64x64"

    def __init__(self) -> None:
        self.batches: list[tuple[Manner, list[Sketch]]] = []
        self.error: Exception | None = None
        self.refused: str | None = None
        """A prompt that no pipeline draws."""
        self.size_of_answer = 0
        """Bytes that a picture has at least."""
        self.flagged: bool | None = None
        self.held = False
        self.closed = False

    async def route(self, prompt: str) -> Route:
        expert = len(prompt) % 2
        return Route(prompt, expert, self.costs[expert], 0.1)

    async def draw(self, manner: Manner, sketches: Sequence[Sketch]) -> list[Painting]:
        while self.held:
            await asyncio.sleep(0.005)
        if self.error:
            raise self.error
        if self.refused in [sketch.prompt for sketch in sketches]:
            raise RequestError(f"no pipeline draws {self.refused!r}; ask for another.")
        self.batches.append((manner, list(sketches)))
        return [
            Painting(
                json.dumps([manner.expert, s.prompt, s.negative_prompt, s.seed]).encode().ljust(self.size_of_answer),
                self.flagged,
            )
            for s in sketches
        ]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pen() -> Pen:
    return Pen()


@pytest.fixture
def service(pen: Pen) -> Service:
    return Service(pen, Limits(batch=4, wait=0.01, queue=6, timeout=10))


@pytest.fixture
def serving(service: Service) -> Callable[..., TestClient]:
    """Makes a client of the service's application; enter it."""

    def make(**arguments: object) -> TestClient:
        return TestClient(create_app(service, **arguments), "http://localhost", raise_server_exceptions=False)

    return make
