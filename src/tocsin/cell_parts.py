"""The parts of a process that serve a cell, or work for it, and the tasks that keep those of further cells open."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from tocsin.api.cells import Routing
from tocsin.api.state import AppState
from tocsin.at_once import AtOnce
from tocsin.auth.tokens import Verifier
from tocsin.background import end, in_background
from tocsin.catalogue import Catalogue
from tocsin.cell_leases import CellLease
from tocsin.cells import Cell, Cells
from tocsin.db.pool import Database
from tocsin.ids import new_id
from tocsin.metrics import Metrics
from tocsin.preferences import Operator
from tocsin.pubsub import PubSub
from tocsin.push.lanes import Lane
from tocsin.retention import run
from tocsin.settings import Settings
from tocsin.signals import Pushing
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
from tocsin.store import API_CONNECTIONS, API_STATEMENT_TIMEOUT, WORKER_CONNECTIONS, pool, store
from tocsin.worker import Worker

REOPEN_INTERVAL = 5.0
"""Seconds after which a further cell that could not be opened, or was lost, is opened again."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """What serves one cell: its state, the pool and the lanes of its worker, and the worker, if it has one."""

    app_state: AppState
    database: Database
    lanes: Sequence[Lane]
    worker: Worker | None


@contextlib.asynccontextmanager
async def opened(  # noqa: PLR0913 - its collaborators
    settings: Settings,
    url: str,
    catalogue: Catalogue,
    verifier: Verifier,
    *,
    with_worker: bool,
    beside: AppState | None = None,
) -> AsyncIterator[Part]:
    """Open what serves one cell. A further cell is `beside` the default one."""
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(pool(url, API_CONNECTIONS, API_STATEMENT_TIMEOUT))
        with_worker = with_worker and not database.is_read_only
        counting = await stack.enter_async_context(pool(url, 1, API_STATEMENT_TIMEOUT))
        own = await stack.enter_async_context(pool(url, WORKER_CONNECTIONS, beats=True))
        bulk = await stack.enter_async_context(bulk_pool(settings, url))
        pubsub = await stack.enter_async_context(pubsub_for(settings, url, own))
        lanes = await stack.enter_async_context(open_lanes(settings))
        replica = await stack.enter_async_context(replica_for(settings, database))
        app_state = build_app_state(
            settings,
            catalogue,
            database,
            counting,
            pubsub,
            verifier,
            lanes,
            with_worker=with_worker,
            replica=replica,
            beside=beside,
        )
        stack.push_async_callback(app_state.limits.close)
        stack.push_async_callback(app_state.streams.finish)
        if app_state.provider:
            stack.push_async_callback(app_state.provider.close)
        if not with_worker and not database.is_read_only and app_state.intake.at_once:
            await stack.enter_async_context(in_background(app_state.intake.at_once.watch(own)))
        worker = None
        if with_worker:
            app_state.metrics.watch_pool("worker", own, settings.cell)
            worker = Worker(own, catalogue, pubsub, bulk, app_state.metrics)
            worker.posts = posts_of(own, catalogue, pubsub, app_state.disk, app_state.intake.at_once)
            worker.dispatcher = dispatcher_of(
                settings, lanes, worker, own, catalogue, app_state.operator, pubsub, app_state.metrics
            )
            forgetting = run(bulk, settings.retention_days, settings.audit_retention_days)
            await stack.enter_async_context(in_background(forgetting))
        yield Part(app_state, own, lanes, worker)


async def keep_open(  # noqa: PLR0913 - what it opens beside
    cell: Cell,
    settings: Settings,
    routing: Routing,
    beside: AppState,
    reloaded: list[Pushing],
    *,
    with_worker: bool,
) -> None:
    """Serve a further cell, and open it again after any error, until the task is cancelled.

    The others do not wait for it: until it is open, its users get 503.
    """
    own = cell.settings(settings)

    async def open_once() -> None:
        async with (
            store(own, alone=False, quiet=True) as url,
            opened(
                own,
                url,
                beside.catalogue,
                beside.verifier,
                with_worker=with_worker,
                beside=beside,
            ) as part,
        ):
            routing.states[cell.name] = part.app_state
            pushing = (part.lanes, part.worker.dispatcher if part.worker else None)
            reloaded.append(pushing)
            log.info("cell is open", cell=cell.name)
            beside.metrics.cell_worked(cell.name, is_worked=part.worker is not None)
            try:
                await _serve_cell(part)
            finally:
                beside.metrics.cell_worked(cell.name, is_worked=False)
                del routing.states[cell.name]
                reloaded.remove(pushing)
                part.app_state.streams.close()

    await _again_and_again(open_once, "cell cannot be served; it will be retried", cell)


async def _serve_cell(part: Part) -> None:
    """Receive the messages of a further cell and work its queues, until it is cancelled or its worker ends."""
    app_state, worker = part.app_state, part.worker
    listeners = [asyncio.create_task(each) for each in (app_state.pubsub.receive(), app_state.streams.watch())]
    working = [asyncio.create_task(worker.run())] if worker else []
    if worker:
        app_state.pubsub.handle_locally("settled")
    try:
        ended, _ = await asyncio.wait([*listeners, *working], return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        if worker:
            worker.stop()
        await asyncio.gather(*working, return_exceptions=True)
        await end(listeners)
        await app_state.pubsub.close()


@dataclass(frozen=True, slots=True)
class Shared:
    """What the workers of all cells of a process share. `reloaded` are the lanes whose keys are reloaded."""

    catalogue: Catalogue
    metrics: Metrics
    operator: Operator
    reloaded: list[Pushing]


@dataclass(frozen=True, slots=True)
class WorkerPart:
    """A worker of a process that serves nothing, with its pool and its pubsub."""

    worker: Worker
    database: Database
    pubsub: PubSub


@contextlib.asynccontextmanager
async def worker_of(settings: Settings, url: str, shared: Shared) -> AsyncIterator[WorkerPart]:
    """Open the worker of a cell, which is not yet run."""
    catalogue, metrics = shared.catalogue, shared.metrics
    async with (
        pool(url, WORKER_CONNECTIONS, beats=True) as database,
        bulk_pool(settings, url) as bulk,
        open_lanes(settings) as lanes,
        pubsub_for(settings, url, database) as pubsub,
    ):
        metrics.watch_pool("worker", database, settings.cell)
        worker = Worker(database, catalogue, pubsub, bulk, metrics)
        worker.dispatcher = dispatcher_of(
            settings, lanes, worker, database, catalogue, shared.operator, pubsub, metrics
        )
        at_once = AtOnce(catalogue, [lane.name for lane in lanes], metrics.inbox)
        worker.posts = posts_of(database, catalogue, pubsub, guard_of(settings), at_once)
        forgetting = run(bulk, settings.retention_days, settings.audit_retention_days)
        pushing = (lanes, worker.dispatcher)
        shared.reloaded.append(pushing)
        try:
            async with in_background(pubsub.receive()), in_background(forgetting):
                yield WorkerPart(worker, database, pubsub)
        finally:
            shared.reloaded.remove(pushing)
        await pubsub.close()


async def work_cells(cells: Cells, settings: Settings, shared: Shared) -> None:
    """Work the cells whose leases this process has, until the task is cancelled."""
    process_id = new_id()
    names = list(cells.by_name)
    async with asyncio.TaskGroup() as working:
        for number, name in enumerate(names):
            lease_in = partial(CellLease, process_id, name, number, len(names))
            working.create_task(_keep_working(cells.named(name), settings, shared, lease_in))


async def _keep_working(
    cell: Cell, settings: Settings, shared: Shared, lease_in: Callable[[Database], CellLease]
) -> None:
    """Work a cell while this process has its lease, and again after any error, until the task is cancelled."""
    own = cell.settings(settings)

    async def work_once() -> None:
        async with store(own, alone=False, quiet=True) as url, pool(url, 1) as database:
            lease = lease_in(database)
            async with lease.kept():
                while True:
                    await lease.until(held=True)
                    async with worker_of(own, url, shared) as part:
                        await _work_while_held(part.worker, lease, cell, shared.metrics)

    await _again_and_again(work_once, "cell cannot be worked; it will be retried", cell)


async def _work_while_held(worker: Worker, lease: CellLease, cell: Cell, metrics: Metrics) -> None:
    """Run the worker of a cell, and stop it when another process has the lease."""
    lease.worker_id = worker.id
    metrics.cell_worked(cell.name, is_worked=True)
    working, released = asyncio.create_task(worker.run()), asyncio.create_task(lease.until(held=False))
    try:
        await asyncio.wait([working, released], return_when=asyncio.FIRST_COMPLETED)
    finally:
        worker.stop()
        await end([released])
        await working
        lease.worker_id = None
        metrics.cell_worked(cell.name, is_worked=False)


async def _again_and_again(use: Callable[[], Awaitable[None]], failure: str, cell: Cell) -> None:
    """Use a cell, and again after any error, which stays without effect on the other cells."""
    while True:
        try:
            await use()
        except Exception as error:  # noqa: BLE001 - the other cells go on
            log.warning(failure, cell=cell.name, reason=str(error))
        await asyncio.sleep(REOPEN_INTERVAL)
