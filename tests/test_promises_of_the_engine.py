"""Promises about who goes first, who waits for whom and how long, each pinned where it would be broken."""

import asyncio
import os
import selectors
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.support.database import locked, waiting_at
from tests.support.events import accepted
from tests.support.pushes import IPHONE, becomes, pushes_of
from tests.support.service import Api
from tests.support.waiting import until
from tests.support.workers import impatient
from tocsin import events, jobs, retention
from tocsin.api.middleware import ABORT
from tocsin.api.stream import StreamResponse
from tocsin.catalogue import Catalogue
from tocsin.db.pool import Connection, Database, connect
from tocsin.ids import new_id
from tocsin.retention import run_once
from tocsin.streams import COMMENT, Stream, Streams
from tocsin_phones import Phones


@pytest.fixture
async def dba(url: str) -> AsyncIterator[Connection]:
    connection = await connect(url)
    yield connection
    await connection.close()


# The queue


async def test_a_claim_passes_over_jobs_that_another_claims_at_the_same_time(
    idle: Api, database: Database, dba: Connection
) -> None:
    await idle.people(1)
    first, second = await accepted(idle, 1), await accepted(idle, 1)
    async with dba.transaction():
        rows = await dba.fetch(jobs._SQL["claim"], new_id(), "direct", 1, 10**6)  # noqa: SLF001 - in a transaction
        assert [row["id"] for row in rows] == [first]
        async with asyncio.timeout(10):
            claimed = await jobs.claim(database, new_id(), "direct", 10)
    assert [job.id for job in claimed] == [second]


async def test_heads_are_locked_in_the_order_of_user_ids(
    idle: Api, url: str, catalogue: Catalogue, dba: Connection
) -> None:
    users = list(range(1, 31))
    await idle.people(*users)
    blocker = await connect(url)
    async with blocker.transaction():
        await blocker.execute("select from heads where user_id = 15 for update")
        async with impatient(url, catalogue, 60.0):
            await accepted(idle, *reversed(users))
            await until(lambda: _waits(blocker))
            free = await dba.fetch("select user_id from heads order by user_id for update skip locked")
            assert [row["user_id"] for row in free] == list(range(16, 31))
            await blocker.execute("rollback; begin")
    await blocker.close()


async def _waits(connection: Connection) -> bool:
    return bool(await connection.fetchval("select exists (select from pg_locks where not granted)"))


# Pushes


async def test_a_single_push_does_not_wait_for_bulk_pushes_without_an_answer(
    pushing: Api, phones: Phones, dba: Connection
) -> None:
    lane = next(lane for lane in pushing.app_state.lanes if lane.name == "apns/default")
    lane.channel.window = 8
    await pushing.people(*range(10, 40))
    for user in range(10, 40):
        await pushing.as_user(user, "POST", f"/notifications/devices/{user:064x}")
        phones.answer("apns", after_ms=60_000, token=f"{user:064x}")
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    await becomes(
        pushing, await accepted(pushing, 1), {"delivered": 1}
    )  # until then a connection carries one push alone
    lane.waits_until = datetime.now(UTC) + timedelta(hours=1)
    many = await accepted(pushing, *range(10, 40))
    await pushing.as_service("GET", f"/events/{many}?wait=10")
    await until(lambda: _are_bulk(dba, many))
    lane.waits_until = None
    await until(lambda: _is_full(dba))
    single = await accepted(pushing, 1)
    await becomes(pushing, single, {"delivered": 1})
    assert await pushes_of(pushing, many) == {"queued": 30}  # none of them was given up to make room


async def _are_bulk(dba: Connection, event_id: UUID) -> bool:
    done: str = await dba.execute("update deliveries set is_bulk = true where event_id = $1", event_id)
    return done == "UPDATE 30"


async def _is_full(dba: Connection) -> bool:
    return bool(await dba.fetchval("select count(*) >= 6 from deliveries where worker_id is not null"))


async def test_nothing_is_cleared_by_a_lane_that_has_stopped(pushing: Api, phones: Phones) -> None:
    android = "android-token-of-thirty-two-characters:1"
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    await pushing.as_user(1, "POST", f"/notifications/devices/{android}", json={"type": "Android"})
    id_ = await accepted(pushing, 1)
    await becomes(pushing, id_, {"delivered": 2})
    next(lane for lane in pushing.app_state.lanes if lane.name == "apns/default").stopped = "403 InvalidProviderToken"
    phones.forget()
    await pushing.as_user(1, "PUT", "/notifications/read")
    await until(lambda: _is_told(phones, android))
    assert not phones.pushes("apns", IPHONE)


async def _is_told(phones: Phones, token: str) -> bool:
    return bool(phones.pushes("fcm", token))


# Storing together


@pytest.mark.parametrize(("field_error", "status"), [("raise sqlstate '22023'", 500), ("perform pg_sleep(30)", 503)])
async def test_one_event_that_cannot_be_stored_fails_none_that_are_stored_with_it(
    idle: Api, dba: Connection, field_error: str, status: int
) -> None:
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
        await dba.execute("drop function refuse() cascade")


async def _posted(api: Api, body: str) -> int:
    event = {"type": "custom", "notify": {"users": [1]}, "params": {"body": body}}
    return (await api.as_service("POST", "/events", json=event, timeout=60)).status_code


async def _queued(api: Api, count: int) -> bool:
    return len(api.app_state.intake._batches._waiting) == count  # noqa: SLF001 - they are stored together, once they wait


async def test_what_is_stored_together_names_a_bounded_number_of_people(
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


# Keepers and processes


async def test_one_keeper_works_at_a_time(idle: Api, database: Database, dba: Connection) -> None:
    headers = {"Idempotency-Key": "once"}
    event = {"type": "custom", "notify": {"users": [1]}, "params": {"body": "Hello"}}
    await idle.people(1)
    assert (await idle.as_service("POST", "/events", json=event, headers=headers)).status_code == 202
    await dba.execute("update idempotency_keys set kept_at = kept_at - interval '2 days'")
    async with dba.transaction():
        assert await dba.fetchval(retention._SQL["turn"], retention._LOCK)  # noqa: SLF001 - the turn of another keeper
        async with asyncio.timeout(20):
            assert await run_once(database, None) == {}
    assert await run_once(database, None) == {"idempotency_keys": 1}


async def test_one_kind_that_cannot_be_forgotten_keeps_no_other(idle: Api, database: Database, dba: Connection) -> None:
    await test_one_keeper_works_at_a_time(idle, database, dba)
    headers = {"Idempotency-Key": "twice"}
    event = {"type": "custom", "notify": {"users": [1]}, "params": {"body": "Hello"}}
    assert (await idle.as_service("POST", "/events", json=event, headers=headers)).status_code == 202
    await dba.execute("update idempotency_keys set kept_at = kept_at - interval '2 days'")
    await dba.execute(
        "insert into dead_letters values ($1, 'deliver', 'direct', 8, 0, '', now() - interval '40 days')", new_id()
    )
    await dba.execute("alter table idempotency_keys rename to idempotency_keys_away")
    try:
        assert await run_once(database, None) == {"dead_letters": 1}
    finally:
        await dba.execute("alter table idempotency_keys_away rename to idempotency_keys")


@pytest.mark.parametrize("yields", [False, True])
async def test_server_processes_of_the_bulk_lane_give_way_to_all_others(url: str, *, yields: bool) -> None:
    pool = Database(url, 1, yields=yields)
    await pool.open()
    pid = await pool.value("select pg_backend_pid()")
    assert os.getpriority(os.PRIO_PROCESS, pid) == (10 if yields else os.getpriority(os.PRIO_PROCESS, 0))
    await pool.close()


# Streams, by a clock that jumps over every wait


class Hurried(asyncio.SelectorEventLoop):
    """An event loop in which nothing takes time but what it waits for, which takes none of ours."""

    def __init__(self) -> None:
        super().__init__(_Impatient(self))
        self.skipped = 0.0

    def time(self) -> float:
        return super().time() + self.skipped


class _Impatient(selectors.DefaultSelector):
    def __init__(self, loop: Hurried) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found and timeout:
            self._loop.skipped += timeout
        return found


class _Quiet(Streams):
    """Where nothing happens."""

    def changed(self, user_ids: Collection[int] | None) -> None:
        """Look at nothing."""


def hurried(work: Callable[[Hurried], Coroutine[Any, Any, None]]) -> None:
    loop = Hurried()
    try:
        loop.run_until_complete(work(loop))
    finally:
        loop.close()


def test_a_stream_in_which_nothing_happens_has_a_comment_every_fifteen_seconds() -> None:
    async def watched(loop: Hurried) -> None:
        began, sent = loop.time(), []

        async def send(lines: bytes) -> None:
            sent.append((lines, round(loop.time() - began)))
            if len(sent) == 4:
                reader.close()

        reader = Stream(1, time.time() + 10**6)
        await reader.run(send)
        assert sent == [(COMMENT, 15), (COMMENT, 30), (COMMENT, 45), (COMMENT, 60)]

    hurried(watched)


def test_a_reader_that_takes_nothing_for_thirty_seconds_is_hung_up_on(database: Database) -> None:
    async def stalled(loop: Hurried) -> None:
        began, hung_up = loop.time(), []
        gone = asyncio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        def hang_up() -> None:
            hung_up.append(round(loop.time() - began))
            gone.set()

        reader = Stream(1, time.time() + 10**6)
        reader.made = reader.position = 1
        scope: Any = {"type": "http", "state": {}, ABORT: hang_up}
        await StreamResponse(_Quiet(database), reader)(scope, receive, send)
        assert hung_up == [45]  # fifteen seconds of silence, and thirty in which the comment was not taken

    hurried(stalled)
