"""Readiness: checks whether requests can be served and which queues are late, at a constant cost."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from tocsin import archiving, jobs
from tocsin.capacity import Capacity
from tocsin.db import migrate
from tocsin.db.connections import Connection
from tocsin.db.errors import LOCK_HELD, LOST, UNANSWERED
from tocsin.db.pool import Database, fetch
from tocsin.db.statements import queries
from tocsin.disk_guard import DiskGuard
from tocsin.errors import Locked, Unavailable
from tocsin.isolation import SHORT_LOCK_TIMEOUT, lock_timeout
from tocsin.pubsub import PubSub
from tocsin.push import deliveries
from tocsin.replica import Replica

FRESH = 1.0
"""Seconds for which a result is cached."""

MAX_COUNTED = 1_000
"""Maximum jobs of a queue that are counted."""

MAX_LOCK_WAIT = 5.0
"""Seconds for which a session may wait for a table, or keep locks of rows while it is idle."""

MAX_BEHIND = 10.0
"""Seconds for which a standby may not have applied a change that it received."""

REPLAY_TIME = 0.5
"""Seconds after which a standby that is not behind has applied what it had received."""

_SQL = queries("readiness")


@dataclass(frozen=True, slots=True)
class Found:
    """A cached result: the response, or the reason of the failure."""

    at: float
    answer: dict[str, Any] | None
    problem: Unavailable | None


class Readiness:
    """Checks whether this process can serve requests."""

    def __init__(
        self,
        database: Database,
        disk: DiskGuard,
        pubsub: PubSub | None = None,
        capacity: Capacity | None = None,
        replica: Replica | None = None,
    ) -> None:
        self._database, self._disk, self._pubsub, self._capacity = database, disk, pubsub, capacity
        self._replica = replica
        self._looking = asyncio.Lock()
        self._found: Found | None = None
        self._queue: dict[jobs.Queue, dict[str, Any]] = {
            name: {"due": 0, "oldest": 0.0, "stalled": False} for name in jobs.LATE
        }
        self._pushes: dict[str, Any] = {"oldest": 0.0, "stalled": False}

    async def answer(self) -> dict[str, Any]:
        """Return what waits in the queues and lanes. Raises `Unavailable` if requests cannot be served."""
        async with self._looking:
            if self._found is None or time.monotonic() - self._found.at > FRESH:
                self._found = await self._look()
        if self._found.answer is None:
            raise self._found.problem or Unavailable()
        return self._found.answer

    async def now(self) -> tuple[bool, list[str]]:
        """Return whether requests can be served, and the problems or why they cannot."""
        try:
            return True, (await self.answer())["problems"]
        except Unavailable as error:
            return False, [str(error).partition(". ")[0].removesuffix(".")]

    async def _look(self) -> Found:
        answer, problem = None, None
        try:
            answer = await self._checked()
        except Unavailable as error:
            problem = error
            if error.reason not in {LOST, UNANSWERED, *_OWN}:
                problem = Unavailable(f"The database is not available: {error.reason}.", retry_after=5)
        return Found(time.monotonic(), answer, problem)

    async def _checked(self) -> dict[str, Any]:
        async with self._database.connection() as connection:
            if not self._database.is_read_only:
                await refuse_read_only(connection)
            current = await migrate.is_current(connection)
        if not current:
            message = "The database lacks migrations of this release: run `tocsin migrate`."
            raise Unavailable(message, retry_after=5, reason=_STEPS)
        reasons = await self._reasons()
        if self._disk.problem:
            reasons.add(f"new events are refused: {self._disk.problem}")
        if self._pubsub and self._pubsub.problem:
            reasons.add(self._pubsub.problem)
        if self._capacity and self._capacity.problem:
            reasons.add(self._capacity.problem)
        if self._replica and self._replica.problem:
            reasons.add(f"inboxes are read from the primary: {self._replica.problem}")
        return {
            "status": "read-only" if self._database.is_read_only else "ready",
            "database": "ok",
            "migrations": "ok",
            "queue": self._queue,
            "pushes": self._pushes,
            "problems": sorted(reasons),
        }

    async def _reasons(self) -> set[str]:
        """Look at what waits, and return the problems. A locked table stops some requests, and not this process."""
        reasons: set[str] = set()
        with lock_timeout(SHORT_LOCK_TIMEOUT):
            for look in (
                self._look_at_jobs,
                self._look_at_pushes,
                self._look_at_lanes,
                self._look_at_workers,
                self._look_at_archive,
                self._look_at_locks,
                self._look_at_replay,
            ):
                try:
                    reasons |= await look()
                except Locked as error:
                    reasons.add(error.reason)
        if LOCK_HELD in reasons:
            reasons.update(await lockers(self._database))
        return reasons

    async def _look_at_jobs(self) -> set[str]:
        """Replace what was seen of the queues; while they cannot be read, what was seen before is stalled."""
        for queue in self._queue.values():
            queue["stalled"] = True
        self._queue = {
            name: {"due": due, "oldest": round(age, 3), "stalled": age > jobs.LATE[name]}
            for name, (due, age) in (await jobs.depth(self._database, MAX_COUNTED)).items()
        }
        late = [name for name, queue in self._queue.items() if queue["stalled"]]
        return {await self._late(f"jobs of the {name} queue", jobs.LATE[name]) for name in late}

    async def _look_at_pushes(self) -> set[str]:
        self._pushes["stalled"] = True
        oldest = await deliveries.oldest(self._database)
        self._pushes = {"oldest": round(oldest, 3), "stalled": oldest > jobs.LATE["direct"]}
        return {await self._late("pushes", jobs.LATE["direct"])} if self._pushes["stalled"] else set()

    async def _late(self, what: str, seconds: float) -> str:
        """Return that something waits too long. Why it does is another problem, unless no worker is running."""
        cause = "" if await running(self._database) else ": no worker is running"
        return f"{what} have waited for more than {seconds:.0f} s{cause}"

    async def _look_at_lanes(self) -> set[str]:
        said = {f"push lane {name} {what}" for name, what in await stopped_lanes(self._database)}
        refusing = await deliveries.refusing(self._database)
        return said | {f"{row['origin']} refuses pushes of {row['lane']}: {row['reason']}" for row in refusing}

    async def _look_at_workers(self) -> set[str]:
        said = await problems(self._database)
        return {part.partition(": ")[2] for _, problem in said for part in problem.split("; ")}

    async def _look_at_archive(self) -> set[str]:
        archive = await archiving.state(self._database)
        return {archive.problem} if archive and archive.problem else set()

    async def _look_at_locks(self) -> set[str]:
        """Look for sessions that wait for a table, such as those of requests, which report no problem themselves."""
        return {LOCK_HELD} if await self._database.value(_SQL["has_waiting"], MAX_LOCK_WAIT) else set()

    async def _look_at_replay(self) -> set[str]:
        """Look whether a standby follows its primary."""
        problem = problem_of_replay(*await replay(self._database)) if self._database.is_read_only else ""
        return {problem} if problem else set()


STANDBY = "it is a standby, which accepts no writes"
READ_ONLY = "it is read-only for its role (default_transaction_read_only)"
UNCONFIRMED = "commits wait for a synchronous standby, and none confirms them"
_STEPS = "it lacks migrations of this release"
_OWN = frozenset({STANDBY, READ_ONLY, UNCONFIRMED, _STEPS})


async def why_read_only(store: Database | Connection) -> str:
    """Return why the database accepts no writes; empty if it does."""
    [found] = await fetch(store, _SQL["writable"])
    return STANDBY if found["is_standby"] else READ_ONLY if found["is_read_only"] else ""


async def refuse_read_only(connection: Connection) -> None:
    """Raise `Unavailable` if the database accepts no writes; with a full disk, the statements raise its own error."""
    async with connection.transaction():
        if reason := await why_read_only(connection):
            raise Unavailable(f"The database accepts no writes: {reason}.", retry_after=5, reason=reason)
        if await connection.fetchval(_SQL["has_unconfirmed"], MAX_LOCK_WAIT):
            raise Unavailable(f"The database accepts no writes: {UNCONFIRMED}.", retry_after=5, reason=UNCONFIRMED)
        for step in ("small_memory", "use_disk", "write_log"):
            await connection.fetch(_SQL[step])


async def replay(database: Database | Connection) -> tuple[bool, bool, float]:
    """Return whether the server is a standby, whether it receives changes, and by how many seconds it is behind.

    The first change after a pause looks late until it is applied, so it gets a moment for that.
    """
    [row] = await fetch(database, _SQL["replay"], None)
    if row["behind"] > MAX_BEHIND:
        await asyncio.sleep(REPLAY_TIME)
        [row] = await fetch(database, _SQL["replay"], row["received"])
    return row["is_standby"], row["is_receiving"], row["behind"]


def problem_of_replay(is_standby: bool, is_receiving: bool, behind: float) -> str:  # noqa: FBT001 - as `replay` returns
    """Return why the data of a standby is old, in words; empty if it is not."""
    if is_standby and not is_receiving:
        return "the standby receives no changes from its primary"
    return f"the standby is more than {MAX_BEHIND:.0f} s behind its primary" if behind > MAX_BEHIND else ""


async def problems(database: Database | Connection) -> list[tuple[str, str]]:
    """Return the problems of running workers: the name of the worker, and what fails and why."""
    return [(row["name"], row["problem"]) for row in await fetch(database, _SQL["problems"], jobs.LEASE_TIMEOUT)]


async def running(database: Database | Connection) -> int:
    """Return how many workers are running."""
    [row] = await fetch(database, _SQL["running"], jobs.LEASE_TIMEOUT)
    count: int = row["count"]
    return count


async def stopped_lanes(database: Database | Connection) -> list[tuple[str, str]]:
    """Return the lanes that have stopped, and those without a worker in which pushes wait; and why, as what they do."""
    rows = await fetch(database, _SQL["stopped_lanes"])
    return [(row["name"], f"has stopped: {row['reason']}" if row["reason"] else deliveries.UNSERVED) for row in rows]


async def lockers(database: Database | Connection) -> list[str]:
    """Return which sessions lock whole tables, or wait to, and which hold locks of rows and are idle, in words."""
    rows = [
        f"rows of {row['tables']} are locked by an idle transaction (process {row['pid']}, {row['application']})"
        for row in await fetch(database, _SQL["row_lockers"], MAX_LOCK_WAIT)
    ]
    return rows + [
        f"the table {row['table']} is locked by another session (process {row['pid']}, {row['application']})"
        + (f" that waits for others ({row['waits_for']})" if row["waits_for"] else "")
        for row in await fetch(database, _SQL["lockers"])
    ]


def problem_of_lane(lane: str, said: list[tuple[str, str]]) -> str | None:
    """Return why workers cannot process a lane, from their problems; None if they can."""
    works = (f"push lane {lane}: ", f"answers of {lane}: ")
    found = {part.partition(": ")[2] for _, all_ in said for part in all_.split("; ") if part.startswith(works)}
    return ", ".join(sorted(found)) or None
