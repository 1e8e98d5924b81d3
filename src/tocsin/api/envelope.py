"""What surrounds every request: its id, its headers, its line in the log, and the answer to a bug of ours."""

import time
from collections.abc import Callable
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tocsin.api.problems import answer_to
from tocsin.errors import InternalError
from tocsin.ids import new_id
from tocsin.logs import bind_request, cut_path

LONGEST_REQUEST_ID = 64

log = structlog.get_logger(__name__)


class Envelope:
    """ASGI middleware around the whole service; nothing that is raised gets past it."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and see its answer out."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = self._clock()
        request_id = _request_id(scope)
        bind_request(request_id)
        scope.setdefault("state", {})
        status = 0

        async def seal(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers["X-Request-Id"] = request_id
                headers["Vary"] = "Authorization"
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, seal)
        except ClientDisconnect:
            log.info("a client hung up in the middle of its request")
        except Exception:
            log.exception("a bug answered a request")
            if status:
                raise
            await answer_to(InternalError(request_id))(scope, receive, seal)
        finally:
            self._note(scope, status, began)

    def _note(self, scope: Scope, status: int, began: float) -> None:
        caller: Any = scope["state"].get("caller")
        log.info(
            "request",
            method=scope["method"],
            path=cut_path(scope["path"]),
            status=status,
            ms=round((self._clock() - began) * 1000, 2),
            caller=caller.label if caller else None,
        )


def _request_id(scope: Scope) -> str:
    """Return the caller's id of this request where it sent a decent one, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    if 0 < len(given) <= LONGEST_REQUEST_ID and given.isascii() and given.replace("-", "").isalnum():
        return given
    return str(new_id())
