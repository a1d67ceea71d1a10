"""The same application on a Ray cluster: each expert has replicas of its own. Needs the extra `aptp[ray]`.

serve run aptp.serving.replicas:application run=runs/demo replicas=2
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from pydantic import Field
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from aptp.bundle import Bundle, load_finished
from aptp.core.options import Options
from aptp.host import default_host
from aptp.pipeline import RoutedPipeline
from aptp.publishing import find_bundle
from aptp.routing import Route, read, route
from aptp.serving.access import read_key
from aptp.serving.app import create_app
from aptp.serving.engine import Engine, LocalEngine, Manner, Painting, Sketch, revision_of
from aptp.serving.limits import Dtype, Limits
from aptp.serving.service import Service

DEFAULT = Limits()


class Settings(Options):
    """What an application is asked for; `serve run` takes these as NAME=VALUE."""

    run: str = Field(description="folder of a finished run or a bundle, as all nodes see it, or a hub name")
    replicas: int = Field(1, ge=1, description="of each expert")
    cpus: float = Field(1, ge=0, description="of a replica, and of the front")
    gpus: float = Field(0, ge=0, description="of a replica")
    batch: int = Field(DEFAULT.batch, ge=1, description="pictures drawn at a time by a replica")
    wait: float = Field(DEFAULT.wait, ge=0, description="seconds that a picture waits, at most, for others")
    queue: int = Field(DEFAULT.queue, ge=DEFAULT.max_count, description="pictures taken and not yet answered")
    timeout: float = Field(DEFAULT.timeout, gt=0, description="seconds from a request to its answer")
    dtype: Dtype = Field("float32", description="what pictures are drawn in")
    fallback_margin: float = Field(0, ge=0, description="prompts whose lead is under it go to the dense model")


class Hand:
    """A replica of one expert. It holds the dense model, too: a pipeline has it."""

    def __init__(self, run: str, expert: int, dtype: Dtype) -> None:
        self.engine = LocalEngine(RoutedPipeline.from_pretrained(run, dtype=getattr(torch, dtype)), run)
        self.engine.pipe.expert(expert)  # before the first request

    async def draw(self, manner: Manner, sketches: Sequence[Sketch]) -> list[Painting]:
        """One a sketch, in their order."""
        return await self.engine.draw(manner, sketches)

    async def size(self) -> str:
        """Of its pictures, as WIDTHxHEIGHT."""
        return self.engine.size


class Distributed(Engine):
    """Routes here, and has each batch drawn by a replica of its expert; the last one's have the dense model's."""

    def __init__(
        self, bundle: Bundle, name: str, size: str, hands: Sequence[DeploymentHandle], settings: Settings
    ) -> None:
        self.bundle, self.name, self.size, self.hands, self.width = bundle, name, size, hands, settings.replicas
        self.revision, self.costs, self.fallback_margin = (
            revision_of(bundle),
            bundle.fractions,
            settings.fallback_margin,
        )
        self._router = ThreadPoolExecutor(1, "aptp-route")

    def lane(self, manner: Manner) -> int:
        return manner.expert % len(self.hands)

    async def route(self, prompt: str) -> Route:
        (found,) = await asyncio.get_running_loop().run_in_executor(
            self._router, lambda: route(self.bundle, read(self.bundle, [prompt]), self.fallback_margin)
        )
        return found

    async def draw(self, manner: Manner, sketches: Sequence[Sketch]) -> list[Painting]:
        try:
            return await self.hands[self.lane(manner)].draw.remote(manner, sketches)
        except RayTaskError as error:
            raise error.cause from error

    def close(self) -> None:
        self._router.shutdown(wait=False, cancel_futures=True)


@serve.ingress()
class Front:
    """Takes requests on, routes them, and makes batches. There is one: it knows all that wait."""

    async def __init__(  # type: ignore[misc]
        self, settings: Settings, name: str, hands: Sequence[DeploymentHandle]
    ) -> None:
        bundle, size = load_finished(find_bundle(settings.run), default_host()), await hands[0].size.remote()
        engine = Distributed(bundle, name, size, hands, settings)
        limits = Limits(batch=settings.batch, wait=settings.wait, queue=settings.queue, timeout=settings.timeout)
        self.service = Service(engine, limits)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self.service, key=read_key(None))


def application(settings: Settings) -> Application:
    """The application for `serve run`, `serve build` and `ray.serve.run`.

    An API key is read from `APTP_API_KEY` on the node of the front; without one, requests must name `localhost`.
    """
    folder, name = find_bundle(settings.run), settings.run
    if Path(name).expanduser().is_dir():
        name = folder.resolve().name
    else:  # a replica that starts later must not get what the hub has by then: the folder is named by its commit
        settings = settings.model_copy(update={"run": f"{name.split('@')[0]}@{folder.name}"})
    bundle = load_finished(folder, default_host())
    options = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
    hand = serve.deployment(Hand, num_replicas=settings.replicas, max_ongoing_requests=1, ray_actor_options=options)
    hands = [
        hand.options(name=f"expert-{index:02d}").bind(settings.run, index, settings.dtype)
        for index in range(len(bundle.fractions))
    ]
    front = serve.deployment(
        Front, max_ongoing_requests=settings.queue + 100, ray_actor_options={"num_cpus": settings.cpus}
    )
    return front.options(name="front").bind(settings, name, hands)
