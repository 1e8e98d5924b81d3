"""Requests that clients repeat byte by byte: a list that did not change is answered without parsing them again."""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from starlette.requests import Request
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from tocsin.api.limiting import STANDINGS, headers_of
from tocsin.api.middleware import REPEAT, STOPPING
from tocsin.api.refusing import Header, response_to
from tocsin.api.state import app_state_of
from tocsin.auth.claims import UserCaller
from tocsin.auth.tokens import required_bearer
from tocsin.capacity import kind_of
from tocsin.db.admission import KIND
from tocsin.errors import Overrun, Problem, Unavailable
from tocsin.ids import new_request_id
from tocsin.logs import bind_request, log_request

MAX_REPEATS, MAX_BYTES = 2_000, 2_000
"""Maximum requests of a process that are remembered, and maximum bytes of each."""

NOT_MODIFIED = 304

_END = b"\r\n\r\n"

_LIMIT = "user-requests"
_OWN = frozenset({b"x-request-id", b"ratelimit-policy", b"ratelimit"})
"""Headers of each single response."""

_DIFFERENT = frozenset({b"origin", b"traceparent", b"x-request-id"})
"""Headers of requests whose responses or log lines differ, or that differ in each request."""


class Repeat:
    """The answer 304 to a request for a list, which answers the same request again while the list does not change.

    The same bytes from the same address are the same request. What else can change is checked each time: the token, the
    rate limit, the capacity of the process, whether the user is active, and the inbox.
    """

    __slots__ = ("_app_state", "_cursor", "_kind", "_lines", "_route", "_token", "_user")

    def __init__(self, request: Request, user: UserCaller, cursor: str) -> None:
        self._app_state, self._user, self._cursor = app_state_of(request), user, cursor
        self._token = required_bearer(request.headers["authorization"].strip())
        self._route, self._kind = request.scope["state"]["route"], kind_of("GET", request.scope["path"])
        self._lines = b""

    def take(self, headers: Sequence[Header]) -> None:
        """Take the headers of the response, as they were sent."""
        self._lines = _lines(header for header in headers if header[0] not in _OWN)

    async def response(self, default_headers: Callable[[], Iterable[Header]]) -> bytes | None:
        """Return the response to the same request, and log it; None if the request has to be processed.

        If the database fails, that is the response: to process the request would take the same time again.
        """
        began = time.perf_counter()
        request_id = new_request_id()
        bind_request(request_id)
        KIND.set(self._kind)
        app_state = self._app_state
        app_state.verifier.begin()
        if app_state.verifier.verify(self._token) != self._user:
            return None
        limit = app_state.limits.of(_LIMIT)
        standing = app_state.limits.take_at_once(limit, str(self._user.id)) if limit else None
        if limit and not standing:
            return None
        problem: Problem | None = None
        is_answered = False
        try:
            is_answered = await self._is_same()
        except (Unavailable, Overrun) as error:
            problem, is_answered = error.with_traceback(None), True  # else, it is in a cycle with this frame
        except asyncio.CancelledError:
            problem, is_answered = Unavailable(STOPPING), True
        finally:
            if standing and not is_answered:  # the request is counted when it is processed
                app_state.limits.give_back(standing, 1)
        if not is_answered:
            return None
        status, took = problem.status if problem else NOT_MODIFIED, time.perf_counter() - began
        app_state.metrics.request("GET", self._route, status, took)
        log_request("GET", self._route, status, round(took * 1000, 2), self._user.label)
        counted = headers_of({STANDINGS: {_LIMIT: standing}}) if standing else ()
        if problem:
            return response_to(problem, default_headers(), counted, request_id)
        lines = _lines((*default_headers(), (b"x-request-id", request_id.encode()), *counted))
        return b"%b%b%b\r\n" % (STATUS_LINE[status], lines, self._lines)

    async def _is_same(self) -> bool:
        capacity = self._app_state.capacity
        slot = capacity.enter_at_once(self._kind)
        if slot is None:
            return False
        try:
            return await self._app_state.cursors.of(self._user) == self._cursor
        finally:
            capacity.leave(slot)


Repeats = dict[Hashable, Repeat]
"""The requests that are remembered, by their bytes and addresses."""


def is_one_head(data: bytes) -> bool:
    """Return whether these bytes look like one request without a body, which is short enough to be remembered."""
    return len(data) <= MAX_BYTES and data.startswith(b"GET ") and data.find(_END) == len(data) - len(_END)


def offer(request: Request, user: UserCaller, cursor: str) -> None:
    """Answer the same request by the same 304 as long as the inbox has this cursor.

    With several cells, each request is processed, because the company of the user can move.
    """
    scope: Any = request.scope
    if scope["app"].routing is not None or scope["method"] != "GET":
        return
    if all(name not in _DIFFERENT for name, _ in scope["headers"]):
        scope["state"][REPEAT] = Repeat(request, user, cursor)


def _lines(headers: Iterable[Header]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])
