"""The invariants of the database: what must hold between its rows, and whether indexes have what their tables have."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tocsin import inbox
from tocsin.db.connections import Connection, Record, connect
from tocsin.db.errors import DRIVER_ERRORS, first_line, is_corruption, is_denied
from tocsin.db.statements import queries
from tocsin.jobs import LEASE_TIMEOUT

MAX_FOUND = 1000
"""Rows of a violated invariant that are counted."""

LOCK_TIMEOUT = 10.0
"""Seconds that a check waits for a lock, which the service holds for milliseconds."""

SETTLING_TIME = LEASE_TIMEOUT
"""Seconds after which leases without a worker are looked at again: those that were about to end have ended."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of a key, and the invariants that are checked in each: the name of a statement, and what it finds.

    `start` is below all keys, which are numbers or lists of texts. `size` bounds a range: how many users, events or
    pages, and rows of a table.
    """

    of: str
    start: int | UUID | list[str]
    size: tuple[int, ...]
    invariants: Mapping[str, str]


RANGES = (
    Ranges(
        "users",
        -(2**31),
        (MAX_FOUND, 20_000),  # so that all wrong counts of a range are found, and can be repaired
        {
            "entries_without_content": "entries of inboxes without content",
            "entries_without_event": "entries of inboxes without event",
            "entries_without_owner": "entries of inboxes without user",
            "wrong_counts": "inboxes with a wrong count",
            "wrong_positions": "inboxes with a missing or doubled position",
            "backward_times": "entries that are older than the entry before them",
            "leftover_changes": "changes of users that no longer exist",
        },
    ),
    Ranges(
        "events",
        UUID(int=0),
        (5_000, 20_000),
        {
            "lost_events": "accepted events that are neither queued, delivered, failed nor cancelled",
            "missing_subjects": "subjects of events that cannot be found",
            "deliveries_without_owner": "pushes without user",
            "deliveries_without_event": "pushes without event",
            "leftover_contents": "contents of events that no longer exist",
            "leftover_recipients": "recipients of events that no longer exist",
        },
    ),
    Ranges(
        "subjects", ["", str(UUID(int=0))], (20_000,), {"leftover_subjects": "subjects of events that no longer exist"}
    ),
    Ranges("keys", 0, (200,), {"leftover_keys": "keys of events that no longer exist"}),
)
"""What is checked range by range, because the tables may be large: no statement takes longer than seconds."""

WHOLE = {
    "lost_work": "accepted resolutions, erasures and imports that are neither queued nor failed",
    "jobs_without_object": "jobs and dead letters about nothing",
    "leases_without_worker": "leases without worker",
}
"""What is checked by one statement each."""

INVARIANTS = {name: what for each in RANGES for name, what in each.invariants.items()} | WHOLE
"""Each statement of `queries/invariants.sql`, and what it finds."""

HARMLESS = frozenset(
    {"leftover_changes", "leftover_contents", "leftover_recipients", "leftover_subjects", "leftover_keys"}
)
"""What takes space and changes no answer."""

DERIVED = "wrong_counts"
"""What follows from other rows, so that it can be repaired."""

PROGRESS_INTERVAL = 1.0
"""Minimum seconds between two reports of the progress in the same ranges."""

Progress = Callable[[str], None]
"""Gets what is checked next, since a check of a large database takes long."""

_SQL = queries("invariants")
_SESSION = (
    "select set_config(name, value, false)"
    " from (values ('enable_seqscan', 'on'), ('enable_bitmapscan', 'on'), ('lock_timeout', $2),"
    " ('default_transaction_read_only', $1)) as session (name, value)"
)
_COMPARED = "count(*) as n, coalesce(bit_xor(hashtextextended(ctid::text, 0)), 0) as mark"


@dataclass(frozen=True, slots=True)
class Violation:
    """What an invariant or an index check found: up to `MAX_FOUND` of them, and how many were repaired."""

    name: str
    what: str
    found: Sequence[str]
    repaired: int = 0

    def __str__(self) -> str:
        """Return the violation as part of a sentence."""
        more = " or more" if len(self.found) == MAX_FOUND else ""
        return f"{len(self.found)}{more} {self.what}, such as {'; '.join(self.found[:3])}"


async def open_session(url: str, *, may_write: bool = False) -> Connection:
    """Connect without a timeout of statements, but of locks. The session can scan tables, and writes only if it may."""
    connection = await connect(url)
    await connection.fetch(_SESSION, "off" if may_write else "on", str(round(1000 * LOCK_TIMEOUT)))
    return connection


def unreported(what: str) -> None:
    """Report no progress."""


async def check_rows(
    connection: Connection, progress: Progress = unreported, *, repair: bool = False
) -> AsyncIterator[Violation | None]:
    """Check each invariant; yield a violation, or None if it holds. With `repair`, count wrong counts again.

    Memory is bounded, and so is each statement: they read a range of a large table.
    """
    for ranges in RANGES:
        found: dict[str, list[str]] = {name: [] for name in ranges.invariants}
        repaired = 0
        async for after, last in _parts(connection, ranges, progress):
            for name in ranges.invariants:
                here = await _found(connection, name, after, last)
                found[name] += here[: MAX_FOUND - len(found[name])]
                if here and repair and name == DERIVED:
                    repaired += await _recount(connection, [int(user_id) for user_id in here])
        for name, what in ranges.invariants.items():
            yield Violation(name, what, found[name], repaired) if found[name] else None
    for name, what in WHOLE.items():
        progress(f"rows: {what}")
        whole = await _found(connection, name)
        if whole and name == "leases_without_worker":
            await asyncio.sleep(SETTLING_TIME)
            whole = sorted(set(whole) & set(await _found(connection, name)))
        yield Violation(name, what, whole) if whole else None


async def _parts(connection: Connection, ranges: Ranges, progress: Progress) -> AsyncIterator[tuple[Any, Any]]:
    """Yield each range: the key before it, and its last key."""
    after, first, reported_at = ranges.start, None, -math.inf
    while True:
        row = await connection.fetchrow(_SQL[f"next_{ranges.of}"], after, *ranges.size)
        assert row is not None  # noqa: S101 - the statement returns one row
        if row["next"] is None:
            return
        if first is None:
            first = after if ranges.start == 0 else row["next"]
        if time.monotonic() - reported_at >= PROGRESS_INTERVAL:
            reported_at = time.monotonic()
            progress(f"rows of {ranges.of}" + _percent(first, after, row["last"]))
        yield after, row["next"]
        after = row["next"]


def _percent(first: Any, now: Any, last: Any) -> str:
    """Return how much is done, as far as keys are numbers and evenly spread."""
    if isinstance(now, list):
        return ""
    return f", {max(0, 100 * (int(now) - int(first)) // max(1, int(last) - int(first)))} %"


async def _found(connection: Connection, name: str, *keys: Any) -> list[str]:
    return [row["found"] for row in await connection.fetch(_SQL[name], MAX_FOUND, *keys)]


async def _recount(connection: Connection, found: Sequence[int]) -> int:
    """Count the entries of these inboxes again; return their number."""
    async with connection.transaction():
        user_ids = await inbox.lock(connection, found)
        await inbox.recount(connection, sorted(user_ids))
    return len(user_ids)


async def check_indexes(connection: Connection, progress: Progress = unreported) -> AsyncIterator[Violation | None]:
    """Check each index against its table, by amcheck if it is installed; yield a violation, or None if it is sound."""
    schema = await connection.fetchval(_SQL["amcheck"])
    indexes = await connection.fetch(_SQL["indexes"])
    for number, index in enumerate(indexes, 1):
        progress(f"indexes, {number} of {len(indexes)}: {index['name']}")
        try:
            said = await (_amchecked(connection, index, schema) if schema else _compared(connection, index))
        except DRIVER_ERRORS as error:
            if not is_corruption(error):
                raise
            said = first_line(error)
        yield Violation("index", f"damaged index {index['name']}", [said]) if said else None


async def _amchecked(connection: Connection, index: Record, schema: str) -> str | None:
    """Check an index, and that it has all rows of its table, by the extension; if the role may not, compare it."""
    try:
        await connection.fetch(f'select "{schema}".bt_index_check($1::text::regclass, true)', index["name"])
    except DRIVER_ERRORS as error:
        if not is_denied(error):
            raise
        return await _compared(connection, index)
    return None


async def _compared(connection: Connection, index: Record) -> str | None:
    """Compare the rows that an index finds with those of its table, in one snapshot; return the difference."""
    rows = f"from {index['table_name']} where {index['condition']}"
    ordered = f"select {_COMPARED} from (select ctid {rows} order by {index['keys']} offset 0) by_index"  # noqa: S608 - from the catalog
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute("set local enable_bitmapscan = off; set local enable_sort = off")
        await connection.execute("set local enable_indexscan = off; set local enable_indexonlyscan = off")
        by_table = await connection.fetchrow(f"select {_COMPARED} {rows}")
        await connection.execute("set local enable_indexscan = on; set local enable_seqscan = off")
        plan = "".join(row[0] for row in await connection.fetch(f"explain {ordered}"))
        if f"using {index['short_name']} " not in plan:
            return None  # another index has the same order, and is compared itself
        by_index = await connection.fetchrow(ordered)
    assert by_table is not None and by_index is not None  # noqa: S101, PT018 - aggregates return one row
    if tuple(by_table) == tuple(by_index):
        return None
    return f"it finds {by_index['n']} rows of {by_table['n']}, or others"
