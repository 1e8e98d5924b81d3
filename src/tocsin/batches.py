"""Batches: items that arrive while a batch is processed are processed together afterwards."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_TURN = 0.05
"""Maximum seconds for which a batch keeps those of others waiting, and for which one waits for all others."""


class Turn:
    """The turn of batches of several kinds, which are processed one after the other.

    So what arrives while one is processed shares the next one of its kind. A batch that takes longer than `MAX_TURN`
    does not keep the others waiting, and none waits longer for all others together.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for the turn, for `MAX_TURN` at most. It ends with the block, or earlier."""
        is_over = not await self._is_taken()

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._lock.release()

        ending = asyncio.get_running_loop().call_later(MAX_TURN, end)
        try:
            yield
        finally:
            ending.cancel()
            end()

    async def _is_taken(self) -> bool:
        try:
            async with asyncio.timeout(MAX_TURN):
                return await self._lock.acquire()
        except TimeoutError:
            return False


class Batches(Generic[T]):
    """Processes items in batches, one batch at a time, each item once per batch.

    A statement for ten items costs little more than a statement for one. `process` handles its own errors; `count`
    returns how many of the waiting items the next batch takes, at least one. If there is a `turn`, a batch takes what
    waits when it is its turn. After a batch of several items, the next one begins when `gather` has returned. That gets
    the times of the loop's clock when that batch began and ended.
    """

    def __init__(
        self,
        process: Callable[[list[T]], Awaitable[None]],
        count: Callable[[Sequence[T]], int] = len,
        turn: Turn | None = None,
        gather: Callable[[float, float], Awaitable[None]] | None = None,
    ) -> None:
        self._process, self._count, self._turn, self._gather = process, count, turn, gather
        self._shared: tuple[float, float] | None = None
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
        clock = asyncio.get_running_loop().time
        while self._waiting:
            if self._gather and self._shared:
                await self._gather(*self._shared)
            async with self._turn.taken() if self._turn else contextlib.nullcontext():
                waiting = list(self._waiting)
                batch = waiting[: self._count(waiting)]
                for item in batch:
                    del self._waiting[item]
                began = clock()
                await self._process(batch)
                self._shared = (began, clock()) if len(batch) > 1 else None


def pieces(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Return items in pieces of a size."""
    return [items[start : start + size] for start in range(0, len(items), size)]
