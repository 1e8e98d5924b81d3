"""HTTP/2 requests to push services by curl, in a thread that returns answers in batches.

submit ──> queue ──> the thread: sender.py ──> batches of answers ──> the loop: futures
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
"""Seconds that the thread may take to end after the grace time: a name look-up cannot be interrupted."""


class Transport:
    """Sends the requests of one lane: at most `window` at once, over at most `connections` connections.

    Must be created in a running loop. `ca_file` has additional trust anchors. With `lone_first`, each new connection
    carries one request until one was answered there by another status than 401 or 403. A `guarded` request goes only
    to public addresses, by https, checked when the connection is opened; except to `allowed_origins`.
    Raises `Refusal` if the file cannot be used.
    """

    def __init__(  # noqa: PLR0913 - the properties of a lane
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
        """Send a request as soon as there is room. Errors are answers with status 0."""
        return self.submit_many([request])[0]

    def submit_many(self, requests: Sequence[Request]) -> list[asyncio.Future[Answer]]:
        """Send requests, in about this order; return the futures of their answers, in the same order."""
        make = self._loop.create_future
        pending = [Pending(request, make()) for request in requests]
        if not self._sender.take(pending):
            _settle([(entry.future, CurlHandle.never(CLOSED)) for entry in pending])
        return [entry.future for entry in pending]

    async def close(self, grace: float = 0.0) -> None:
        """Close: waiting requests get an answer with status 0 at once, those under way after `grace` seconds."""
        self._sender.end(grace)
        await asyncio.to_thread(self._thread.join, grace + _STOP_TIMEOUT)

    def _hand_back(self, done: list[Done]) -> None:
        """Called by the thread with answers."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(_settle, done)


def _settle(done: list[Done]) -> None:
    for future, answer in done:
        if not future.done():
            future.set_result(answer)
