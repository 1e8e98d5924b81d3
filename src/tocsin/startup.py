"""Builds the parts of a process: pubsub, lanes, the state of the application and the dispatcher."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial

from tocsin import preferences
from tocsin.api.drafts import draft_of
from tocsin.api.state import AppState
from tocsin.at_once import AtOnce
from tocsin.auth.from_settings import provider_of
from tocsin.auth.tokens import Verifier
from tocsin.capacity import Capacity
from tocsin.catalogue import Catalogue
from tocsin.db.pool import Database
from tocsin.db.url import in_schema, read_only
from tocsin.disk_guard import DiskGuard
from tocsin.events import Intake
from tocsin.marks import SingleMarks
from tocsin.metrics import Metrics
from tocsin.pages import Cursors
from tocsin.posts import Posts
from tocsin.preferences import Operator, Preferences
from tocsin.pubsub import PubSub
from tocsin.push.apps import lanes_of
from tocsin.push.content import Composer
from tocsin.push.dispatcher import Dispatcher
from tocsin.push.lanes import Lane
from tocsin.rate_limits import RateLimits
from tocsin.readiness import Readiness
from tocsin.replica import CONNECTIONS, PATIENCE, Reads, Replica, Standby
from tocsin.settings import Settings
from tocsin.store import pool
from tocsin.streams import Streams
from tocsin.worker import Worker


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
    *,
    with_worker: bool,
    replica: Replica | None = None,
    beside: AppState | None = None,
) -> AppState:
    """Return the state of the application. Requires a running event loop.

    A further cell has the metrics, the capacity and the operator's preferences of the default one, `beside`.

    With a worker, events are delivered at once in its lanes; without, `AtOnce.watch` has to learn those of the workers.

    Rate limits use the pool `counting`, so that a request that holds a connection never waits for another one.
    """
    streams, metrics = Streams(database, pubsub), beside.metrics if beside else Metrics()
    disk = guard_of(settings)
    if beside is None:
        verifier.on_withdrawal = streams.end_all  # clients whose token is still valid reconnect
        metrics.watch_streams(lambda: streams.count)
        metrics.watch_disk(disk)
    metrics.watch_pool("api", database, settings.cell)
    operator = beside.operator if beside else Operator.load(catalogue, settings.preferences_file)
    capacity = beside.capacity if beside else Capacity(metrics)
    at_once = AtOnce(catalogue, [lane.name for lane in lanes] if with_worker else None, metrics.inbox)
    intake = Intake(database, pubsub, disk, at_once, beside.intake.turn if beside else None)
    cursors = Cursors(database)
    if replica:
        metrics.watch_pool("replica", replica.database, settings.cell)
    return AppState(
        settings,
        database,
        catalogue,
        operator,
        pubsub,
        intake,
        verifier,
        cursors,
        SingleMarks(database),
        Reads(database, cursors, replica, metrics.inbox_read),
        streams,
        RateLimits(counting, settings, metrics.rate_limited),
        disk,
        capacity,
        metrics,
        Readiness(database, disk, pubsub, capacity, replica),
        None if database.is_read_only or beside else provider_of(settings),  # sessions are rows
        lanes,
    )


def posts_of(
    database: Database, catalogue: Catalogue, pubsub: PubSub, disk: DiskGuard, at_once: AtOnce | None
) -> Posts:
    """Return what accepts the posted events of a worker."""
    intake = Intake(database, pubsub, disk, at_once)
    types = sorted({kind.type for kind in catalogue.kinds.values()})
    return Posts(database, intake, partial(draft_of, catalogue=catalogue), types)


def guard_of(settings: Settings) -> DiskGuard:
    """Return the guard of the disk of the embedded PostgreSQL; for another database, it has no limit."""
    folder = settings.data_dir if settings.database_url is None else None
    return DiskGuard(folder, settings.min_free_disk)


@contextlib.asynccontextmanager
async def pubsub_for(settings: Settings, url: str, database: Database) -> AsyncIterator[PubSub]:
    """Yield the pubsub, over NATS if it is set. Raises `Refusal` for unusable certificates or credentials."""
    if settings.nats_url is None:
        yield PubSub(url, database)
        return
    from tocsin.nats_access import access_of  # noqa: PLC0415 - few services use NATS
    from tocsin.nats_bus import ByNats  # noqa: PLC0415

    access = access_of(settings)
    access.check()
    bus = ByNats(access, settings.cell)
    try:
        yield PubSub(url, database, bus)
    finally:
        await bus.close()


@contextlib.asynccontextmanager
async def replica_for(settings: Settings, database: Database) -> AsyncIterator[Replica | None]:
    """Yield the replica of the database and watch it; None if none is set, or if the process reads a standby anyway."""
    if settings.replica_url is None or database.is_read_only:
        yield None
        return
    url = in_schema(settings.replica_url.get_secret_value(), settings.database_schema)
    standby = Standby(read_only(url), CONNECTIONS, PATIENCE)
    await standby.open()
    replica = Replica(database, standby, settings.replica_max_lag)
    watching = asyncio.create_task(replica.watch())
    try:
        yield replica
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await standby.close()


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
