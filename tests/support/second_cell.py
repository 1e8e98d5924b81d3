"""`pytest --second-cell`: services of tests have two cells, and the second one has all companies of the tests."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

from asyncpg import DuplicateDatabaseError
from starlette.types import ASGIApp

from tocsin.api.app import service
from tocsin.api.cell_readiness import ReadinessOfCells
from tocsin.api.cells import Routing
from tocsin.api.state import AppState
from tocsin.auth.tokens import Verifier
from tocsin.catalogue import Catalogue
from tocsin.cells import Cell, CellEntry, Cells
from tocsin.db.connections import connect
from tocsin.db.migrate import migrate
from tocsin.db.pool import Database
from tocsin.ids import MAX_ID
from tocsin.pubsub import PubSub
from tocsin.settings import Settings
from tocsin.startup import build_app_state

FIRST, SECOND = "first", "second"

_DATABASE = re.compile(r"(?<=/)\w+(?=\?|$)")

_WITHOUT_A_NAME = re.compile(
    r"(/directory/(users|teams|import|imports|export)|/events/(by-key/.*|resolve)|/events|/operations/.*)(\?.*)?$"
)
"""Requests of a service of all companies by which no cell can be found."""

is_wanted = False
"""Whether the option is given."""


def path_in_cell(method: str, path: str) -> str:
    """Return the path of a request with the name of the cell, if it needs one."""
    if not is_wanted or not _WITHOUT_A_NAME.fullmatch(path) or (method, path.partition("?")[0]) == ("POST", "/events"):
        return path
    return f"{path}{'&' if '?' in path else '?'}cell={SECOND}"


@asynccontextmanager
async def first_cell(url: str, settings: Settings, catalogue: Catalogue, verifier: Verifier) -> AsyncIterator[AppState]:
    """Open a first cell, in a database of its own beside that of the url."""
    there = _DATABASE.sub("first_cell", url)
    connection = await connect(url)
    with suppress(DuplicateDatabaseError):
        await connection.execute("create database first_cell")
    await connection.close()
    await migrate(there)
    async with AsyncExitStack() as stack:
        pools = Database(there, 6, 5), Database(there, 1, 5)
        for pool in pools:
            await pool.open()
            stack.push_async_callback(pool.close)
        pubsub = PubSub(there, pools[0])
        app_state = build_app_state(settings, catalogue, *pools, pubsub, verifier, [], with_worker=False)
        stack.push_async_callback(app_state.limits.close)
        stack.push_async_callback(app_state.streams.finish)
        if app_state.provider:
            stack.push_async_callback(app_state.provider.close)
        await forget_limits(app_state)
        yield app_state


async def forget_limits(app_state: AppState) -> None:
    """Forget the requests that count towards rate limits: tests share callers and addresses."""
    app_state.limits._windows.clear()  # noqa: SLF001 - tests share users and their limits
    await app_state.database.rows("delete from rate_limits")


def service_of(first: AppState, second: AppState) -> ASGIApp:
    """Return the application that serves both cells."""
    routing = routing_of(first, second)
    return service(replace(first, readiness=ReadinessOfCells(routing.cells, routing.states)), routing=routing)


def routing_of(first: AppState, second: AppState) -> Routing:
    """Return what finds the cell of a request."""
    everyone = CellEntry.model_validate({"companies": [f"1-{MAX_ID}"]})
    cells = {FIRST: Cell(FIRST, CellEntry(default=True)), SECOND: Cell(SECOND, everyone)}
    routing = Routing(Cells(cells), first)
    routing.states[SECOND] = second
    return routing
