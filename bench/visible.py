"""Time from acceptance to the recipient's inbox, at 100 events per second to single users."""

from contextlib import AsyncExitStack

import uvloop

from bench import fill
from bench.flow import EVERY, flow, percentiles
from bench.measure import Claim, medians, options, show
from bench.service import Service, database, service

PEOPLE = 1_000
HISTORY = 100
"""Earlier notifications of each user."""


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=3, seconds=15)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(service())
        events = await stack.enter_async_context(flow(running, await _filled(running)))

        async def one_round() -> dict[str, float]:
            followed = await events.of(round(seconds / EVERY))
            return percentiles(
                {
                    "visible": [event.seen - event.sent for event in followed],
                    "accepted": [event.accepted - event.sent for event in followed],
                    "since": [event.seen - event.accepted for event in followed],
                }
            )

        took = await medians(rounds, one_round)
    show(
        Claim("from sending to visible, p50", took["visible p50"], "ms"),
        Claim("from sending to visible, p99", took["visible p99"], "ms"),
        Claim("from sending to 202, p50", took["accepted p50"], "ms"),
        Claim("from sending to 202, p99", took["accepted p99"], "ms"),
        Claim("from 202 to visible, p50", took["since p50"], "ms", at_most=2),
        Claim("from 202 to visible, p99", took["since p99"], "ms", at_most=10),
    )


async def _filled(running: Service) -> range:
    async with database(running) as connection:
        people = await fill.users(connection, PEOPLE)
        await fill.history(connection, people, HISTORY)
    return people


if __name__ == "__main__":
    uvloop.run(main())
