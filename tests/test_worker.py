"""Workers: leases, failures, fairness, and wakeups."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.support.events import in_future, message_event
from tests.support.service import Api, serving
from tests.support.waiting import bounded, until
from tocsin import fanout, jobs, pubsub, worker
from tocsin.catalogue import Catalogue
from tocsin.catalogue.rendering import Words
from tocsin.db.connections import connect
from tocsin.db.pool import Database
from tocsin.ids import new_id
from tocsin.jobs import Job, Lost
from tocsin.pubsub import PubSub
from tocsin.worker import BATCH, Worker

FOR_EVER = 3600.0
SOON = 0.02
Render = Callable[..., Words]


async def post(api: Api, *users: int, teams: Sequence[int] = (), body: str = "Hello") -> UUID:
    """Post an event and leave it in the queue."""
    event = {"type": "custom", "notify": {"users": users, "teams": teams}, "params": {"body": body}}
    answer = await api.as_service("POST", "/events", json=event)
    assert answer.status_code == 202, answer.text
    return UUID(answer.json()["id"])


async def state(api: Api, id_: UUID, wait: int = 30) -> str:
    """Return the state of an event after waiting up to `wait` seconds."""
    answer: str = (await api.as_service("GET", f"/events/{id_}?wait={wait}")).json()["state"]
    return answer


@asynccontextmanager
async def working(url: str, catalogue: Catalogue) -> AsyncIterator[Worker]:
    """Run a worker that shares nothing with the service but the database."""
    database = Database(url, 4)
    await database.open()
    bells = PubSub(url, database)
    worker = Worker(database, catalogue, bells)
    ears, run = asyncio.create_task(bells.receive()), asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await run
        ears.cancel()
        await asyncio.gather(ears, return_exceptions=True)
        await bells.close()
        await database.close()


async def finds(database: Database, statement: str, *arguments: Any) -> Any:
    """Wait until a statement finds something, and return it."""
    return await until(lambda: database.value(statement, *arguments))


@pytest.fixture
def beating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make workers check for dead workers and their jobs continuously."""
    monkeypatch.setattr(jobs, "HEARTBEAT_INTERVAL", SOON)
    look_again_after(SOON, monkeypatch)


def look_again_after(seconds: float, monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[None]:
    """Set how long lanes wait for a wakeup; the queue gets an item whenever a lane starts to wait.

    Those of workers that go on after the test, as of a service that tests share, look again soon after it.
    """
    begun = asyncio.Queue[None]()

    async def wait(bell: asyncio.Event, _until_due: float) -> None:
        begun.put_nowait(None)
        end = time.monotonic() + seconds
        while not bell.is_set() and time.monotonic() < end and vars(worker)["wait"] is wait:
            await pubsub.wait(bell, min(seconds, pubsub.POLL))

    monkeypatch.setattr(worker, "wait", wait)
    return begun


async def all_lanes(begun: asyncio.Queue[None]) -> None:
    async with bounded():
        for _ in BATCH:
            await begun.get()


async def reap(database: Database) -> None:
    await jobs.reap(database, await database.value("select now() - interval '15 s'"))


async def enrolled(database: Database, *, silent: bool = False) -> UUID:
    """Register a worker as alive or dead."""
    id_ = new_id()
    await jobs.enrol(database, id_, "one of the test")
    if silent:
        await fall_silent(database, id_)
    return id_


async def fall_silent(database: Database, worker: UUID) -> None:
    await database.value(
        "update workers set seen_at = seen_at - make_interval(secs => $2) where id = $1", worker, jobs.LEASE_TIMEOUT + 1
    )


async def claimed(database: Database, worker: UUID) -> list[Job]:
    return await jobs.claim(database, worker, "direct", 10)


async def inbox_of(database: Database, user: int) -> tuple[list[UUID], tuple[int, int, int]]:
    """The notifications of a user, the newest last, and the position, total and unread of the inbox."""
    rows = await database.rows("select event_id from inbox where user_id = $1 order by position", user)
    head = await database.row("select position, total, unread from heads where user_id = $1", user)
    assert head is not None
    return [row["event_id"] for row in rows], tuple(head)


# Leases


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.usefixtures("beating")
async def test_jobs_of_a_dead_worker_are_taken_over(
    idle: Api, database: Database, url: str, catalogue: Catalogue, *, known: bool
) -> None:
    await idle.people(1)
    id_ = await post(idle, 1)
    vanished = await enrolled(database, silent=True) if known else new_id()
    assert [job.id for job in await claimed(database, vanished)] == [id_]
    async with working(url, catalogue):
        assert await state(idle, id_) == "delivered"
    assert await inbox_of(database, 1) == ([id_], (1, 1, 1))


@pytest.mark.usefixtures("beating")
async def test_jobs_of_a_live_worker_are_not_taken_over(
    idle: Api, database: Database, url: str, catalogue: Catalogue
) -> None:
    await idle.people(1)
    id_ = await post(idle, 1)
    holder = await enrolled(database)
    leased = await claimed(database, holder)
    async with working(url, catalogue) as other:
        for _ in range(2):
            seen = await finds(database, "select seen_at from workers where id = $1", other.id)
            await finds(database, "select true from workers where id = $1 and seen_at > $2", other.id, seen)
        assert await database.value("select worker_id from jobs where id = $1", id_) == holder
        assert (await fanout.deliver(database, catalogue, holder, leased)).events == [id_]
    assert await inbox_of(database, 1) == ([id_], (1, 1, 1))


async def test_worker_without_its_lease_cannot_commit(idle: Api, database: Database, catalogue: Catalogue) -> None:
    await idle.people(1)
    id_ = await post(idle, 1)
    first, second = await enrolled(database), await enrolled(database)
    [job] = await claimed(database, first)
    await fall_silent(database, first)
    await reap(database)
    [again] = await claimed(database, second)
    assert (job.id, again.id, again.attempts) == (id_, id_, 2)
    with pytest.raises(Lost):
        await fanout.deliver(database, catalogue, first, [job])
    assert await inbox_of(database, 1) == ([], (0, 0, 0))
    await jobs.fail(database, first, job, "of no concern")
    await jobs.move_to_dead_letters(database, first, job.id, "of no concern")
    await jobs.release(database, first, "direct")
    assert (await fanout.deliver(database, catalogue, second, [again])).events == [id_]
    with pytest.raises(Lost):
        await fanout.deliver(database, catalogue, first, [job])
    assert await inbox_of(database, 1) == ([id_], (1, 1, 1))
    assert await state(idle, id_, 0) == "delivered"


async def test_takeover_waits_for_a_commit_in_progress(
    idle: Api, database: Database, catalogue: Catalogue, url: str
) -> None:
    await idle.people(1)
    id_ = await post(idle, 1)
    first, second = await enrolled(database), await enrolled(database)
    leased = await claimed(database, first)
    await fall_silent(database, first)
    async with held_up(url, 1):
        delivering = asyncio.create_task(fanout.deliver(database, catalogue, first, leased))
        await finds(database, BLOCKED, 1)
        await reap(database)  # without waiting
        assert await claimed(database, second) == []
    assert (await delivering).events == [id_]
    assert await claimed(database, second) == []
    assert await inbox_of(database, 1) == ([id_], (1, 1, 1))


BLOCKED = "select count(*) = $1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"


@asynccontextmanager
async def held_up(url: str, user: int) -> AsyncIterator[None]:
    """Lock the inbox of a user, so that nothing can be delivered."""
    connection = await connect(url)
    try:
        async with connection.transaction():
            await connection.execute("select from heads where user_id = $1 for update", user)
            yield
    finally:
        await connection.close()


@pytest.mark.usefixtures("beating")
async def test_worker_declared_dead_registers_again(
    idle: Api, database: Database, url: str, catalogue: Catalogue
) -> None:
    await idle.people(1)
    async with working(url, catalogue) as worker:
        await finds(database, "delete from workers where id = $1 returning true", worker.id)
        await finds(database, "select true from workers where id = $1", worker.id)
        id_ = await post(idle, 1)
        assert await state(idle, id_) == "delivered"
    assert not await database.value("select true from workers where id = $1", worker.id)


async def test_worker_registration_is_repeated_after_a_lost_response(database: Database) -> None:
    worker = await enrolled(database, silent=True)
    await jobs.enrol(database, worker, "one of the test")
    assert await database.value("select seen_at > now() - interval '10 s' from workers where id = $1", worker)
    await jobs.leave(database, worker)


# Failures


def break_rendering(monkeypatch: pytest.MonkeyPatch, of: str) -> list[None]:
    """Make rendering of events with the body `of` fail; the list records every attempt."""
    tries: list[None] = []
    render: Render = Catalogue.render

    def broken(self: Catalogue, kind: str, language: str, data: Any, params: Any, **more: Any) -> Words:
        if params["body"] == of:
            tries.append(None)
            raise RuntimeError("no words for it")
        return render(self, kind, language, data, params, **more)

    monkeypatch.setattr(Catalogue, "render", broken)
    return tries


async def test_failing_job_is_retried_and_its_batch_is_delivered(
    idle: Api, database: Database, url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RETRY_DELAYS", (FOR_EVER,))
    break_rendering(monkeypatch, of="bad")
    await idle.people(1)
    posted = [await post(idle, 1, body=body) for body in ("one", "bad", "two", "three")]
    bad = posted.pop(1)
    async with working(url, catalogue):
        assert [await state(idle, id_) for id_ in posted] == ["delivered"] * 3
        await finds(database, "select attempts > 0 and worker_id is null from jobs where id = $1", bad)
        assert await state(idle, bad, 0) == "queued"
    row = await database.row("select attempts, due_at - now() > interval '50 min' as later from jobs")
    assert row is not None
    assert tuple(row) == (1, True)
    assert await inbox_of(database, 1) == (posted, (3, 3, 3))


async def test_job_that_keeps_failing_becomes_a_dead_letter(
    idle: Api, database: Database, url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_again_after(SOON, monkeypatch)
    monkeypatch.setattr(jobs, "RETRY_DELAYS", (0.0,) * len(jobs.RETRY_DELAYS))
    tries = break_rendering(monkeypatch, of="bad")
    await idle.people(1)
    id_ = await post(idle, 1, body="bad")
    async with working(url, catalogue):
        assert await state(idle, id_) == "failed"
    assert len(tries) == 8
    assert (await idle.as_service("GET", f"/events/{id_}")).json()["reason"] == "RuntimeError: no words for it"
    assert await database.value("select attempts from dead_letters where id = $1", id_) == 8
    assert await database.value("select count(*) from jobs") == 0


async def test_unknown_task_is_retried(idle: Api, database: Database, url: str, catalogue: Catalogue) -> None:
    await idle.people(1)
    strange = await database.value(
        "insert into jobs (id, task, lane) values (gen_random_uuid(), 'of_a_newer_release', 'direct') returning id"
    )
    id_ = await post(idle, 1)
    async with working(url, catalogue):
        assert await state(idle, id_) == "delivered"
        await finds(database, "select attempts > 0 and worker_id is null from jobs where id = $1", strange)


async def test_event_that_cannot_be_rendered_does_not_block_its_batch(
    idle: Api, database: Database, url: str, catalogue: Catalogue
) -> None:
    await idle.people(1)
    posted = [await post(idle, 1, body=str(number)) for number in range(5)]
    await database.value("update events set kind = 'of_an_older_catalogue' where id = $1", posted[2])
    async with working(url, catalogue):
        assert [await state(idle, id_) for id_ in posted] == [*["delivered"] * 2, "failed", *["delivered"] * 2]
    assert await database.value("select attempts from dead_letters where id = $1", posted.pop(2)) == 1
    assert await inbox_of(database, 1) == (posted, (4, 4, 4))


# Fairness


async def crowd(api: Api, size: int) -> None:
    """Create users 1..`size`, all in team 1."""
    await api.app_state.database.value(
        "insert into users select n, 1, 'F', 'L', null, null, 'UTC' from generate_series(1, $1::int) n", size
    )
    await api.app_state.database.value(
        "insert into heads (user_id, locale, active) select n, 'en', true from generate_series(1, $1::int) n", size
    )
    await api.team(1, *range(1, size + 1))


async def test_single_event_does_not_wait_for_a_large_fanout(
    idle: Api, database: Database, url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 50)
    await crowd(idle, 220)
    async with working(url, catalogue):
        async with held_up(url, 220):
            to_team = await post(idle, teams=[1])
            await finds(database, BLOCKED, 1)
            single = await post(idle, 5)
            assert await state(idle, single) == "delivered"
            assert await state(idle, to_team, 0) == "delivering"
            assert await database.value("select progress from jobs where id = $1", to_team) == 200
        assert await state(idle, to_team) == "delivered"
    assert await inbox_of(database, 5) == ([to_team, single], (2, 2, 2))
    assert await database.value("select count(*) from inbox where event_id = $1", to_team) == 220


async def test_large_fanouts_alternate(
    idle: Api, database: Database, url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 50)
    await crowd(idle, 180)
    posted = [await post(idle, teams=[1], body=body) for body in ("one", "two")]
    async with working(url, catalogue):
        assert [await state(idle, id_) for id_ in posted] == ["delivered"] * 2
    chunks = [row["event_id"] for row in await database.rows("select event_id from recipients order by delivered_at")]
    assert len(chunks) == 8
    assert {*chunks[::2]}.isdisjoint(chunks[1::2])


# Wakeups


async def test_jobs_of_this_process_start_immediately(
    url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = look_again_after(FOR_EVER, monkeypatch)
    async with serving(url, catalogue) as api:
        await crowd(api, 120)
        await all_lanes(begun)
        assert await state(api, await post(api, 1)) == "delivered"
        assert await state(api, await post(api, teams=[1])) == "delivered"


async def test_jobs_of_another_process_start_immediately(
    idle: Api, database: Database, url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = look_again_after(FOR_EVER, monkeypatch)
    await crowd(idle, 120)
    async with working(url, catalogue):
        await finds(database, LISTENING, [])
        await all_lanes(begun)
        assert await state(idle, await post(idle, 1)) == "delivered"
        assert await state(idle, await post(idle, teams=[1])) == "delivered"


async def test_listener_reconnects_after_a_lost_connection(
    idle: Api, database: Database, url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = look_again_after(FOR_EVER, monkeypatch)
    await idle.people(1)
    async with working(url, catalogue):
        listener = await finds(database, LISTENING, [])
        await database.value("select pg_terminate_backend($1)", listener)
        await finds(database, LISTENING, [listener])
        await all_lanes(begun)
        assert await state(idle, await post(idle, 1)) == "delivered"


LISTENING = (
    "select pid from pg_stat_activity"
    " where query like 'LISTEN%' and state = 'idle' and datname = current_database() and pid <> all($1::int[])"
)


async def test_lost_wakeup_delays_but_loses_no_event(
    idle: Api, url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = look_again_after(SOON, monkeypatch)
    monkeypatch.setattr(idle.app_state.pubsub, "publish", lambda _: None)
    await idle.people(1)
    async with working(url, catalogue):
        await all_lanes(begun)
        assert await state(idle, await post(idle, 1)) == "delivered"


async def test_thousand_wakeups_become_one_notification(idle: Api, url: str) -> None:
    heard: list[Any] = []
    listener = await connect(url)
    await listener.add_listener("tocsin_work", lambda *said: heard.append(said[-1]))
    for _ in range(1000):
        idle.app_state.pubsub.publish("direct")
        idle.app_state.pubsub.publish("bulk")
    await idle.app_state.pubsub.close()
    await listener.execute("select")
    await listener.close()
    assert heard == ["bulk direct"]


async def test_worker_delivers_a_scheduled_event_when_it_is_due(
    url: str, idle: Api, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait until it looks for work of which it got no message."""
    monkeypatch.setattr(worker, "POLL", FOR_EVER)
    await idle.people(1)
    async with working(url, catalogue):
        id_ = await idle.post(message_event("soon", 1, deliver_at=in_future(timedelta(milliseconds=400))))
        assert await state(idle, UUID(id_)) == "delivered"
