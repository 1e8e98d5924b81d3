"""Retention of old events: how fast it is against acceptance, and what 100 posts a second feel of it.

    .venv/bin/python -m bench.retention --rounds 1 --events 1000000 --seconds 300

While posts arrive, retention runs for `WINDOW` seconds and is interrupted for as long, in turn, so that other work on
the machine slows both down alike.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import uvloop

from bench import fill
from bench.arrivals import SETTLING
from bench.measure import Claim, load, medians, percentile, show
from bench.post_event import drained
from bench.service import Service, database, service
from tocsin import retention
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.store import pool

USERS = 10_000
RATE = 100.0
BATCH = 100
ROUNDS = 10
ACCEPTING, WINDOW = 4.0, 3.0
LOW, HIGH = "016f5e66-e800-0000-0000-000000000000", "016ffe0c-0c00-0000-0000-000000000000"
"""The first ids of January and of February 2020, which has a partition here. Earlier ids are in `_past`."""

PAST, JANUARY = "016f0000-e", "016f5e66-e"
"""What the ids of old events begin with."""

OLD = f"""
create temp table old on commit drop as
    select number, (
        $1 || to_hex(2048 + number / 1000) || '-7' || lpad(to_hex(number % 1000), 3, '0') || '-8000-'
        || lpad(to_hex(number), 12, '0')
    )::uuid as id, {fill.FIRST} + number % {USERS} as user_id
    from generate_series(0, $2 - 1) as number;
insert into events (id, kind, data, params, users, teams, subjects, accepted_at)
    select id, 'custom', '{{}}', jsonb_build_object('body', repeat('x', 200)), array[user_id], '{{}}',
           array['order:' || number], '2020-01-15'
    from old;
insert into contents (event_id, language, body) select id, 'en', repeat('x', 400) from old;
insert into subjects (subject, event_id) select 'order:' || number, id from old;
insert into recipients (event_id, after_user, user_ids, team_ids, reached, dropped, delivered_at)
    select id, 0, array[user_id], array[0], 1, 0, '2020-01-15' from old;
insert into inbox (position, created_at, event_id, user_id, language)
    select h.position + 1 + old.number / {USERS}, '2020-01-15', old.id, old.user_id, 'en'
    from old join heads h using (user_id);
update heads h
    set position = h.position + n, total = h.total + n, unread = h.unread + n
    from (select user_id, count(*) as n from old group by user_id) entered
    where h.user_id = entered.user_id;
"""  # noqa: S608 - constants


async def main() -> None:
    """Measure and print."""
    rounds, seconds, events = _options()
    async with (
        service() as running,
        database(running) as connection,
        pool(running.database_url, 1, yields=True) as bulk,
    ):
        await fill.users(connection, USERS)
        await _post(running, 5)

        async def one_round() -> dict[str, float]:
            found = {
                "single": await _accepted(running, ACCEPTING, 1),
                "batched": await _accepted(running, ACCEPTING, BATCH),
            }
            for name, first in (("notifications", PAST), ("months", JANUARY)):
                if name == "months":
                    await _partition(connection)
                await old_events(connection, first, events)
                await fill.settle(connection)
                found |= {
                    f"{what} {name}": value
                    for what, value in (await _measure(running, bulk, name, events, seconds)).items()
                }
            if left := await connection.fetchval("select count(*) from events where accepted_at < '2020-02-01'"):
                raise RuntimeError(f"{left} events are left")
            return found

        found = await medians(rounds, one_round)
    show(
        Claim(
            "events that retention deletes, against accepted", found["deleted notifications"], "/s", found["single"], 5
        ),
        Claim("the same, accepted and delivered in batches", found["deleted notifications"], "/s", found["batched"]),
        Claim("events that it drops with a month, against accepted", found["deleted months"], "/s", found["single"], 5),
        *(
            Claim(f"p99 of a post beside {what}", found[f"beside {name}"], "ms", found[f"calm {name}"], at_most=1.5)
            for name, what in (("notifications", "the deletion"), ("months", "the drop of a month"))
        ),
    )


def _options() -> tuple[int, float, int]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often to measure (default: 3)")
    parser.add_argument("--seconds", type=float, default=30, help="how long posts arrive each time (default: 30)")
    parser.add_argument("--events", type=int, default=200_000, help="old events of each kind (default: 200,000)")
    given = parser.parse_args()
    return given.rounds, given.seconds, given.events


async def _measure(running: Service, bulk: Database, name: str, events: int, seconds: float) -> dict[str, float]:
    """Delete old events, at first beside posts; return the deleted events per second, and the p99 of the posts."""
    posting = asyncio.create_task(_post(running, seconds))
    await asyncio.sleep(SETTLING)
    spans = list[tuple[float, float]]()
    is_done = False
    while not is_done:
        began = time.perf_counter()
        deleting = asyncio.create_task(_delete(bulk, name))
        is_done = bool((await asyncio.wait([deleting], timeout=None if posting.done() else WINDOW))[0])
        deleting.cancel()
        await asyncio.gather(deleting, return_exceptions=True)
        spans.append((began, time.perf_counter()))
        if not is_done and not posting.done():
            await asyncio.sleep(WINDOW)
    if not posting.done():
        print("  the events were deleted before the posts ended: take more events", file=sys.stderr)
    posts = await posting
    beside = [took for began, took in posts if any(start <= began <= end for start, end in spans)]
    calm = [took for began, took in posts if not any(start <= began <= end for start, end in spans)]
    for what, took in (("beside", beside), ("without", calm)):
        listed = ", ".join(f"p{part} {percentile(took, part):.1f}" for part in (50, 90, 99))
        print(f"  posts {what} {name}: {len(took):,}, {listed}, worst {max(took):.1f} ms", file=sys.stderr)
    return {
        "deleted": events / sum(end - start for start, end in spans),
        "beside": percentile(beside, 99),
        "calm": percentile(calm, 99),
    }


async def _delete(bulk: Database, name: str) -> None:
    """Run rounds of retention until the old events are deleted."""
    for _ in range(ROUNDS):
        if name in await retention.run_once(bulk, 30):
            return
        await asyncio.sleep(1)
    raise RuntimeError("the old events are not deleted")


async def _partition(connection: Connection) -> None:
    """Make a partition of January 2020."""
    async with connection.transaction():  # the service makes partitions that are missing
        for table in ("events", "contents", "recipients", "subjects"):
            await connection.execute(f"drop table {table}_past")
            await connection.execute(
                f"create table {table}_past partition of {table} for values from (minvalue) to ('{LOW}')"
            )
            await connection.execute(
                f"create table {table}_2020_01 partition of {table} for values from ('{LOW}') to ('{HIGH}')"
            )


async def old_events(connection: Connection, first: str, events: int) -> None:
    """Insert old events to one user each. Their ids begin with these characters."""
    async with connection.transaction():
        for statement in OLD.replace("$1", f"'{first}'").replace("$2", str(events)).split(";\n")[:-1]:
            await connection.execute(statement)


async def _accepted(running: Service, seconds: float, size: int) -> float:
    """Return how many events to one user each are accepted and delivered per second, in requests with so many."""
    event = {"type": "custom", "params": {"body": "Hello"}}
    events = [{**event, "notify": {"users": [fill.FIRST + number]}} for number in range(500)]
    requests = (
        [running.post(each) for each in events]
        if size == 1
        else [running.post_batch(events[start : start + size]) for start in range(0, len(events), size)]
    )
    began = time.perf_counter()
    accepted = await load(running, requests, seconds, status=b"202", accept=bool)
    await drained(running)
    return size * accepted * seconds / (time.perf_counter() - began)


async def _post(running: Service, seconds: float) -> list[tuple[float, float]]:
    """Post events to one user each at `RATE`, from another process; return when each began, and its milliseconds."""
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
    return list(zip(found["began"]["202"], found["took"]["202"], strict=True))


if __name__ == "__main__":
    uvloop.run(main())
