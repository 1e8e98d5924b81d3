"""Every statement is proved against the migrated schema."""

from importlib.resources import files

import pytest

from tocsin.database import Database, queries

STATEMENTS = [
    (path.name.removesuffix(".sql"), name)
    for path in sorted((files("tocsin") / "queries").iterdir(), key=str)
    for name in queries(path.name.removesuffix(".sql"))
]


@pytest.mark.parametrize(("module", "name"), STATEMENTS, ids="/".join)
async def test_a_statement_fits_the_schema(database: Database, module: str, name: str) -> None:
    async with database.connection() as connection:
        prepared = await connection.prepare(queries(module)[name])
        nothing = ", ".join("null" for _ in prepared.get_parameters())
        await connection.execute(f"prepare proved as {queries(module)[name]}")
        await connection.fetch("explain execute proved" + (f"({nothing})" if nothing else ""))
