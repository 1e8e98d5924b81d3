"""The schema: numbered steps, forward only, each leaving the code of the release before it working.

Steps run under a lock, so that many processes may start at once. A schema that has more steps than this release
knows is accepted: a newer release put them there, and each of them leaves us working.
"""

import re
from dataclasses import dataclass
from importlib.resources import files

import asyncpg

from tocsin.database import SCHEMA, Connection, connect
from tocsin.errors import Refusal

OLDEST_SERVER = 15
"""The oldest major version of PostgreSQL that will do."""

_LOCK = 0x746F6373696E
_FILE = re.compile(r"(\d{4})_(\w+)\.sql")


@dataclass(frozen=True, slots=True)
class Step:
    """One migration: its number, what it is called, and its SQL."""

    number: int
    name: str
    sql: str


def steps() -> list[Step]:
    """Return all steps of this release, in their order."""
    found = [
        Step(int(match[1]), match[2], path.read_text("utf-8"))
        for path in (files("tocsin") / "migrations").iterdir()
        if (match := _FILE.fullmatch(path.name))
    ]
    return sorted(found, key=lambda step: step.number)


async def migrate(url: str, *, accept_undurable: bool = False) -> list[Step]:
    """Bring the schema up to date and return the steps that were missing.

    Raises `Refusal` where the server is too old, does not store UTF-8 or is not durable.
    """
    connection = await connect(url)
    try:
        await examine(connection, accept_undurable=accept_undurable)
        await connection.execute("select pg_advisory_lock($1)", _LOCK)
        return [step for step in await _missing(connection) if await _take(connection, step)]
    finally:
        await connection.close()


async def examine(connection: Connection, *, accept_undurable: bool = False) -> None:
    """Refuse a server that would not keep what we promise."""
    version = connection.get_server_version()
    if version.major < OLDEST_SERVER:
        raise Refusal(f"Tocsin needs PostgreSQL {OLDEST_SERVER} or newer; this is {version.major}.")
    encoding = await connection.fetchval("show server_encoding")
    if encoding != "UTF8":
        raise Refusal(f"The database must be encoded in UTF8; this one is in {encoding}.")
    undurable = [name for name in ("fsync", "full_page_writes") if await _is_off(connection, name)]
    if undurable and not accept_undurable:
        raise Refusal(
            f"The database is not durable: {' and '.join(undurable)} must be on, or TOCSIN_DATABASE_DURABLE=yes say"
            " that it needs neither."
        )
    if await _is_off(connection, "synchronous_commit"):
        raise Refusal("The database is not durable: synchronous_commit is off for this user or database; turn it on.")


async def is_current(connection: Connection) -> bool:
    """Tell whether the schema has every step of this release."""
    return not await _missing(connection)


async def _is_off(connection: Connection, setting: str) -> bool:
    return bool(await connection.fetchval("select current_setting($1) = 'off'", setting))


async def _missing(connection: Connection) -> list[Step]:
    try:
        done = {row["number"] for row in await connection.fetch(f"select number from {SCHEMA}.migrations")}  # noqa: S608 - a constant
    except asyncpg.UndefinedTableError:
        done = set()
    return [step for step in steps() if step.number not in done]


async def _take(connection: Connection, step: Step) -> bool:
    async with connection.transaction():
        await connection.execute(f"create schema if not exists {SCHEMA}")
        await connection.execute(
            "create table if not exists migrations"
            " (number int primary key, name text not null, applied_at timestamptz not null default now())"
        )
        await connection.execute(step.sql)
        await connection.execute("insert into migrations (number, name) values ($1, $2)", step.number, step.name)
    return True
