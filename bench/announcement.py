"""An event to 100,000 users with an iPhone each: time to the last inbox and phone, and the delay of other events.

Meanwhile single events are posted to other users.
"""

import asyncio
import itertools
import json
import time
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import uvloop

from bench import fill
from bench.apple import Apple, apple
from bench.measure import Claim, medians, percentile, show, sizes
from bench.service import Service, clients, database, folder, in_inboxes, started
from tocsin.catalogue import Catalogue

TEAM = 1
OTHERS = 1_000
HISTORY = 100
"""Earlier notifications of each other user."""

EVERY = 0.2
"""Seconds between two single events."""

LONGEST = 600.0
"""Seconds after which a push counts as lost."""


class Single(NamedTuple):
    """A single event, and its sending time in UNIX seconds."""

    id: str
    sent: float


class ToAll(NamedTuple):
    """The event to all users, with the times of acceptance and of the last inbox, in UNIX seconds."""

    id: str
    accepted: float
    filled: float


async def main() -> None:
    """Measure and print."""
    rounds, seconds, people = sizes(__doc__, rounds=1, seconds=10, people=100_000)
    async with AsyncExitStack() as stack:
        outer = stack.enter_context(folder())
        phones = await stack.enter_async_context(apple(outer))
        running = await stack.enter_async_context(started(outer / "data", phones.variables))
        bench = Bench(running, phones, people, await _filled(running, people))

        async def one_round() -> dict[str, float]:
            return {**await bench.idle(seconds), **await bench.everybody()}

        took = await medians(rounds, one_round)
    show(
        Claim(f"from 202 to the last of {people:,} phones", took["phones"], "s", at_most=90),
        Claim(f"from 202 to the last of {people:,} inboxes", took["inboxes"], "s"),
        Claim("phones against inboxes", people / took["phones"], "/s", people / took["inboxes"]),
        Claim("a single event at the same time, the worst", took["busy worst"], "ms", at_most=1000),
        Claim("a single event at the same time, p50", took["busy p50"], "ms", took["idle p50"]),
        Claim("a single event at the same time, p99", took["busy p99"], "ms", took["idle p99"]),
    )


class Bench:
    """The measurements on a running service; `others` are users who are not in the team."""

    def __init__(self, running: Service, phones: Apple, people: int, others: range) -> None:
        self._running, self._phones, self._people = running, phones, people
        event = Catalogue.load().samples["note"]["event"]
        self._to_all = running.post({**event, "notify": {"teams": [TEAM]}})
        self._turns = itertools.cycle([running.post({**event, "notify": {"users": [user]}}) for user in others])

    async def idle(self, seconds: float) -> dict[str, float]:
        """Return how long single events take when nothing else is done."""
        singles = await self._singles_until(asyncio.create_task(asyncio.sleep(seconds)))
        return _summary("idle", singles, await self._arrivals(singles))

    async def everybody(self) -> dict[str, float]:
        """Post the event to all; return how long that took, and what single events felt of it."""
        everybody = asyncio.create_task(self._everybody())
        singles = await self._singles_until(everybody)
        event, came = await everybody, await self._arrivals(singles)
        return {
            "inboxes": event.filled - event.accepted,
            "phones": came[event.id] - event.accepted,
            **_summary("busy", singles, came),
        }

    async def _everybody(self) -> ToAll:
        """Post the event to all, and wait until every phone has it and that is written down."""
        before = self._phones.count()
        async with (
            clients(self._running, 1) as (client,),
            database(self._running) as connection,
            asyncio.timeout(LONGEST),
        ):
            id_ = json.loads(await client.ask(self._to_all, b"202"))["id"]
            accepted = time.time()
            await in_inboxes(connection, id_)
            filled = time.time()
            while self._phones.count() < before + self._people:
                await asyncio.sleep(0.1)
            statement = "select count(*) from deliveries where event_id = $1 and state = 'delivered'"
            while await connection.fetchval(statement, id_) != self._people:
                await asyncio.sleep(0.1)
        return ToAll(id_, accepted, filled)

    async def _singles_until(self, done: asyncio.Future[Any]) -> list[Single]:
        """Post single events at their times until something is done.

        One that could not be posted in time, because the 202 before took so long, counts from when it was due.
        """
        singles = []
        async with clients(self._running, 1) as (client,):
            due = time.time()
            while not done.done():
                due += EVERY
                wait = due - time.time()
                await asyncio.sleep(wait)
                sent = time.time() if wait > 0 else due
                singles.append(Single(json.loads(await client.ask(next(self._turns), b"202"))["id"], sent))
        return singles

    async def _arrivals(self, singles: list[Single]) -> dict[str, float]:
        """Return when the last push of each event came, the single ones waited for."""
        async with asyncio.timeout(LONGEST):
            while not (came := dict(await self._phones.arrivals())).keys() >= {single.id for single in singles}:
                await asyncio.sleep(0.1)
        return came


def _summary(name: str, singles: list[Single], came: dict[str, float]) -> dict[str, float]:
    took = [(came[single.id] - single.sent) * 1000 for single in singles]
    return {
        f"{name} p50": percentile(took, 50),
        f"{name} p99": percentile(took, 99),
        f"{name} worst": max(took),
    }


async def _filled(running: Service, count: int) -> range:
    """Fill the database and return the others."""
    async with database(running) as connection:
        people = await fill.users(connection, count + OTHERS)
        members, others = people[:count], people[count:]
        await fill.devices(connection, people)
        await fill.team(connection, TEAM, members)
        await fill.history(connection, others, HISTORY)
    return others


if __name__ == "__main__":
    uvloop.run(main())
