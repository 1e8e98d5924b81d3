"""The service on one screen: all routes, the middleware, and what they lead to."""

from collections.abc import Iterable, Sequence

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from tocsin.api import (
    console,
    devices,
    directory,
    errors,
    events,
    imports,
    notifications,
    operations,
    pages,
    preferences,
    stream,
)
from tocsin.api.cors import Cors, Preflights
from tocsin.api.keyring import Keyring
from tocsin.api.middleware import Envelope, Shortcut
from tocsin.api.proxies import Prefix, Proxies
from tocsin.api.routes import ApiRoute, Handler, require_keys
from tocsin.api.state import AppState, Watched
from tocsin.errors import Problem

BUSY = ("GET /notifications", "POST /events", "GET /notifications/stream")
"""The busiest routes and the stream, whose requests do not go through the framework's routing."""

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
"""Where two paths match a request, the first does."""


def service(app_state: AppState, further: Sequence[BaseRoute] = ()) -> ASGIApp:
    """Return the ASGI application: the framework's, with what surrounds every request; `further` are the demo's."""
    settings = app_state.settings
    framework = build(app_state)
    framework.router.routes += further
    app: ASGIApp = Shortcut(framework, busy(framework.routes))
    if settings.jwt_jwks_url:
        app = Keyring(app, app_state.verifier)
    if settings.root_path:
        app = Prefix(app, settings.root_path)
    app = (
        Cors(Envelope(Preflights(app), app_state.metrics), settings.cors_origins)
        if settings.cors_origins
        else Envelope(app, app_state.metrics)
    )
    return Proxies(app, settings.trusted_proxies) if settings.trusted_proxies else app


def operations_service(app_state: AppState) -> ASGIApp:
    """Return what a port of its own serves to those who run the service; metrics need no token there."""
    app = _framework(app_state)
    app.router.routes += [
        Route("/metrics", operations.open_metrics, methods=["GET"]),
        *console.routes,
        *operations.watching.routes,
        *operations.routes.routes,
        *events.routes.routes,
    ]
    require_keys(app.routes)
    guarded = Keyring(app, app_state.verifier) if app_state.settings.jwt_jwks_url else app
    return Envelope(guarded, app_state.metrics)


def watching_service(watched: Watched) -> ASGIApp:
    """Return the same for a process that only works: is it alive, is it ready, what did it do."""
    app = _framework(watched)
    app.router.routes += [Route("/metrics", operations.open_metrics, methods=["GET"]), *operations.watching.routes]
    return Envelope(app, watched.metrics)


def build(app_state: AppState | None = None) -> FastAPI:
    """Return the framework's application, with all routes; without its state it can be described, not called."""
    app = _framework(app_state)
    app.router.routes += [
        Route("/openapi.json", operations.openapi, methods=["GET"]),
        Route("/docs", operations.docs, methods=["GET"]),
        Route("/docs/{name}", operations.docs_asset, methods=["GET"]),
        *(Route(f"/{name}", pages.file, methods=["GET"]) for name in pages.FILES),
        Route("/inbox-{version}.js", pages.inbox_of_version, methods=["GET"]),
        *(route for router in ROUTERS for route in router.routes),
    ]
    if app_state is None or app_state.settings.operations_port is None:
        app.router.routes += [*operations.guarded.routes, *console.routes]
    require_keys(app.routes)
    return app


def busy(routes: Iterable[BaseRoute]) -> dict[tuple[str, str], Handler]:
    """Return what handles the busiest of these routes, by method and path."""
    return {
        (method, route.path): route.handler
        for route in routes
        if isinstance(route, ApiRoute)
        for method in route.methods
        if f"{method} {route.path}" in BUSY
    }


def _framework(app_state: AppState | Watched | None) -> FastAPI:
    app = FastAPI(
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={
            Problem: errors.of_ours,
            HTTPException: errors.of_the_framework,
            Exception: errors.of_a_bug,
        },
    )
    app.state.app_state = app_state
    return app
