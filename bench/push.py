"""A backlog of pushes, claimed, looked at again, sent to a local HTTP/2 server and written back, per CPU-second.

The CPU is that of the service and of PostgreSQL together; that of the server (nginx) is not counted.
"""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import uvloop
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.measure import Claim, options, show
from bench.service import Service, database, folder, started
from tocsin.database import connect
from tocsin.embedded import Embedded
from tocsin.migrate import migrate
from tocsin.phones.listening import Authority

BACKLOG = 200_000
_TICK = os.sysconf("SC_CLK_TCK")


async def main() -> None:
    """Measure and print."""
    options(__doc__, rounds=1, seconds=1)
    if shutil.which("nginx") is None:
        raise SystemExit("This needs nginx: apt-get install nginx-light.")
    with folder() as outer:
        data_dir = outer / "data"
        async with Embedded(data_dir) as server:
            await migrate(server.url)
            await _fill(server.url)
        async with _apple(outer) as variables, started(data_dir, variables) as running:
            quarters = await _drain(running)
    spent, took = quarters[-1][1] - quarters[0][1], quarters[-1][0] - quarters[0][0]
    rates = [BACKLOG / 4 / (b[0] - a[0]) for a, b in pairwise(quarters)]
    show(
        Claim("pushes per CPU-second", BACKLOG / spent, "", at_least=5_000),
        Claim("pushes per second", BACKLOG / took, "/s"),
        Claim("the last quarter against the first", rates[-1], "/s", rates[0], at_least=0.9),
    )


async def _drain(running: Service) -> list[tuple[float, float]]:
    """Return when, and after how much CPU, each quarter of the backlog was done, the beginning first."""
    pid = running.process.pid
    marks = [(time.perf_counter(), _cpu(pid))]
    async with database(running) as connection:
        while len(marks) <= 4:
            await asyncio.sleep(0.1)
            left = await connection.fetchval("select count(*) from deliveries where settled_at is null")
            if left <= BACKLOG * (4 - len(marks)) / 4:
                marks.append((time.perf_counter(), _cpu(pid)))
        wrong = await connection.fetch("select state, reason, count(*) from deliveries group by 1, 2")
    if [row["state"] for row in wrong] != ["delivered"]:
        raise RuntimeError(f"not all were delivered: {wrong}")
    return marks


async def _fill(url: str) -> None:
    """Let one event have come to everybody's inbox, with a device each, and nothing of it be pushed yet."""
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


_NGINX = """
daemon off; worker_processes 1; pid {outer}/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {cert}; ssl_certificate_key {key};
        http2_max_concurrent_streams 1000; keepalive_requests 10000000;
        location / {{ return 200; }}
    }}
}}
"""


@asynccontextmanager
async def _apple(outer: Path) -> AsyncIterator[Mapping[str, str]]:
    """Run a server that answers 200 to everything, and yield the variables that lead to it."""
    authority = Authority()
    key = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (outer / "key.p8").write_bytes(key)
    (outer / "ca.pem").write_bytes(authority.pem)
    cert, secret = authority.files(outer)
    port = _free_port()
    (outer / "nginx.conf").write_text(_NGINX.format(outer=outer, port=port, cert=cert, key=secret))
    process = await asyncio.create_subprocess_exec(
        "nginx", "-c", str(outer / "nginx.conf"), "-e", str(outer / "nginx.log")
    )
    try:
        yield {
            "TOCSIN_APNS_KEY_FILE": str(outer / "key.p8"),
            "TOCSIN_APNS_KEY_ID": "BENCH00KEY",
            "TOCSIN_APNS_TEAM_ID": "BENCH0TEAM",
            "TOCSIN_APNS_TOPIC": "com.example.bench",
            "TOCSIN_APNS_URL": f"https://127.0.0.1:{port}",
            "TOCSIN_PUSH_CA_FILE": str(outer / "ca.pem"),
        }
    finally:
        process.terminate()
        await process.wait()


def _free_port() -> int:
    import socket  # noqa: PLC0415 - for this alone

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _cpu(pid: int) -> float:
    """Return the CPU-seconds of a process and all below it, those that ended included."""
    spent = 0.0
    for each in _family(pid):
        fields = Path(f"/proc/{each}/stat").read_text("ascii").rpartition(")")[2].split()
        spent += sum(int(field) for field in fields[11:15]) / _TICK
    return spent


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text("ascii").split():
            found += _family(int(child))
    return found


if __name__ == "__main__":
    uvloop.run(main())
