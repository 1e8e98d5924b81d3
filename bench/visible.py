"""How long until an accepted event is in its recipient's inbox, at 100 events a second to single users."""

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

import uvloop

from bench import fill
from bench.measure import Claim, medians, options, percentile, show
from bench.service import Client, Service, clients, database, service
from tocsin.catalogue import Catalogue

PEOPLE = 1_000
HISTORY = 100
"""Notifications that each of them has from before."""

EVERY = 0.01
"""Seconds between two events."""

LOOK = 0.001
"""Seconds from an answer without the event to the next look: without a break, the looks would be the load."""

LONGEST = 10.0
"""Seconds after which an event is taken for lost."""

AT_ONCE = 64
"""How many events may be under way."""


class Recipient(NamedTuple):
    """The requests that post an event to a user, and that look for it."""

    post: bytes
    look: bytes


class Lines(NamedTuple):
    """A connection for the back end and one for the recipient."""

    back_end: Client
    recipient: Client


class Took(NamedTuple):
    """The ms from sending an event to its 202, and to the answer that shows it."""

    accepted: float
    visible: float


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=3, seconds=15)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(service())
        turns = itertools.cycle(await _recipients(running))
        back_ends = await stack.enter_async_context(clients(running, AT_ONCE))
        recipients = await stack.enter_async_context(clients(running, AT_ONCE))
        free = deque(Lines(*pair) for pair in zip(back_ends, recipients, strict=True))

        async def one_round() -> dict[str, float]:
            return _summary(await _flow(turns, free, round(seconds / EVERY)))

        took = await medians(rounds, one_round)
    show(
        Claim("from sending to visible, p50", took["visible p50"], "ms", at_most=10),
        Claim("from sending to visible, p99", took["visible p99"], "ms", at_most=50),
        Claim("from sending to 202, p50", took["accepted p50"], "ms"),
        Claim("from sending to 202, p99", took["accepted p99"], "ms"),
        Claim("from 202 to visible, p50", took["since p50"], "ms"),
        Claim("from 202 to visible, p99", took["since p99"], "ms"),
    )


async def _recipients(running: Service) -> list[Recipient]:
    async with database(running) as connection:
        people = await fill.users(connection, PEOPLE)
        await fill.history(connection, people, HISTORY)
    event = Catalogue.load().samples["note"]["event"]
    return [
        Recipient(
            running.post({**event, "notify": {"users": [user]}}), running.get("/notifications?per_page=1", user=user)
        )
        for user in people
    ]


async def _flow(turns: Iterator[Recipient], free: deque[Lines], count: int) -> Sequence[Took]:
    """Send events at their times, whatever became of those before."""
    began = time.perf_counter()
    under_way = []
    for number in range(count):
        await asyncio.sleep(began + number * EVERY - time.perf_counter())
        under_way.append(asyncio.create_task(_follow(next(turns), free)))
    return await asyncio.gather(*under_way)


async def _follow(recipient: Recipient, free: deque[Lines]) -> Took:
    """Post an event, and look for it from its 202 on until it is there.

    Connections are taken in turn, for the service closes one that is idle for seconds.
    """
    if not free:
        raise RuntimeError(f"{AT_ONCE} events are under way: the service does not keep up")
    lines = free.popleft()
    began = time.perf_counter()
    answer = json.loads(await lines.back_end.ask(recipient.post, b"202"))
    accepted = time.perf_counter()
    shown = f'"data":[{{"id":"{answer["id"]}"'.encode()
    while shown not in await lines.recipient.ask(recipient.look):
        if time.perf_counter() - began > LONGEST:
            raise RuntimeError(f"the event {answer['id']} did not become visible")
        await asyncio.sleep(LOOK)
    visible = time.perf_counter()
    free.append(lines)
    return Took((accepted - began) * 1000, (visible - began) * 1000)


def _summary(events: Sequence[Took]) -> dict[str, float]:
    spans = {
        "visible": [took.visible for took in events],
        "accepted": [took.accepted for took in events],
        "since": [took.visible - took.accepted for took in events],
    }
    return {f"{name} p{part}": percentile(values, part) for name, values in spans.items() for part in (50, 99)}


if __name__ == "__main__":
    uvloop.run(main())
