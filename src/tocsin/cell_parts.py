"""The parts of a process that serve a cell, or work for it, and the tasks that keep those of further cells open."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import structlog

from tocsin.api.cells import Routing
from tocsin.api.state import AppState, Watched
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
from tocsin.readiness import Readiness
from tocsin.retention import run
from tocsin.retry_delay import Reasons
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

LOOKING_CONNECTIONS = 2
"""Connections of a worker process to each cell: for its lease, and for counting what waits there."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Base:
    """What a process opens of a cell to work it: the pools of its queues, and its messages."""

    settings: Settings
    database: Database
    bulk: Database
    pubsub: PubSub


@dataclass(frozen=True, slots=True)
class Part:
    """What serves one cell: its state and the lanes of its test pushes, and what a worker of it needs."""

    app_state: AppState
    base: Base
    lanes: Sequence[Lane]


@dataclass(frozen=True, slots=True)
class Shared:
    """What the workers of all cells of a process share.

    `reloaded` are the lanes whose keys are reloaded, `cells` those that a process which serves nothing looks at.
    """

    catalogue: Catalogue
    metrics: Metrics
    operator: Operator
    reloaded: list[Pushing] = field(default_factory=list)
    cells: dict[str, Watched] = field(default_factory=dict)

    @contextlib.contextmanager
    def reloading(self, pushing: Pushing) -> Iterator[None]:
        """Reload the keys of these lanes for as long as the block runs."""
        self.reloaded.append(pushing)
        try:
            yield
        finally:
            self.reloaded.remove(pushing)


@contextlib.asynccontextmanager
async def base_of(settings: Settings, url: str) -> AsyncIterator[Base]:
    """Open what a worker of a cell needs."""
    async with (
        pool(url, WORKER_CONNECTIONS, beats=True) as database,
        bulk_pool(settings, url) as bulk,
        pubsub_for(settings, url, database) as pubsub,
    ):
        yield Base(settings, database, bulk, pubsub)


@contextlib.asynccontextmanager
async def listening(settings: Settings, url: str) -> AsyncIterator[Base]:
    """Open what a worker of a cell needs in a process that serves nothing, and receive the messages."""
    async with base_of(settings, url) as base:
        async with in_background(base.pubsub.receive()):
            yield base
        await base.pubsub.close()


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
    """Open what serves one cell. A further cell is `beside` the default one.

    `with_worker`: the process has a worker of the cell for as long as it serves it.
    """
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(pool(url, API_CONNECTIONS, API_STATEMENT_TIMEOUT))
        counting = await stack.enter_async_context(pool(url, 1, API_STATEMENT_TIMEOUT))
        base = await stack.enter_async_context(base_of(settings, url))
        lanes = await stack.enter_async_context(open_lanes(settings))
        replica = await stack.enter_async_context(replica_for(settings, database))
        app_state = build_app_state(
            settings,
            catalogue,
            database,
            counting,
            base.pubsub,
            verifier,
            lanes,
            with_worker=with_worker and not database.is_read_only,
            replica=replica,
            beside=beside,
        )
        stack.push_async_callback(app_state.limits.close)
        stack.push_async_callback(app_state.streams.finish)
        if app_state.provider:
            stack.push_async_callback(app_state.provider.close)
        at_once = app_state.intake.at_once
        if not with_worker and not database.is_read_only and at_once:
            await stack.enter_async_context(in_background(at_once.watch(base.database)))
        yield Part(app_state, base, lanes)


@contextlib.asynccontextmanager
async def worker_of(base: Base, shared: Shared, lanes: Sequence[Lane]) -> AsyncIterator[Worker]:
    """Build the worker of a cell, which is not yet run, and delete what is old beside it."""
    settings, database, metrics = base.settings, base.database, shared.metrics
    metrics.watch_pool("worker", database, settings.cell)
    worker = Worker(database, shared.catalogue, base.pubsub, base.bulk, metrics)
    worker.dispatcher = dispatcher_of(
        settings, lanes, worker, database, shared.catalogue, shared.operator, base.pubsub, metrics
    )
    at_once = AtOnce(shared.catalogue, [lane.name for lane in lanes], metrics.inbox)
    worker.posts = posts_of(database, shared.catalogue, base.pubsub, guard_of(settings), at_once)
    forgetting = run(base.bulk, settings.retention_days, settings.audit_retention_days)
    with shared.reloading((lanes, worker.dispatcher)):
        async with in_background(forgetting):
            yield worker


@dataclass(frozen=True, slots=True)
class Leases:
    """The leases of this process on several cells."""

    cells: Cells
    process_id: UUID = field(default_factory=new_id)

    def of(self, cell: Cell, database: Database) -> CellLease:
        """Return the lease of a cell, which is in its database."""
        names = list(self.cells.by_name)
        return CellLease(self.process_id, cell.name, names.index(cell.name), len(names), database)


async def keep_open(  # noqa: PLR0913, PLR0917 - what it opens beside
    cell: Cell, settings: Settings, routing: Routing, beside: AppState, shared: Shared, leases: Leases | None
) -> None:
    """Serve a further cell, and open it again after any error, until the task is cancelled.

    The others do not wait for it: until it is open, its users get 503. With `leases`, it is worked, too.
    """
    own = cell.settings(settings)

    async def open_once() -> None:
        async with (
            store(own, alone=False, quiet=True) as url,
            opened(own, url, beside.catalogue, beside.verifier, with_worker=False, beside=beside) as part,
        ):
            await routing.add(cell.name, part.app_state)
            log.info("cell is open", cell=cell.name)
            try:
                with shared.reloading((part.lanes, None)):
                    await _serve_cell(part, cell, shared, leases)
            finally:
                del routing.states[cell.name]
                part.app_state.streams.close()

    await _again_and_again(open_once, "cell cannot be served; it will be retried", cell)


async def _serve_cell(part: Part, cell: Cell, shared: Shared, leases: Leases | None) -> None:
    """Receive the messages of a further cell and work its queues, until it is cancelled or one of both ends."""
    app_state = part.app_state
    tasks = [asyncio.create_task(each) for each in (app_state.pubsub.receive(), app_state.streams.watch())]
    if leases and not app_state.database.is_read_only:
        tasks.append(asyncio.create_task(work_served(part, cell, shared, leases)))
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        await end(tasks)
        await app_state.pubsub.close()


async def work_served(part: Part, cell: Cell, shared: Shared, leases: Leases) -> None:
    """Work a cell that this process serves while it has the lease, until the task is cancelled."""

    @contextlib.asynccontextmanager
    async def served() -> AsyncIterator[Base]:
        yield part.base

    async def work_once() -> None:
        await _work_while_held(leases.of(cell, part.base.database), served, cell, shared)

    await _again_and_again(work_once, "cell cannot be worked; it will be retried", cell)


async def work_cells(cells: Cells, settings: Settings, shared: Shared) -> None:
    """Work the cells whose leases this process has, until the task is cancelled."""
    leases = Leases(cells)
    async with asyncio.TaskGroup() as working:
        for cell in cells:
            shared.metrics.cell_worked(cell.name, is_worked=False)
            working.create_task(_keep_working(cell, settings, shared, leases))


async def _keep_working(cell: Cell, settings: Settings, shared: Shared, leases: Leases) -> None:
    """Work a cell while this process has its lease, and again after any error, until the task is cancelled."""
    own = cell.settings(settings)

    async def work_once() -> None:
        async with store(own, alone=False, quiet=True) as url, pool(url, LOOKING_CONNECTIONS) as database:
            shared.cells[cell.name] = Watched(database, shared.metrics, Readiness(database, guard_of(own)))
            try:
                await _work_while_held(leases.of(cell, database), partial(listening, own, url), cell, shared)
            finally:
                del shared.cells[cell.name]

    await _again_and_again(work_once, "cell cannot be worked; it will be retried", cell)


async def _work_while_held(
    lease: CellLease, open_base: Callable[[], AbstractAsyncContextManager[Base]], cell: Cell, shared: Shared
) -> None:
    """Work a cell whenever this process has the lease, until the task is cancelled. Raises the errors of the worker."""
    async with lease.kept():
        while True:
            await lease.until(held=True)
            async with (
                open_base() as base,
                open_lanes(base.settings) as lanes,
                worker_of(base, shared, lanes) as worker,
            ):
                await _run_while_held(worker, lease, cell, shared.metrics)


async def _run_while_held(worker: Worker, lease: CellLease, cell: Cell, metrics: Metrics) -> None:
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
    reasons = Reasons()
    while True:
        try:
            await use()
        except Exception as error:  # noqa: BLE001 - the other cells go on
            if reasons.is_due(str(error)):
                log.warning(failure, cell=cell.name, reason=str(error))
        await asyncio.sleep(REOPEN_INTERVAL)
