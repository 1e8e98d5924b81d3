"""What stands in front of us: the proxies whose word counts, and the prefix under which everything is served."""

import re
from collections.abc import Collection
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tocsin.api.errors import answer_to
from tocsin.errors import NotFound

HOST = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
"""A host as a url may hold it, with its port."""

ALWAYS_THERE = frozenset({"/healthz", "/readyz"})
"""What is also served without the prefix: probes call us past the proxy."""

_MAPPED = "::ffff:"


class Proxies(ProxyHeadersMiddleware):
    """ASGI middleware that takes scheme, host and client from the X-Forwarded headers of trusted proxies alone."""

    def __init__(self, app: ASGIApp, trusted: Collection[str]) -> None:
        super().__init__(cast("Any", app), list(trusted))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on as its client sent it to the proxy."""
        client = scope.get("client")
        if client and client[0].startswith(_MAPPED) and "." in client[0]:
            client = scope["client"] = (client[0].removeprefix(_MAPPED), client[1])
        if client and client[0] in self.trusted_hosts and (host := _forwarded_host(scope)):
            kept = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [*kept, (b"host", host)]
        await super().__call__(scope, receive, send)


class Prefix:
    """ASGI middleware that serves everything under a prefix, and nothing but the probes without it."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with the path that it has below the prefix, which is all that the routes know."""
        path: str = scope.get("path", "")
        if scope["type"] == "lifespan" or path in ALWAYS_THERE:
            await self._app(scope, receive, send)
        elif path == self._prefix or path.startswith(f"{self._prefix}/"):
            await self._app({**scope, "path": path.removeprefix(self._prefix)}, receive, send)
        else:
            await answer_to(NotFound())(scope, receive, send)


def _forwarded_host(scope: Any) -> bytes | None:
    """Return the host that the proxy nearest to us names, where that is one at all."""
    values: list[bytes] = [value for name, value in scope["headers"] if name == b"x-forwarded-host"]
    if not values:
        return None
    host = values[-1].rpartition(b",")[2].strip()
    return host if HOST.fullmatch(str(host, "latin-1")) else None
