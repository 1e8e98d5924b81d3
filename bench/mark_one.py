"""Marking one notification as read, against the rate at which the database commits a single row."""

import itertools
from collections.abc import Sequence

import uvloop

from bench import fill
from bench.measure import Claim, load, medians, options, pgbench, show
from bench.service import Service, database, service

OWNERS = 100
SIZE = 1_000


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=5, seconds=4)
    async with service() as running:
        turns = itertools.chain.from_iterable(itertools.cycle(await _filled(running)))

        async def one_round() -> dict[str, float]:
            committed = await pgbench(running, "insert into bench.committed values (1);", seconds)
            marked = await load(running, turns, seconds, status=b"204", accept=lambda body: not body)
            return {"committed": committed, "marked": marked}

        rates = await medians(rounds, one_round)
    show(Claim("marked, one of an inbox of 1,000", rates["marked"], "/s", rates["committed"], at_least=0.28))


async def _filled(running: Service) -> Sequence[Sequence[bytes]]:
    """Fill the inboxes; return the requests that mark each notification as read, and those that unmark it."""
    async with database(running) as connection:
        owners = await fill.users(connection, OWNERS)
        await connection.execute("create schema bench")
        await connection.execute("create table bench.committed (number int)")
        await fill.history(connection, owners, SIZE)
        rows = await connection.fetch("select user_id, event_id from inbox order by position, user_id")
    return [
        [running.put(f"/notifications/{event_id}/{state}", user=user_id) for user_id, event_id in rows]
        for state in ("read", "unread")
    ]


if __name__ == "__main__":
    uvloop.run(main())
