"""The connection pool: priorities of backends."""

import os

import pytest

from tocsin.db.pool import Database


@pytest.mark.parametrize("yields", [False, True])
async def test_bulk_lane_backends_run_at_lower_priority(url: str, *, yields: bool) -> None:
    pool = Database(url, 1, yields=yields)
    await pool.open()
    pid = await pool.value("select pg_backend_pid()")
    assert os.getpriority(os.PRIO_PROCESS, pid) == (10 if yields else os.getpriority(os.PRIO_PROCESS, 0))
    await pool.close()
