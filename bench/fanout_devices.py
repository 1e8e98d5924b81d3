"""An event to 100,000 users with an iPhone each, until the last inbox has it, against as many users without devices.

A delivery is made for each device in the transaction that fills the inboxes. It is measured twice: while the pushes go
out as they are made, and while their lane is stopped.
"""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from uuid import uuid4

import uvloop

from bench import fill
from bench.apple import Apple, apple
from bench.measure import Claim, medians, show, sizes
from bench.service import Service, clients, database, folder, in_inboxes, started
from tocsin.catalogue import Catalogue

WITHOUT, WITH, STOPPED = 1, 2, 3
"""The teams: without devices, with an iPhone each, and with one each whose lane is stopped."""

LONGEST = 600.0
"""Seconds after which a push counts as lost."""


async def main() -> None:
    """Measure and print."""
    rounds, _, people = sizes(__doc__, rounds=3, seconds=1, people=100_000)
    async with AsyncExitStack() as stack:
        outer = stack.enter_context(folder())
        phones = await stack.enter_async_context(apple(outer))
        running = await stack.enter_async_context(started(outer / "data", phones.variables))
        await _fill(running, people)
        bench = Bench(running, phones, people)

        async def one_round() -> dict[str, float]:
            inserted = await bench.insert()
            without, stopped = await bench.event(WITHOUT), await bench.event(STOPPED)
            rate = await bench.event(WITH)
            await bench.pushed()
            return {"inserted": inserted, "without": without, "stopped": stopped, "with": rate}

        found = await medians(rounds, one_round)
    show(
        Claim(f"to {people:,} with a device each", found["with"], "rows/s", found["without"], at_least=0.6),
        Claim("the same, while nothing is sent", found["stopped"], "rows/s", found["without"], at_least=0.6),
        Claim("with a device each, against a bare INSERT", found["with"], "rows/s", found["inserted"]),
        Claim("without devices, against a bare INSERT", found["without"], "rows/s", found["inserted"]),
    )


class Bench:
    """The measurements on a running service."""

    def __init__(self, running: Service, phones: Apple, people: int) -> None:
        self._running, self._phones, self._people = running, phones, people
        self._event = Catalogue.load().samples["note"]["event"]
        self._pushes = 0

    async def insert(self) -> float:
        """Return the rows per second of the bare INSERT."""
        async with database(self._running) as connection:
            await connection.execute("truncate bench.entries")
            statement = "insert into bench.entries select user_id, $1 from members where team_id = $2"
            began = time.perf_counter()
            await connection.execute(statement, uuid4(), WITHOUT)
            return self._people / (time.perf_counter() - began)

    async def event(self, team: int) -> float:
        """Deliver an event to a team; return the rows per second from its 202 to the last inbox."""
        request = self._running.post({**self._event, "notify": {"teams": [team]}})
        async with clients(self._running, 1) as (client,), database(self._running) as connection:
            id_ = json.loads(await client.ask(request, b"202"))["id"]
            began = time.perf_counter()
            await in_inboxes(connection, id_)
            took = time.perf_counter() - began
            reached = await connection.fetchval("select sum(reached) from recipients where event_id = $1", id_)
            made = await connection.fetchval("select count(*) from deliveries where event_id = $1", id_)
        if reached != self._people:
            raise RuntimeError(f"not delivered to all, but to {reached}")
        if made != (0 if team == WITHOUT else self._people):
            raise RuntimeError(f"{made} deliveries were made for team {team}")
        return self._people / took

    async def pushed(self) -> None:
        """Wait until all phones of the team have the event, and that is written down."""
        self._pushes += self._people
        statement = "select exists (select from deliveries where lane = 'apns/default' and settled_at is null)"
        async with database(self._running) as connection, asyncio.timeout(LONGEST):
            while self._phones.count() < self._pushes or await connection.fetchval(statement):
                await asyncio.sleep(0.5)


async def _fill(running: Service, people: int) -> None:
    async with database(running) as connection:
        everyone = await fill.users(connection, people * 3)
        for team in (WITHOUT, WITH, STOPPED):
            await fill.team(connection, team, everyone[(team - 1) * people : team * people])
        await fill.devices(connection, everyone[people : people * 2])
        await fill.devices(connection, everyone[people * 2 :], "sandbox")
        await connection.execute("create schema bench")
        await connection.execute(
            "create table bench.entries (user_id int, event_id uuid, primary key (user_id, event_id))"
        )
        await fill.settle(connection)


if __name__ == "__main__":
    uvloop.run(main())
