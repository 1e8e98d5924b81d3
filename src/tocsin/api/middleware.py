"""Middleware for every request: its id, headers, log line, timeouts and unexpected errors."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import structlog
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tocsin.api.arriving import COMPLETE
from tocsin.api.errors import BUG, answer_to
from tocsin.api.joining import is_whole, write_whole
from tocsin.api.limiting import STANDINGS, headers_of
from tocsin.api.state import PLACED
from tocsin.errors import InternalError, NotFound, Problem, Timeout, Unavailable
from tocsin.ids import new_request_id
from tocsin.logs import bind_request, log_request, shown_path
from tocsin.metrics import Metrics

if TYPE_CHECKING:
    from tocsin.api.repeats import Repeat

OF_EVERY_ANSWER = ((b"vary", b"Authorization"), (b"x-content-type-options", b"nosniff"))

STOPPING = "The service is stopping. Please try again."

NO_RESPONSE = 0
"""The status of a request without a response."""

ABORT = "tocsin.abort"
"""The key in the scope of a function that closes the connection at once."""

BEGINNING = "beginning"
"""The key in the state of a request of a function that is called when its response begins."""

REPEAT = "repeat"
"""The key in the state of a request of its `Repeat`, if its response may be sent again."""

CYCLE = "tocsin.cycle"
"""The key in the scope of the request cycle, which shows whether the body is complete, of the timeout per part, and of
the connection, which knows when the last part arrived."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_TRACE = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Endpoint = Callable[[Request], Awaitable[Response]]

log = structlog.get_logger(__name__)

_DEVICE_TOKEN = re.compile(rb"/(?:notifications|directory/users/[^/]+)/devices/([^/]+)")
_SLASH_OR_NUL = re.compile("%(?:00|2f)", re.IGNORECASE)
_PARAMETER = re.compile(r"\{(\w+)\}")
_ID = re.compile(r"(?<=/)[0-9A-Fa-f-]{36}(?=/|\Z)")
_ANY = "\0"
"""Stands for a parameter of a path: no path contains it."""


class Envelope:
    """ASGI middleware around the whole service. It handles all exceptions."""

    def __init__(self, app: ASGIApp, metrics: Metrics, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, add headers to its response, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = self._clock()
        request_id, trace_id = _ids_of(scope)
        bind_request(request_id, trace_id)
        scope.setdefault("state", {})["request_id"] = request_id
        response = _Response(scope, send, request_id)
        if b"%" in scope.get("raw_path", b"") and (found := _DEVICE_TOKEN.search(scope["raw_path"])):
            scope["path"] = _path_with_token(scope["raw_path"], *found.span(1))
        try:
            if "\0" in scope["path"]:  # PostgreSQL cannot search for NUL
                await answer_to(NotFound())(scope, receive, response.send)
            else:
                await self._app(scope, _in_time(scope, receive), response.send)
        except ClientDisconnect:
            # The framework has sent its 500 to the closed connection.
            response.status = NO_RESPONSE if BUG in scope["state"] else response.status
            log.info("client disconnected during its request")
        except asyncio.CancelledError:
            if response.status:
                raise
            await answer_to(Unavailable(STOPPING))(scope, receive, response.send)
        except Exception as error:  # noqa: BLE001 - it is logged
            problem = _as_problem(error, request_id)
            if not response.status:
                await answer_to(problem)(scope, receive, response.send)
            elif BUG not in scope["state"]:
                scope[ABORT]()  # the response is incomplete and must not look complete
        finally:
            COMPLETE.release(scope["state"])
            scope.pop(CYCLE, None)  # cycles, which only the garbage collector would free
            scope["state"].pop(PLACED, None)
            self._note(scope, response.status, began)

    def _note(self, scope: Scope, status: int, began: float) -> None:
        state: dict[str, Any] = scope["state"]
        caller, route = state.get("caller"), state.get("route")
        took = self._clock() - began
        if "is_stream" not in state:  # whose duration depends on the client
            self._metrics.request(scope["method"], route or _route_of(scope), status, took)
        if "is_quiet" in state:
            return
        path = route or shown_path(scope["path"])
        log_request(scope["method"], path, status, round(took * 1000, 2), caller.label if caller else None)


class _Response:
    """Sends a response with the headers of every response; one whose body is known, by one call."""

    __slots__ = ("_begun", "_cycle", "_request_id", "_scope", "_send", "status")

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self.status = NO_RESPONSE
        self._scope, self._send, self._request_id = scope, send, request_id
        cycle = scope[CYCLE][0] if CYCLE in scope else None
        self._cycle = cycle if cycle is not None and send == cycle.send else None  # else, others change the response
        self._begun: Message | None = None

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start":
            self._seal(message)
            if self._cycle is not None and is_whole(message):
                self._begun = message
                return
        elif self._begun is not None:
            start, self._begun = self._begun, None
            if not message.get("more_body") and write_whole(self._cycle, start, message.get("body", b"")):
                if REPEAT in self._scope["state"]:
                    self._remember(self._scope["state"][REPEAT], start)
                return
            await self._send(start)
        await self._send(message)

    def _remember(self, repeat: "Repeat", start: Message) -> None:
        repeat.take(start["headers"])
        cycle, _, connection = self._scope[CYCLE]
        connection.remember(cycle, repeat)

    def _seal(self, start: Message) -> None:
        self.status = start["status"]
        state = self._scope["state"]
        if BEGINNING in state:
            state[BEGINNING]()
        headers = start["headers"]
        headers += [(b"x-request-id", self._request_id.encode()), *OF_EVERY_ANSWER]
        if STANDINGS in state:
            headers += headers_of(state)
        if self.status == Timeout.status:
            headers.append((b"connection", b"close"))
        for name, _ in headers:
            if name == b"cache-control":
                break
        else:
            headers.append((b"cache-control", b"no-store"))


def _route_of(scope: Scope) -> str:
    """Return the template of the path of a request, or `none`. The number of templates is limited."""
    return str(getattr(scope.get("route"), "path", "none"))


class Shortcut:
    """ASGI middleware that calls the handlers of the busiest routes itself.

    The framework's routing is a quarter of their cost. `routes` are by method and path; a path has at most one
    parameter, which is a UUID.
    """

    def __init__(self, app: FastAPI, routes: Mapping[tuple[str, str], Endpoint]) -> None:
        self._app = app
        self._routes: dict[tuple[str, str], tuple[str, str, Endpoint]] = {}
        for (method, path), endpoint in routes.items():
            name = _PARAMETER.search(path)
            self._routes[method, _PARAMETER.sub(_ANY, path)] = (path, name[1] if name else "", endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request to one of these routes, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        found = self._routes.get((method, path))
        if found is None and (id_ := _ID.search(path)):
            found = self._routes.get((method, f"{path[: id_.start()]}{_ANY}{path[id_.end() :]}"))
            if found:
                scope["path_params"] = {found[1]: id_[0]}
        if found is None:
            await self._app(scope, receive, send)
            return
        template, _, endpoint = found
        scope["app"] = self._app
        scope.setdefault("state", {})["route"] = template
        try:
            response = await endpoint(Request(scope, receive))
        except Problem as problem:
            response = answer_to(problem)
        await response(scope, receive, send)


def _as_problem(error: Exception, request_id: str) -> Problem:
    if isinstance(error, Problem):
        return error
    log.error("request failed with an internal error", exc_info=error)
    return InternalError(request_id)


def _in_time(scope: Scope, receive: Receive) -> Receive:
    """Return a `receive` that raises `Timeout` if a part of an incomplete body does not arrive in time."""
    if CYCLE not in scope:
        return receive
    cycle, patience, connection = scope[CYCLE]
    if not cycle.more_body:
        return receive
    is_whole = False

    async def receive_in_time() -> Message:
        nonlocal is_whole
        if is_whole:
            return await receive()
        while True:
            due = connection.part_at + patience
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                if connection.part_at + patience <= due:
                    raise Timeout from None
            else:
                is_whole = not message.get("more_body")
                return message

    return receive_in_time


def _path_with_token(raw: bytes, start: int, end: int) -> str:
    """Return the decoded path of a request that names a device. A slash and NUL in its token become U+FFFD.

    That is what bytes become that are not UTF-8. A token with it is invalid, while a slash would make another path.
    """
    path = str(raw, "ascii")
    return unquote(path[:start] + _SLASH_OR_NUL.sub("\ufffd", path[start:end]) + path[end:])


def _ids_of(scope: Scope) -> tuple[str, str | None]:
    """Return the request id and the W3C trace id.

    Valid ids of the caller are used, so that log lines can be correlated. Otherwise a request id is generated.
    """
    request_id = trace_id = None
    for name, value in scope["headers"]:
        if name == b"x-request-id" and request_id is None and _REQUEST_ID.fullmatch(value):
            request_id = str(value, "ascii")
        elif name == b"traceparent" and trace_id is None and _TRACE.fullmatch(value):
            trace_id = str(value[3:35], "ascii")
    return request_id or new_request_id(), trace_id
