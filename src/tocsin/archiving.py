"""Archiving of the write-ahead log: whether PostgreSQL archives, and how far it is behind."""

import asyncio
from dataclasses import dataclass
from datetime import datetime

import structlog

from tocsin.backoff import Backoff
from tocsin.db.connections import Connection
from tocsin.db.errors import DRIVER_ERRORS, is_denied
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.postgres.segments import SEGMENT_BYTES, is_segment, name_of, number_of, timeline_of

INTERVAL = 60.0
"""Seconds between two checks of the archive, and between two log lines about it."""

MANY_WAITING = 8
"""Complete segments that are not archived, from which on a command that neither ends nor fails is a problem."""

_SQL = queries("archiving")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Archiving:
    """How far archiving is. `oldest` is the first segment that is not archived, if some are complete."""

    failing: bool
    waiting: int
    oldest: str | None
    since: datetime | None

    @property
    def problem(self) -> str | None:
        """What is wrong, in words; None if archiving works."""
        if not self.failing and self.waiting < MANY_WAITING:
            return None
        since = f" since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        size = self.waiting * SEGMENT_BYTES // 2**20
        what = "fails" if self.failing else "is behind"
        return f"log archiving {what}{since}: {self.waiting} segments ({size} MiB) wait, the oldest is {self.oldest}"


async def state(database: Database | Connection) -> Archiving | None:
    """Return the state of the archive; None if PostgreSQL does not archive, or does not say so to its role."""
    rows = database.rows if isinstance(database, Database) else database.fetch
    try:
        found = next(iter(await rows(_SQL["state"])), None)
    except DRIVER_ERRORS as error:
        if not is_denied(error):
            raise
        found = None
    if found is None:
        return None
    failed_at, archived_at = found["last_failed_time"], found["last_archived_time"]
    failing = failed_at is not None and (archived_at is None or failed_at > archived_at)
    current = found["current_wal"]
    if failing:
        oldest = found["last_failed_wal"][:24]
    elif is_segment(last := found["last_archived_wal"] or ""):
        oldest = name_of(timeline_of(current), number_of(last) + 1)
    else:
        oldest = current
    waiting = max(0, number_of(current) - number_of(oldest)) if len(oldest) == len(current) else 0
    return Archiving(failing, waiting, oldest if failing or waiting else None, archived_at or found["stats_reset"])


async def watch(database: Database) -> None:
    """Log failures of the archive and their end, forever."""
    backoff = Backoff("archive of the log")
    problem = None

    async def look() -> None:
        nonlocal problem
        found = await state(database)
        before, problem = problem, found.problem if found else None
        if found and problem:
            log.error("log archiving failed", oldest=found.oldest, waiting=found.waiting, since=str(found.since))
        elif before:
            log.info("log archiving works again")

    while True:
        await backoff.attempt(look)
        await asyncio.sleep(INTERVAL)
