"""Migrations: numbered steps, forward only. After each step, the code of the previous release still works.

Steps run under a lock, so that several processes can start at once. A schema with additional steps of a newer release
is accepted.
"""

import asyncio
import re
import time
from dataclasses import dataclass
from importlib.resources import files

import asyncpg
import structlog

from tocsin.background import in_background
from tocsin.db.connections import Connection, connect
from tocsin.db.poolers import refuse_shared_sessions
from tocsin.db.statements import queries
from tocsin.db.url import check_files
from tocsin.errors import Refusal

OLDEST_SERVER = 15
"""The oldest supported major version of PostgreSQL."""

CONCURRENT = "-- outside a transaction\n"
"""The first line of a step that must not run in a transaction."""

LOCK_TIMEOUT = 3
"""Seconds that a migration waits for a lock. All later requests for the table wait for the migration."""

FIRST_DELAY, MAX_DELAY = 1.0, 15.0
"""Seconds between two attempts of a migration. The delay is doubled up to the second value."""

WAIT_TIMEOUT = 600.0
"""Seconds after which a migration that gets no lock is aborted, and a process that waits for another's gives up."""

MOMENT = 2.0
"""Seconds that a step may wait for older transactions before it is logged, and between two looks whether it does."""

WAIT_LOG_INTERVAL = 30.0
"""Seconds between two log lines of a process that waits for another's migration."""

LOCK = 0x746F6373696E
"""The key of the advisory lock of migrations, in the schema `tocsin`."""

_SQL = queries("migrate")
_TURN = 0.2
_FILE = re.compile(r"(\d{4})_(\w+)\.sql")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One migration: its number, its name and its SQL."""

    number: int
    name: str
    sql: str

    @property
    def is_concurrent(self) -> bool:
        """Whether its statements run one by one, outside of a transaction."""
        return self.sql.startswith(CONCURRENT)


def steps() -> list[Step]:
    """Return all steps of this release, in order."""
    found = [
        Step(int(match[1]), match[2], path.read_text("utf-8"))
        for path in (files("tocsin.db") / "migrations").iterdir()
        if (match := _FILE.fullmatch(path.name))
    ]
    return sorted(found, key=lambda step: step.number)


async def migrate(url: str, *, accept_undurable: bool = False) -> list[Step]:
    """Apply the missing steps and return them.

    Raises `Refusal` if a file in the url cannot be read, the server is too old, not in UTF-8 or not durable, a pooler
    is not in session mode, the role lacks a privilege, or a table is locked, or another process migrates, for longer
    than `WAIT_TIMEOUT`.
    """
    check_files(url)
    await refuse_shared_sessions(url)
    connection = await connect(url)
    try:
        await examine(connection, accept_undurable=accept_undurable)
        await connection.execute("set statement_timeout = 0")
        await _lock(connection)
        return [step for step in await missing(connection) if await _take(connection, step, url)]
    except asyncpg.InsufficientPrivilegeError as error:
        raise await lacking(connection, str(error)) from None
    finally:
        await connection.close()


async def require(url: str) -> None:
    """Raise `Refusal` if the database lacks steps of this release, or a pooler is not in session mode."""
    check_files(url)
    await refuse_shared_sessions(url)
    connection = await connect(url)
    try:
        if not await is_current(connection):
            raise Refusal(
                "The database lacks migrations of this release, and this server is read-only: run `tocsin migrate` with"
                " the url of the primary."
            )
    finally:
        await connection.close()


async def examine(connection: Connection, *, accept_undurable: bool = False) -> None:
    """Raise `Refusal` if the server is too old, its encoding is not UTF-8, or it is not durable."""
    version = connection.get_server_version()
    if version.major < OLDEST_SERVER:
        raise Refusal(f"Tocsin needs PostgreSQL {OLDEST_SERVER} or newer; this is {version.major}.")
    encoding = await connection.fetchval("show server_encoding")
    if encoding != "UTF8":
        raise Refusal(f"The database must be encoded in UTF8; this one is in {encoding}.")
    undurable = [name for name in ("fsync", "full_page_writes") if await _is_off(connection, name)]
    if undurable and not accept_undurable:
        raise Refusal(
            f"The database is not durable: {' and '.join(undurable)} must be on; to run without, set"
            " TOCSIN_DATABASE_DURABLE=yes."
        )
    if await _is_off(connection, "synchronous_commit"):
        raise Refusal("The database is not durable: synchronous_commit is off for this user or database; turn it on.")


async def is_current(connection: Connection) -> bool:
    """Return whether all steps of this release are applied."""
    return not await missing(connection)


async def missing(connection: Connection) -> list[Step]:
    """Return the steps of this release that are not applied."""
    try:
        done = {row["number"] for row in await connection.fetch(_SQL["done"])}
    except asyncpg.UndefinedTableError:
        done = set()
    return [step for step in steps() if step.number not in done]


async def _is_off(connection: Connection, setting: str) -> bool:
    return bool(await connection.fetchval("select current_setting($1) = 'off'", setting))


async def _lock(connection: Connection) -> None:
    """Take the lock of migrations by polling: a waiting statement would hold a snapshot that delays others.

    Raises `Refusal` if another session holds it for longer than `WAIT_TIMEOUT`.
    """
    began, next_log = time.monotonic(), 0.0
    while not await connection.fetchval(_SQL["turn"], LOCK):
        waited = time.monotonic() - began
        if waited >= min(next_log, WAIT_TIMEOUT):
            holder = await connection.fetchval(_SQL["migrating"], LOCK) or "no session now"
            if waited >= WAIT_TIMEOUT:
                raise Refusal(
                    f"Another process has been migrating the schema for {WAIT_TIMEOUT:.0f} s: {holder}. Wait for it, or"
                    " end it if it hangs, and start again."
                )
            log.warning("waiting for another process to migrate the schema", held_by=holder)
            next_log = waited + WAIT_LOG_INTERVAL
        await asyncio.sleep(_TURN)


async def _take(connection: Connection, step: Step, url: str) -> bool:
    """Run a step in one transaction. If its tables are locked, roll back and retry."""
    end, pause = time.monotonic() + WAIT_TIMEOUT, FIRST_DELAY
    while True:
        try:
            async with connection.transaction():
                await _prepare(connection)
                if not step.is_concurrent:
                    await _note(connection, step)
                    await connection.execute(step.sql)  # last, so that a process that hangs with its locks is idle
            if step.is_concurrent:
                async with in_background(_log_wait(url, connection.get_server_pid(), step)):
                    await _run_apart(connection, step)
        except asyncpg.LockNotAvailableError:
            found = await connection.fetch(_SQL["holders"], step.is_concurrent)
            holders = "; ".join(row["holder"] for row in found) or "no session now"
            what = f"{step.number:04} {step.name}"
            if time.monotonic() + pause > end:
                raise Refusal(
                    f"The migration {what} could not lock its tables for {WAIT_TIMEOUT:.0f} s. Sessions that hold them:"
                    f" {holders}. Wait for them or end them, and start again."
                ) from None
            log.warning("migration is waiting for a lock", step=what, held_by=holders, retry_in_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_DELAY)
        else:
            return True


async def _run_apart(connection: Connection, step: Step) -> None:
    """Run each statement of a step outside of a transaction, for `create index concurrently`.

    An earlier attempt may have failed at any statement, so all of them can be repeated. An index that is built
    concurrently waits for all older transactions, which delays no other session. A short timeout there would discard
    the index each time.
    """
    for statement in filter(str.strip, step.sql.split(";\n")):
        timeout = WAIT_TIMEOUT if " concurrently " in statement else LOCK_TIMEOUT
        await connection.execute(f"set lock_timeout = '{timeout:g}s'")
        await connection.execute(statement)
    await connection.execute("set lock_timeout = 0")
    await _note(connection, step)


async def _log_wait(url: str, pid: int, step: Step) -> None:
    """Log what the session of a step waits for, if it waits for longer than a moment."""
    holders = None
    while holders is None:
        await asyncio.sleep(MOMENT)
        connection = await connect(url)
        try:
            holders = await connection.fetchval(_SQL["waited_for"], pid)
        finally:
            connection.terminate()
    log.info("migration waits for older transactions", step=f"{step.number:04} {step.name}", held_by=holders)


async def _note(connection: Connection, step: Step) -> None:
    await connection.execute(_SQL["add"], step.number, step.name)


async def _prepare(connection: Connection) -> None:
    """Create the schema, and set a short lock timeout. Raises `Refusal` if the schema cannot be used.

    A statement that waits for a lock blocks all later requests for it, so the wait must be short. Functions take their
    search path from the transaction (`set search_path from current`).
    """
    await connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}s'")
    schema = await connection.fetchval(_SQL["schema"])
    if not await connection.fetchval("select exists (select from pg_namespace where nspname = $1)", schema):
        await connection.execute(f'create schema "{schema}"')
    if await connection.fetchval("select current_schema()") != schema:
        raise await lacking(connection, f"it may not use the schema {schema}")
    await connection.execute(f'set local search_path = "{schema}", pg_temp')
    await connection.execute(
        "create table if not exists migrations"
        " (number int primary key, name text not null, applied_at timestamptz not null default now())"
    )


async def lacking(connection: Connection, what: str) -> Refusal:
    """Return the `Refusal` for a missing privilege, with the statements that grant it."""
    role, schema = await connection.fetchrow(_SQL["role_and_schema"]) or ("", "")
    return Refusal(
        f"The role {role} lacks a right: {what.rstrip('.')}; as the owner of the database, run: create schema if not"
        f" exists {schema}; grant create, usage on schema {schema} to {role}; or run `tocsin migrate` as the role that"
        " owns the tables."
    )
