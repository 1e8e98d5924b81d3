"""The process: the database it stands on, the API, the worker, and how they start and end together."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from tocsin import jobs, preferences
from tocsin.api.app import operations_service, service, watching_service
from tocsin.api.connections import Connections, raise_file_limit
from tocsin.api.server import ByPort, Server, bound, port_of, url_of
from tocsin.api.state import AppState, Watched
from tocsin.auth import from_settings
from tocsin.auth.tokens import Verifier
from tocsin.backoff import Backoff
from tocsin.bus import ByNats
from tocsin.catalogue import Catalogue
from tocsin.db import migrate
from tocsin.db.errors import DRIVER_ERRORS, is_hopeless, is_outage, sentence_on
from tocsin.db.pool import STATEMENT_TIMEOUT, Database
from tocsin.errors import Refusal
from tocsin.events import Intake
from tocsin.inbox import Cursors
from tocsin.metrics import Metrics
from tocsin.postgres import supervisor
from tocsin.postgres.supervisor import Embedded, is_served
from tocsin.preferences import Operator, Preferences
from tocsin.pubsub import PubSub
from tocsin.push.apps import lanes_of, reload_keys
from tocsin.push.content import Composer
from tocsin.push.dispatcher import Dispatcher
from tocsin.push.lanes import Lane
from tocsin.readiness import Readiness
from tocsin.retention import run
from tocsin.settings import Settings
from tocsin.streams import Streams
from tocsin.worker import Worker

API_CONNECTIONS = 10
API_STATEMENT_TIMEOUT = 5.0
WORKER_CONNECTIONS = 8

WORKER_STATEMENT_TIMEOUT = 60.0
"""Seconds that a start waits for a database that cannot be reached."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """A service that answers: where, and what is behind it."""

    url: str
    app_state: AppState


async def serve(
    settings: Settings,
    *,
    with_worker: bool = True,
    when_ready: Callable[[Running], Awaitable[None]] | None = None,
    further: Sequence[BaseRoute] = (),
) -> None:
    """Serve until a signal ends it, with `further` routes if need be. Raises `Refusal` where it can't start."""
    raise_file_limit()
    if settings.database_url is not None or settings.has_keys:
        from_settings.verifier_of(settings)
    async with contextlib.AsyncExitStack() as stack:
        sockets = [stack.enter_context(bound(settings.host, settings.port))]
        if settings.operations_port is not None:
            sockets.append(stack.enter_context(bound(settings.host, settings.operations_port)))
        url = await stack.enter_async_context(store(settings, alone=True))
        database = await stack.enter_async_context(pool(url, API_CONNECTIONS, API_STATEMENT_TIMEOUT))
        own = await stack.enter_async_context(pool(url, WORKER_CONNECTIONS, beats=True))
        bulk = await stack.enter_async_context(_bulk_pool(settings, url))
        pubsub = await stack.enter_async_context(_pubsub_for(settings, url, own))
        verifier = from_settings.verifier_of(settings)
        stack.push_async_callback(verifier.close)
        verifier.begin()
        lanes = await stack.enter_async_context(_lanes(settings))
        catalogue = Catalogue.load(*settings.catalogue_folders)
        app_state = build_app_state(settings, catalogue, database, pubsub, verifier, lanes)
        worker = None
        if with_worker:
            app_state.metrics.watch_pool("worker", own)
            worker = Worker(own, catalogue, pubsub, bulk, app_state.metrics)
            worker.dispatcher = dispatcher_of(
                settings, lanes, worker, own, catalogue, app_state.operator, pubsub, app_state.metrics
            )
            await stack.enter_async_context(_in_background(run(bulk, settings.retention_days)))
        stack.enter_context(_reloading_keys(settings, lanes, worker.dispatcher if worker else None, app_state))
        server = Server(
            _app_of(app_state, sockets, further),
            app_state.streams.close,
            connections=Connections.of_files(app_state.metrics),
            origins=settings.cors_origins,
            prefix=settings.root_path,
        )
        await _together(app_state, server, sockets, worker, when_ready)


async def work(settings: Settings) -> None:
    """Work, without serving, until a signal ends it. Raises `Refusal` where there is nothing to work for."""
    if settings.database_url is None and not _runs(settings):
        raise Refusal(
            f"No server runs for {settings.data_dir}: start `tocsin serve` first, or set TOCSIN_DATABASE_URL."
        )
    raise_file_limit()
    stopping = asyncio.Event()
    async with (
        store(settings, alone=False) as url,
        pool(url, WORKER_CONNECTIONS, beats=True) as database,
        _bulk_pool(settings, url) as bulk,
        _lanes(settings) as lanes,
        contextlib.AsyncExitStack() as stack,
    ):
        if settings.operations_port is None:
            _on_signals(stopping.set)  # not before: a signal ends a start that waits for the database
        pubsub = await stack.enter_async_context(_pubsub_for(settings, url, database))
        catalogue, metrics = Catalogue.load(*settings.catalogue_folders), Metrics()
        metrics.watch_pool("worker", database)
        worker = Worker(database, catalogue, pubsub, bulk, metrics)
        operator = Operator.load(catalogue, settings.preferences_file)
        worker.dispatcher = dispatcher_of(settings, lanes, worker, database, catalogue, operator, pubsub, metrics)
        await stack.enter_async_context(_watched(settings, Watched(database, metrics, Readiness(database)), stopping))
        stack.enter_context(_reloading_keys(settings, lanes, worker.dispatcher))
        async with _in_background(pubsub.receive()), _in_background(run(bulk, settings.retention_days)):
            working = asyncio.create_task(worker.run())
            log.info("worker started", worker=str(worker.id))
            until = asyncio.create_task(stopping.wait())
            await asyncio.wait({working, until}, return_when=asyncio.FIRST_COMPLETED)
            worker.stop()
            await working
            await _end([until])
        await pubsub.close()


@contextlib.asynccontextmanager
async def _watched(settings: Settings, watched: Watched, stopping: asyncio.Event) -> AsyncIterator[None]:
    """Serve what is for operations in a process that only works, where a port is set for it; signals come there."""
    if settings.operations_port is None:
        yield
        return
    with bound(settings.host, settings.operations_port) as listening:
        _outlive_signals()
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


@contextlib.contextmanager
def _reloading_keys(
    settings: Settings, lanes: Sequence[Lane], dispatcher: Dispatcher | None, app_state: AppState | None = None
) -> Iterator[None]:
    """Read all keys again whenever SIGHUP comes; one that can't be used is loud, and those before go on.

    Where it comes because our terminal is gone, it ends us, as it ends any program.
    """
    loop, at_a_terminal = asyncio.get_running_loop(), os.isatty(0)
    renewing: set[asyncio.Task[None]] = set()
    reads: list[Callable[[], object]] = [lambda: reload_keys(lanes, settings)]
    if app_state:
        reads.append(lambda: app_state.verifier.take(from_settings.keys_of(settings)))

    async def renew() -> None:
        refused = [refusal for read in reads if (refusal := _refusal_of(read))]
        for refusal in refused:
            log.error("key reload failed; the previous keys stay in use", reason=str(refusal))
        if dispatcher:
            await dispatcher.keys_reloaded()
        if not refused:
            log.info("keys reloaded")

    def on_signal() -> None:
        if at_a_terminal and not os.isatty(0):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        task = asyncio.create_task(renew())
        renewing.add(task)
        task.add_done_callback(renewing.discard)

    loop.add_signal_handler(signal.SIGHUP, on_signal)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _refusal_of(read: Callable[[], object]) -> Refusal | None:
    try:
        read()
    except Refusal as refusal:
        return refusal
    return None


@contextlib.asynccontextmanager
async def store(settings: Settings, *, alone: bool, quiet: bool = False) -> AsyncIterator[str]:
    """Provide the database, its schema up to date, and yield its url.

    Without `alone`, a server that another process of ours runs on the same folder will do. `quiet` is for commands that
    were asked for something else: a schema that needed no step is not told of.
    """
    async with contextlib.AsyncExitStack() as stack:
        if settings.database_url is not None:
            url = settings.database_url.get_secret_value()
        elif not alone and _runs(settings):
            url = supervisor.url_of(settings.data_dir)
        else:
            url = (await stack.enter_async_context(Embedded(settings.data_dir))).url
        taken = await _patiently(lambda: _migrate(settings, url))
        tell = log.info if taken or not quiet else log.debug
        tell("the schema is up to date", new_steps=[f"{step.number:04} {step.name}" for step in taken])
        yield url


def _runs(settings: Settings) -> bool:
    """Tell whether a process serves our data folder. Raises `Refusal` where we may not look."""
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
    """Open a pool of connections for as long as the block runs."""
    database = Database(url, size, patience, yields=yields, beats=beats)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def _bulk_pool(settings: Settings, url: str) -> contextlib.AbstractAsyncContextManager[Database]:
    """Return the bulk lane's own connection, which gives way where the server is our child."""
    return pool(url, 1, yields=settings.database_url is None)


def build_app_state(  # noqa: PLR0913, PLR0917 - what it stands on
    settings: Settings,
    catalogue: Catalogue,
    database: Database,
    pubsub: PubSub,
    verifier: Verifier,
    lanes: Sequence[Lane],
) -> AppState:
    """Return the state of the application, in a running loop."""
    streams, metrics = Streams(database), Metrics()
    pubsub.on_change(streams.changed)
    verifier.on_withdrawal = streams.end_all  # whose tokens are still good comes again at once, and goes on
    metrics.watch_streams(lambda: streams.count)
    metrics.watch_pool("api", database)
    operator = Operator.load(catalogue, settings.preferences_file)
    intake, cursors = Intake(database, pubsub), Cursors(database)
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
        metrics,
        Readiness(database),
        lanes,
    )


@contextlib.asynccontextmanager
async def _pubsub_for(settings: Settings, url: str, database: Database) -> AsyncIterator[PubSub]:
    """Return the doorbell, which rings at other processes by NATS where there is one."""
    if settings.nats_url is None:
        yield PubSub(url, database)
        return
    bus = ByNats(settings.nats_url.get_secret_value())
    try:
        yield PubSub(url, database, bus)
    finally:
        await bus.close()


@contextlib.asynccontextmanager
async def _lanes(settings: Settings) -> AsyncIterator[list[Lane]]:
    """Make the lanes that the settings make, and end their transports. Raises `Refusal`."""
    lanes = lanes_of(settings)
    try:
        yield lanes
    finally:
        for lane in lanes:
            await lane.transport.close()


def dispatcher_of(  # noqa: PLR0913, PLR0917 - what it stands on
    settings: Settings,
    lanes: Sequence[Lane],
    worker: Worker,
    database: Database,
    catalogue: Catalogue,
    operator: Operator,
    pubsub: PubSub,
    metrics: Metrics,
) -> Dispatcher:
    """Return what sends the pushes of a worker, in these lanes."""

    async def load(user_ids: Sequence[int]) -> Mapping[int, Preferences]:
        return await preferences.load(database, operator, user_ids)

    composer = Composer(catalogue, settings.push_content)
    return Dispatcher(database, worker.id, lanes, composer, pubsub, load, metrics, operator.digest)


async def _together(
    app_state: AppState,
    server: Server,
    sockets: list[socket.socket],
    worker: Worker | None,
    when_ready: Callable[[Running], Awaitable[None]] | None,
) -> None:
    """Run all parts; when one ends, end the others."""
    pubsub = app_state.pubsub
    if worker:
        pubsub.handle_locally("settled")
        if app_state.settings.database_url is None:
            await Backoff("start").until_done(lambda: jobs.forget_workers(app_state.database))
    _outlive_signals()
    listeners = [asyncio.create_task(each) for each in (pubsub.receive(), app_state.streams.watch())]
    working = [asyncio.create_task(worker.run())] if worker else []
    serving = asyncio.create_task(server.serve(sockets))
    introducing = asyncio.create_task(_introduce(server, app_state, sockets, when_ready))
    await asyncio.wait({serving, *working}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await asyncio.wait({serving})
    if worker:
        worker.stop()
    ended = await asyncio.gather(serving, *working, return_exceptions=True)
    await _end([*listeners, introducing])
    await pubsub.close()
    for error in ended:
        if error:
            raise error


def _app_of(app_state: AppState, sockets: Sequence[socket.socket], further: Sequence[BaseRoute]) -> ASGIApp:
    """Return the service, and at the second port, where there is one, what is for operations alone."""
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
    log.info("serving", url=running.url, **({"operations": url_of(sockets[1])} if len(sockets) > 1 else {}))
    if when_ready:
        try:
            await when_ready(running)
        except Exception:
            log.exception("startup hook failed")


async def _migrate(settings: Settings, url: str) -> list[migrate.Step]:
    return await migrate.migrate(url, accept_undurable=settings.database_durable == "yes")


async def _patiently(attempt: Callable[[], Awaitable[list[migrate.Step]]]) -> list[migrate.Step]:
    end = time.monotonic() + WORKER_STATEMENT_TIMEOUT
    while True:
        try:
            return await attempt()
        except (*DRIVER_ERRORS, ValueError) as error:
            if not is_outage(error) or is_hopeless(error) or time.monotonic() > end:
                raise Refusal(sentence_on(error)) from error
            log.warning("database cannot be reached; the connection will be retried", reason=sentence_on(error))
            await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let something go on for as long as the block runs."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await _end([task])


async def _end(tasks: Sequence[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _outlive_signals() -> None:
    """Let the HTTP server end when it is told to, without ending us: it raises the signal again when it has ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    _survive_signals_of_others()


def _survive_signals_of_others() -> None:
    """Do nothing at the signals that other servers reopen their logs at, and that would end us."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)  # unlike SIG_IGN, no child inherits it


def _on_signals(stop: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    _survive_signals_of_others()
