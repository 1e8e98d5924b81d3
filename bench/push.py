"""A backlog of pushes, claimed, checked, sent to a local HTTP/2 server and recorded, per CPU-second.

The CPU is that of the service and of PostgreSQL together; that of the server (nginx) is not counted. How far it is, the
server says: to count what is left in the database would cost what is measured.
"""

import asyncio
import time
from itertools import pairwise

import uvloop

from bench.apple import Apple, apple
from bench.measure import Claim, cpu_of, options, show
from bench.service import Service, database, folder, started
from tocsin.db.connections import connect
from tocsin.db.migrate import migrate
from tocsin.postgres.supervisor import Embedded

BACKLOG = 200_000


async def main() -> None:
    """Measure and print."""
    options(__doc__, rounds=1, seconds=1)
    with folder() as outer:
        data_dir = outer / "data"
        async with Embedded(data_dir) as server:
            await migrate(server.url)
            await _fill(server.url)
        async with apple(outer) as phones, started(data_dir, phones.variables) as running:
            quarters = await _drain(running, phones)
    spent, took = quarters[-1][1] - quarters[0][1], quarters[-1][0] - quarters[0][0]
    rates = [BACKLOG / 4 / (b[0] - a[0]) for a, b in pairwise(quarters)]
    show(
        Claim("pushes per CPU-second", BACKLOG / spent, "", at_least=7_500),
        Claim("pushes per second", BACKLOG / took, "/s"),
        Claim("the last quarter against the first", rates[-1], "/s", rates[0], at_least=0.95),
    )


async def _drain(running: Service, phones: Apple) -> list[tuple[float, float]]:
    """Return the time and the CPU time at the start and after each quarter of the backlog.

    The last is done when all that came has been written back.
    """
    pid = running.process.pid
    marks = [(time.perf_counter(), cpu_of(pid))]
    async with database(running) as connection:
        left = "select exists (select from deliveries where settled_at is null)"
        while len(marks) <= 4:
            await asyncio.sleep(0.05)
            came = phones.count()
            if came >= BACKLOG * len(marks) / 4 and not (came >= BACKLOG and await connection.fetchval(left)):
                marks.append((time.perf_counter(), cpu_of(pid)))
        wrong = await connection.fetch("select state, reason, count(*) from deliveries group by 1, 2")
    if [row["state"] for row in wrong] != ["delivered"]:
        raise RuntimeError(f"not all were delivered: {wrong}")
    return marks


async def _fill(url: str) -> None:
    """Deliver one event to the inboxes of users with a device each, without sending its pushes."""
    connection = await connect(url)
    event = "00000000-0000-7000-8000-000000000001"
    await connection.execute(
        "insert into events (id, kind, data, params, users, teams, subjects)"
        " values ($1, 'custom', '{}', '{\"body\":\"Hello\"}', '{}', '{}', '{}')",
        event,
    )
    body = f'"id":"{event}","type":"custom","data":{{}},"message":"Hello","message_formatted":"<p>Hello</p>"'
    await connection.execute("insert into contents (event_id, language, body) values ($1, 'en', $2)", event, body)
    for statement in _FILLING:
        await connection.execute(statement, BACKLOG)
    await connection.execute(
        "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending)"
        " select $1, id, user_id, lane, true, type, right(token, 6) from devices",
        event,
    )
    await connection.execute(
        "insert into inbox (position, created_at, event_id, user_id, language)"
        " select 1, now(), $1, id, 'en' from users",
        event,
    )
    await connection.execute("vacuum analyze")
    await connection.close()


_FILLING = (
    """
    insert into users (id, company_id, first_name, last_name, time_zone)
    select n, 1, 'First', 'Last', 'UTC' from generate_series(1, $1::int) n
    """,
    """
    insert into heads (user_id, locale, active, position, total, unread)
    select n, 'en', true, 1, 1, 1 from generate_series(1, $1::int) n
    """,
    """
    insert into devices (token, user_id, type, provider, environment, app)
    select md5(n::text) || md5('x' || n::text), n, 'iOS', 'apns', 'production', 'default'
    from generate_series(1, $1::int) n
    """,
)


if __name__ == "__main__":
    uvloop.run(main())
