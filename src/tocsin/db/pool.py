"""Access to PostgreSQL: a connection pool, named queries, and the handling of outages."""

import asyncio
import contextlib
import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import cache
from importlib.resources import files
from math import ceil
from pathlib import Path
from typing import Any, NoReturn

import asyncpg
import structlog
from asyncpg.prepared_stmt import PreparedStatement

from tocsin.db.admission import KIND, Admission, Slot
from tocsin.db.array_types import register
from tocsin.db.errors import DRIVER_ERRORS, NoConnectionError, first_line, is_conflict, is_locked, is_outage, problem_of
from tocsin.db.url import SCHEMA, SCHEMA_PARAMETER, Target, is_read_only, schema_of, target_of
from tocsin.errors import Overrun, Unavailable
from tocsin.waking import Waiting, wake, woken

STATEMENT_TIMEOUT = 20.0
"""Seconds after which a statement is cancelled."""

CONNECT_TIMEOUT = 5.0
"""Maximum seconds to connect."""

IDLE_TIMEOUT = 30.0
"""Seconds between two looks for idle connections to close: server processes hold memory for all statements they ran."""

USES_PER_CONNECTION = 300
"""Uses within `IDLE_TIMEOUT` for which one connection is enough: callers at the same time wait for each other."""

GROWTH_DELAY = 0.02
"""Seconds that a caller waits for a connection that another one returns before it opens one more than uses need."""

SERVERS_PART, LOCKS_PART = 0.9, 0.8
"""Fractions of the timeout of a statement after which the server cancels the statement, or its wait for a lock. So the
error shows whether the database does not respond, a lock is held, or the statement is too slow."""

LOCK_TIMEOUT: ContextVar[float | None] = ContextVar("LOCK_TIMEOUT", default=None)
"""Seconds that each statement waits for a lock; None: the timeout of the session."""

IDLE_IN_TRANSACTION_TIMEOUT = 60.0
"""Maximum seconds that a transaction may be idle: its process may hang while it holds locks."""

BULK_NICENESS = 10
"""The priority of server processes that yield: 19 would be the lowest."""

FIRST_WITH_TRANSACTION_TIMEOUT = 17

LOG_INTERVAL = 60.0
"""Minimum seconds between two log lines about the same outage."""

log = structlog.get_logger(__name__)

_ENDING = (
    ", set_config('client_connection_check_interval', case when version() ~ 'linux' then '2s' else '0' end, false)"
)
"""Ends a statement without a timeout soon after its client was killed. Not all systems of servers can do that."""

_COMMENT = re.compile(r"\A(?:--[^\n]*\n)+")
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_INCLUDE = re.compile(r"^-- include: (\w+)(?:\((.*)\))?\n", re.MULTILINE)


@cache
def queries(module: str) -> Mapping[str, str]:
    """Return the statements of `queries/<module>.sql` by their names (`-- name: page`).

    `-- include: spoken(languages=$4)` stands for `fragments/spoken.sql`, which several statements share, with `$4` for
    `@languages`. A fragment can include others.
    """
    _, *parts = _NAME.split(_INCLUDE.sub(_fragment, _text_of("queries", module)))
    # Leading comments are removed, because tracing names a statement by its first word.
    return dict(zip(parts[::2], (_COMMENT.sub("", part).strip() for part in parts[1::2]), strict=True))


def _fragment(include: re.Match[str]) -> str:
    text = _text_of("fragments", include[1])
    for pair in include[2].split(", ") if include[2] else ():
        name, value = pair.split("=")
        text = text.replace(f"@{name}", value)
    return _INCLUDE.sub(_fragment, text)


def _text_of(folder: str, name: str) -> str:
    return (files("tocsin.db") / folder / f"{name}.sql").read_text("utf-8")


Prepared = PreparedStatement
Connection = asyncpg.Connection
Record = asyncpg.Record
"""A database connection. The service never changes session settings, so it is not reset between uses."""


async def connect(url: str, slowest: float | None = None, *, notes_timeline: bool = False) -> Connection:
    """Open a connection within `CONNECT_TIMEOUT` per host. The timeout of statements is `slowest` seconds.

    Session settings are set by a statement after connecting, because poolers reject startup parameters. With
    `notes_timeline`, cursors are different from then on if the server was promoted. Raises one of `DRIVER_ERRORS` if
    the database cannot be reached.
    """
    target = target_of(url)
    connection = await reach(target, slowest)
    register(connection)
    try:
        settings = _session(target.settings, slowest, connection.get_server_version().major)
        with in_time():
            await connection.execute(_set(settings) + ("" if slowest else _ENDING), timeout=CONNECT_TIMEOUT)
            writes = not is_on_standby(connection) and not _is_on(connection, "default_transaction_read_only")
            if notes_timeline and writes and target not in _without_timelines:
                await _note_timeline(connection, target)
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


async def _note_timeline(connection: Connection, target: Target) -> None:
    try:
        await connection.execute(queries("timelines")["note_timeline"], timeout=CONNECT_TIMEOUT)
    except asyncpg.UndefinedTableError:
        pass  # a cell that another process has not migrated yet
    except (asyncpg.FeatureNotSupportedError, asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError):
        _without_timelines.add(target)


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


class Database:
    """A pool of at most `size` connections to one database.

    Errors are translated as in `db.errors`: an outage raises `Unavailable`, which is logged here, and a statement that
    exceeds its timeout raises `Overrun`. It is also an outage if no connection is free or the server does not respond
    within `patience` seconds. With `yields`, the server processes of the connections get a lower priority, if the
    server runs on this machine. With `beats`, one connection is reserved for heartbeats.

    asyncpg's pool is not used because its overhead exceeds the cost of a small statement: a task, a proxy and two locks
    per use.
    """

    def __init__(
        self, url: str, size: int, patience: float = STATEMENT_TIMEOUT, *, yields: bool = False, beats: bool = False
    ) -> None:
        self.is_read_only = is_read_only(url)
        self.schema = schema_of(url)
        self._url = url
        self._patience = patience
        self._yields = yields
        self._admission = Admission(size, beats=beats)
        self._idle: list[tuple[float, Connection]] = []
        self._on_standby: set[Connection] = set()
        self._closing: asyncio.TimerHandle | None = None
        self._uses = 0
        self._hoping: deque[Waiting] = deque()
        self._is_open = False
        self._away_since: float | None = None
        self._logged_at: dict[str, float] = {}

    @property
    def in_use(self) -> int:
        """The number of connections in use."""
        return self._admission.in_use

    @property
    def waiting(self) -> int:
        """The number of callers that wait for a connection."""
        return self._admission.waiting

    async def open(self) -> None:
        """Open the pool. Connections are opened on demand."""
        self._is_open = True

    async def close(self) -> None:
        """Close the pool. Connections in use are closed when they are returned."""
        self._is_open = False
        if self._closing:
            self._closing.cancel()
        while self._idle:
            with contextlib.suppress(*DRIVER_ERRORS):
                await self._idle.pop()[1].close(timeout=2)

    def close_idle(self) -> None:
        """Close the connections that were not used for long, and those that so few uses do not need.

        Nothing is sent: the server process ends when it finds its socket closed.
        """
        now, needed = time.monotonic(), self._needed
        while self._idle and (len(self._idle) > needed or now - self._idle[0][0] >= IDLE_TIMEOUT):
            self._idle.pop(0)[1].terminate()
        self._uses, self._closing = 0, None
        if self._idle:
            self._closing = asyncio.get_running_loop().call_later(IDLE_TIMEOUT, self.close_idle)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Provide a connection in autocommit mode for the duration of the block."""
        try:
            slot, connection = await self._take()
            try:
                yield connection
            except BaseException as error:
                self._give_back(slot, connection, error)
                raise
            self._give_back(slot, connection)
        except Exception as error:  # noqa: BLE001 - it is raised again
            self._raise(error)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Provide a connection in a transaction, which is committed at the end of the block."""
        async with self.connection() as connection, connection.transaction():
            if timeout := LOCK_TIMEOUT.get():
                await limit_locks(connection, timeout)
            yield connection

    async def rows(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement and return its rows."""
        if LOCK_TIMEOUT.get():
            async with self.transaction() as connection:
                return list(await connection.fetch(statement, *arguments))
        try:
            slot, connection = await self._take()
            try:
                found: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
            except BaseException as error:
                self._give_back(slot, connection, error)
                raise
            self._give_back(slot, connection)
        except Exception as error:  # noqa: BLE001 - it is raised again
            self._raise(error)
        return found

    async def row(self, statement: str, *arguments: Any) -> asyncpg.Record | None:
        """Run one statement and return its first row, or None."""
        found = await self.rows(statement, *arguments)
        return found[0] if found else None

    async def value(self, statement: str, *arguments: Any) -> Any:
        """Run one statement and return the first column of its first row."""
        found = await self.row(statement, *arguments)
        return found[0] if found else None

    @property
    def _needed(self) -> int:
        """The number of connections that the recent uses need."""
        return ceil(self._uses / USES_PER_CONNECTION)

    async def _take(self) -> tuple[Slot, Connection]:
        if not self._is_open:
            raise Unavailable
        slot = await self._admission.enter(self._patience)
        try:
            if (connection := self._sound()) is None and self._admission.in_use > max(1, self._needed):
                await self._returned()
                connection = self._sound()
            if connection is not None:
                return slot, connection
            connection = await connect(self._url, self._patience, notes_timeline=not self.is_read_only)
            if not self.is_read_only and is_on_standby(connection):
                self._on_standby.add(connection)
            if self._yields:
                _give_way(connection)
        except BaseException:
            self._admission.leave(slot)
            raise
        return slot, connection

    def _sound(self) -> Connection | None:
        """Return the idle connection that was used last; None if there is none."""
        while self._idle:
            _, connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    async def _returned(self) -> None:
        """Wait until another caller has returned a connection, for `GROWTH_DELAY` at most."""
        hope: Waiting = asyncio.get_running_loop().create_future()
        self._hoping.append(hope)
        await woken(hope, GROWTH_DELAY)

    def _give_back(self, slot: Slot, connection: Connection, error: BaseException | None = None) -> None:
        """Return a connection to the pool, or close it if it is broken."""
        now = time.monotonic()
        self._uses += 1
        is_sound = error is None or (isinstance(error, Exception) and (is_locked(error) or not is_outage(error)))
        if connection in self._on_standby:  # if that is promoted, its sessions have not noted the timeline
            self._on_standby.remove(connection)
            is_sound = False
        if self._is_open and is_sound and not connection.is_closed() and not connection.is_in_transaction():
            self._idle.append((now, connection))
            if self._closing is None:
                self._closing = asyncio.get_running_loop().call_later(IDLE_TIMEOUT, self.close_idle)
            while self._hoping and not wake(self._hoping.popleft()):
                pass  # one whose wait has ended
        else:
            connection.terminate()
        self._admission.leave(slot)
        if self._away_since is not None and error is None:
            log.info("database is available again", seconds=round(now - self._away_since, 1))
            self._away_since = None

    def _raise(self, error: Exception) -> NoReturn:
        """Raise the translated error."""
        problem = problem_of(error)
        try:
            if problem is None:
                raise error
            self._log(problem, error)
            raise problem from error
        finally:
            del error, problem  # or this frame would hold them, and they this frame by their tracebacks

    def _log(self, problem: Unavailable | Overrun, error: Exception) -> None:
        """Log the reason once per `LOG_INTERVAL`."""
        now = time.monotonic()
        if now - self._logged_at.get(problem.reason, -LOG_INTERVAL) >= LOG_INTERVAL:
            self._logged_at[problem.reason] = now
            is_away = isinstance(problem, Unavailable) and not is_conflict(error)
            event = "database is not available" if is_away else "statement aborted"
            log.warning(event, reason=problem.reason, error=first_line(error), work=KIND.get())
            if is_away:
                self._away_since = self._away_since or now


class Borrowed(Database):
    """The interface of a pool for a connection in a transaction of the caller."""

    def __init__(self, connection: Connection) -> None:
        super().__init__("", 0)
        self._connection = connection

    async def _take(self) -> tuple[Slot, Connection]:
        return ("", 0), self._connection

    def _give_back(self, slot: Slot, connection: Connection, error: BaseException | None = None) -> None:
        """Leave the connection to the caller."""


async def fetch(store: Database | Connection, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """Run one statement, on a connection of the pool or on the given one."""
    if isinstance(store, Database):
        return await store.rows(statement, *arguments)
    found: list[asyncpg.Record] = await store.fetch(statement, *arguments)
    return found


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


async def allow(connection: Connection, seconds: float) -> None:
    """Let the server take so long for each statement of this transaction. For the driver, each needs its `timeout`."""
    await connection.execute(f"set local statement_timeout = {_milliseconds(seconds, SERVERS_PART)}")


def _give_way(connection: Connection) -> None:
    """Lower the priority of the server process of a connection, so that bulk work does not delay other work.

    Each server process is a session of its own. Linux makes a group of each session, if nothing else groups processes,
    and divides the processors among groups: the priority within a group of one process then has no effect. Without
    privileges, one group of a machine can be changed in a tenth of a second; the others keep their priority.
    """
    pid = connection.get_server_pid()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, BULK_NICENESS)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(BULK_NICENESS), "ascii")


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
