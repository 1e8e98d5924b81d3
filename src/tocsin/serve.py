"""The processes `tocsin serve` and `tocsin worker`: start and stop their parts."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from tocsin import archiving, jobs
from tocsin.api.app import operations_service, service, watching_service
from tocsin.api.connections import Connections, raise_file_limit
from tocsin.api.server import ByPort, Server
from tocsin.api.state import AppState, Watched
from tocsin.at_once import AtOnce
from tocsin.audit import actor_of_command
from tocsin.auth import from_settings
from tocsin.backoff import Backoff
from tocsin.catalogue import Catalogue
from tocsin.db.pool import Database
from tocsin.errors import Refusal
from tocsin.history import Recorder
from tocsin.metrics import Metrics
from tocsin.preferences import Operator, record_locks
from tocsin.readiness import Readiness
from tocsin.retention import run
from tocsin.settings import Settings
from tocsin.siblings import Siblings
from tocsin.signals import on_signals, reloading_keys, survive_signals
from tocsin.sockets import bound, port_of, url_of
from tocsin.startup import (
    build_app_state,
    bulk_pool,
    dispatcher_of,
    guard_of,
    open_lanes,
    posts_of,
    pubsub_for,
    replica_for,
)
from tocsin.store import API_CONNECTIONS, API_STATEMENT_TIMEOUT, WORKER_CONNECTIONS, is_running, pool, store
from tocsin.worker import Worker

COLLECTIONS_PER_FULL = 100
"""Garbage collections of younger objects before one of all objects, which stops the process for tens of milliseconds
if it has thousands of connections. With the default, 10, they come about once a second under load."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """A running service: its url and its state."""

    url: str
    app_state: AppState


async def serve(
    settings: Settings,
    *,
    with_worker: bool = True,
    when_ready: Callable[[Running], Awaitable[None]] | None = None,
    further: Sequence[BaseRoute] = (),
    siblings: Siblings | None = None,
) -> None:
    """Run the service until a signal ends the process. Raises `Refusal` if it cannot start.

    `further` are additional routes. `when_ready` is called when the service accepts requests. With `siblings`, this is
    one of several processes on the same ports, and the process that started it runs the database. A read-only service
    has no worker.
    """
    _refuse_cells(settings)
    raise_file_limit()
    if settings.database_url is not None or settings.has_keys:
        from_settings.verifier_of(settings)
    from_settings.provider_of(settings)
    async with contextlib.AsyncExitStack() as stack:
        sockets = [
            stack.enter_context(bound(settings.host, port, shared=siblings is not None))
            for port in (settings.port, settings.operations_port)
            if port is not None
        ]
        url = await stack.enter_async_context(store(settings, alone=siblings is None, quiet=siblings is not None))
        database = await stack.enter_async_context(pool(url, API_CONNECTIONS, API_STATEMENT_TIMEOUT))
        with_worker = with_worker and not database.is_read_only
        counting = await stack.enter_async_context(pool(url, 1, API_STATEMENT_TIMEOUT))
        own = await stack.enter_async_context(pool(url, WORKER_CONNECTIONS, beats=True))
        bulk = await stack.enter_async_context(bulk_pool(settings, url))
        pubsub = await stack.enter_async_context(pubsub_for(settings, url, own))
        verifier = from_settings.verifier_of(settings)
        stack.push_async_callback(verifier.close)
        verifier.begin()
        lanes = await stack.enter_async_context(open_lanes(settings))
        catalogue = Catalogue.load(*settings.catalogue_folders)
        replica = await stack.enter_async_context(replica_for(settings, database))
        app_state = build_app_state(
            settings, catalogue, database, counting, pubsub, verifier, lanes, with_worker=with_worker, replica=replica
        )
        stack.push_async_callback(app_state.limits.close)
        stack.push_async_callback(app_state.streams.finish)
        if app_state.provider:
            stack.push_async_callback(app_state.provider.close)
        app_state.metrics.siblings = siblings
        if not database.is_read_only:
            await stack.enter_async_context(_in_background(_record_locks(own, app_state.operator, "tocsin serve")))
            await stack.enter_async_context(_in_background(Recorder(own, app_state.metrics).run()))
            if not with_worker and app_state.intake.at_once:
                await stack.enter_async_context(_in_background(app_state.intake.at_once.watch(own)))
        worker = None
        if with_worker:
            app_state.metrics.watch_pool("worker", own)
            worker = Worker(own, catalogue, pubsub, bulk, app_state.metrics)
            worker.posts = posts_of(own, catalogue, pubsub, app_state.disk, app_state.intake.at_once)
            worker.dispatcher = dispatcher_of(
                settings, lanes, worker, own, catalogue, app_state.operator, pubsub, app_state.metrics
            )
            forgetting = run(bulk, settings.retention_days, settings.audit_retention_days)
            await stack.enter_async_context(_in_background(forgetting))
        if settings.archive:
            await stack.enter_async_context(_in_background(archiving.watch(own)))
        stack.enter_context(reloading_keys(settings, lanes, worker.dispatcher if worker else None, app_state))
        server = Server(
            _app_of(app_state, sockets, further),
            app_state.streams.close,
            connections=Connections.of_files(app_state.metrics),
            origins=settings.cors_origins,
            prefix=settings.root_path,
            capacity=app_state.capacity,
        )
        await _together(app_state, server, sockets, worker, when_ready)


async def work(settings: Settings) -> None:
    """Run a worker until a signal ends the process. Raises `Refusal` without a database."""
    _refuse_cells(settings)
    if settings.database_url is None and not is_running(settings):
        raise Refusal(
            f"No server runs for {settings.data_dir}: start `tocsin serve` first, or set TOCSIN_DATABASE_URL."
        )
    if settings.read_only:
        raise Refusal("A worker writes: remove TOCSIN_READ_ONLY.")
    raise_file_limit()
    stopping = asyncio.Event()
    async with (
        store(settings, alone=False) as url,
        pool(url, WORKER_CONNECTIONS, beats=True) as database,
        bulk_pool(settings, url) as bulk,
        open_lanes(settings) as lanes,
        contextlib.AsyncExitStack() as stack,
    ):
        if settings.operations_port is None:
            on_signals(stopping.set)  # not earlier, so that a signal ends a startup that waits for the database
        pubsub = await stack.enter_async_context(pubsub_for(settings, url, database))
        catalogue, metrics = Catalogue.load(*settings.catalogue_folders), Metrics()
        metrics.watch_pool("worker", database)
        worker = Worker(database, catalogue, pubsub, bulk, metrics)
        operator = Operator.load(catalogue, settings.preferences_file)
        worker.dispatcher = dispatcher_of(settings, lanes, worker, database, catalogue, operator, pubsub, metrics)
        disk = guard_of(settings)
        at_once = AtOnce(catalogue, [lane.name for lane in lanes], metrics.inbox)
        worker.posts = posts_of(database, catalogue, pubsub, disk, at_once)
        metrics.watch_disk(disk)
        watched = Watched(database, metrics, Readiness(database, disk, pubsub))
        await stack.enter_async_context(_watched(settings, watched, stopping))
        stack.enter_context(reloading_keys(settings, lanes, worker.dispatcher))
        forgetting = run(bulk, settings.retention_days, settings.audit_retention_days)
        await stack.enter_async_context(_in_background(_record_locks(database, operator, "tocsin worker")))
        await stack.enter_async_context(_in_background(Recorder(database, metrics).run()))
        _freeze()
        async with _in_background(pubsub.receive()), _in_background(forgetting):
            working = asyncio.create_task(worker.run())
            log.info("worker started", worker=str(worker.id))
            until = asyncio.create_task(stopping.wait())
            await asyncio.wait({working, until}, return_when=asyncio.FIRST_COMPLETED)
            worker.stop()
            await working
            await _end([until])
        await pubsub.close()


def _refuse_cells(settings: Settings) -> None:
    if settings.cells_file is not None:
        raise Refusal("A process serves one cell of TOCSIN_CELLS_FILE: name it with --cell.")


async def _record_locks(database: Database, operator: Operator, command: str) -> None:
    """Record in the audit log that this process locks other preferences than the last one that started."""
    actor = actor_of_command(command)
    await Backoff("locks of preferences").until_done(lambda: record_locks(database, operator, actor))


@contextlib.asynccontextmanager
async def _watched(settings: Settings, watched: Watched, stopping: asyncio.Event) -> AsyncIterator[None]:
    """Serve metrics and probes in a worker process, if TOCSIN_OPERATIONS_PORT is set. The server handles signals."""
    if settings.operations_port is None:
        yield
        return
    with bound(settings.host, settings.operations_port) as listening:
        survive_signals()
        server = Server(watching_service(watched), connections=Connections.of_files(watched.metrics))
        serving = asyncio.create_task(server.serve([listening]))
        serving.add_done_callback(lambda _: stopping.set())
        try:
            await server.ready.wait()
            log.info("serving metrics", url=url_of(listening))
            yield
        finally:
            server.should_exit = True
            await serving


async def _together(
    app_state: AppState,
    server: Server,
    sockets: list[socket.socket],
    worker: Worker | None,
    when_ready: Callable[[Running], Awaitable[None]] | None,
) -> None:
    """Run the server and the worker. If one of them ends, or the process that started this one, stop."""
    pubsub, siblings = app_state.pubsub, app_state.metrics.siblings
    if worker:
        pubsub.handle_locally("settled")
        if app_state.settings.database_url is None and siblings is None:
            await Backoff("start").until_done(lambda: jobs.forget_workers(app_state.database))
    survive_signals()
    _freeze()
    listeners = [asyncio.create_task(each) for each in (pubsub.receive(), app_state.streams.watch())]
    working = [asyncio.create_task(worker.run())] if worker else []
    living = [asyncio.create_task(siblings.run(app_state.metrics.samples))] if siblings else []
    serving = asyncio.create_task(server.serve(sockets))
    introducing = asyncio.create_task(_introduce(server, app_state, sockets, when_ready))
    await asyncio.wait({serving, *working, *living}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await asyncio.wait({serving})
    if worker:
        worker.stop()
    ended = await asyncio.gather(serving, *working, return_exceptions=True)
    await _end([*listeners, *living, introducing])
    await pubsub.close()
    for error in ended:
        if error:
            raise error


def _app_of(app_state: AppState, sockets: Sequence[socket.socket], further: Sequence[BaseRoute]) -> ASGIApp:
    """Return the application. If there is a second port, it serves only operations."""
    app = service(app_state, further)
    return app if len(sockets) == 1 else ByPort(app, port_of(sockets[1]), operations_service(app_state))


async def _introduce(
    server: Server,
    app_state: AppState,
    sockets: Sequence[socket.socket],
    when_ready: Callable[[Running], Awaitable[None]] | None,
) -> None:
    await server.ready.wait()
    running = Running(url_of(sockets[0]), app_state)
    if app_state.metrics.siblings:
        app_state.metrics.siblings.ready()
        return
    log.info("serving", url=running.url, **({"operations": url_of(sockets[1])} if len(sockets) > 1 else {}))
    if when_ready:
        try:
            await when_ready(running)
        except Exception:
            log.exception("startup hook failed")


@contextlib.asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine for as long as the block runs."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await _end([task])


def _freeze() -> None:
    """Exclude all objects that exist from garbage collection: to examine them each time would stop the process.

    All objects that are made later, such as those of connections, are examined more rarely than by default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], COLLECTIONS_PER_FULL)


async def _end(tasks: Sequence[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
