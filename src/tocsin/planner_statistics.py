"""What the planner believes of our tables: never that one is empty, which it would go on believing once it is full.

A table that was empty when it was last vacuumed counts as one row until it is analysed. A statement that is planned
meanwhile reads all of the table for each row of a list, or the list for each row of the table: with 50,000 jobs that
waited, the claim of 200 took seconds instead of milliseconds.
"""

from tocsin.database import SCHEMA, Connection, Database, queries

FEW = 100
"""Rows under which a table may be taken for empty: fewer than a list that it is joined with may have."""

LARGE = 2**20
"""Bytes from which a table is certainly not empty."""

FIRST_THAT_CLEARS = 18
"""The version of PostgreSQL from which statistics can be unlearnt; before, a large table is analysed."""

_SQL = queries("planner_statistics")


async def correct(database: Database) -> list[str]:
    """Correct what is believed of tables that were empty; return their names. All sessions plan anew by it."""
    async with database.connection() as connection:
        return await correct_with(connection)


async def correct_with(connection: Connection) -> list[str]:
    """Do the same on a connection."""
    is_new = connection.get_server_version().major >= FIRST_THAT_CLEARS
    found = await connection.fetch(_SQL["small"], FEW, 0 if is_new else LARGE)
    for table in found:
        if is_new:
            await connection.execute(f"select pg_clear_relation_stats('{SCHEMA}', '{table['name']}')")
        else:
            await connection.execute(f'analyze (skip_locked) {SCHEMA}."{table["name"]}"')
    return [table["name"] for table in found]
