"""The connection pool: priorities of backends, and what errors leave."""

import contextlib
import gc
import os

import asyncpg
import pytest

from tocsin.db.pool import Database
from tocsin.errors import Locked, Overrun


@pytest.mark.parametrize("yields", [False, True])
async def test_bulk_lane_backends_run_at_lower_priority(url: str, *, yields: bool) -> None:
    pool = Database(url, 1, yields=yields)
    await pool.open()
    pid = await pool.value("select pg_backend_pid()")
    assert os.getpriority(os.PRIO_PROCESS, pid) == (10 if yields else os.getpriority(os.PRIO_PROCESS, 0))
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

    await fail()
    gc.collect()
    gc.disable()
    try:
        await fail()
        assert gc.collect() == 0
    finally:
        gc.enable()
