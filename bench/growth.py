"""Processor time of PostgreSQL for an event and a page, with 10 million entries in inboxes against one million."""

import contextlib

import uvloop

from bench import fill
from bench.measure import Claim, medians, options, show
from bench.partitions import cost_of
from bench.service import folder
from tocsin.db.migrate import migrate
from tocsin.db.pool import Database, connect
from tocsin.postgres.supervisor import Embedded
from tocsin.store import pool

USERS = 100_000
EVENTS = 100_000
ENTRIES = {"small": 10, "large": 100}
"""Entries of each user."""

CALLS = 1_000


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=7, seconds=1)
    with folder() as outer:
        async with Embedded(outer / "data") as server, contextlib.AsyncExitStack() as stack:
            databases = dict[str, Database]()
            for name, entries in ENTRIES.items():
                owner = await connect(server.url)
                await owner.execute(f"create database {name}")
                await owner.close()
                url = server.url.replace("/tocsin?", f"/{name}?")
                await migrate(url)
                owner = await connect(url)
                users = await fill.users(owner, USERS)
                await fill.notifications(owner, EVENTS)
                await fill.inboxes(owner, users, entries, unread=entries)
                await fill.settle(owner)
                await owner.close()
                databases[name] = await stack.enter_async_context(pool(url, 1))

            async def one_round() -> dict[str, float]:
                return {
                    f"{kind} {name}": await cost_of(database, kind, round(CALLS * seconds), USERS)
                    for kind in ("deliver", "page")
                    for name, database in databases.items()
                }

            await one_round()  # connects, and plans the statements
            found = await medians(rounds, one_round)
    show(
        Claim("an event, accepted and delivered", found["deliver large"], "µs", found["deliver small"], at_most=1.2),
        Claim("a page of at most 15", found["page large"], "µs", found["page small"]),
    )


if __name__ == "__main__":
    uvloop.run(main())
