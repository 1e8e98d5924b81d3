"""The HTTP server."""

import asyncio
import socket
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from tocsin.api.connections import Connections, Patience
from tocsin.api.protocol import Protocol
from tocsin.api.refusing import Refusing
from tocsin.capacity import Capacity

GRACE = 6
"""Maximum seconds that the server waits at its end for requests in progress."""


class Server(uvicorn.Server):
    """The HTTP server. It sets `ready` when it listens, and calls `ending` before it stops."""

    def __init__(  # noqa: PLR0913 - what surrounds it
        self,
        app: ASGIApp,
        ending: Callable[[], None] | None = None,
        *,
        connections: Connections | None = None,
        patience: Patience | None = None,
        origins: Collection[str] = (),
        prefix: str = "",
        capacity: Capacity | None = None,
    ) -> None:
        self.ready = asyncio.Event()
        self._ending = ending
        protocol: Any = partial(
            Protocol,
            connections=connections or Connections.of_files(),
            patience=patience or Patience(),
            origins=origins,
            prefix=prefix,
            refusing=Refusing(capacity, prefix) if capacity else None,
            repeats={},
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=GRACE,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Call `ending`, which closes streams, and then shut down."""
        if self._ending:
            self._ending()
        await super().shutdown(sockets)


class ByPort:
    """ASGI middleware that serves another application on one port."""

    def __init__(self, app: ASGIApp, port: int, other: ASGIApp) -> None:
        self._app, self._port, self._other = app, port, other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on to the application of its port."""
        server = scope.get("server")
        app = self._other if server and server[1] == self._port else self._app
        await app(scope, receive, send)
