"""The job queue: claims."""

from tests.support.events import accepted
from tests.support.service import Api
from tests.support.waiting import bounded
from tocsin import jobs
from tocsin.db.pool import Connection, Database
from tocsin.ids import new_id


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
