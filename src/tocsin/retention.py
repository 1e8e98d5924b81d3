"""Retention: deletes expired data in small steps, so that other work does not wait, and makes and drops partitions.

Idempotency keys are kept for a day, the changes of inboxes for a week, dead letters and results of pushes for thirty
days, devices for 270 days after their last use, interrupted imports and unsent clears for an hour, and notifications
and the audit log as long as the operator configures.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import structlog

from tocsin import audit, inbox
from tocsin.db.admission import KIND
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Locked, Unavailable
from tocsin.isolation import lock_timeout

INTERVAL = 60.0
"""Seconds between two rounds."""

PAUSE = 1.0
"""The pause after a step, as a multiple of the time that the step took: what other work slows down gives way to it."""

BATCH_SIZE = 1_000
"""Rows per step."""

TURN_INTERVAL = 0.05
"""Seconds until the next attempt of a step that cannot be left out, if another process runs one."""

MAX_REST_BYTES = 2**28
"""Size of the partition for the rest up to which partitions of months are made: it is locked and read for each."""

PARTITION_LOCK_TIMEOUT = 0.1
"""Seconds that a change of partitions waits for a lock, since other statements wait behind it."""

DROP_ATTEMPTS, DROP_INTERVAL = 10, 1.0
"""How often a drop is tried in a round, and the seconds between two attempts."""

MAX_AHEAD = timedelta(days=1)
"""How far the database's clock may be ahead of this machine's: beyond that, what is deleted would not have expired."""

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
Forget = Callable[[Connection, UUID, UUID], Awaitable[int]]

log = structlog.get_logger(__name__)


class ClockAheadError(Exception):
    """The database's clock is ahead of this machine's by more than `MAX_AHEAD`."""


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
    works: dict[str, Work] = {"nothing": _compare_clocks}
    works |= {name: partial(_repeat, step=step) for name, step in steps.items()}
    works["partitions"] = _make_partitions
    if retention_days is not None:
        works["months"] = partial(_drop_months, days=retention_days)
        works["notifications"] = partial(_delete_notifications, days=retention_days)
        works["events"] = partial(_delete_events, days=retention_days)
    forgotten: dict[str, int] = {}
    for name, work in works.items():
        KIND.set(f"retention of {name}")
        try:
            found = await work(database)
        except Locked:  # the next round repeats it
            continue
        except (Unavailable, ClockAheadError):  # it has been logged, and the next round tries again
            break
        except Exception as error:
            log.warning("work failed; it will be retried", work=f"retention of {name}", exc_info=error)
        else:
            forgotten |= {name: found} if found else {}
    if forgotten:
        log.info("deleted expired rows", **forgotten)
    return forgotten


async def _compare_clocks(database: Database) -> int:
    """Raise `ClockAheadError` if the database's clock is too far ahead of this machine's."""
    ahead = await database.value(_SQL["clock"]) - datetime.now(UTC)
    if ahead > MAX_AHEAD:
        log.error("nothing is deleted: the database's clock is ahead of this machine's", seconds=ahead.total_seconds())
        raise ClockAheadError
    return 0


async def suspend(connection: Connection) -> None:
    """Wait for the step that runs, and let no step run until the end of the transaction."""
    await connection.execute(_SQL["suspend"], _LOCK)


async def _repeat(database: Database, step: Step, *, waits: bool = False) -> int:
    """Repeat a step until it finds nothing; return the number of rows.

    If another process runs a step, return before that, or, with `waits`, after a look later.
    """
    total = 0
    while True:
        began = time.monotonic()
        async with database.transaction() as connection:
            has_turn = await connection.fetchval(_SQL["turn"], _LOCK)
            found = await step(connection) if has_turn else 0
        if not found and (has_turn or not waits):
            return total
        total += found
        await asyncio.sleep(PAUSE * (time.monotonic() - began) if has_turn else TURN_INTERVAL)


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

    Other months are left to the steps that delete rows. Returns the number of months.
    """
    dropped = 0
    for month, low, high in await database.rows(_SQL["months"]):
        if await database.value(_SQL["is_needed"], low, high, days):
            continue
        cutoff = await database.value(_SQL["cutoff"], days)
        await database.rows(_SQL["end_events"], low, high)
        await _empty_month(database, low, high, cutoff)
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


async def _empty_month(database: Database, low: UUID, high: UUID, cutoff: datetime) -> None:
    """Delete what belongs to the events of a month in other tables, and their recipients and entries in inboxes."""

    async def delete_left(connection: Connection) -> int:
        count, _ = await inbox.expire(connection, (low, inbox.FIRST_RECORD), high, cutoff, BATCH_SIZE)
        return count

    await _delete_range(database, (low, high), cutoff, _forget_related, waits=True)
    for _ in range(DROP_ATTEMPTS):
        await _repeat(database, delete_left, waits=True)
        if not await database.value(_SQL["has_recipients"], low, high):
            return
        await asyncio.sleep(DROP_INTERVAL)  # their inboxes are in use


async def _delete_notifications(database: Database, days: int) -> int:
    """Delete notifications in the order of the ids of their events, then those that are left; return their number.

    Left are events that were delivered later than their ids say, and inboxes that were in use.
    """
    count = 0
    for low, high, cutoff in await database.rows(_SQL["ranges"], days):
        count += await _delete_range(database, (low, high), cutoff, partial(_forget_range, cutoff=cutoff))
    return count + await _repeat(database, partial(_delete_oldest, days=days))


async def _delete_range(
    database: Database, ids: tuple[UUID, UUID], cutoff: datetime, forget: Forget, *, waits: bool = False
) -> int:
    """Delete recipients older than `cutoff` of the events with ids in a range, and `forget` the events, in steps.

    A step has a part of the range, with about `BATCH_SIZE` recipients and at most as many events. Returns the sum of
    what `forget` returns.
    """
    start, high = ids
    first, count = (start, inbox.FIRST_RECORD), 0

    async def step(connection: Connection) -> int:
        nonlocal start, first, count
        end = await connection.fetchval(_SQL["event_after"], start, high, BATCH_SIZE)
        _, first = await inbox.expire(connection, first, end, cutoff, BATCH_SIZE)
        count += await forget(connection, start, first[0])
        start = first[0]
        return int(start < high)

    await _repeat(database, step, waits=waits)
    return count


async def _forget_related(connection: Connection, start: UUID, end: UUID) -> int:
    count: int = await connection.fetchval(_SQL["forget_related"], start, end)
    return count


async def _forget_range(connection: Connection, start: UUID, end: UUID, cutoff: datetime) -> int:
    count: int | None = await connection.fetchval(_SQL["forget_range"], start, end, cutoff)
    if count and await connection.fetchval(_SQL["has_recipients"], start, end):
        raise Locked  # an import that had begun has added some
    if count is None:  # some are needed
        ids = await connection.fetchval(_SQL["old_in_range"], start, end, cutoff)
        await _forget_rest(connection, ids)
        count = len(ids)
    return count


async def _delete_oldest(connection: Connection, days: int) -> int:
    cutoff = await connection.fetchval(_SQL["cutoff"], days)
    count, ids = await inbox.expire_oldest(connection, cutoff, BATCH_SIZE)
    await _forget_rest(connection, ids)
    return count


async def _delete_events(database: Database, days: int) -> int:
    """Delete events that were never delivered, in steps; return their number. Each step looks at the next events."""
    after, count = (datetime.min.replace(tzinfo=UTC), UUID(int=0)), 0

    async def step(connection: Connection) -> int:
        nonlocal after, count
        row = await connection.fetchrow(_SQL["old_events"], BATCH_SIZE, days, *after)
        if row is None:
            return 0
        await _forget_rest(connection, row["old"])
        after, count = (row["accepted_at"], row["id"]), count + len(row["old"])
        return int(row["count"])

    await _repeat(database, step)
    return count


async def _forget_rest(connection: Connection, ids: Sequence[UUID]) -> None:
    await connection.execute(_SQL["hold_events"], ids)
    await connection.execute(_SQL["forget_events"], ids)
