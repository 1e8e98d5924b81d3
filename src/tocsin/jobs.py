"""The queue: jobs are rows, taken under a lease that ends with its worker.

A worker shows every few seconds that it lives; the leases of one that was not seen for a while are free. Every
write to a job names the worker that must still hold it, so that one taken for dead can't do a job's work twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from tocsin.db.pool import Connection, Database, queries

Queue = Literal["direct", "bulk"]

HEARTBEAT_INTERVAL = 5.0
"""Seconds between two signs of life."""

LEASE_TIMEOUT = 15.0
"""Seconds of silence after which a worker's leases are free."""

RETRY_DELAYS = (0.2, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0)
"""Seconds to wait before each further try of a job that failed; after the last it is a dead letter."""

LATE: dict[Queue, float] = {"direct": 60.0, "bulk": 1800.0}
"""Seconds for which a job may wait in a lane that makes progress."""

DIRECT_MAX_RECIPIENTS = 100
"""An event that reaches more people than this goes into the bulk lane, where it delays nobody."""

MAX_CLAIM_COST = 20_000
"""What the jobs of one claim cost together at most; one that costs more is claimed alone."""

_SQL = queries("jobs")


@dataclass(frozen=True, slots=True)
class Job:
    """A job under our lease.

    `id` is that of the thing it works on, `progress` how far it got; those of one `batch` are done in their order. Its
    wait counts from `wanted_at`, whatever put it off since.
    """

    id: UUID
    task: str
    lane: Queue
    due_at: datetime
    wanted_at: datetime
    attempts: int
    progress: int
    batch: UUID | None = None


class Lost(Exception):  # noqa: N818 - somebody else has the job now, which is no error
    """A job is no longer ours: its transaction must not be committed."""


async def claim(database: Database, worker: UUID, lane: Queue, limit: int) -> list[Job]:
    """Lease up to `limit` jobs that are due, the longest waiting first; fewer where they cost much."""
    rows = await database.rows(_SQL["claim"], worker, lane, limit, MAX_CLAIM_COST)
    return sorted((Job(**row) for row in rows), key=lambda job: (job.due_at, job.id))


async def finish(connection: Connection, worker: UUID, jobs: Sequence[UUID]) -> None:
    """Remove jobs that are done, in the transaction that did them. Raises `Lost` where one is not ours."""
    _all_of(jobs, await connection.execute(_SQL["finish"], worker, jobs))


async def go_on(connection: Connection, worker: UUID, progress: Iterable[tuple[UUID, int]]) -> None:
    """Hand jobs back with their progress, for the bulk lane. Raises `Lost` where one is not ours."""
    steps = list(progress)
    ids = [id_ for id_, _ in steps]
    _all_of(ids, await connection.execute(_SQL["go_on"], worker, ids, [done for _, done in steps]))


async def hand_back(connection: Connection, worker: UUID, jobs: Sequence[UUID], seconds: float = 0) -> None:
    """Hand back jobs whose turn has not come, as if they had never been claimed; due at once, or in `seconds`."""
    await connection.execute(_SQL["hand_back"], worker, jobs, seconds)


async def hand_back_behind_lock(database: Database, worker: UUID, job: Job, seconds: float) -> set[UUID]:
    """Hand back a job that met a lock, due in `seconds`, and what follows it in its batch; return their ids."""
    return {row["id"] for row in await database.rows(_SQL["hand_back_behind_lock"], worker, job.id, seconds)}


async def out_of_turn(database: Database, leased: Sequence[Job]) -> set[UUID]:
    """Return those of these jobs that have to wait for an earlier one of their batch, which is not among them."""
    batches = {job.batch for job in leased if job.batch and job.lane == "direct"}
    if not batches:
        return set()
    others = await database.rows(_SQL["first_others"], list(batches), [job.id for job in leased])
    first = {row["batch"]: (row["due_at"], row["id"]) for row in others}
    return {job.id for job in leased if job.batch in first and first[job.batch] < (job.due_at, job.id)}


async def fail(database: Database, worker: UUID, job: Job, reason: str) -> bool:
    """Put a job off after a failure, or bury it after the last; tells whether it was buried."""
    if job.attempts > len(RETRY_DELAYS):
        await bury(database, worker, job, reason)
        return True
    await database.value(_SQL["put_off"], worker, job.id, RETRY_DELAYS[job.attempts - 1])
    return False


async def bury(database: Database, worker: UUID, job: Job, reason: str) -> None:
    """Make a job that can't be done a dead letter, with its reason."""
    await database.value(_SQL["bury"], worker, job.id, reason)


async def release(database: Database, worker: UUID, lane: Queue) -> None:
    """Free what this worker holds in a lane, as if it had never been claimed."""
    await database.value(_SQL["release"], worker, lane)


async def is_there(database: Database, job: UUID) -> bool:
    """Tell whether a job is there, whoever has it."""
    return bool(await database.value(_SQL["is_there"], job))


async def enrol(database: Database, worker: UUID, name: str) -> datetime:
    """Enter a worker among those that live; return when that was."""
    seen_at: datetime = await database.value(_SQL["enrol"], worker, name)
    return seen_at


async def beat(database: Database, worker: UUID, problem: str | None = None) -> datetime | None:
    """Show that a worker lives, with what of it fails; return when that was. None if it was taken for dead."""
    found: datetime | None = await database.value(_SQL["beat"], worker, problem)
    return found


async def reap(database: Database, silent_since: datetime | None) -> None:
    """Free the leases of workers not seen since then, or of none that we know; what is locked is for the next time."""
    async with database.connection() as connection:
        await connection.execute(_SQL["reap"], silent_since)
        await connection.execute(_SQL["reap_deliveries"])


class Witness:
    """Since when others must have been silent that a worker takes for dead, by its own signs of life.

    What kept it from beating, such as a database that was away, or a machine that was suspended, kept the others too:
    for a while after that it takes none for dead. All times are of the database's clock.
    """

    def __init__(self) -> None:
        self._seen_at: datetime | None = None
        self._doubts_until: datetime | None = None

    def beat(self, seen_at: datetime) -> None:
        """Take note that the worker was seen."""
        if self._seen_at and (seen_at - self._seen_at).total_seconds() > LEASE_TIMEOUT - HEARTBEAT_INTERVAL:
            self._doubts_until = seen_at + timedelta(seconds=LEASE_TIMEOUT)
        self._seen_at = seen_at

    @property
    def silent_since(self) -> datetime | None:
        """The moment; none while nobody can be taken for dead."""
        if self._seen_at is None or (self._doubts_until and self._seen_at < self._doubts_until):
            return None
        return self._seen_at - timedelta(seconds=LEASE_TIMEOUT)


async def leave(database: Database, worker: UUID) -> None:
    """Take a worker off the list and free what it holds."""
    await database.value(_SQL["leave"], worker)


async def forget_workers(database: Database) -> None:
    """Forget all workers, when it is certain that none of them lives."""
    await database.value(_SQL["forget_workers"])
    await reap(database, None)


async def depth(database: Database, most: int | None = None) -> dict[Queue, tuple[int, float]]:
    """Return, per lane, how many jobs are due (counted up to `most`), and the seconds that the longest has waited."""
    return {row["lane"]: (row["depth"], row["age"]) for row in await database.rows(_SQL["depth"], most)}


def _all_of(jobs: Sequence[UUID], status: str) -> None:
    if int(status.rpartition(" ")[2]) != len(jobs):
        raise Lost
