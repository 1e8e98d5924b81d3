"""The queues: jobs are rows, claimed under a lease of a worker.

A worker writes a heartbeat every few seconds; without heartbeats, its leases expire. Every write to a job names the
worker that must still hold the lease, so that a worker that lost its lease cannot do the work twice.
"""

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import UUID

from tocsin.db.connections import IDLE_IN_TRANSACTION_TIMEOUT, Connection
from tocsin.db.pool import Database, fetch
from tocsin.db.statements import queries

Queue = Literal["direct", "bulk"]

HEARTBEAT_INTERVAL = 5.0
"""Seconds between two heartbeats."""

LEASE_TIMEOUT = 15.0
"""Seconds without heartbeat after which the leases of a worker expire."""

RETRY_DELAYS = (0.2, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0)
"""Seconds before each retry of a failed job. After the last retry, the job becomes a dead letter."""

MAX_COUNTED = 1_000_000
"""The number up to which the due jobs of a queue are counted."""

JUST_DUE = 0.05
"""Seconds for which a worker that found no job looks again for one that has become due."""

LATE: dict[Queue, float] = {"direct": 60.0, "bulk": 1800.0}
"""Seconds for which a due job may wait in a queue that makes progress. Large events take turns in the bulk queue, and
wait there for each other while nothing is wrong."""

DIRECT_MAX_RECIPIENTS = 100
"""Maximum recipients of an event in the direct queue. Larger events go to the bulk queue, and delay no others."""

MAX_CLAIM_COST = 20_000
"""Maximum cost of the jobs of one claim, in look-ups. A job that costs more is claimed alone."""

_SQL = queries("jobs")


@dataclass(frozen=True, slots=True)
class Job:
    """A leased job.

    `id` is the id of its object, such as an event, and `progress` the last processed position. The jobs of a `batch`
    run in order. The wait is measured from `wanted_at`, which retries do not change.
    """

    id: UUID
    task: str
    queue: Queue
    due_at: datetime
    wanted_at: datetime
    attempts: int
    progress: int
    batch: UUID | None = None


class Lost(Exception):  # noqa: N818 - a fact, not an error
    """The lease of a job is lost: its transaction must not be committed."""


async def claim(database: Database, worker: UUID, queue: Queue, limit: int) -> list[Job]:
    """Lease up to `limit` due jobs, the oldest first; fewer if they exceed `MAX_CLAIM_COST`."""
    rows = await database.rows(_SQL["claim"], worker, queue, limit, MAX_CLAIM_COST)
    return sorted((Job(**row) for row in rows), key=lambda job: (job.due_at, job.id))


async def until_due(database: Database, queue: Queue, most: float) -> float:
    """Return the seconds until the next job is due, at most `most`.

    A job that became due within `JUST_DUE` is due next: it may have been missed. Others that are due are behind locks.
    """
    seconds: float | None = await database.value(_SQL["until_due"], queue, JUST_DUE)
    return most if seconds is None else min(max(seconds, JUST_DUE / 5), most)


async def next_company(database: Database, company: int) -> int | None:
    """Return the first company after this one, or else of all, with a due job in the bulk queue; None without jobs."""
    found: int | None = await database.value(_SQL["next_company"], company)
    return found


async def next_sender(database: Database, company: int, sender: str) -> str | None:
    """Return the first sender of a company after this one, or else of all, with a due job in the bulk queue."""
    found: str | None = await database.value(_SQL["next_sender"], company, sender)
    return found


async def claim_of_sender(database: Database, worker: UUID, company: int, sender: str) -> list[Job]:
    """Lease the oldest due job of a sender in the bulk queue."""
    return [Job(**row) for row in await database.rows(_SQL["claim_of_sender"], worker, company, sender)]


async def hold(connection: Connection, worker: UUID, jobs: Sequence[UUID]) -> None:
    """Lock several leased jobs, before statements that lock them in no order, until the end of the transaction."""
    if len(jobs) > 1:
        await connection.execute(_SQL["hold"], worker, jobs)


async def finish(connection: Connection, worker: UUID, jobs: Sequence[UUID]) -> None:
    """Remove finished jobs, in the transaction of their work. Raises `Lost` if a lease is lost."""
    _all_of(jobs, await connection.execute(_SQL["finish"], worker, jobs))


async def save_progress(connection: Connection, worker: UUID, progress: Iterable[tuple[UUID, int]]) -> None:
    """Return jobs with their progress to the bulk queue. Raises `Lost` if a lease is lost."""
    steps = list(progress)
    ids = [id_ for id_, _ in steps]
    _all_of(ids, await connection.execute(_SQL["save_progress"], worker, ids, [done for _, done in steps]))


async def hand_back(connection: Connection, worker: UUID, jobs: Sequence[UUID], seconds: float = 0) -> None:
    """Return jobs to the queue, as if they had never been claimed, due in `seconds`."""
    await connection.execute(_SQL["hand_back"], worker, jobs, seconds)


async def hand_back_behind_lock(database: Database, worker: UUID, job: Job, seconds: float) -> set[UUID]:
    """Return a job that waits for a lock, and those after it in its batch, due in `seconds`; return their ids."""
    return {row["id"] for row in await database.rows(_SQL["hand_back_behind_lock"], worker, job.id, seconds)}


async def out_of_turn(database: Database, leased: Sequence[Job]) -> set[UUID]:
    """Return the jobs that must wait for an earlier job of their batch that is not in `leased`."""
    batches = {job.batch for job in leased if job.batch and job.queue == "direct"}
    if not batches:
        return set()
    others = await database.rows(_SQL["first_others"], list(batches), [job.id for job in leased])
    first = {row["batch"]: (row["due_at"], row["id"]) for row in others}
    return {job.id for job in leased if job.batch in first and first[job.batch] < (job.due_at, job.id)}


async def fail(database: Database, worker: UUID, job: Job, reason: str) -> bool:
    """Delay a failed job, or move it to the dead letters after its last retry; return whether it was moved.

    Posted events of one key keep their order: those after a delayed one are delayed too.
    """
    if job.attempts > len(RETRY_DELAYS):
        await move_to_dead_letters(database, worker, job.id, reason)
        return True
    name = "put_off_in_turn" if job.task == "post" and job.batch else "put_off"
    await database.value(_SQL[name], worker, job.id, RETRY_DELAYS[job.attempts - 1])
    return False


async def move_to_dead_letters(store: Database | Connection, worker: UUID, job: UUID, reason: str) -> bool:
    """Move a job to the dead letters, with the reason; return whether the worker had its lease."""
    return bool(await fetch(store, _SQL["move_to_dead_letters"], worker, job, reason))


async def release(database: Database, worker: UUID, queue: Queue) -> None:
    """Release the leases of this worker in a queue, as if the jobs had never been claimed."""
    await database.value(_SQL["release"], worker, queue)


async def is_there(database: Database, job: UUID) -> bool:
    """Return whether a job exists."""
    return bool(await database.value(_SQL["is_there"], job))


async def enrol(database: Database, worker: UUID, name: str, lanes: Sequence[str] = ()) -> datetime:
    """Register a worker and the lanes of its pushes; return the time of the database."""
    seen_at: datetime = await database.value(_SQL["enrol"], worker, name, list(lanes))
    return seen_at


async def lanes_of_workers(database: Database) -> list[str] | None:
    """Return the lanes of all running workers; None if none is running, or one is of a release that does not say."""
    lanes: list[str] | None = await database.value(_SQL["lanes_of_workers"], LEASE_TIMEOUT)
    return lanes


async def beat(database: Database, worker: UUID, problem: str | None = None) -> datetime | None:
    """Write a heartbeat with the worker's problem; return the time of the database, None if it is not registered."""
    found: datetime | None = await database.value(_SQL["beat"], worker, problem)
    return found


async def reap(database: Database, silent_since: datetime | None) -> None:
    """Release the leases of workers without heartbeat since a time, or of unregistered workers. Skip locked rows."""
    async with database.connection() as connection:
        await connection.execute(_SQL["reap"], silent_since)
        await connection.execute(_SQL["reap_deliveries"])


async def end_hanging(database: Database) -> int:
    """End sessions of processes that hang between preparing a statement and running it; return how many.

    The server ends all others that are idle in a transaction.
    """
    ended: int = await database.value(_SQL["end_hanging"], IDLE_IN_TRANSACTION_TIMEOUT)
    return ended


class Witness:
    """Decides by a worker's own heartbeats since when another worker must be silent to lose its leases.

    If this worker's heartbeats failed, because of an outage of the database or a suspended machine, those of others
    failed too: for a while no worker loses its leases. The same is true after the clock was set. All times are those of
    the database's clock.
    """

    def __init__(self) -> None:
        self._seen_at: datetime | None = None
        self._doubts_until: datetime | None = None

    def beat(self, seen_at: datetime) -> None:
        """Record a heartbeat of this worker."""
        between = seen_at - self._seen_at if self._seen_at else timedelta()
        if not timedelta() <= between <= timedelta(seconds=LEASE_TIMEOUT - HEARTBEAT_INTERVAL):
            self._doubts_until = seen_at + timedelta(seconds=LEASE_TIMEOUT)
        self._seen_at = seen_at

    @property
    def silent_since(self) -> datetime | None:
        """The time; None while no worker may lose its leases."""
        if self._seen_at is None or (self._doubts_until and self._seen_at < self._doubts_until):
            return None
        return self._seen_at - timedelta(seconds=LEASE_TIMEOUT)


async def leave(database: Database, worker: UUID) -> None:
    """Unregister a worker and release its leases."""
    await database.value(_SQL["leave"], worker)


async def forget_workers(database: Database) -> None:
    """Unregister all workers that do not run on this machine, and release their leases.

    Only a database that no other machine uses may be given. Those that run keep the leases of what they do, such as
    pushes under way, which would be sent again.
    """
    gone = [row["id"] for row in await database.rows(_SQL["workers"]) if not _runs(row["name"])]
    await database.value(_SQL["forget_workers"], gone)
    await reap(database, None)


async def depth(database: Database, most: int = MAX_COUNTED) -> dict[Queue, tuple[int, float]]:
    """Return, per queue, the number of due jobs (counted up to `most`) and the longest wait in seconds."""
    return {row["queue"]: (row["depth"], row["age"]) for row in await database.rows(_SQL["depth"], most)}


def process_name() -> str:
    """Return the name of a worker in this process: its machine and its process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _runs(name: str) -> bool:
    """Return whether another process of this machine, with the name of a worker, runs."""
    machine, _, process = name.rpartition(":")
    return machine == socket.gethostname() and name != process_name() and Path("/proc", process).exists()


def _all_of(jobs: Sequence[UUID], status: str) -> None:
    if int(status.rpartition(" ")[2]) != len(jobs):
        raise Lost
