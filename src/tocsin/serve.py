"""The processes `tocsin serve` and `tocsin worker`: start and stop their parts."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import structlog
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from tocsin import archiving, jobs, registrations
from tocsin.api.cells import ReadinessOfCells, Routing
from tocsin.api.connections import Connections, raise_file_limit
from tocsin.api.server import ByPort, Server
from tocsin.api.state import AppState, Watched
from tocsin.audit import actor_of_command
from tocsin.auth import from_settings
from tocsin.background import end, in_background
from tocsin.backoff import Backoff
from tocsin.catalogue import Catalogue
from tocsin.cell_parts import Shared, keep_open, opened, work_cells, worker_of
from tocsin.cells import cells_of
from tocsin.db.pool import Database
from tocsin.errors import Refusal
from tocsin.history import Recorder
from tocsin.metrics import Metrics
from tocsin.preferences import Operator, record_locks
from tocsin.readiness import Readiness
from tocsin.settings import Settings
from tocsin.siblings import Siblings
from tocsin.signals import on_signals, reloading_keys, survive_signals
from tocsin.sockets import bound, port_of, url_of
from tocsin.startup import guard_of
from tocsin.store import is_running, pool, store
from tocsin.worker import Worker

COLLECTIONS_PER_FULL = 100
"""Garbage collections of younger objects before one of all objects, which stops the process for tens of milliseconds
if it has thousands of connections. With the default, 10, they come about once a second under load."""

WATCH_CONNECTIONS = 2
"""Connections to the default cell for the readiness check and the history of a worker process of several cells."""

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
    raise_file_limit()
    cells = cells_of(settings)
    own = cells.default.settings(settings) if cells else settings
    if own.database_url is not None or own.has_keys:
        from_settings.verifier_of(own)
    from_settings.provider_of(own)
    async with contextlib.AsyncExitStack() as stack:
        sockets = [
            stack.enter_context(bound(own.host, port, shared=siblings is not None))
            for port in (own.port, own.operations_port)
            if port is not None
        ]
        is_first = siblings is None
        opening = store(own, alone=is_first, quiet=not is_first, while_starting=_routes)
        url = await stack.enter_async_context(opening)
        verifier = from_settings.verifier_of(own)
        stack.push_async_callback(verifier.close)
        verifier.begin()
        catalogue = Catalogue.load(*own.catalogue_folders)
        part = await stack.enter_async_context(opened(own, url, catalogue, verifier, with_worker=with_worker))
        app_state, worker = part.app_state, part.worker
        app_state.metrics.siblings = siblings
        if not app_state.database.is_read_only:
            recording = _record_locks(part.database, app_state.operator, "tocsin serve")
            await stack.enter_async_context(in_background(recording))
            await stack.enter_async_context(in_background(Recorder(part.database, app_state.metrics).run()))
        if own.archive:
            await stack.enter_async_context(in_background(archiving.watch(part.database)))
        reloaded = [(part.lanes, worker.dispatcher if worker else None)]
        stack.enter_context(reloading_keys(own, reloaded, app_state))
        routing = None
        if cells:
            routing = Routing(cells, app_state)
            await routing.look()
            await stack.enter_async_context(in_background(routing.watch()))
            if not app_state.database.is_read_only:
                await stack.enter_async_context(in_background(registrations.watch(routing.databases)))
            app_state = replace(app_state, readiness=ReadinessOfCells(routing))
            for cell in cells:
                if cell.is_default:
                    app_state.metrics.cell_worked(cell.name, is_worked=worker is not None)
                else:
                    keeping = keep_open(cell, settings, routing, app_state, reloaded, with_worker=with_worker)
                    await stack.enter_async_context(in_background(keeping))
        server = Server(
            _app_of(app_state, sockets, further, routing),
            routing.close_streams if routing else app_state.streams.close,
            connections=Connections.of_files(app_state.metrics),
            origins=own.cors_origins,
            prefix=own.root_path,
            capacity=app_state.capacity,
        )
        await _together(app_state, server, sockets, worker, when_ready)


async def work(settings: Settings) -> None:
    """Run a worker until a signal ends the process; with several cells, one for each cell whose lease it has.

    Raises `Refusal` without a database.
    """
    cells = cells_of(settings)
    own = cells.default.settings(settings) if cells else settings
    if own.database_url is None and not is_running(own):
        raise Refusal(f"No server runs for {own.data_dir}: start `tocsin serve` first, or set TOCSIN_DATABASE_URL.")
    if own.read_only:
        raise Refusal("A worker writes: remove TOCSIN_READ_ONLY.")
    raise_file_limit()
    stopping = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(store(own, alone=False))
        catalogue, metrics = Catalogue.load(*own.catalogue_folders), Metrics()
        operator = Operator.load(catalogue, own.preferences_file)
        shared = Shared(catalogue, metrics, operator, [])
        worker = pubsub = None
        if cells:
            database = await stack.enter_async_context(pool(url, WATCH_CONNECTIONS))
        else:
            part = await stack.enter_async_context(worker_of(own, url, shared))
            database, worker, pubsub = part.database, part.worker, part.pubsub
        if own.operations_port is None:
            on_signals(stopping.set)  # not earlier, so that a signal ends a startup that waits for the database
        disk = guard_of(own)
        metrics.watch_disk(disk)
        watched = Watched(database, metrics, Readiness(database, disk, pubsub))
        await stack.enter_async_context(_watched(own, watched, stopping))
        stack.enter_context(reloading_keys(own, shared.reloaded))
        await stack.enter_async_context(in_background(_record_locks(database, operator, "tocsin worker")))
        await stack.enter_async_context(in_background(Recorder(database, metrics).run()))
        _freeze()
        if cells:
            await stack.enter_async_context(in_background(work_cells(cells, settings, shared)))
            log.info("worker started", cells=list(cells.by_name))
            await stopping.wait()
        if worker:
            working, until = asyncio.create_task(worker.run()), asyncio.create_task(stopping.wait())
            log.info("worker started", worker=str(worker.id))
            await asyncio.wait({working, until}, return_when=asyncio.FIRST_COMPLETED)
            worker.stop()
            await working
            await end([until])


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
        server = Server(_routes().watching_service(watched), connections=Connections.of_files(watched.metrics))
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
    await end([*listeners, *living, introducing])
    await pubsub.close()
    for error in ended:
        if error:
            raise error


def _app_of(
    app_state: AppState, sockets: Sequence[socket.socket], further: Sequence[BaseRoute], routing: Routing | None
) -> ASGIApp:
    """Return the application. If there is a second port, it serves only operations."""
    routes = _routes()
    app = routes.service(app_state, further, routing)
    return app if len(sockets) == 1 else ByPort(app, port_of(sockets[1]), routes.operations_service(app_state, routing))


def _routes() -> ModuleType:
    """Load the routes: that takes as long as the embedded server takes to start, and a worker needs none."""
    from tocsin.api import app  # noqa: PLC0415

    return app


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


def _freeze() -> None:
    """Exclude all objects that exist from garbage collection: to examine them each time would stop the process.

    All objects that are made later, such as those of connections, are examined more rarely than by default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], COLLECTIONS_PER_FULL)
