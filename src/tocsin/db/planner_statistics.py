"""Planner statistics: corrects those of tables that were empty before.

A table that was empty when it was last vacuumed counts as one row until it is analysed. Until then, statements are
planned with nested loops over the whole table: with 50,000 waiting jobs, the claim of 200 took seconds instead of
milliseconds.
"""

import asyncpg

from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.db.statements import queries

SMALL_TABLE_ROWS = 100
"""Rows below which the planner may assume an empty table: fewer than a list that it is joined with may have."""

LARGE_TABLE_BYTES = 2**20
"""Bytes from which a table is certainly not empty."""

FIRST_THAT_CLEARS = 18
"""The version of PostgreSQL from which statistics can be cleared; before, a large table is analysed."""

_SQL = queries("planner_statistics")


async def correct(database: Database) -> list[str]:
    """Correct the statistics of tables that were empty; return their names. All sessions then plan again."""
    async with database.connection() as connection:
        return await correct_with(connection)


async def correct_with(connection: Connection) -> list[str]:
    """Do the same on a connection."""
    clears = connection.get_server_version().major >= FIRST_THAT_CLEARS
    found = await connection.fetch(_SQL["small"], SMALL_TABLE_ROWS, 0 if clears else LARGE_TABLE_BYTES)
    correct_one = _clear if clears else _analyse
    return [table["name"] for table in found if await correct_one(connection, table["name"])]


async def _clear(connection: Connection, table: str) -> bool:
    """Clear the statistics of a table, unless it is locked: a wait for the lock would cancel an automatic vacuum."""
    try:
        async with connection.transaction():
            await connection.execute(f'lock table "{table}" in share update exclusive mode nowait')
            await connection.execute("select pg_clear_relation_stats(current_schema(), $1)", table)
    except asyncpg.LockNotAvailableError:
        return False
    return True


async def _analyse(connection: Connection, table: str) -> bool:
    await connection.execute(f'analyze (skip_locked) "{table}"')
    return True
