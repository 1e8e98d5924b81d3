"""A client of the live stream."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import httpx
from httpx_sse import ServerSentEvent, aconnect_sse

from tests.support.service import HOUR, SECRET
from tests.support.waiting import until
from tocsin.auth.minting import mint_user


class Served(Protocol):
    """A service with the client that calls it."""

    http: httpx.AsyncClient


@dataclass
class Watch:
    """The events that a client of the stream received."""

    events: list[ServerSentEvent] = field(default_factory=list)
    ended: bool = False

    @property
    def received(self) -> list[tuple[str, Any]]:
        return [(event.event, json.loads(event.data)) for event in self.events]

    def names(self, name: str) -> list[Any]:
        return [data for event, data in self.received if event == name]

    @property
    def mark(self) -> str:
        return next(event.id for event in reversed(self.events) if event.id)

    async def until(self, count: int) -> list[tuple[str, Any]]:
        """Wait for this number of events."""
        await until(lambda: len(self.events) >= count)
        return self.received

    async def until_received(self, name: str, count: int = 1) -> list[Any]:
        await until(lambda: len(self.names(name)) >= count)
        return self.names(name)

    async def until_ended(self) -> None:
        await until(lambda: self.ended)


@asynccontextmanager
async def watching(
    api: Served, user: int = 1, mark: str | None = None, lifetime: timedelta = HOUR
) -> AsyncIterator[Watch]:
    """Watch an inbox with a common client library."""
    watch = Watch()
    headers = {"Authorization": f"Bearer {mint_user(SECRET, user, lifetime)}"}
    if mark is not None:
        headers["Last-Event-ID"] = mark

    async def read() -> None:
        async with (
            httpx.AsyncClient(base_url=api.http.base_url, timeout=30) as http,
            aconnect_sse(http, "GET", "/notifications/stream", headers=headers) as source,
        ):
            assert source.response.status_code == 200
            with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
                async for event in source.aiter_sse():
                    if event.data:  # after a comment httpx-sse hands out an event without any
                        watch.events.append(event)
        watch.ended = True

    reading = asyncio.create_task(read())
    try:
        await watch.until(1)
        yield watch
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
