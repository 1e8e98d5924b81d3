"""The ASGI applications: all routes and the middleware around them."""

from collections.abc import Iterable, Sequence

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from tocsin.api import (
    console,
    devices,
    directory,
    docs,
    errors,
    events,
    imports,
    notifications,
    operations,
    pages,
    preferences,
    stream,
)
from tocsin.api.cells import Routing
from tocsin.api.cors import Cors, Preflights
from tocsin.api.keyring import Keyring
from tocsin.api.middleware import Envelope, Shortcut
from tocsin.api.one_cell import OneCell
from tocsin.api.proxies import Prefix, Proxies
from tocsin.api.routes import ApiRoute, Handler, require_keys
from tocsin.api.slots import Bounded
from tocsin.api.state import Application, AppState, Watched
from tocsin.errors import Problem
from tocsin.settings import Settings

BUSY = (
    "GET /notifications",
    "GET /notifications/changes",
    "GET /notifications/stream",
    "GET /notifications/{notification_id}",
    "PUT /notifications/{notification_id}/read",
    "PUT /notifications/{notification_id}/unread",
    "DELETE /notifications/{notification_id}",
    "POST /events",
    "GET /events/{event_id}",
)
"""The busiest routes and the stream, which bypass the routing of the framework."""

ROUTERS = (
    devices.routes,
    preferences.routes,
    stream.routes,
    notifications.routes,
    events.writing,
    events.routes,
    directory.routes,
    imports.routes,
    operations.watching,
    operations.routes,
)
"""The routers in order: if two paths match a request, the first is used."""


def service(
    app_state: AppState, further: Sequence[BaseRoute] = (), routing: Routing | OneCell | None = None
) -> ASGIApp:
    """Return the ASGI application with its middleware. `further` are additional routes, such as those of the demo.

    With `routing`, requests are those of several cells, and `app_state` is the default cell's.
    """
    settings = app_state.settings
    framework = build(app_state)
    framework.routing = routing
    framework.router.routes += further
    app: ASGIApp = Bounded(Shortcut(framework, busy(framework.routes)), app_state.capacity)
    if settings.jwt_jwks_url:
        app = Keyring(app, app_state.verifier)
    if settings.root_path:
        app = Prefix(app, settings.root_path)
    app = (
        Cors(Envelope(Preflights(app), app_state.metrics), settings.cors_origins)
        if settings.cors_origins
        else Envelope(app, app_state.metrics)
    )
    return _behind_proxies(app, settings)


def operations_service(app_state: AppState, routing: Routing | OneCell | None = None) -> ASGIApp:
    """Return the application for the port for operations, where metrics require no token."""
    app = _framework(app_state)
    app.routing = routing
    app.router.routes += [
        Route("/metrics", operations.open_metrics, methods=["GET"]),
        *console.routes,
        *operations.watching.routes,
        *operations.routes.routes,
        *events.routes.routes,
    ]
    require_keys(app.routes)
    guarded = Keyring(app, app_state.verifier) if app_state.settings.jwt_jwks_url else app
    return _behind_proxies(Envelope(guarded, app_state.metrics), app_state.settings)


def watching_service(watched: Watched) -> ASGIApp:
    """Return the application of a worker process: health, readiness and metrics."""
    app = _framework(watched)
    app.router.routes += [Route("/metrics", operations.open_metrics, methods=["GET"]), *operations.watching.routes]
    return Envelope(app, watched.metrics)


def build(app_state: AppState | None = None) -> Application:
    """Return the FastAPI application with all routes. Without a state, it can only be described."""
    app = _framework(app_state)
    app.router.routes += [
        *docs.routes,
        *(Route(f"/{name}", pages.file, methods=["GET"]) for name in pages.FILES),
        Route("/inbox-{version}.js", pages.inbox_of_version, methods=["GET"]),
        *(route for router in ROUTERS for route in router.routes),
    ]
    if app_state is None or app_state.settings.operations_port is None:
        app.router.routes += [*operations.guarded.routes, *console.routes]
    require_keys(app.routes)
    return app


def busy(routes: Iterable[BaseRoute]) -> dict[tuple[str, str], Handler]:
    """Return the handlers of the busiest routes, by method and path."""
    return {
        (method, route.path): route.answer
        for route in routes
        if isinstance(route, ApiRoute)
        for method in route.methods
        if f"{method} {route.path}" in BUSY
    }


def _behind_proxies(app: ASGIApp, settings: Settings) -> ASGIApp:
    return Proxies(app, settings.trusted_proxies) if settings.trusted_proxies else app


def _framework(app_state: AppState | Watched | None) -> Application:
    app = Application(
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={
            Problem: errors.on_problem,
            HTTPException: errors.on_http_exception,
            Exception: errors.on_unexpected_error,
        },
    )
    app.app_state = app_state
    return app
