"""The state of the application: the objects that routes use."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

from starlette.requests import Request
from starlette.types import Scope

from tocsin.api.framework import Depends, FastAPI
from tocsin.auth.oidc import SignInProvider
from tocsin.auth.tokens import Verifier
from tocsin.capacity import Capacity
from tocsin.catalogue import Catalogue
from tocsin.db.pool import Database
from tocsin.disk_guard import DiskGuard
from tocsin.events import Intake
from tocsin.marks import SingleMarks
from tocsin.metrics import Metrics
from tocsin.pages import Cursors
from tocsin.preferences import Operator
from tocsin.pubsub import PubSub
from tocsin.push.lanes import Lane
from tocsin.rate_limits import RateLimits
from tocsin.readiness import Readiness
from tocsin.replica import Reads
from tocsin.settings import Settings
from tocsin.streams import Streams

if TYPE_CHECKING:
    from tocsin.api.cell_lookups import Key
    from tocsin.api.cells import Routing
    from tocsin.api.one_cell import OneCell

APP_STATE = "tocsin.app_state"
"""The key in the scope of the state of the cell of a request, in a process that serves several cells."""

PLACED = "placed"
"""The key in the state of a request of how its cell was found."""


@dataclass(frozen=True, slots=True)
class AppState:
    """The objects of a service process, or of one of the cells that it serves."""

    settings: Settings
    database: Database
    catalogue: Catalogue
    operator: Operator
    pubsub: PubSub
    intake: Intake
    verifier: Verifier
    cursors: Cursors
    marks: SingleMarks
    reads: Reads
    streams: Streams
    limits: RateLimits
    disk: DiskGuard
    capacity: Capacity
    metrics: Metrics
    readiness: Readiness
    provider: SignInProvider | None = None
    lanes: Sequence[Lane] = ()


@dataclass(frozen=True, slots=True)
class Watched:
    """The objects for metrics and probes, in every process."""

    database: Database
    metrics: Metrics
    readiness: Readiness


class Application(FastAPI):
    """An application with its state. The attribute is faster than `app.state`, and each request reads it often."""

    app_state: AppState | Watched | None = None
    routing: "Routing | OneCell | None" = None
    """What finds the cell of a request, in a process that serves several (then `app_state` is the default cell's), or
    refuses those of other cells."""


def watched_of(request: Request) -> AppState | Watched:
    """Return the objects for metrics and probes."""
    return cast("AppState | Watched", request.scope["app"].app_state)


def app_state_of(request: Request) -> AppState:
    """Return the state of the application, or of the cell of a request."""
    scope = request.scope
    return cast("AppState", scope[APP_STATE] if APP_STATE in scope else scope["app"].app_state)


async def refuse_moved(scope: Scope) -> None:
    """Raise `Unavailable` if the company of a request has moved to another cell since the request was placed."""
    if (routing := scope["app"].routing) is not None:
        await routing.refuse_moved(scope)


async def in_other_cells(scope: Scope, own: AppState, keys: "Sequence[Key]") -> "Collection[Key]":
    """Return which users and teams, which a service puts into a cell, are in another cell of this process."""
    routing = scope["app"].routing
    return () if routing is None else await routing.in_other_cells(own, keys)


State = Annotated[AppState, Depends(app_state_of)]
WatchedState = Annotated[AppState | Watched, Depends(watched_of)]
