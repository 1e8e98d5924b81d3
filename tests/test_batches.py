"""Items that arrive while a batch is processed share the next batch."""

import asyncio
from collections.abc import Callable, Sequence

from tocsin.batches import Batches


class Slow:
    """Processes a batch when it is let go, and keeps what was in each."""

    def __init__(self, count: Callable[[Sequence[int]], int] = len) -> None:
        self.seen: list[list[int]] = []
        self.go = asyncio.Event()
        self.batches = Batches(self._process, count)

    async def _process(self, batch: list[int]) -> None:
        self.seen.append(batch)
        await self.go.wait()


async def test_what_arrives_during_a_batch_is_processed_together_and_each_item_once() -> None:
    slow = Slow()
    slow.batches.add([1])
    await asyncio.sleep(0)
    slow.batches.add([2, 3])
    slow.batches.add([3, 1])
    slow.go.set()
    await slow.batches.join()
    assert slow.seen == [[1], [2, 3, 1]]


async def test_a_batch_takes_as_many_items_as_are_counted() -> None:
    slow = Slow(lambda waiting: min(len(waiting), 2))
    slow.go.set()
    slow.batches.add(range(5))
    await slow.batches.join()
    assert slow.seen == [[0, 1], [2, 3], [4]]


async def test_nothing_is_processed_where_nothing_is_added() -> None:
    slow = Slow()
    slow.batches.add([])
    await slow.batches.join()
    assert slow.seen == []
    slow.go.set()
    slow.batches.add([7])
    await slow.batches.join()
    assert slow.seen == [[7]]
