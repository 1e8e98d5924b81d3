"""What reads from a replica save the primary: processor time of its PostgreSQL for each request, with and without.

    .venv/bin/python -m bench.replica --rounds 5

Two API processes on one primary are measured in turn; one has TOCSIN_REPLICA_URL. The standby follows the primary by
streaming in both cases. Mixed requests are pages, looks for changes, marks and events to one user each, as in `MIX`.
"""

import asyncio
import itertools
import os
import pwd
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import uvloop

from bench import fill
from bench.measure import CONNECTIONS, Claim, cpu_of, medians, options, show
from bench.processes import holding
from bench.service import Client, Service, clients, database, folder, started
from tocsin.auth.keys import own_secret
from tocsin.auth.minting import mint_service
from tocsin.db.connections import Connection, Record
from tocsin.inbox import cursor_of, made_in
from tocsin.postgres.binaries import programs_for
from tocsin.postgres.process import run, this_user
from tocsin.postgres.supervisor import Embedded

OWNERS = 1_000
SIZE = 100

MIX = {"page": 14, "changes": 3, "mark": 2, "event": 1}
"""How many of 20 mixed requests are of each kind."""

STATUSES = (b"200", b"202", b"204")

READS = {"page": ("page",), "changes": ("changes",), "mixed": tuple(MIX)}
"""The kinds of request of each measurement."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An API process, and the main processes of the two servers."""

    api: Service
    primary: int
    standby: int

    def used(self) -> Mapping[str, float]:
        """Return the processor seconds of each."""
        return {
            "primary": cpu_of(self.primary),
            "standby": cpu_of(self.standby),
            "service": cpu_of(self.api.process.pid),
        }


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=5, seconds=4)
    async with AsyncExitStack() as stack:
        holder = await stack.enter_async_context(holding())
        async with database(holder) as connection:
            owners = await fill.users(connection, OWNERS)
            await fill.history(connection, owners, SIZE)
            heads = await connection.fetch(
                "select user_id, made_at, position, salt from heads, timelines where user_id = any($1)", owners
            )
            entries = await connection.fetch("select user_id, event_id from inbox order by position, user_id")
            standby = await stack.enter_async_context(_standby(holder, connection))
        asked = {
            name: Asked(await stack.enter_async_context(_api(holder, url)), _main_process(holder.data_dir), standby[1])
            for name, url in (("without", ""), ("with", standby[0]))
        }
        requests = _requests(holder, heads, entries)
        turns = list(asked)

        async def one_round() -> dict[str, float]:
            turns.reverse()
            found: dict[str, float] = {}
            for what, kinds in READS.items():
                for name in turns:
                    costs = await _cost(asked[name], _mixed(requests, kinds), seconds)
                    found |= {f"{what} {name} {part}": cost for part, cost in costs.items()}
            return found

        found = await medians(rounds, one_round)
    show(*(claim for what in READS for claim in _claims(what, found)))


def _claims(what: str, found: Mapping[str, float]) -> Iterator[Claim]:
    for name, part in ((f"{what}: CPU of the primary", "primary"), ("  of both servers and the service", "all")):
        yield Claim(name, found[f"{what} with {part}"], "µs", found[f"{what} without {part}"])
    yield Claim("  reads that the replica answered", 100 * found[f"{what} with replica"], "%")


def _requests(running: Service, heads: Sequence[Record], entries: Sequence[Record]) -> Mapping[str, Iterator[bytes]]:
    """Return endless requests of each kind. Marks take the notifications of all users in turn."""
    chance = random.Random(1)  # noqa: S311 - the same users for both
    owners = [head["user_id"] for head in heads]
    cursors = [cursor_of(made_in(head), head["position"]) for head in heads]
    pages = [running.get("/notifications", user=owner) for owner in owners]
    changes = [
        running.get(f"/notifications/changes?since={cursor}", user=owner)
        for owner, cursor in zip(owners, cursors, strict=True)
    ]
    events = [
        running.post({"type": "custom", "notify": {"users": [owner]}, "params": {"body": "Hello"}}) for owner in owners
    ]
    marks = (
        running.put(f"/notifications/{event_id}/{state}", user=user_id)
        for state in itertools.cycle(("read", "unread"))
        for user_id, event_id in entries
    )
    return {
        "page": (chance.choice(pages) for _ in itertools.count()),
        "changes": (chance.choice(changes) for _ in itertools.count()),
        "mark": marks,
        "event": (chance.choice(events) for _ in itertools.count()),
    }


def _mixed(requests: Mapping[str, Iterator[bytes]], kinds: Sequence[str]) -> Iterator[bytes]:
    """Yield requests of these kinds, in the proportions of `MIX` and a random order."""
    chance = random.Random(2)  # noqa: S311 - the same order for both
    while True:
        yield next(requests[chance.choices(kinds, [MIX[kind] for kind in kinds])[0]])


async def _cost(asked: Asked, requests: Iterator[bytes], seconds: float) -> Mapping[str, float]:
    """Return the microseconds of processor time of a request, and the part of the reads that the replica answered."""

    async def repeat(client: Client, until: float) -> int:
        count = 0
        while time.perf_counter() < until:
            await client.ask(next(requests), *STATUSES)
            count += 1
        return count

    async def send(seconds: float) -> int:
        until = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(repeat(client, until) for client in opened)))

    async with clients(asked.api, CONNECTIONS) as opened:
        await send(seconds / 2)  # opens connections, and plans the statements
        reads, before = await _reads(asked.api), asked.used()
        answered = await send(seconds)
        after = asked.used()
    costs = {part: (after[part] - before[part]) / answered * 1e6 for part in before}
    done = {target: count - reads.get(target, 0.0) for target, count in (await _reads(asked.api)).items()}
    return {**costs, "all": sum(costs.values()), "replica": done.get("replica", 0.0) / max(sum(done.values()), 1.0)}


async def _reads(api: Service) -> dict[str, float]:
    """Return how many reads of inboxes were answered by each server."""
    token = mint_service(own_secret(api.data_dir), "bench", ["operations:read"], timedelta(hours=1))
    request = f"GET /metrics HTTP/1.1\r\nHost: {api.host}:{api.port}\r\nAuthorization: Bearer {token}\r\n\r\n"
    async with clients(api, 1) as [client]:
        text = (await client.ask(request.encode())).decode()
    lines = [line for line in text.splitlines() if line.startswith("tocsin_inbox_reads_total{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


def _main_process(data_dir: Path) -> int:
    return int((data_dir / "postgres/postmaster.pid").read_text("ascii").split()[0])


@asynccontextmanager
async def _api(holder: Service, replica: str) -> AsyncIterator[Service]:
    variables = {
        "TOCSIN_DATABASE_URL": holder.database_url,
        "TOCSIN_JWT_SECRET": own_secret(holder.data_dir),
        **({"TOCSIN_REPLICA_URL": replica} if replica else {}),
    }
    with folder() as outer:
        async with started(outer / "data", variables, arguments=("serve", "--no-worker")) as api:
            yield replace(api, data_dir=holder.data_dir)


@asynccontextmanager
async def _standby(primary: Service, connection: Connection) -> AsyncIterator[tuple[str, int]]:
    """Run a standby of the server of a service; yield its url and its main process when it follows."""
    database_ = primary.data_dir / "postgres"
    owner = database_.stat()
    with (database_ / "pg_ident.conf").open("a", encoding="ascii") as file:
        file.write(f"tocsin {pwd.getpwuid(owner.st_uid).pw_name} tocsin\n")  # the standby connects as the server's user
    await connection.execute("select pg_reload_conf()")
    with folder() as outer:
        (data_dir := outer / "data").mkdir()
        (data_dir / "tocsin.lock").touch()  # or the folder would be another program's
        program = (await programs_for(this_user(), data_dir)) / "pg_basebackup"
        copy = data_dir / "postgres"
        status, output = await run((program, "-D", copy, "-R", "-c", "fast", "-d", primary.database_url), this_user())
        if status:
            raise RuntimeError(f"the copy for the standby failed: {output}")
        for path in (copy, *copy.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        async with Embedded(data_dir) as server:
            while not await connection.fetchval("select exists (select from pg_stat_replication)"):
                await asyncio.sleep(0.1)
            yield server.url, _main_process(data_dir)


if __name__ == "__main__":
    uvloop.run(main())
