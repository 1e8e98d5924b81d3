"""The driver of the chaos suite: load, failures under it, and the comparison of what was promised with the result."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.support.database import drop_function
from tests.support.followers import Follower
from tests.support.ledger import (
    FOLLOWERS,
    Ledger,
    Load,
    Population,
    compare,
    compare_pages,
    promised_pushes,
    tally,
)
from tests.support.processes import Program
from tests.support.waiting import until
from tocsin.db.connections import connect
from tocsin.db.errors import DRIVER_ERRORS
from tocsin_phones import Phones

CONVERGENCE = 60.0
"""Seconds after the end of a failure within which all that was accepted before is delivered."""

PAUSE_OF_POSTS = 0.08
BETWEEN_FAILURES = (30, 120)
"""Events accepted between two failures."""

TIME_UNDER_WAY = 50
"""Milliseconds after which phones answer where workers are stopped, so that these have pushes under way. A device gets
one push at a time, so that more would delay its pushes."""

PEOPLE = 2_000

Address = tuple[str, int]

_NOTING = """
create table given_back (event_id uuid, device_id uuid);
create function note_given_back() returns trigger language plpgsql as $$
begin
    insert into given_back values (old.event_id, old.device_id);
    return null;
end $$;
create trigger note_given_back after update on deliveries for each row
    when (old.worker_id = '{worker}' and new.worker_id is null and new.state in ('queued', 'later'))
    execute function note_given_back()
"""
"""Notes the pushes that a worker gives back without a result."""


def scenario(name: str, title: str, *, long: bool = False, nothing_waits: str = "") -> pytest.MarkDecorator:
    """Mark a test as the scenario of a failure; `title` is its line in the table. `make test` leaves long ones out.

    Each scenario either looks at what an operator is shown (`Cluster.shows`), or says by `nothing_waits` why nothing
    waits longer than it should.
    """
    return pytest.mark.scenario(name, title, long=long, nothing_waits=nothing_waits)


@dataclass(slots=True)
class Outcome:
    """A line of the table."""

    failure: str
    times: int = 0
    accepted: int = 0
    lost: int = 0
    doubled: int = 0
    lost_pushes: int = 0
    doubled_pushes: int = 0
    longest_gap: float = 0.0
    convergence: float = 0.0


@dataclass(slots=True)
class ChaosRun:
    """A failure that is made again and again under load, for `seconds` or as often as the scenario asks at least."""

    outcome: Outcome
    dice: Random
    phones: Phones
    folder: Path
    seconds: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    nothing_waits: str = ""
    in_flight: int = 0
    """How many pushes may be sent twice: those under way when a process died, or given up by one that was stopped."""

    shown: set[str] = field(default_factory=set)
    """The reasons that operators were shown during failures."""

    _load: Load | None = None
    _url: str = ""
    _population: Population | None = None
    _checked: set[str] = field(default_factory=set)

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a process that pushes to the phones of this run."""
        return self.phones.credentials(self.folder)

    @property
    def load(self) -> Load:
        assert self._load
        return self._load

    @property
    def url(self) -> str:
        return self._url

    @asynccontextmanager
    async def under_load(self, url: str, address: Callable[[], Address]) -> AsyncIterator[None]:
        """Fill the database, and keep a load on the service for the block; compare everything at its end."""
        self._url, self._population = url, Population.of(self.dice, PEOPLE)
        await self._population.fill(url)
        await self._population.give_phones(url)
        followers = [Follower(address, user) for user in FOLLOWERS]
        tasks = [asyncio.create_task(each.follow()) for each in followers]
        using = [asyncio.create_task(each.use(self.dice)) for each in followers]
        try:
            async with Load(self.ledger, self._population, self.dice, address, PAUSE_OF_POSTS) as self._load:
                try:
                    await self.load.more(60)
                    yield
                    await self.load.more(30)
                    for _ in range(20):  # chance decides when one is cancelled
                        if self.ledger.cancelled:
                            break
                        await self.load.more(20)
                finally:
                    await _end(using)
            await self._converges(set(self.ledger.accepted) - self._checked)
            for follower, task in zip(followers, tasks, strict=True):
                try:
                    await until(partial(_agrees, follower, task))
                except TimeoutError:
                    raise AssertionError(f"user {follower.user}: {await follower.differences()}") from None
            await self._compare(address(), followers)
            assert bool(self.shown) != bool(self.nothing_waits), "an operator is shown why work waits, or nothing waits"
            await until(partial(_has_no_problems, address))
        finally:
            await _end([*using, *tasks])

    async def rounds(self, least: int = 1) -> AsyncIterator[int]:
        """Yield under load: so often, and then until the time of the run is over."""
        began, done = time.monotonic(), 0
        while done < least or time.monotonic() - began < self.seconds:
            await self.load.more(self.dice.randint(*BETWEEN_FAILURES))
            yield done
            done += 1

    @asynccontextmanager
    async def failure(self, *, converges: bool = True, within: float = CONVERGENCE) -> AsyncIterator[None]:
        """Count a failure, which the block makes and ends; then all that was accepted must be delivered in time."""
        self.outcome.times += 1
        yield
        await self.load.more(1)
        if converges:
            await self._converges(set(self.ledger.accepted) - self._checked, within)

    async def kill_worker(self, worker: Program) -> None:
        """Kill a worker, and note the pushes that it had under way."""
        await worker.kill()
        self.in_flight += await leased_pushes(self._url, worker)

    async def stop_worker(self, worker: Program) -> None:
        """Stop a worker of an earlier release, and note the pushes that it gave back because it knew no result.

        That release waits for no answers, and the next one sends these pushes again.
        """
        connection = await connect(self._url)
        await connection.execute(_NOTING.format(worker=worker.greeting["worker"]))
        await worker.stop()
        self.in_flight += await connection.fetchval("select count(*) from given_back")
        await drop_function(connection, "note_given_back")
        await connection.execute("drop table given_back")
        await connection.close()

    async def _converges(self, ids: set[str], within: float = CONVERGENCE) -> None:
        """Wait until these events and their pushes wait no more."""
        began, waiting = time.monotonic(), {"not": "looked at yet"}
        while waiting:
            try:
                waiting = await _waiting(self._url, ids)
            except DRIVER_ERRORS as error:
                waiting = {"the database": repr(error)}
            taken = time.monotonic() - began
            if waiting and taken > within:
                said = f"{taken:.0f} s after the failure there wait {waiting}: {await _described(self._url, ids)}"
                raise AssertionError(said)
            await asyncio.sleep(0.1)
        self._checked |= ids
        self.outcome.convergence = max(self.outcome.convergence, time.monotonic() - began)

    async def _compare(self, address: Address, followers: Iterable[Follower]) -> None:
        assert self._population
        ledger, population, outcome = self.ledger, self._population, self.outcome
        due = await promised_pushes(ledger, population, self._url)
        sent = Counter((push["id"], int(push["token"], 16)) for push in self.phones.pushes("apns") if _shows(push))
        outcome.accepted, outcome.longest_gap = len(ledger.accepted), ledger.longest_gap
        outcome.lost, outcome.doubled = await tally(ledger, population, self._url)
        outcome.lost_pushes = len(due.keys() - sent.keys())
        outcome.doubled_pushes = sum(count - 1 for key, count in sent.items() if key in due)
        await compare(ledger, population, self._url)
        await compare_pages(ledger, population, self._url, address)
        assert outcome.lost_pushes == 0, await _unsent(self._url, due, sent)
        assert outcome.doubled_pushes <= self.in_flight, f"{self.in_flight} pushes were under way at an end"
        for push in self.phones.pushes("apns"):
            assert not _shows(push) or push["headers"]["apns-collapse-id"] == push["id"]
        assert [follower.resyncs for follower in followers if follower.resyncs] == []


async def _has_no_problems(address: Callable[[], Address]) -> bool:
    host, port = address()
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30) as http:
        found = (await http.get("/readyz")).json()
    return bool(found.get("problems") == [])


async def leased_pushes(url: str, worker: Program) -> int:
    """Return the number of pushes that a worker has or had under way."""
    connection = await connect(url)
    statement = "select count(*) from deliveries where worker_id = $1::uuid"
    found: int = await connection.fetchval(statement, worker.greeting["worker"])
    await connection.close()
    return found


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the outcomes as a table in Markdown."""
    head = (
        "| fault | date | times | accepted | lost | doubled in the inbox | lost pushes | doubled pushes |"
        " longest gap | all delivered after |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    return head + "".join(
        f"| {each.failure} | {today} | {each.times} | {each.accepted:,} | {each.lost} | {each.doubled} |"
        f" {each.lost_pushes} | {each.doubled_pushes} | {each.longest_gap:.1f} s | {each.convergence:.1f} s |\n"
        for each in outcomes
    )


def _shows(push: Mapping[str, Any]) -> bool:
    return bool(push["status"] == 200 and push["headers"]["apns-push-type"] == "alert")


async def _waiting(url: str, ids: set[str]) -> dict[str, Any]:
    """Return what waits of these events."""
    connection = await connect(url)
    try:
        jobs = "select count(*) from jobs where id = any($1::uuid[])"
        pushes = "select count(*) from deliveries where event_id = any($1::uuid[]) and state in ('queued', 'later')"
        found = {"jobs": await connection.fetchval(jobs, ids), "pushes": await connection.fetchval(pushes, ids)}
    finally:
        await connection.close()
    return {name: count for name, count in found.items() if count}


async def _described(url: str, ids: set[str]) -> str:
    """Describe what waits of these events, and what fails."""
    connection = await connect(url)
    pushes = await connection.fetch(
        "select state, attempts, worker_id, reason, min(due_at - now()), max(due_at - now()), count(*) from deliveries"
        " where event_id = any($1::uuid[]) and state in ('queued', 'later') group by 1, 2, 3, 4",
        ids,
    )
    jobs = await connection.fetch("select * from jobs where id = any($1::uuid[]) limit 3", ids)
    workers = await connection.fetch("select id, now() - seen_at as silent, problem from workers")
    lanes = await connection.fetch("select * from lanes")
    await connection.close()
    return "\n".join(map(str, (*pushes, *jobs, *workers, *lanes)))


async def _unsent(url: str, due: Counter[tuple[str, int]], sent: Counter[tuple[str, int]]) -> str:
    """Describe the pushes that are missing."""
    missing = sorted(due.keys() - sent.keys())[:3]
    connection = await connect(url)
    rows = [
        await connection.fetchrow("select * from deliveries where event_id = $1::uuid and user_id = $2", *key)
        for key in missing
    ]
    await connection.close()
    return f"missing: {missing}: {rows}"


async def _agrees(follower: Follower, task: asyncio.Task[None]) -> bool:
    if task.done():
        await task  # says why
    return await follower.agrees()


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
