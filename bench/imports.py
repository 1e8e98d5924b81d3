"""Import of users and notifications over HTTP, against COPY of the same lines into a table."""

import json
import time
from collections.abc import Iterator
from uuid import uuid4

import uvloop

from bench.measure import Claim, medians, options, show
from bench.service import Service, clients, database, service
from tocsin.catalogue import Catalogue

LINES = 100_000
USERS = 1_000


async def main() -> None:
    """Measure and print."""
    rounds, _ = options(__doc__, rounds=3, seconds=1)
    sample = Catalogue.load().samples["note"]["notification"]
    async with service() as running:
        async with database(running) as connection:
            await connection.execute(
                "create schema bench; create table bench.lines (number bigint primary key, body text)"
            )
        turn = iter(range(1, 1_000))

        async def one_round() -> dict[str, float]:
            base = next(turn) * LINES
            users = list(_users(base))
            bare = await _bare(running, users)
            imported = await _send(running, users)
            notifications = await _send(running, list(_notifications(base, sample)))
            return {"bare": bare, "users": imported, "notifications": notifications}

        rates = await medians(rounds, one_round)
    show(
        Claim("users imported", rates["users"], "/s", rates["bare"]),
        Claim("notifications imported", rates["notifications"], "/s", rates["bare"]),
        Claim("users imported a second", rates["users"], "/s", at_least=30_000),
        Claim("notifications imported a second", rates["notifications"], "/s", at_least=20_000),
    )


def _users(base: int) -> Iterator[bytes]:
    for id_ in range(base, base + LINES):
        user = {"id": id_, "first_name": "First", "last_name": f"Last{id_}", "email": f"{id_}@example.com"}
        yield json.dumps({"user": user}).encode()


def _notifications(base: int, sample: dict[str, object]) -> Iterator[bytes]:
    for number in range(LINES):
        told = {
            **sample,
            "user_id": base + number % USERS,
            "id": str(uuid4()),
            "read_at": None,
            "created_at": f"2015-{1 + number // 2500 % 12:02}-{1 + number // 100 % 25:02} 10:00:{number % 60:02}",
        }
        yield json.dumps({"notification": told}).encode()


async def _send(running: Service, lines: list[bytes]) -> float:
    request = running.post_import(b"\n".join(lines))
    async with clients(running, 1) as [client]:
        began = time.perf_counter()
        await client.ask(request)
        return len(lines) / (time.perf_counter() - began)


async def _bare(running: Service, lines: list[bytes]) -> float:
    records = [(number, line.decode()) for number, line in enumerate(lines)]
    async with database(running) as connection:
        await connection.execute("truncate bench.lines")
        began = time.perf_counter()
        await connection.copy_records_to_table("lines", schema_name="bench", records=records)
        return len(lines) / (time.perf_counter() - began)


if __name__ == "__main__":
    uvloop.run(main())
