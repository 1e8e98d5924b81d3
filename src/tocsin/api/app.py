"""The service on one screen: all routes, the middleware, and what they lead to."""

from collections.abc import Iterable, Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
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
    kinds,
    notifications,
    operations,
    pages,
    preferences,
    stream,
    web_push,
)
from tocsin.api.auth import user_of
from tocsin.api.cors import Cors, Preflights
from tocsin.api.keyring import Keyring
from tocsin.api.middleware import Envelope, Shortcut
from tocsin.api.proxies import Prefix, Proxies
from tocsin.api.routes import Post, require_keys
from tocsin.api.state import AppState, Watched
from tocsin.errors import Problem

BUSY = (
    Route("/notifications", notifications.list_notifications, methods=["GET"]),
    Post("/events", events.writer_of, events.post_event),
    Route("/notifications/stream", stream.stream, methods=["GET"]),
)
"""The busiest routes and the stream, which bypass the framework's models."""


def service(app_state: AppState, further: Sequence[BaseRoute] = ()) -> ASGIApp:
    """Return the ASGI application: the framework's, with what surrounds every request; `further` are the demo's."""
    settings = app_state.settings
    framework = build(app_state)
    framework.router.routes += further
    busy = {("POST" if isinstance(route, Post) else "GET", route.path): route.endpoint for route in BUSY}
    app: ASGIApp = Shortcut(framework, busy)
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
    app.router.routes += [Route("/metrics", operations.open_metrics, methods=["GET"]), *console.routes]
    for router in (operations.watching, operations.router, events.router):
        _answer_heads(router.routes)
        app.include_router(router)
    require_keys(app.routes)
    guarded = Keyring(app, app_state.verifier) if app_state.settings.jwt_jwks_url else app
    return Envelope(guarded, app_state.metrics)


def watching_service(watched: Watched) -> ASGIApp:
    """Return the same for a process that only works: is it alive, is it ready, what did it do."""
    app = _framework(watched)
    app.router.routes.append(Route("/metrics", operations.open_metrics, methods=["GET"]))
    _answer_heads(operations.watching.routes)
    app.include_router(operations.watching)
    return Envelope(app, watched.metrics)


def build(app_state: AppState | None = None) -> FastAPI:
    """Return the framework's application, with all routes; without a house it can be described, not called."""
    app = _framework(app_state)
    app.router.routes += [
        *BUSY,
        Post("/notifications", user_of, notifications.create_custom),
        Post("/events/batch", events.writer_of, events.post_batch, events.MAX_BATCH_BODY_BYTES),
        Post("/events/resolve", events.resolver_of, events.post_resolution),
        Route("/openapi.json", operations.openapi, methods=["GET"]),
        Route("/docs", operations.docs, methods=["GET"]),
        Route("/docs/{name}", operations.docs_asset, methods=["GET"]),
        *(Route(f"/{name}", pages.file, methods=["GET"]) for name in pages.FILES),
        Route("/inbox-{version}.js", pages.inbox_of_version, methods=["GET"]),
    ]
    for router in (
        web_push.router,
        devices.router,
        kinds.router,
        preferences.router,
        notifications.router,
        events.router,
        events.writing,
        directory.router,
        imports.router,
        devices.directory,
        operations.watching,
        operations.router,
    ):
        _answer_heads(router.routes)
        app.include_router(router)
    if app_state is None or app_state.settings.operations_port is None:
        _answer_heads(operations.guarded.routes)
        app.include_router(operations.guarded)
        app.router.routes += console.routes
    require_keys(app.routes)
    return app


def _answer_heads(routes: Iterable[BaseRoute]) -> None:
    """Take HEAD wherever GET is taken: monitors ask so (RFC 9110, section 9.3.2)."""
    for route in routes:
        methods = getattr(route, "methods", None)
        if methods and "GET" in methods:
            methods.add("HEAD")


def _framework(app_state: AppState | Watched | None) -> FastAPI:
    app = FastAPI(
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={
            Problem: errors.of_ours,
            HTTPException: errors.of_the_framework,
            RequestValidationError: errors.of_a_model,
            Exception: errors.of_a_bug,
        },
    )
    app.state.app_state = app_state
    return app
