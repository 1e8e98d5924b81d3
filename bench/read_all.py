"""Marking all as read, against a bare UPDATE of as many rows; and marking a few, against marking one."""

import time

import uvloop

from bench import fill
from bench.measure import Claim, medians, options, show
from bench.service import Client, Service, clients, database, service
from tocsin.db.connections import Connection

MANY = 100_000
FEW = 100
REPEATS = 50

_BARE = "update inbox set read_at = clock_timestamp() where user_id = $1 and deleted_at is null and read_at is null"


async def main() -> None:
    """Measure and print."""
    rounds, _ = options(__doc__, rounds=5, seconds=1)
    async with service() as running, database(running) as connection, clients(running, 1) as [client]:
        owners = await fill.users(connection, 3)
        many, bare, few = owners
        await fill.notifications(connection, MANY)
        await fill.inboxes(connection, range(many, bare + 1), MANY, unread=MANY)
        await fill.inboxes(connection, range(few, few + 1), FEW, unread=FEW)
        id_ = await connection.fetchval("select event_id from inbox where user_id = $1 limit 1", few)
        await fill.settle(connection)

        async def one_round() -> dict[str, float]:
            found = {"bare": await _bare(connection, bare), "many": await _ask(running, client, connection, many)}
            found["one"] = await _repeat(running, client, connection, few, f"/notifications/{id_}/read")
            found["few"] = await _repeat(running, client, connection, few, "/notifications/read")
            return found

        times = await medians(rounds, one_round)
    show(
        Claim(f"mark all read, {MANY:,} unread", times["many"], "ms", times["bare"], at_most=1.2),
        Claim(f"mark all read, {FEW} unread, against one", times["few"], "ms", times["one"], at_most=3),
    )


async def _bare(connection: Connection, user: int) -> float:
    await _unread(connection, user)
    began = time.perf_counter()
    await connection.execute(_BARE, user)
    return (time.perf_counter() - began) * 1000


async def _ask(
    running: Service, client: Client, connection: Connection, user: int, path: str = "/notifications/read"
) -> float:
    await _unread(connection, user)
    request = running.put(path, user=user)
    began = time.perf_counter()
    await client.ask(request, b"204")
    return (time.perf_counter() - began) * 1000


async def _repeat(running: Service, client: Client, connection: Connection, user: int, path: str) -> float:
    times = sorted([await _ask(running, client, connection, user, path) for _ in range(REPEATS)])
    return times[REPEATS // 2]


async def _unread(connection: Connection, user: int) -> None:
    """Mark all of an inbox as unread, and remove dead rows."""
    await connection.execute("update inbox set read_at = null where user_id = $1 and read_at is not null", user)
    await connection.execute("update heads set unread = total where user_id = $1", user)
    if await connection.fetchval("select total from heads where user_id = $1", user) == MANY:
        await fill.settle(connection)


if __name__ == "__main__":
    uvloop.run(main())
