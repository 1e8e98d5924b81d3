"""Locks of other sessions delay only the work that needs them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from tests.support.database import blocked, locked
from tests.support.events import accepted
from tests.support.pushes import IPHONE, becomes, pushes_of
from tests.support.service import Api, serving
from tests.support.waiting import until
from tests.support.workers import impatient
from tocsin import jobs
from tocsin.catalogue import Catalogue
from tocsin.db import connections
from tocsin.db.connections import Connection, connect
from tocsin.errors import Locked, Overrun
from tocsin.isolation import MAX_CONFLICTS, LockConflicts, do_in_parts
from tocsin.worker import Worker
from tocsin_phones import Phones

LOCKED, OTHERS = 5, (1, 2, 3)
REASON = "a lock was not released in time"
LOCKS_PART = 0.05

Working = Callable[..., AbstractAsyncContextManager[Worker]]


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the lock timeout to one second, and to half a second after a conflict."""
    monkeypatch.setattr(connections, "LOCKS_PART", LOCKS_PART)
    for module in ("tocsin.worker", "tocsin.push.results"):
        monkeypatch.setattr(f"{module}.LOCKED_DELAY", 0.5)


@pytest.fixture
async def api(url: str, catalogue: Catalogue) -> AsyncIterator[Api]:
    async with serving(url, catalogue) as found:
        await found.people(*OTHERS, LOCKED)
        yield found


@asynccontextmanager
async def holding(dba: Connection, statement: str, *arguments: Any) -> AsyncIterator[None]:
    """Hold the locks of a statement like a session that is idle in its transaction."""
    transaction = dba.transaction()
    await transaction.start()
    try:
        await dba.execute(statement, *arguments)
        yield
    finally:
        await transaction.rollback()


def head_of_the_locked(dba: Connection) -> Any:
    return holding(dba, "select from heads where user_id = $1 for update", LOCKED)


async def are_delivered(api: Api, *ids: UUID) -> None:
    for id_ in ids:
        answer = (await api.as_service("GET", f"/events/{id_}?wait=30")).json()
        assert answer["state"] == "delivered", answer


async def state(api: Api, id_: UUID) -> str:
    found: str = (await api.as_service("GET", f"/events/{id_}")).json()["state"]
    return found


async def is_handed_back(monitor: Connection, id_: UUID) -> bool:
    """Return whether a job is released without a counted attempt and is delayed."""
    row = await monitor.fetchrow("select worker_id, attempts, due_at > wanted_at as later from jobs where id = $1", id_)
    assert row is not None
    return row["worker_id"] is None and row["attempts"] == 0 and row["later"]


@pytest.fixture
def working(url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> Working:
    """Run a worker with this statement timeout, and this part of it as lock timeout."""

    def start(patience: float = 20, locks_part: float = LOCKS_PART) -> AbstractAsyncContextManager[Worker]:
        monkeypatch.setattr(connections, "LOCKS_PART", locks_part)
        return impatient(url, catalogue, patience)

    return start


@pytest.fixture
async def second(url: str) -> AsyncIterator[Connection]:
    connection = await connect(url)
    yield connection
    await connection.close()


@pytest.fixture
async def monitor(url: str) -> AsyncIterator[Connection]:
    connection = await connect(url)
    yield connection
    await connection.close()


@pytest.mark.parametrize("lane", ["direct", "bulk"])
async def test_locked_inbox_delays_only_its_own_notifications(
    idle: Api, working: Working, dba: Connection, monitor: Connection, lane: jobs.Queue
) -> None:
    await idle.people(*OTHERS, LOCKED)
    burst = 5 if lane == "bulk" else 60
    behind = [await accepted(idle, LOCKED) for _ in range(burst)]
    ids = [await accepted(idle, user) for user in OTHERS]
    behind.append(await accepted(idle, *OTHERS, LOCKED))
    ids += [await accepted(idle, user) for user in OTHERS]
    await dba.execute("update jobs set lane = $1", lane)
    async with working():
        async with head_of_the_locked(dba):
            await are_delivered(idle, *ids)
            for id_ in behind:
                await until(lambda id_=id_: is_handed_back(monitor, id_))  # type: ignore[misc]
        await are_delivered(idle, *behind)
    assert await monitor.fetchval("select count(*) from inbox where user_id = $1", LOCKED) == len(behind)
    assert await monitor.fetchval("select count(*) from dead_letters") == 0


async def test_other_row_lock_is_isolated_by_bisection(
    idle: Api, working: Working, dba: Connection, monitor: Connection
) -> None:
    await idle.people(*OTHERS)
    ids = [await accepted(idle, 1) for _ in range(40)]
    behind = ids.pop(17)
    async with working():
        async with holding(dba, "insert into contents values ($1, 'en', 'not committed')", behind):
            await are_delivered(idle, *ids)
            await until(lambda: is_handed_back(monitor, behind))
        await are_delivered(idle, behind)


async def test_lock_on_one_event_keeps_the_order_of_its_batch(
    idle: Api, working: Working, dba: Connection, monitor: Connection
) -> None:
    await idle.people(*OTHERS, LOCKED)
    events = [
        {"type": "custom", "notify": {"users": users}, "params": {"body": "Hello"}}
        for users in ([1], [1, LOCKED], [1, 2], [1, LOCKED], [1])
    ]
    answer = await idle.as_service("POST", "/events/batch", json={"events": events})
    assert answer.status_code == 202, answer.text
    batch = [UUID(id_) for id_ in answer.json()["ids"]]
    other = await accepted(idle, 3)
    async with working():
        async with head_of_the_locked(dba):
            await are_delivered(idle, batch[0], other)
            await until(lambda: is_handed_back(monitor, batch[1]))
            assert [await state(idle, id_) for id_ in batch[1:]] == ["queued"] * 4
        await are_delivered(idle, *batch)
    rows = await monitor.fetch("select event_id from inbox where user_id = 1 order by position")
    assert [row["event_id"] for row in rows] == batch


async def test_lock_conflict_is_retried_briefly_and_logged(api: Api, dba: Connection, monitor: Connection) -> None:
    worker = api.worker
    assert worker
    async with head_of_the_locked(dba):
        behind = await accepted(api, LOCKED)
        await until(lambda: is_handed_back(monitor, behind))
        await until(lambda: f"direct queue: {REASON}" in (worker._problem() or ""))  # noqa: SLF001 - what doctor and readyz tell
        await monitor.execute("set lock_timeout = '10ms'")
        await until(lambda: _problem_is_reported(monitor))
        for _ in range(3):
            await are_delivered(api, await accepted(api, 1))
        assert worker._conflicts["direct"].are_expected  # noqa: SLF001 - so the next wait is brief
    await are_delivered(api, behind)


async def _problem_is_reported(monitor: Connection) -> bool:
    return bool(await monitor.fetchval("select true from workers where strpos(problem, $1) > 0", REASON))


async def test_lock_wait_time_consumes_no_attempt(
    idle: Api, working: Working, dba: Connection, monitor: Connection, second: Connection
) -> None:
    await idle.people(1, LOCKED)
    id_ = await accepted(idle, 1, LOCKED)
    with capture_logs() as logged:
        async with (
            head_of_the_locked(dba),
            holding(second, "select from heads where user_id = 1 for update"),
            working(8, locks_part=0.8),  # and the server gives a statement up after 7.2 seconds
        ):
            await until(lambda: blocked(monitor))
            await asyncio.sleep(2)  # less than the limit for one lock, more than is left for another
            await second.execute("rollback; begin")
            await until(lambda: is_handed_back(monitor, id_))
            await dba.execute("rollback; begin")
            await are_delivered(idle, id_)
    assert Overrun.reason in [line.get("reason") for line in logged]


@pytest.mark.parametrize("table", ["heads", "inbox", "contents"])
async def test_locked_table_delays_a_batch_and_consumes_no_attempt(
    idle: Api, working: Working, dba: Connection, monitor: Connection, table: str
) -> None:
    await idle.people(*OTHERS)
    ids = [await accepted(idle, user) for user in OTHERS * 20]
    async with working() as running:
        async with locked(dba, table):
            await until(lambda: REASON in (running._problem() or ""))  # noqa: SLF001 - what doctor and readyz tell
            assert await monitor.fetchval("select max(attempts) from jobs") <= 1
        await are_delivered(idle, *ids)
    assert await monitor.fetchval("select count(*) from dead_letters") == 0


async def test_batch_blocked_by_locks_is_released_after_a_few_conflicts() -> None:
    tried: list[int] = []

    async def do(part: Sequence[int]) -> None:
        tried.append(len(part))
        raise Locked(reason=REASON)

    async def failed(item: int, error: Exception) -> None:
        assert isinstance(error, Locked)
        alone.append(item)

    alone: list[int] = []
    waiting: deque[Sequence[int]] = deque([range(200)])
    with pytest.raises(Locked):
        await do_in_parts(waiting, do, failed, LockConflicts())
    assert len(tried) == MAX_CONFLICTS
    assert [*alone, *(item for part in waiting for item in part)] == list(range(200))


# Events


async def test_event_id_locked_by_another_session_delays_only_its_event(idle: Api, dba: Connection) -> None:
    await idle.people(1)
    events = [
        {"type": "custom", "notify": {"users": [1]}, "params": {"body": "Hello"}, "id": str(uuid4())} for _ in range(9)
    ]
    posting = [partial(idle.as_service, "POST", "/events", json=event) for event in events]
    insert = (
        "insert into events (id, kind, data, params, users, teams, subjects)"
        " values ($1, 'custom', '{}', '{}', '{}', '{}', '{}')"
    )
    async with holding(dba, insert, UUID(str(events[4]["id"]))):
        answers = await asyncio.gather(*[post() for post in posting])
        assert [answer.status_code for answer in answers] == [202] * 4 + [503] + [202] * 4
    assert (await posting[4]()).status_code == 202


# Pushes


@pytest.fixture
async def phones_of_two(pushing: Api) -> Api:
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    await pushing.as_user(2, "POST", f"/notifications/devices/{'bb' * 32}")
    return pushing


async def is_put_aside(api: Api) -> bool:
    assert api.worker
    assert api.worker.dispatcher
    return any(lane.kept for lane in api.worker.dispatcher._lanes.values())  # noqa: SLF001 - in memory only


@pytest.mark.parametrize("result", ["delivered", "gone"])
async def test_locked_device_delays_only_its_own_push_result(
    phones_of_two: Api, phones: Phones, dba: Connection, monitor: Connection, result: str
) -> None:
    if result == "gone":
        phones.answer("apns", token=IPHONE, status=410, reason="Unregistered", times=1)
    async with holding(dba, "select from devices where user_id = 1 for update"):
        behind = await accepted(phones_of_two, 1)
        for _ in range(5):
            await becomes(phones_of_two, await accepted(phones_of_two, 2), {"delivered": 1})
        await until(lambda: is_put_aside(phones_of_two))
        for _ in range(5):
            await becomes(phones_of_two, await accepted(phones_of_two, 2), {"delivered": 1})
        assert await monitor.fetchval("select count(*) from devices where user_id = 1") == 1
    await becomes(phones_of_two, behind, {result: 1})
    await until(lambda: _has_gone(monitor, 0 if result == "gone" else 1))
    assert len(phones.pushes("apns", IPHONE)) == 1
    assert await monitor.fetchval("select attempts from deliveries where event_id = $1", behind) == 1


async def _has_gone(monitor: Connection, left: int) -> bool:
    return bool(await monitor.fetchval("select count(*) = $1 from devices where user_id = 1", left))


async def test_push_results_are_written_once_a_table_is_unlocked(
    phones_of_two: Api, phones: Phones, dba: Connection
) -> None:
    async with holding(dba, "lock table devices in exclusive mode"):
        ids = [await accepted(phones_of_two, 1), await accepted(phones_of_two, 2)]
        await until(lambda: phones.pushes("apns", IPHONE) and phones.pushes("apns", "bb" * 32))
        await until(lambda: is_put_aside(phones_of_two))
        assert [await pushes_of(phones_of_two, id_, 0) for id_ in ids] == [{"queued": 1}] * 2
    for id_ in ids:
        await becomes(phones_of_two, id_, {"delivered": 1})
    assert len(phones.pushes("apns")) == 2
