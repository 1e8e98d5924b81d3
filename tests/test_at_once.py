"""Delivery at once: an event with few recipients is in their inboxes when it is accepted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from tests.support.database import blocked, drop_function, locked, waiting_at
from tests.support.events import SAMPLES, accepted, custom, in_future, message_event, note, post, state
from tests.support.pushes import IPHONE, register
from tests.support.service import Api
from tests.support.waiting import reaches, until
from tests.support.workers import work
from tocsin import at_once as at_once_module
from tocsin import events as events_module
from tocsin.at_once import MAX_LANGUAGES, AtOnce
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection, connect
from tocsin.db.pool import Database
from tocsin.ids import MAX_ID
from tocsin.jobs import DIRECT_MAX_RECIPIENTS, enrol


@pytest.fixture
async def prompt(idle: Api, catalogue: Catalogue) -> Api:
    """The service without a worker, delivering at once."""
    idle.app_state.intake.at_once = AtOnce(catalogue)
    return idle


async def queued(api: Api) -> int:
    count: int = await api.app_state.database.value("select count(*) from jobs")
    return count


async def test_event_is_in_the_inboxes_when_it_is_accepted(prompt: Api) -> None:
    users = 1, 2, 3, MAX_ID
    await prompt.people(*users)
    await prompt.team(7, *users[1:])
    id_ = (await post(prompt, custom(1, teams=(7,)))).json()["id"]
    assert [await prompt.ids(user) for user in users] == [[id_]] * 4
    assert await queued(prompt) == 0
    since = "select min(created_at - accepted_at) >= '0' from inbox join events on id = event_id"
    assert await prompt.app_state.database.value(since)
    assert (await state(prompt, id_))["state"] == "delivered"


async def test_event_of_a_company_is_in_the_inboxes_when_it_is_accepted(prompt: Api) -> None:
    await prompt.people(1, 2)
    await prompt.team(7, 2)
    id_ = (await post(prompt, custom(1, teams=(7,)), company_id=1)).json()["id"]
    assert [await prompt.ids(user) for user in (1, 2)] == [[id_]] * 2
    assert await queued(prompt) == 0


async def stored(api: Api) -> list[list[dict[str, Any]]]:
    """Return what a delivery writes, without times and ids."""
    statements = (
        "select position, user_id, language, read_at from inbox order by position, user_id",
        "select language, replace(body, event_id::text, '') as body from contents order by 1, 2",
        "select after_user, user_ids, team_ids, reached, dropped from recipients order by reached, user_ids, team_ids",
        "select user_id, position, total, unread, forgotten from heads order by user_id",
    )
    return [[dict(row) for row in await api.app_state.database.rows(statement)] for statement in statements]


async def test_event_that_is_delivered_at_once_is_stored_as_by_a_worker(prompt: Api) -> None:
    await prompt.people(*range(1, 8))
    await prompt.people(8, active=False)
    await prompt.team(7, 2, 3, 4, 8)
    await prompt.team(8, 4, 5)
    events = [{**sample["event"], "notify": {"users": [2, 3], "teams": [7, 8]}} for sample in SAMPLES.values()]
    events += [
        custom(1, 1, 8, teams=(7, 8, 7)),
        {**custom(1, teams=(7,)), "notify": {"users": [1], "teams": [7], "except": [2, 3]}},
        {**custom(1), "notify": {"users": [1, 99], "teams": [98, 8], "unknown": "skip"}},
        note(4, teams=(7,)),
    ]
    for event in events:
        await post(prompt, event)
    assert await queued(prompt) == 0
    at_once = await stored(prompt)
    for table in ("inbox", "contents", "recipients", "events", "subjects"):
        await prompt.app_state.database.value(f"delete from {table}")
    await prompt.app_state.database.value("update heads set position = 0, total = 0, unread = 0, forgotten = 0")
    prompt.app_state.intake.at_once = None
    for event in events:
        await post(prompt, event)
        await work(prompt)
    assert await queued(prompt) == 0
    assert at_once == await stored(prompt)


async def test_event_of_a_user_whose_inbox_is_locked_waits_in_the_queue(prompt: Api, dba: Connection) -> None:
    await prompt.people(1, 2, 3)
    async with dba.transaction():
        await dba.execute("select from heads where user_id = 1 for update")
        behind = await accepted(prompt, 1, 2)
        free = await accepted(prompt, 3)
        assert await prompt.ids(3) == [str(free)]
        assert await queued(prompt) == 1
    await work(prompt)
    assert await prompt.ids(2) == [str(behind)]


async def test_event_that_replaces_one_under_delivery_does_not_deadlock(prompt: Api, dba: Connection) -> None:
    await prompt.people(1, 2)
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.execute("select from heads where user_id = 1 for update")
        old = (await post(prompt, message_event("old", 1, 2, key="k"))).json()["id"]
        delivering = group.create_task(work(prompt))  # it has the job, and waits for the inbox of 1
        await until(lambda: blocked(dba))
        posting = group.create_task(post(prompt, message_event("new", 2, key="k")))  # it would have the inbox of 2
        await reaches(lambda: blocked(dba), 2)
    assert delivering.done()
    assert await prompt.ids(2) == [posting.result().json()["id"], old]
    assert await queued(prompt) == 0


async def test_event_for_many_waits_in_the_queue(prompt: Api) -> None:
    many = range(1, DIRECT_MAX_RECIPIENTS + 2)
    await prompt.people(*many)
    await prompt.team(7, *many[1:])
    await prompt.team(8, *many)
    few = (await post(prompt, custom(teams=(7,)))).json()["id"]
    assert await prompt.ids(2) == [few]
    for event in (custom(*many), custom(1, teams=(7,)), custom(teams=(8,))):
        await post(prompt, event)
    assert await prompt.ids(2) == [few]
    assert await queued(prompt) == 3


async def test_event_that_can_cost_more_than_2000_look_ups_waits_in_the_queue(prompt: Api) -> None:
    await prompt.people(1)
    await prompt.team(7, 1)
    teams = (7,) * 19  # each counts as 100 look-ups, the event as one
    costs_2000 = (await post(prompt, custom(*(1,) * 99, teams=teams))).json()["id"]
    assert (await prompt.ids(1), await queued(prompt)) == ([costs_2000], 0)
    await post(prompt, custom(*(1,) * 100, teams=teams))
    assert (await prompt.ids(1), await queued(prompt)) == ([costs_2000], 1)


async def test_events_of_a_batch_for_the_same_users_are_delivered_at_once(prompt: Api) -> None:
    many = range(1, DIRECT_MAX_RECIPIENTS + 1)
    await prompt.people(*many)
    ids = (await prompt.as_service("POST", "/events/batch", json={"events": [custom(*many)] * 2})).json()["ids"]
    assert await prompt.ids(1) == ids[::-1]
    assert await queued(prompt) == 0


async def test_push_of_an_event_that_is_delivered_at_once_wakes_the_dispatcher(
    prompt: Api, catalogue: Catalogue, dba: Connection
) -> None:
    await prompt.people(1, 2)
    await register(prompt, 1, IPHONE)
    lane = await dba.fetchval("select lane from devices")
    for user, lanes, is_woken in ((2, [lane], False), (1, [], False), (1, ["apns/other"], False), (1, [lane], True)):
        prompt.app_state.intake.at_once = AtOnce(catalogue, lanes)
        wakeup = prompt.app_state.pubsub.listen_for("push")
        id_ = await accepted(prompt, user)
        assert (await prompt.ids(user))[0] == str(id_)
        assert wakeup.is_set() == is_woken
    rows = await dba.fetch("select event_id, user_id, lane, is_bulk, type, token_ending, state from deliveries")
    assert [tuple(row) for row in rows] == [(id_, 1, lane, False, "iOS", IPHONE[-6:], "queued")]


async def test_process_without_a_worker_delivers_at_once_while_workers_run(
    idle: Api, dba: Connection, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_once_module, "LOOK_INTERVAL", 0.01)
    await idle.people(1)
    await register(idle, 1, IPHONE)
    lane = await dba.fetchval("select lane from devices")
    at_once = idle.app_state.intake.at_once
    assert at_once
    database = Database(url, 1)
    watching = asyncio.create_task(at_once.watch(database))
    await post(idle, custom(1))
    assert await queued(idle) == 1, "no worker is running, and the database of the watch is not open"
    first, second = uuid4(), uuid4()
    await enrol(idle.app_state.database, first, "one", [lane])
    await database.open()
    await until(lambda: at_once.lanes == [lane])
    await enrol(idle.app_state.database, second, "other", ["fcm/other", lane])
    await until(lambda: set(at_once.lanes or ()) == {"fcm/other", lane})
    id_ = await accepted(idle, 1)
    assert (await idle.ids(1), await queued(idle)) == ([str(id_)], 1)
    assert await dba.fetchval("select lane from deliveries where event_id = $1", id_) == lane
    for change in ("lanes = null where name = 'other'", "lanes = '{}', seen_at = now() - interval '1 minute'"):
        await dba.execute(f"update workers set {change}")
        await until(lambda: at_once.lanes is None)
        before = await queued(idle)
        await post(idle, custom(1))
        assert await queued(idle) == before + 1
        await dba.execute("update workers set lanes = '{}', seen_at = now()")
        await until(lambda: at_once.lanes == [])
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await database.close()


async def test_held_event_waits_in_the_queue(prompt: Api) -> None:
    await prompt.people(1)
    await post(prompt, message_event("later", 1, deliver_at=in_future()))
    assert await prompt.ids(1) == []
    assert await queued(prompt) == 1


@pytest.mark.one_cell("events for unknown users are refused by the first cell")
async def test_events_that_are_stored_together_are_delivered_at_once_or_queued(
    prompt: Api, dba: Connection, url: str
) -> None:
    many = range(10, 10 + DIRECT_MAX_RECIPIENTS + 1)
    await prompt.people(1, 2, 3, *many)
    await prompt.people(4, locale="da")
    await prompt.team(7, *many)
    due = in_future()
    reused = str(uuid4())
    held, other = [message_event(body, 1, id=reused, deliver_at=due) for body in ("before", "other")]
    known = message_event("known", 2, id=str(uuid4()))
    for event in (held, known):
        await post(prompt, event)
    queue = [message_event("held", 1, deliver_at=due), custom(1, 3), custom(1, 4), custom(1, teams=(7,))]
    at_once = [custom(1, 2), known, {**custom(1), "notify": {"users": [1, 999], "unknown": "skip"}}]
    second = await connect(url)
    async with dba.transaction():
        await dba.execute("select from heads where user_id = 3 for update")
        async with locked(second, "events"):
            first = asyncio.create_task(post(prompt, custom(2)))
            await until(lambda: waiting_at(second, "events"))
            others = [asyncio.create_task(post(prompt, event)) for event in (*queue, custom(999), *at_once, other)]
            await until(lambda: len(prompt.app_state.intake._batches._waiting) == 9)  # noqa: SLF001 - stored together
        answers = await asyncio.gather(first, *others)
    await second.close()
    assert [answer.status_code for answer in answers] == [202] * 5 + [422] + [202] * 3 + [409]
    ids = {answer.json().get("id"): number for number, answer in enumerate(answers)}
    assert answers[8].json()["skipped"]["users"] == [999]
    assert [ids[id_] for id_ in await prompt.ids(1)] == [8, 6]
    assert [ids[id_] for id_ in await prompt.ids(2)] == [6, 0, 7]
    assert [await prompt.ids(user) for user in (3, 4)] == [[], []]
    jobs = await dba.fetch("select id, due_at, wanted_at from jobs where id <> $1 order by id", reused)
    assert [ids[str(job["id"])] for job in jobs] == [1, 2, 3, 4]
    assert jobs[0]["due_at"] == jobs[0]["wanted_at"] == datetime.fromisoformat(due)
    assert all(job["due_at"] < job["wanted_at"] for job in jobs[1:])  # they are due in their order, and wanted now


async def test_first_event_in_a_language_waits_in_the_queue_and_the_next_does_not(prompt: Api) -> None:
    await prompt.people(1, locale="da-DK")
    first = await accepted(prompt, 1)
    assert (await prompt.ids(1), await queued(prompt)) == ([], 1)
    second = await accepted(prompt, 1)
    assert (await prompt.ids(1), await queued(prompt)) == ([str(second)], 1)
    await work(prompt)
    assert await prompt.ids(1) == [str(first), str(second)]
    assert await prompt.app_state.database.value("select count(*) from contents where language <> 'da'") == 0
    await prompt.people(2)
    both = await accepted(prompt, 1, 2)
    assert await prompt.ids(2) == [str(both)]
    assert await prompt.app_state.database.value("select count(*) from contents where event_id = $1", both) == 2


async def test_languages_of_inactive_users_are_not_rendered_in_advance(prompt: Api) -> None:
    await prompt.people(1)
    await prompt.people(2, locale="da-DK", active=False)
    await accepted(prompt, 1, 2)
    assert await queued(prompt) == 0
    at_once = prompt.app_state.intake.at_once
    assert at_once
    assert list(at_once._recent) == ["en"]  # noqa: SLF001 - what is rendered


async def test_language_that_becomes_recent_during_a_batch_is_not_rendered_in_it(
    prompt: Api, catalogue: Catalogue
) -> None:
    class Learning(AtOnce):
        def render(self, *event: Any) -> list[tuple[str, str]]:
            self.learn(["da"])
            return super().render(*event)

    prompt.app_state.intake.at_once = Learning(catalogue)
    await prompt.people(1, locale="da")
    await prompt.people(2)
    await prompt.as_service("POST", "/events/batch", json={"events": [custom(1), custom(2)]})
    assert await queued(prompt) == 2
    await work(prompt)
    assert [len(await prompt.ids(user)) for user in (1, 2)] == [1, 1]


def test_few_languages_are_rendered_in_advance(catalogue: Catalogue) -> None:
    at_once = AtOnce(catalogue)
    for number in range(20):
        at_once.learn([f"l{number}"])
        if number % 3 == 0:
            at_once.learn(["en"])
    assert list(at_once._recent) == ["l17", "l18", "en", "l19"]  # noqa: SLF001 - what is rendered
    assert MAX_LANGUAGES == 4


async def test_batch_is_delivered_at_once_as_a_whole_or_not_at_all(prompt: Api, dba: Connection) -> None:
    await prompt.people(1, 2)
    events = [message_event(str(number), 1 + number % 2) for number in range(10)]
    await prompt.as_service("POST", "/events/batch", json={"events": events})
    assert [entry["message"] for entry in (await prompt.inbox(1))["data"]] == ["8", "6", "4", "2", "0"]
    async with dba.transaction():
        await dba.execute("select from heads where user_id = 1 for update")
        await prompt.as_service("POST", "/events/batch", json={"events": events})
        assert await queued(prompt) == 10
    await prompt.as_service("POST", "/events/batch", json={"events": [*events, message_event("x", 1, key="x")]})
    assert await queued(prompt) == 21
    for size, users, added in ((1000, (2,), 0), (667, (1, 2), 667)):  # which cost 2,000 and 2,001 look-ups
        before = await queued(prompt)
        large = [message_event(str(number), *users) for number in range(size)]
        await prompt.as_service("POST", "/events/batch", json={"events": large})
        assert await queued(prompt) == before + added


async def test_repeated_event_is_delivered_once(prompt: Api) -> None:
    await prompt.people(1)
    event = message_event("once", 1, id=str(uuid4()))
    answers = [await post(prompt, event) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {202}
    assert await prompt.ids(1) == [event["id"]]


async def test_event_with_an_idempotency_key_is_delivered_once(prompt: Api) -> None:
    await prompt.people(1)
    headers = {"Idempotency-Key": "a"}
    answers = [await post(prompt, custom(1), headers=headers) for _ in range(3)]
    assert await prompt.ids(1) == [answers[0].json()["id"]]
    assert {answer.text for answer in answers} == {answers[0].text}


@pytest.fixture
async def broken_inbox(dba: Connection) -> AsyncIterator[None]:
    """An inbox that refuses all entries."""
    await dba.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'refused'; end $$;"
        " create trigger refuse before insert on inbox for each row execute function refuse()"
    )
    yield
    await drop_function(dba, "refuse")


@pytest.mark.parametrize("table", ["inbox", "deliveries", "contents"])
async def test_event_is_accepted_while_a_table_of_deliveries_is_locked(
    prompt: Api, dba: Connection, table: str
) -> None:
    await prompt.people(1)
    async with locked(dba, table):
        answers = [await post(prompt, custom(1)) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202] * 3
        assert await queued(prompt) == 3


@pytest.mark.usefixtures("broken_inbox")
@pytest.mark.parametrize("more", [{}, {"key": "mine"}])
async def test_event_is_stored_although_it_cannot_be_delivered(
    prompt: Api, dba: Connection, more: dict[str, Any]
) -> None:
    await prompt.people(1)
    answer = await post(prompt, message_event("hello", 1, **more))
    assert answer.status_code == 202
    assert await queued(prompt) == 1
    at_once = prompt.app_state.intake.at_once
    assert at_once is not None
    assert at_once.is_paused
    await drop_function(dba, "refuse")
    await work(prompt)
    assert await prompt.ids(1) == [answer.json()["id"]]


async def test_events_wait_in_the_queue_for_a_while_after_a_failure(catalogue: Catalogue) -> None:
    now = 0.0
    at_once = AtOnce(catalogue, clock=lambda: now)
    assert not at_once.is_paused
    with capture_logs() as logs:
        at_once.pause(RuntimeError("refused"))
    [warning] = logs
    assert (warning["log_level"], warning["seconds"], warning["reason"]) == ("warning", 30.0, "RuntimeError")
    now = 29.9
    assert at_once.is_paused
    now = 30.0
    assert not at_once.is_paused


@contextlib.asynccontextmanager
async def batch_in_progress(api: Api, dba: Connection, *users: int) -> AsyncIterator[asyncio.Task[Any]]:
    """Post a batch that has locked the heads of these users, and waits until the block ends."""
    id_ = str(uuid4())
    async with dba.transaction():
        await dba.execute("insert into contents (event_id, language, body) values ($1, 'en', '')", id_)
        batch = asyncio.create_task(post_batch(api, custom(*users) | {"id": id_}, custom(*users)))
        await until(lambda: blocked(dba))
        yield batch
        await dba.execute("delete from contents where event_id = $1", id_)


async def post_batch(api: Api, *events: dict[str, Any]) -> Any:
    return await api.as_service("POST", "/events/batch", json={"events": events})


async def test_batch_for_the_users_of_another_waits_and_is_delivered_at_once(prompt: Api, dba: Connection) -> None:
    await prompt.people(1, 2)
    async with batch_in_progress(prompt, dba, 1, 2) as first:
        second = asyncio.create_task(post_batch(prompt, custom(2), custom(1)))
        await until(lambda: is_waiting(prompt))
    answers = await asyncio.gather(first, second)
    ids = [answer.json()["ids"] for answer in answers]
    assert await prompt.ids(1) == [ids[1][1], *ids[0][::-1]]
    assert await queued(prompt) == 0


async def is_waiting(api: Api) -> bool:
    return bool(api.app_state.intake._delivering._waiters)  # noqa: SLF001 - the second batch is behind the first


async def test_batch_that_waited_too_long_for_another_is_queued(
    prompt: Api, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "TURN_TIMEOUT", 0.01)
    await prompt.people(1, 2)
    async with batch_in_progress(prompt, dba, 1) as first:
        assert (await post_batch(prompt, custom(2), custom(2))).status_code == 202
        assert not first.done()
        assert await queued(prompt) == 2
        at_once = await accepted(prompt, 2)
        assert await prompt.ids(2) == [str(at_once)], "events are not queued because a batch was"
    assert (await first).status_code == 202
    assert await queued(prompt) == 2


@pytest.mark.parametrize("how", ["refused", "given up", "failed"])
async def test_batch_that_fails_lets_the_next_be_delivered_at_once(
    prompt: Api, dba: Connection, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    await prompt.people(1)
    if how == "refused":
        assert (await post_batch(prompt, custom(1), custom(999))).status_code == 422
    elif how == "given up":
        async with batch_in_progress(prompt, dba, 1) as first:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(events_module, "_raise_problems", broken)
            assert (await post_batch(prompt, custom(1), custom(1))).status_code == 500
        prompt.app_state.intake.at_once = AtOnce(prompt.app_state.catalogue)  # it paused
    before = await queued(prompt)
    ids = (await post_batch(prompt, custom(1), custom(1))).json()["ids"]
    assert (await prompt.ids(1))[:2] == ids[::-1]
    assert await queued(prompt) == before


def broken(*_: object) -> None:
    raise RuntimeError("broken")
