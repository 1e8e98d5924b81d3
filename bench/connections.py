"""Ten thousand connections that do nothing, or harm: their memory, and the pages and probes of others meanwhile."""

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, cast

import uvloop

from bench import fill
from bench.measure import Claim, options, percentile, resident, show
from bench.service import Client, Service, clients, database, service

CONNECTIONS = 10_000
OPENING = 100
"""Connections that are opened at the same time, fewer than a backlog."""

PAUSE = 0.04
"""Seconds between two pages of the user who is measured, so that the rate limit of a user is kept."""

CROWDS = 5

UNSENT = 5_000
"""Bytes of a body that are sent one by one."""


class Crowd(NamedTuple):
    """Connections that all send the same: what is sent at first, then `drip` once a second, and whether they read."""

    name: str
    size: int
    sent: bytes
    drip: bytes = b""
    reads: bool = True


def _crowds(running: Service) -> Sequence[Crowd]:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    event = running.post({"more": "x" * UNSENT})
    bundle = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    return (
        Crowd("idle after a request", CONNECTIONS, head + b"\r\n"),
        Crowd("silent from the start", CONNECTIONS, b""),
        Crowd("a head, byte by byte", CONNECTIONS, head + b"X-A: ", b"x"),
        Crowd("a body, byte by byte", CONNECTIONS, event[:-UNSENT], b"x"),
        Crowd("an answer that is not read", 1_000, bundle * 4, reads=False),
    )


class Member(asyncio.Protocol):
    """One connection of a crowd, which is opened again when the service closes it."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self.transport: asyncio.Transport
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin in the next turn of the event loop: the loop starts to read after this call, even if it is paused."""
        self.transport, self.is_open = cast("asyncio.Transport", transport), True
        asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """Send what is sent at first."""
        if not self._crowd.reads:
            self.transport.pause_reading()
        if self._crowd.sent:
            self.transport.write(self._crowd.sent)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - the name is the protocol's
        """Make sure that the crowd does what its name says."""
        if not self._crowd.reads:
            raise RuntimeError("a connection that reads no answer has read one")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name is the protocol's
        """Note that it is closed."""
        self.is_open = False


@asynccontextmanager
async def crowding(running: Service, crowd: Crowd) -> AsyncIterator[list[Member]]:
    """Keep the connections of a crowd open, whatever the service closes."""
    loop, members = asyncio.get_running_loop(), [Member(crowd) for _ in range(crowd.size)]

    async def fill_up() -> None:
        closed = [member for member in members if not member.is_open]
        for start in range(0, len(closed), OPENING):
            opening = [
                loop.create_connection(lambda member=member: member, running.host, running.port)  # type: ignore[misc]
                for member in closed[start : start + OPENING]
            ]
            await asyncio.gather(*opening, return_exceptions=True)

    async def keep() -> None:
        while True:
            await asyncio.sleep(1)
            for member in members:
                if member.is_open and crowd.drip:
                    member.transport.write(crowd.drip)
            await fill_up()

    await fill_up()
    keeping = asyncio.create_task(keep())
    try:
        yield members
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        for member in members:
            if member.is_open:
                member.transport.abort()


async def _pages(running: Service, client: Client, user: int, seconds: float) -> tuple[float, float]:
    """Return the median and the 99th percentile of a user's pages and of the probes, in milliseconds."""
    requests = [running.get(path, user=user) for path in ("/notifications", "/healthz", "/readyz")]
    took, end = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < end:
        for request in requests:
            began = time.perf_counter()
            await client.ask(request)
            took.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(PAUSE)
    return percentile(took, 50), percentile(took, 99)


async def main() -> None:
    """Measure and print."""
    _, seconds = options(__doc__, rounds=1, seconds=10)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    show(*[claim for number in range(CROWDS) for claim in await _one(number, seconds)])


async def _one(number: int, seconds: float) -> Sequence[Claim]:
    """Measure one crowd at a fresh service, whose memory no other crowd has enlarged."""
    async with service() as running, clients(running, 1) as (client,):
        async with database(running) as connection:
            [user] = await fill.users(connection, 1)
        crowd, pid = _crowds(running)[number], running.process.pid
        await _pages(running, client, user, seconds / 2)
        p50, p99 = await _pages(running, client, user, seconds)
        before = resident(pid)
        async with crowding(running, crowd) as members:
            now50, now99 = await _pages(running, client, user, seconds)
            each = (resident(pid) - before) / crowd.size
            there = sum(member.is_open for member in members)
    return (
        Claim(f"{crowd.name}: open of {crowd.size:,}", there, ""),
        Claim("  memory for each", each, "KiB"),
        Claim("  pages and probes of others, p50", now50, "ms", p50),
        Claim("  pages and probes of others, p99", now99, "ms", p99),
    )


if __name__ == "__main__":
    uvloop.run(main())
