"""What an event costs if twice as many processes share the work: processor time of all processes and PostgreSQL.

    .venv/bin/python -m bench.processes --rounds 3

Events to one user each are posted one by one, by 32 clients. Each round measures all arrangements on one database,
and compares the inboxes with what was posted. With NATS, a server of the tests is started.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import random
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from bench import fill
from bench.measure import Claim, cpu_of, medians, options, resident, show
from bench.service import Client, Service, clients, database, folder, started
from tocsin.auth.keys import own_secret
from tocsin.db.connections import Connection

CLIENTS = 32
PEOPLE = 2_000
EVENTS_PER_SECOND = 400
"""Events of a round, for each of its seconds: a fixed number, whatever the speed."""

_TOCSIN = Path(sys.executable).with_name("tocsin")
_NATS = Path(sys.executable).with_name("nats-server")

MEASURED = (
    ("CPU per event", "µs", 1.1),
    ("PostgreSQL's part", "µs", None),
    ("transactions per 100 events", "", None),
    ("events per second", "/s", None),
    ("memory of each", "MiB", None),
)


class Arrangement(NamedTuple):
    """Processes: the arguments of `tocsin` for each."""

    name: str
    apis: Sequence[Sequence[str]]
    workers: int = 0
    nats: bool = False


_API = ("serve", "--no-worker")
ARRANGEMENTS = (
    Arrangement("1 API, 1 worker", [_API], 1),
    Arrangement("2 API, 2 workers", [_API] * 2, 2),
    Arrangement("1 API, 1 worker, NATS", [_API], 1, nats=True),
    Arrangement("2 API, 2 workers, NATS", [_API] * 2, 2, nats=True),
    Arrangement("serve", [("serve",)]),
    Arrangement("serve --processes 2", [("serve", "--processes", "2")]),
)


async def main() -> None:
    """Measure all arrangements in turn, and print what an event costs."""
    given = options(__doc__, rounds=3, seconds=10)
    events = round(given.seconds * EVENTS_PER_SECOND)
    async with AsyncExitStack() as stack:
        holder = await stack.enter_async_context(holding())
        nats = await stack.enter_async_context(nats_server())
        connection = await stack.enter_async_context(database(holder))
        people = await fill.users(connection, PEOPLE)

        async def one_round() -> Mapping[str, float]:
            found: dict[str, float] = {}
            for arrangement in ARRANGEMENTS:
                found |= await _measure(holder, connection, arrangement, nats, people, events)
            return found

        found = await medians(given.rounds, one_round)
    claims = []
    for one, two in itertools.pairwise(ARRANGEMENTS):
        if "2" in two.name:
            for what, unit, limit in MEASURED:
                reference = found[f"{one.name}: {what}"]
                claims.append(
                    Claim(f"{two.name}: {what}", found[f"{two.name}: {what}"], unit, reference, at_most=limit)
                )
    show(*claims)


@asynccontextmanager
async def holding() -> AsyncIterator[Service]:
    """Run PostgreSQL, by a service that nobody asks."""
    with folder() as outer:
        async with started(outer / "data", arguments=_API) as holder:
            yield holder


@asynccontextmanager
async def nats_server() -> AsyncIterator[str]:
    """Run a NATS server and yield its url."""
    with tempfile.TemporaryDirectory() as folder_:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        process = await asyncio.create_subprocess_exec(_NATS, "-a", "127.0.0.1", "-p", port, "-l", f"{folder_}/log")
        try:
            yield f"nats://127.0.0.1:{port}"
        finally:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def arranged(
    holder: Service, arrangement: Arrangement, nats: str
) -> AsyncIterator[tuple[list[Service], list[int]]]:
    """Run the processes of an arrangement on the database of another service; yield the APIs and all processes."""
    variables = {
        "TOCSIN_DATABASE_URL": holder.database_url,
        "TOCSIN_JWT_SECRET": own_secret(holder.data_dir),
        **({"TOCSIN_NATS_URL": nats} if arrangement.nats else {}),
    }
    async with AsyncExitStack() as stack:
        outer = stack.enter_context(folder())
        apis, pids = [], []
        for number, arguments in enumerate(arrangement.apis):
            (at := outer / f"api{number}").mkdir()
            api = await stack.enter_async_context(started(at / "data", variables, arguments=arguments))
            apis.append(dataclasses.replace(api, data_dir=holder.data_dir))
            pids.append(api.process.pid)
        for number in range(arrangement.workers):
            (at := outer / f"worker{number}").mkdir()
            worker = await stack.enter_async_context(started(at / "data", variables, arguments=("worker",)))
            pids.append(worker.process.pid)
        yield apis, pids


async def _measure(  # noqa: PLR0913, PLR0917 - what is measured, and on what
    holder: Service, connection: Connection, arrangement: Arrangement, nats: str, people: range, events: int
) -> Mapping[str, float]:
    postgres = int((holder.data_dir / "postgres/postmaster.pid").read_text("ascii").split()[0])
    async with arranged(holder, arrangement, nats) as (apis, pids):
        await post(apis, people, events // 10)
        await settled(connection)
        await connection.execute("checkpoint")
        before, committed = await connection.fetchval("select count(*) from inbox"), await _committed(connection)
        processes, database_ = sum(map(cpu_of, pids)), cpu_of(postgres)
        began = time.perf_counter()
        sent = await post(apis, people, events)
        await settled(connection)
        seconds = time.perf_counter() - began
        processes, database_ = sum(map(cpu_of, pids)) - processes, cpu_of(postgres) - database_
        committed = await _committed(connection) - committed
        if await connection.fetchval("select count(*) from inbox") - before != events:
            raise RuntimeError("not every event is in exactly one inbox")
        wrong = await connection.fetchval(
            "select count(*) from unnest($1::uuid[], $2::int[]) as posted (event_id, user_id)"
            " where not exists (select from inbox i where i.event_id = posted.event_id and i.user_id = posted.user_id)",
            [id_ for id_, _ in sent],
            [user for _, user in sent],
        )
        if wrong:
            raise RuntimeError(f"{wrong} events are in the wrong inboxes")
        serving = [each for pid in pids for each in _serving(pid)]
        memory = sum(map(resident, serving)) / len(serving) / 1024
    return {
        f"{arrangement.name}: CPU per event": (processes + database_) / events * 1e6,
        f"{arrangement.name}: PostgreSQL's part": database_ / events * 1e6,
        f"{arrangement.name}: transactions per 100 events": committed / events * 100,
        f"{arrangement.name}: events per second": events / seconds,
        f"{arrangement.name}: memory of each": memory,
    }


def _serving(pid: int) -> list[int]:
    """Return the processes that a process started to serve; itself, if there are none."""
    children = (Path(f"/proc/{pid}/task/{pid}/children")).read_text("ascii").split()
    return [int(child) for child in children] or [pid]


async def post(apis: Sequence[Service], people: range, count: int, clients_: int = CLIENTS) -> list[tuple[str, int]]:
    """Post events, by clients that are spread over the APIs; return the id and the user of each."""
    waiting, sent = iter(range(count)), list[tuple[str, int]]()
    chance = random.Random(1)  # noqa: S311 - the same users for all arrangements

    async def run(api: Service, client: Client) -> None:
        for _ in waiting:
            user = chance.choice(people)
            event = {"type": "custom", "notify": {"users": [user]}, "params": {"body": "Hello"}}
            sent.append((json.loads(await client.ask(api.post(event), b"202"))["id"], user))

    async with AsyncExitStack() as stack:
        runs = []
        for api in apis:
            opened = await stack.enter_async_context(clients(api, clients_ // len(apis)))
            runs += [run(api, client) for client in opened]
        await asyncio.gather(*runs)
    return sent


async def _committed(connection: Connection) -> int:
    """Return the transactions of all sessions, which report them once a second at most."""
    await asyncio.sleep(1.2)
    count: int = await connection.fetchval(
        "select xact_commit from pg_stat_database where datname = current_database()"
    )
    return count


async def settled(connection: Connection) -> None:
    """Wait until no job is left."""
    while await connection.fetchval("select exists (select from jobs)"):
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
