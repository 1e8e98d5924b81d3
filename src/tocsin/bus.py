"""The bus between processes: NOTIFY of the database, or NATS. A lost message costs only latency."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError

from tocsin.backoff import Backoff
from tocsin.db.errors import DRIVER_ERRORS
from tocsin.db.pool import Database, connect

CHANNEL = "tocsin_work"
SUBJECT = "tocsin.work"

MAX_BYTES = 7900
"""Maximum bytes of a message: NOTIFY accepts less than 8,000."""

RECONNECT_INTERVAL = 1.5
"""Seconds between two tries to connect."""

Receive = Callable[[str], None]

log = structlog.get_logger(__name__)


class Bus(Protocol):
    """Sends short texts to all processes, including the sender. A text may be lost."""

    async def send(self, text: str) -> None:
        """Send a text of at most `MAX_BYTES` bytes. Never raises."""

    async def listen(self, receive: Receive) -> None:
        """Pass on received texts, forever. Reconnects by itself."""


class ByNotify:
    """NOTIFY of the database: no other server is needed."""

    def __init__(self, url: str, database: Database) -> None:
        self._url = url
        self._database = database

    async def send(self, text: str) -> None:
        """Send by NOTIFY."""
        with contextlib.suppress(Exception):  # the pool logs it
            await self._database.value("select pg_notify($1, $2)", CHANNEL, text)

    async def listen(self, receive: Receive) -> None:
        """Listen on a separate connection."""
        backoff = Backoff("listening for other processes")
        while True:
            try:
                await self._listen(receive, backoff)
            except Exception as error:  # noqa: BLE001 - it listens again after any error
                await backoff.pause(error)

    async def _listen(self, receive: Receive, backoff: Backoff) -> None:
        """Listen until the connection ends. The next try reports the cause."""
        gone = asyncio.Event()
        connection = await connect(self._url)
        try:
            connection.add_termination_listener(lambda _: gone.set())
            await connection.add_listener(CHANNEL, lambda *said: receive(str(said[-1])))
            backoff.succeeded()
            await gone.wait()
        finally:
            with contextlib.suppress(*DRIVER_ERRORS):
                await connection.close(timeout=1)


class ByNats:
    """A NATS server or cluster. `url` may name several servers, separated by commas."""

    def __init__(self, url: str) -> None:
        self._servers = [each.strip() for each in url.split(",")]
        self._client = Client()
        self._closed = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._complained = False

    async def send(self, text: str) -> None:
        """Publish, if there is a connection."""
        self._connect()
        if self._client.is_connected:
            with contextlib.suppress(NatsError, OSError):
                await self._client.publish(SUBJECT, text.encode())

    async def listen(self, receive: Receive) -> None:
        """Subscribe. The client subscribes again after each reconnection, until it is closed."""

        async def pass_on(message: Any) -> None:
            receive(message.data.decode("utf-8", "replace"))

        while True:
            await asyncio.shield(self._connect())
            with contextlib.suppress(NatsError):
                await self._client.subscribe(SUBJECT, cb=pass_on)
                log.info("listening on NATS")
                await self._closed.wait()
            await asyncio.sleep(RECONNECT_INTERVAL)

    async def close(self) -> None:
        """Close the connection."""
        if self._connecting:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if not self._client.is_closed:
            await self._client.close()

    def _connect(self) -> "asyncio.Task[None]":
        """Connect if there is no connection; also if the client was closed by an error of a server."""
        if self._connecting is None or (self._connecting.done() and self._client.is_closed):
            self._client, self._closed = Client(), asyncio.Event()
            self._connecting = asyncio.create_task(self._until_connected(self._client, self._closed))
        return self._connecting

    async def _until_connected(self, client: Client, closed: asyncio.Event) -> None:
        async def note_end() -> None:
            closed.set()

        async def note_reconnect() -> None:
            self._complained = False
            log.warning("NATS reconnected")

        while True:
            try:
                await client.connect(
                    self._servers,
                    name="tocsin",
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    connect_timeout=5,
                    pending_size=MAX_BYTES * 128,
                    error_cb=self._complain,
                    closed_cb=note_end,
                    disconnected_cb=_note_disconnect,
                    reconnected_cb=note_reconnect,
                )
            except (NatsError, OSError, TimeoutError) as error:
                await self._complain(error)
                await asyncio.sleep(RECONNECT_INTERVAL)
            else:
                self._complained = False
                return

    async def _complain(self, error: Exception) -> None:
        """Log the first error of a series: the client reconnects by itself."""
        if self._complained or self._client.is_connected:
            log.debug("NATS error", reason=str(error))
            return
        self._complained = True
        log.warning("NATS connection failed; it will be retried", reason=str(error) or type(error).__name__)


async def _note_disconnect() -> None:
    log.warning("NATS disconnected; other processes are notified with a delay")
