"""Retention: deletes expired data in small steps, so that other work does not wait.

Idempotency keys are kept for a day, the changes of inboxes for a week, dead letters and results of pushes for thirty
days, devices for 270 days after their last use, interrupted imports and unsent clears for an hour, and notifications
and the audit log as long as the operator configures.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import structlog

from tocsin import audit, inbox
from tocsin.db.admission import KIND
from tocsin.db.pool import Connection, Database, queries
from tocsin.errors import Unavailable

INTERVAL = 60.0
"""Seconds between two rounds."""

STEP_INTERVAL = 0.05
"""Seconds between two steps, so that most of the database's time is left to other work."""

BATCH_SIZE = 1_000
"""Rows per step."""

ALWAYS = (
    "idempotency_keys",
    "rate_limits",
    "streams",
    "console_sessions",
    "last_clears",
    "metric_minutes",
    "dead_letters",
    "deliveries",
    "devices",
    "imports",
)
"""The data that is always deleted, independent of the settings, in addition to the changes of inboxes."""

_LOCK = 0x6B6565706572
_SQL = queries("retention")

Step = Callable[[Connection], Awaitable[int]]

log = structlog.get_logger(__name__)


async def run(database: Database, retention_days: int | None, audit_days: int) -> None:
    """Run a round each `INTERVAL`, forever. Several processes can call this; a lock lets one step run at a time."""
    while True:
        await run_once(database, retention_days, audit_days)
        await asyncio.sleep(INTERVAL)


async def run_once(
    database: Database, retention_days: int | None, audit_days: int = audit.DEFAULT_RETENTION_DAYS
) -> dict[str, int]:
    """Delete all rows that are due; return their number by kind, without zeros."""
    steps: dict[str, Step] = {name: _statement(name) for name in ALWAYS}
    steps["changes"] = lambda connection: inbox.forget_changes(connection, BATCH_SIZE)
    steps["audit_entries"] = lambda connection: audit.expire(connection, BATCH_SIZE, audit_days)
    if retention_days is not None:
        steps["notifications"] = lambda connection: _delete_notifications(connection, retention_days)
        steps["events"] = lambda connection: _delete_events(connection, retention_days)
    forgotten: dict[str, int] = {}
    for name, step in steps.items():
        KIND.set(f"retention of {name}")
        try:
            found = await _repeat(database, step)
        except Unavailable:  # the pool logs it, and the next round tries again
            break
        except Exception as error:
            log.warning("work failed; it will be retried", work=f"retention of {name}", exc_info=error)
        else:
            forgotten |= {name: found} if found else {}
    if forgotten:
        log.info("deleted expired rows", **forgotten)
    return forgotten


async def _repeat(database: Database, step: Step) -> int:
    """Repeat a step until it finds nothing, or another process runs one; return the number of rows."""
    total = 0
    while True:
        async with database.transaction() as connection:
            found = await step(connection) if await connection.fetchval(_SQL["turn"], _LOCK) else 0
        if not found:
            return total
        total += found
        await asyncio.sleep(STEP_INTERVAL)


def _statement(name: str) -> Step:
    async def step(connection: Connection) -> int:
        count: int = await connection.fetchval(_SQL[name], BATCH_SIZE)
        return count

    return step


async def _delete_notifications(connection: Connection, days: int) -> int:
    old = await connection.fetch(_SQL["old_recipients"], BATCH_SIZE, days)
    if not old:
        return 0
    people = {id_ for record in old for id_ in record["user_ids"]}
    there = await inbox.lock(connection, people)
    entries = [(record["event_id"], id_) for record in old for id_ in record["user_ids"] if id_ in there]
    if entries:
        await inbox.remove(connection, entries)
    ids = [record["event_id"] for record in old]
    await connection.execute(_SQL["forget_recipients"], ids, [record["after_user"] for record in old])
    await _forget_rest(connection, ids)
    return len(old)


async def _delete_events(connection: Connection, days: int) -> int:
    ids = [row["id"] for row in await connection.fetch(_SQL["old_events"], BATCH_SIZE, days)]
    await _forget_rest(connection, ids)
    return len(ids)


async def _forget_rest(connection: Connection, ids: Sequence[UUID]) -> None:
    await connection.execute(_SQL["forget_events"], list(dict.fromkeys(ids)))
