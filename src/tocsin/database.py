"""The one way to PostgreSQL: a pool of connections, queries by name, and what an outage looks like to a caller."""

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import asyncpg

from tocsin.database_url import target_of
from tocsin.errors import Unavailable

SCHEMA = "tocsin"
"""All our tables live in a schema of this name, so that a database can be shared with the host application."""

SLOWEST = 20.0
"""Seconds after which a statement is given up."""

LONGEST_CONNECTING = 5.0
"""Seconds after which a connection that does not come about is given up."""

LONGEST_IDLE = 60.0
"""Seconds after which a connection that nobody needed is closed."""

OUTAGES = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.PostgresSystemError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
"""What an unreachable, restarting, full or failing-over database raises: nothing that a caller did."""

HOPELESS = (
    asyncpg.ClientConfigurationError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
"""Those of `OUTAGES` that waiting does not mend at a start."""

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def queries(module: str) -> Mapping[str, str]:
    """Return the statements of `queries/<module>.sql` by their names (`-- name: page`)."""
    _, *parts = _NAME.split((files("tocsin") / "queries" / f"{module}.sql").read_text("utf-8"))
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))


Connection = asyncpg.Connection
"""A connection to the database. The service never changes its session, so none is reset between two uses."""


async def connect(url: str, slowest: float | None = None) -> Connection:
    """Open one connection, on which a statement may take `slowest` seconds; in `LONGEST_CONNECTING`.

    The settings of the session are one statement after connecting: poolers refuse them as parameters of the start.

    Raises one of `OUTAGES` where the database cannot be reached.
    """
    target = target_of(url)
    connection = await asyncpg.connect(target.dsn, timeout=LONGEST_CONNECTING, command_timeout=slowest)
    try:
        await connection.execute(_set(_session(target.settings)), timeout=LONGEST_CONNECTING)
    except BaseException:
        connection.terminate()
        raise
    return connection


class Database:
    """A pool of at most `size` connections to one database.

    Whatever says that the database is away comes out as `Unavailable`, as does one that takes more than `patience`
    seconds to lend a connection or to answer a statement. A pool that `yields` has its server's processes give way to
    all others, where the server runs on this machine under our command.

    It is ours because asyncpg's costs more than a small statement: a task, a proxy and two locks for each loan.
    """

    def __init__(self, url: str, size: int, patience: float = SLOWEST, *, yields: bool = False) -> None:
        self._url = url
        self._patience = patience
        self._yields = yields
        self._places = asyncio.Semaphore(size)
        self._idle: list[tuple[float, Connection]] = []
        self._is_open = False

    async def open(self) -> None:
        """Be ready to lend; connections come when they are needed."""
        self._is_open = True

    async def close(self) -> None:
        """Close all connections; those in use end when they come back."""
        self._is_open = False
        while self._idle:
            with contextlib.suppress(*OUTAGES):
                await self._idle.pop()[1].close(timeout=2)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection, each statement of which is a transaction of its own."""
        try:
            connection = await self._take()
            try:
                yield connection
            except BaseException as error:
                self._give_back(connection, error)
                raise
            self._give_back(connection)
        except OUTAGES as error:
            raise Unavailable from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Lend a connection in a transaction that is committed at the end of the block."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def rows(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement and return its rows."""
        try:
            connection = await self._take()
            try:
                found = await connection.fetch(statement, *arguments)
            except BaseException as error:
                self._give_back(connection, error)
                raise
            self._give_back(connection)
        except OUTAGES as error:
            raise Unavailable from error
        return found

    async def row(self, statement: str, *arguments: Any) -> asyncpg.Record | None:
        """Run one statement and return its first row, if there is one."""
        found = await self.rows(statement, *arguments)
        return found[0] if found else None

    async def value(self, statement: str, *arguments: Any) -> Any:
        """Run one statement and return the first column of its first row."""
        found = await self.row(statement, *arguments)
        return found[0] if found else None

    async def _take(self) -> Connection:
        if not self._is_open:
            raise Unavailable
        async with _within(self._patience if self._places.locked() else None):
            await self._places.acquire()
        try:
            while self._idle:
                _, connection = self._idle.pop()
                if not connection.is_closed():
                    return connection
            connection = await connect(self._url, self._patience)
            if self._yields:
                _give_way(connection)
        except BaseException:
            self._places.release()
            raise
        return connection

    def _give_back(self, connection: Connection, error: BaseException | None = None) -> None:
        """Keep a connection for the next, unless something happened to it; end one that nobody needed for long."""
        now = time.monotonic()
        is_sound = error is None or (isinstance(error, Exception) and not isinstance(error, OUTAGES))
        if self._is_open and is_sound and not connection.is_closed() and not connection.is_in_transaction():
            self._idle.append((now, connection))
        else:
            connection.terminate()
        if self._idle and now - self._idle[0][0] > LONGEST_IDLE:
            self._idle.pop(0)[1].terminate()
        self._places.release()


class Borrowed(Database):
    """One connection in a transaction of somebody else's, in the form of a pool: what it runs is part of that."""

    def __init__(self, connection: Connection) -> None:
        super().__init__("", 0)
        self._connection = connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend the one connection."""
        yield self._connection

    async def rows(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement and return its rows."""
        try:
            found: list[asyncpg.Record] = await self._connection.fetch(statement, *arguments)
        except OUTAGES as error:
            raise Unavailable from error
        return found


async def fetch(store: Database | Connection, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """Run one statement, on a connection of the pool or in the transaction of a connection that was lent."""
    if isinstance(store, Database):
        return await store.rows(statement, *arguments)
    found: list[asyncpg.Record] = await store.fetch(statement, *arguments)
    return found


def _within(seconds: float | None) -> contextlib.AbstractAsyncContextManager[Any]:
    """Return a limit of time, or none, which costs nothing."""
    return contextlib.nullcontext() if seconds is None else asyncio.timeout(seconds)


def _give_way(connection: Connection) -> None:
    """Lower the priority of the process that serves a connection, so that large work delays nobody's small one."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, connection.get_server_pid(), 10)


def _session(asked: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the settings of our sessions, with those that the url asks for.

    Every statement of ours has its index, and comes to rows in its order: a plan that was made while a table was empty
    must not go on reading all of it when it is large, nor lock rows in the order in which they lie on disk.
    """
    return {
        "application_name": "tocsin",
        **dict(asked),
        "search_path": SCHEMA,
        "timezone": "UTC",
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
    }


def _set(settings: Mapping[str, str]) -> str:
    """Return the statement that gives a session its settings."""
    quoted = ("'{}', '{}'".format(*(part.replace("'", "''") for part in pair)) for pair in settings.items())
    return "select " + ", ".join(f"set_config({pair}, false)" for pair in quoted)
