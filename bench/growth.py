"""Processor time of PostgreSQL for an event, its deletion and a page, with many entries against one million."""

import argparse
import contextlib
import time

import uvloop

from bench import fill
from bench.measure import Claim, medians, show
from bench.partitions import cost_of, used
from bench.retention import PAST, old_events
from bench.service import folder
from tocsin import retention
from tocsin.db.connections import connect
from tocsin.db.migrate import migrate
from tocsin.db.pool import Database
from tocsin.postgres.supervisor import Embedded
from tocsin.store import pool

USERS = 100_000
EVENTS = 100_000
ENTRIES = 10
"""Entries of each user in the small database."""

CALLS = 1_000
EXPIRED = 5_000
"""Events that retention deletes in a round."""


async def main() -> None:
    """Measure and print."""
    rounds, large = _options()
    with folder() as outer:
        async with Embedded(outer / "data") as server, contextlib.AsyncExitStack() as stack:
            databases, urls = dict[str, Database](), dict[str, str]()
            for name, entries in {"small": ENTRIES, "large": large}.items():
                owner = await connect(server.url)
                await owner.execute(f"create database {name}")
                await owner.close()
                url = server.url.replace("/tocsin?", f"/{name}?")
                await migrate(url)
                owner = await connect(url)
                users = await fill.users(owner, USERS)
                await fill.notifications(owner, EVENTS)
                began = time.perf_counter()
                async with fill.indexes_afterwards(owner):
                    await fill.inboxes(owner, users, entries, unread=entries)
                await fill.settle(owner)
                size = await owner.fetchval(
                    "select sum(pg_total_relation_size(relid)) from pg_partition_tree('inbox') where isleaf"
                )
                print(
                    f"  {USERS * entries:,} entries: {size / USERS / entries:.0f} bytes each with their indexes,"
                    f" filled in {time.perf_counter() - began:,.0f} s",
                    flush=True,
                )
                await owner.close()
                urls[name] = url
                databases[name] = await stack.enter_async_context(pool(url, 1))

            async def one_round() -> dict[str, float]:
                costs = {
                    f"{kind} {name}": await cost_of(database, kind, CALLS, USERS)
                    for kind in ("deliver", "page")
                    for name, database in databases.items()
                }
                for name, database in databases.items():
                    costs[f"delete {name}"] = await _cost_of_deletion(urls[name], database)
                return costs

            await one_round()  # connects, and plans the statements
            found = await medians(rounds, one_round)
    show(
        Claim("an event, accepted and delivered", found["deliver large"], "µs", found["deliver small"], at_most=1.2),
        Claim("an event, deleted by retention", found["delete large"], "µs", found["delete small"], at_most=1.2),
        Claim("a page of at most 15", found["page large"], "µs", found["page small"]),
    )


def _options() -> tuple[int, int]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often to measure (default: 7)")
    parser.add_argument(
        "--entries", type=int, default=100, help="entries of each of 100,000 users in the large database (default: 100)"
    )
    given = parser.parse_args()
    return given.rounds, given.entries


async def _cost_of_deletion(url: str, database: Database) -> float:
    """Return the microseconds of PostgreSQL's processor time for the deletion of one event, of `EXPIRED`."""
    owner = await connect(url)
    await old_events(owner, PAST, EXPIRED)
    await owner.close()
    pid = await database.value("select pg_backend_pid()")
    before = used(pid)
    await retention.run_once(database, 30)
    return (used(pid) - before) / EXPIRED / 1000


if __name__ == "__main__":
    uvloop.run(main())
