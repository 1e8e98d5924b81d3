"""Options of producers: batches, own ids, keys, deliver_at, cancellation, except, explanation."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.support.answers import field_errors
from tests.support.database import blocked, locked, url_for, waiting_at
from tests.support.events import custom, in_future, message_event, post, state
from tests.support.service import Api, at_rest, serving
from tests.support.waiting import bounded, reaches, until
from tests.support.workers import work
from tocsin import event_status, fanout, jobs
from tocsin.acceptance import Draft
from tocsin.background import in_background
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection
from tocsin.db.pool import Borrowed
from tocsin.db.statements import queries
from tocsin.event_status import Viewer
from tocsin.events import MAX_GATHERING, Intake, gathering_time
from tocsin.ids import new_id
from tocsin.postgres.supervisor import Embedded


async def post_batch(api: Api, *events: Any, **more: Any) -> httpx.Response:
    return await api.as_service("POST", "/events/batch", json={"events": list(events)}, **more)


async def messages_of(api: Api, user: int) -> list[str]:
    return [entry["message"] for entry in (await api.inbox(user, "?per_page=100"))["data"]]


# --- Batches ---------------------------------------------------------------------------------------------------------


async def test_batch_keeps_its_order_in_every_inbox(api: Api) -> None:
    await api.people(1, 2)
    batch = [message_event(str(number), 1, 2) for number in range(450)]
    answer = await post_batch(api, *batch)
    assert answer.status_code == 202
    assert answer.json()["queued"] is True
    ids = answer.json()["ids"]
    for id_ in ids:
        await state(api, id_, 10)
    for user in (1, 2):
        assert (await api.inbox(user))["pagination"]["total"] == 450
        assert await messages_of(api, user) == [str(number) for number in range(449, 349, -1)]


async def test_batch_keeps_its_order_with_any_workers_and_ids(idle: Api) -> None:
    await idle.people(1)
    await post_batch(idle, *[message_event(str(number), 1, id=str(uuid4())) for number in range(40)])
    first, second = new_id(), new_id()
    leased = await jobs.claim(idle.app_state.database, first, "direct", 15)
    await idle.app_state.database.value(
        "update jobs set worker_id = $1 where worker_id is null and id in"
        " (select id from jobs where worker_id is null order by due_at, id limit 10)",
        second,
    )
    rows = await idle.app_state.database.rows(
        "select id, task, lane as queue, due_at, wanted_at, attempts, progress, batch from jobs where worker_id = $1"
        " order by due_at",
        second,
    )
    ahead = [jobs.Job(**row) for row in rows]
    assert (await fanout.deliver(idle.app_state.database, idle.app_state.catalogue, second, ahead)).events == []
    await fanout.deliver(idle.app_state.database, idle.app_state.catalogue, first, leased)
    for _ in range(5):
        await work(idle, limit=10)
    assert await messages_of(idle, 1) == [str(number) for number in range(39, -1, -1)]


async def test_batch_is_claimed_by_one_worker_at_a_time(idle: Api) -> None:
    await idle.people(1)
    await post_batch(idle, *[message_event(str(number), 1) for number in range(10)])
    assert len(await jobs.claim(idle.app_state.database, new_id(), "direct", 5)) == 5
    assert await jobs.claim(idle.app_state.database, new_id(), "direct", 5) == []


async def test_events_after_a_large_event_of_a_batch_wait_for_it(api: Api) -> None:
    many = range(1, jobs.DIRECT_MAX_RECIPIENTS + 20)
    await api.people(*many)
    await api.team(7, *many)
    everyone = {**message_event("all", 1), "notify": {"teams": [7]}}
    answer = await post_batch(api, message_event("before", 1), everyone, message_event("after", 1))
    for id_ in answer.json()["ids"]:
        assert (await state(api, id_, 10))["state"] == "delivered"
    assert await messages_of(api, 1) == ["after", "all", "before"]
    assert await api.app_state.database.value("select count(*) from jobs") == 0


async def test_batch_with_invalid_event_is_rejected_with_all_errors(api: Api) -> None:
    await api.people(1)
    answer = await post_batch(
        api,
        message_event("fine", 1),
        message_event("", 1),
        7,
        {"type": "note", "notify": {"users": [1, 99]}},
        message_event("x", 98),
        message_event("x", 1, data={"user": 97}),
        {"type": "note", "notify": {"users": [1]}, "data": {"user": 97}},
        {"type": "overdue_task", "notify": {"users": [1]}, "data": {"user": 97}},
    )
    found = field_errors(answer)
    assert ("events.1.params.body", "required") in found or ("events.1.params.body", "string_between") in found
    assert ("events.2", "object") in found
    assert ("events.3.data", "required") in found
    assert ("events.3.notify.users.1", "unknown") in found
    assert ("events.4.notify.users.0", "unknown") in found
    assert ("events.5.data.user", "unknown") in found
    assert [code for field, code in found if field == "events.6.data.user"] == ["unknown"]
    assert [code for field, code in found if field == "events.7.data.user"] == ["prohibited"]
    assert (await api.inbox(1))["pagination"]["total"] == 0
    assert await api.app_state.database.value("select count(*) from events") == 0


async def test_batch_with_unknown_recipient_is_rejected(api: Api) -> None:
    await api.people(1)
    assert field_errors(await post_batch(api, message_event("a", 1), message_event("b", 1, 99))) == [
        ("events.1.notify.users.1", "unknown")
    ]
    assert await api.app_state.database.value("select count(*) from events") == 0


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "required"),
        ({"events": {}}, "array"),
        ({"events": []}, "array_between"),
        ({"events": [{}] * 1001}, "array_between"),
    ],
)
async def test_batch_holds_1_to_1000_events(api: Api, body: Any, code: str) -> None:
    answer = await api.as_service("POST", "/events/batch", json=body)
    assert ("events", code) in field_errors(answer)


async def test_batch_body_may_have_8_mib(api: Api) -> None:
    await api.people(1)
    texts = [{**message_event("x", 1), "pad": "x" * 20_000} for _ in range(400)]
    assert (await post_batch(api, *texts)).status_code == 202
    assert (await post_batch(api, *texts, *texts)).status_code == 413


# --- Own ids ---------------------------------------------------------------------------------------------------------


async def test_reposted_event_answers_as_before_and_does_nothing(api: Api) -> None:
    await api.people(1)
    event = message_event("once", 1, id=str(uuid4()))
    answers = await asyncio.gather(*[post(api, event) for _ in range(5)])
    assert {answer.status_code for answer in answers} == {202}
    assert {answer.json()["id"] for answer in answers} == {event["id"]}
    assert (await post(api, {**event, "id": event["id"].upper()})).json()["id"] == event["id"]
    assert (await state(api, event["id"], 10))["recipients"] == 1
    assert await api.ids(1) == [event["id"]]
    assert (await post_batch(api, event, message_event("new", 1), event)).json()["ids"][::2] == [event["id"]] * 2


async def test_event_id_of_another_event_or_service_is_rejected(api: Api) -> None:
    await api.people(1)
    event = message_event("once", 1, id=str(uuid4()))
    assert (await post(api, event)).status_code == 202
    for answer in (
        await post(api, {**event, "params": {"body": "twice"}}),
        await post(api, event, name="erp"),
        await post(api, event, company_id=1),
        await post_batch(api, message_event("x", 1), {**event, "params": {"body": "twice"}}),
    ):
        assert answer.status_code == 409
        assert answer.json()["errors"][0]["code"] == "conflict.id_reused"
    id_ = str(uuid4())
    assert (await post_batch(api, message_event("a", 1, id=id_), message_event("b", 1, id=id_))).status_code == 409
    assert await messages_of(api, 1) in (["once"], [])


async def test_reposted_event_answers_as_before_despite_unknown_users(api: Api) -> None:
    await api.people(1, 2, 3)
    event = {**message_event("once", 1, 2, id=str(uuid4()), key="k"), "data": {"user": 3}}
    skips = {**message_event("skips", 1, 99, id=str(uuid4())), "notify": {"users": [1, 99], "unknown": "skip"}}
    first = [await post(api, each) for each in (event, skips)]
    assert [answer.status_code for answer in first] == [202, 202]
    for id_ in (event["id"], skips["id"]):
        await state(api, id_, 10)
    for user in (2, 3):
        await api.as_service("DELETE", f"/directory/users/{user}", "directory:write")
    await api.people(99)
    assert [(await post(api, each)).content for each in (event, skips)] == [answer.content for answer in first]
    assert (await post_batch(api, message_event("new", 1), event)).json()["ids"][1] == event["id"]
    assert field_errors(await post_batch(api, event, {**event, "id": str(uuid4())})) == [
        ("events.1.data.user", "unknown"),
        ("events.1.notify.users.1", "unknown"),
    ]


async def test_reposted_event_does_not_replace_newer_event_of_its_key(api: Api) -> None:
    await api.people(1)
    old, new = (message_event(body, 1, id=str(uuid4()), key="k", deliver_at=in_future()) for body in ("old", "new"))
    for event in (old, new, old):
        assert (await post(api, event)).status_code == 202
    assert [(await state(api, each["id"]))["state"] for each in (old, new)] == ["cancelled", "held"]


@pytest.mark.one_cell("events for unknown users are refused by the first cell")
async def test_events_with_and_without_id_are_stored_together(idle: Api, dba: Connection) -> None:
    await idle.people(1)
    known = message_event("known", 1, id=str(uuid4()))
    await post(idle, known)
    good = [message_event("a", 1), message_event("b", 1, id=str(uuid4()))]
    bad = [message_event("c", 99, id=str(uuid4())), message_event("d", 98), {**known, "params": {"body": "another"}}]
    async with locked(dba, "events"):
        first = asyncio.create_task(post(idle, message_event("first", 1)))
        await until(lambda: waiting_at(dba, "events"))
        others = [asyncio.create_task(post(idle, event)) for event in (good[0], bad[0], known, bad[1], good[1], bad[2])]
        await until(lambda: len(idle.app_state.intake._batches._waiting) == 6)  # noqa: SLF001 - they are stored together
    answers = await asyncio.gather(first, *others)
    assert [answer.status_code for answer in answers] == [202, 202, 422, 202, 422, 202, 409]
    assert await dba.fetchval("select count(distinct xmin::text) from events") == 3
    assert await dba.fetchval("select count(*) from events") == await dba.fetchval("select count(*) from jobs") == 4


async def test_batches_of_the_same_events_in_opposite_orders_do_not_deadlock(idle: Api, dba: Connection) -> None:
    await idle.people(1)
    await post(idle, message_event("any", 1))
    first, middle, last = [message_event("same", 1, id=id_) for id_ in sorted(str(uuid4()) for _ in range(3))]
    async with dba.transaction():
        copy = (
            "insert into events select (jsonb_populate_record(e, jsonb_build_object('id', $1::uuid))).* from events e"
        )
        await dba.execute(copy, middle["id"])
        orders = ([first, middle, last], [last, middle, first])
        calls = [
            asyncio.create_task(idle.as_service("POST", "/events/batch", json={"events": events})) for events in orders
        ]
        await reaches(lambda: blocked(dba), 2)
        await dba.execute("delete from events where id = $1", middle["id"])
    assert [call.status_code for call in await asyncio.gather(*calls)] == [202, 202]


async def test_statements_that_store_events_use_generic_plans(idle: Api) -> None:
    await idle.people(1, 2)
    checked = idle.app_state.catalogue.check("custom", {"user": 2}, {"body": "Hello"})
    async with idle.app_state.database.connection() as connection:
        intake = Intake(Borrowed(connection), idle.app_state.pubsub, idle.app_state.disk)
        for count in (*[1] * 5, *[1, 20, 300] * 3):
            await intake.accept_batch([Draft(checked, [1, 2], [], "crm", None)] * count)
        statements = [queries("events")["accept"], queries("directory")["people"]]
        plans = "select generic_plans, custom_plans from pg_prepared_statements where statement = any($1)"
        assert [tuple(row) for row in await connection.fetch(plans, statements)] == [(9, 5)] * 2


@pytest.mark.parametrize(
    ("seconds", "others", "gathered"), [(0.004, 0, 0), (0.004, 1, 0.004), (0.004, 2, 0.008), (30, 1, MAX_GATHERING)]
)
def test_events_are_gathered_while_other_processes_store_theirs(seconds: float, others: int, gathered: float) -> None:
    assert gathering_time(seconds, others) == pytest.approx(gathered)


async def test_processes_that_store_several_events_together_know_each_other(
    api: Api, server: Embedded, catalogue: Catalogue
) -> None:
    await api.people(1)
    async with AsyncExitStack() as stack:
        elsewhere = await stack.enter_async_context(serving(url_for(server, "busy"), catalogue, with_worker=False))
        both = api, elsewhere
        for each in both:
            await stack.enter_async_context(in_background(each.app_state.pubsub.receive()))

        async def are_known() -> bool:
            await asyncio.gather(*(post(each, custom(1)) for each in both for _ in range(5)))
            return all(each.app_state.pubsub.others("storing") for each in both)

        await until(are_known)
    await at_rest(api)


async def test_final_state_wakes_a_caller_who_waits_at_another_process(
    api: Api, server: Embedded, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_status, "_POLL_INTERVAL", 1e6)
    await api.people(1)
    id_ = (await post(api, message_event("x", 1, deliver_at=in_future()))).json()["id"]
    async with (
        serving(url_for(server, "busy"), catalogue, with_worker=False) as elsewhere,
        in_background(api.app_state.pubsub.receive()),
        in_background(elsewhere.app_state.pubsub.receive()),
        bounded(),
    ):
        there = elsewhere.app_state

        def is_heard() -> bool:
            there.pubsub.listen_for("settled")
            return api.app_state.pubsub.others("settled") > 0

        asking = asyncio.create_task(event_status.state(there.database, there.pubsub, UUID(id_), Viewer(), seconds=1e6))
        await until(is_heard)
        await api.as_service("DELETE", f"/events/{id_}")
        assert (await asking)["state"] == "cancelled"


# --- deliver_at, keys, cancellation ---------------------------------------------------------------------------------


async def test_deliver_at_holds_an_event_until_its_time(api: Api) -> None:
    await api.people(1)
    held = (await post(api, message_event("later", 1, deliver_at=in_future()))).json()["id"]
    await api.post(message_event("now", 1, deliver_at="2020-01-01T00:00:00+02:00"))
    due = in_future(timedelta(milliseconds=300))
    soon = (await post(api, message_event("soon", 1, deliver_at=due))).json()["id"]
    assert (await state(api, soon, 30))["state"] == "delivered"
    assert datetime.now(UTC) >= datetime.fromisoformat(due)
    assert (await state(api, held))["state"] == "held"
    assert await messages_of(api, 1) == ["soon", "now"]


@pytest.mark.parametrize(
    "moment",
    [
        *("tomorrow", "2030-01-01", "2030-01-01T08:00:00", 7, True, "2030-13-01T00:00:00Z", "9999-12-31T23:59:59Z"),
        *("2026-12-01T00:00:00+05:99", "2026-12-01T00:00:00+24:00", "2026-12-01T24:00:00Z", "2026-02-29T00:00:00Z"),
    ],
)
async def test_deliver_at_without_offset_or_out_of_range_is_rejected(api: Api, moment: Any) -> None:
    await api.people(1)
    assert field_errors(await post(api, message_event("x", 1, deliver_at=moment))) == [("deliver_at", "date")]


async def test_cancelled_event_is_not_delivered(api: Api) -> None:
    await api.people(1)
    id_ = (await post(api, message_event("x", 1, deliver_at=in_future()))).json()["id"]
    assert (await api.as_service("DELETE", f"/events/{id_}", name="erp")).status_code == 404
    assert (await api.as_service("DELETE", f"/events/{id_}")).status_code == 204
    assert (await api.as_service("DELETE", f"/events/{id_}")).status_code == 204
    assert (await state(api, id_))["state"] == "cancelled"
    assert await api.app_state.database.value("select count(*) from jobs") == 0


async def test_delivered_event_cannot_be_cancelled(api: Api) -> None:
    await api.people(1)
    id_ = await api.post(message_event("x", 1, key="mine"))
    for path in (f"/events/{id_}", "/events/by-key/mine"):
        answer = await api.as_service("DELETE", path)
        assert answer.status_code == 409
        assert answer.json()["errors"][0]["code"] == "conflict.too_late"
    for none in ("none", "%0A", "%20"):
        assert (await api.as_service("DELETE", f"/events/by-key/{none}")).status_code == 404


async def partly_delivered(api: Api, monkeypatch: pytest.MonkeyPatch) -> tuple[str, range]:
    """Deliver the first 50 inboxes of a team event, and return its id and all recipients."""
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 50)
    many = range(1, jobs.DIRECT_MAX_RECIPIENTS + 51)
    await api.people(*many)
    await api.team(7, *many)
    id_ = (await post(api, {**message_event("all", 1), "notify": {"teams": [7]}})).json()["id"]
    await work(api)
    await work(api, "bulk", 1)
    return id_, many


async def test_two_cancellations_at_once_both_succeed(idle: Api, dba: Connection) -> None:
    await idle.people(1)
    id_ = (await post(idle, custom(1))).json()["id"]

    async with dba.transaction():
        assert await dba.fetchval(queries("cancellation")["cancel"], UUID(id_), None)
        second = asyncio.create_task(idle.as_service("DELETE", f"/events/{id_}"))
        await until(lambda: blocked(dba))
    assert (await second).status_code == 204


async def test_cancelling_during_fanout_reports_reached_recipients(idle: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    id_, many = await partly_delivered(idle, monkeypatch)
    assert (await state(idle, id_))["state"] == "delivering"
    assert (await idle.as_service("DELETE", f"/events/{id_}")).status_code == 204
    await work(idle, "bulk", 1)
    assert {"state": "cancelled", "recipients": 50}.items() <= (await state(idle, id_)).items()
    explained = await idle.as_service("GET", f"/events/{id_}/recipients/{many[-1]}")
    assert "cancelled" in explained.json()["why"]


async def test_operator_can_cancel_any_event(idle: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    id_, many = await partly_delivered(idle, monkeypatch)
    worker = new_id()
    leased = await jobs.claim(idle.app_state.database, worker, "bulk", 1)
    call = partial(idle.as_service, "DELETE", f"/events/{id_}", "operations", name="console")
    assert (await call(company_id=2)).status_code == 404
    assert (await call()).status_code == 204
    with pytest.raises(jobs.Lost):
        await fanout.deliver(idle.app_state.database, idle.app_state.catalogue, worker, leased)
    assert (await call()).status_code == 204
    told = {"state": "cancelled", "recipients": 50, "reason": "cancelled by an operator: console"}
    assert told.items() <= (await state(idle, id_)).items()
    explained = await idle.as_service("GET", f"/events/{id_}/recipients/{many[-1]}")
    assert (
        explained.json()["why"] == "not delivered: an operator (console) cancelled the event before it reached the user"
    )


async def test_operator_cancellation_is_reported_except_for_own_events(idle: Api) -> None:
    await idle.people(1, 2)
    await idle.as_user(1, "POST", "/notifications", json={"message": "Hello", "notify": {"users": [2]}})
    sent = str(await idle.app_state.database.value("select id from events"))
    own = (await post(idle, message_event("x", 1))).json()["id"]
    for id_ in (sent, own):
        scopes = ("events:write", "operations")
        assert (await idle.as_service("DELETE", f"/events/{id_}", *scopes)).status_code == 204
    answers = [await idle.as_service("GET", f"/events/{id_}", "operations") for id_ in (sent, own)]
    assert [answer.json().get("reason") for answer in answers] == ["cancelled by an operator: crm", None]


async def test_event_key_replaces_undelivered_event(api: Api) -> None:
    await api.people(1)
    first = (await post(api, message_event("first", 1, key="task/7 ä", deliver_at=in_future()))).json()["id"]
    second = (await post(api, message_event("second", 1, key="task/7 ä", deliver_at=in_future()))).json()["id"]
    others = (await post(api, message_event("others", 1, key="task/7 ä", deliver_at=in_future()), name="erp")).json()[
        "id"
    ]
    assert {"state": "cancelled", "replaced_by": second}.items() <= (await state(api, first)).items()
    assert (await state(api, second))["state"] == "held"
    assert (await api.as_service("DELETE", "/events/by-key/task%2F7%20%C3%A4")).status_code == 204
    assert (await state(api, second))["state"] == "cancelled"
    answer = await api.as_service("GET", f"/events/{others}", name="erp")
    assert answer.json()["state"] == "held"
    third = await api.post(message_event("third", 1, key="task/7 ä"))
    fourth = await api.post(message_event("fourth", 1, key="task/7 ä"))
    assert (await state(api, third))["state"] == "delivered"
    assert await api.ids(1) == [fourth, third]


async def test_last_event_of_a_key_in_a_batch_is_delivered(api: Api) -> None:
    await api.people(1)
    batch = [message_event(str(number), 1, key="k") for number in range(3)]
    ids = (await post_batch(api, *batch)).json()["ids"]
    states = [(await state(api, id_, 10))["state"] for id_ in ids]
    assert states == ["cancelled", "cancelled", "delivered"]
    assert await messages_of(api, 1) == ["2"]


async def test_concurrent_events_of_one_key_leave_one(idle: Api) -> None:
    await idle.people(1)
    answers = await asyncio.gather(*[post(idle, message_event(str(number), 1, key="k")) for number in range(12)])
    assert {answer.status_code for answer in answers} == {202}
    assert await idle.app_state.database.value("select count(*) from jobs") == 1
    assert await idle.app_state.database.value("select count(*) from cancellations") == 11
    assert await idle.app_state.database.value(
        "select event_id from event_keys"
    ) == await idle.app_state.database.value("select id from jobs")


CHANGES: dict[str, tuple[bool, str, Callable[[UUID, UUID], tuple[Any, ...]]]] = {
    "fails": (False, "move_to_dead_letters", lambda worker, id_: (worker, id_, "it failed")),
    "is replayed": (True, "requeue", lambda _, id_: ([id_], *[None] * 4)),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_event_that_fails_or_is_replayed_at_that_moment_is_replaced(
    idle: Api, dba: Connection, change: str
) -> None:
    await idle.people(1)
    old = UUID((await post(idle, message_event("old", 1, key="k"))).json()["id"])
    has_failed, statement, arguments = CHANGES[change]
    worker = new_id()
    await jobs.claim(idle.app_state.database, worker, "direct", 1)
    if has_failed:
        await jobs.move_to_dead_letters(idle.app_state.database, worker, old, "it failed")
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.fetch(queries("jobs")[statement], *arguments(worker, old))
        posting = group.create_task(post(idle, message_event("new", 1, key="k")))
        await until(lambda: blocked(dba))
    new = posting.result().json()["id"]
    assert {"state": "cancelled", "replaced_by": new}.items() <= (await state(idle, old)).items()
    await work(idle)
    assert await messages_of(idle, 1) == ["new"]


async def test_key_replaced_during_fanout_reaches_the_rest_with_new_event(
    idle: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 60)
    many = range(1, jobs.DIRECT_MAX_RECIPIENTS + 21)
    await idle.people(*many)
    await idle.team(7, *many)
    event = {**message_event("old", 1, key="k"), "notify": {"teams": [7]}}
    old = (await post(idle, event)).json()["id"]
    await work(idle)
    await work(idle, "bulk", 1)
    new = (await post(idle, {**event, "params": {"body": "new"}})).json()["id"]
    await work(idle)
    for _ in range(3):
        await work(idle, "bulk", 1)
    assert (await state(idle, old))["recipients"] == 60
    assert (await state(idle, new))["recipients"] == len(many)
    assert await messages_of(idle, many[0]) == ["new", "old"]
    assert await messages_of(idle, many[-1]) == ["new"]


# --- Recipients ------------------------------------------------------------------------------------------------------


async def test_excepted_users_are_not_notified(api: Api) -> None:
    await api.people(1, 2, 3, 4)
    await api.team(7, 1, 2, 3)
    id_ = await api.post({**message_event("x", 1), "notify": {"users": [4, 1], "teams": [7], "except": [1, 3, 99]}})
    assert (await state(api, id_))["recipients"] == 2
    assert [await api.ids(user) for user in (1, 2, 3, 4)] == [[], [id_], [], [id_]]


async def test_except_works_in_the_bulk_lane(api: Api) -> None:
    many = range(1, jobs.DIRECT_MAX_RECIPIENTS + 31)
    await api.people(*many)
    await api.team(7, *many)
    most = list(many[:-10])
    id_ = await api.post({**message_event("x", 1), "notify": {"teams": [7], "except": most}})
    assert (await state(api, id_))["recipients"] == 10
    half = list(many[::2])
    id_ = await api.post({**message_event("x", 1), "notify": {"users": list(many), "except": half}})
    assert (await state(api, id_))["recipients"] == len(many) - len(half)


async def test_unknown_recipients_can_be_skipped_and_are_listed(api: Api) -> None:
    await api.people(1)
    await api.people(2, company_id=2)
    event = {
        **message_event("x", 1),
        "notify": {"users": [1, 99, 2], "teams": [8], "unknown": "skip"},
        "id": str(uuid4()),
    }
    first = await post(api, event, company_id=1)
    assert first.json()["skipped"] == {"users": [99, 2], "teams": [8]}
    assert (await post(api, event, company_id=1)).content == first.content
    assert (await state(api, event["id"], 10))["recipients"] == 1
    assert await api.ids(1) == [event["id"]]
    nobody = await post(api, {**message_event("x", 1), "notify": {"users": [99], "unknown": "skip"}})
    assert (await state(api, nobody.json()["id"], 10))["recipients"] == 0
    refused = await post(api, {**message_event("x", 1), "notify": {"users": [99], "unknown": "refuse"}})
    assert field_errors(refused) == [("notify.users.0", "unknown")]
    batch = await post_batch(
        api, message_event("a", 1), {**message_event("b", 1), "notify": {"users": [97], "unknown": "skip"}}
    )
    assert batch.json()["skipped"] == [{"id": batch.json()["ids"][1], "users": [97], "teams": []}]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"notify": {"users": [1], "unknown": "maybe"}}, ("notify.unknown", "in")),
        ({"notify": {"users": [1], "unknown": ["skip"]}}, ("notify.unknown", "in")),
        ({"notify": {"users": [1], "except": 2}}, ("notify.except", "array")),
        ({"notify": {"users": [1], "except": ["2"]}}, ("notify.except.0", "integer")),
        ({"notify": {"users": [1], "except": [0]}}, ("notify.except.0", "numeric_between")),
        ({"notify": {"users": [1], "except": [1] * 10_001}}, ("notify", "array_between")),
        ({"id": "x"}, ("id", "uuid")),
        ({"id": 7}, ("id", "uuid")),
        ({"key": ""}, ("key", "string_between")),
        ({"key": "k" * 256}, ("key", "string_between")),
        ({"key": 7}, ("key", "string")),
        ({"about": "order:42"}, ("about", "array")),
        ({"about": ["order"]}, ("about.0", "regex")),
        ({"about": ["key:mine"]}, ("about.0", "regex")),
        ({"about": [7]}, ("about.0", "string")),
        ({"about": ["a:b"] * 21}, ("about", "array_between")),
    ],
)
async def test_each_event_field_reports_its_errors(api: Api, more: Any, expected: tuple[str, str]) -> None:
    await api.people(1)
    assert field_errors(await post(api, {**message_event("x", 1), **more})) == [expected]
    field, code = expected
    assert field_errors(await post_batch(api, {**message_event("x", 1), **more})) == [(f"events.0.{field}", code)]


# --- Explanation -----------------------------------------------------------------------------------------------------


async def test_event_recipient_state_is_explained(api: Api) -> None:
    await api.people(1, 2, 3, 4, 5)
    await api.people(6, active=False)
    await api.team(7, 2, 3, 4, 6)
    event = {**message_event("x", 1), "data": {"user": 4}, "notify": {"users": [1, 6], "teams": [7], "except": [3]}}
    id_ = await api.post(event)
    await api.as_user(1, "PUT", f"/notifications/{id_}/read")

    async def explained(user: int) -> dict[str, Any]:
        answer = await api.as_service("GET", f"/events/{id_}/recipients/{user}")
        found: dict[str, Any] = answer.json()
        return found

    one = await explained(1)
    assert {"recipient": True, "why": "named", "team_id": None, "devices": []}.items() <= one.items()
    assert one["read_at"]
    assert (await explained(2))["why"] == "a member of team 7"
    assert (await explained(2))["read_at"] is None
    assert "excludes" in (await explained(3))["why"]
    assert "the user caused the event" in (await explained(4))["why"]
    assert "neither" in (await explained(5))["why"]
    assert "not active" in (await explained(6))["why"]
    for user in ("0", "x", str(2**31)):
        assert (await api.as_service("GET", f"/events/{id_}/recipients/{user}")).status_code == 404
    assert (await api.as_service("GET", f"/events/{id_}/recipients/1", name="erp")).status_code == 404
    assert (await api.as_service("GET", f"/events/{id_}/recipients/1", "operations", name="erp")).status_code == 200


# --- Recipients at delivery ------------------------------------------------------------------------------------------


async def test_user_who_changed_company_gets_no_event_of_the_old_one(api: Api) -> None:
    await api.people(1, 2, 3)
    await api.team(7, 2)
    held = {**custom(1, 3, teams=(7,)), "deliver_at": in_future()}
    id_ = (await post(api, held, company_id=1)).json()["id"]
    await api.people(1, 2, company_id=2)
    await api.team(7, 2, company_id=2)
    await api.app_state.database.value("update jobs set due_at = now()")
    api.app_state.pubsub.publish("direct")
    answer = await state(api, id_, 10)
    assert (answer["state"], answer["recipients"], answer["dropped"]) == ("delivered", 1, 1)
    assert [await api.ids(user) for user in (1, 2, 3)] == [[], [], [id_]]
