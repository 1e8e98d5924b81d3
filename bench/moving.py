"""A company that moves to another database: rows a second, processor time, and for how long it is closed.

Once while nobody uses it, and once while users of it get events and read them; with notifications of each user, and
with those that all users have.
"""

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import uvloop

from bench import fill
from bench.measure import Claim, cpu_of, medians, show, sizes
from bench.service import folder
from tocsin import moving
from tocsin.api.drafts import draft_of
from tocsin.at_once import AtOnce
from tocsin.auth.claims import UserCaller
from tocsin.catalogue import Catalogue
from tocsin.db import migrate
from tocsin.db.connections import Connection, connect
from tocsin.disk_guard import DiskGuard
from tocsin.errors import Problem
from tocsin.events import Intake
from tocsin.ids import MAX_ID
from tocsin.marks import SingleMarks
from tocsin.postgres.supervisor import Embedded
from tocsin.pubsub import PubSub
from tocsin.store import pool

INBOX = 50

USING, PAUSE = 8, 0.05
"""Tasks that post an event and mark it as read, and the seconds between two events of one."""


async def main() -> None:
    """Measure and print."""
    rounds, _, people = sizes(__doc__, rounds=3, seconds=1, people=2_000)
    found = await _measured(rounds, people, fill.history)
    shared = await _measured(rounds, people, fill.announcements)
    show(
        Claim("notifications that move", found["entries a second"], "/s"),
        Claim("processor time of a notification, of the command and both databases", found["used"], "µs"),
        Claim("the same of one that all users have", shared["used"], "µs", found["used"], at_most=1.0),
        Claim(f"time for which a company of {people:,} users is closed, after 2 s", found["closed"], "s"),
        Claim("the same, while it is in use", found["closed in use"], "s"),
        Claim("events and marks a second until then", found["events a second"], "/s"),
    )


async def _measured(
    rounds: int, people: int, filling: Callable[[Connection, range, int], Awaitable[None]]
) -> Mapping[str, float]:
    """Move a company with these inboxes to and fro."""
    with folder() as outer:
        async with Embedded(outer / "data") as server, contextlib.AsyncExitStack() as stack:
            cells, urls = [], {}
            for name in ("a", "b"):
                owner = await connect(server.url)
                await owner.execute(f"create database cell_{name}")
                await owner.close()
                url = server.url.replace("/tocsin?", f"/cell_{name}?")
                await migrate.migrate(url)
                urls[name] = url
                cells.append((name, await stack.enter_async_context(pool(url, moving.CONNECTIONS))))
                if name == "a":
                    owner = await connect(url)
                    everyone = await fill.users(owner, people)
                    await filling(owner, everyone, INBOX)
                    await owner.close()

            async def one_round() -> dict[str, float]:
                (origin, source), (destination, target) = cells
                began, used = time.monotonic(), cpu_of(os.getpid())
                done = await moving.move(source, target, 1, origin, destination)
                seconds, used = time.monotonic() - began, cpu_of(os.getpid()) - used
                cells.reverse()
                entries = done.compared["inbox"]
                (origin, source), (destination, target) = cells
                async with used_company(urls[origin], everyone) as counted:
                    busy = await moving.move(source, target, 1, origin, destination)
                cells.reverse()
                return {
                    "closed in use": busy.closed - moving.CLOSE_DELAY,
                    "events a second": counted[0],
                    "entries a second": entries / (seconds - moving.CLOSE_DELAY),
                    "closed": done.closed - moving.CLOSE_DELAY,
                    "used": 1e6 * used / entries,
                }

            return await medians(rounds, one_round)


@contextlib.asynccontextmanager
async def used_company(url: str, people: range) -> AsyncIterator[list[float]]:
    """Post events to users of the company and mark them as read, until it has left; yields how many a second."""
    catalogue, counted, marked = Catalogue.load(), [0.0], 0
    async with pool(url, 6) as database:
        pubsub = PubSub(url, database)
        intake = Intake(database, pubsub, DiskGuard(None, None), AtOnce(catalogue))
        marks = SingleMarks(database)

        async def use() -> None:
            nonlocal marked
            while True:
                user = random.choice(people)  # noqa: S311
                event = {"type": "custom", "notify": {"users": [user]}, "params": {"body": "Hello"}}
                accepted = await intake.accept(draft_of(json.dumps(event), "bench", None, catalogue))
                await marks.read(UserCaller(user, expires=MAX_ID), accepted.id)
                marked += 1
                await asyncio.sleep(PAUSE)

        async def use_until_it_leaves() -> None:
            began = time.monotonic()
            results = await asyncio.gather(*(use() for _ in range(USING)), return_exceptions=True)
            counted[0] = marked / (time.monotonic() - began)
            for error in results:
                if isinstance(error, BaseException) and not isinstance(error, Problem):
                    raise error

        using = asyncio.create_task(use_until_it_leaves())
        await asyncio.sleep(0.5)
        yield counted
        await using
        await pubsub.close()


if __name__ == "__main__":
    uvloop.run(main())
