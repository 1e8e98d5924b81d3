"""CORS: the origins whose pages may call the service, and the response headers that they can read."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "X-Request-Id")
EXPOSED = (
    "ETag",
    "Retry-After",
    "X-Request-Id",
    "RateLimit",
    "RateLimit-Policy",
)

MAX_AGE = 600
"""Seconds for which a browser may cache the result of a preflight."""

_ALLOWED = {
    "Access-Control-Allow-Methods": ", ".join(METHODS),
    "Access-Control-Allow-Headers": ", ".join(HEADERS),
    "Access-Control-Max-Age": str(MAX_AGE),
}


class Cors(CORSMiddleware):
    """ASGI middleware around the envelope: adds the CORS headers to every response, including errors."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(app, allow_origins=origins, expose_headers=EXPOSED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, also a preflight, so that it gets a request id and a log line."""
        if scope["type"] == "http":
            await self.simple_response(scope, receive, send, request_headers=Headers(scope=scope))
        else:
            await self.app(scope, receive, send)


class Preflights:
    """ASGI middleware inside the envelope that answers preflights, which have no token."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight, or pass the request on."""
        app = Response(status_code=204, headers=_ALLOWED) if _is_preflight(scope) else self._app
        await app(scope, receive, send)


def _is_preflight(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    headers = Headers(scope=scope)
    return "origin" in headers and "access-control-request-method" in headers
