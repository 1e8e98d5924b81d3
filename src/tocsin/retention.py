"""Retention: deletes expired data in small steps, so that other work does not wait, and makes and drops partitions.

Idempotency keys are kept for a day, the changes of inboxes for a week, dead letters and results of pushes for thirty
days, devices for 270 days after their last use, interrupted imports and unsent clears for an hour, and notifications
and the audit log as long as the operator configures.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from uuid import UUID

import structlog

from tocsin import audit, inbox
from tocsin.db.admission import KIND
from tocsin.db.pool import Connection, Database, Record, queries
from tocsin.errors import Locked, Unavailable
from tocsin.isolation import lock_timeout

INTERVAL = 60.0
"""Seconds between two rounds."""

STEP_INTERVAL = 0.05
"""Seconds between two steps, so that most of the database's time is left to other work."""

BATCH_SIZE = 1_000
"""Rows per step."""

MAX_REST_BYTES = 2**28
"""Size of the partition for the rest up to which partitions of months are made: it is locked and read for each."""

PARTITION_LOCK_TIMEOUT = 0.1
"""Seconds that a change of partitions waits for a lock, since other statements wait behind it."""

DROP_ATTEMPTS, DROP_INTERVAL = 10, 1.0
"""How often a drop is tried in a round, and the seconds between two attempts."""

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
Work = Callable[[Database], Awaitable[int]]

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
    works: dict[str, Work] = {name: partial(_repeat, step=step) for name, step in steps.items()}
    works["partitions"] = _make_partitions
    if retention_days is not None:
        works["months"] = partial(_drop_months, days=retention_days)
        works["notifications"] = partial(_repeat, step=partial(_delete_notifications, days=retention_days))
        works["events"] = partial(_repeat, step=partial(_delete_events, days=retention_days))
    forgotten: dict[str, int] = {}
    for name, work in works.items():
        KIND.set(f"retention of {name}")
        try:
            found = await work(database)
        except Locked:  # a change of partitions, which the next round repeats
            continue
        except Unavailable:  # the pool logs it, and the next round tries again
            break
        except Exception as error:
            log.warning("work failed; it will be retried", work=f"retention of {name}", exc_info=error)
        else:
            forgotten |= {name: found} if found else {}
    if forgotten:
        log.info("deleted expired rows", **forgotten)
    return forgotten


async def _repeat(database: Database, step: Step, *, waits: bool = False) -> int:
    """Repeat a step until it finds nothing; return the number of rows.

    If another process runs a step, return before that, or, with `waits`, after a look later.
    """
    total = 0
    while True:
        async with database.transaction() as connection:
            has_turn = await connection.fetchval(_SQL["turn"], _LOCK)
            found = await step(connection) if has_turn else 0
        if not found and (has_turn or not waits):
            return total
        total += found
        await asyncio.sleep(STEP_INTERVAL)


def _statement(name: str) -> Step:
    async def step(connection: Connection) -> int:
        count: int = await connection.fetchval(_SQL[name], BATCH_SIZE)
        return count

    return step


async def _make_partitions(database: Database) -> int:
    """Make the missing partitions of this and the next month, if tables have partitions; return their number."""

    async def make(connection: Connection) -> int:
        name = await connection.fetchval(_SQL["make_partition"], MAX_REST_BYTES)
        if name is not None:
            log.info("made a partition", name=name)
        return name is not None

    with lock_timeout(PARTITION_LOCK_TIMEOUT):
        return await _repeat(database, make)


async def _drop_months(database: Database, days: int) -> int:
    """Delete the notifications of months of which nothing else is needed, and drop their partitions.

    Other months are left to the steps that delete row by row. Returns the number of months.
    """
    dropped = 0
    for month, low, high in await database.rows(_SQL["months"]):
        if await database.value(_SQL["is_needed"], low, high, days):
            continue
        await database.rows(_SQL["end_events"], low, high)
        await _empty_month(database, low, high)
        if not await _drop_month(database, month, days):
            return dropped  # the next round tries again
        dropped += 1
    await database.rows(_SQL["keep_events"])
    return dropped


async def _drop_month(database: Database, month: str, days: int) -> bool:
    """Drop the partitions of an empty month, if their tables can be locked for a moment; return whether they are."""

    async def drop(connection: Connection) -> int:
        is_dropped: bool = await connection.fetchval(_SQL["drop_month"], month, days)
        return is_dropped

    for _ in range(DROP_ATTEMPTS):
        with contextlib.suppress(Locked), lock_timeout(PARTITION_LOCK_TIMEOUT):
            return bool(await _repeat(database, drop, waits=True))
        await asyncio.sleep(DROP_INTERVAL)
    return False


async def _empty_month(database: Database, low: UUID, high: UUID) -> None:
    """Delete what belongs to the events of a month in other tables, and their recipients and entries in inboxes."""
    start, last = low, (low, -(2**31))

    async def forget(connection: Connection) -> int:
        nonlocal start
        after, start = start, await connection.fetchval(_SQL["event_after"], start, high, BATCH_SIZE)
        await connection.execute(_SQL["forget_related"], after, start)
        return int(start < high)

    async def delete(connection: Connection) -> int:
        nonlocal last
        old = await connection.fetch(_SQL["recipients_of_month"], *last, high, BATCH_SIZE)
        if old:
            await _delete_recipients(connection, old)
            last = old[-1]["event_id"], old[-1]["after_user"]
        return len(old)

    await _repeat(database, forget, waits=True)
    await _repeat(database, delete, waits=True)


async def _delete_notifications(connection: Connection, days: int) -> int:
    old = await connection.fetch(_SQL["old_recipients"], BATCH_SIZE, days)
    if old:
        await _delete_recipients(connection, old)
        await _forget_rest(connection, [record["event_id"] for record in old])
    return len(old)


async def _delete_recipients(connection: Connection, old: Sequence[Record]) -> None:
    """Delete these records of recipients, with the entries in their inboxes."""
    people = {id_ for record in old for id_ in record["user_ids"]}
    there = await inbox.lock(connection, people)
    entries = [(record["event_id"], id_) for record in old for id_ in record["user_ids"] if id_ in there]
    if entries:
        await inbox.remove(connection, entries)
    keys = [record["event_id"] for record in old], [record["after_user"] for record in old]
    await connection.execute(_SQL["forget_recipients"], *keys)


async def _delete_events(connection: Connection, days: int) -> int:
    ids = [row["id"] for row in await connection.fetch(_SQL["old_events"], BATCH_SIZE, days)]
    await _forget_rest(connection, ids)
    return len(ids)


async def _forget_rest(connection: Connection, ids: Sequence[UUID]) -> None:
    await connection.execute(_SQL["forget_events"], list(dict.fromkeys(ids)))
