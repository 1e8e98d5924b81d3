"""Items that arrive while a batch is processed form the next batch."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from tests.support.database import drop_function, locked, waiting_at
from tests.support.events import accepted
from tests.support.service import Api
from tests.support.waiting import bounded, until
from tocsin import events
from tocsin.batches import MAX_TURN, Batches, Turn
from tocsin.db.connections import Connection


class Slow:
    """Processes a batch when released, and records the items of each."""

    def __init__(self, count: Callable[[Sequence[int]], int] = len, turn: Turn | None = None) -> None:
        self.seen: list[list[int]] = []
        self.go = asyncio.Event()
        self.batches = Batches(self._process, count, turn)

    async def _process(self, batch: list[int]) -> None:
        self.seen.append(batch)
        await self.go.wait()


async def test_what_arrives_during_the_turn_of_another_cell_forms_one_batch() -> None:
    turn = Turn()
    async with turn.taken():
        slow = Slow(turn=turn)
        slow.go.set()
        slow.batches.add([1])
        await asyncio.sleep(0)
        slow.batches.add([2])
        assert slow.seen == []
    await slow.batches.join()
    assert slow.seen == [[1, 2]]


async def test_batch_that_hangs_delays_those_of_other_cells_only_for_a_moment() -> None:
    turn = Turn()
    hanging, other = Slow(turn=turn), Slow(turn=turn)
    other.go.set()
    hanging.batches.add([1])
    await until(lambda: hanging.seen)
    other.batches.add([2])
    await other.batches.join()
    other.batches.add([3])
    await other.batches.join()
    assert other.seen == [[2], [3]]
    hanging.go.set()
    await hanging.batches.join()
    assert hanging.seen == [[1]]


async def test_batch_waits_for_all_other_cells_together_only_for_a_moment() -> None:
    turn = Turn()
    slow = Slow(turn=turn)
    slow.go.set()
    await turn._lock.acquire()  # noqa: SLF001 - as if many others had their turns one after the other
    slow.batches.add([1])
    async with bounded():
        await slow.batches.join()
    assert slow.seen == [[1]]


@pytest.mark.parametrize("end", ["error", "cancellation"])
async def test_turn_ends_with_its_block(end: str) -> None:
    turn = Turn()

    async def take() -> None:
        async with turn.taken():
            if end == "error":
                raise ValueError
            await asyncio.Event().wait()

    taking = asyncio.create_task(take())
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    async with turn.taken():
        await asyncio.sleep(2 * MAX_TURN)
    async with turn.taken():
        pass


async def test_items_added_during_a_batch_form_the_next_batch() -> None:
    slow = Slow()
    slow.batches.add([1])
    await asyncio.sleep(0)
    slow.batches.add([2, 3])
    slow.batches.add([3, 1])
    slow.go.set()
    await slow.batches.join()
    assert slow.seen == [[1], [2, 3, 1]]


async def test_batch_size_limits_the_items_of_a_batch() -> None:
    slow = Slow(lambda waiting: min(len(waiting), 2))
    slow.go.set()
    slow.batches.add(range(5))
    await slow.batches.join()
    assert slow.seen == [[0, 1], [2, 3], [4]]


async def test_items_after_a_batch_of_several_are_gathered() -> None:
    gathered, seen = asyncio.Event(), list[list[int]]()

    async def process(batch: list[int]) -> None:
        seen.append(batch)

    async def gather(began: float, ended: float) -> None:
        assert began <= ended
        await gathered.wait()

    batches = Batches(process, gather=gather)
    for items in ([1], [2, 3], [4]):
        batches.add(items)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    batches.add([5])
    assert seen == [[1], [2, 3]]
    gathered.set()
    await batches.join()
    assert seen == [[1], [2, 3], [4, 5]]


async def test_empty_addition_processes_nothing() -> None:
    slow = Slow()
    slow.batches.add([])
    await slow.batches.join()
    assert slow.seen == []
    slow.go.set()
    slow.batches.add([7])
    await slow.batches.join()
    assert slow.seen == [[7]]


@pytest.mark.parametrize(
    ("field_error", "status"),
    [("raise sqlstate '22023'", 500), ("raise sqlstate '40P01'", 503), ("perform pg_sleep(30)", 503)],
)
async def test_failing_event_does_not_fail_events_of_the_same_insert(
    idle: Api, dba: Connection, field_error: str, status: int
) -> None:
    idle.app_state.database._patience = 3.0  # noqa: SLF001 - what an operator cannot set
    await idle.people(1)
    await dba.execute(
        "create function refuse() returns trigger language plpgsql as"
        f" $$begin if new.params like '%refused%' then {field_error}; end if; return new; end$$;"
        "create trigger refusing before insert on events for each row execute function refuse()"
    )
    try:
        async with locked(dba, "events"):
            first = asyncio.create_task(_posted(idle, "first"))
            await until(lambda: waiting_at(dba, "events"))
            others = [asyncio.create_task(_posted(idle, word)) for word in ("a", "b", "refused", "c", "d")]
            await until(lambda: _queued(idle, 5))
        assert await first == 202
        assert await asyncio.gather(*others) == [202, 202, status, 202, 202]
    finally:
        await drop_function(dba, "refuse")


async def _posted(api: Api, body: str) -> int:
    event = {"type": "custom", "notify": {"users": [1]}, "params": {"body": body}}
    return (await api.as_service("POST", "/events", json=event, timeout=60)).status_code


async def _queued(api: Api, count: int) -> bool:
    return len(api.app_state.intake._batches._waiting) == count  # noqa: SLF001 - they are stored together, once they wait


async def test_events_stored_together_have_bounded_recipients(
    idle: Api, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_IDS_PER_BATCH", 5)
    await idle.people(1, 2, 3)
    async with locked(dba, "events"):
        first = asyncio.create_task(_posted(idle, "first"))
        await until(lambda: waiting_at(dba, "events"))
        others = [asyncio.create_task(accepted(idle, 1, 2, 3)) for _ in range(3)]
        await until(lambda: _queued(idle, 3))
    await asyncio.gather(first, *others)
    shared = "select count(distinct xmin::text) from events"
    assert await dba.fetchval(shared) == 4
