"""Readiness: checks whether requests can be served and which queues are late, at a constant cost."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from tocsin import archiving, jobs
from tocsin.capacity import Capacity
from tocsin.db import migrate
from tocsin.db.errors import LOST, UNANSWERED
from tocsin.db.pool import Connection, Database, queries
from tocsin.disk_guard import DiskGuard
from tocsin.errors import Unavailable
from tocsin.push import deliveries

FRESH = 1.0
"""Seconds for which a result is cached."""

MAX_COUNTED = 1_000
"""Maximum jobs of a queue that are counted."""

_SQL = queries("readiness")


@dataclass(frozen=True, slots=True)
class Found:
    """A cached result: the response, or the reason of the failure."""

    at: float
    answer: dict[str, Any] | None
    problem: Unavailable | None


class Readiness:
    """Checks whether this process can serve requests."""

    def __init__(self, database: Database, disk: DiskGuard, capacity: Capacity | None = None) -> None:
        self._database, self._disk, self._capacity = database, disk, capacity
        self._looking = asyncio.Lock()
        self._found: Found | None = None

    async def answer(self) -> dict[str, Any]:
        """Return what waits in the queues and lanes. Raises `Unavailable` if requests cannot be served."""
        async with self._looking:
            if self._found is None or time.monotonic() - self._found.at > FRESH:
                self._found = await self._look()
        if self._found.answer is None:
            raise self._found.problem or Unavailable()
        return self._found.answer

    async def _look(self) -> Found:
        answer, problem = None, None
        try:
            answer = await _checked(self._database, self._disk, self._capacity)
        except Unavailable as error:
            problem = error
            if error.reason not in {LOST, UNANSWERED, *_OWN}:
                problem = Unavailable(f"The database is not available: {error.reason}.", retry_after=5)
        return Found(time.monotonic(), answer, problem)


STANDBY = "it is a standby, which accepts no writes"
READ_ONLY = "it is read-only for its role (default_transaction_read_only)"
_STEPS = "it lacks migrations of this release"
_OWN = frozenset({STANDBY, READ_ONLY, _STEPS})


async def refuse_read_only(connection: Connection) -> None:
    """Raise `Unavailable` if the database accepts no writes; with a full disk, the statements raise its own error."""
    async with connection.transaction():
        found = await connection.fetchrow(_SQL["writable"])
        assert found is not None  # noqa: S101 - the statement returns one row
        for reason in (STANDBY,) if found["is_standby"] else (READ_ONLY,) if found["is_read_only"] else ():
            raise Unavailable(f"The database accepts no writes: {reason}.", retry_after=5, reason=reason)
        for step in ("small_memory", "use_disk", "write_log"):
            await connection.fetch(_SQL[step])


async def problems(database: Database | Connection) -> list[tuple[str, str]]:
    """Return the problems of running workers: the name of the worker, and what fails and why."""
    rows = database.rows if isinstance(database, Database) else database.fetch
    return [(row["name"], row["problem"]) for row in await rows(_SQL["problems"], jobs.LEASE_TIMEOUT)]


def problem_of_lane(lane: str, said: list[tuple[str, str]]) -> str | None:
    """Return why workers cannot process a lane, from their problems; None if they can."""
    works = (f"push lane {lane}: ", f"answers of {lane}: ")
    found = {part.partition(": ")[2] for _, all_ in said for part in all_.split("; ") if part.startswith(works)}
    return ", ".join(sorted(found)) or None


async def _checked(database: Database, disk: DiskGuard, capacity: Capacity | None) -> dict[str, Any]:
    async with database.connection() as connection:
        await refuse_read_only(connection)
        current = await migrate.is_current(connection)
    if not current:
        message = "The database lacks migrations of this release: run `tocsin migrate`."
        raise Unavailable(message, retry_after=5, reason=_STEPS)
    queue = {
        name: {"due": due, "oldest": round(age, 3), "stalled": age > jobs.LATE[name]}
        for name, (due, age) in (await jobs.depth(database, MAX_COUNTED)).items()
    }
    oldest = await deliveries.oldest(database)
    reasons = {part.partition(": ")[2] for _, said in await problems(database) for part in said.split("; ")}
    archive = await archiving.state(database)
    if archive and archive.problem:
        reasons.add(archive.problem)
    if disk.problem:
        reasons.add(f"new events are refused: {disk.problem}")
    if capacity and capacity.problem:
        reasons.add(capacity.problem)
    return {
        "status": "ready",
        "database": "ok",
        "migrations": "ok",
        "queue": queue,
        "pushes": {"oldest": round(oldest, 3), "stalled": oldest > jobs.LATE["direct"]},
        "problems": sorted(reasons),
    }
