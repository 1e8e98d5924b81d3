"""What callers ask for while statements run shares the next statement."""

import asyncio
from collections.abc import Sequence

import pytest

from tests.support.waiting import bounded
from tocsin.shared_statements import SharedStatements


class Slow:
    """Answers when released, and records the keys of each statement."""

    def __init__(self, count: int = 100, parallel: int = 1) -> None:
        self.seen: list[list[int]] = []
        self.go = asyncio.Event()
        self.error: BaseException | None = None
        self.shared = SharedStatements(self._ask, lambda keys: min(len(keys), count), parallel)

    async def _ask(self, keys: Sequence[int]) -> dict[int, int]:
        self.seen.append(list(keys))
        await self.go.wait()
        if self.error:
            raise self.error
        return {key: key * key for key in keys if key > 0}

    async def ask(self, *keys: int) -> list[asyncio.Task[int | None]]:
        """Ask for keys, and wait until the next statement has begun."""
        callers = [asyncio.create_task(self.shared.of(key)) for key in keys]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return callers


async def test_what_is_asked_for_while_a_statement_runs_shares_the_next_one() -> None:
    slow = Slow()
    callers = [*await slow.ask(1), *await slow.ask(2, 3, 3), *await slow.ask(1, -1)]
    slow.go.set()
    assert await asyncio.gather(*callers) == [1, 4, 9, 9, 1, None]
    assert slow.seen == [[1], [2, 3, 1, -1]]


async def test_a_statement_takes_only_as_many_keys_as_it_may() -> None:
    slow = Slow(count=2)
    callers = [*await slow.ask(1), *await slow.ask(2, 3, 4)]
    slow.go.set()
    assert await asyncio.gather(*callers) == [1, 4, 9, 16]
    assert slow.seen == [[1], [2, 3], [4]]


async def test_a_slow_statement_leaves_room_for_others() -> None:
    slow = Slow(parallel=3)
    callers = [caller for key in range(1, 6) for caller in await slow.ask(key)]
    assert slow.seen == [[1], [2], [3]]
    slow.go.set()
    assert await asyncio.gather(*callers) == [1, 4, 9, 16, 25]
    assert slow.seen[3:] == [[4, 5]]


async def test_a_caller_that_asks_again_at_once_gets_an_answer() -> None:
    slow = Slow()
    slow.go.set()

    async def ask_twice(key: int) -> list[int | None]:
        return [await slow.shared.of(key), await slow.shared.of(key + 1)]

    async with bounded():
        assert [*await asyncio.gather(ask_twice(1), ask_twice(5))] == [[1, 4], [25, 36]]
        assert await ask_twice(2) == [4, 9]


async def test_an_error_ends_the_waits_of_all_and_later_callers_ask_again() -> None:
    slow = Slow()
    slow.error = OSError("away")
    callers = [*await slow.ask(1), *await slow.ask(2, 3)]
    callers.pop().cancel()
    slow.go.set()
    assert [str(each) for each in await asyncio.gather(*callers, return_exceptions=True)] == ["away"] * 2
    assert slow.seen == [[1]]
    slow.error = None
    assert await slow.shared.of(4) == 16


async def test_a_lone_caller_asks_in_the_turn_of_its_call() -> None:
    slow = Slow(parallel=2)
    caller = asyncio.create_task(slow.shared.of(3))
    await asyncio.sleep(0)
    assert slow.seen == [[3]]
    slow.go.set()
    assert await caller == 9


async def test_those_who_wait_are_asked_for_if_a_lone_caller_leaves() -> None:
    slow = Slow()
    [leaving], waiting = await slow.ask(1), await slow.ask(2, 1)
    leaving.cancel()
    async with bounded():
        with pytest.raises(asyncio.CancelledError):
            await leaving
        slow.go.set()
        assert await asyncio.gather(*waiting) == [4, 1]
    assert slow.seen == [[1], [2, 1]]


async def test_a_caller_that_leaves_takes_no_answer_from_others() -> None:
    slow = Slow()
    _, leaving, staying = await slow.ask(1, 2, 2)
    leaving.cancel()
    slow.go.set()
    assert await staying == 4
    with pytest.raises(asyncio.CancelledError):
        await leaving
