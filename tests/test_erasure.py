"""Erasure removes everything of a user except notifications of other users."""

import asyncio
import json
import re
from uuid import UUID, uuid4

import pytest

from tests.support.database import everything, slow
from tests.support.events import custom, in_future
from tests.support.imports import device, import_lines, notification, user
from tests.support.pushes import ANDROID, IPHONE, comes_to, register
from tests.support.service import HOUR, SECRET, STREAM, Api
from tests.support.waiting import reaches, until
from tests.support.workers import work
from tocsin import directory, jobs
from tocsin.audit import Actor
from tocsin.auth.minting import mint_user
from tocsin.db.connections import Connection
from tocsin.db.statements import queries
from tocsin.ids import new_id
from tocsin.store import pool
from tocsin.transfer import imports
from tocsin_phones import Phones

NAME, EMAIL = "Zebulon", "zebulon@example.com"
PERSON = 424_242


async def made(api: Api) -> None:
    await api.people(1, 2)
    await api.people(PERSON, first_name=NAME, last_name="Quist", email=EMAIL)
    await api.team(7, 1, PERSON)


async def erase(api: Api, user: int = PERSON) -> None:
    answer = await api.as_service("DELETE", f"/directory/users/{user}")
    assert answer.status_code == 204, answer.text
    await reaches(lambda: api.app_state.database.value("select count(*) from jobs where task = 'erase'"), 0)


async def test_erasure_removes_a_user_from_every_table(api: Api) -> None:
    await made(api)
    alone = await api.post({**custom(PERSON, body="for your eyes only"), "about": ["order:7"]})
    shared = await api.post(custom(1, PERSON, teams=(7,)))
    await api.as_user(PERSON, "PUT", f"/notifications/{alone}/read")
    await api.as_user(PERSON, "DELETE", f"/notifications/{shared}")
    await erase(api)
    found = await everything(api)
    found["audit_entries"], erased = re.subn(f"user_erased,.*?,user:{PERSON},", "", found["audit_entries"])
    assert erased == 1, "the audit log names the erased id, once"
    for table, text in found.items():
        for trace in (NAME, EMAIL, str(PERSON), "for your eyes only", "order:7"):
            assert trace not in text, f"{trace} in {table}: {text}"
    assert await api.ids(1) == [shared]
    assert (await api.as_service("GET", f"/events/{shared}")).json()["recipients"] == 2
    assert (await api.as_service("GET", f"/events/{alone}")).json()["state"] == "delivered"


HOLDS_USERS = {
    *("users", "heads", "members", "preferences", "devices", "streams", "idempotency_keys"),
    *("events", "event_keys", "subjects", "contents", "recipients", "inbox", "changes", "deliveries"),
    *("posted", "posted_people", "import_lines"),
}
"""The tables that hold something of a user for longer than moments, except the audit log."""

FOR_MOMENTS = {"clears", "erasures", "last_clears", "resolutions"}
"""The tables that hold something of a user until a worker has done what they ask for."""

HOLDS_NONE = {
    *("cancellations", "console_sessions", "ending_events", "erased_ids", "generations", "lanes", "last_move"),
    *("migrations", "operator_rules", "posters", "preference_locks", "push_services"),
    *("registrations", "rewritten_events", "seen_registrations", "teams", "timelines", "worker_processes"),
    *("trials",),  # of earlier releases
    *("imports", "jobs", "dead_letters"),  # what they are about is in other tables
    *("moved_ids", "moved_rows", "moves"),  # of companies that move
    *FOR_MOMENTS,
}


def traces(tables: dict[str, str]) -> set[tuple[str, str]]:
    return {(table, trace) for table, text in tables.items() for trace in ("zebra", str(PERSON)) if trace in text}


async def fail_for_good(api: Api, task: str) -> None:
    """Let a job fail for good."""
    await reaches(lambda: api.app_state.database.value("select count(*) from jobs where task = $1", task), 1)
    await api.app_state.database.value(
        "with gone as (delete from jobs where task = $1 returning *)"
        " insert into dead_letters (id, task, lane, attempts, progress, reason)"
        " select id, task, lane, 8, 0, 'it failed' from gone",
        task,
    )


async def refused_post(api: Api, event: dict[str, object]) -> None:
    """Store an event as `tocsin.post` does, which a worker refused."""
    async with api.app_state.database.transaction() as connection:
        id_ = await connection.fetchval(
            "insert into posted (id, event_id, role, service, body) values ($1, $1, 'crm', 'crm', $2) returning id",
            new_id(),
            json.dumps(event),
        )
        await connection.execute("insert into posted_people (user_id, id) values ($1, $2)", PERSON, id_)


async def test_erasure_leaves_no_trace_in_any_table_of_the_schema(pushing: Api, phones: Phones) -> None:
    api, database = pushing, pushing.app_state.database
    assert set(await everything(api)) == HOLDS_USERS | HOLDS_NONE | {"audit_entries"}, "does a new table hold users?"
    await api.people(
        PERSON, first_name="zebra-1", last_name="zebra-2", email="zebra@example.com", profile_picture="zebra"
    )
    await api.team(7, 1, PERSON)
    phone = ANDROID + "zebra"
    for token, type_ in ((IPHONE, "iOS"), (phone, "Android")):
        await register(api, PERSON, token, type=type_)
    key = (await api.as_user(PERSON, "GET", "/notifications/web-push/key")).json()["key"]
    await api.as_user(PERSON, "POST", "/notifications/web-push", json=phones.subscribe(key))
    tried = await api.as_user(
        PERSON, "POST", f"/notifications/devices/{phone}/test", headers={"Idempotency-Key": "zebra"}
    )
    assert tried.status_code == 200, tried.text
    shared = await api.post(custom(1, PERSON, teams=(7,)))
    paused = {"paused_until": in_future()}
    answer = await api.as_user(PERSON, "PATCH", "/notifications/preferences", json=paused)
    assert answer.status_code == 200, answer.text
    words = {**custom(PERSON, body="zebra"), "about": ["order:zebra"]}
    alone = await api.post({**words, "key": "zebra"})
    await comes_to(api, alone, {"held": 3})
    await api.as_user(PERSON, "PUT", f"/notifications/{alone}/read")
    imported = notification(PERSON, message="zebra", message_formatted="<p>zebra</p>")
    await import_lines(api, imported, notification(2, id=imported["notification"]["id"]))
    held = {**words, "deliver_at": in_future()}
    await api.as_service("POST", "/events", json=held)
    await fail_for_good(api, "deliver")
    await refused_post(api, words)
    await database.value("insert into imports (id, state) values ($1, 'applying')", import_id := new_id())
    await database.value("insert into dead_letters values ($1, 'import', 'bulk', 8, 0, 'it failed', now())", import_id)
    lines = user(PERSON, email="zebra"), device(PERSON, "zebra"), notification(PERSON, message="zebra")
    for number, line in enumerate(lines):
        [(part, body)] = line.items()
        await database.value(
            "insert into import_lines (import_id, number, part, user_id, body) values ($1, $2, $3, $4, $5)",
            *(import_id, number, part, PERSON, json.dumps(body)),
        )
    token = mint_user(SECRET, PERSON, HOUR)
    async with api.http.stream("GET", STREAM, headers={"Authorization": f"Bearer {token}"}) as stream:
        parts = stream.aiter_raw()  # closed with its last reference
        await anext(parts)
        await reaches(lambda: database.value("select count(*) from streams"), 1)
        before = await everything(api)
        await erase(api)
    assert {table for table, _ in traces(before)} - {"audit_entries"} - FOR_MOMENTS == HOLDS_USERS
    await reaches(lambda: database.value("select count(*) from streams"), 0)
    found = await everything(api)
    del found["audit_entries"]
    await reaches(lambda: database.value("select count(*) from last_clears"), 0)
    assert {(table, trace) for table, trace in traces(found) if table != "last_clears"} == {("events", str(PERSON))}
    assert await database.value("select array_agg(id) from events where $1 = any(users)", PERSON) == [
        await database.value("select id from dead_letters where task = 'deliver'")
    ]
    assert [each["id"] for each in (await api.inbox(1))["data"]] == [shared]
    assert [each["message"] for each in (await api.inbox(2))["data"]] == ["A task of 1 was assigned & done"]


async def test_erasure_reads_a_notification_with_many_texts_once(api: Api) -> None:
    people = range(1, 301)
    await api.people(*people)
    [first, *others] = [notification(id_, message=f"Dear {id_}") for id_ in people]
    event_id = first["notification"]["id"]
    await import_lines(api, first, *({"notification": {**each["notification"], "id": event_id}} for each in others))
    async with api.app_state.database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        explained = f"explain (analyze, buffers, format json) {queries('directory')['forget']}"
        [plan] = json.loads(await connection.fetchval(explained, 1, [UUID(event_id)]))
        await transaction.rollback()
    parts = plan["Plan"]["Plans"]  # what `with` contains is not in the sum of all
    assert sum(part["Shared Hit Blocks"] for part in parts) < 30 * len(people)


@pytest.mark.parametrize("imported", [False, True])
async def test_words_go_with_the_last_user_who_received_them(api: Api, *, imported: bool) -> None:
    await made(api)
    await api.people(3)
    if imported:
        lines = [notification(id_, message="for your eyes only") for id_ in (1, PERSON)]
        lines[1]["notification"]["id"] = lines[0]["notification"]["id"]
        await import_lines(api, *lines)
    else:
        await api.post({**custom(1, PERSON, body="for your eyes only"), "about": ["order:7"]})
    await erase(api)
    assert "for your eyes only" in str(await api.inbox(1))
    await erase(api, 1)
    for table, text in (await everything(api)).items():
        for trace in ("for your eyes only", "order:7"):
            assert trace not in text, f"{trace} in {table}: {text}"


async def test_words_go_if_their_last_two_users_are_erased_at_once(idle: Api, dba: Connection) -> None:
    await made(idle)
    lines = [notification(id_, message="for your eyes only") for id_ in (1, PERSON)]
    lines[1]["notification"]["id"] = lines[0]["notification"]["id"]
    importing = asyncio.create_task(import_lines(idle, *lines))
    await run_imports(idle, importing)
    id_ = UUID(lines[0]["notification"]["id"])
    for person in (1, PERSON):
        await idle.as_service("DELETE", f"/directory/users/{person}")
    database, worker = idle.app_state.database, new_id()
    [first, second] = await jobs.claim(database, worker, "bulk", 2)
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.execute("select from events where id = $1 for update", id_)  # neither has seen that the other is done
        tasks = [group.create_task(directory.finish_erasure(database, worker, job)) for job in (first, second)]
        await until(lambda: all_blocked(idle, 2))
    assert all(task.done() for task in tasks)
    for table, text in (await everything(idle)).items():
        assert "for your eyes only" not in text, f"{table}: {text}"


async def test_failed_event_of_erased_users_loses_its_words_and_counts_them(idle: Api) -> None:
    await made(idle)
    events = (
        {**custom(PERSON, body="for your eyes only"), "about": ["order:7"]},
        custom(1, PERSON, body="for both"),
        custom(PERSON, teams=(7,), body="for the team"),
    )
    ids = [(await idle.as_service("POST", "/events", json=event)).json()["id"] for event in events]
    database, worker = idle.app_state.database, new_id()
    for job in await jobs.claim(database, worker, "direct", 9):
        await jobs.move_to_dead_letters(database, worker, job.id, "it failed")
    assert (await idle.as_service("DELETE", f"/directory/users/{PERSON}")).status_code == 204
    [job] = await jobs.claim(database, worker, "bulk", 9)
    await directory.finish_erasure(database, worker, job)
    for table, text in (await everything(idle)).items():
        for trace in ("for your eyes only", "order:7"):
            assert trace not in text, f"{trace} in {table}: {text}"
    await idle.as_service("POST", "/operations/replay", "operations", json={"events": ids})
    await work(idle)
    counts = [(await idle.as_service("GET", f"/events/{id_}")).json() for id_ in ids]
    assert [(each["recipients"], each["dropped"]) for each in counts] == [(0, 1), (1, 1), (1, 1)]
    assert [entry["message"] for entry in (await idle.inbox(1))["data"]] == ["for the team", "for both"]
    assert str(PERSON) not in (await everything(idle))["events"]


async def test_import_under_way_does_not_bring_an_erased_user_back(idle: Api) -> None:
    await made(idle)
    lines = user(PERSON, email=EMAIL), notification(PERSON, message="for your eyes only"), user(1)
    importing = asyncio.create_task(import_lines(idle, *lines))
    await reaches(lambda: idle.app_state.database.value("select count(*) from jobs where task = 'import'"), 1)
    await idle.as_service("DELETE", f"/directory/users/{PERSON}")
    await run_imports(idle, importing)
    assert (await idle.as_service("GET", f"/directory/users/{PERSON}")).status_code == 404
    for table, text in (await everything(idle)).items():
        for trace in (EMAIL, "for your eyes only"):
            assert trace not in text, f"{trace} in {table}: {text}"


async def run_imports(api: Api, importing: asyncio.Task[dict[str, int]]) -> None:
    database, worker = api.app_state.database, new_id()
    while not importing.done():
        for job in await jobs.claim(database, worker, "bulk", 1):
            await (imports.apply if job.task == "import" else directory.finish_erasure)(database, worker, job)
        await asyncio.sleep(0.05)
    await importing


async def all_blocked(api: Api, count: int) -> bool:
    waiting: int = await api.app_state.database.value(
        "select count(*) from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0"
        " and datname = current_database()"
    )
    return waiting == count


async def test_erasure_keeps_notifications_of_other_users(api: Api) -> None:
    await made(api)
    id_ = await api.post({**custom(1, body="Hello from me"), "data": {"user": PERSON}})
    await erase(api)
    entry = (await api.as_user(1, "GET", f"/notifications/{id_}")).json()
    assert entry["data"]["user"]["first_name"] == NAME
    assert entry["message"] == "Hello from me"


async def test_erased_user_is_rejected_and_cannot_be_addressed(api: Api) -> None:
    await made(api)
    await erase(api)
    assert (await api.as_user(PERSON, "GET", "/notifications")).status_code == 401
    assert (await api.as_service("GET", f"/directory/users/{PERSON}")).status_code == 404
    assert (await api.as_service("DELETE", f"/directory/users/{PERSON}")).status_code == 404
    assert (await api.as_service("POST", "/events", json=custom(PERSON))).status_code == 422
    assert (await api.as_service("GET", "/directory/teams/7")).json()["users"] == [1]


async def test_reused_id_shows_nothing_of_the_erased_user(api: Api) -> None:
    await made(api)
    await api.post(custom(PERSON))
    cursor = (await api.as_user(PERSON, "GET", "/notifications/changes")).json()["cursor"]
    answer = await api.as_service("DELETE", f"/directory/users/{PERSON}")
    assert answer.status_code == 204
    await api.people(PERSON)
    assert await api.ids(PERSON) == []
    new = await api.post(custom(PERSON))
    assert await api.ids(PERSON) == [new]
    changes = await api.as_user(PERSON, "GET", f"/notifications/changes?since={cursor}")
    assert changes.json()["resync"] is True


async def test_event_waiting_for_an_erased_user_is_dropped_and_counted(idle: Api) -> None:
    await made(idle)
    id_ = (await idle.as_service("POST", "/events", json=custom(1, PERSON))).json()["id"]
    assert (await idle.as_service("DELETE", f"/directory/users/{PERSON}")).status_code == 204
    await work(idle)
    state = (await idle.as_service("GET", f"/events/{id_}")).json()
    assert (state["recipients"], state["dropped"]) == (1, 1)


@pytest.mark.parametrize("again", [False, True])
async def test_event_that_waited_for_an_erased_user_keeps_nothing_of_them(idle: Api, *, again: bool) -> None:
    await made(idle)
    alone = {**custom(PERSON, body="for your eyes only"), "about": ["order:7"], "key": "birthday"}
    ids = [(await idle.as_service("POST", "/events", json=event)).json()["id"] for event in (alone, custom(1, PERSON))]
    assert (await idle.as_service("DELETE", f"/directory/users/{PERSON}")).status_code == 204
    if again:
        await idle.people(PERSON)
    await work(idle)
    events = (await everything(idle))["events"]
    assert (str(PERSON) in events) == again
    for table, text in (await everything(idle)).items():
        for trace in ("for your eyes only", "order:7", "birthday"):
            assert trace not in text, f"{trace} in {table}: {text}"
    counts = [(await idle.as_service("GET", f"/events/{id_}")).json() for id_ in ids]
    assert [(each["recipients"], each["dropped"]) for each in counts] == [(0, 1), (1, 1)]
    assert [entry["message"] for entry in (await idle.inbox(1))["data"]] == ["Hello"]


async def test_event_for_users_who_are_inactive_keeps_its_words(idle: Api) -> None:
    await made(idle)
    await idle.as_service("POST", "/events", json=custom(PERSON, body="for your eyes only"))
    await idle.people(PERSON, active=False)
    await work(idle)
    assert "for your eyes only" in (await everything(idle))["events"]


async def test_held_event_of_erased_user_does_not_reach_a_reused_id(api: Api) -> None:
    await made(api)
    event = {**custom(1, PERSON, body="for the former"), "deliver_at": in_future()}
    id_ = (await api.as_service("POST", "/events", json=event)).json()["id"]
    await erase(api)
    await api.people(PERSON)
    await api.app_state.database.value("update jobs set due_at = now()")
    api.app_state.pubsub.publish("direct")
    await api.as_service("GET", f"/events/{id_}?wait=30")
    assert await api.ids(1) == [id_]
    assert await api.ids(PERSON) == []


@pytest.mark.parametrize("again", [False, True])
async def test_clock_set_back_withholds_nothing_from_users(api: Api, *, again: bool) -> None:
    await api.people(1, PERSON)
    if again:
        await erase(api)
        await api.people(PERSON)
    await api.app_state.database.value("update heads set made_at = made_at + interval '1 hour'")  # by the clock of then
    id_ = await api.post(custom(1, PERSON))
    assert await api.ids(PERSON) == [id_]
    assert await api.ids(1) == [id_]


async def test_reused_id_gets_no_earlier_event_despite_clock_changes(api: Api) -> None:
    await made(api)
    event = {**custom(1, PERSON, body="for the former"), "deliver_at": in_future()}
    id_ = (await api.as_service("POST", "/events", json=event)).json()["id"]
    await erase(api)
    await api.people(PERSON)
    await api.app_state.database.value(
        "update heads set made_at = made_at - interval '1 hour'"
    )  # it was put back since
    await api.app_state.database.value("update jobs set due_at = now()")
    api.app_state.pubsub.publish("direct")
    await api.as_service("GET", f"/events/{id_}?wait=30")
    assert await api.ids(1) == [id_]
    assert await api.ids(PERSON) == []


@pytest.mark.parametrize(("after", "is_reached"), [(-1, True), (0, True), (1, False)])
async def test_event_of_an_earlier_release_skips_users_who_were_created_later(
    idle: Api, after: int, *, is_reached: bool
) -> None:
    await idle.people(1)
    id_ = (await idle.as_service("POST", "/events", json=custom(1))).json()["id"]
    await idle.app_state.database.value(
        "update events set generation = null, accepted_at = made_at - $1 * interval '1 microsecond' from heads", after
    )
    await work(idle)
    assert await idle.ids(1) == ([id_] if is_reached else [])


async def test_reposted_event_after_erasure_answers_as_before(api: Api) -> None:
    await made(api)
    event = {**custom(), "notify": {"users": [1, PERSON], "unknown": "skip"}, "id": str(uuid4())}
    await api.post(event)
    first = await api.as_service("POST", "/events", json=event)
    await erase(api)
    assert (await api.as_service("POST", "/events", json=event)).json() == first.json()


async def test_erasure_during_deliveries_leaves_no_rows(api: Api) -> None:
    await made(api)
    batch = {"events": [custom(1, PERSON, 2) for _ in range(300)]}
    await api.as_service("POST", "/events/batch", json=batch)

    async def one() -> int:
        return (await api.as_service("POST", "/events", json=custom(PERSON, 1))).status_code

    posting = [asyncio.create_task(one()) for _ in range(40)]
    await asyncio.sleep(0.02)
    erased = await api.as_service("DELETE", f"/directory/users/{PERSON}")
    assert erased.status_code == 204
    assert {await each for each in posting} <= {202, 422}
    await reaches(lambda: api.app_state.database.value("select count(*) from jobs"), 0)
    for table in ("inbox", "changes", "heads", "members"):
        assert await api.app_state.database.value(f"select count(*) from {table} where user_id = {PERSON}") == 0


async def test_erasure_is_finished_in_parts_under_the_leases_of_their_jobs(
    idle: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "EVENTS_BATCH_SIZE", 2)
    await made(idle)
    ids = [(await idle.as_service("POST", "/events", json=custom(PERSON, 1))).json()["id"] for _ in range(5)]
    await work(idle)
    await idle.as_service("DELETE", f"/directory/users/{PERSON}")
    database, parts = idle.app_state.database, 0
    while leased := await jobs.claim(database, worker := new_id(), "bulk", 1):
        before = await everything(idle)
        with pytest.raises(jobs.Lost):
            await directory.finish_erasure(database, new_id(), leased[0])
        assert await everything(idle) == before
        await directory.finish_erasure(database, worker, leased[0])
        parts += 1
    assert parts == 3
    assert str(PERSON) not in (await everything(idle))["recipients"]
    assert await database.value("select count(*) from erasures") == 0
    assert sorted(await idle.ids(1)) == sorted(ids)


async def test_erasure_has_more_time_than_other_statements(idle: Api, url: str, dba: Connection) -> None:
    await made(idle)
    async with slow(dba, "delete", "inbox"), pool(url, 1, patience=2.0) as database:
        await directory.erase(database, idle.app_state.pubsub, PERSON, Actor("test"))
    assert (await idle.as_service("GET", f"/directory/users/{PERSON}")).status_code == 404


async def test_teams_and_users_are_paginated(api: Api) -> None:
    await api.people(*range(1, 8))
    await api.people(8, company_id=2)
    await api.team(3, 1, 2)
    page = (await api.as_service("GET", "/directory/users?after=2&limit=3")).json()
    assert [user["id"] for user in page["data"]] == [3, 4, 5]
    assert page["next"] == 5
    assert (await api.as_service("GET", "/directory/users?company_id=2")).json()["data"][0]["id"] == 8
    bound = (await api.as_service("GET", "/directory/users?limit=7", company_id=1)).json()
    assert [user["id"] for user in bound["data"]] == list(range(1, 8))
    assert bound["next"] is None
    assert (await api.as_service("GET", "/directory/users?company_id=2", company_id=1)).status_code == 422
    teams = (await api.as_service("GET", "/directory/teams")).json()
    assert teams == {"data": [{"id": 3, "company_id": 1, "name": "Team 3", "size": 2}], "next": None}
    wrong = await api.as_service("GET", "/directory/users?after=x&limit=0&company_id=0")
    assert [field_error["field"] for field_error in wrong.json()["errors"]] == ["after", "company_id", "limit"]


async def test_team_members_are_added_and_removed_individually(api: Api) -> None:
    await api.people(1, 2)
    await api.people(3, company_id=2)
    await api.team(7, 1)
    for _ in range(2):
        assert (await api.as_service("PUT", "/directory/teams/7/users/2")).status_code == 204
    assert (await api.as_service("GET", "/directory/teams/7")).json()["users"] == [1, 2]
    foreign = await api.as_service("PUT", "/directory/teams/7/users/3")
    assert [field_error["code"] for field_error in foreign.json()["errors"]] == ["validation.unknown"]
    for _ in range(2):
        assert (await api.as_service("DELETE", "/directory/teams/7/users/1")).status_code == 204
    assert (await api.as_service("GET", "/directory/teams/7")).json()["users"] == [2]
    assert (await api.as_service("PUT", "/directory/teams/8/users/1")).status_code == 404
    assert (await api.as_service("DELETE", "/directory/teams/7")).status_code == 204
    assert (await api.as_service("DELETE", "/directory/teams/7")).status_code == 404
