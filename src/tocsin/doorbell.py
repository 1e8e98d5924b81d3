"""The doorbell: wakes workers when there is work, at once in this process and by NOTIFY in all others.

A lost ring costs latency, never data: whoever waits looks by himself every `POLL` seconds.
"""

import asyncio
import contextlib
from collections import defaultdict
from typing import Any

import structlog

from tocsin.database import OUTAGES, Database, connect
from tocsin.errors import Unavailable

POLL = 1.5
"""Seconds after which a worker looks for work that nobody rang for."""

GAP = 0.01
"""Seconds between two NOTIFY: rings in between become one, for each of them takes a lock of the whole server."""

CHANNEL = "tocsin_work"

log = structlog.get_logger(__name__)


class Doorbell:
    """One bell per lane, and one named `settled` for those who wait for an event's end."""

    def __init__(self, url: str, database: Database) -> None:
        self._url = url
        self._database = database
        self._rung: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._answered: set[str] = set()
        self._outgoing: set[str] = set()
        self._sender: asyncio.Task[None] | None = None

    def answer(self, *names: str) -> None:
        """Declare that this process answers these bells itself: they need not be heard outside."""
        self._answered.update(names)

    def ring(self, name: str) -> None:
        """Wake whoever waits for `name`. Never blocks and never fails."""
        self._rung.pop(name, asyncio.Event()).set()
        if name not in self._answered:
            self._outgoing.add(name)
            if self._sender is None or self._sender.done():
                self._sender = asyncio.create_task(self._send())

    def listen_for(self, name: str) -> asyncio.Event:
        """Return what the next ring of `name` sets. To miss none: take it, look for work, and only then wait."""
        return self._rung[name]

    async def hear_others(self) -> None:
        """Pass on the rings of other processes, for ever; connects again when the database was away."""
        while True:
            gone = asyncio.Event()
            try:
                connection = await connect(self._url)
            except OUTAGES:
                await asyncio.sleep(POLL)
                continue
            try:
                connection.add_termination_listener(lambda _, gone=gone: gone.set())
                await connection.add_listener(CHANNEL, self._pass_on)
                await gone.wait()
            except OUTAGES as error:
                log.warning("the doorbell cannot listen", error=str(error))
            finally:
                with contextlib.suppress(*OUTAGES):
                    await connection.close(timeout=1)

    async def close(self) -> None:
        """Let a last ring out."""
        if self._sender is not None:
            await self._sender

    def _pass_on(self, _connection: Any, _pid: int, _channel: str, names: object) -> None:
        for name in str(names).split():
            self._rung.pop(name, asyncio.Event()).set()

    async def _send(self) -> None:
        while self._outgoing:
            names, self._outgoing = self._outgoing, set()
            with contextlib.suppress(Unavailable):
                await self._database.value("select pg_notify($1, $2)", CHANNEL, " ".join(sorted(names)))
            await asyncio.sleep(GAP)


async def wait(bell: asyncio.Event, seconds: float = POLL) -> None:
    """Wait until `bell` rings, at most `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await bell.wait()
