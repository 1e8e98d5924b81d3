"""The cost and the latency of open streams: thousands at one process, with 200 events per second."""

import asyncio
import json
import resource
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import uvloop

from bench import fill
from bench.measure import Claim, options, percentile, resident, show
from bench.service import Client, Service, clients, database, service
from tocsin.catalogue import Catalogue

STREAMS = 10_000
EVERY = 0.005
"""Seconds between two events."""

LONGEST = 10.0
"""Seconds after which an event counts as lost."""

BACK_ENDS = 16
OPENED_AT_ONCE = 20
BEGINNING = b'data: {"id":"'
"""The start of the line of a notification, before its id."""


class Stream:
    """An open stream that records when it receives something."""

    def __init__(self) -> None:
        self.came: dict[str, float] = {}
        self.ready = asyncio.Event()

    async def follow(self, running: Service, user: int) -> None:
        """Read for ever."""
        reader, writer = await asyncio.open_connection(running.host, running.port)
        try:
            writer.write(running.get("/notifications/stream", user=user))
            async for line in reader:
                if line.startswith(b"event: count"):
                    self.ready.set()
                elif line.startswith(BEGINNING):
                    self.came[line[len(BEGINNING) :][:36].decode()] = time.perf_counter()
        finally:
            writer.close()


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=1, seconds=15)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(service())
        async with database(running) as connection:
            people = await fill.users(connection, STREAMS)
        base = resident(running.process.pid)
        streams = await stack.enter_async_context(following(running, people))
        await asyncio.sleep(2)
        each = (resident(running.process.pid) - base) / len(streams)
        back_ends = await stack.enter_async_context(clients(running, BACK_ENDS))
        took = [ms for _ in range(rounds) for ms in await flow(running, back_ends, people, streams, seconds)]
    show(
        Claim(f"memory of each of {STREAMS} streams", each, "KiB", at_most=20),
        Claim("from 202 to the stream's line, 200 events a second, p50", percentile(took, 50), "ms", at_most=20),
        Claim("from 202 to the stream's line, p99", percentile(took, 99), "ms", at_most=150),
    )


@asynccontextmanager
async def following(running: Service, people: Sequence[int]) -> AsyncIterator[Sequence[Stream]]:
    """Open a stream for each of these users."""
    streams, reading = [Stream() for _ in people], []
    try:
        for stream, user in zip(streams, people, strict=True):
            reading.append(asyncio.create_task(stream.follow(running, user)))
            if len(reading) % OPENED_AT_ONCE == 0:  # more at the same time would be refused
                await asyncio.wait_for(stream.ready.wait(), 60)
        for stream in streams:
            await asyncio.wait_for(stream.ready.wait(), 60)
        yield streams
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def flow(
    running: Service, back_ends: Sequence[Client], people: Sequence[int], streams: Sequence[Stream], seconds: float
) -> list[float]:
    """Send events on schedule, each to one user, regardless of earlier ones; return the ms of each."""
    event = Catalogue.load().samples["note"]["event"]
    free: asyncio.Queue[Client] = asyncio.Queue()
    for client in back_ends:
        free.put_nowait(client)

    async def one(number: int) -> float:
        place = number * 7919 % len(people)
        request = running.post({**event, "notify": {"users": [people[place]]}})
        client = await free.get()
        answer = json.loads(await client.ask(request, b"202"))
        accepted = time.perf_counter()
        free.put_nowait(client)
        async with asyncio.timeout(LONGEST):
            while answer["id"] not in streams[place].came:
                await asyncio.sleep(0.001)
        return (streams[place].came[answer["id"]] - accepted) * 1000

    began, under_way = time.perf_counter(), []
    for number in range(round(seconds / EVERY)):
        await asyncio.sleep(began + number * EVERY - time.perf_counter())
        under_way.append(asyncio.create_task(one(number)))
    return await asyncio.gather(*under_way)


if __name__ == "__main__":
    uvloop.run(main())
