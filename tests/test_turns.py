"""Turns in the bulk queue: neither a company nor a sender delays others by a flood."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from tests.support.events import custom
from tests.support.service import Api, serving
from tests.support.waiting import until
from tocsin import fanout, jobs, turns
from tocsin.catalogue import Catalogue
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.ids import new_id
from tocsin.turns import Turns

CROWD = 101
"""One more than a job of the direct queue reaches."""


async def team(api: Api, id_: int, size: int = CROWD, company_id: int = 1) -> None:
    """Make a team, whose members' ids begin at 1,000 times that of the team."""
    await api.app_state.database.value(
        "with u as (insert into users (id, company_id, first_name, last_name, time_zone)"
        " select i, $3, '', '', 'UTC' from generate_series($1::int, $1 + $2 - 1) i returning id),"
        " h as (insert into heads (user_id, locale, active) select id, 'en', true from u) select 1",
        id_ * 1000,
        size,
        company_id,
    )
    await api.team(id_, *range(id_ * 1000, id_ * 1000 + size), company_id=company_id)


async def flood(api: Api, sender: int, team_id: int, count: int) -> None:
    """Post events of a person to a team."""
    event = {**custom(teams=(team_id,)), "data": {"user": sender}}
    answer = await api.as_service("POST", "/events/batch", json={"events": [event] * count})
    assert answer.status_code == 202, answer.text
    await api.app_state.database.value("update jobs set batch = null")  # as if they were posted one by one


class Queue:
    """The bulk queue of an idle service, worked step by step."""

    def __init__(self, database: Database, catalogue: Catalogue) -> None:
        self.database, self.catalogue = database, catalogue
        self.turns, self.worker = Turns(), new_id()

    async def fill(self) -> None:
        """Move all events of the direct queue to the bulk queue."""
        while leased := await jobs.claim(self.database, self.worker, "direct", 200):
            await fanout.deliver(self.database, self.catalogue, self.worker, leased)

    async def step(self) -> int | None:
        """Deliver the next chunk; return its sender, None without jobs."""
        leased = await self.turns.claim(self.database, self.worker)
        if not leased:
            return None
        done = await fanout.deliver(self.database, self.catalogue, self.worker, leased)
        self.turns.served(len(done.user_ids))
        sender: int = await self.database.value("select actor from events where id = $1", leased[0].id)
        return sender

    async def steps(self, count: int) -> list[int | None]:
        """Deliver this many chunks; return their senders."""
        return [await self.step() for _ in range(count)]


@pytest.fixture
async def queue(idle: Api, database: Database, catalogue: Catalogue) -> Queue:
    await idle.people(1, 2, 3, 4)
    return Queue(database, catalogue)


async def test_flood_of_a_sender_delays_another_by_one_chunk(idle: Api, queue: Queue) -> None:
    await team(idle, 7)
    await flood(idle, 1, 7, 300)
    await queue.fill()
    await queue.steps(5)
    await flood(idle, 2, 7, 3)
    await queue.fill()
    assert await queue.steps(8) in ([2, 1, 2, 1, 2, 1, 1, 1], [1, 2, 1, 2, 1, 2, 1, 1])


async def test_chunks_of_large_events_alternate(idle: Api, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 50)
    await team(idle, 7)
    await flood(idle, 1, 7, 300)
    await flood(idle, 2, 7, 1)
    await queue.fill()
    found = await queue.steps(8)
    assert found in ([1, 2] * 3 + [1, 1], [2, 1] * 3 + [1, 1])


async def test_companies_take_turns_whatever_their_number_of_senders(idle: Api, queue: Queue) -> None:
    await idle.people(20, company_id=2)
    await team(idle, 7)
    await team(idle, 8, company_id=2)
    for sender in (1, 2, 3, 4):
        await flood(idle, sender, 7, 10)
    await flood(idle, 20, 8, 6)
    await queue.fill()
    found = await queue.steps(12)
    assert found[::2] == [20] * 6 or found[1::2] == [20] * 6
    assert all(count in {1, 2} for sender, count in Counter(found).items() if sender != 20)


async def test_sender_of_small_events_gets_as_many_recipients_as_one_of_large(
    idle: Api, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SHARE", CROWD)
    await team(idle, 7)
    await team(idle, 8, size=4 * CROWD)
    await flood(idle, 1, 8, 50)
    await flood(idle, 2, 7, 50)
    await queue.fill()
    found = Counter(await queue.steps(30))
    assert 3 <= found[2] / found[1] <= 5


async def test_single_sender_of_large_events_is_not_delayed(
    idle: Api, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SHARE", 1)
    await team(idle, 7)
    await flood(idle, 1, 7, 5)
    await queue.fill()
    assert await queue.steps(6) == [1] * 5 + [None]


async def test_turns_deliver_every_job_once_with_several_workers(
    idle: Api, queue: Queue, database: Database, catalogue: Catalogue
) -> None:
    await team(idle, 7)
    for sender in (1, 2, 3):
        await flood(idle, sender, 7, 10)
    await queue.fill()
    others = [queue, *(Queue(database, catalogue) for _ in range(2))]

    async def work(each: Queue) -> int:
        count = 0
        while await each.step() is not None:
            count += 1
        return count

    assert sum(await asyncio.gather(*map(work, others))) == 30
    assert await database.value("select count(*) from inbox") == 30 * CROWD


async def test_jobs_of_any_task_take_part(idle: Api, queue: Queue, database: Database) -> None:
    await database.value("insert into jobs (id, task, lane) values ($1, 'erase', 'bulk')", new_id())
    await team(idle, 7)
    await flood(idle, 1, 7, 2)
    await queue.fill()
    tasks = [(await queue.turns.claim(database, queue.worker))[0].task for _ in range(3)]
    assert sorted(tasks) == ["deliver", "deliver", "erase"]
    assert tasks[:2] in (["deliver", "erase"], ["erase", "deliver"])


async def test_delayed_job_blocks_no_other(idle: Api, queue: Queue, database: Database) -> None:
    await team(idle, 7)
    await flood(idle, 1, 7, 1)
    await flood(idle, 2, 7, 1)
    await queue.fill()
    await database.value("update jobs set due_at = now() + interval '1 hour' where sender = 'crm:1'")
    assert await queue.steps(2) == [2, None]


async def test_service_for_all_companies_gives_each_company_its_turn(idle: Api, queue: Queue) -> None:
    await idle.people(20, company_id=2)
    await team(idle, 7)
    await team(idle, 8, company_id=2)
    large = {"users": [*range(8000, 8101)], "teams": []}
    for event in (custom(teams=(7,)), custom(teams=(8,)), {**custom(), "notify": large}, custom(teams=(7,))):
        who = {"data": {"user": 1}} if event["notify"]["teams"] == [7] else {}
        assert (await idle.as_service("POST", "/events", json={**event, **who})).status_code == 202
    sent = {"message": "x", "notify": {"teams": [7]}}
    assert (await idle.as_user(1, "POST", "/notifications", json=sent)).is_success
    await queue.fill()
    found = await queue.database.rows("select company_id, sender from jobs order by wanted_at, due_at")
    assert sorted(map(tuple, found)) == [(1, "crm:1"), (1, "crm:1"), (1, "user:1"), (2, "crm:"), (2, "crm:")]


async def test_replayed_event_has_its_sender_again(api: Api) -> None:
    await api.people(1, 2)
    id_ = await api.post({**custom(2), "data": {"user": 1}}, company_id=1)
    await api.app_state.database.value(
        "insert into dead_letters (id, task, lane, attempts, progress, reason)"
        " values ($1, 'deliver', 'bulk', 8, 0, 'x')",
        id_,
    )
    await api.app_state.database.rows(queries("jobs")["requeue"], [id_], *[None] * 4)
    row = await api.app_state.database.row("select company_id, sender from jobs where id = $1", id_)
    assert row is None or tuple(row) == (1, "crm:1")


async def test_claim_reads_few_pages_of_a_backlog_of_100_000_jobs(database: Database) -> None:
    await database.value(
        "with i as (insert into jobs (id, task, lane, company_id, sender) select gen_random_uuid(), 'deliver', 'bulk',"
        " 1 + i % 50, 'crm:' || i % 1000 from generate_series(1, 100000) i) select 1"
    )
    async with database.connection() as connection:
        await connection.execute("vacuum analyze jobs")
        for name, arguments in (
            ("next_company", (25,)),
            ("next_company", (50,)),
            ("next_sender", (25, "crm:500")),
            ("claim_of_sender", (new_id(), 25, "crm:524")),
        ):
            plan: Any = await connection.fetchval(
                f"explain (analyze, buffers, format json) {queries('jobs')[name]}", *arguments
            )
            [top] = json.loads(plan)
            pages = top["Plan"]["Shared Hit Blocks"] + top["Plan"]["Shared Read Blocks"]
            assert pages < 100, (name, plan)


async def test_worker_serves_senders_in_turn(idle: Api, queue: Queue, url: str, catalogue: Catalogue) -> None:
    await team(idle, 7)
    await flood(idle, 1, 7, 20)
    await flood(idle, 2, 7, 1)
    await queue.fill()
    async with serving(url, catalogue):
        await until(lambda: queue.database.value("select not exists (select from jobs)"))
    rows = await queue.database.rows(
        "select e.actor from recipients r join events e on e.id = r.event_id order by r.delivered_at"
    )
    assert [row["actor"] for row in rows].index(2) <= 1
