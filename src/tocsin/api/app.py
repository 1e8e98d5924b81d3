"""The service on one screen: all routes, the middleware, and what they lead to."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from tocsin.api import directory, events, inbox, operations, problems
from tocsin.api.doors import House
from tocsin.api.envelope import Envelope, Shortcut
from tocsin.errors import Problem

BUSY = {
    ("GET", "/notifications"): inbox.list_notifications,
    ("POST", "/events"): events.post_event,
}
"""The busiest doors, which the framework's models do not see."""


def build(house: House) -> FastAPI:
    """Return the ASGI application."""
    app = FastAPI(
        openapi_url=None,
        redirect_slashes=False,
        middleware=[Middleware(Envelope), Middleware(Shortcut, doors=BUSY)],
        exception_handlers={
            Problem: problems.of_ours,
            HTTPException: problems.of_the_framework,
            RequestValidationError: problems.of_a_model,
        },
    )
    app.state.house = house
    app.router.routes += [
        *(Route(path, endpoint, methods=[method]) for (method, path), endpoint in BUSY.items()),
        Route("/notifications", inbox.create_custom, methods=["POST"]),
        Route("/openapi.json", operations.openapi, methods=["GET"]),
        Route("/docs", operations.docs, methods=["GET"]),
        Route("/docs/{name}", operations.docs_asset, methods=["GET"]),
    ]
    for door in (inbox, events, directory, operations):
        app.include_router(door.router)
    return app
