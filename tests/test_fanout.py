"""Fanout: posted events reach the inboxes of their recipients."""

import asyncio
import json
from functools import partial
from uuid import UUID

import pytest

from tests.support.built_in import CATALOGUE
from tests.support.database import blocked
from tests.support.events import CASE, accepted, custom, note, post
from tests.support.service import Api, serving
from tests.support.waiting import reaches, until
from tests.support.workers import impatient, work
from tocsin import fanout, inbox, jobs
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection, connect
from tocsin.db.pool import Borrowed
from tocsin.db.statements import queries
from tocsin.ids import MAX_ID, new_id

KEYS = ["id", "type", "data", "message", "message_formatted", "read", "read_at", "created_at"]
SAMPLES = sorted(CATALOGUE.samples)


@pytest.mark.parametrize("name", SAMPLES)
async def test_fanout_delivers_each_kind_as_documented(api: Api, catalogue: Catalogue, name: str) -> None:
    sample = catalogue.samples[name]
    await api.people(2)
    id_ = await api.post({**sample["event"], "notify": {"users": [2]}})
    answer = await api.as_user(2, "GET", "/notifications")
    [entry] = answer.json()["data"]
    assert list(entry) == KEYS
    assert entry["id"] == id_
    assert {key: entry[key] for key in sample["notification"]} == sample["notification"]
    assert json.dumps(entry["data"]) == json.dumps(sample["notification"]["data"])
    assert (entry["read"], entry["read_at"]) == (False, None)
    assert (await api.as_user(2, "GET", f"/notifications/{id_}")).json() == entry


async def test_accepted_event_id_is_shown_in_every_inbox(api: Api) -> None:
    await api.people(1, 2)
    answer = await api.as_service("POST", "/events", json=note(1, 2))
    assert answer.json() == {"queued": True, "id": answer.json()["id"]}
    await api.as_service("GET", f"/events/{answer.json()['id']}?wait=30")
    assert await api.ids(1) == await api.ids(2) == [answer.json()["id"]]


async def test_fanout_notifies_member_of_two_teams_once(api: Api) -> None:
    await api.people(1, 2, 3, 4)
    await api.team(7, 1, 2)
    await api.team(8, 2, 3)
    id_ = await api.post(custom(1, 1, teams=(7, 8, 7)))
    assert [await api.ids(user) for user in (1, 2, 3, 4)] == [[id_], [id_], [id_], []]
    state = (await api.as_service("GET", f"/events/{id_}")).json()
    assert set(state.pop("pushes").values()) == {0}
    assert state == {"id": id_, "type": "custom", "state": "delivered", "recipients": 3, "read": 0, "dropped": 0}


async def test_fanout_skips_the_actor_in_teams_unless_named(api: Api) -> None:
    await api.people(2, 4)
    await api.team(7, 2, 4)
    to_team = await api.post(note(teams=(7,)))
    named = await api.post(note(4, teams=(7,)))
    assert await api.ids(4) == [named]
    assert await api.ids(2) == [named, to_team]


async def test_fanout_resolves_teams_at_delivery(url: str, catalogue: Catalogue) -> None:
    async with serving(url, catalogue, with_worker=False) as api:
        await api.people(1, 2)
        await api.team(7, 1)
        answer = await api.as_service("POST", "/events", json=custom(teams=(7,)))
        state = await api.as_service("GET", f"/events/{answer.json()['id']}")
        assert state.json()["state"] == "queued"
        await api.team(7, 2)
    async with serving(url, catalogue) as api:
        await api.as_service("GET", f"/events/{answer.json()['id']}?wait=30")
        assert (await api.ids(1), await api.ids(2)) == ([], [answer.json()["id"]])


async def test_event_of_a_company_reaches_no_user_or_team_that_moved_to_another(idle: Api) -> None:
    await idle.people(1, 2, 3, 4, 5)
    for team, user in ((7, 3), (8, 4), (9, 5)):
        await idle.team(team, user)
    answer = await post(idle, custom(1, 2, teams=(7, 8)), company_id=1)
    other = await accepted(idle, 1, teams=[8])  # of a service that is bound to no company
    await idle.people(1, company_id=2)
    await idle.app_state.database.value("update teams set company_id = 2 where id = 8")
    await work(idle)
    id_ = answer.json()["id"]
    assert [await idle.ids(user) for user in range(1, 6)] == [[str(other)], [id_], [id_], [str(other)], []]
    counts = "select reached, dropped from recipients order by event_id = $1"
    assert [tuple(row) for row in await idle.app_state.database.rows(counts, other)] == [(2, 1), (2, 0)]


async def test_who_moved_to_another_company_gets_no_event_of_the_old_one_later(idle: Api, dba: Connection) -> None:
    await idle.people(1, 2)
    id_ = (await post(idle, custom(1, 2), company_id=1)).json()["id"]
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.execute("select from heads where user_id = 1 for update")
        delivering = group.create_task(work(idle))  # it knows both users, and waits for the inbox of the first
        await until(lambda: blocked(dba))
        moving = group.create_task(idle.people(2, company_id=2))
        company = "select company_id from users where id = 2"
        await reaches(lambda: idle.app_state.database.value(company), 2)
        await asyncio.sleep(0.2)
        assert not moving.done()
    assert delivering.done()
    assert await idle.ids(1) == [id_]


async def test_fanout_skips_inactive_users(api: Api) -> None:
    await api.people(1)
    await api.people(2, active=False)
    id_ = await api.post(custom(1, 2))
    await api.people(2)
    assert await api.ids(2) == []
    assert (await api.as_service("GET", f"/events/{id_}")).json()["recipients"] == 1


async def test_user_given_by_id_is_filled_from_the_directory(api: Api) -> None:
    await api.people(2, 4)
    event = note(2)
    event["data"] = {**event["data"], "user": 4}
    await api.post(event)
    [entry] = (await api.inbox(2))["data"]
    assert entry["data"]["user"] == {"id": 4, "first_name": "First4", "last_name": "Last4", "profile_picture": None}
    assert entry["message"].startswith("First4 Last4 mentioned you")


async def test_custom_notification_shows_its_sender(api: Api) -> None:
    await api.people(1, 2, 3)
    await api.team(7, 1, 2)
    answer = await api.as_user(
        1, "POST", "/notifications", json={"message": "  a <b> & \n c ", "notify": {"users": [3], "teams": [7]}}
    )
    assert (answer.status_code, answer.json()) == (202, {"queued": True})
    for user in (2, 3):
        await until(partial(api.ids, user))
    [entry] = (await api.inbox(3))["data"]
    assert entry["type"] == "custom"
    assert entry["data"] == {"user": {"id": 1, "first_name": "First1", "last_name": "Last1", "profile_picture": None}}
    assert entry["message"] == "a <b> & \n c"
    assert entry["message_formatted"] == "<p>a &lt;b&gt; &amp; <br> c</p>"
    assert await api.ids(1) == []


async def test_event_subjects_are_recorded(api: Api) -> None:
    await api.people(2)
    id_ = await api.post(note(2))
    found = await api.app_state.database.rows("select subject from subjects where event_id = $1", id_)
    assert [row["subject"] for row in found] == [f"case:{CASE}"]


async def test_fanout_of_large_team_runs_in_chunks_without_duplicates(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin.fanout.BULK_CHUNK_SIZE", 150)
    await api.app_state.database.value(
        """with u as (
               insert into users select n, 1, 'F', 'L', null, null, 'UTC' from generate_series(1, 1000) n
               returning id
           ), h as (insert into heads (user_id, locale, active) select id, 'en', true from u)
           insert into teams values (1, 1, 'odd'), (2, 1, 'third')"""
    )
    await api.app_state.database.value(
        "insert into members select 1, n from generate_series(1, 999, 2) n"
        " union all select 2, n from generate_series(3, 999, 3) n"
    )
    id_ = await api.post(custom(2, 1000, 999, teams=(1, 2)))
    got = await api.app_state.database.rows("select user_id, position from inbox where event_id = $1", id_)
    expected = set(range(1, 1000, 2)) | set(range(3, 1000, 3)) | {2, 1000}
    assert sorted(row["user_id"] for row in got) == sorted(expected)
    assert {row["position"] for row in got} == {1}
    chunks = await api.app_state.database.rows(
        "select cardinality(user_ids) as n, user_ids, team_ids from recipients where event_id = $1 order by after_user",
        id_,
    )
    assert [row["n"] for row in chunks] == [150] * 4 + [len(expected) - 600]
    through = {user: team for row in chunks for user, team in zip(row["user_ids"], row["team_ids"], strict=True)}
    assert (through[2], through[999], through[1], through[6], through[3]) == (0, 0, 1, 2, 1)
    assert (await api.as_service("GET", f"/events/{id_}")).json()["recipients"] == len(expected)


async def test_events_of_a_batch_keep_their_order_for_one_user(url: str, catalogue: Catalogue) -> None:
    async with serving(url, catalogue, with_worker=False) as api:
        await api.people(1, 2)
        posted = [
            (await api.as_service("POST", "/events", json=custom(1, 2, body=str(n)))).json()["id"] for n in range(50)
        ]
    async with serving(url, catalogue) as api:
        await api.as_service("GET", f"/events/{posted[-1]}?wait=30")
        assert await api.ids(1) == await api.ids(2) == posted[::-1]


async def test_event_that_cannot_be_rendered_becomes_a_dead_letter(api: Api) -> None:
    await api.people(1)
    id_ = await api.app_state.database.value(
        """with e as (
               insert into events (id, kind, data, params, users, teams, subjects, service)
               values (gen_random_uuid(), 'of_an_older_catalogue', '{}', '{}', '{1}', '{}', '{}', 'crm') returning id
           ) insert into jobs (id, task, lane) select id, 'deliver', 'direct' from e returning id"""
    )
    good = await api.post(custom(1))
    assert await api.ids(1) == [good]
    state = (await api.as_service("GET", f"/events/{id_}?wait=30")).json()
    assert state["state"] == "failed"
    assert "of_an_older_catalogue" in state["reason"]


async def test_event_of_another_service_is_404(api: Api) -> None:
    await api.people(1)
    id_ = await api.post(custom(1))
    other = await api.as_service("GET", f"/events/{id_}", name="erp")
    unknown = await api.as_service("GET", "/events/00000000-0000-4000-8000-000000000000", name="erp")
    assert other.status_code == unknown.status_code == 404
    assert other.json() == unknown.json()
    operator = await api.as_service("GET", f"/events/{id_}", "operations", name="night")
    assert operator.json()["state"] == "delivered"


async def test_company_bound_service_sees_only_events_of_its_company(api: Api) -> None:
    await api.people(1)
    bound = await api.post(custom(1), company_id=1)
    unbound = await api.post(custom(1))
    seen = {
        (id_, company, scope): (await api.as_service("GET", f"/events/{id_}", scope, company_id=company)).status_code
        for id_ in (bound, unbound)
        for company in (None, 1, 2)
        for scope in ("events:write", "operations")
    }
    assert {key for key, status in seen.items() if status == 200} == {
        (id_, company, scope)
        for id_, company in ((bound, None), (bound, 1), (unbound, None))
        for scope in ("events:write", "operations")
    }
    assert set(seen.values()) == {200, 404}


async def test_fanout_locks_inboxes_in_user_id_order(
    idle: Api, url: str, catalogue: Catalogue, dba: Connection
) -> None:
    users = list(range(1, 31))
    await idle.people(*users)
    blocker = await connect(url)
    async with blocker.transaction():
        await blocker.execute("select from heads where user_id = 15 for update")
        async with impatient(url, catalogue, 60.0):
            await accepted(idle, *reversed(users))
            await until(lambda: _waits(blocker))
            free = await dba.fetch("select user_id from heads order by user_id for update skip locked")
            assert [row["user_id"] for row in free] == list(range(16, 31))
            await blocker.execute("rollback; begin")
    await blocker.close()


async def _waits(connection: Connection) -> bool:
    return bool(await connection.fetchval("select exists (select from pg_locks where not granted)"))


async def test_fanout_locks_its_jobs_in_the_order_of_ids(idle: Api, dba: Connection) -> None:
    await idle.people(1)
    late, alone, first = (UUID(int=number) for number in (1, 2, 3))
    batch = {"events": [{**custom(1), "id": str(id_)} for id_ in (first, late)]}
    assert (await idle.as_service("POST", "/events/batch", json=batch)).status_code == 202
    await post(idle, {**custom(1), "id": str(alone)})
    worker = new_id()
    leased = await dba.fetch(
        "update jobs set worker_id = $1 where id <> $2"
        " returning id, task, lane as queue, due_at, wanted_at, attempts, progress, batch",
        worker,
        first,
    )
    delivering = fanout.deliver(
        idle.app_state.database, idle.app_state.catalogue, worker, [jobs.Job(**row) for row in leased]
    )
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.execute("select from jobs where id = $1 for update", late)  # it waits for the first of its batch
        running = group.create_task(delivering)
        await until(lambda: blocked(dba))
        await dba.execute("select from jobs where id = $1 for update nowait", alone)
    assert running.done()
    assert await idle.ids(1) == [str(alone)]


async def test_fanout_statements_use_generic_plans(idle: Api) -> None:
    """Planning costs PostgreSQL more than the delivery of one event does."""
    await idle.people(1, 2)
    app_state, worker = idle.app_state, new_id()
    async with app_state.database.connection() as connection:
        database = Borrowed(connection)
        for count in (*[1] * 6, 20, 1, 1):
            for _ in range(count):
                await idle.as_service("POST", "/events", json=custom(1, 2))
            leased = await jobs.claim(database, worker, "direct", 200)
            assert len((await fanout.deliver(database, app_state.catalogue, worker, leased)).events) == count
        statements = [queries("fanout")["outline"], queries("inbox")["enter"], queries("fanout")["insert_contents"]]
        plans = "select generic_plans, custom_plans from pg_prepared_statements where statement = any($1)"
        assert [tuple(row) for row in await connection.fetch(plans, statements)] == [(4, 5)] * 3


async def test_statement_of_a_large_chunk_uses_a_generic_plan(idle: Api) -> None:
    await idle.people(1, 2)
    async with idle.app_state.database.connection() as connection:
        for _ in range(9):
            event = await accepted(idle, 1, 2)
            await inbox.enter(connection, [(event, 0, MAX_ID)], ["en"], [], is_bulk=True)
        plans = "select generic_plans, custom_plans from pg_prepared_statements where statement = $1"
        assert [tuple(row) for row in await connection.fetch(plans, queries("inbox")["enter_many"])] == [(4, 5)]
