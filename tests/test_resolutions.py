"""Resolutions: a resolved subject is resolved for all its recipients and for no other user."""

import asyncio
import copy
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.support.answers import field_errors
from tests.support.database import blocked, everything, slow
from tests.support.events import custom, in_future, post, state
from tests.support.kinds import folder_of
from tests.support.resolutions import NAMES, resolve, settled, traces
from tests.support.service import Api, serving
from tests.support.waiting import until
from tests.support.workers import work
from tocsin import fanout, jobs, resolutions
from tocsin.audit import Actor
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection, connect
from tocsin.db.pool import Borrowed
from tocsin.db.statements import queries
from tocsin.ids import new_id
from tocsin.resolutions import Resolution
from tocsin.store import pool

LEAD = "220f5f6e-e30f-4c5f-8db5-44e345f8e568"
CONTACT = "c2ccbb7e-d174-4894-ba5a-1828d0f09128"


def lead(*users: int, teams: tuple[int, ...] = (), **more: Any) -> dict[str, Any]:
    data = {"lead": {"id": LEAD}, "lead_type": {"id": CONTACT, "name": "Test drive"}}
    return {"type": "lead_escalated", "notify": {"users": users, "teams": teams}, "data": data, **more}


def ordered(*users: int, order: int = 7, **more: Any) -> dict[str, Any]:
    return {**custom(*users), "about": [f"order:{order}"], **more}


async def run_resolutions(api: Api) -> None:
    database, worker = api.app_state.database, new_id()
    while leased := await jobs.claim(database, worker, "direct", 1):
        await resolutions.settle(database, api.app_state.catalogue, worker, leased[0])


async def unread(api: Api, user: int) -> int:
    count: int = (await api.inbox(user))["pagination"]["unread"]
    return count


async def changes_since(api: Api, user: int, cursor: str) -> list[tuple[str, Any]]:
    answer = await api.as_user(user, "GET", f"/notifications/changes?since={cursor}")
    return [(change["event"], change["data"]) for change in answer.json()["data"]]


async def cursor_of(api: Api, user: int) -> str:
    cursor: str = (await api.as_user(user, "GET", "/notifications/changes")).json()["cursor"]
    return cursor


async def test_resolving_a_subject_marks_it_read_for_all_recipients(api: Api) -> None:
    await api.people(1, 2, 3)
    await api.team(7, 2, 3)
    first, second, other = await api.post(lead(1)), await api.post(lead(teams=(7,))), await api.post(ordered(1))
    cursor = await cursor_of(api, 3)
    await resolve(api, f"lead:{LEAD.upper()}")
    await settled(api)
    assert [await unread(api, user) for user in (1, 2, 3)] == [1, 0, 0]
    assert await api.ids(1, "?show=unread") == [other]
    assert await changes_since(api, 3, cursor) == [("read", {"id": second})]
    assert (await api.as_service("GET", f"/events/{first}")).json()["read"] == 1


async def test_resolution_of_several_notifications_is_one_inbox_change(api: Api) -> None:
    await api.people(1)
    ids = [await api.post(lead(1)) for _ in range(3)]
    await api.as_user(1, "PUT", f"/notifications/{ids[0]}/read")
    before = (await api.inbox(1))["data"][2]
    cursor = await cursor_of(api, 1)
    await resolve(api, f"lead:{LEAD}")
    await settled(api)
    [(event, data)] = await changes_since(api, 1, cursor)
    assert (event, sorted(data["ids"])) == ("read", sorted(ids[1:]))
    assert (await api.inbox(1))["data"][2] == before  # the first time it was read stays


async def test_resolution_affects_only_named_users(api: Api) -> None:
    await api.people(1, 2)
    await api.post(lead(1, 2))
    await resolve(api, f"lead:{LEAD}", users=[2])
    await settled(api)
    assert [await unread(api, user) for user in (1, 2)] == [1, 0]


async def test_resolution_as_gone_deletes_notifications(api: Api) -> None:
    await api.people(1, 2)
    id_, kept = await api.post(lead(1, 2)), await api.post(ordered(1))
    await api.as_user(2, "PUT", f"/notifications/{id_}/read")
    cursor = await cursor_of(api, 2)
    await resolve(api, f"lead:{LEAD}", "gone")
    await settled(api)
    assert (await api.as_user(1, "GET", f"/notifications/{id_}")).status_code == 410
    assert [(await api.inbox(user))["pagination"]["total"] for user in (1, 2)] == [1, 0]
    assert [await unread(api, user) for user in (1, 2)] == [1, 0]
    assert await api.ids(1) == [kept]
    assert await changes_since(api, 2, cursor) == [("deleted", {"id": id_})]


async def test_resolution_is_idempotent(api: Api) -> None:
    await api.people(1)
    await api.post(lead(1))
    for how in ("read", "gone"):
        await resolve(api, f"lead:{LEAD}", how)
        await settled(api)
        cursor = await cursor_of(api, 1)
        await resolve(api, f"lead:{LEAD}", how)
        await settled(api)
        assert await cursor_of(api, 1) == cursor


async def test_resolution_cancels_held_event_if_gone_and_keeps_it_if_read(api: Api) -> None:
    await api.people(1, 2)
    held = [(await post(api, ordered(1, 2, order=n, deliver_at=in_future()))).json()["id"] for n in (1, 2, 3)]
    await resolve(api, "order:1", "gone")
    await resolve(api, "order:2", "read")
    await resolve(api, "order:3", "gone", users=[2])
    await settled(api)
    assert [(await state(api, id_))["state"] for id_ in held] == ["cancelled", "held", "held"]
    await api.app_state.database.value("update jobs set due_at = now()")
    api.app_state.pubsub.publish("direct")
    assert (await state(api, held[2], 10))["state"] == "delivered"
    assert (await state(api, held[1], 10))["state"] == "delivered"
    assert [await unread(api, user) for user in (1, 2)] == [2, 1]
    explained = await api.as_service("GET", f"/events/{held[2]}/recipients/2")
    assert explained.json()["why"] == "left out: the event excludes the user, or was resolved for them"


async def test_event_that_fails_while_it_is_resolved_as_gone_is_cancelled(idle: Api, dba: Connection) -> None:
    await idle.people(1)
    id_ = (await post(idle, ordered(1))).json()["id"]
    worker = new_id()
    await jobs.claim(idle.app_state.database, worker, "direct", 1)
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.fetch(queries("jobs")["move_to_dead_letters"], worker, UUID(id_), "it failed")
        group.create_task(resolve(idle, "order:7", "gone"))
        await until(lambda: blocked(dba))
    assert (await state(idle, id_))["state"] == "cancelled"


async def test_resolution_waits_for_no_event_that_is_accepted_during_it(idle: Api, dba: Connection, url: str) -> None:
    await idle.people(1)
    await post(idle, ordered(1))
    other = await connect(url)
    try:
        async with other.transaction():
            async with asyncio.TaskGroup() as group, dba.transaction():
                await dba.execute("select from jobs for update")
                resolving = group.create_task(resolve(idle, "order:7", "gone"))
                await until(lambda: blocked(dba))
                later = (await post(idle, ordered(1))).json()["id"]
                await other.execute("select from jobs where id = $1 for update", later)
            assert resolving.done()
    finally:
        await other.close()
    await dba.execute("delete from jobs where task = 'resolve'")
    await work(idle)
    assert await idle.ids(1) == [later]


async def test_failed_event_is_replayed_without_those_it_was_gone_for(idle: Api) -> None:
    await idle.people(1, 2)
    await idle.team(7, 2)
    id_ = (await post(idle, {**custom(1, teams=(7,)), "about": ["order:7"]})).json()["id"]
    database, worker = idle.app_state.database, new_id()
    await jobs.claim(database, worker, "direct", 1)
    await jobs.move_to_dead_letters(database, worker, UUID(id_), "it failed")
    await resolve(idle, "order:7", "gone", users=[2])
    await run_resolutions(idle)
    replay = {"events": [id_]}
    assert (await idle.as_service("POST", "/operations/replay", "operations", json=replay)).status_code == 200
    await work(idle)
    assert [await idle.ids(user) for user in (1, 2)] == [[id_], []]


async def test_events_after_a_resolution_are_unread(api: Api) -> None:
    await api.people(1)
    await api.post(lead(1))
    await resolve(api, f"lead:{LEAD}")
    later = await api.post(lead(1))
    await settled(api)
    assert await api.ids(1, "?show=unread") == [later]


async def test_resolution_applies_to_accepted_events_delivered_later(
    idle: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "DIRECT_MAX_RECIPIENTS", 3)
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 4)
    monkeypatch.setattr(resolutions, "USERS_BATCH_SIZE", {"direct": 3, "bulk": 3})
    monkeypatch.setattr(resolutions, "POLL_INTERVAL", 0.01)
    await idle.people(*range(1, 11))
    await idle.team(7, *range(1, 11))
    id_ = (await post(idle, lead(teams=(7,)))).json()["id"]
    await work(idle)
    await work(idle, "bulk")
    await resolve(idle, f"lead:{LEAD}")
    task = asyncio.create_task(working(idle))
    await settled(idle)
    assert (await state(idle, id_))["state"] == "delivered"
    assert [await unread(idle, user) for user in range(1, 11)] == [0] * 10
    task.cancel()


async def test_resolution_as_gone_during_fanout_reaches_all(idle: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "DIRECT_MAX_RECIPIENTS", 3)
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 4)
    await idle.people(*range(1, 11))
    await idle.team(7, *range(1, 11))
    id_ = (await post(idle, lead(teams=(7,)))).json()["id"]
    await work(idle)
    await work(idle, "bulk")
    await resolve(idle, f"lead:{LEAD}", "gone")
    task = asyncio.create_task(working(idle))
    await settled(idle)
    answer = await state(idle, id_)
    assert (answer["state"], answer["recipients"]) == ("cancelled", 4)
    assert [(await idle.inbox(user))["pagination"]["total"] for user in range(1, 11)] == [0] * 10
    task.cancel()


async def working(api: Api) -> None:
    """Run a worker until cancelled."""
    from tocsin.worker import Worker

    worker = Worker(api.app_state.database, api.app_state.catalogue, api.app_state.pubsub)
    await worker.run()


async def test_large_resolution_is_accepted_in_parts_and_has_more_time(
    idle: Api, url: str, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolutions, "EVENTS_PER_JOB", 10)
    await many_orders(idle, 25)
    async with slow(dba, "insert", "resolutions"), pool(url, 1, patience=2.0) as database:
        await resolutions.resolve(
            database, idle.app_state.pubsub, Resolution("order:7", "gone", None, "crm", None), Actor("test")
        )
    database = idle.app_state.database
    parts = await database.rows("select cardinality(event_ids), j.lane, sender from resolutions join jobs j using (id)")
    assert sorted(row[0] for row in parts) == [5, 10, 10]
    assert sorted(row["lane"] for row in parts) == ["bulk", "bulk", "direct"]
    assert len({row["sender"] for row in parts} - {""}) == 1
    await settle_all(idle)
    assert await idle.ids(1) == []
    assert await database.value("select count(*) from resolutions") == 0


async def test_resolution_changes_a_bounded_number_of_entries_in_one_step(
    idle: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolutions, "RECORDS_BATCH_SIZE", 4)
    await many_orders(idle, 10)
    await resolve(idle, "order:7", "erased")
    await settle_all(idle)
    changes = await idle.app_state.database.rows("select cardinality(event_ids) from changes order by position")
    assert [row[0] for row in changes] == [4, 4, 2]


async def test_teams_of_excepted_users_are_looked_up_once_for_all_events(idle: Api, dba: Connection) -> None:
    users = range(1, 21)
    await idle.people(*users)
    await idle.team(7, *users)
    for _ in range(10):
        event = {**custom(21, teams=(7,)), "about": ["order:7"], "deliver_at": in_future()}
        await post(idle, {**event, "notify": {**event["notify"], "unknown": "skip"}})
    async with dba.transaction():
        await dba.execute(queries("resolutions")["except"], "order:7", None, None, [*users, 99])
        read = await dba.fetchval("select idx_scan from pg_stat_xact_user_tables where relname = 'members'")
    excepted = await dba.fetchval("select array_agg(distinct cardinality(excepted)) from events")
    assert (excepted, read) == ([20], 21)


async def many_orders(api: Api, count: int) -> None:
    await api.people(1)
    events = {"events": [ordered(1) for _ in range(count)]}
    assert (await api.as_service("POST", "/events/batch", json=events)).status_code == 202
    await work(api)
    assert await unread(api, 1) == count


async def settle_all(api: Api) -> None:
    """Run all jobs of resolutions by hand."""
    database, worker = api.app_state.database, new_id()
    while leased := await jobs.claim(database, worker, "direct", 1) or await jobs.claim(database, worker, "bulk", 1):
        await resolutions.settle(database, api.app_state.catalogue, worker, leased[0])


async def test_company_bound_service_resolves_for_its_users_only(api: Api) -> None:
    await api.people(1)
    await api.people(2, company_id=2)
    await api.post(lead(1, 2))
    held = (await post(api, lead(1, deliver_at=in_future()))).json()["id"]
    await resolve(api, f"lead:{LEAD}", "gone", company_id=2)
    await settled(api)
    assert [(await api.inbox(user))["pagination"]["total"] for user in (1, 2)] == [1, 0]
    assert (await state(api, held))["state"] == "held"
    answer = await api.as_service(
        "POST", "/events/resolve", json={"about": "order:1", "as": "read", "users": [2, 1, 99]}, company_id=2
    )
    assert field_errors(answer) == [("users.1", "unknown"), ("users.2", "unknown")]


async def test_event_key_is_a_subject_of_its_own_service_only(api: Api) -> None:
    await api.people(1)
    key = " Task 7: the\nlong one "
    await api.post({**custom(1), "key": key})
    await api.post({**custom(1), "key": key}, name="erp")
    await resolve(api, f"key:{key}", name="erp")
    await settled(api)
    assert await unread(api, 1) == 1
    await resolve(api, f"key:{key}")
    await settled(api)
    assert await unread(api, 1) == 0


async def test_invalid_resolution_reports_all_errors_and_does_nothing(api: Api) -> None:
    await api.people(1)
    for body, due in (
        ({}, [("about", "required"), ("as", "required")]),
        ({"about": 7, "as": "done", "users": 1}, [("about", "string"), ("as", "in"), ("users", "array")]),
        (
            {"about": "Lead", "as": ["read"], "users": [1, "1", 0, 99]},
            [
                ("about", "regex"),
                ("as", "in"),
                ("users.1", "integer"),
                ("users.2", "numeric_between"),
                ("users.3", "unknown"),
            ],
        ),
        ({"about": f"contact:{CONTACT}", "as": "erased", "users": [1]}, [("users", "prohibited")]),
        ({"about": "key:", "as": "read"}, [("about", "regex")]),
        ({"about": "order:1", "as": "read", "users": [99] * 10_001}, [("users", "array_between")]),
    ):
        assert field_errors(await api.as_service("POST", "/events/resolve", json=body)) == due
    assert await api.app_state.database.value("select count(*) from resolutions") == 0


async def test_resolution_as_erased_requires_directory_scope(api: Api) -> None:
    for how, scope, status in (
        ("erased", "events:write", 403),
        ("erased", "directory:write", 202),
        ("read", "directory:write", 403),
        ("read", "events:write", 202),
        ("gone", "operations", 403),
    ):
        body = {"about": f"contact:{CONTACT}", "as": how}
        answer = await api.as_service("POST", "/events/resolve", scope, json=body)
        assert answer.status_code == status, (how, scope)


async def test_resolution_with_idempotency_key_runs_once(api: Api) -> None:
    await api.people(1)
    await api.post(lead(1))
    body, headers = {"about": f"lead:{LEAD}", "as": "read"}, {"Idempotency-Key": "once"}
    first = await api.as_service("POST", "/events/resolve", json=body, headers=headers)
    await settled(api)
    later = await api.post(lead(1))
    again = await api.as_service("POST", "/events/resolve", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    await settled(api)
    assert await api.ids(1, "?show=unread") == [later]


# --- Erasure of contacts ---------------------------------------------------------------------------------------------


def about_the_contact(api: Api, *users: int) -> list[dict[str, Any]]:
    """Return an event of every kind that mentions the contact."""
    email = copy.deepcopy(api.app_state.catalogue.samples["incoming_email"]["event"])
    email["data"]["contact"] = {"id": CONTACT, "first_name": NAMES[0], "last_name": NAMES[1], "account_id": LEAD}
    email["data"]["email"]["subject"] = NAMES[2]
    opened = {"type": "email_opened", "data": copy.deepcopy(email["data"])}
    email["params"]["body"] = NAMES[3]
    with_words = [
        copy.deepcopy(api.app_state.catalogue.samples[name]["event"])
        for name in ("note", "inbox", "task_assigned", "lead_assigned", "case_owner")
    ]
    for event in with_words:
        event["params"] = dict.fromkeys(event["params"], NAMES[3]) | {
            "contact": "Zebulon Quist",
            "contact_id": CONTACT,
        }
        event["data"].update({"user": 1} if "user" in event["data"] else {})
    said = {**custom(*users, body=f"{NAMES[0]}: {NAMES[3]}"), "about": [f"contact:{CONTACT}"]}
    return [{**event, "notify": {"users": users}} for event in (email, opened, *with_words, said)]


async def test_contact_erasure_restores_no_words_of_a_user_who_is_erased(idle: Api, dba: Connection) -> None:
    await idle.people(1)
    id_ = UUID((await post(idle, about_the_contact(idle, 1)[0])).json()["id"])
    await work(idle)
    await resolve(idle, f"contact:{CONTACT}", "erased")
    async with asyncio.TaskGroup() as group, dba.transaction():
        for name, arguments in (("mask", (1, [id_])), ("forget", (1, [id_]))):
            await dba.execute(queries("directory")[name], *arguments)
        rewriting = group.create_task(run_resolutions(idle))
        await until(lambda: rewriting.done() or blocked(dba))
    assert [tuple(row) for row in await dba.fetch("select data, params from events")] == [("{}", "{}")]


async def test_contact_erasure_removes_names_and_texts_everywhere(api: Api) -> None:
    await api.people(1)
    await api.people(2, locale="da-DK")
    await api.people(3, locale="de")
    events = about_the_contact(api, 1, 2, 3)
    ids = [await api.post(event) for event in events]
    other = await api.post(custom(1, body="Zoe stays"))
    held = (await post(api, {**events[0], "deliver_at": in_future()})).json()["id"]
    assert NAMES[0] in str(await api.inbox(2))
    cursor = await cursor_of(api, 2)
    await resolve(api, f"contact:{CONTACT}", "erased")
    await settled(api)
    assert traces(await everything(api)) == []
    assert {event for event, _ in await changes_since(api, 2, cursor)} == {"notification"}
    assert {data["id"] for _, data in await changes_since(api, 2, cursor)} == set(ids)
    email = next(entry for entry in (await api.inbox(1))["data"] if entry["id"] == ids[0])
    assert email["message"] == "(deleted) sent you an email on subject (deleted)"
    assert email["data"]["contact"] == {"id": CONTACT, "first_name": "", "last_name": "", "account_id": None}
    assert (await api.inbox(3, "?per_page=100"))["data"][-1]["message"] == (
        "(gelöscht) hat Ihnen eine E-Mail mit dem Betreff (gelöscht) gesendet"
    )
    assert (await api.inbox(1))["pagination"]["unread"] == len(ids) + 1
    assert any(entry["id"] == other and entry["message"] == "Zoe stays" for entry in (await api.inbox(1))["data"])
    await api.people(3, locale="da")
    await api.app_state.database.value("update jobs set due_at = now() where id = $1", held)
    api.app_state.pubsub.publish("direct")
    assert (await state(api, held, 10))["state"] == "delivered"
    assert (await api.inbox(3))["data"][0]["message"] == "(slettet) har sendt dig en e-mail med emnet (slettet)"


async def test_parts_of_a_contact_erasure_read_only_their_own_events(
    idle: Api, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolutions, "EVENTS_BATCH_SIZE", 10)
    await idle.people(1)
    event = about_the_contact(idle, 1)[0]
    ids = [(await post(idle, event)).json()["id"] for _ in range(60)]
    await work(idle)
    await resolve(idle, f"contact:{CONTACT}", "erased")
    database, worker = idle.app_state.database, new_id()
    reads: list[int] = []
    for table in ("events", "contents", "subjects"):  # as by retention
        column = "id" if table == "events" else "event_id"
        await database.value(f"delete from {table} where {column} = any($1)", ids[15:35])
    read = "select sum(idx_tup_fetch)::int from pg_stat_xact_user_tables where relname like 'events%'"
    while leased := await jobs.claim(database, worker, "bulk" if reads else "direct", 1):
        async with database.transaction() as connection:
            before = await connection.fetchval(read)
            await resolutions.settle(Borrowed(connection), catalogue, worker, leased[0])
            reads.append(await connection.fetchval(read) - before)
    assert traces(await everything(idle)) == []
    assert len(reads) > 5
    assert max(reads) <= 20, reads


async def test_contact_erasure_affects_only_its_company(api: Api) -> None:
    await api.people(1)
    await api.people(2, company_id=2)
    mine, other = about_the_contact(api, 1)[0], about_the_contact(api, 2)[0]
    await api.post(mine, company_id=1)
    await api.post(other, company_id=2)
    await resolve(api, f"contact:{CONTACT}", "erased", company_id=2)
    await settled(api)
    assert NAMES[0] in (await api.inbox(1))["data"][0]["message"]
    assert NAMES[0] not in str(await api.inbox(2))


async def test_contact_erasure_removes_all_text_of_removed_kinds(api: Api) -> None:
    await api.people(1)
    id_ = await api.post(about_the_contact(api, 1)[0])
    await api.app_state.database.value("update events set kind = 'of_yore' where id = $1", id_)
    await api.app_state.database.value("update contents set body = replace(body, 'incoming_email', 'of_yore')")
    await resolve(api, f"contact:{CONTACT}", "erased")
    await settled(api)
    entry = (await api.inbox(1))["data"][0]
    assert (entry["type"], entry["message"], entry["message_formatted"]) == ("of_yore", "(deleted)", "<p>(deleted)</p>")
    assert entry["data"]["contact"]["id"] == CONTACT
    assert traces(await everything(api)) == []


CHANGED = """
[shapes.email]
fields = { id = "uuid", correspondence_id = "uuid", title = "string", priority = "string" }
spoken = "{title} ({priority})"
personal = ["priority"]
"""


async def test_contact_erasure_removes_all_text_of_changed_kinds(
    url: str, catalogue: Catalogue, tmp_path: Path
) -> None:
    async with serving(url, catalogue) as api:
        await api.people(1)
        await api.people(2, locale="da")
        for event in about_the_contact(api, 1, 2):
            await api.post(event)
        assert traces(await everything(api)) != []
    async with serving(url, Catalogue.load(folder_of(tmp_path, kinds=CHANGED))) as api:
        await resolve(api, f"contact:{CONTACT}", "erased")
        await settled(api)
        assert traces(await everything(api)) == []
        for user, phrase in ((1, "(deleted)"), (2, "(slettet)")):
            assert (await api.inbox(user))["data"][-1]["message"] == phrase


async def test_events_during_contact_erasure_lose_the_name_or_come_later(api: Api) -> None:
    await api.people(*range(1, 6))
    event = about_the_contact(api, *range(1, 6))[0]
    answers = await asyncio.gather(*(post(api, event) for _ in range(30)), resolve(api, f"contact:{CONTACT}", "erased"))
    posted = [answer.json()["id"] for answer in answers if answer]
    for id_ in posted:
        assert (await state(api, id_, 10))["state"] == "delivered"
    await settled(api)
    await resolve(api, f"contact:{CONTACT}", "erased")
    await settled(api)
    assert traces(await everything(api)) == []
    assert [(await api.inbox(user))["pagination"]["unread"] for user in range(1, 6)] == [30] * 5
