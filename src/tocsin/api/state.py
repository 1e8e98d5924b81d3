"""The state of the application: the objects that routes use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, FastAPI
from starlette.requests import Request

from tocsin.auth.oidc import SignInProvider
from tocsin.auth.tokens import Verifier
from tocsin.capacity import Capacity
from tocsin.catalogue import Catalogue
from tocsin.db.pool import Database
from tocsin.disk_guard import DiskGuard
from tocsin.events import Intake
from tocsin.inbox import Cursors
from tocsin.metrics import Metrics
from tocsin.preferences import Operator
from tocsin.pubsub import PubSub
from tocsin.push.lanes import Lane
from tocsin.rate_limits import RateLimits
from tocsin.readiness import Readiness
from tocsin.replica import Reads
from tocsin.settings import Settings
from tocsin.streams import Streams


@dataclass(frozen=True, slots=True)
class AppState:
    """The objects of a service process."""

    settings: Settings
    database: Database
    catalogue: Catalogue
    operator: Operator
    pubsub: PubSub
    intake: Intake
    verifier: Verifier
    cursors: Cursors
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


def watched_of(request: Request) -> AppState | Watched:
    """Return the objects for metrics and probes."""
    return cast("AppState | Watched", request.scope["app"].app_state)


def app_state_of(request: Request) -> AppState:
    """Return the state of the application."""
    return cast("AppState", request.scope["app"].app_state)


State = Annotated[AppState, Depends(app_state_of)]
WatchedState = Annotated[AppState | Watched, Depends(watched_of)]
