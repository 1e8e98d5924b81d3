"""Killed and hanging processes, and power cuts: nothing that was accepted is lost or doubled.

To kill processes proves nothing about the disk: what they wrote stays with the kernel. A power cut throws it away. So
the data folder is a file system of its own, in a file, which is shut down under the running service. The ledger is in
the memory of the test.
"""

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

from tests.support.chaos import ChaosRun, leased_pushes, scenario
from tests.support.clusters import cluster_on, embedded_cluster
from tests.support.database import value
from tests.support.disks import data_disk
from tests.support.processes import Program, data_folder, holds_a_lease, kill_postgres, postgres_of
from tests.support.servers import answers
from tests.support.waiting import reaches, until
from tocsin.postgres.supervisor import Embedded, url_of
from tocsin.push.channels import apns


@scenario(
    "power-cut",
    "power cut of the disk of the database",
    nothing_waits="the process and its database are started again, and release all leases",
)
async def test_accepted_events_survive_power_cuts(run: ChaosRun) -> None:
    async with data_disk() as disk, Program(disk.folder, "serve", variables=run.variables) as service:
        async with run.under_load(url_of(disk.folder), lambda: service.address):
            async for _ in run.rounds(2):
                async with run.failure():
                    disk.cut()
                    await asyncio.sleep(run.dice.uniform(0, 0.5))
                    await service.kill()
                    await kill_postgres(disk.folder)
                    run.in_flight += apns.WINDOW
                    await disk.unmount()
                    await disk.mount()
                    assert disk.was_cut()
                    await service.start()
        assert run.ledger.unsure
        assert "500" not in run.ledger.answers


@scenario("api-killed", "SIGKILL of the API process", nothing_waits="it is started again")
async def test_accepted_events_survive_a_killed_api_process(run: ChaosRun) -> None:
    async with data_folder() as data, Embedded(data) as server, cluster_on(run, server.url) as cluster:
        async for _ in run.rounds(2):
            async with run.failure():
                await cluster.service.kill()
                await cluster.service.start()


@scenario(
    "worker-killed", "SIGKILL of a worker that holds jobs", nothing_waits="its leases expire after 15 s, or sooner"
)
async def test_accepted_events_survive_killed_workers(run: ChaosRun) -> None:
    async with embedded_cluster(run) as cluster:
        async for _ in run.rounds(2):
            worker = run.dice.choice(cluster.workers)
            async with run.failure():
                await holds_a_lease(cluster.data, worker)
                await run.kill_worker(worker)
                await worker.start()


@scenario("workers-away", "SIGKILL of all workers, for more than a minute", long=True)
async def test_accepted_events_are_delivered_after_all_workers_were_away(run: ChaosRun) -> None:
    async with embedded_cluster(run) as cluster:
        async for _ in run.rounds(1):
            async with run.failure():
                for worker in cluster.workers:
                    await run.kill_worker(worker)
                late = "jobs of the direct queue have waited for more than 60 s: no worker is running"
                await cluster.shows(late, doctor="start `tocsin worker`")
                for worker in cluster.workers:
                    await worker.start()


@scenario(
    "postmaster-killed",
    "SIGKILL of the postmaster or of all PostgreSQL processes",
    nothing_waits="the service starts the database again",
)
async def test_accepted_events_survive_a_killed_database(run: ChaosRun) -> None:
    async with embedded_cluster(run) as cluster:
        async for number in run.rounds(2):
            before = postgres_of(cluster.data)
            async with run.failure():
                if number % 2:
                    await kill_postgres(cluster.data)
                else:
                    os.kill(postmaster_of(cluster.data), signal.SIGKILL)
                await answers(cluster.url)
            assert before
            assert set(before).isdisjoint(postgres_of(cluster.data))
        assert cluster.service.alive
        assert all(worker.alive for worker in cluster.workers)


@scenario(
    "backend-killed",
    "SIGKILL of one backend of PostgreSQL",
    long=True,
    nothing_waits="the database ends all sessions, recovers, and accepts others within seconds",
)
async def test_accepted_events_survive_a_killed_backend(run: ChaosRun) -> None:
    ours = "select array_agg(pid) from pg_stat_activity where application_name = 'tocsin' and pid <> pg_backend_pid()"
    async with embedded_cluster(run) as cluster:
        async for _ in run.rounds(3):
            victim = run.dice.choice(await value(cluster.url, ours))
            async with run.failure():  # PostgreSQL ends all the others, and recovers
                os.kill(victim, signal.SIGKILL)
                await until(partial(_has_ended, cluster.data, victim))
                await answers(cluster.url)


@scenario(
    "worker-paused",
    "SIGSTOP of a worker past its lease",
    long=True,
    nothing_waits="another worker takes its leases after 15 s",
)
async def test_a_worker_that_hangs_past_its_lease_neither_loses_nor_doubles_events(run: ChaosRun) -> None:
    async with embedded_cluster(run) as cluster:
        async for _ in run.rounds(1):
            worker = run.dice.choice(cluster.workers)
            held = f"select count(*) from jobs where worker_id = '{worker.greeting['worker']}'"
            async with run.failure():
                await holds_a_lease(cluster.data, worker)
                worker.signal(signal.SIGSTOP)
                try:
                    run.in_flight += await leased_pushes(cluster.url, worker)
                    await reaches(partial(value, cluster.url, held), 0)
                finally:
                    worker.signal(signal.SIGCONT)


def _has_ended(data: Path, process: int) -> bool:
    return process not in postgres_of(data)


def postmaster_of(data: Path) -> int:
    return int((data / "postgres/postmaster.pid").read_text("utf-8").split()[0])
