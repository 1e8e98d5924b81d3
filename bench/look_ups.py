"""Processor time of PostgreSQL for the look-up of the inbox of an open stream, as polls make it, for `bench.model`."""

import uvloop

from bench import fill
from bench.measure import Claim, medians, options, show
from bench.partitions import used
from bench.service import folder
from tocsin import inbox
from tocsin.db.connections import connect
from tocsin.db.migrate import migrate
from tocsin.postgres.supervisor import Embedded
from tocsin.store import pool
from tocsin.streams import BATCH_SIZE

USERS = 20_000
LOOKS = 200
"""Look-ups of `BATCH_SIZE` inboxes, for each second that a round takes."""


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=5, seconds=1)
    with folder() as outer:
        async with Embedded(outer / "data") as server, pool(server.url, 1) as database:
            await migrate(server.url)
            owner = await connect(server.url)
            users = await fill.users(owner, USERS)
            await fill.settle(owner)
            await owner.close()
            pid = await database.value("select pg_backend_pid()")
            looks = round(LOOKS * seconds)

            async def one_round() -> dict[str, float]:
                before = used(pid)
                for number in range(looks):
                    start = number * 7919 % (USERS - BATCH_SIZE)
                    await inbox.heads(database, users[start : start + BATCH_SIZE])
                return {"look-up": (used(pid) - before) / looks / BATCH_SIZE / 1000}

            found = await medians(rounds, one_round)
    show(Claim(f"an inbox, {BATCH_SIZE} by a statement", found["look-up"], "µs"))


if __name__ == "__main__":
    uvloop.run(main())
