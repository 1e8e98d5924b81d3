"""Builds the parts of a process: the database, pools, pubsub, lanes and the dispatcher."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import structlog

from tocsin import preferences
from tocsin.api.state import AppState
from tocsin.auth.from_settings import provider_of
from tocsin.auth.tokens import Verifier
from tocsin.bus import ByNats
from tocsin.capacity import Capacity
from tocsin.catalogue import Catalogue
from tocsin.db import migrate
from tocsin.db.errors import DRIVER_ERRORS, is_hopeless, is_outage, sentence_on
from tocsin.db.pool import STATEMENT_TIMEOUT, Database
from tocsin.disk_guard import DiskGuard
from tocsin.errors import Refusal
from tocsin.events import Intake
from tocsin.inbox import Cursors
from tocsin.metrics import Metrics
from tocsin.postgres import supervisor
from tocsin.postgres.supervisor import Embedded, is_served
from tocsin.preferences import Operator, Preferences
from tocsin.pubsub import PubSub
from tocsin.push.apps import lanes_of
from tocsin.push.content import Composer
from tocsin.push.dispatcher import Dispatcher
from tocsin.push.lanes import Lane
from tocsin.rate_limits import RateLimits
from tocsin.readiness import Readiness
from tocsin.settings import Settings
from tocsin.streams import Streams
from tocsin.worker import Worker

API_CONNECTIONS = 10
API_STATEMENT_TIMEOUT = 5.0
WORKER_CONNECTIONS = 8

Result = TypeVar("Result")

START_TIMEOUT = 60.0
"""Seconds that a process waits for the database at its start."""

log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def store(settings: Settings, *, alone: bool, quiet: bool = False) -> AsyncIterator[str]:
    """Start the embedded database or use the configured one, migrate the schema, and yield the url.

    Without `alone`, an embedded server that another process runs on the data folder is used. With `quiet`, it is not
    logged that the schema is up to date.
    """
    async with contextlib.AsyncExitStack() as stack:
        archive = settings.archive
        if settings.database_url is not None:
            url = settings.database_url.get_secret_value()
        elif not alone and is_running(settings):
            url = supervisor.url_of(settings.data_dir)
        else:
            url = (await stack.enter_async_context(Embedded(settings.data_dir, archive))).url
        taken = await patiently(lambda: _migrate(settings, url))
        tell = log.info if taken or not quiet else log.debug
        tell("the schema is up to date", new_steps=[f"{step.number:04} {step.name}" for step in taken])
        yield url


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


def bulk_pool(settings: Settings, url: str) -> contextlib.AbstractAsyncContextManager[Database]:
    """Return the pool of the bulk queue: one connection, with low priority on an embedded server."""
    return pool(url, 1, yields=settings.database_url is None)


def build_app_state(  # noqa: PLR0913, PLR0917 - its collaborators
    settings: Settings,
    catalogue: Catalogue,
    database: Database,
    counting: Database,
    pubsub: PubSub,
    verifier: Verifier,
    lanes: Sequence[Lane],
) -> AppState:
    """Return the state of the application. Requires a running event loop.

    Rate limits use the pool `counting`, so that a request that holds a connection never waits for another one.
    """
    streams, metrics = Streams(database), Metrics()
    pubsub.on_change(streams.changed)
    verifier.on_withdrawal = streams.end_all  # clients whose token is still valid reconnect
    metrics.watch_streams(lambda: streams.count)
    metrics.watch_pool("api", database)
    operator = Operator.load(catalogue, settings.preferences_file)
    disk = guard_of(settings)
    metrics.watch_disk(disk)
    capacity = Capacity(metrics)
    intake, cursors = Intake(database, pubsub, disk), Cursors(database)
    return AppState(
        settings,
        database,
        catalogue,
        operator,
        pubsub,
        intake,
        verifier,
        cursors,
        streams,
        RateLimits(counting, settings, metrics.rate_limited),
        disk,
        capacity,
        metrics,
        Readiness(database, disk, capacity),
        provider_of(settings),
        lanes,
    )


def guard_of(settings: Settings) -> DiskGuard:
    """Return the guard of the disk of the embedded PostgreSQL; for another database, it has no limit."""
    folder = settings.data_dir if settings.database_url is None else None
    return DiskGuard(folder, settings.min_free_disk)


@contextlib.asynccontextmanager
async def pubsub_for(settings: Settings, url: str, database: Database) -> AsyncIterator[PubSub]:
    """Yield the pubsub, over NATS if it is set."""
    if settings.nats_url is None:
        yield PubSub(url, database)
        return
    bus = ByNats(settings.nats_url.get_secret_value())
    try:
        yield PubSub(url, database, bus)
    finally:
        await bus.close()


@contextlib.asynccontextmanager
async def open_lanes(settings: Settings) -> AsyncIterator[list[Lane]]:
    """Open the configured lanes for the duration of the block. Raises `Refusal` for unusable keys."""
    lanes = lanes_of(settings)
    try:
        yield lanes
    finally:
        for lane in lanes:
            await lane.transport.close()


def dispatcher_of(  # noqa: PLR0913, PLR0917 - its collaborators
    settings: Settings,
    lanes: Sequence[Lane],
    worker: Worker,
    database: Database,
    catalogue: Catalogue,
    operator: Operator,
    pubsub: PubSub,
    metrics: Metrics,
) -> Dispatcher:
    """Return the dispatcher of a worker."""

    async def load(user_ids: Sequence[int]) -> Mapping[int, Preferences]:
        return await preferences.load(database, operator, user_ids)

    composer = Composer(catalogue, settings.push_content)
    return Dispatcher(database, worker.id, lanes, composer, pubsub, load, metrics, operator.digest)


async def _migrate(settings: Settings, url: str) -> list[migrate.Step]:
    return await migrate.migrate(url, accept_undurable=settings.database_durable == "yes")


async def patiently(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Return what an attempt returns, repeated while the database cannot be reached. Raises `Refusal` in the end."""
    end = time.monotonic() + START_TIMEOUT
    while True:
        try:
            return await attempt()
        except (*DRIVER_ERRORS, ValueError) as error:
            if not is_outage(error) or is_hopeless(error) or time.monotonic() > end:
                raise Refusal(sentence_on(error)) from error
            log.warning("database cannot be reached; the connection will be retried", reason=sentence_on(error))
            await asyncio.sleep(1)
