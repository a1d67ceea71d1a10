"""Takes orders on, or refuses them; routes them, and has them drawn in batches."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from aptp.core.errors import RequestError
from aptp.routing import Route
from aptp.serving.batching import Batcher
from aptp.serving.engine import Engine, Manner, Painting, Sketch
from aptp.serving.errors import Refusal
from aptp.serving.limits import Limits
from aptp.serving.metrics import Metrics
from aptp.serving.schema import Order

MEMORY = 0.8
"""Weight of what was known when a new batch tells how long a picture takes."""


@dataclass(frozen=True)
class Drawn:
    """The answer to an order: where its prompt went, and a picture for each of its seeds."""

    route: Route
    pictures: Sequence[Painting]


class Service:
    """Bounded: what it takes it finishes, unless the one who asked withdraws it."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits, self.metrics = engine, limits, Metrics()
        self.closing = False
        self.taken = 0
        """Pictures taken and not yet answered."""
        self._batcher: Batcher[Manner, Sketch, Painting | RequestError] = Batcher(
            self._draw, size=limits.batch, wait=limits.wait, lane=engine.lane, width=engine.width
        )
        self._pace = 0.0
        """Seconds a picture, lately."""
        self.metrics.info.info({"model": engine.name, "revision": engine.revision})
        self.metrics.taken.set_function(lambda: self.taken)
        self.metrics.waiting.set_function(self._batcher.waiting)

    async def run(self) -> None:
        """Draw what is asked, until cancelled."""
        await self._batcher.run()

    async def draw(self, order: Order) -> Drawn:
        """Take an order on and answer it; cancelled, what of it is not begun is dropped.

        Raises:
            Refusal: if too much is asked already, the server is stopping, or the pipeline refuses what is asked.
        """
        if self.closing:
            raise Refusal(503, "the server is stopping; ask another, or later.", "stopping", retry_after=1)
        count = len(order.seeds)
        if self.taken + count > self.limits.queue:
            seconds = max(1, math.ceil(self.taken * self._pace))
            message = f"{self.taken} pictures are waiting already; ask again in {seconds} s."
            raise Refusal(429, message, "queue_full", retry_after=seconds)
        self.taken += count
        try:
            route = await self.engine.route(order.prompt)
            manner = Manner(route.expert, order.steps, order.guidance, order.negative_prompt is not None)
            sketches = [Sketch(order.prompt, order.negative_prompt, seed) for seed in order.seeds]
            wanted = [self._batcher.put(manner, sketch) for sketch in sketches]
            try:
                pictures = []
                for picture in await asyncio.gather(*wanted):
                    if isinstance(picture, RequestError):
                        raise Refusal(400, str(picture), "invalid_value")
                    pictures.append(picture)
                return Drawn(route, pictures)
            finally:
                for awaited in wanted:  # where one failed, nobody waits for the others
                    awaited.cancel()
        finally:
            self.taken -= count

    async def _draw(self, manner: Manner, sketches: Sequence[Sketch]) -> Sequence[Painting | RequestError]:
        """Draw a batch; one that is refused is divided, so that only who asked for what is refused is told so."""
        begun = time.perf_counter()
        try:
            pictures = await self.engine.draw(manner, sketches)
        except RequestError as error:
            if len(sketches) == 1:
                return [error]
            return [answer for sketch in sketches for answer in await self._draw(manner, [sketch])]
        seconds = time.perf_counter() - begun
        pace = seconds / len(sketches)
        self._pace = MEMORY * self._pace + (1 - MEMORY) * pace if self._pace else pace
        expert = str(manner.expert)
        self.metrics.batch.observe(len(sketches))
        self.metrics.draw_seconds.labels(expert).observe(seconds)
        self.metrics.pictures.labels(expert).inc(len(sketches))
        self.metrics.cost.inc(len(sketches) * self.engine.cost(manner.expert))
        self.metrics.flagged.inc(sum(bool(picture.flagged) for picture in pictures))
        return pictures
