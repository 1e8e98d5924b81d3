"""The bus between processes over NATS, where TOCSIN_NATS_URL is set."""

import asyncio
import contextlib
from typing import Any

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError

from tocsin.bus import MAX_BYTES, Receive

SUBJECT = "tocsin.work"

RECONNECT_INTERVAL = 1.5
"""Seconds between two tries to connect."""

CONNECT_TIMEOUT = 5
"""Seconds that a server may take to accept a connection."""

PING_INTERVAL = 5
"""Seconds between two pings: a server that has not answered two of them hangs, and is connected to again."""

AWAY = "NATS cannot be reached"

log = structlog.get_logger(__name__)


async def failure_of(url: str) -> str:
    """Return why a server cannot be used, without secrets; empty if it answers."""
    client = Client()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await client.connect(_servers(url), allow_reconnect=False, error_cb=_ignore)
            await client.flush()
    except (NatsError, OSError, TimeoutError) as error:
        return _words(error)
    finally:
        with contextlib.suppress(NatsError, OSError):
            await client.close()
    return ""


class ByNats:
    """A NATS server or cluster. `url` may name several servers, separated by commas."""

    def __init__(self, url: str) -> None:
        self._servers = _servers(url)
        self._client = Client()
        self._closed = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._complained = False

    @property
    def problem(self) -> str:
        """Why no texts are received now; empty if they are."""
        return "" if self._client.is_connected else AWAY

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
                    connect_timeout=CONNECT_TIMEOUT,
                    ping_interval=PING_INTERVAL,
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
        log.warning("NATS connection failed; it will be retried", reason=_words(error))


async def _note_disconnect() -> None:
    log.warning("NATS disconnected; other processes are notified with a delay")


async def _ignore(_error: Exception) -> None:
    """Log nothing: the error is raised too."""


def _servers(url: str) -> list[str]:
    return [each.strip() for each in url.split(",")]


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
