"""A pool of connections to PostgreSQL, and the handling of outages."""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from math import ceil
from pathlib import Path
from typing import Any, NoReturn

import structlog

from tocsin.db.admission import KIND, Admission, Slot
from tocsin.db.connections import STATEMENT_TIMEOUT, Connection, Record, connect, limit_locks, note_timeline
from tocsin.db.errors import DRIVER_ERRORS, first_line, is_conflict, is_locked, is_outage, problem_of
from tocsin.db.url import is_read_only, schema_of
from tocsin.errors import Overrun, Unavailable
from tocsin.waking import Waiting, wake, woken

IDLE_TIMEOUT = 30.0
"""Seconds between two looks for idle connections to close: server processes hold memory for all statements they ran."""

USES_PER_CONNECTION = 300
"""Uses within `IDLE_TIMEOUT` for which one connection is enough: callers at the same time wait for each other."""

GROWTH_DELAY = 0.02
"""Seconds that a caller waits for a connection that another one returns before it opens one more than uses need."""

LOCK_TIMEOUT: ContextVar[float | None] = ContextVar("LOCK_TIMEOUT", default=None)
"""Seconds that each statement waits for a lock; None: the timeout of the session."""

BULK_NICENESS = 10
"""The priority of server processes that yield: 19 would be the lowest."""

LOG_INTERVAL = 60.0
"""Minimum seconds between two log lines about the same outage."""

log = structlog.get_logger(__name__)


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

    async def rows(self, statement: str, *arguments: Any) -> list[Record]:
        """Run one statement and return its rows."""
        if LOCK_TIMEOUT.get():
            async with self.transaction() as connection:
                return list(await connection.fetch(statement, *arguments))
        try:
            slot, connection = await self._take()
            try:
                found: list[Record] = await connection.fetch(statement, *arguments)
            except BaseException as error:
                self._give_back(slot, connection, error)
                raise
            self._give_back(slot, connection)
        except Exception as error:  # noqa: BLE001 - it is raised again
            self._raise(error)
        return found

    async def row(self, statement: str, *arguments: Any) -> Record | None:
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
        connection = None
        try:
            if (connection := self._sound()) is None and self._admission.in_use > max(1, self._needed):
                await self._returned()
                connection = self._sound()
            if connection is not None:
                return slot, connection
            connection = await connect(self._url, self._patience)
            if not self.is_read_only and not await note_timeline(connection, self._url):
                self._on_standby.add(connection)
            if self._yields:
                _give_way(connection)
        except BaseException:
            if connection is not None:
                connection.terminate()
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
        if connection in self._on_standby:  # see `note_timeline`
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
            raise problem from error.with_traceback(None)  # its frames know their callers, which hold the error
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


async def fetch(store: Database | Connection, statement: str, *arguments: Any) -> list[Record]:
    """Run one statement, on a connection of the pool or on the given one."""
    if isinstance(store, Database):
        return await store.rows(statement, *arguments)
    found: list[Record] = await store.fetch(statement, *arguments)
    return found


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
