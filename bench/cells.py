"""What an event costs in two cells against one: processor time of the service and of all of PostgreSQL.

    .venv/bin/python -m bench.cells --rounds 3

Events to one user each are posted one by one, to one `tocsin serve`: by 32 clients, and by 32 for each cell, since
events that arrive at the same time share a transaction, and those of two cells cannot. The cells are schemas of one
PostgreSQL; two cells have half of the users each. A tenth of the events is posted before the measurement, so that the
connections are open and their statements planned. Each round measures all, and counts the inboxes.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from bench import fill
from bench.measure import Claim, cpu_of, medians, options, show
from bench.processes import CLIENTS, EVENTS_PER_SECOND, PEOPLE, holding, post, settled
from bench.service import Service, clients, folder, started
from tocsin.auth.keys import own_secret
from tocsin.db.connections import Connection, connect
from tocsin.db.migrate import migrate
from tocsin.db.url import in_schema

COMPANY = 2
"""The company of the second of two cells; the others have company 1."""

CELLS = f"""
[first]
default = true
schema = "first_cell"

[second]
schema = "second_cell"
companies = [{COMPANY}]
"""


async def main() -> None:
    """Measure one cell and two in turn, and print what an event costs."""
    given = options(__doc__, rounds=3, seconds=10)
    events = round(given.seconds * EVENTS_PER_SECOND)
    async with AsyncExitStack() as stack:
        holder = await stack.enter_async_context(holding())

        async def cell(schema: str, users: slice, company: int = 1) -> Connection:
            url = in_schema(holder.database_url, schema)
            await migrate(url)
            connection = await connect(url)
            stack.push_async_callback(connection.close)
            everyone = await fill.users(connection, PEOPLE)
            left_out = sorted({*everyone} - {*everyone[users]})
            await connection.execute("delete from users where id = any($1::int[])", left_out)
            await connection.execute("update users set company_id = $1", company)
            await connection.execute("analyze users, heads")
            return connection

        people = range(fill.FIRST, fill.FIRST + PEOPLE)
        one = [await cell("tocsin", slice(None))]
        two = [
            await cell("first_cell", slice(PEOPLE // 2)),
            await cell("second_cell", slice(PEOPLE // 2, None), COMPANY),
        ]

        async def one_round() -> Mapping[str, float]:
            return {
                "one": await _measure(holder, one, people, events, CLIENTS),
                "two": await _measure(holder, two, people, events, CLIENTS),
                "two, twice the clients": await _measure(holder, two, people, events, 2 * CLIENTS),
            }

        found = await medians(given.rounds, one_round)
    show(
        Claim("CPU per event, two cells, 32 clients", found["two"], "µs", found["one"], at_most=1.05),
        Claim("32 clients for each cell", found["two, twice the clients"], "µs", found["one"], at_most=1.05),
    )


async def _measure(holder: Service, cells: Sequence[Connection], people: range, events: int, posting: int) -> float:
    """Return the microseconds of processor time of an event."""
    postgres = int((holder.data_dir / "postgres/postmaster.pid").read_text("ascii").split()[0])
    variables = {"TOCSIN_DATABASE_URL": holder.database_url, "TOCSIN_JWT_SECRET": own_secret(holder.data_dir)}
    with folder() as outer:
        if len(cells) > 1:
            (outer / "cells.toml").write_text(CELLS)
            variables["TOCSIN_CELLS_FILE"] = str(outer / "cells.toml")
        async with started(outer / "data", variables) as found:
            api = Service(found.host, found.port, holder.data_dir, found.process)
            await _opened(api)
            await _warm_up(api, people)
            await post([api], people, events // 10, posting)
            await _settled(cells)
            before = await _delivered(cells)
            used = cpu_of(found.process.pid) + cpu_of(postgres)
            await post([api], people, events, posting)
            await _settled(cells)
            used = cpu_of(found.process.pid) + cpu_of(postgres) - used
            if await _delivered(cells) - before != events:
                raise RuntimeError("not every event is in exactly one inbox")
    return used / events * 1e6


async def _opened(api: Service) -> None:
    """Wait until all cells are open."""
    async with clients(api, 1) as [client]:
        while b"cell second: it is not" in await client.ask(api.get("/readyz", user=1), b"200"):
            await asyncio.sleep(0.1)


async def _warm_up(api: Service, people: range) -> None:
    """Post an event to each user, so that the process has looked up where they are."""
    async with clients(api, 1) as [client]:
        for half in (people[: PEOPLE // 2], people[PEOPLE // 2 :]):
            batch = [{"type": "custom", "notify": {"users": [user]}, "params": {"body": "Hello"}} for user in half]
            await client.ask(api.post_batch(batch), b"202")


async def _settled(cells: Sequence[Connection]) -> None:
    for cell in cells:
        await settled(cell)


async def _delivered(cells: Sequence[Connection]) -> int:
    return sum([await cell.fetchval("select count(*) from inbox") for cell in cells])


if __name__ == "__main__":
    asyncio.run(main())
