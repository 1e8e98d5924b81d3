"""Test databases: created, emptied, locked, and read as a whole."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from asyncpg import DeadlockDetectedError

from tests.support.service import Api
from tocsin.db.connections import Connection, connect
from tocsin.db.errors import DRIVER_ERRORS
from tocsin.db.planner_statistics import correct_with
from tocsin.postgres.supervisor import Embedded


def url_for(server: Embedded, database: str) -> str:
    return server.url.replace("/tocsin?", f"/{database}?")


async def make_database(server: Embedded, name: str) -> str:
    connection = await connect(server.url)
    await connection.execute(f"create database {name} template template_of_tests")
    await connection.close()
    return url_for(server, name)


_WIPE = """
do $$ declare name text; holds boolean; begin
    for name in select relname from pg_class where relnamespace = 'tocsin'::regnamespace
        and relkind in ('r', 'p') and not relispartition
        and relname not in ('last_move', 'migrations', 'timelines', 'workers') order by relname in ('users', 'teams')
    loop
        execute format('select exists (select from %I)', name) into holds;
        if name = 'audit_entries' then  -- a trigger keeps its entries
            set local session_replication_role = replica;
        end if;
        if holds then execute format('delete from %I', name); end if;
        set local session_replication_role = origin;
    end loop;
end $$
"""

_DEFINED = """
select concat_ws(' ', 'function', oid::regprocedure, md5(prosrc)) from pg_proc
    where pronamespace in ('tocsin'::regnamespace, 'public'::regnamespace)
union all select concat_ws(' ', 'trigger', tgname, 'on', tgrelid::regclass, tgenabled)
    from pg_trigger where not tgisinternal
union all select concat_ws(' ', 'relation', relkind, oid::regclass, reloptions) from pg_class
    where relnamespace in ('tocsin'::regnamespace, 'public'::regnamespace)
union all select concat_ws(' ', 'column', attrelid::regclass, attname, atttypid::regtype, attnotnull)
    from pg_attribute join pg_class on pg_class.oid = attrelid
    where relnamespace = 'tocsin'::regnamespace and relkind = 'r' and attnum > 0 and not attisdropped
union all select concat_ws(' ', 'constraint', conname, 'on', conrelid::regclass) from pg_constraint
    where connamespace = 'tocsin'::regnamespace
union all select concat_ws(' ', 'setting', setrole::regrole, setconfig) from pg_db_role_setting
    where setdatabase in (0, (select oid from pg_database where datname = current_database()))
union all select concat_ws(' ', 'role', rolname) from pg_roles
union all select concat_ws(' ', 'schema', nspname) from pg_namespace where nspname !~ '^pg_(toast|temp)'
"""
"""What a schema consists of, and what is set for a database and its roles."""

_sessions: dict[str, Connection] = {}
_definitions: dict[str, set[str]] = {}
_months: dict[str, str] = {}


async def wipe(url: str, *, is_served: bool = True) -> None:
    """Empty the schema; if a service uses it, except its workers. The session is reused.

    Without a worker, statistics of emptied tables stay: they are corrected here, as workers do every few seconds.
    """
    session = await _session(url)
    if _months.setdefault(url, month := f"{datetime.now(UTC):%Y-%m}") != month:
        await _begin_month(url, session)
        _months[url] = month
    if not is_served:
        await session.execute("delete from workers")
    await session.execute("delete from jobs")  # a delivery under way ends first, or finds its job gone
    await _despite_deadlocks(session, _WIPE)  # a request that a test gave up may still lock rows in another order
    if not is_served:
        await correct_with(session)


async def _begin_month(url: str, session: Connection) -> None:
    """Make the partitions that retention would make during a test."""
    making = "do $$ begin while make_partition(1000000000) is not null loop end loop; end $$"
    await _despite_deadlocks(session, making)
    _definitions.pop(url, None)


async def left_behind(url: str) -> list[str]:
    """Return objects that were created or dropped since the last call: a test must restore the schema."""
    session = await _session(url)
    found = {str(row[0]) for row in await session.fetch(_DEFINED)}
    before = _definitions.get(url, found)
    _definitions[url] = found
    return sorted(before ^ found)


def end_sessions() -> None:
    """Close the reused sessions, also those of stopped servers."""
    for session in _sessions.values():
        session.terminate()
    _sessions.clear()


async def _session(url: str) -> Connection:
    """Return the reused session, or a new one if a test ended it."""
    try:
        await _sessions[url].execute("select")
    except (KeyError, *DRIVER_ERRORS):
        _sessions[url] = await connect(url)
    return _sessions[url]


async def value(url: str, statement: str, *arguments: Any) -> Any:
    connection = await connect(url)
    try:
        return await connection.fetchval(statement, *arguments)
    finally:
        await connection.close()


@asynccontextmanager
async def renamed(session: Connection, table: str) -> AsyncIterator[None]:
    """Rename a table for as long as the block runs: statements that need it fail."""
    await session.execute(f"alter table {table} rename to {table}_away")
    try:
        yield
    finally:
        await session.execute(f"alter table {table}_away rename to {table}")


async def blocked(dba: Connection) -> int:
    """Return how many sessions of the database wait for a lock.

    In a transaction, the server would list the sessions that there were at the first look.
    """
    await dba.execute("select pg_stat_clear_snapshot()")
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    count: int = await dba.fetchval(waiting)
    return count


async def waiting_at(dba: Connection, table: str) -> list[int]:
    """Return the processes that wait for a lock of a table."""
    rows = await dba.fetch(
        "select pid from pg_locks where not granted and relation = $1::regclass and database ="
        " (select oid from pg_database where datname = current_database())",
        f"tocsin.{table}",
    )
    return [row["pid"] for row in rows]


async def drop_function(dba: Connection, name: str) -> None:
    """Drop a function and its triggers.

    The statements of a running service lock the partitions in another order. PostgreSQL then ends one of the two, and
    may choose this one.
    """
    await _despite_deadlocks(dba, f"drop function if exists {name} cascade")


async def _despite_deadlocks(session: Connection, statement: str) -> None:
    done = False
    while not done:
        with suppress(DeadlockDetectedError):
            await session.execute(statement)
            done = True


@asynccontextmanager
async def slow(dba: Connection, verb: str, table: str) -> AsyncIterator[None]:
    """Let each statement that changes a table by `verb` take 2.2 seconds longer."""
    await dba.execute(
        "create function wait() returns trigger language plpgsql as 'begin perform pg_sleep(2.2); return null; end';"
        f" create trigger slowly before {verb} on {table} for each statement execute function wait()"
    )
    try:
        yield
    finally:
        await drop_function(dba, "wait")


@asynccontextmanager
async def locked(dba: Connection, table: str) -> AsyncIterator[None]:
    async with dba.transaction():
        await dba.execute(f"lock table {table} in access exclusive mode")
        yield


async def everything(api: Api) -> dict[str, str]:
    """Return the contents of the database as text by table, except what services write at any time."""
    tables = await api.app_state.database.rows(
        "select relname as name from pg_class where relnamespace = 'tocsin'::regnamespace and relkind in ('r', 'p')"
        " and not relispartition"
        " and relname not in ('workers', 'rate_limits', 'metric_minutes', 'posted_limit', 'posted_types')"
    )
    return {
        row["name"]: str(await api.app_state.database.rows(f"select t::text from {row['name']} t")) for row in tables
    }
