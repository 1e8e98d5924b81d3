"""A company moves while it is in use, or while the command is killed, with nothing lost or doubled."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.events import in_future, message_event, note
from tests.support.moves import (
    COMPANY,
    OTHER,
    OTHERS,
    USERS,
    assert_sound,
    die,
    fill,
    in_schemas,
    nothing_of,
    of_company,
)
from tests.support.service import Api, standing_token
from tests.support.waiting import reaches
from tocsin import copying, moving
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Locked
from tocsin.whereabouts import cell_of, whereabouts

ROOT = Path(__file__).parents[2]
POINTS = 12
"""Points at which a move is killed in each run."""


def sample(points: Sequence[str]) -> list[str]:
    """Return points to be killed at: some, or all with `ALL_POINTS`."""
    seed = int(os.environ.get("SEED", random.randrange(2**32)))  # noqa: S311
    sys.stdout.write(f"SEED={seed}\n")
    return random.Random(seed).sample(points, len(points) if "ALL_POINTS" in os.environ else POINTS)  # noqa: S311


async def test_move_that_is_killed_anywhere_continues_with_nothing_lost_or_doubled(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], tmp_path: Path
) -> None:
    """The company moves to and fro. Each time a process is killed at another statement, and the next one continues."""
    await fill(cells[0])
    held = message_event("held", 3, 4, 101, deliver_at=in_future())
    assert (await cells[0].as_service("POST", "/events", json=held)).status_code == 202
    before, others = await of_company(pools[0], COMPANY), await of_company(pools[0], OTHER)
    work = "select count(*) from jobs j join events e on e.id = j.id where e.users && array[3, 4]"
    place = itertools.cycle((("a", "b"), ("b", "a")))
    by_name, url_of = dict(zip("ab", pools, strict=True)), dict(zip("ab", urls, strict=True))

    async def killed(origin: str, destination: str, **environment: str) -> int:
        command = "-m", "tests.support.moving_program", url_of[origin], url_of[destination], "1", origin, destination
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, env={**os.environ, **environment}, cwd=ROOT
        )
        return await process.wait()

    trace = tmp_path / "points"
    for _ in range(3):  # what the first move does once is not written
        trace.unlink(missing_ok=True)
        assert await killed(*next(place), CRASH_TRACE=str(trace)) == 0
    assert next(place) == ("b", "a")
    await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    points = sorted(set(trace.read_text("utf-8").splitlines()))
    assert len(points) >= 40, points
    for point in sample(points):
        origin, destination = next(place)
        assert await killed(origin, destination, CRASH_AT=point) == -signal.SIGKILL, point
        await moving.move(by_name[origin], by_name[destination], COMPANY, origin, destination)
        assert await of_company(by_name[destination], COMPANY) == before, point
        assert await of_company(pools[0], OTHER) == others, point
        await nothing_of(by_name[origin], COMPANY)
        assert await by_name[destination].value(work) == 1, point
    await assert_sound(*urls)


class Clients:
    """Clients of two cells, and the ledger of what they were answered with 2xx."""

    def __init__(self, cells: tuple[Api, Api], entries: dict[int, set[str]]) -> None:
        self.cells, self.entries = cells, entries
        self.read: set[tuple[int, str]] = set()
        self.deleted: set[tuple[int, str]] = set()
        self.refused: list[int] = []
        self.is_over = False
        self.dice = random.Random(5)  # noqa: S311

    async def cell_of(self, company_id: int) -> Api:
        said = [await whereabouts(each.app_state.database) for each in self.cells]
        return self.cells[cell_of(company_id, said) == "b"]

    async def post(self, users: range, company_id: int) -> None:
        while not self.is_over:
            named, id_ = self.dice.sample(users, 3), str(uuid4())
            while not await self.is_accepted(note(*named, id=id_), company_id):
                self.refused.append(company_id)
                await asyncio.sleep(0.02)
            for user in named:
                self.entries[user].add(id_)

    async def is_accepted(self, event: dict[str, Any], company_id: int) -> bool:
        api = await self.cell_of(company_id)
        answer = await api.as_service("POST", "/events", json=event, company_id=company_id)
        assert answer.status_code in {202, 422, 503}, answer.text
        return answer.status_code == 202

    async def mark(self, user: int) -> None:
        while not self.is_over:
            await asyncio.sleep(0.01)
            api = await self.cell_of(COMPANY)
            answer = await api.call("GET", "/notifications?per_page=100", standing_token(user))
            if answer.status_code == 200 and (left := answer.json()["data"]):
                id_ = self.dice.choice(left)["id"]
                is_read = self.dice.random() < 0.7
                method, path = ("PUT", "/read") if is_read else ("DELETE", "")
                answer = await api.call(method, f"/notifications/{id_}{path}", standing_token(user))
                assert answer.status_code in {204, 401, 404, 503}, answer.text
                if answer.status_code == 204:
                    (self.read if is_read else self.deleted).add((user, id_))

    async def compare(self, database: Database, users: range) -> None:
        rows = await database.rows(
            "select user_id, event_id::text, read_at, deleted_at from inbox where user_id = any($1)", list(users)
        )
        found = [(row["user_id"], row["event_id"]) for row in rows]
        assert sorted(found) == sorted((user, id_) for user in users for id_ in self.entries[user])
        read = {pair for pair, row in zip(found, rows, strict=True) if row["read_at"]}
        deleted = {pair for pair, row in zip(found, rows, strict=True) if row["deleted_at"]}
        assert {pair for pair in self.read if pair[0] in users} <= read
        assert {pair for pair in self.deleted if pair[0] in users} <= deleted


async def test_company_moves_under_load_with_nothing_lost_or_doubled(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    stored = "select array(select event_id::text from inbox where user_id = $1)"
    clients = Clients(cells, {user: set(await pools[0].value(stored, user)) for user in (*USERS, *OTHERS)})
    load = [
        *(asyncio.create_task(clients.post(USERS, COMPANY)) for _ in range(3)),
        asyncio.create_task(clients.post(OTHERS, OTHER)),
        *(asyncio.create_task(clients.mark(user)) for user in USERS[:3]),
    ]
    await asyncio.sleep(0.5)
    await moving.move(*pools, COMPANY, "a", "b")
    await asyncio.sleep(0.5)
    clients.is_over = True
    await asyncio.gather(*load)
    assert OTHER not in clients.refused
    for pool in pools:
        await reaches(partial(pool.value, "select count(*) from jobs"), 0)
    await clients.compare(pools[1], USERS)
    await clients.compare(pools[0], OTHERS)
    await nothing_of(pools[0], COMPANY)
    await assert_sound(*urls)


class Company:
    """A company in which everything happens that can change its rows, for as long as it is not closed."""

    def __init__(self, api: Api, dice: random.Random) -> None:
        self.api, self.database, self.dice = api, api.app_state.database, dice
        self.is_over = False
        self.done: Counter[str] = Counter()

    async def run(self) -> None:
        actions = [
            self.post,
            self.post_without_recipients,
            self.mark,
            self.hold_and_cancel,
            self.fail_and_replay,
            self.resolve,
            self.erase,
            self.put,
            self.register,
            self.settle,
        ]
        while not self.is_over:
            action = self.dice.choice(actions)
            with contextlib.suppress(Locked):
                await action()
                self.done[action.__name__] += 1

    def someone(self, count: int = 3) -> list[int]:
        return self.dice.sample(USERS, count)

    async def accept(self, *users: int, **more: Any) -> str:
        event = {**note(*users), "about": [f"case:{self.dice.randrange(5)}"], **more}
        event["notify"]["unknown"] = "skip"
        company = self.dice.choice([COMPANY, None])
        answer = await self.api.as_service("POST", "/events", json=event, company_id=company)
        assert answer.status_code in {202, 503}, answer.text
        return str(answer.json().get("id", uuid4()))

    async def post(self) -> None:
        await self.accept(*self.someone())

    async def post_without_recipients(self) -> None:
        await self.accept(999)

    async def mark(self) -> None:
        [user] = self.someone(1)
        answer = await self.api.as_user(user, "GET", "/notifications")
        if answer.status_code == 200 and (data := answer.json()["data"]):
            method, path = self.dice.choice([("PUT", "/read"), ("DELETE", "/read"), ("DELETE", "")])
            await self.api.as_user(user, method, f"/notifications/{self.dice.choice(data)['id']}{path}")
        await self.api.as_user(user, "PUT", "/notifications/read", headers={"Idempotency-Key": str(uuid4())})

    async def hold_and_cancel(self) -> None:
        id_ = await self.accept(*self.someone(), deliver_at=in_future())
        if self.dice.random() < 0.5:
            await self.api.as_service("DELETE", f"/events/{id_}")

    async def fail_and_replay(self) -> None:
        ids = [await self.accept(*self.someone(), deliver_at=in_future()) for _ in range(2)]
        await die(self.database, *ids)
        await self.database.rows(queries("jobs")["requeue"], ids[:1], *[None] * 4)

    async def resolve(self) -> None:
        how = self.dice.choice(["read", "gone"])
        body = {"about": f"case:{self.dice.randrange(5)}", "as": how}
        await self.api.as_service("POST", "/events/resolve", json=body, company_id=COMPANY)

    async def erase(self) -> None:
        [user] = self.someone(1)
        if self.dice.random() < 0.2:
            await self.api.as_service("DELETE", f"/directory/users/{user}")
        await self.api.as_service(
            "PUT", f"/directory/users/{user}", json={**PERSON, "first_name": f"N{self.dice.random()}"}
        )

    async def put(self) -> None:
        await self.api.as_service(
            "PUT", "/directory/teams/7", json={"company_id": COMPANY, "name": "T", "users": self.someone(2)}
        )

    async def register(self) -> None:
        [user] = self.someone(1)
        device = {"token": f"{self.dice.randrange(20):064x}", "type": "iOS", "environment": "production"}
        await self.api.as_user(user, "POST", "/devices", json=device)

    async def settle(self) -> None:
        await self.database.rows(
            "with free as materialized (select user_id from heads where user_id = any($2) for update skip locked)"
            " insert into deliveries as p"
            " (event_id, device_id, user_id, lane, is_bulk, type, token_ending, state, settled_at)"
            " select i.event_id, d.id, d.user_id, d.lane, false, 'iOS', '', $1,"
            " case when $1 = 'dead' then clock_timestamp() end"
            " from free join devices d on d.user_id = free.user_id"
            " cross join lateral (select event_id from inbox where user_id = d.user_id limit 3) i"
            " on conflict (event_id, device_id) do update set state = excluded.state, settled_at = excluded.settled_at",
            self.dice.choice(["dead", "held"]),
            self.someone(),
        )


PERSON = {
    "company_id": COMPANY,
    "first_name": "A",
    "last_name": "B",
    "profile_picture": None,
    "email": None,
    "locale": "en",
    "time_zone": "UTC",
    "active": True,
}


@in_schemas
async def test_nothing_differs_when_a_company_in_use_leaves(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command takes for unchanged is compared in full, at the time at which the company is locked.

    Left out is what is brought later: keys, and results of pushes that wait again.
    """
    seed = int(os.environ.get("SEED", random.randrange(2**32)))  # noqa: S311
    sys.stdout.write(f"SEED={seed}\n")
    await fill(cells[0])
    company = Company(cells[0], random.Random(seed))  # noqa: S311
    follow, bring = moving._Move._follow, moving._Move._bring  # noqa: SLF001
    compared = []

    async def follow_and_compare(self: Any, source: Connection | None = None) -> int:
        count = await follow(self, source)
        if source:
            company.is_over = True
            async with pools[1].connection() as target:
                settled = "select d::text from deliveries d where settled_at is not null and user_id = any($1)"
                ends = [{row[0] for row in await store.fetch(settled, list(USERS))} for store in (source, target)]
                assert ends[0] <= ends[1]
                differing = []
                async for part in self._parts():
                    if part.of == "events":  # more are accepted, and brought later
                        continue
                    mine, theirs = [
                        [
                            row
                            for row in await self._digests(store, part, await self._events(store, part))
                            if row[0] not in {"idempotency_keys", "deliveries"}
                        ]
                        for store in (source, target)
                    ]
                    differing += [part] if mine != theirs else []
                    compared.append(part)
                # if this process was held up, the company has opened, and does not leave
                is_closed = await source.fetchval("select bool_or(closed_until > clock_timestamp()) from moves")
                assert not (differing and is_closed)
        return count

    async def bring_slowly(self: Any, part: Any, source: Connection | None = None) -> Any:
        if source is None:
            await asyncio.sleep(0.05)
        return await bring(self, part, source)

    monkeypatch.setattr(copying, "ENTRIES", 5)
    monkeypatch.setattr(moving, "FEW", -1)
    monkeypatch.setattr(moving, "ATTEMPTS", 30)  # nothing refuses requests, so work can begin at any time
    monkeypatch.setattr(moving._Move, "_follow", follow_and_compare)  # noqa: SLF001
    monkeypatch.setattr(moving._Move, "_bring", bring_slowly)  # noqa: SLF001
    working = [asyncio.create_task(company.run()) for _ in range(3)]
    await moving.move(*pools, COMPANY, "a", "b")
    company.is_over = True
    await asyncio.gather(*working)
    assert {part.of for part in compared} >= {"users", "teams"}
    assert len(company.done) == 10, company.done
    await nothing_of(pools[0], COMPANY)
    await assert_sound(*urls)
