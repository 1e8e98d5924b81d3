"""A page of an inbox with rate limits, against one without: the CPU of the service and of PostgreSQL per request.

Two services run at the same time and are measured in turn. The limit is the default one, of which each user uses the
free part first and then parts in advance.
"""

from contextlib import AsyncExitStack

import uvloop

from bench import fill
from bench.measure import Claim, cpu_of, has_rows, load, medians, options, show
from bench.service import Service, database, folder, started
from tocsin.settings import Settings

OWNERS = 100
SIZE = 1_000

LIMITS = {"limited": str(Settings().limit_user_requests), "unlimited": "none"}


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=11, seconds=3)
    async with AsyncExitStack() as stack:
        services = {
            name: await stack.enter_async_context(
                started(stack.enter_context(folder()) / "data", {"TOCSIN_LIMIT_USER_REQUESTS": limit})
            )
            for name, limit in LIMITS.items()
        }
        for running in services.values():
            async with database(running) as connection:
                owners = await fill.users(connection, OWNERS)
                await fill.history(connection, owners, SIZE)
        turns = list(services)

        async def one_round() -> dict[str, float]:
            turns.reverse()
            return {name: await _cost(services[name], owners, seconds) for name in turns}

        costs = await medians(rounds, one_round)
    what = "CPU of a page with rate limits, in microseconds"
    show(Claim(what, costs["limited"], "", costs["unlimited"], at_most=1.05))


async def _cost(running: Service, owners: range, seconds: float) -> float:
    """Return the CPU microseconds of a request."""
    requests = [running.get("/notifications", user=owner) for owner in owners]
    before = cpu_of(running.process.pid)
    rate = await load(running, requests, seconds, status=b"200", accept=has_rows)
    return (cpu_of(running.process.pid) - before) / (rate * seconds) * 1e6


if __name__ == "__main__":
    uvloop.run(main())
