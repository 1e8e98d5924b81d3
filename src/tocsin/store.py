"""The database of a process: the embedded server or the configured one, with the current schema."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import structlog

from tocsin.db import migrate
from tocsin.db.connections import STATEMENT_TIMEOUT
from tocsin.db.errors import DRIVER_ERRORS, is_hopeless, is_outage, sentence_on, url_named_by
from tocsin.db.pool import Database
from tocsin.db.url import SCHEMA, is_read_only, read_only
from tocsin.errors import Refusal
from tocsin.postgres import supervisor
from tocsin.postgres.data_dir import in_use, refuse_missing
from tocsin.postgres.supervisor import Embedded, is_served
from tocsin.retry_delay import Reasons
from tocsin.settings import Settings

API_CONNECTIONS = 10
API_STATEMENT_TIMEOUT = 5.0
WORKER_CONNECTIONS = 8

CONNECTIONS_PER_PROCESS, OTHER_CONNECTIONS = 25, 20
"""Maximum connections of a process that serves and works, and of commands and operators."""

Result = TypeVar("Result")

START_TIMEOUT = 60.0
"""Seconds that a process waits for the database at its start."""

RETRY_INTERVAL = 1.0
"""Seconds between two attempts."""

log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def store(  # noqa: PLR0913 - what its callers need
    settings: Settings,
    *,
    alone: bool,
    briefly: bool = False,
    quiet: bool = False,
    processes: int = 1,
    while_starting: Callable[[], object] | None = None,
) -> AsyncIterator[str]:
    """Start the embedded database or use the configured one, migrate the schema, and yield the url.

    A read-only process does not migrate. Its url is one of sessions that cannot write.

    Without `alone`, an embedded server that another process runs on the data folder is used. One that a command started
    runs until all commands that use it `briefly` have ended. With `quiet`, it is not logged that the schema is up to
    date. An embedded server that is started has connections for so many `processes`; `while_starting` is called while
    it starts.
    """
    url_named_by.set(settings.url_setting)
    async with contextlib.AsyncExitStack() as stack:
        archive = settings.archive
        if settings.own_database_url is not None:
            url = settings.own_database_url
            url = read_only(url) if settings.read_only else url
        elif settings.read_only:
            raise Refusal("A read-only server reads an existing database: set TOCSIN_DATABASE_URL.")
        elif settings.database_schema != SCHEMA:
            raise Refusal("A schema is for a database of your own: set its TOCSIN_DATABASE_URL.")
        elif not alone and await stack.enter_async_context(_served(settings, briefly=briefly)):
            url = supervisor.url_of(settings.data_dir)
        else:
            connections = processes * CONNECTIONS_PER_PROCESS + OTHER_CONNECTIONS
            server = Embedded(settings.data_dir, archive, connections, while_starting, shared=briefly)
            url = (await stack.enter_async_context(server)).url
        taken = await patiently(lambda: _migrate(settings, url))
        tell = log.info if taken or not quiet else log.debug
        tell("the schema is up to date", new_steps=[f"{step.number:04} {step.name}" for step in taken])
        yield url


@contextlib.asynccontextmanager
async def existing_store(settings: Settings) -> AsyncIterator[str]:
    """Yield the url of a database that a service has used, and may be using. Raises `Refusal` if there is none yet."""
    if settings.own_database_url is None and not is_running(settings):
        refuse_missing(settings.data_dir)
    async with store(settings, alone=False, briefly=True, quiet=True) as url:
        yield url


@contextlib.asynccontextmanager
async def embedded_server(settings: Settings) -> AsyncIterator[str]:
    """Yield the url of the embedded server for a command: of one that runs, or else it is started.

    Raises `Refusal` if there is no database in the data folder.
    """
    url_named_by.set(settings.url_setting)
    async with contextlib.AsyncExitStack() as stack:
        if not await stack.enter_async_context(_served(settings, briefly=True)):
            refuse_missing(settings.data_dir)
            await stack.enter_async_context(Embedded(settings.data_dir, settings.archive, shared=True))
        yield supervisor.url_of(settings.data_dir)


@contextlib.asynccontextmanager
async def _served(settings: Settings, *, briefly: bool) -> AsyncIterator[bool]:
    """Yield whether a process serves the data folder; for a command, it continues to the end of the block."""
    is_served = is_running(settings)
    if briefly:
        async with in_use(settings.data_dir) as is_served:
            yield is_served
    else:
        yield is_served


def is_running(settings: Settings) -> bool:
    """Return whether a process serves the data folder. Raises `Refusal` if the folder cannot be read."""
    try:
        return is_served(settings.data_dir)
    except OSError as error:
        raise Refusal(
            f"The data folder {settings.data_dir} cannot be read: {error.strerror}; run this as the user who runs"
            " `tocsin serve`, or set TOCSIN_DATA_DIR."
        ) from None


@contextlib.asynccontextmanager
async def pool(
    url: str, size: int, patience: float = STATEMENT_TIMEOUT, *, yields: bool = False, beats: bool = False
) -> AsyncIterator[Database]:
    """Open a pool of connections for the duration of the block."""
    database = Database(url, size, patience, yields=yields, beats=beats)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def _migrate(settings: Settings, url: str) -> list[migrate.Step]:
    if is_read_only(url):
        await migrate.require(url)
        return []
    return await migrate.migrate(url, accept_undurable=settings.database_durable == "yes")


async def patiently(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Return what an attempt returns, repeated while the database cannot be reached. Raises `Refusal` in the end.

    It is logged when the reason changes, and else after twice as long each time.
    """
    end, since, reasons = time.monotonic() + START_TIMEOUT, datetime.now(UTC), Reasons()
    while True:
        try:
            return await attempt()
        except (*DRIVER_ERRORS, ValueError) as error:
            reason = sentence_on(error)
            if not is_outage(error) or is_hopeless(error) or time.monotonic() > end:
                raise Refusal(reason) from error
            if reasons.is_due(reason):
                log.warning(
                    "database cannot be reached; the connection will be retried",
                    reason=reason,
                    since=since.isoformat(timespec="seconds"),
                )
            await asyncio.sleep(RETRY_INTERVAL)
