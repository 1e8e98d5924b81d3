"""The latency of a live event that one process accepts and another one sends to its stream, at 1,000 streams.

    .venv/bin/python -m bench.live --rounds 3

Two API processes and a worker share a database. The events are posted to the first process, 200 a second, and the users
of the second follow their streams: once with NOTIFY of PostgreSQL between the processes, and once with NATS.
"""

from contextlib import AsyncExitStack

import uvloop

from bench import fill
from bench.measure import Claim, options, percentile, show
from bench.processes import Arrangement, arranged, holding, nats_server
from bench.service import clients, database
from bench.streams import BACK_ENDS, flow, following

STREAMS = 1_000

_APIS = [("serve", "--no-worker")] * 2
ARRANGEMENTS = (Arrangement("NOTIFY", _APIS, 1), Arrangement("NATS", _APIS, 1, nats=True))
LIMITS = {"NOTIFY": 40, "NATS": 20}
"""Wanted p99 in ms."""


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=1, seconds=15)
    took: dict[str, list[float]] = {arrangement.name: [] for arrangement in ARRANGEMENTS}
    async with AsyncExitStack() as stack:
        holder = await stack.enter_async_context(holding())
        nats = await stack.enter_async_context(nats_server())
        connection = await stack.enter_async_context(database(holder))
        people = await fill.users(connection, STREAMS)
        for _ in range(rounds):
            for arrangement in ARRANGEMENTS:
                async with (
                    arranged(holder, arrangement, nats) as ((accepting, sending), _),
                    following(sending, people) as streams,
                    clients(accepting, BACK_ENDS) as back_ends,
                ):
                    await flow(accepting, back_ends, people, streams, 1)
                    took[arrangement.name] += await flow(accepting, back_ends, people, streams, seconds)
    show(
        *(
            Claim(f"{name}: from 202 to the line of another process, p{part}", percentile(ms, part), "ms", at_most=most)
            for name, ms in took.items()
            for part, most in ((50, None), (99, LIMITS[name]))
        )
    )


if __name__ == "__main__":
    uvloop.run(main())
