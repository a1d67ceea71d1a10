"""Batches: each item answered once, with its own, in the company of its key alone, oldest first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from aptp.serving.batching import Batcher

Work = Callable[[str, Sequence[int]], Awaitable[Sequence[str]]]


class Hand:
    """Keeps the batches that it worked on; held, it works no further."""

    def __init__(self, held: bool = False) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.held = held
        self.busy = 0

    async def __call__(self, key: str, items: Sequence[int]) -> list[str]:
        self.busy += 1
        assert self.busy == 1, "one batch at a time"
        await asyncio.sleep(0)
        while self.held:
            await asyncio.sleep(0.001)
        self.batches.append((key, list(items)))
        self.busy -= 1
        return [f"{key}{item}" for item in items]


def carried_out(batcher: Batcher, script: Callable[[], Awaitable[object]]) -> object:
    """What `script` answers beside a working batcher."""

    async def both() -> object:
        work = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(script(), 10)
        finally:
            work.cancel()

    return asyncio.run(both())


@given(keys=st.lists(st.sampled_from("abc"), max_size=30), size=st.integers(1, 5), pauses=st.sets(st.integers(0, 29)))
def test_every_item_is_answered_once_with_its_own(keys: list[str], size: int, pauses: set[int]) -> None:
    hand = Hand()
    batcher = Batcher(hand, size=size, wait=0.001)

    async def script() -> list[str]:
        futures = []
        for number, key in enumerate(keys):
            futures.append(batcher.put(key, number))
            if number in pauses:
                await asyncio.sleep(0.002)
        return await asyncio.gather(*futures)

    assert carried_out(batcher, script) == [f"{key}{number}" for number, key in enumerate(keys)]
    assert sorted(item for _, items in hand.batches for item in items) == list(range(len(keys)))
    assert all(0 < len(items) <= size and items == sorted(items) for _, items in hand.batches)
    assert all(keys[item] == key for key, items in hand.batches for item in items)
    assert batcher.waiting() == 0
    assert batcher._queues == {}, "no key is kept"


async def busy(hand: Hand) -> None:
    """Comes back once a batch is begun."""
    while not hand.busy:
        await asyncio.sleep(0.001)


def test_the_oldest_goes_first_whatever_the_others_ask() -> None:
    hand = Hand(held=True)
    batcher = Batcher(hand, size=2, wait=0)

    async def script() -> None:
        futures = [batcher.put("common", 0)]
        await busy(hand)
        futures += [batcher.put("rare", 1), *(batcher.put("common", number) for number in range(2, 8))]
        hand.held = False
        await asyncio.gather(*futures)

    carried_out(batcher, script)
    assert hand.batches == [("common", [0]), ("rare", [1]), *(("common", [n, n + 1]) for n in (2, 4, 6))]


def test_a_full_batch_does_not_wait_and_a_lonely_item_waits_no_longer_than_said() -> None:
    hand = Hand()
    patient = Batcher(hand, size=2, wait=5)

    async def pair() -> None:
        await asyncio.gather(patient.put("a", 1), patient.put("a", 2))

    begun = time.perf_counter()
    carried_out(patient, pair)
    assert time.perf_counter() - begun < 4
    brisk = Batcher(hand, size=2, wait=0.05)

    async def alone() -> None:
        await brisk.put("a", 3)

    begun = time.perf_counter()
    carried_out(brisk, alone)
    assert 0.05 <= time.perf_counter() - begun < 4
    assert hand.batches == [("a", [1, 2]), ("a", [3])]


def test_what_comes_in_time_joins_the_batch() -> None:
    hand = Hand()
    batcher = Batcher(hand, size=3, wait=0.5)

    async def script() -> None:
        first = batcher.put("a", 1)
        await asyncio.sleep(0.01)
        await asyncio.gather(first, batcher.put("a", 2))

    carried_out(batcher, script)
    assert hand.batches == [("a", [1, 2])]


def test_lanes_do_not_wait_for_each_other() -> None:
    started: list[str] = []

    async def work(key: str, items: Sequence[int]) -> Sequence[int]:
        started.append(key)
        if key == "slow":
            await never
        return items

    batcher = Batcher(work, size=1, wait=0, lane=lambda key: key, width=2)
    never: asyncio.Future

    async def script() -> None:
        nonlocal never
        never = asyncio.get_running_loop().create_future()
        slow = [batcher.put("slow", number) for number in range(3)]
        assert await asyncio.gather(*(batcher.put("quick", number) for number in range(3))) == [0, 1, 2]
        assert started.count("slow") == 2, "as many as the lane is wide"
        never.set_result(None)
        await asyncio.gather(*slow)

    carried_out(batcher, script)
    assert sorted(started) == ["quick"] * 3 + ["slow"] * 3


def test_what_is_withdrawn_in_time_is_not_worked_on() -> None:
    hand = Hand(held=True)
    batcher = Batcher(hand, size=2, wait=0)

    async def script() -> None:
        begun = batcher.put("a", 1)
        await busy(hand)
        dropped, kept = batcher.put("a", 2), batcher.put("a", 3)
        assert batcher.waiting() == 2
        begun.cancel()
        dropped.cancel()
        await asyncio.sleep(0)
        assert batcher.waiting() == 1
        hand.held = False
        assert await kept == "a3"

    carried_out(batcher, script)
    assert hand.batches == [("a", [1]), ("a", [3])]


def test_an_error_is_that_batchs_alone() -> None:
    async def work(key: str, items: Sequence[int]) -> Sequence[str]:
        if key == "bad":
            raise RuntimeError("no ink")
        return ["fine"] * (len(items) if key == "good" else 0)

    batcher = Batcher(work, size=2, wait=0)

    async def script() -> list[object]:
        futures = [batcher.put("bad", 1), batcher.put("bad", 2), batcher.put("short", 3), batcher.put("good", 4)]
        return await asyncio.gather(*futures, return_exceptions=True)

    first, second, short, good = carried_out(batcher, script)
    assert str(first) == str(second) == "no ink"
    assert isinstance(short, ValueError), "too few answers"
    assert good == "fine"
