"""The invariants of the database: what must hold between its rows, and whether indexes have what their tables have."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from tocsin import inbox
from tocsin.db.errors import DRIVER_ERRORS, first_line, is_corruption, is_denied
from tocsin.db.pool import Connection, Record, connect, queries
from tocsin.jobs import LEASE_TIMEOUT

MAX_FOUND = 1000
"""Rows of a violated invariant that are counted."""

SETTLING_TIME = LEASE_TIMEOUT
"""Seconds after which leases without a worker are looked at again: those that were about to end have ended."""

INVARIANTS = {
    "entries_without_content": "entries of inboxes without content",
    "entries_without_event": "entries of inboxes without event",
    "entries_without_owner": "entries of inboxes without user",
    "wrong_counts": "inboxes with a wrong count",
    "wrong_positions": "inboxes with a missing or doubled position",
    "backward_times": "entries that are older than the entry before them",
    "lost_events": "accepted events that are neither queued, delivered, failed nor cancelled",
    "lost_work": "accepted resolutions, erasures and imports that are neither queued nor failed",
    "jobs_without_object": "jobs and dead letters about nothing",
    "deliveries_without_owner": "pushes without user",
    "deliveries_without_event": "pushes without event",
    "leases_without_worker": "leases without worker",
    "missing_subjects": "subjects of events that cannot be found",
    "leftovers": "rows about events and users that no longer exist",
}
"""Each statement of `queries/invariants.sql`, and what it finds."""

HARMLESS = frozenset({"leftovers"})
"""What takes space and changes no answer."""

DERIVED = "wrong_counts"
"""What follows from other rows, so that it can be repaired."""

Progress = Callable[[str], None]
"""Gets what is checked next, since a check of a large database takes long."""

_SQL = queries("invariants")
_SESSION = (
    "select set_config(name, value, false)"
    " from (values ('enable_seqscan', 'on'), ('enable_bitmapscan', 'on'), ('default_transaction_read_only', $1))"
    " as session (name, value)"
)
_COMPARED = "count(*) as n, coalesce(bit_xor(hashtextextended(ctid::text, 0)), 0) as mark"


@dataclass(frozen=True, slots=True)
class Violation:
    """What an invariant or an index check found: how many (up to `MAX_FOUND`), and the first of them."""

    name: str
    what: str
    found: Sequence[str]

    def __str__(self) -> str:
        """Return the violation as part of a sentence."""
        more = " or more" if len(self.found) == MAX_FOUND else ""
        return f"{len(self.found)}{more} {self.what}, such as {'; '.join(self.found[:3])}"


async def open_session(url: str, *, may_write: bool = False) -> Connection:
    """Connect without a timeout of statements. The session can scan tables, and writes only if it may."""
    connection = await connect(url)
    await connection.fetch(_SESSION, "off" if may_write else "on")
    return connection


def unreported(what: str) -> None:
    """Report no progress."""


async def check_rows(connection: Connection, progress: Progress = unreported) -> AsyncIterator[Violation | None]:
    """Check each invariant; yield a violation, or None if it holds. Memory is bounded: the server sorts on its disk."""
    for number, (name, what) in enumerate(INVARIANTS.items(), 1):
        progress(f"rows, {number} of {len(INVARIANTS)}: {what}")
        found = await _found(connection, name)
        if found and name == "leases_without_worker":
            await asyncio.sleep(SETTLING_TIME)
            found = sorted(set(found) & set(await _found(connection, name)))
        yield Violation(name, what, found) if found else None


async def _found(connection: Connection, name: str) -> list[str]:
    return [row["found"] for row in await connection.fetch(_SQL[name], MAX_FOUND)]


async def repair(connection: Connection, violation: Violation) -> int:
    """Count the entries of inboxes with wrong counts again; return the number of inboxes."""
    async with connection.transaction():
        user_ids = await inbox.lock(connection, [int(user_id) for user_id in violation.found])
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
