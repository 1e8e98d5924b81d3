"""The processes that work divide the cells among themselves.

Each process that can work a cell says so in the database of that cell, every few seconds, and decides by what it finds
there whether to work it. So a cell that is away changes nothing for the others, and no process has to know another one.
While the lists of all cells are the same, each cell has a process, and all have almost the same number of cells.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from uuid import UUID

import structlog

from tocsin.background import in_background
from tocsin.backoff import Backoff
from tocsin.db.admission import HEARTBEAT, KIND
from tocsin.db.connections import Connection
from tocsin.db.pool import Database, fetch
from tocsin.db.statements import queries
from tocsin.jobs import LEASE_TIMEOUT, process_name

LOOK_INTERVAL = 2.0
"""Seconds between two looks of a process at a cell."""

LOST_AFTER = 6.0
"""Seconds without a look after which a process is lost."""

PATIENCE = 10.0
"""Seconds without any worker after which a process works a cell that another one should work, but cannot."""

_SQL = queries("cell_leases")

log = structlog.get_logger(__name__)


class CellLease:
    """Whether this process works a cell, which is number `cell` of all `cells`.

    `worker_id` is its worker while it works the cell.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - numbers
        self,
        process_id: UUID,
        name: str,
        cell: int,
        cells: int,
        database: Database,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker_id: UUID | None = None
        self.is_held = False
        self._database = database
        self._process_id = process_id
        self._name = name
        self._cell, self._cells = cell, cells
        self._clock = clock
        self._without_worker_since: float | None = None
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Look at the cell for as long as the block runs."""
        try:
            async with in_background(self._keep()):
                yield
        finally:
            with contextlib.suppress(Exception):  # the others find that it is lost
                await self._database.rows(_SQL["leave"], self._process_id)

    async def _keep(self) -> None:
        KIND.set(HEARTBEAT)  # a lease is not lost because all connections are in use
        backoff = Backoff(f"lease of cell {self._name}")
        await backoff.attempt(self.look)
        await backoff.repeat(self.look, LOOK_INTERVAL)

    async def until(self, *, held: bool) -> None:
        """Wait until this process is to work the cell, or until it is not."""
        while self.is_held != held:
            self._changed.clear()
            await self._changed.wait()

    async def look(self) -> None:
        """Note that this process is there, and decide whether it works the cell.

        It stops only when another one works, so that there is always one.
        """
        values = self._process_id, process_name(), self.worker_id, LOST_AFTER, LEASE_TIMEOUT
        [found] = await self._database.rows(_SQL["look"], *values)
        now = self._clock()
        if found["workers"] or self.worker_id:
            self._without_worker_since = None
        elif self._without_worker_since is None:
            self._without_worker_since = now
        if is_worked_by(found["place"], found["processes"], self._cell, self._cells):
            self._hold(is_held=True)
        elif found["workers"]:
            self._hold(is_held=False)
        elif self._without_worker_since is not None and now - self._without_worker_since > PATIENCE:
            self._hold(is_held=True)

    def _hold(self, *, is_held: bool) -> None:
        if is_held != self.is_held:
            log.info("cell lease taken" if is_held else "cell lease released", cell=self._name)
        self.is_held = is_held
        self._changed.set()


def is_worked_by(place: int, processes: int, cell: int, cells: int) -> bool:
    """Return whether the process at a place of several works a cell: if there are more processes, each has one cell."""
    return place % cells == cell if processes >= cells else cell % processes == place


async def processes_of(database: Database | Connection) -> int:
    """Return how many processes divide the cells among themselves, as this cell sees it."""
    [row] = await fetch(database, _SQL["processes"], LOST_AFTER)
    count: int = row["count"]
    return count
