"""`tocsin.post` in a transaction of another application, against a plain INSERT of as many bytes."""

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncIterator

import asyncpg
import uvloop

from bench import fill
from bench.measure import CONNECTIONS, Claim, medians, options, show
from bench.service import folder
from tocsin import posters
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection, connect
from tocsin.db.migrate import migrate
from tocsin.postgres.supervisor import Embedded
from tocsin.store import pool

USERS = 1_000
AT_ONCE = 100
SAMPLE = {
    "type": "note",
    "notify": {"users": [fill.FIRST]},
    "data": {
        "user": 4,
        "case": {
            "id": "65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88",
            "case_number": 6,
            "relations_path_name": "Case type",
        },
    },
    "params": {"contact": "Jane Doe", "body": "Hey John, please have a look!"},
}
STATEMENTS = {"post": "select tocsin.post($1::jsonb)", "plain": "insert into plain (event) values ($1::jsonb)"}


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=5, seconds=3)
    event = json.dumps(SAMPLE)
    async with _sessions() as (owner, sessions):

        async def one_round() -> dict[str, float]:
            found = dict[str, float]()
            for name, each in zip(("one", "many"), (1, AT_ONCE), strict=True):
                found |= {
                    f"{name} {key}": took for key, took in (await _alone(sessions[0], event, each, seconds)).items()
                }
            for key in STATEMENTS:
                found[f"together {key}"] = await _together(sessions, key, event, seconds)
            await owner.execute("truncate jobs, posted, plain")
            return found

        found = await medians(rounds, one_round)
    show(
        Claim("a transaction that posts one event", found["one post"], "ms", found["one plain"], at_most=1.5),
        Claim(
            f"a transaction that posts an event, {CONNECTIONS} at the same time",
            found["together post"],
            "ms",
            found["together plain"],
        ),
        Claim(f"a transaction that posts {AT_ONCE} events", found["many post"], "ms", found["many plain"]),
    )


async def _alone(session: asyncpg.Connection, event: str, each: int, seconds: float) -> dict[str, float]:
    """Return the median milliseconds of a transaction with so many statements, the two kinds in turn."""
    times: dict[str, list[float]] = {key: [] for key in STATEMENTS}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for key, statement in STATEMENTS.items():
            times[key].append(await _transaction(session, statement, event, each))
    return {key: statistics.median(took) for key, took in times.items()}


async def _together(sessions: list[asyncpg.Connection], key: str, event: str, seconds: float) -> float:
    """Return the mean milliseconds of a transaction, while all sessions run them."""

    async def repeat(session: asyncpg.Connection) -> list[float]:
        end, times = time.perf_counter() + seconds, []
        while time.perf_counter() < end:
            times.append(await _transaction(session, STATEMENTS[key], event, 1))
        return times

    return statistics.mean(took for times in await asyncio.gather(*map(repeat, sessions)) for took in times)


async def _transaction(session: asyncpg.Connection, statement: str, event: str, each: int) -> float:
    began = time.perf_counter()
    async with session.transaction():
        for _ in range(each):
            await session.execute(statement, event)
    return (time.perf_counter() - began) * 1000


@contextlib.asynccontextmanager
async def _sessions() -> AsyncIterator[tuple[Connection, list[asyncpg.Connection]]]:
    """Provide a database without a worker: its owner, and sessions of a role that may post for company 1."""
    with folder() as outer:
        async with Embedded(outer / "data") as server:
            await migrate(server.url)
            owner = await connect(server.url)
            await fill.users(owner, USERS)
            types = {kind.type for kind in Catalogue.load().kinds.values()}
            await owner.execute("insert into posted_types (type) select unnest($1::text[])", list(types))
            await owner.execute("create table plain (id bigint generated always as identity primary key, event jsonb)")
            await owner.execute("create role crm; grant insert on plain to crm")
            async with pool(server.url, 1) as database:
                await posters.permit(database, "crm", "crm", 1)
            await fill.settle(owner)
            sessions = [await asyncpg.connect(server.url) for _ in range(CONNECTIONS)]
            for session in sessions:
                await session.execute("set search_path = tocsin; set session authorization crm")
            yield owner, sessions
            for session in (owner, *sessions):
                await session.close()


if __name__ == "__main__":
    uvloop.run(main())
