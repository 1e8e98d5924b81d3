"""A company that moves to another database: rows a second, processor time, and for how long it is closed."""

import contextlib
import os
import time

import uvloop

from bench import fill
from bench.measure import Claim, cpu_of, medians, show, sizes
from bench.service import folder
from tocsin import moving
from tocsin.db import migrate
from tocsin.db.pool import connect
from tocsin.postgres.supervisor import Embedded
from tocsin.store import pool

INBOX = 50


async def main() -> None:
    """Measure and print."""
    rounds, _, people = sizes(__doc__, rounds=3, seconds=1, people=2_000)
    with folder() as outer:
        async with Embedded(outer / "data") as server, contextlib.AsyncExitStack() as stack:
            cells = []
            for name in ("a", "b"):
                owner = await connect(server.url)
                await owner.execute(f"create database cell_{name}")
                await owner.close()
                url = server.url.replace("/tocsin?", f"/cell_{name}?")
                await migrate.migrate(url)
                cells.append((name, await stack.enter_async_context(pool(url, moving.CONNECTIONS))))
                if name == "a":
                    owner = await connect(url)
                    await fill.history(owner, await fill.users(owner, people), INBOX)
                    await owner.execute("vacuum analyze")
                    await owner.close()

            async def one_round() -> dict[str, float]:
                (origin, source), (destination, target) = cells
                began, used = time.monotonic(), cpu_of(os.getpid())
                done = await moving.move(source, target, 1, origin, destination)
                seconds, used = time.monotonic() - began, cpu_of(os.getpid()) - used
                cells.reverse()
                entries = done.compared["inbox"]
                return {
                    "entries a second": entries / (seconds - moving.CLOSE_DELAY),
                    "closed": done.closed - moving.CLOSE_DELAY,
                    "used": 1e6 * used / entries,
                }

            found = await medians(rounds, one_round)
    show(
        Claim("notifications that move", found["entries a second"], "/s"),
        Claim("processor time of a notification, of the command and both databases", found["used"], "µs"),
        Claim(f"time for which a company of {people:,} users is closed, after 2 s", found["closed"], "s"),
    )


if __name__ == "__main__":
    uvloop.run(main())
