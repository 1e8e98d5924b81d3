"""Error responses: all errors, also those of the framework, have the same format."""

from collections.abc import Iterable

from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from tocsin.errors import InternalError, Malformed, MethodNotAllowed, NotFound, Problem
from tocsin.notifications import to_json

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


BUG = "is_bug"
"""Set in the state of a request after an unexpected error, which `Envelope` logs."""


def answer_to(problem: Problem) -> Response:
    """Return the response for a problem."""
    return Response(
        to_json(problem.answer()), status_code=problem.status, headers=problem.headers, media_type="application/json"
    )


async def on_problem(request: Request, error: Exception) -> Response:
    """Return the response for a problem: 405 if a path such as `/events/batch` was taken for one with an id."""
    assert isinstance(error, Problem)  # noqa: S101 - registered for this type alone
    if isinstance(error, NotFound) and (own := _own_methods(request)) and request.method not in own:
        return answer_to(MethodNotAllowed(own))
    return answer_to(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Return the response for an error of the framework."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type alone
    match error.status_code:
        case 404:
            return answer_to(NotFound())
        case 405:
            return answer_to(MethodNotAllowed(_allowed(request)))
        case _:
            return answer_to(Malformed(str(error.detail)))


async def on_unexpected_error(request: Request, _error: Exception) -> Response:
    """Return the response for an unexpected error."""
    setattr(request.state, BUG, True)
    return answer_to(InternalError(request.state.request_id))


def _allowed(request: Request) -> Iterable[str]:
    """Return the methods of all routes that match the path: the framework returns only those of the first.

    If there are routes with exactly this path, routes that match it as a parameter are ignored.
    """
    return _own_methods(request) or [
        method for method in METHODS if any(_takes(route, request, method) for route in request.app.routes)
    ]


def _own_methods(request: Request) -> set[str]:
    """Return the methods of the routes with exactly this path, without parameters."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return {
        method
        for context in iter_route_contexts(request.app.routes)
        if str(context.path) == path
        for method in context.methods or ()
    }


def _takes(route: BaseRoute, request: Request, method: str) -> bool:
    return route.matches({**request.scope, "method": method})[0] is Match.FULL
