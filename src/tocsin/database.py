"""The one way to PostgreSQL: a pool of connections, queries by name, and what an outage looks like to a caller."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any, cast

import asyncpg

from tocsin.errors import Unavailable

SCHEMA = "tocsin"
"""All our tables live in a schema of this name, so that a database can be shared with the host application."""

SLOWEST = 20.0
"""Seconds after which a statement is given up."""

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


class Connection(asyncpg.Connection):
    """A connection that is not reset when it goes back to the pool: the service never changes its session."""

    def get_reset_query(self) -> str:
        """Return nothing to do: the reset would cost a quarter of all requests."""
        return ""


async def connect(url: str) -> Connection:
    """Open one connection outside of any pool.

    Raises one of `OUTAGES` where the database cannot be reached.
    """
    return cast(
        "Connection",
        await asyncpg.connect(url, connection_class=Connection, server_settings=_session(), timeout=10),
    )


class Database:
    """A pool of connections to one database.

    Whatever says that the database is away comes out as `Unavailable`, as does one that takes more than `patience`
    seconds to lend a connection or to answer a single statement. A pool that `yields` has its server's processes give
    way to all others, where the server runs on this machine under our command.
    """

    def __init__(self, url: str, size: int, patience: float = SLOWEST, *, yields: bool = False) -> None:
        self._url = url
        self._size = size
        self._patience = patience
        self._yields = yields
        self._pool: asyncpg.Pool[Any] | None = None

    async def open(self) -> None:
        """Make the pool; connections come when they are needed."""
        self._pool = await asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=self._size,
            connection_class=Connection,
            command_timeout=SLOWEST,
            timeout=5,
            max_inactive_connection_lifetime=60,
            server_settings=_session(),
            init=_give_way if self._yields else None,
        )

    async def close(self) -> None:
        """Close all connections, those in use after at most 5 s."""
        if self._pool is None:
            return
        try:
            await asyncio.wait_for(self._pool.close(), 5)
        except OUTAGES:
            self._pool.terminate()
        self._pool = None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection, each statement of which is a transaction of its own."""
        try:
            async with self._open_pool().acquire(timeout=self._patience) as connection:
                yield cast("Connection", connection)
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
            async with asyncio.timeout(self._patience):
                return await self._open_pool().fetch(statement, *arguments)
        except OUTAGES as error:
            raise Unavailable from error

    async def row(self, statement: str, *arguments: Any) -> asyncpg.Record | None:
        """Run one statement and return its first row, if there is one."""
        found = await self.rows(statement, *arguments)
        return found[0] if found else None

    async def value(self, statement: str, *arguments: Any) -> Any:
        """Run one statement and return the first column of its first row."""
        found = await self.row(statement, *arguments)
        return found[0] if found else None

    def _open_pool(self) -> "asyncpg.Pool[Any]":
        if self._pool is None:
            raise Unavailable
        return self._pool


async def _give_way(connection: Any) -> None:
    """Lower the priority of the process that serves a connection, so that large work delays nobody's small one."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, connection.get_server_pid(), 10)


def _session() -> dict[str, str]:
    """Return the settings of our sessions.

    Every statement of ours has its index, and comes to rows in its order: a plan that was made while a table was empty
    must not go on reading all of it when it is large, nor lock rows in the order in which they lie on disk.
    """
    return {
        "application_name": "tocsin",
        "search_path": SCHEMA,
        "timezone": "UTC",
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
    }
