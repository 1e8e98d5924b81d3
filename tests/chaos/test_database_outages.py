"""Databases that are away, full, locked or read-only: requests fail at once, and nothing that was accepted is lost."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg

from tests.support.chaos import ChaosRun, scenario
from tests.support.clusters import Cluster, cluster_on, embedded_cluster
from tests.support.database import locked, value
from tests.support.disks import data_disk
from tests.support.places import fill
from tests.support.processes import data_folder
from tests.support.servers import OwnServer, answers, own_server, standby_of
from tests.support.waiting import until
from tocsin.db.connections import connect
from tocsin.postgres.supervisor import Embedded

TABLES = ("inbox", "deliveries", "jobs", "events", "heads")
"""Tables that an operator locks, in turns."""


@asynccontextmanager
async def apart(run: ChaosRun) -> AsyncIterator[tuple[Embedded, Cluster]]:
    """Run the processes on a server that they do not supervise."""
    async with data_folder() as data, Embedded(data) as server, cluster_on(run, server.url) as cluster:
        yield server, cluster


@scenario("database-away", "database stopped")
async def test_events_accepted_around_stops_of_the_database_are_delivered_once(run: ChaosRun) -> None:
    async with apart(run) as (server, cluster):
        async for _ in run.rounds(1):
            async with run.failure():
                await server.stop()
                await run.load.refused(20)  # so what was on its way is here
                accepted = len(run.ledger.accepted)
                await run.load.refused(run.dice.randint(20, 100))
                assert len(run.ledger.accepted) == accepted, "accepted while there was no database"
                await cluster.shows("The database cannot be")
                await server.start()


@scenario("read-only", "database read-only", long=True)
async def test_events_accepted_around_a_read_only_database_are_delivered_once(run: ChaosRun) -> None:
    async with own_server(fsync="on") as server:
        url = server.url(database=await server.fresh("tocsin"))
        async with cluster_on(run, url) as cluster:
            async for _ in run.rounds(1):
                async with run.failure():
                    await _set(url, "alter system set default_transaction_read_only = on")
                    await run.load.refused(50)
                    await cluster.shows("read-only")
                    await _set(url, "alter system reset default_transaction_read_only")


@scenario("out-of-connections", "no connection left", long=True)
async def test_events_accepted_around_a_lack_of_connections_are_delivered_once(run: ChaosRun) -> None:
    async with apart(run) as (server, cluster):
        async for _ in run.rounds(1):
            async with run.failure(), contextlib.AsyncExitStack() as stack:
                taken = await _take_all(server.url)
                for connection in taken:
                    stack.callback(connection.terminate)
                await run.load.refused(100)
                await cluster.shows("the database takes no more connections", doctor="raise the limit of the server")


@scenario("disk-full", "disk of the database full", long=True)
async def test_accepted_events_survive_a_full_disk(run: ChaosRun) -> None:
    async with data_disk() as disk, embedded_cluster(run, {"TOCSIN_MIN_FREE_DISK": "0"}, disk.folder) as cluster:
        ballast = disk.folder / "ballast"
        async for _ in run.rounds(1):
            async with run.failure():
                fill(ballast)
                await run.load.refused(50)
                await cluster.shows("the disk of the database is full", doctor="No space left")
                ballast.unlink()
                await answers(cluster.url)


@scenario("disk-guard", "disk of the database almost full", long=True)
async def test_the_disk_guard_refuses_events_and_says_why(run: ChaosRun) -> None:
    async with data_disk() as disk, embedded_cluster(run, data=disk.folder) as cluster:
        ballast = disk.folder / "ballast"
        async for _ in run.rounds(1):
            async with run.failure():
                fill(ballast, leave=30 * 2**20)
                await run.load.refused(50)
                await cluster.shows("new events are refused")
                ballast.unlink()


@scenario("table-locked", "table locked by an operator for up to a minute", long=True)
async def test_a_locked_table_delays_and_loses_nothing(run: ChaosRun) -> None:
    seconds = 60 if run.seconds else 20
    async with apart(run) as (server, cluster):
        dba = await connect(server.url)
        async for number in run.rounds(1):
            table = TABLES[number % len(TABLES)]
            async with run.failure(), locked(dba, table):
                await cluster.shows(f"the table {table} is locked by another session")
                await dba.execute(f"select pg_sleep({seconds})")
        await dba.close()


@scenario("fail-over", "primary lost, synchronous standby promoted", long=True)
async def test_accepted_events_survive_a_fail_over_to_a_synchronous_standby(run: ChaosRun) -> None:
    async with own_server(fsync="on") as primary, standby_of(primary) as standby:
        await primary.fresh("tocsin")
        await _set(primary.url(), "alter system set synchronous_standby_names = '*'")
        both = f"postgresql://dba:geheim@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/tocsin"
        async with cluster_on(run, f"{both}?target_session_attrs=read-write") as cluster:
            await until(partial(_is_synchronous, primary))
            async with run.failure():
                primary.kill()
                await run.load.refused(10)
                await cluster.shows("The database cannot be")
                await value(standby.url(), "select pg_promote(true)")


async def _is_synchronous(server: OwnServer) -> bool:
    return bool(await value(server.url(), "select count(*) from pg_stat_replication where sync_state = 'sync'"))


async def _set(url: str, statement: str) -> None:
    connection = await connect(url)
    await connection.execute(statement)
    await connection.execute("select pg_reload_conf()")
    await connection.close()


async def _take_all(url: str) -> list[asyncpg.Connection]:
    """Take every connection of a server, also those of the others."""
    ours = [await asyncpg.connect(url)]
    others = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where pid <> all($1::int[]) and backend_type = 'client backend'"
    )
    while await ours[0].fetch(others, [each.get_server_pid() for each in ours]):
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                ours.append(await asyncpg.connect(url))
    return ours
