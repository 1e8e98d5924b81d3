"""The connection pool: priorities of backends, how many connections it keeps, and what errors leave."""

import asyncio
import contextlib
import gc
import os
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import pytest

from tests.support.places import short_path
from tests.support.waiting import bounded, reaches, until
from tocsin.db import pool as pools
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.errors import Locked, Overrun, Unavailable
from tocsin.store import pool as open_pool

MY_PID = "select pg_backend_pid()"
NOW = "select clock_timestamp()"
SINCE = """
select count(*) from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and backend_start > $1
"""
"""Counts the sessions that were opened since; those of earlier tests may still end."""


@pytest.mark.parametrize("yields", [False, True])
async def test_bulk_lane_backends_run_at_lower_priority(url: str, *, yields: bool) -> None:
    pool = Database(url, 1, yields=yields)
    await pool.open()
    pid = await pool.value("select pg_backend_pid()")
    assert os.getpriority(os.PRIO_PROCESS, pid) == (10 if yields else os.getpriority(os.PRIO_PROCESS, 0))
    autogroup = Path(f"/proc/{pid}/autogroup")  # the priority among sessions, on Linux
    if autogroup.exists() and os.geteuid() == 0:  # others may change one of a machine in a tenth of a second
        assert autogroup.read_text("ascii").split()[1:] == ["nice", "10" if yields else "0"]
    await pool.close()


@pytest.mark.parametrize(
    ("statement", "raised"),
    [
        ("select 1 / 0", asyncpg.DivisionByZeroError),
        ("do $$ begin raise sqlstate '55P03'; end $$", Locked),
        ("do $$ begin raise sqlstate '57014'; end $$", Overrun),
    ],
)
async def test_errors_leave_nothing_to_the_garbage_collector(
    database: Database, statement: str, raised: type[Exception]
) -> None:
    async def fail() -> None:
        with contextlib.suppress(raised):
            await database.rows(statement)
        with contextlib.suppress(raised):
            async with database.transaction() as connection:
                await connection.execute(statement)

    async def left() -> int:
        gc.collect()
        gc.disable()
        try:
            await fail()
            return gc.collect()
        finally:
            gc.enable()

    await fail()
    assert 0 in [await left() for _ in range(5)], "others in this process leave something now and then"


async def test_unused_connections_are_closed_and_the_next_use_opens_one(
    url: str, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "IDLE_TIMEOUT", 0.05)
    began = await dba.fetchval(NOW)
    async with open_pool(url, 3) as pool:
        async with pool.connection(), pool.connection():
            assert await dba.fetchval(SINCE, began) == 2
        await reaches(lambda: dba.fetchval(SINCE, began), 0)
        assert await pool.value("select 1") == 1


async def test_unavailable_database_is_found_again_by_a_pool_without_connections(
    url: str, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "IDLE_TIMEOUT", 0.05)
    began = await dba.fetchval(NOW)
    [run] = parse_qs(urlsplit(url).query)["host"]
    with short_path() as folder:
        socket = folder / "run"
        socket.symlink_to(run)
        async with open_pool(url.replace(quote(run, safe=""), quote(str(socket), safe="")), 1) as pool:
            assert await pool.value("select 1") == 1
            await reaches(lambda: dba.fetchval(SINCE, began), 0)
            socket.unlink()
            for _ in range(3):  # more often than it has slots
                with pytest.raises(Unavailable):
                    await pool.value("select 1")
            socket.symlink_to(run)
            assert await pool.value("select 1") == 1


async def test_few_uses_keep_one_connection_and_many_keep_more(
    url: str, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "IDLE_TIMEOUT", 3600.0)
    began = await dba.fetchval(NOW)
    async with open_pool(url, 3) as pool:

        async def use_three() -> None:
            async with pool.connection(), pool.connection(), pool.connection():
                pass

        await use_three()
        monkeypatch.setattr(pools, "USES_PER_CONNECTION", 1)
        pool.close_idle()
        await use_three()
        assert await dba.fetchval(SINCE, began) == 3
        monkeypatch.setattr(pools, "USES_PER_CONNECTION", 3)
        pool.close_idle()
        await reaches(lambda: dba.fetchval(SINCE, began), 1)


async def test_callers_at_the_same_time_share_a_connection_that_is_returned_soon(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "GROWTH_DELAY", 3600.0)
    async with open_pool(url, 3) as pool:
        async with bounded():
            pids = await asyncio.gather(*(pool.value(MY_PID) for _ in range(3)))
        assert len(set(pids)) == 1


async def test_callers_wait_for_no_connection_if_many_uses_need_more(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "GROWTH_DELAY", 3600.0)
    monkeypatch.setattr(pools, "USES_PER_CONNECTION", 1)
    async with open_pool(url, 3) as pool:
        for _ in range(3):
            await pool.value(MY_PID)
        async with bounded():
            pids = await asyncio.gather(*(pool.value(MY_PID) for _ in range(3)))
        assert len(set(pids)) == 3


async def test_caller_opens_a_connection_if_none_is_returned_soon(url: str) -> None:
    async with open_pool(url, 2) as pool, bounded(), pool.connection() as one, pool.connection() as other:
        assert await one.fetchval(MY_PID) != await other.fetchval(MY_PID)


async def test_cancelled_caller_takes_no_connection_and_no_turn_of_another(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "GROWTH_DELAY", 3600.0)
    async with open_pool(url, 3) as pool:
        async with bounded():
            async with pool.connection() as held:
                pid = await held.fetchval(MY_PID)
                cancelled, waiting = [asyncio.create_task(pool.value(MY_PID)) for _ in range(2)]
                await until(lambda: pool.in_use == 3)
                cancelled.cancel()
                await asyncio.gather(cancelled, return_exceptions=True)
                assert pool.in_use == 2
            assert await waiting == pid
        assert pool.in_use == 0
