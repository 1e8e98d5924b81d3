"""Databases of tests: made, emptied, locked, and read as a whole."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.service import Api
from tocsin.db.pool import Connection, connect
from tocsin.postgres.supervisor import Embedded


def url_for(server: Embedded, database: str) -> str:
    return server.url.replace("/tocsin?", f"/{database}?")


async def make_database(server: Embedded, name: str) -> str:
    connection = await connect(server.url)
    await connection.execute(f"create database {name} template template_of_tests")
    await connection.close()
    return url_for(server, name)


async def wipe(url: str) -> None:
    """Leave the schema with nothing in it but the workers that live."""
    connection = await connect(url)
    await connection.execute("delete from jobs")  # a delivery under way ends first, or finds its job gone
    tables = await connection.fetch("select tablename from pg_tables where schemaname = 'tocsin'")
    kept = {"migrations", "workers"}
    names = sorted({row["tablename"] for row in tables} - kept, key=lambda name: name in {"users", "teams"})
    await connection.execute("; ".join(f"delete from {name}" for name in names))
    await connection.close()


async def waiting_at(dba: Connection, table: str) -> list[int]:
    """Return the processes that wait for a lock of a table."""
    rows = await dba.fetch(
        "select pid from pg_locks where not granted and relation = $1::regclass and database ="
        " (select oid from pg_database where datname = current_database())",
        f"tocsin.{table}",
    )
    return [row["pid"] for row in rows]


@asynccontextmanager
async def locked(dba: Connection, table: str) -> AsyncIterator[None]:
    async with dba.transaction():
        await dba.execute(f"lock table {table} in access exclusive mode")
        yield


async def everything(api: Api) -> dict[str, str]:
    """Return all that the database holds, as text by table; but for the workers, who show that they live."""
    tables = await api.app_state.database.rows(
        "select tablename from pg_tables where schemaname = 'tocsin' and tablename <> 'workers'"
    )
    return {
        row["tablename"]: str(await api.app_state.database.rows(f"select t::text from {row['tablename']} t"))
        for row in tables
    }
