"""Retention of a million events of an old month, beside 100 posts a second: what is felt, and how fast it is."""

import asyncio
import json
import sys
import time
from pathlib import Path

import uvloop

from bench import fill
from bench.measure import Claim, options, percentile, show
from bench.service import Service, database, service
from tocsin import retention
from tocsin.db.pool import Connection, Database
from tocsin.store import pool

EVENTS = 1_000_000
USERS = 10_000
RATE = 100.0
LOW, HIGH = "016f5e66-e800-0000-0000-000000000000", "016ffe0c-0c00-0000-0000-000000000000"
"""The first ids of January and of February 2020."""

OLD = f"""
create temp table old as
    select number, (
        '016f5e66-e' || to_hex(2048 + number / 1000) || '-7' || lpad(to_hex(number % 1000), 3, '0') || '-8000-'
        || lpad(to_hex(number), 12, '0')
    )::uuid as id, {fill.FIRST} + number % {USERS} as user_id
    from generate_series(0, {EVENTS} - 1) as number;
insert into events (id, kind, data, params, users, teams, subjects, accepted_at)
    select id, 'custom', '{{}}', jsonb_build_object('body', repeat('x', 200)), array[user_id], '{{}}',
           array['order:' || number], '2020-01-15'
    from old;
insert into contents (event_id, language, body) select id, 'en', repeat('x', 400) from old;
insert into subjects (subject, event_id) select 'order:' || number, id from old;
insert into recipients (event_id, after_user, user_ids, team_ids, reached, dropped, delivered_at)
    select id, 0, array[user_id], array[0], 1, 0, '2020-01-15' from old;
insert into inbox (position, created_at, event_id, user_id, language)
    select 1 + number / {USERS}, '2020-01-15', id, user_id, 'en' from old;
update heads set position = {EVENTS // USERS}, total = {EVENTS // USERS}, unread = {EVENTS // USERS};
"""  # noqa: S608 - constants


async def main() -> None:
    """Measure and print."""
    _, seconds = options(__doc__, rounds=1, seconds=20)
    async with (
        service() as running,
        database(running) as connection,
        pool(running.database_url, 1, yields=True) as bulk,
    ):
        await _fill(connection)
        await _post(running, 5)
        before = await _post(running, seconds)
        began = time.perf_counter()
        forgetting = asyncio.create_task(_forget(bulk))
        beside = await _post(running, seconds)
        left = await connection.fetchval("select count(*) from inbox where created_at < '2020-02-01'")
        speed = (EVENTS - left) / (time.perf_counter() - began)
        await forgetting
        dropped_after = time.perf_counter() - began
        is_there = await connection.fetchval("select to_regclass('events_2020_01') is not null")
        after = await _post(running, seconds)
    if is_there:
        raise RuntimeError("the month is not dropped")
    calm = (before + after) / 2
    print(f"  p99 before {before:.1f}, beside {beside:.1f}, after {after:.1f} ms", file=sys.stderr)
    show(
        Claim("p99 of a post beside retention", beside, "ms", calm, at_most=1.5),
        Claim("events of which retention deletes the notifications", speed, "/s"),
        Claim(f"until {EVENTS:,} events are dropped", dropped_after, "s"),
    )


async def _forget(bulk: Database) -> None:
    """Run rounds of retention until the month is dropped."""
    while "months" not in await retention.run_once(bulk, 30):
        await asyncio.sleep(1)


async def _fill(connection: Connection) -> None:
    """Insert the events, in partitions of their month."""
    async with connection.transaction():  # the service makes partitions that are missing
        for table in ("events", "contents", "recipients", "subjects"):
            await connection.execute(f"drop table {table}_past")
            await connection.execute(
                f"create table {table}_past partition of {table} for values from (minvalue) to ('{LOW}')"
            )
            await connection.execute(
                f"create table {table}_2020_01 partition of {table} for values from ('{LOW}') to ('{HIGH}')"
            )
    await fill.users(connection, USERS)
    await connection.execute(OLD)
    await fill.settle(connection)


async def _post(running: Service, seconds: float) -> float:
    """Post events to one user each at `RATE`, from another process; return the 99th percentile in milliseconds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.arrivals"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    event = {"type": "custom", "params": {"body": "Hello"}}
    requests = [
        running.post({**event, "notify": {"users": [fill.FIRST + number]}}).decode("latin-1") for number in range(500)
    ]
    given = {"host": running.host, "port": running.port, "requests": requests, "rate": RATE, "seconds": seconds}
    found = json.loads((await process.communicate(json.dumps(given).encode()))[0])
    return percentile(found["took"]["202"], 99)


if __name__ == "__main__":
    uvloop.run(main())
