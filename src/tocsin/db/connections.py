"""Connections to PostgreSQL: which host of a url, the settings of a session, and the limits of a transaction."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from tocsin.db.array_types import register
from tocsin.db.errors import NoConnectionError
from tocsin.db.statements import queries
from tocsin.db.url import SCHEMA, SCHEMA_PARAMETER, Target, target_of

STATEMENT_TIMEOUT = 20.0
"""Seconds after which a statement is cancelled."""

LONG_TIMEOUT = 60.0
"""Seconds for a statement that concerns all rows of a user, an event or a subject: there may be millions."""

CONNECT_TIMEOUT = 5.0
"""Maximum seconds to connect."""

SERVERS_PART, LOCKS_PART = 0.9, 0.8
"""Fractions of the timeout of a statement after which the server cancels the statement, or its wait for a lock. So the
error shows whether the database does not respond, a lock is held, or the statement is too slow."""

IDLE_IN_TRANSACTION_TIMEOUT = 60.0
"""Maximum seconds that a transaction may be idle: its process may hang while it holds locks."""

FIRST_WITH_TRANSACTION_TIMEOUT = 17

_ENDING = (
    ", set_config('client_connection_check_interval', case when version() ~ 'linux' then '2s' else '0' end, false)"
)
"""Ends a statement without a timeout soon after its client was killed. Not all systems of servers can do that."""

Connection = asyncpg.Connection
"""A database connection. The service never changes session settings, so it is not reset between uses."""

Prepared = PreparedStatement
Record = asyncpg.Record


async def connect(url: str, slowest: float | None = None) -> Connection:
    """Open a connection within `CONNECT_TIMEOUT` per host. The timeout of statements is `slowest` seconds.

    Session settings are set by a statement after connecting, because poolers reject startup parameters. Raises one of
    `DRIVER_ERRORS` if the database cannot be reached.
    """
    target = target_of(url)
    connection = await reach(target, slowest)
    register(connection)
    try:
        settings = _session(target.settings, slowest, connection.get_server_version().major)
        with in_time():
            await connection.execute(_set(settings) + ("" if slowest else _ENDING), timeout=CONNECT_TIMEOUT)
    except BaseException:
        connection.terminate()
        raise
    return connection


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Raise `NoConnectionError` for a timeout: a pooler may accept a client, and make its first statement wait."""
    try:
        yield
    except TimeoutError as error:
        raise NoConnectionError(f"no connection within {CONNECT_TIMEOUT:.0f} s") from error


_without_timelines: set[Target] = set()
"""Databases whose timeline cannot be noted: servers that share their storage have none, and lose nothing."""


async def note_timeline(connection: Connection, url: str) -> bool:
    """Let cursors be different from now on if the server was promoted. It is the first statement of a new session.

    Returns False on a standby, which can note nothing: its sessions must end before it is promoted.
    """
    if is_on_standby(connection):
        return False
    if _is_on(connection, "default_transaction_read_only") or (target := target_of(url)) in _without_timelines:
        return True
    try:
        with in_time():
            await connection.execute(queries("timelines")["note_timeline"], timeout=CONNECT_TIMEOUT)
    except asyncpg.UndefinedTableError:
        pass  # a cell that another process has not migrated yet
    except (asyncpg.FeatureNotSupportedError, asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError):
        _without_timelines.add(target)
    return True


_reached: dict[Target, str] = {}


async def reach(target: Target, slowest: float | None, statements: int = 100) -> Connection:
    """Connect to the first host of a url that answers and is of the demanded kind.

    The driver tries all hosts within one timeout, so that a host that does not answer would hide the others. The host
    that was reached last comes first: only the first connection waits for one that is away. A connection keeps the
    plans of so many `statements`.
    """
    last, problems = _reached.get(target), []
    for dsn in sorted(target.dsns, key=lambda each: each != last):
        try:
            with in_time():
                connection = await asyncpg.connect(
                    dsn, timeout=CONNECT_TIMEOUT, command_timeout=slowest, statement_cache_size=statements
                )
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as error:
            problems.append(error)
        else:
            _reached[target] = dsn
            return connection
    try:
        raise min(problems, key=lambda each: isinstance(each, asyncpg.TargetServerAttributeNotMatched))
    finally:
        problems.clear()  # the error refers to this frame, which would refer to the error


async def limit_locks(connection: Connection, seconds: float) -> None:
    """Let each statement of this transaction wait so long for a lock."""
    await connection.execute(f"set local lock_timeout = {_milliseconds(seconds)}")


async def limit_idleness(connection: Connection, seconds: float) -> None:
    """Let the server end the session if this transaction is idle for so long; 0 for no limit."""
    await connection.execute(f"set local idle_in_transaction_session_timeout = {_milliseconds(seconds)}")


def is_on_standby(connection: Connection) -> bool:
    """Return whether the server of a connection is a standby that has not been promoted."""
    return _is_on(connection, "in_hot_standby")


def _is_on(connection: Connection, setting: str) -> bool:
    """Return whether the server has reported that a setting is on. Old servers do not report all."""
    return getattr(connection.get_settings(), setting, "off") == "on"


async def fetch_long(
    connection: Connection, statement: str, *arguments: Any, seconds: float = LONG_TIMEOUT
) -> list[Record]:
    """Run a statement of a transaction that may take longer than others; return its rows."""
    await allow(connection, seconds)
    rows: list[Record] = await connection.fetch(statement, *arguments, timeout=seconds)
    return rows


async def allow(connection: Connection, seconds: float) -> None:
    """Let the server take so long for each statement of this transaction. For the driver, each needs its `timeout`."""
    await connection.execute(f"set local statement_timeout = {_milliseconds(seconds, SERVERS_PART)}")


def _session(asked: Iterable[tuple[str, str]], slowest: float | None, version: int) -> dict[str, str]:
    """Return the settings of a session, including those in the url.

    Every statement can use an index. Sequential and bitmap scans are disabled, because a plan that was made for an
    empty table must not scan a large one, or lock rows in their order on disk. The timeouts are independent of those of
    the role, because they distinguish an outage from a slow statement.
    """
    given = dict(asked)
    return {
        "application_name": "tocsin",
        **given,
        "search_path": given.get(SCHEMA_PARAMETER, SCHEMA),
        "timezone": "UTC",
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
        "statement_timeout": _milliseconds(slowest, SERVERS_PART),
        "lock_timeout": _milliseconds(slowest, LOCKS_PART),
        "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_TIMEOUT),
        "idle_session_timeout": "0",
        **({"transaction_timeout": "0"} if version >= FIRST_WITH_TRANSACTION_TIMEOUT else {}),
    }


def _milliseconds(seconds: float | None, part: float = 1.0) -> str:
    return str(round((seconds or 0) * part * 1000))


def _set(settings: Mapping[str, str]) -> str:
    """Return the statement that sets the session settings."""
    quoted = ("'{}', '{}'".format(*(part.replace("'", "''") for part in pair)) for pair in settings.items())
    return "select " + ", ".join(f"set_config({pair}, false)" for pair in quoted)
