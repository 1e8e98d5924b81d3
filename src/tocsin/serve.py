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
from tocsin.api.cell_readiness import ReadinessOfCells
from tocsin.api.cells import Routing
from tocsin.api.connections import Connections, raise_file_limit
from tocsin.api.one_cell import OneCell
from tocsin.api.server import ByPort, Server
from tocsin.api.state import AppState, Watched
from tocsin.audit import actor_of_command
from tocsin.auth import from_settings
from tocsin.background import end, in_background
from tocsin.backoff import Backoff
from tocsin.catalogue import Catalogue
from tocsin.cell_parts import Leases, Part, Shared, keep_open, listening, opened, work_cells, work_served, worker_of
from tocsin.cells import Cell, Cells, cells_of, of_cell
from tocsin.db.pool import Database
from tocsin.db.url import target_of
from tocsin.errors import Refusal
from tocsin.history import Recorder
from tocsin.metrics import Metrics
from tocsin.postgres.supervisor import url_of as embedded_url
from tocsin.preferences import Operator, record_locks
from tocsin.readiness import STANDBY, Readiness, why_read_only
from tocsin.settings import OPERATIONS_PORT, Settings
from tocsin.siblings import Siblings
from tocsin.signals import on_signals, reloading_keys, survive_signals
from tocsin.sockets import bound, listen, port_of, url_of
from tocsin.startup import guard_of, open_lanes
from tocsin.store import API_STATEMENT_TIMEOUT, is_running, pool, store
from tocsin.worker import Worker

COLLECTIONS_PER_FULL = 100
"""Garbage collections of younger objects before one of all objects, which stops the process for tens of milliseconds
if it has thousands of connections. With the default, 10, they come about once a second under load."""

WATCH_CONNECTIONS = 2
"""Connections to the default cell for the history of a worker process of several cells."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """A running service: its url and its state."""

    url: str
    app_state: AppState


async def serve(  # noqa: PLR0913 - what a command can say
    settings: Settings,
    cell: str | None = None,
    *,
    with_worker: bool = True,
    when_ready: Callable[[Running], Awaitable[None]] | None = None,
    further: Sequence[BaseRoute] = (),
    siblings: Siblings | None = None,
) -> None:
    """Run the service until a signal ends the process, for one cell or all. Raises `Refusal` if it cannot start.

    `further` are additional routes. `when_ready` is called when the service accepts requests. With `siblings`, this is
    one of several processes on the same ports, and the process that started it runs the database. A read-only service
    has no worker.
    """
    raise_file_limit()
    every, own = cells_of(settings), of_cell(settings, cell)
    cells = every if cell is None else None
    if own.database_url is not None or own.has_keys:
        from_settings.verifier_of(own)
    if own.has_guessable_secret:
        log.warning("TOCSIN_JWT_SECRET can be guessed", hint="generate a secret with `openssl rand -hex 32`")
    from_settings.provider_of(own)
    async with contextlib.AsyncExitStack() as stack:
        sockets = [
            stack.enter_context(bound(own.host, port, setting, shared=siblings is not None))
            for setting, port in own.ports.items()
        ]
        is_first = siblings is None
        opening = store(own, alone=is_first, quiet=not is_first, while_starting=_routes)
        url = await stack.enter_async_context(opening)
        verifier = from_settings.verifier_of(own)
        stack.push_async_callback(verifier.close)
        verifier.begin()
        catalogue = Catalogue.load(*own.catalogue_folders)
        leases = Leases(cells) if cells and with_worker else None
        opening_cell = opened(own, url, catalogue, verifier, with_worker=with_worker and leases is None)
        part = await stack.enter_async_context(opening_cell)
        app_state, base, worker = part.app_state, part.base, None
        app_state.metrics.siblings = siblings
        shared = Shared(catalogue, app_state.metrics, app_state.operator)
        if with_worker and leases is None and not app_state.database.is_read_only:
            worker = await stack.enter_async_context(worker_of(base, shared, part.lanes))
        else:
            shared.reloaded.append((part.lanes, None))
        if not app_state.database.is_read_only:
            recording = _record_locks(base.database, app_state.operator, "tocsin serve")
            await stack.enter_async_context(in_background(recording))
            await stack.enter_async_context(in_background(Recorder(base.database, app_state.metrics).run()))
        if own.archive:
            await stack.enter_async_context(in_background(archiving.watch(base.database)))
        stack.enter_context(reloading_keys(own, shared.reloaded, app_state))
        routing: Routing | OneCell | None = None
        if every and cell is not None:
            routing = await stack.enter_async_context(_alone(every, every.named(cell), settings, app_state))
        if cells:
            routing = await stack.enter_async_context(_further(cells, settings, part, shared, leases))
            app_state = replace(app_state, readiness=ReadinessOfCells(cells, routing.states))
        server = Server(
            _app_of(app_state, sockets, further, routing),
            routing.close_streams if routing else app_state.streams.close,
            connections=Connections.of_files(app_state.metrics),
            origins=own.cors_origins,
            prefix=own.root_path,
            capacity=app_state.capacity,
        )
        await _together(app_state, server, sockets, worker, when_ready)


@contextlib.asynccontextmanager
async def _further(
    cells: Cells, settings: Settings, part: Part, shared: Shared, leases: Leases | None
) -> AsyncIterator[Routing]:
    """Serve the further cells beside the default one, and work all of them by leases."""
    app_state = part.app_state
    is_read_only = app_state.database.is_read_only
    async with contextlib.AsyncExitStack() as stack:
        routing = Routing(cells, app_state)
        await routing.look(cells.default.name)
        await stack.enter_async_context(in_background(routing.watch()))
        if not is_read_only:
            await stack.enter_async_context(in_background(registrations.watch(routing.databases)))
        stack.push_async_callback(part.base.pubsub.close)
        for cell in cells:
            app_state.metrics.cell_worked(cell.name, is_worked=False)
            if not cell.is_default:
                keeping = keep_open(cell, settings, routing, app_state, shared, leases)
                await stack.enter_async_context(in_background(keeping))
            elif leases and not is_read_only:
                await _forget_workers(app_state)
                await stack.enter_async_context(in_background(work_served(part, cell, shared, leases)))
        yield routing


@contextlib.asynccontextmanager
async def _alone(cells: Cells, own: Cell, settings: Settings, app_state: AppState) -> AsyncIterator[OneCell]:
    """Look at the other cells in a process that serves one: at moves of companies and registered phones."""
    async with contextlib.AsyncExitStack() as stack:
        others = {}
        for cell in cells:
            if cell is not own:
                of_other = cell.settings(settings)
                url = of_other.own_database_url or embedded_url(settings.data_dir)
                others[cell.name] = await stack.enter_async_context(pool(url, 1, API_STATEMENT_TIMEOUT))
        routing = OneCell(cells, own, app_state, others)
        await routing.look()
        await asyncio.gather(*map(routing.look_at, others))
        await stack.enter_async_context(in_background(routing.watch()))
        if not app_state.database.is_read_only:
            releasing = registrations.watch(routing.databases, own.name)
            await stack.enter_async_context(in_background(releasing))
        yield routing


async def work(settings: Settings) -> None:
    """Run a worker until a signal ends the process; with several cells, one for each cell whose lease it has.

    Raises `Refusal` without a database that accepts writes.
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
        await _refuse_read_only(url)
        catalogue, metrics = Catalogue.load(*own.catalogue_folders), Metrics()
        operator = Operator.load(catalogue, own.preferences_file)
        shared = Shared(catalogue, metrics, operator)
        worker = None
        disk = guard_of(own)
        readiness: Readiness
        if cells:
            database = await stack.enter_async_context(pool(url, WATCH_CONNECTIONS))
            metrics.databases_of_cells = lambda: {name: each.database for name, each in shared.cells.items()}
            readiness = ReadinessOfCells(cells, shared.cells)
        else:
            base = await stack.enter_async_context(listening(own, url))
            lanes = await stack.enter_async_context(open_lanes(own))
            worker = await stack.enter_async_context(worker_of(base, shared, lanes))
            database, readiness = base.database, Readiness(base.database, disk, base.pubsub)
        if own.operations_port is None:
            on_signals(stopping.set)  # not earlier, so that a signal ends a startup that waits for the database
        metrics.watch_disk(disk)
        await stack.enter_async_context(_watched(own, Watched(database, metrics, readiness), stopping))
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


async def _refuse_read_only(url: str) -> None:
    """Raise `Refusal` if the only host of a url accepts no writes. Of several hosts, another one may be promoted."""
    if len(target_of(url).dsns) > 1:
        return
    async with pool(url, 1) as database:
        reason = await why_read_only(database)
    if reason:
        remedy = "name the primary in TOCSIN_DATABASE_URL" if reason == STANDBY else "grant write access to its role"
        raise Refusal(f"A worker writes, and the database cannot be used: {reason}; {remedy}.")


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
    with bound(settings.host, settings.operations_port, OPERATIONS_PORT) as listening:
        listen(listening)
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
        await _forget_workers(app_state)
    survive_signals()
    _freeze()
    for each in sockets:
        listen(each)
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


async def _forget_workers(app_state: AppState) -> None:
    """Forget the workers of a process that was killed, if the embedded server had no other one."""
    if app_state.settings.database_url is None and app_state.metrics.siblings is None:
        await Backoff("start").until_done(lambda: jobs.forget_workers(app_state.database))


def _app_of(
    app_state: AppState,
    sockets: Sequence[socket.socket],
    further: Sequence[BaseRoute],
    routing: Routing | OneCell | None,
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
