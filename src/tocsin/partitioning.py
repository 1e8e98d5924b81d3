"""Gives partitions to tables that have rows, while the service runs. Each step is bounded, and all can be repeated."""

import asyncio
import time
from collections.abc import Callable

from tocsin.db.connections import Connection, Record, connect
from tocsin.db.errors import DRIVER_ERRORS, is_conflict, is_outage, sentence_on
from tocsin.db.statements import queries
from tocsin.errors import Refusal

PAGES = 500
"""Pages of 8 KiB that are copied in a transaction. After it, the copy pauses for as long as it took."""

LOCK_TIMEOUT = 0.1
"""Seconds that a step waits for a lock. Statements of the service wait behind it."""

LOCK_INTERVAL, WAIT_TIMEOUT = 1.0, 600.0
"""Seconds between two attempts of a step that gets no lock, and until the command gives up."""

FIRST_SAY, SAY_INTERVAL = 5.0, 60.0
"""Seconds that a step has waited for a lock when it says so, and until it says so again."""

TURN_TIMEOUT = 5.0
"""Seconds to wait for the end of another run. The session of one that was killed ends soon."""

_LIMIT_LOCKS = f"set lock_timeout = {round(1000 * LOCK_TIMEOUT)}"
_LOCK = 0x706172746974
_SQL = queries("partitioning")
_HOLDERS = queries("migrate")["holders"]

Say = Callable[[str], None]


async def partition(url: str, say: Say) -> None:
    """Give partitions to all tables that can have them, one by one, or continue an earlier run.

    Raises `Refusal` if another process does it, a table cannot be locked, or the copy of a table is different.
    """
    connection = await _session(url)
    try:
        for name, is_partitioned, has_begun in await connection.fetch(_SQL["tables"]):
            if is_partitioned:
                say(f"{name} has partitions.")
                continue
            if not has_begun:
                await _patiently(connection, say, _SQL["begin"], name)
            await _copy(connection, name, say)
            await connection.execute(f"set lock_timeout = 0; analyze {name}_next; {_LIMIT_LOCKS}")
            before, after, are_same = await _patiently(connection, say, _SQL["compare"], name)
            if not are_same:
                raise Refusal(
                    f"The copy of {name} has {after:,} rows and the table {before:,}, or they differ; the table stays."
                    " Run `tocsin partition --abandon`, then start again."
                )
            await _patiently(connection, say, _SQL["finish"], name)
            say(f"{name} has partitions now: {after:,} rows, compared.")
    finally:
        await connection.close()


async def abandon(url: str, say: Say) -> None:
    """Delete the copies of a run that did not end. Raises `Refusal` like `partition`."""
    connection = await _session(url)
    try:
        begun = await unfinished(connection)
        for name in begun:
            await _patiently(connection, say, _SQL["abandon"], name)
            say(f"Deleted the copy of {name}.")
        if not begun:
            say("There is no copy to delete.")
    finally:
        await connection.close()


async def unfinished(connection: Connection) -> list[str]:
    """Return the tables of which a run made a copy and did not finish it."""
    return [name for name, _, has_begun in await connection.fetch(_SQL["tables"]) if has_begun]


async def _session(url: str) -> Connection:
    """Connect to scan tables, without a timeout of statements.

    Raises `Refusal` if another process does it, or this role cannot change the tables.
    """
    connection = await connect(url)
    if owner := await connection.fetchval(_SQL["other_owner"]):
        await connection.close()
        raise Refusal(f"Run this command as {owner}, the role that owns the tables.")
    await connection.execute("set enable_seqscan = on")
    end = time.monotonic() + TURN_TIMEOUT
    while not await connection.fetchval(_SQL["turn"], _LOCK):
        if time.monotonic() > end:
            await connection.close()
            raise Refusal("Another `tocsin partition` is running.")
        await asyncio.sleep(0.1)
    await connection.execute(_LIMIT_LOCKS)
    return connection


async def _copy(connection: Connection, name: str, say: Say) -> None:
    """Copy all rows that the triggers do not."""
    told = -1
    while True:
        began = time.monotonic()
        row = await _patiently(connection, say, _SQL["copy"], name, PAGES)
        percent = 100 * row["copied"] // row["total"] if row["total"] else 100
        if percent // 10 > told // 10:
            say(f"{name}: copied {percent} %")
            told = percent
        if row["copied"] >= row["total"]:
            return
        await asyncio.sleep(time.monotonic() - began)


async def _patiently(connection: Connection, say: Say, statement: str, *arguments: str | int) -> Record:
    """Run a step. While it gets no lock, or is in conflict with another session, repeat it.

    It is one statement and commits by itself: if this process hangs between two statements, it holds no lock.
    """
    end, next_say = time.monotonic() + WAIT_TIMEOUT, time.monotonic() + FIRST_SAY
    while True:
        try:
            [row] = await connection.fetch(statement, *arguments)
        except DRIVER_ERRORS as error:
            if is_conflict(error):
                reason = (
                    f"A table could not be locked for {WAIT_TIMEOUT:.0f} s: look for long transactions, such as a dump."
                )
            elif is_outage(error):
                reason, end = sentence_on(error), 0.0
            else:
                raise
            if time.monotonic() > end:
                raise Refusal(f"{reason} What is copied stays; run the command again.") from error
            if next_say <= (now := time.monotonic()):
                holders = await connection.fetch(_HOLDERS, False)  # noqa: FBT003 - as all of its values
                holder = holders[0]["holder"] if holders else "none now"
                say(f"Waiting for a lock. The session with the longest transaction: {holder}.")
                next_say = now + SAY_INTERVAL
            await asyncio.sleep(LOCK_INTERVAL)
        else:
            return row
