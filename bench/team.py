"""Events to a team of 100,000, against a bare INSERT of as many rows; and their effect on another user."""

import asyncio
import json
import statistics
import time
from typing import Any
from uuid import uuid4

import uvloop

from bench import fill
from bench.measure import Claim, has_rows, medians, options, percentile, show
from bench.service import Service, clients, database, service
from tocsin.catalogue import Catalogue

TEAM, MEMBERS = 1, 100_000

EVENTS = 5
"""Events of a round: during one, the other user gets about 100 pages, too few for a percentile."""

PACE = 0.005
"""Seconds between two requests of the other user."""

OTHERS_INBOX = 1_000


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=5, seconds=5)
    async with service() as running:
        bench = Bench(running, await _filled(running))

        async def one_round() -> dict[str, float]:
            inserted, idle = await bench.insert(), await bench.idle(seconds)
            delivered, busy = await bench.events()
            return {"inserted": inserted, "idle p99": idle, "delivered": delivered, "busy p99": busy}

        found = await medians(rounds, one_round)
    show(
        Claim(f"an event to {MEMBERS:,}", found["delivered"], "rows/s", found["inserted"], at_least=0.25),
        Claim("another's page at the same time, p99", found["busy p99"], "ms", found["idle p99"], at_most=2),
    )


class Bench:
    """The measurements on a running service; `other` is a user who is not in the team."""

    def __init__(self, running: Service, other: int) -> None:
        self._running = running
        self._event = Catalogue.load().samples["note"]["event"] | {"notify": {"teams": [TEAM]}}
        self._page = running.get("/notifications", user=other)

    async def insert(self) -> float:
        """Return the rows per second of the bare INSERT."""
        async with database(self._running) as connection:
            await connection.execute("truncate bench.entries")
            statement = "insert into bench.entries select user_id, $1 from members where team_id = $2"
            began = time.perf_counter()
            await connection.execute(statement, uuid4(), TEAM)
            return MEMBERS / (time.perf_counter() - began)

    async def idle(self, seconds: float) -> float:
        """Return the 99th percentile of the other user's pages, in ms, when nothing else is done."""
        return percentile(await self._page_until(asyncio.create_task(asyncio.sleep(seconds))), 99)

    async def events(self) -> tuple[float, float]:
        """Deliver events, one after the other.

        Returns the median of the rows per second, from sending an event, and the other user's percentile meanwhile.
        """
        rates, pages = [], []
        for _ in range(EVENTS):
            delivered = asyncio.create_task(self._delivered())
            pages += await self._page_until(delivered)
            rates.append(MEMBERS / await delivered)
        return statistics.median(rates), percentile(pages, 99)

    async def _delivered(self) -> float:
        request = self._running.post(self._event)
        async with clients(self._running, 1) as (client,):
            began = time.perf_counter()
            id_ = json.loads(await client.ask(request, b"202"))["id"]
            state = json.loads(await client.ask(self._running.ask_for(id_, wait=30)))
            took = time.perf_counter() - began
        if (state["state"], state["recipients"]) != ("delivered", MEMBERS):
            raise RuntimeError(f"not delivered to all: {state}")
        return took

    async def _page_until(self, done: asyncio.Future[Any]) -> list[float]:
        """Return how long each of the other user's pages took, in ms, until something is done.

        A page that could not be asked for in time, because the one before took so long, took as long as it was late.
        """
        took: list[float] = []
        async with clients(self._running, 1) as (client,):
            due = time.perf_counter()
            while not done.done():
                due += PACE
                wait = due - time.perf_counter()
                await asyncio.sleep(wait)
                began = time.perf_counter() if wait > 0 else due
                if not has_rows(await client.ask(self._page)):
                    raise RuntimeError("a page of another length")
                took.append((time.perf_counter() - began) * 1000)
        return took


async def _filled(running: Service) -> int:
    """Fill the database and return the other user."""
    async with database(running) as connection:
        people = await fill.users(connection, MEMBERS + 1)
        await fill.team(connection, TEAM, people[:-1])
        await fill.notifications(connection, OTHERS_INBOX)
        await fill.inboxes(connection, people[-1:], OTHERS_INBOX, unread=OTHERS_INBOX)
        await connection.execute("create schema bench")
        await connection.execute(
            "create table bench.entries (user_id int, event_id uuid, primary key (user_id, event_id))"
        )
        await fill.settle(connection)
    return people[-1]


if __name__ == "__main__":
    uvloop.run(main())
