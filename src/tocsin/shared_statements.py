"""Statements for several callers: what is asked for while statements run is asked for together afterwards."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedStatements(Generic[K, V]):
    """Answers what callers ask by up to `parallel` statements at a time.

    What is asked is a key: a statement for ten keys costs little more than a statement for one. `count` returns how
    many of the waiting keys the next statement takes, at least one. What `ask` raises is raised to all callers that
    share the statement and to those that wait, so that no caller waits for several timeouts.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        count: Callable[[Sequence[K]], int] = len,
        parallel: int = 1,
    ) -> None:
        self._ask, self._count, self._parallel, self._free = ask, count, parallel, parallel
        self._is_busy = False  # the last statement answered several callers
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._running = set[asyncio.Task[None]]()

    async def of(self, key: K) -> V | None:
        """Return the answer of a statement that begins after the call; None if it has none for this key."""
        if self._free == self._parallel and not self._waiting and not self._is_busy:
            return await self._alone(key)
        answer: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(answer)
        self._begin()
        return await answer

    async def _alone(self, key: K) -> V | None:
        """Ask for one key in the task of its caller: by another task, it would take two turns of the event loop more.

        No other caller shares this statement. If its caller leaves, it ends, and those that wait are asked for.
        """
        self._free -= 1
        try:
            return (await self._ask([key])).get(key)
        except Exception as error:
            self._fail(self._taken(list(self._waiting)), error)
            raise
        finally:
            self._free += 1
            self._begin()

    def _begin(self) -> None:
        """Begin a statement for those that wait, if one may run."""
        if self._free and self._waiting:
            self._free -= 1
            task = asyncio.create_task(self._run())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._answer_next()
        finally:
            self._free += 1

    async def _answer_next(self) -> None:
        waiting = list(self._waiting)
        keys = waiting[: self._count(waiting)]
        answers = self._taken(keys)
        self._is_busy = len(answers) > 1
        try:
            found = await self._ask(keys)
        except Exception as error:  # noqa: BLE001 - every caller gets the error
            self._fail([*answers, *self._taken(list(self._waiting))], error)
        else:
            for key, answer in answers:
                if not answer.done():
                    answer.set_result(found.get(key))

    def _taken(self, keys: Sequence[K]) -> list[tuple[K, asyncio.Future[V | None]]]:
        """Return the answers that callers wait for, with their keys, which wait no longer."""
        return [(key, answer) for key in keys for answer in self._waiting.pop(key)]

    @staticmethod
    def _fail(answers: Iterable[tuple[K, asyncio.Future[V | None]]], error: Exception) -> None:
        for _, answer in answers:
            if not answer.done():  # as it is if the caller has left
                answer.set_exception(error)
