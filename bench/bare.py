"""An application that only reads requests and answers them, on the HTTP server of Tocsin: the most that it can do."""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from bench.service import Service, folder, started

ACCEPTED = b'{"queued":true,"id":"01a22b07-224a-7ccb-a7c5-58d2b41da2be"}'


@asynccontextmanager
async def bare() -> AsyncIterator[Service]:
    """Run the application for as long as the block runs."""
    with folder() as outer:
        here = {"PYTHONPATH": str(Path(__file__).parents[1])}
        command = (sys.executable, "-m", "bench.bare")
        async with started(outer / "none", here, command=command, arguments=()) as running:
            yield running


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET` with 304 and `POST`, when its body is read, with 202."""
    head: list[tuple[bytes, bytes]] = [(b"etag", b'"a"')]
    if scope["method"] == "GET":
        await send({"type": "http.response.start", "status": 304, "headers": head})
        await send({"type": "http.response.body", "body": b""})
        return
    while (await receive()).get("more_body"):
        pass
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ACCEPTED))]
    await send({"type": "http.response.start", "status": 202, "headers": head})
    await send({"type": "http.response.body", "body": ACCEPTED})


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Write the address, as `tocsin serve` does."""
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        os.write(2, json.dumps({"event": "serving", "url": f"http://127.0.0.1:{port}"}).encode() + b"\n")


async def _main() -> None:
    config = uvicorn.Config(_app, port=0, ws="none", lifespan="off", log_config=None, access_log=False)
    await _Server(config).serve()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        uvloop.run(_main())
