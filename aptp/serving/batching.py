"""Dynamic batching: what may be done together waits a moment for company, and is done oldest first."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Done = TypeVar("Done")


@dataclass(eq=False)
class _Job(Generic[Item, Done]):
    item: Item
    future: asyncio.Future[Done]
    since: float


class Batcher(Generic[Key, Item, Done]):
    """Queues of items, one a key. Each key has a lane; a lane works on few batches at once, by default on one.

    A batch is due when it is full, or when its oldest item has waited long enough, and its lane is free; of those due,
    the one with the oldest item goes first, so no key starves another of its lane. An item whose future is cancelled
    before its batch is taken is not worked on. Everything runs on one event loop: there are no locks.

    Args:
        work: answers the items of a batch, in their order; where it raises, all items of the batch get the error.
        size: most items in a batch.
        wait: seconds for which an item waits for company.
        lane: of a key; by default there is one lane.
        width: most batches of a lane that are worked on at once.
    """

    def __init__(
        self,
        work: Callable[[Key, Sequence[Item]], Awaitable[Sequence[Done]]],
        *,
        size: int,
        wait: float,
        lane: Callable[[Key], Hashable] = lambda key: None,
        width: int = 1,
    ) -> None:
        self.work, self.size, self.wait, self.lane, self.width = work, size, wait, lane, width
        self._queues: dict[Key, list[_Job[Item, Done]]] = {}
        self._news = asyncio.Event()

    def put(self, key: Key, item: Item) -> asyncio.Future[Done]:
        """Queue an item; cancel the future to withdraw it."""
        loop = asyncio.get_running_loop()
        job: _Job[Item, Done] = _Job(item, loop.create_future(), loop.time())
        self._queues.setdefault(key, []).append(job)
        job.future.add_done_callback(lambda _: self._remove(key, [job]))
        self._news.set()
        return job.future

    def waiting(self) -> int:
        """How many items are in no batch yet."""
        return sum(map(len, self._queues.values()))

    async def run(self) -> None:
        """Work until cancelled."""
        busy: Counter[Hashable] = Counter()

        async def carry_out(key: Key, batch: Sequence[_Job[Item, Done]]) -> None:
            await self._carry_out(key, batch)
            busy[self.lane(key)] -= 1
            self._news.set()

        async with asyncio.TaskGroup() as tasks:
            while True:
                key = await self._due(busy)
                batch = [job for job in self._queues[key] if not job.future.done()][: self.size]
                self._remove(key, batch)
                if batch:
                    busy[self.lane(key)] += 1
                    tasks.create_task(carry_out(key, batch))
                else:
                    await asyncio.sleep(0)  # those that were withdrawn leave the queue

    async def _carry_out(self, key: Key, batch: Sequence[_Job[Item, Done]]) -> None:
        try:
            done = await self.work(key, [job.item for job in batch])
            answers = list(zip(batch, done, strict=True))
        except Exception as error:
            for job in batch:
                if not job.future.done():
                    job.future.set_exception(error)
            return
        for job, answer in answers:
            if not job.future.done():
                job.future.set_result(answer)

    async def _due(self, busy: Mapping[Hashable, int]) -> Key:
        """The key whose batch is next, once there is one."""
        while True:
            self._news.clear()
            now = asyncio.get_running_loop().time()
            free = {key: jobs for key, jobs in self._queues.items() if busy[self.lane(key)] < self.width}
            ends = {key: jobs[0].since + self.wait for key, jobs in free.items()}
            due = [key for key, end in ends.items() if end <= now or len(free[key]) >= self.size]
            if due:
                return min(due, key=ends.__getitem__)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), min(ends.values()) - now if ends else None)

    def _remove(self, key: Key, jobs: Sequence[_Job[Item, Done]]) -> None:
        left = [job for job in self._queues.get(key, []) if job not in jobs]
        if left:
            self._queues[key] = left
        else:
            self._queues.pop(key, None)
