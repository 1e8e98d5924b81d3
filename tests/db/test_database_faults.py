"""Database errors: leases are released, and failing work does not stop other work."""

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from structlog.testing import capture_logs

from tests.support.database import drop_function, locked, make_database, renamed, waiting_at
from tests.support.events import accepted
from tests.support.logs import own_logs
from tests.support.pushes import IPHONE, becomes
from tests.support.service import Api, serving
from tests.support.waiting import bounded, reaches, until
from tests.support.workers import impatient
from tocsin import backoff, jobs, worker
from tocsin.catalogue import Catalogue
from tocsin.db import connections, planner_statistics
from tocsin.db.admission import HEARTBEAT, KIND
from tocsin.db.connections import Connection, connect
from tocsin.db.pool import Database
from tocsin.errors import Overrun, Unavailable
from tocsin.ids import new_id
from tocsin.postgres.supervisor import Embedded
from tocsin.push import dispatcher, results
from tocsin.worker import Worker
from tocsin_phones import Phones

SLOW, PATIENCE = 66, 2.0

SLEEPING = """
create function sleep_for_some() returns trigger language plpgsql as
    'begin if new.user_id = {slow} then perform pg_sleep(3); end if; return new; end';
create trigger sleeping before insert on inbox for each row execute function sleep_for_some();
"""


@pytest.fixture
async def slow_inbox(server: Embedded) -> str:
    """A database in which the inbox of one user takes three seconds."""
    url = await make_database(server, f"slow_{new_id().hex}")
    connection = await connect(url)
    await connection.execute(SLEEPING.format(slow=SLOW))
    await connection.close()
    return url


# One classification of errors


async def test_lock_timeout_is_an_outage_and_slow_statement_is_not(
    url: str, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOCKS_PART", 0.02)
    monkeypatch.setattr(connections, "SERVERS_PART", 0.04)
    pool = Database(url, 2)
    await pool.open()
    async with locked(dba, "lanes"):
        with pytest.raises(Unavailable) as found:
            await pool.rows("select from lanes")
    assert found.value.reason == "a lock was not released in time"
    with pytest.raises(Overrun):
        await pool.rows("select pg_sleep(3)")
    assert await pool.value("select 1") == 1
    await pool.close()


async def test_storage_errors_are_outages_and_statement_errors_are_not(url: str) -> None:
    pool = Database(url, 2)
    await pool.open()
    own = "select pg_backend_pid()"
    for statement, reason in (
        ("select pg_terminate_backend(pg_backend_pid())", "the connection to the database was lost"),
        ("do $$ begin raise sqlstate '53100'; end $$", "the disk of the database is full"),
        ("do $$ begin raise sqlstate '53300'; end $$", "the database takes no more connections"),
        ("do $$ begin raise sqlstate '40P01'; end $$", "two transactions waited for each other"),
        ("do $$ begin raise sqlstate '40001'; end $$", "a transaction was in conflict"),
        ("do $$ begin raise sqlstate '25006'; end $$", "the database is read-only"),
        ("do $$ begin raise sqlstate '25P03'; end $$", "a transaction was idle for too long"),
    ):
        with pytest.raises(Unavailable) as found:
            await pool.rows(statement)
        assert found.value.reason.startswith(reason), statement
    for statement, kind in (
        ("select 1 / 0", asyncpg.DivisionByZeroError),
        ("select from nothing", asyncpg.UndefinedTableError),
    ):
        with pytest.raises(kind):
            await pool.rows(statement)
    with pytest.raises(asyncpg.DataError):
        await pool.rows("select $1::int", 2**40)
    same = await pool.value(own)
    with pytest.raises(asyncpg.DataError):
        await pool.rows("select $1::int", 2**40)
    assert await pool.value(own) == same
    async with pool.connection() as connection:
        await connection.execute("set default_transaction_read_only = on")
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute("delete from lanes")
    await pool.close()


async def test_sessions_override_timeouts_of_the_role(server: Embedded) -> None:
    url = await make_database(server, name := f"careful_{new_id().hex}")
    admin = await connect(url)
    for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"):
        await admin.execute(f"alter role current_user in database {name} set {setting} = '7s'")
    await admin.close()
    pool = Database(url, 1, 10.0)
    await pool.open()
    shown = {name: await pool.value(f"show {name}") for name in ("statement_timeout", "lock_timeout")}
    assert shown == {"statement_timeout": "9s", "lock_timeout": "8s"}
    assert await pool.value("show idle_in_transaction_session_timeout") == "1min"
    assert await pool.value("show idle_session_timeout") == "0"
    await pool.close()


async def test_sessions_of_commands_end_with_a_killed_or_hanging_process(url: str) -> None:
    command, admin = await connect(url), await connect(url)
    assert await command.fetchval("show statement_timeout") == "0"
    assert await command.fetchval("show idle_in_transaction_session_timeout") == "1min"
    statement = asyncio.create_task(command.execute("select pg_sleep(300)"))
    running = (
        "select count(*) from pg_stat_activity where query = 'select pg_sleep(300)' and datname = current_database()"
    )
    await reaches(lambda: admin.fetchval(running), 1)
    command.terminate()
    await reaches(lambda: admin.fetchval(running), 0, 20)
    await asyncio.gather(statement, return_exceptions=True)
    await admin.close()


async def test_worker_ends_a_session_that_hangs_before_its_statement(
    url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "IDLE_IN_TRANSACTION_TIMEOUT", 0.5)
    monkeypatch.setattr(jobs, "HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setattr(worker, "HANGING_CHECK_INTERVAL", 0.05)
    hanging, idle, copying, other = [await connect(url) for _ in range(4)]
    for connection in (hanging, idle):
        await connection.execute("begin; lock table workers in row share mode")
    await other.execute("set application_name = 'crm'; begin")
    for connection in (hanging, other):
        await connection.prepare("select from heads")  # the driver has not sent the end of this request
    more = asyncio.Event()

    async def rows() -> AsyncIterator[bytes]:
        yield b"1\n"
        await more.wait()

    await copying.execute("create temporary table copied (id int)")
    copy = asyncio.create_task(copying.copy_to_table("copied", source=rows()))
    async with impatient(url, catalogue):
        await until(hanging.is_closed)
        await asyncio.sleep(0.5)
    more.set()
    assert await copy == "COPY 1"
    for connection in (idle, other):
        assert not connection.is_closed()
    for connection in (idle, copying, other):
        await connection.close()


async def test_outage_is_logged_once_with_its_reason_and_its_end(url: str) -> None:
    pool = Database(url, 2)
    await pool.open()
    with own_logs() as logged:
        for _ in range(50):
            with pytest.raises(Unavailable):
                await pool.rows("do $$ begin raise sqlstate '53100' using message = 'No space left on device'; end $$")
        await pool.value("select 1")
    await pool.close()
    [refused, again] = logged
    assert (refused["event"], refused["reason"]) == ("database is not available", "the disk of the database is full")
    assert refused["error"] == "No space left on device"
    assert again["event"] == "database is available again"


# Leases are released


@pytest.mark.parametrize("table", ["cancellations", "preferences"])
async def test_pushes_claimed_by_killed_backend_are_sent(
    pushing: Api, phones: Phones, dba: Connection, table: str
) -> None:
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    async with locked(dba, table):
        id_ = await accepted(pushing, 1)
        [pid] = await until(lambda: waiting_at(dba, table))
        assert await dba.fetchval("select count(*) from deliveries where worker_id is not null") == 1
        await dba.fetchval("select pg_terminate_backend($1)", pid)
        await until(lambda: _is_another(dba, table, pid))
    await becomes(pushing, id_, {"delivered": 1})
    later = await accepted(pushing, 1)
    await becomes(pushing, later, {"delivered": 1})
    assert len(phones.pushes("apns", IPHONE)) == 2


async def _is_another(dba: Connection, table: str, pid: int) -> bool:
    return any(found != pid for found in await waiting_at(dba, table))


async def test_unknown_push_leases_of_own_worker_are_released(
    pushing: Api, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "SWEEP_INTERVAL", 0.0)
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    id_ = await accepted(pushing, 1)
    await becomes(pushing, id_, {"delivered": 1})
    assert pushing.worker
    await dba.execute(
        "update deliveries set state = 'queued', settled_at = null, worker_id = $1, attempts = 1", pushing.worker.id
    )
    await becomes(pushing, id_, {"delivered": 1})


async def test_unknown_job_leases_of_own_worker_are_released(
    idle: Api, url: str, catalogue: Catalogue, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SWEEP_INTERVAL", 0.0)
    await idle.people(1)
    async with impatient(url, catalogue) as running:
        id_ = await accepted(idle, 1)
        await dba.execute("update jobs set worker_id = $1 where id = $2 and worker_id is null", running.id, id_)
        answer = await idle.as_service("GET", f"/events/{id_}?wait=30")
        assert answer.json()["state"] == "delivered"


# Errors do not end the process


@pytest.mark.parametrize("table", ["inbox", "jobs", "workers"])
async def test_locked_table_ends_no_worker_and_consumes_no_attempt(
    idle: Api, url: str, catalogue: Catalogue, dba: Connection, table: str
) -> None:
    await idle.people(1)
    ids = [await accepted(idle, 1) for _ in range(3)]
    monitor = await connect(url)
    async with locked(dba, table), impatient(url, catalogue) as running:
        first = await until(lambda: waiting_at(monitor, table))
        await until(lambda: _waits_again(monitor, table, first, running))
        await dba.execute("rollback; begin")
        for id_ in ids:
            answer = await idle.as_service("GET", f"/events/{id_}?wait=30")
            assert answer.json()["state"] == "delivered"
    assert await monitor.fetchval("select count(*) from dead_letters") == 0
    await monitor.close()


async def _waits_again(monitor: Connection, table: str, first: list[int], running: Worker) -> bool:
    """Return whether the worker hit its lock timeout: it says so, or waits again on another connection."""
    if "a lock" in (running._problem() or ""):  # noqa: SLF001 - of heartbeats it can say nothing in the database
        return True
    return table != "workers" and any(pid not in first for pid in await waiting_at(monitor, table))


@pytest.mark.parametrize("broken", ["clears", "preferences", "lanes"])
async def test_lane_resumes_after_a_failing_statement_is_fixed(
    pushing: Api, phones: Phones, dba: Connection, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(results, "NOTED", 0.0)  # each push that is delivered is noted in `lanes`
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    assert not _problem(pushing)
    async with renamed(dba, broken):
        id_ = await accepted(pushing, 1)
        await until(partial(_fails_after_delivery, pushing, dba, id_))
    await becomes(pushing, id_, {"delivered": 1})
    await until(lambda: not _problem(pushing))
    await pushing.as_user(1, "PUT", "/notifications/read")
    await until(lambda: _cleared(phones))


async def _fails_after_delivery(api: Api, dba: Connection, id_: UUID) -> bool:
    """Return whether a notification is in its inbox, and pushing it fails."""
    delivered = await dba.fetchval("select true from inbox where event_id = $1", id_)
    return bool(delivered and _problem(api))


def _problem(api: Api) -> str | None:
    assert api.worker
    return api.worker._problem()  # noqa: SLF001 - what doctor and readyz tell


async def _cleared(phones: Phones) -> bool:
    return any(push["payload"].get("clear") for push in phones.pushes("apns", IPHONE))


async def test_push_that_cannot_be_built_does_not_block_others(pushing: Api) -> None:
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    await pushing.as_user(2, "POST", f"/notifications/devices/{'bb' * 32}")
    worker_ = pushing.worker
    assert worker_
    assert worker_.dispatcher
    composer = worker_.dispatcher._composer  # noqa: SLF001 - a bug in the words of one push
    shown = composer.shown
    composer.shown = lambda delivery: 1 / 0 if delivery.user_id == 1 else shown(delivery)  # type: ignore[method-assign,assignment,return-value]
    bad, good = await accepted(pushing, 1), await accepted(pushing, 2)
    await becomes(pushing, good, {"delivered": 1})
    await becomes(pushing, bad, {"later": 1})
    told = (await pushing.as_service("GET", f"/events/{bad}/recipients/1")).json()["devices"][0]["what"]
    assert "the push could not be built: ZeroDivisionError" in told


async def test_lane_backs_off_if_the_database_rejects_its_work(
    idle: Api, url: str, catalogue: Catalogue, dba: Connection
) -> None:
    await idle.people(1)
    id_ = await accepted(idle, 1)
    await dba.execute(
        "create function refuse() returns trigger language plpgsql as"
        " 'begin raise sqlstate ''53100'' using message = ''No space left on device''; end';"
        "create trigger refusing before insert on inbox for each row execute function refuse()"
    )
    try:
        with capture_logs() as logged:
            async with impatient(url, catalogue) as running:
                began = time.monotonic()
                await until(lambda: _failures(running, 4))
                assert time.monotonic() - began >= 0.8 * backoff.FIRST * (1 + 2 + 4)
                assert await dba.fetchval("select attempts from jobs where id = $1", id_) <= 1
                await drop_function(dba, "refuse")
                answer = await idle.as_service("GET", f"/events/{id_}?wait=30")
                assert answer.json()["state"] == "delivered"
    finally:
        await drop_function(dba, "refuse")
    told = [line for line in logged if line["event"] == "database is not available"]
    assert [line["error"] for line in told] == ["No space left on device"]


async def _failures(running: Worker, count: int) -> bool:
    text = (await running._metrics.text(running._database)).decode()  # noqa: SLF001 - as Prometheus would see it
    reason = 'reason="the disk of the database is full",work="direct queue"'
    return any(
        float(line.rpartition(" ")[2]) >= count
        for line in text.splitlines()
        if line.startswith(f"tocsin_work_failures_total{{{reason}}}")
    )


# A statement that takes too long is isolated


@pytest.mark.parametrize("lane", ["direct", "bulk"])
async def test_job_timeout_isolates_the_job_and_makes_it_a_dead_letter(
    slow_inbox: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, lane: jobs.Queue
) -> None:
    monkeypatch.setattr(jobs, "RETRY_DELAYS", (0.01, 0.01))
    async with serving(slow_inbox, catalogue, with_worker=False) as api:
        await api.people(1, SLOW)
        before = [await accepted(api, 1) for _ in range(3)]
        slow = await accepted(api, SLOW)
        after = [await accepted(api, 1) for _ in range(3)]
        if lane == "bulk":
            await api.app_state.database.value("update jobs set lane = 'bulk'")
        async with impatient(slow_inbox, catalogue):
            for id_ in (*before, *after):
                answer = await api.as_service("GET", f"/events/{id_}?wait=30")
                assert answer.json()["state"] == "delivered", answer.text
            async with bounded():
                while True:
                    answer = (await api.as_service("GET", f"/events/{slow}?wait=30")).json()
                    if answer["state"] != "queued":
                        break
        assert answer["state"] == "failed"
        assert "took too long in the database" in answer["reason"]


async def test_request_timeout_is_not_reported_as_an_outage(server: Embedded, catalogue: Catalogue) -> None:
    url = await make_database(server, f"slow_{new_id().hex}")
    connection = await connect(url)
    await connection.execute(SLEEPING.format(slow=SLOW).replace("on inbox", "on heads"))
    await connection.close()
    async with serving(url, catalogue, with_worker=False) as api:
        api.app_state.database._patience = PATIENCE  # noqa: SLF001 - what an operator cannot set
        body = {"first_name": "Jane", "last_name": "Doe"}
        answer = await api.as_service("PUT", f"/directory/users/{SLOW}", json=body)
        assert (answer.status_code, int(answer.headers["Retry-After"])) == (503, 60)
        [error] = answer.json()["errors"]
        assert error["code"] == "unavailable"
        assert error["message"].startswith("The request took too long in the database")
        assert (await api.as_service("PUT", "/directory/users/1", json=body)).status_code == 204


async def test_claim_is_bounded_by_number_of_recipients(idle: Api, database: Database) -> None:
    await idle.people(*range(1, 13))
    for id_ in range(1, 6):
        await idle.team(id_, 1, 2)
    everyone = list(range(1, 13))
    named = [await accepted(idle, *everyone) for _ in range(6)]
    excepting = [await accepted(idle, *everyone, teams=[1, 2, 3, 4, 5], **{"except": everyone[1:]}) for _ in range(6)]
    claimed = []
    bounds = iter((40, 600, 1, 10**6))
    original = jobs.MAX_CLAIM_COST
    try:
        for bound in bounds:
            jobs.MAX_CLAIM_COST = bound
            claimed.append([job.id for job in await jobs.claim(database, new_id(), "direct", 200)])
    finally:
        jobs.MAX_CLAIM_COST = original
    # each of the first names 12; each of the others 23, and 111 for each of five teams
    assert claimed == [named[:3], named[3:], excepting[:1], excepting[1:]]


# Lanes do not wait for each other


async def test_lane_blocked_by_a_lock_leaves_connections_to_others(url: str, dba: Connection) -> None:
    pool = Database(url, 6, 300)
    await pool.open()

    async def ask(kind: str, statement: str) -> list[Any]:
        KIND.set(kind)
        return await pool.rows(statement)

    async with locked(dba, "lanes"):
        hanging = [asyncio.create_task(ask("lanes", "select from lanes")) for _ in range(30)]
        await until(lambda: _has(dba, 5))
        for _ in range(20):
            async with bounded():
                await asyncio.create_task(ask("users", "select from users limit 1"))
        assert not any(task.done() for task in hanging)
    await asyncio.gather(*hanging)
    await pool.close()


async def _has(dba: Connection, count: int) -> bool:
    return len(await waiting_at(dba, "lanes")) == count


async def test_cancelled_wait_takes_no_connection_from_the_pool(url: str) -> None:
    pool = Database(url, 2, 10)
    await pool.open()
    async with pool.connection(), pool.connection():
        waiting = [asyncio.create_task(pool.value("select 1")) for _ in range(5)]
        await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()
    assert await asyncio.gather(*waiting[1::2]) == [1, 1]
    async with pool.connection(), pool.connection():
        pass
    await pool.close()


# Heartbeats continue while other work waits


async def seen_again(dba: Connection, times: int = 3) -> None:
    """Wait until every worker has sent this number of further heartbeats."""
    for _ in range(times):
        now = await dba.fetchval("select clock_timestamp()")
        await until(lambda now=now: dba.fetchval("select bool_and(seen_at > $1) from workers", now))  # type: ignore[misc]


async def test_heartbeat_continues_while_any_other_table_is_locked(
    url: str, catalogue: Catalogue, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "HEARTBEAT_INTERVAL", 0.05)
    tables = await dba.fetch(
        "select relname as name from pg_class where relnamespace = 'tocsin'::regnamespace and relkind in ('r', 'p')"
        " and not relispartition order by 1"
    )
    async with impatient(url, catalogue, 30) as worker:
        await until(lambda: dba.fetchval("select true from workers where id = $1", worker.id))
        for name in {row["name"] for row in tables} - {"workers"}:
            await dba.execute(f"vacuum {name}")  # its statistics say that it is empty, which is to be corrected
            async with locked(dba, name):
                await seen_again(dba)


async def test_heartbeat_continues_while_all_other_work_hangs(url: str, dba: Connection) -> None:
    pool = Database(url, 4, 300, beats=True)
    await pool.open()

    async def ask(kind: str, statement: str) -> list[Any]:
        KIND.set(kind)
        return await pool.rows(statement)

    async with locked(dba, "lanes"):
        hanging = [asyncio.create_task(ask(f"push lane {n}", "select from lanes")) for n in range(8)]
        await until(lambda: _has(dba, 3))
        for _ in range(3):
            async with bounded():
                await asyncio.create_task(ask(HEARTBEAT, "select 1"))
        assert not any(task.done() for task in hanging)
    await asyncio.gather(*hanging)
    assert (pool.in_use, pool.waiting) == (0, 0)
    await pool.close()


async def test_worker_without_heartbeat_declares_no_other_worker_dead(
    url: str, catalogue: Catalogue, dba: Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setattr(jobs, "LEASE_TIMEOUT", 3.0)
    other, seen = new_id(), "select true from workers where id = $1 and seen_at > $2"
    async with impatient(url, catalogue, 30) as worker:
        await until(lambda: dba.fetchval("select true from workers where id = $1", worker.id))
        await jobs.enrol(database, other, "beside it")
        async with locked(dba, "workers"):
            await asyncio.sleep(4)  # more than `MISSED`
        for _ in range(3):
            now = await dba.fetchval("select clock_timestamp()")
            await until(lambda now=now: dba.fetchval(seen, worker.id, now))  # type: ignore[misc]
        assert await jobs.beat(database, other), "it was taken for dead as soon as the other one beat"
        await until(lambda: dba.fetchval("select true where not exists (select from workers where id = $1)", other))


async def test_statistics_of_locked_table_are_updated_later_without_blocking(url: str, dba: Connection) -> None:
    version = dba.get_server_version().major
    if version < planner_statistics.FIRST_THAT_CLEARS:
        pytest.skip("statistics can be unlearnt from PostgreSQL 18 on")
    await dba.execute("vacuum jobs, lanes")
    other = await connect(url)
    async with bounded():
        for mode in ("share update exclusive", "access exclusive"):
            await dba.execute("vacuum lanes")
            async with other.transaction():
                await other.execute(f"lock table jobs in {mode} mode")
                assert {"jobs", "lanes"} & set(await planner_statistics.correct_with(dba)) == {"lanes"}
        assert "jobs" in await planner_statistics.correct_with(dba)
    await other.close()


async def test_open_file_limit_is_reported_and_not_as_an_outage(url: str) -> None:
    pool = Database(url, 2)
    await pool.open()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(Unavailable) as refused:
            await pool.value("select 1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert refused.value.reason.startswith("this process has reached its limit of open files")
    assert await pool.value("select 1") == 1
    await pool.close()


async def test_stopping_lane_leaves_its_leases_to_the_final_release(database: Database) -> None:
    stopping, released = asyncio.Event(), list[bool]()
    failing = backoff.Backoff("direct queue", stopping)

    async def release() -> None:
        released.append(bool(await database.value("select true")))

    await failing.recover(Unavailable(), release)
    assert released == [True]
    stopping.set()
    await failing.recover(Unavailable(), release)
    assert released == [True]
    assert failing.reason
