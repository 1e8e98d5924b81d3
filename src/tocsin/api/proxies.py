"""Middleware for reverse proxies: headers of trusted proxies, and the path prefix."""

import re
from collections.abc import Collection
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tocsin.api.errors import answer_to
from tocsin.errors import NotFound

HOST = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
"""A valid host of a url, with an optional port."""

PROBE_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths that are also served without the prefix, because probes bypass the proxy."""

_MAPPED = "::ffff:"


class Proxies(ProxyHeadersMiddleware):
    """ASGI middleware that uses the X-Forwarded headers of trusted proxies for the scheme, the host and the client."""

    def __init__(self, app: ASGIApp, trusted: Collection[str]) -> None:
        super().__init__(cast("Any", app), list(trusted))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on with the values that the client sent to the proxy."""
        client = scope.get("client")
        if client and client[0].startswith(_MAPPED) and "." in client[0]:
            client = scope["client"] = (client[0].removeprefix(_MAPPED), client[1])
        if client and client[0] in self.trusted_hosts and (host := _forwarded_host(scope)):
            kept = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [*kept, (b"host", host)]
        await super().__call__(scope, receive, send)


class Prefix:
    """ASGI middleware that serves all routes under a prefix, and only probes without it."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on without the prefix in its path."""
        path: str = scope.get("path", "")
        if scope["type"] == "lifespan" or path in PROBE_PATHS:
            await self._app(scope, receive, send)
        elif path == self._prefix or path.startswith(f"{self._prefix}/"):
            await self._app({**scope, "path": path.removeprefix(self._prefix)}, receive, send)
        else:
            await answer_to(NotFound())(scope, receive, send)


def _forwarded_host(scope: Any) -> bytes | None:
    """Return the valid host that the nearest proxy forwarded, or None."""
    values: list[bytes] = [value for name, value in scope["headers"] if name == b"x-forwarded-host"]
    if not values:
        return None
    host = values[-1].rpartition(b",")[2].strip()
    return host if HOST.fullmatch(str(host, "latin-1")) else None
