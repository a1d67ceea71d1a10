"""What draws: a routed pipeline behind two threads, one that routes and one that draws."""

from __future__ import annotations

import asyncio
import io
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from aptp.api import denoiser_of
from aptp.bundle import CALIBRATION, Bundle
from aptp.core.errors import RequestError
from aptp.core.manifest import Manifest, may_travel, sha256
from aptp.models import quietly
from aptp.pipeline import RoutedPipeline
from aptp.routing import DENSE, Route


@dataclass(frozen=True)
class Manner:
    """What the pictures of a batch have in common."""

    expert: int
    steps: int
    guidance: float | None
    avoiding: bool
    """Whether its pictures have negative prompts; without one, the pipeline's own holds."""


@dataclass(frozen=True)
class Sketch:
    """What a picture of a batch has for itself."""

    prompt: str
    negative_prompt: str | None
    seed: int


@dataclass(frozen=True)
class Painting:
    """A picture of a batch."""

    png: bytes
    flagged: bool | None
    """What the base pipeline's safety checker says of it; None where there is none."""


class Engine(ABC):
    """Routes prompts and draws batches. `name` and `revision` say of what; `costs` has one entry an expert."""

    name: str
    revision: str
    costs: Sequence[float]
    size: str
    """Of its pictures, as WIDTHxHEIGHT."""
    width: int = 1
    """How many batches of a lane it draws at once."""

    def cost(self, expert: int) -> float:
        """Of an expert, or of the dense model, as a fraction of dense."""
        return 1.0 if expert == DENSE else self.costs[expert]

    def lane(self, manner: Manner) -> Hashable:
        """Where a batch is drawn; here all batches are drawn in one place."""
        return None

    @abstractmethod
    async def route(self, prompt: str) -> Route:
        """Where a prompt goes."""

    @abstractmethod
    async def draw(self, manner: Manner, sketches: Sequence[Sketch]) -> list[Painting]:
        """One a sketch, in their order. Raises `RequestError` where the pipeline refuses what some of them ask."""

    def hangs(self, seconds: float) -> bool:
        """Whether something has been under way for more than so many seconds; here that is not known."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Begin nothing more. What is under way goes on; this does not wait for it."""


class LocalEngine(Engine):
    """A pipeline of this process. It draws one batch at a time; prompts are routed beside that.

    Prompts whose lead is under `fallback_margin` go to the dense model.
    """

    def __init__(self, pipe: RoutedPipeline, name: str, fallback_margin: float = 0.0) -> None:
        self.pipe, self.name, self.fallback_margin = pipe, name, fallback_margin
        self.revision, self.costs = revision_of(pipe.bundle), pipe.bundle.fractions
        side = denoiser_of(pipe.dense).sample_size(pipe.dense) * pipe.base.vae_scale_factor
        self.size = f"{side}x{side}"
        self._router = ThreadPoolExecutor(1, "aptp-route")
        self._hand = ThreadPoolExecutor(1, "aptp-draw")
        self._under_way: dict[Future[Any], float] = {}
        """With the time at which it began."""

    async def route(self, prompt: str) -> Route:
        (found,) = await self._done_by(
            self._router, partial(self.pipe.route, fallback_margin=self.fallback_margin), prompt
        )
        return found

    async def draw(self, manner: Manner, sketches: Sequence[Sketch]) -> list[Painting]:
        return await self._done_by(self._hand, self._draw, manner, sketches)

    async def _done_by(self, threads: ThreadPoolExecutor, work: Callable[..., Any], *arguments: object) -> Any:
        future = threads.submit(work, *arguments)
        self._under_way[future] = time.monotonic()
        future.add_done_callback(self._under_way.pop)
        return await asyncio.wrap_future(future)

    def _draw(self, manner: Manner, sketches: Sequence[Sketch]) -> list[Painting]:
        try:
            self.pipe.expert(manner.expert)
        except RequestError as error:
            raise RuntimeError(str(error)) from error  # whoever asked for a picture did nothing wrong
        with quietly():  # diffusers logs what it cuts off a long prompt
            drawn = self.pipe(
                [sketch.prompt for sketch in sketches],
                num_inference_steps=manner.steps,
                guidance_scale=manner.guidance,
                negative_prompt=[sketch.negative_prompt or "" for sketch in sketches] if manner.avoiding else None,
                seed=[sketch.seed for sketch in sketches],
                batch_size=len(sketches),
                experts=[manner.expert] * len(sketches),
            )
        paintings = []
        flags: Sequence[bool | None] = drawn.nsfw_content_detected or [None] * len(sketches)
        for image, flagged in zip(drawn.images, flags, strict=True):
            image.save(file := io.BytesIO(), format="PNG")
            paintings.append(Painting(file.getvalue(), flagged))
        return paintings

    def hangs(self, seconds: float) -> bool:
        now = time.monotonic()
        return any(now - begun > seconds for begun in list(self._under_way.values()))

    def close(self) -> None:
        for threads in (self._router, self._hand):
            threads.shutdown(wait=False, cancel_futures=True)

    def is_idle(self, within: float) -> bool:
        """Whether nothing is under way any more, after at most so many seconds."""
        return not wait(set(self._under_way), within).not_done


def revision_of(bundle: Bundle) -> str:
    """A hash of what serves: all that a bundle's manifest names, or a run's router and experts; any calibration."""
    folder, listed = bundle.folder, dict(bundle.manifest.files if bundle.manifest else {})
    parts = [] if bundle.manifest else ["router", "experts"]
    files = [path for part in parts for path in (folder / part).rglob("*")]
    for path in filter(may_travel, [*files, folder / CALIBRATION]):
        listed[path.relative_to(folder).as_posix()] = path.stat().st_size, sha256(path)
    return Manifest(folder, listed).revision
