"""Worker processes divide the cells among themselves."""

from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.clock import Clock
from tests.support.database import renamed
from tests.support.waiting import until
from tocsin import jobs
from tocsin.cell_leases import PATIENCE, CellLease, is_worked_by, processes_of
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.ids import new_id


@given(st.integers(1, 30), st.integers(1, 30))
def test_each_cell_has_a_process_and_all_have_almost_the_same_number(processes: int, cells: int) -> None:
    pairs = [
        (place, cell)
        for place in range(processes)
        for cell in range(cells)
        if is_worked_by(place, processes, cell, cells)
    ]
    of_process = Counter(place for place, _ in pairs)
    of_cell = Counter(cell for _, cell in pairs)
    assert len(of_cell) == cells
    assert len(of_process) == processes
    assert max(of_cell.values()) - min(of_cell.values()) <= 1
    assert max(of_process.values()) - min(of_process.values()) <= 1
    assert sum(of_process.values()) == max(processes, cells)


class Process:
    """A process with leases on two cells, of which the database is the second."""

    def __init__(self, database: Database, number: int = 1) -> None:
        self.id = UUID(int=number)
        self.clock = Clock()
        self.lease = CellLease(self.id, "north", 1, 2, database, self.clock)
        self._database = database

    async def is_working(self) -> bool:
        """Look, and do as the lease says."""
        await self.lease.look()
        if self.lease.is_held and not self.lease.worker_id:
            self.lease.worker_id = new_id()
            await jobs.enrol(self._database, self.lease.worker_id, "host:1")
        if not self.lease.is_held and self.lease.worker_id:
            await jobs.leave(self._database, self.lease.worker_id)
            self.lease.worker_id = None
        return self.lease.is_held


@pytest.fixture
async def pair(database: Database, dba: Connection) -> AsyncIterator[tuple[Process, Process]]:
    """Two processes. Those that other tests killed are forgotten, which otherwise takes 15 s."""
    await dba.execute("delete from workers")
    await dba.execute("delete from worker_processes")
    first, second = Process(database, 1), Process(database, 2)
    yield first, second
    for each in (first, second):
        if each.lease.worker_id:
            await jobs.leave(database, each.lease.worker_id)


async def test_process_stops_only_when_the_one_whose_turn_it_is_works(pair: tuple[Process, Process]) -> None:
    first, second = pair
    assert await first.is_working()
    await second.lease.look()
    assert await first.is_working()
    assert await second.is_working()
    assert not await first.is_working()
    assert await second.is_working()


async def test_cell_of_a_lost_process_is_taken(
    pair: tuple[Process, Process], database: Database, dba: Connection
) -> None:
    first, second = pair
    await first.lease.look()
    assert await second.is_working()
    assert not await first.is_working()
    assert await processes_of(database) == 2
    await dba.execute("update worker_processes set seen_at = seen_at - interval '7 s' where id = $1", second.id)
    assert await first.is_working()
    assert await processes_of(database) == 1


async def test_cell_of_a_process_lost_before_the_clock_was_set_back_is_taken(
    pair: tuple[Process, Process], dba: Connection
) -> None:
    first, second = pair
    await first.lease.look()
    assert await second.is_working()
    assert not await first.is_working()
    for table in ("worker_processes", "workers"):
        await dba.execute(f"update {table} set seen_at = seen_at + interval '1 hour'")
    assert await first.is_working()
    assert not await dba.fetch("select from worker_processes where id = $1", second.id)


async def test_cell_without_a_worker_is_taken_out_of_turn(pair: tuple[Process, Process]) -> None:
    first, second = pair
    await first.lease.look()
    await second.lease.look()  # its turn, but it does not work
    await first.lease.look()
    first.lease.is_held = False
    assert not await first.is_working()
    first.clock.now += PATIENCE - 1
    assert not await first.is_working()
    first.clock.now += 2
    assert await first.is_working()
    assert await first.is_working()
    assert await second.is_working()
    assert not await first.is_working()


async def test_process_that_ends_is_forgotten_at_once(database: Database) -> None:
    process = Process(database)
    async with process.lease.kept():
        await process.lease.until(held=True)
        assert await processes_of(database) == 1
    assert await processes_of(database) == 0


async def test_process_that_was_lost_long_ago_is_deleted(database: Database, dba: Connection) -> None:
    await dba.execute("insert into worker_processes values ($1, 'host:1', now() - interval '2 minutes')", new_id())
    process = Process(database)
    await process.lease.look()
    assert await dba.fetchval("select count(*) from worker_processes") == 1


async def test_lease_stays_as_it_was_while_the_cell_cannot_be_asked(database: Database, dba: Connection) -> None:
    process = Process(database)
    async with process.lease.kept():
        await process.lease.until(held=True)
        async with renamed(dba, "worker_processes"):
            with pytest.raises(Exception, match="worker_processes"):
                await process.lease.look()
            assert process.lease.is_held
        await dba.execute("update worker_processes set seen_at = now() - interval '10 s'")
        await until(lambda: _counts(database))


async def _counts(database: Database) -> bool:
    return await processes_of(database) == 1
