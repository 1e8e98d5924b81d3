"""The job queues: claims, leases, retries, and when a worker's leases expire."""

import os
import socket
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Self
from uuid import UUID

import pytest

from tests.support.events import accepted, message_event, post
from tests.support.service import Api
from tests.support.waiting import bounded
from tocsin import dead_letters, jobs
from tocsin.api import operations
from tocsin.audit import Actor
from tocsin.db.connections import Connection, Record
from tocsin.db.pool import Database
from tocsin.dead_letters import Replayed
from tocsin.ids import new_id
from tocsin.jobs import Job, Lost, Witness

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


async def queued(  # noqa: PLR0913 - a job
    database: Database,
    *,
    due_in: float = -1,
    queue: str = "direct",
    batch: UUID | None = None,
    cost: int = 1,
    worker: UUID | None = None,
    attempts: int = 0,
) -> UUID:
    """Insert a job; return its id."""
    id_ = new_id()
    await database.value(
        "insert into jobs (id, task, lane, due_at, batch, cost, worker_id, attempts, wanted_at)"
        " select $1, 'fanout', $2, at, $4, $5, $6, $7, at from (select now() + make_interval(secs => $3)) t (at)",
        *(id_, queue, due_in, batch, cost, worker, attempts),
    )
    return id_


async def found(database: Database, id_: UUID) -> Record:
    """Return a job, with the seconds until it is due."""
    row = await database.row(
        "select *, extract(epoch from due_at - now())::float8 as due_in from jobs where id = $1", id_
    )
    assert row is not None
    return row


async def claimed(database: Database, queue: jobs.Queue = "direct", limit: int = 100) -> list[UUID]:
    return [job.id for job in await jobs.claim(database, new_id(), queue, limit)]


async def test_due_jobs_are_claimed_oldest_first_up_to_the_limit(database: Database) -> None:
    await queued(database, due_in=60)
    await queued(database, worker=new_id())
    bulk = await queued(database, queue="bulk")
    third, first, second = [await queued(database, due_in=due_in) for due_in in (-1, -3, -2)]
    worker = new_id()
    leased = await jobs.claim(database, worker, "direct", 2)
    assert [(job.id, job.queue, job.attempts, job.progress) for job in leased] == [
        (first, "direct", 1, 0),
        (second, "direct", 1, 0),
    ]
    assert all(job.due_at == job.wanted_at for job in leased)
    assert (await found(database, first))["worker_id"] == worker
    assert await claimed(database) == [third]
    assert await claimed(database) == []
    assert await claimed(database, "bulk") == [bulk]


async def test_jobs_of_one_claim_cost_at_most_the_maximum_together(database: Database) -> None:
    half = jobs.MAX_CLAIM_COST // 2
    costs = {4: half, 3: jobs.MAX_CLAIM_COST - half, 2: 1, 1: jobs.MAX_CLAIM_COST + 1}
    ids = [await queued(database, due_in=-age, cost=cost) for age, cost in costs.items()]
    assert await claimed(database) == ids[:2]
    assert await claimed(database) == ids[2:3]
    assert await claimed(database) == ids[3:]


async def test_batch_is_claimed_by_one_worker_at_a_time(database: Database) -> None:
    batch, other = new_id(), new_id()
    first, second, third = [await queued(database, batch=batch, due_in=due_in) for due_in in (-9, -8, -7)]
    apart = await queued(database, batch=other)
    single = await queued(database)
    worker = new_id()
    leased = await jobs.claim(database, worker, "direct", 2)
    assert [job.id for job in leased] == [first, second]
    assert sorted(await claimed(database)) == sorted([apart, single])
    async with database.transaction() as connection:
        await jobs.hand_back(connection, worker, [first, second])
    assert await claimed(database) == [first, second, third]


async def test_batch_waits_for_its_large_event_in_the_bulk_queue(database: Database) -> None:
    batch = new_id()
    await queued(database, batch=batch)
    large = await queued(database, batch=batch, queue="bulk")
    single = await queued(database, batch=new_id())
    assert await claimed(database) == [single]
    assert await claimed(database, "bulk") == [large]


async def test_finished_jobs_are_removed_only_by_the_worker_that_has_them(database: Database) -> None:
    one, two = new_id(), new_id()
    mine, theirs = await queued(database, worker=one), await queued(database, worker=two)
    for both in ([mine, theirs], [theirs], [new_id()]):
        with pytest.raises(Lost):
            async with database.transaction() as connection:
                await jobs.finish(connection, one, both)
    assert await jobs.is_there(database, mine)
    async with database.transaction() as connection:
        await jobs.finish(connection, one, [mine])
        await jobs.finish(connection, one, [])
    assert not await jobs.is_there(database, mine)
    assert await jobs.is_there(database, theirs)


async def test_saved_progress_returns_a_job_to_the_end_of_the_bulk_queue(database: Database) -> None:
    worker = new_id()
    job = await queued(database, worker=worker, attempts=3, due_in=-60)
    waiting = await queued(database, queue="bulk", due_in=-1)
    for other in (new_id(), None):
        with pytest.raises(Lost):
            async with database.transaction() as connection:
                await jobs.save_progress(connection, other or worker, [(job if other else waiting, 9)])
    async with database.transaction() as connection:
        await jobs.save_progress(connection, worker, iter([(job, 7)]))
    row = await found(database, job)
    assert (row["worker_id"], row["attempts"], row["lane"], row["progress"]) == (None, 0, "bulk", 7)
    assert await claimed(database, "bulk") == [waiting, job]


@pytest.mark.parametrize(("seconds", "due_in"), [(0, -60), (0.5, 0.5), (30, 30)])
async def test_job_that_is_handed_back_was_never_claimed(database: Database, seconds: float, due_in: float) -> None:
    worker = new_id()
    job = await queued(database, worker=worker, attempts=2, due_in=-60)
    never = await queued(database, worker=worker, attempts=0)
    theirs = await queued(database, worker=(other := new_id()), attempts=2)
    async with database.transaction() as connection:
        await jobs.hand_back(connection, worker, [job, never, theirs], seconds)
    row = await found(database, job)
    assert (row["worker_id"], row["attempts"]) == (None, 1)
    assert due_in - 30 < row["due_in"] <= due_in
    assert (await found(database, never))["attempts"] == 0
    row = await found(database, theirs)
    assert (row["worker_id"], row["attempts"]) == (other, 2)


async def test_job_behind_a_lock_is_handed_back_with_those_after_it_in_its_batch(database: Database) -> None:
    worker, batch = new_id(), new_id()
    before = await queued(database, batch=batch, worker=worker, attempts=1, due_in=-50)
    job = await queued(database, batch=batch, worker=worker, attempts=1, due_in=-40)
    leased = await queued(database, batch=batch, worker=worker, attempts=3, due_in=-30)
    free = await queued(database, batch=batch, due_in=-20)
    theirs = await queued(database, batch=batch, worker=(other := new_id()), attempts=1, due_in=-10)
    large = await queued(database, batch=batch, worker=worker, queue="bulk", attempts=1, due_in=-10)
    held = await queued(database, batch=batch, due_in=500)
    apart = await queued(database, batch=new_id(), due_in=-10)
    of_job = Job(job, "fanout", "direct", NOON, NOON, 1, 0, batch)
    assert await jobs.hand_back_behind_lock(database, new_id(), of_job, 100) == set()
    assert await jobs.hand_back_behind_lock(database, worker, of_job, 100) == {job, leased, free}
    rows = [await found(database, each) for each in (job, leased, free)]
    assert [(row["worker_id"], row["attempts"]) for row in rows] == [(None, 0), (None, 2), (None, 0)]
    assert 60 < rows[0]["due_in"] <= 100
    assert [(row["due_at"] - rows[0]["due_at"]).total_seconds() for row in rows] == pytest.approx([0, 10, 20], abs=5)
    stayed = [await found(database, each) for each in (before, theirs, large, held, apart)]
    assert [(row["worker_id"], row["attempts"]) for row in stayed] == [
        (worker, 1),
        (other, 1),
        (worker, 1),
        (None, 0),
        (None, 0),
    ]
    assert [row["due_in"] < 0 for row in stayed] == [True, True, True, False, True]


async def leased_jobs(database: Database, ids: Sequence[UUID]) -> list[Job]:
    rows = await database.rows(
        "select id, task, lane as queue, due_at, wanted_at, attempts, progress, batch from jobs"
        " where id = any($1::uuid[])",
        ids,
    )
    return [Job(**row) for row in rows]


async def test_jobs_of_a_batch_wait_for_an_earlier_one_that_is_not_leased(database: Database) -> None:
    batch, other, large = new_id(), new_id(), new_id()
    first = await queued(database, batch=batch, due_in=-9)
    middle = await queued(database, batch=batch, due_in=-8)
    last = await queued(database, batch=batch, due_in=-7)
    alone = await queued(database, batch=other)
    single = await queued(database)
    behind = await queued(database, batch=large, due_in=-99)
    await queued(database, batch=large, queue="bulk", due_in=-1)
    leased = await leased_jobs(database, [first, last, alone, single, behind])
    assert await jobs.out_of_turn(database, leased) == {last, behind}
    assert await jobs.out_of_turn(database, await leased_jobs(database, [middle, last])) == {middle, last}
    assert await jobs.out_of_turn(database, await leased_jobs(database, [single])) == set()
    in_bulk = [
        Job(**row)
        for row in await database.rows(
            "select id, task, lane as queue, due_at, wanted_at, attempts, progress, batch from jobs where lane = 'bulk'"
        )
    ]
    assert await jobs.out_of_turn(database, in_bulk) == set()


async def test_failed_job_is_delayed_longer_each_time_and_then_a_dead_letter(database: Database) -> None:
    worker = new_id()
    job = await queued(database, due_in=-60, cost=7)
    for delay in jobs.RETRY_DELAYS:
        await database.value("update jobs set due_at = now() - interval '1 s'")
        [leased] = await jobs.claim(database, worker, "direct", 1)
        assert not await jobs.fail(database, new_id(), leased, "no lease")
        assert (await found(database, job))["worker_id"] == worker
        assert not await jobs.fail(database, worker, leased, "it failed")
        row = await found(database, job)
        assert (row["worker_id"], row["attempts"]) == (None, leased.attempts)
        assert delay - 30 < row["due_in"] <= delay
        assert (row["due_at"] - row["wanted_at"]).total_seconds() > 50 + delay
    await database.value("update jobs set due_at = now() - interval '1 s', progress = 5")
    [leased] = await jobs.claim(database, worker, "direct", 1)
    assert leased.attempts == len(jobs.RETRY_DELAYS) + 1
    await jobs.move_to_dead_letters(database, new_id(), leased.id, "no lease")
    assert await database.value("select count(*) from dead_letters") == 0
    assert await jobs.fail(database, worker, leased, "it failed")
    assert not await jobs.is_there(database, job)
    [dead] = await database.rows("select id, task, lane, attempts, progress, cost, reason from dead_letters")
    assert tuple(dead) == (job, "fanout", "direct", leased.attempts, 5, 7, "it failed")


async def test_released_leases_are_those_of_the_worker_in_the_queue(database: Database) -> None:
    worker, other = new_id(), new_id()
    mine = await queued(database, worker=worker, attempts=2)
    never = await queued(database, worker=worker, attempts=0)
    bulk = await queued(database, worker=worker, attempts=2, queue="bulk")
    theirs = await queued(database, worker=other, attempts=2)
    await jobs.release(database, worker, "direct")
    rows = [await found(database, each) for each in (mine, never, bulk, theirs)]
    assert [(row["worker_id"], row["attempts"]) for row in rows] == [(None, 1), (None, 0), (worker, 2), (other, 2)]


async def test_worker_that_leaves_releases_its_leases(database: Database) -> None:
    worker, other = new_id(), new_id()
    for each in (worker, other):
        await jobs.enrol(database, each, "one")
    mine, theirs = await queued(database, worker=worker, attempts=1), await queued(database, worker=other, attempts=1)
    await jobs.leave(database, worker)
    rows = [await found(database, each) for each in (mine, theirs)]
    assert [(row["worker_id"], row["attempts"]) for row in rows] == [(None, 0), (other, 1)]
    assert await jobs.beat(database, worker) is None
    assert await jobs.beat(database, other) is not None
    await jobs.leave(database, other)


async def test_leases_of_silent_and_unregistered_workers_expire(database: Database) -> None:
    silent, lively, unknown = new_id(), new_id(), new_id()
    for each in (silent, lively):
        await jobs.enrol(database, each, "one")
    ids = [await queued(database, worker=each, attempts=1) for each in (silent, lively, unknown)]
    free = await queued(database)
    await database.value("update workers set seen_at = now() - interval '1 minute' where id = $1", silent)
    seen_at = await jobs.beat(database, lively)
    assert seen_at is not None

    async def owners() -> list[UUID | None]:
        return [(await found(database, each))["worker_id"] for each in (*ids, free)]

    await jobs.reap(database, None)
    assert await owners() == [silent, lively, None, None]
    await jobs.reap(database, seen_at - timedelta(seconds=15))
    assert await owners() == [None, lively, None, None]
    assert [(await found(database, each))["attempts"] for each in ids] == [1, 1, 1]  # the attempt may have begun
    await jobs.leave(database, lively)


async def test_leases_from_before_the_clock_was_set_back_expire(database: Database) -> None:
    lost, lively = new_id(), new_id()
    for each in (lost, lively):
        await jobs.enrol(database, each, "one")
    ids = [await queued(database, worker=each) for each in (lost, lively)]
    await database.value("update workers set seen_at = now() + interval '1 hour' where id = $1", lost)
    ahead = await jobs.beat(database, lively)
    assert ahead is not None

    async def owners() -> list[UUID | None]:
        return [(await found(database, each))["worker_id"] for each in ids]

    await jobs.reap(database, ahead + timedelta(hours=1, seconds=-15))  # by the clock before
    assert await owners() == [lost, lively]
    await jobs.reap(database, ahead - timedelta(seconds=15))
    assert await owners() == [None, lively]
    await jobs.leave(database, lively)


async def test_leases_of_locked_jobs_expire_later(database: Database, dba: Connection) -> None:
    unknown = new_id()
    locked, free = await queued(database, worker=unknown), await queued(database, worker=unknown)
    async with dba.transaction():
        await dba.execute("select from jobs where id = $1 for update", locked)
        async with bounded():
            await jobs.reap(database, None)
        assert [(await found(database, each))["worker_id"] for each in (locked, free)] == [unknown, None]
    await jobs.reap(database, None)
    assert (await found(database, locked))["worker_id"] is None


async def test_leases_of_deliveries_expire_with_their_worker_unless_locked(database: Database, dba: Connection) -> None:
    lively, unknown = new_id(), new_id()
    await jobs.enrol(database, lively, "one")
    of_lively, locked, free, waiting = [new_id() for _ in range(4)]
    for id_, worker in ((of_lively, lively), (locked, unknown), (free, unknown), (waiting, None)):
        await database.value(
            "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending, worker_id)"
            " values ($1, $1, 1, 'apns/default', false, 'iOS', 'abcdef', $2)",
            *(id_, worker),
        )

    version = "select xmin::text from deliveries where event_id = $1"
    written = await database.value(version, waiting)

    async def owners() -> list[UUID | None]:
        rows = {row["event_id"]: row["worker_id"] for row in await database.rows("select * from deliveries")}
        return [rows[id_] for id_ in (of_lively, locked, free)]

    async with dba.transaction():
        await dba.execute("select from deliveries where event_id = $1 for update", locked)
        async with bounded():
            await jobs.reap(database, None)
        assert await owners() == [lively, unknown, None]
    await jobs.reap(database, None)
    assert await owners() == [lively, None, None]
    assert await database.value(version, waiting) == written  # a delivery without a lease is not written again
    await jobs.leave(database, lively)


async def test_forgotten_workers_have_no_leases(database: Database) -> None:
    worker = new_id()
    await jobs.enrol(database, worker, "one")
    job = await queued(database, worker=worker)
    await jobs.forget_workers(database)
    assert (await found(database, job))["worker_id"] is None
    assert await jobs.beat(database, worker) is None


async def test_workers_that_run_are_not_forgotten(database: Database) -> None:
    machine, ended = socket.gethostname(), subprocess.Popen(["true"])
    ended.wait()
    names = {
        f"{machine}:{os.getppid()}": True,
        f"{machine}:1": True,  # of another user
        f"{machine}:{ended.pid}": False,
        f"{machine}:{os.getpid()}": False,  # an earlier process, such as that of a container before it was restarted
        f"elsewhere:{os.getppid()}": False,
    }
    workers = {new_id(): name for name in names}
    for worker, name in workers.items():
        await jobs.enrol(database, worker, name)
    leased = {worker: await queued(database, worker=worker) for worker in workers}
    await jobs.forget_workers(database)
    for worker, name in workers.items():
        kept = (await found(database, leased[worker]))["worker_id"] == worker
        assert kept is names[name], name
        await jobs.leave(database, worker)


async def test_depth_counts_due_jobs_of_each_queue_and_their_longest_wait(database: Database) -> None:
    assert await jobs.depth(database) == {"direct": (0, 0.0), "bulk": (0, 0.0)}
    await queued(database, due_in=3600)
    await queued(database, due_in=-100)
    await queued(database, due_in=-300, worker=new_id())
    await queued(database, due_in=-200, queue="bulk")
    await queued(database, due_in=-500, queue="bulk")
    depth = await jobs.depth(database)
    assert {queue: count for queue, (count, _) in depth.items()} == {"direct": 2, "bulk": 2}
    assert 300 <= depth["direct"][1] < 400
    assert 500 <= depth["bulk"][1] < 600
    assert {queue: count for queue, (count, _) in (await jobs.depth(database, 1)).items()} == {"direct": 2, "bulk": 1}


def seconds(number: float) -> datetime:
    return NOON + timedelta(seconds=number)


def test_witness_expects_silence_of_the_lease_timeout_before_own_heartbeat() -> None:
    witness = Witness()
    assert witness.silent_since is None
    witness.beat(seconds(0))
    assert witness.silent_since == seconds(-15)
    witness.beat(seconds(10))
    assert witness.silent_since == seconds(-5)


def test_witness_doubts_until_heartbeats_succeed_for_the_lease_timeout() -> None:
    witness = Witness()
    witness.beat(seconds(0))
    witness.beat(seconds(10.001))
    for number in (10.001, 15, 20, 25):
        witness.beat(seconds(number))
        assert witness.silent_since is None
    witness.beat(seconds(25.001))
    assert witness.silent_since == seconds(10.001)


def test_witness_doubts_for_the_lease_timeout_after_the_clock_was_set() -> None:
    witness = Witness()
    witness.beat(seconds(0))
    witness.beat(seconds(3600))
    assert witness.silent_since is None
    for number in (5, 10, 15):
        witness.beat(seconds(number))
        assert witness.silent_since is None
    witness.beat(seconds(20))
    assert witness.silent_since == seconds(5)


async def test_concurrent_claims_skip_locked_jobs(idle: Api, database: Database, dba: Connection) -> None:
    await idle.people(1)
    first, second = await accepted(idle, 1), await accepted(idle, 1)
    async with dba.transaction():
        rows = await dba.fetch(jobs._SQL["claim"], new_id(), "direct", 1, 10**6)  # noqa: SLF001 - in a transaction
        assert [row["id"] for row in rows] == [first]
        async with bounded():
            claimed = await jobs.claim(database, new_id(), "direct", 10)
    assert [job.id for job in claimed] == [second]


async def test_heartbeat_returns_database_time_for_registered_workers_only(database: Database) -> None:
    worker = new_id()
    assert await jobs.beat(database, worker) is None
    enrolled = await jobs.enrol(database, worker, "one")
    seen_at = await jobs.beat(database, worker)
    assert seen_at is not None
    assert seen_at >= enrolled
    await jobs.leave(database, worker)


async def test_all_dead_letters_are_replayed_in_steps_of_bounded_size(
    idle: Api, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "REQUEUE_BATCH_SIZE", 2)
    await dba.execute(
        "insert into dead_letters (id, task, lane, attempts, progress, cost, reason, died_at)"
        " select gen_random_uuid(), 'deliver', 'direct', 8, 0, 1, 'an error', now() + make_interval(mins => n)"
        " from unnest('{-5,-4,-3,-2,-1,10}'::int[]) n",
    )
    await dba.execute(
        "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending, state, settled_at)"
        " select gen_random_uuid(), gen_random_uuid(), 1, 'apns/default', false, 'iOS', '', 'dead', now()"
        " from generate_series(1, 3)"
    )
    database, pubsub = idle.app_state.database, idle.app_state.pubsub
    oldest = await dba.fetchval("select array(select id from dead_letters order by died_at limit 2)")
    since, actor = datetime.now(UTC) - timedelta(hours=1), Actor("test")
    assert await dead_letters.replay(database, pubsub, None, since, actor) == Replayed(2, 2)
    assert set(await dba.fetchval("select array(select id from jobs)")) == set(oldest)
    assert await dead_letters.replay_all(database, pubsub, since, actor) == Replayed(3, 1)
    assert await dba.fetchval("select count(*) from dead_letters") == 1  # it died after the command had begun
    assert await dba.fetchval("select count(*) from audit_entries") == 3


class Behind(datetime):
    """The clock of a process that is an hour behind that of the database."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) - timedelta(hours=1)


async def test_dead_letters_are_found_and_replayed_by_the_clock_of_the_database(
    idle: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await idle.people(1)
    for module in (operations, dead_letters):
        monkeypatch.setattr(module, "datetime", Behind)
    database, pubsub = idle.app_state.database, idle.app_state.pubsub
    assert (
        await idle.as_user(1, "POST", "/notifications", json={"message": "Hello", "notify": {"users": [1]}})
    ).is_success
    worker = new_id()
    [job] = await jobs.claim(database, worker, "direct", 10)
    await database.value(jobs._SQL["move_to_dead_letters"], worker, job.id, "an error")  # noqa: SLF001 - as a worker does
    for path in ("dead-letters", "custom-notifications"):
        answer = await idle.as_service("GET", f"/operations/{path}", "operations")
        assert len(answer.json()["data"]) == 1, path
    since = datetime.now(UTC) - timedelta(days=1)
    assert await dead_letters.replay_all(database, pubsub, since, Actor("test")) == Replayed(1, 0)


async def test_replay_of_a_company_begins_at_its_own_first_dead_letter(
    idle: Api, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "REQUEUE_BATCH_SIZE", 1)
    await idle.people(1)
    await idle.people(2, company_id=2)
    first = await accepted(idle, 1)
    second = UUID((await post(idle, message_event("Hello", 2), company_id=2)).json()["id"])
    await dba.execute(
        "with dead as (delete from jobs returning *)"
        " insert into dead_letters (id, task, lane, attempts, progress, reason, died_at)"
        " select id, task, lane, 8, 0, 'an error', now() - make_interval(mins => case id when $1 then 2 else 1 end)"
        " from dead",
        first,
    )
    since, actor = datetime.now(UTC) - timedelta(hours=1), Actor("test", company_id=2)
    replayed = await dead_letters.replay(idle.app_state.database, idle.app_state.pubsub, None, since, actor)
    assert replayed == Replayed(1, 0)
    assert await dba.fetchval("select array(select id from jobs)") == [second]
