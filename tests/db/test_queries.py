"""Every statement is prepared against the migrated schema."""

import re

import pytest

from tests.support.statements import STATEMENTS
from tocsin.db.connections import connect
from tocsin.db.pool import Database
from tocsin.db.statements import queries


def test_statements_start_with_the_verb_that_traces_show() -> None:
    verbs = {queries(module)[name].split()[0].lower() for module, name in STATEMENTS}
    assert verbs <= {"select", "insert", "update", "delete", "with", "notify", "values", "truncate", "merge"}


def test_inbox_positions_and_counts_are_written_by_one_module() -> None:
    writes = re.compile(r"update heads\b|(into|update) changes\b|(into|update) inbox\b")
    found = {(module, name) for module, name in STATEMENTS if writes.search(queries(module)[name])}
    assert {module for module, _ in found - {("events", "accept_at_once")}} == {"inbox", "imports", "moving"}
    moved = {name for module, name in STATEMENTS if module == "moving" and writes.search(queries(module)[name])}
    assert moved == {"put_inbox", "put_changes"}  # rows of another database, as they were
    imported = {name for module, name in STATEMENTS if module == "imports" and writes.search(queries(module)[name])}
    assert imported == {"notifications", "sort"}  # history, below what the head counts
    assert not any(re.search(r"update heads\b|into changes\b", queries("imports")[name]) for name in imported)


@pytest.mark.parametrize(("module", "name"), STATEMENTS, ids="/".join)
async def test_statement_fits_the_schema(database: Database, module: str, name: str) -> None:
    async with database.connection() as connection:
        prepared = await connection.prepare(queries(module)[name])
        nothing = ", ".join("null" for _ in prepared.get_parameters())
        await connection.execute(f"prepare proved as {queries(module)[name]}")
        await connection.fetch("explain execute proved" + (f"({nothing})" if nothing else ""))


async def test_driver_looks_up_no_types(url: str) -> None:
    """A lookup takes each session 5 ms and 2 MB."""
    seen: list[str] = []
    connection = await connect(url)
    try:
        with connection.query_logger(lambda query: seen.append(query.query)):
            for module, name in STATEMENTS:
                await connection.prepare(queries(module)[name])
            assert await connection.fetchval("select $1::int[]", [1]) == [1]
            assert await connection.fetchval("select array[true, null]") == [True, None]
    finally:
        await connection.close()
    assert not [query for query in seen if "typeinfo" in query]
    assert seen[-1] == "select array[true, null]"


@pytest.mark.parametrize("name", ["settle", "put_back"])
async def test_delivery_lookup_uses_the_primary_key(database: Database, name: str) -> None:
    async with database.connection() as connection:
        await connection.execute("set plan_cache_mode = force_generic_plan")
        await connection.execute(f"prepare planned as {queries('deliveries')[name]}")
        arguments = ", ".join("null" for _ in (await connection.prepare(queries("deliveries")[name])).get_parameters())
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain execute planned({arguments})"))
    assert "deliveries_pkey" in plan
    assert "deliveries_under_way" not in plan
