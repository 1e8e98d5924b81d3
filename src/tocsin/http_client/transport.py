"""The road of pushes: HTTP/2 by curl, in one thread of its own that takes requests and gives back answers in batches.

submit ──> queue ──> the thread: sending.py ──> batches of answers ──> the loop: futures
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from tocsin.http_client.curl_handle import CurlHandle, Limits, Pending
from tocsin.http_client.messages import Answer, Request
from tocsin.http_client.sender import CLOSED, Done, Sender
from tocsin.http_client.tls import Trust

_STOP_TIMEOUT = 5.0
"""Seconds that the thread may take to end, beyond its grace: a look-up of a name can't be interrupted."""


class Transport:
    """Sends requests of one lane: at most `window` at once over at most `connections` connections. Made in a loop.

    `ca_file` has trust anchors beside the system's. With `lone_first` every new connection carries one request alone
    until one was answered there, and not by 401 or 403; all others wait meanwhile. A `guarded` request goes to public
    addresses by https alone, looked at when the connection is opened, but for those to `allowed_origins`.
    Raises `Refusal` where the file can't be used.
    """

    def __init__(  # noqa: PLR0913 - a lane's own properties
        self,
        window: int,
        *,
        lone_first: bool = False,
        connections: int = 2,
        ca_file: Path | None = None,
        allowed_origins: Iterable[str] = (),
        limits: Limits | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sender = Sender(
            window,
            self._hand_back,
            lone_first=lone_first,
            connections=connections,
            trust=Trust(ca_file),
            allowed_origins=frozenset(allowed_origins),
            limits=limits or Limits(),
        )
        self._thread = threading.Thread(target=self._sender.run, name="tocsin-transport", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> asyncio.Future[Answer]:
        """Send a request as soon as there is room; nothing raises, what goes wrong is an answer with status 0."""
        return self.submit_many([request])[0]

    def submit_many(self, requests: Sequence[Request]) -> list[asyncio.Future[Answer]]:
        """Send requests, in about this order; return the answers to come, in the same order."""
        make = self._loop.create_future
        pending = [Pending(request, make()) for request in requests]
        if not self._sender.take(pending):
            _settle([(entry.future, CurlHandle.never(CLOSED)) for entry in pending])
        return [entry.future for entry in pending]

    async def close(self, grace: float = 0.0) -> None:
        """End: what waits is answered with status 0 at once, and what is under way after `grace` seconds."""
        self._sender.end(grace)
        await asyncio.to_thread(self._thread.join, grace + _STOP_TIMEOUT)

    def _hand_back(self, done: list[Done]) -> None:
        """Called by the thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(_settle, done)


def _settle(done: list[Done]) -> None:
    for future, answer in done:
        if not future.done():
            future.set_result(answer)
