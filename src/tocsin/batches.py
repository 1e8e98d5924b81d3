"""Batches: items that arrive while a batch is processed are processed together afterwards."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Batches(Generic[T]):
    """Processes items in batches, one batch at a time, each item once per batch.

    A statement for ten items costs little more than a statement for one. `process` handles its own errors; `count`
    returns how many of the waiting items the next batch takes, at least one.
    """

    def __init__(
        self,
        process: Callable[[list[T]], Awaitable[None]],
        count: Callable[[Sequence[T]], int] = len,
    ) -> None:
        self._process, self._count = process, count
        self._waiting: dict[T, None] = {}
        self._processing: asyncio.Task[None] | None = None

    def add(self, items: Iterable[T]) -> None:
        """Have these items processed soon. Never blocks."""
        self._waiting.update(dict.fromkeys(items))
        if self._waiting and (self._processing is None or self._processing.done()):
            self._processing = asyncio.create_task(self._run())

    async def join(self) -> None:
        """Wait until all items are processed."""
        if self._processing is not None:
            await self._processing

    async def _run(self) -> None:
        while self._waiting:
            waiting = list(self._waiting)
            batch = waiting[: self._count(waiting)]
            for item in batch:
                del self._waiting[item]
            await self._process(batch)
