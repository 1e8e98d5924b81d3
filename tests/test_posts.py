"""Events that an application posts in its own transaction by `tocsin.post`: all that are committed, and no others."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.support.commands import refusal, run
from tests.support.database import blocked, drop_function, everything, url_for
from tests.support.events import LATER, custom, in_future, state
from tests.support.service import SECRET, Api, serving
from tests.support.waiting import reaches, until
from tocsin import posters, retention
from tocsin.catalogue import Catalogue
from tocsin.db.connections import connect
from tocsin.errors import Refusal
from tocsin.postgres.supervisor import Embedded

ROLE = "crm_application"
POST = "select tocsin.post($1::jsonb)"


@pytest.fixture
async def role(server: Embedded) -> AsyncIterator[str]:
    """A role without rights."""
    connection = await connect(server.url)
    await connection.execute(f"create role {ROLE}")
    yield ROLE
    await connection.execute(f"drop role {ROLE}")
    await connection.close()


@pytest.fixture
async def crm(role: str, api: Api, server: Embedded) -> AsyncIterator[asyncpg.Connection]:
    """A session of the application, which may post for company 1."""
    database = api.app_state.database
    await posters.permit(database, role, "crm", 1)
    session = await session_of(url_for(server, "busy"), role)
    yield session
    await session.close()
    await posters.withdraw(database, role)


async def session_of(url: str, role: str) -> asyncpg.Connection:
    """Return a session of a role, as if it had logged in: the test server lets no other user log in."""
    session = await asyncpg.connect(url)
    await session.execute(f"set session authorization {role}")
    return session


async def said(session: asyncpg.Connection, event: Any) -> str:
    """Return why an event cannot be posted."""
    with pytest.raises(asyncpg.PostgresError) as refused:
        await session.fetchval(POST, event if isinstance(event, str) else json.dumps(event))
    return str(refused.value)


async def letters(api: Api, **more: Any) -> list[dict[str, Any]]:
    answer = await api.as_service("GET", "/operations/dead-letters", "operations", **more)
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


async def waiting(api: Api) -> int:
    count: int = await api.app_state.database.value("select count(*) from posted")
    return count


async def test_event_exists_once_the_transaction_is_committed(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1, 2)
    await api.team(7, 2)
    async with crm.transaction():
        id_ = await crm.fetchval(POST, json.dumps({**custom(1, teams=(7,)), "about": ["order:42"]}))
        assert await waiting(api) == 0
    await reaches(lambda: api.ids(1), [str(id_)])
    await reaches(lambda: api.ids(2), [str(id_)])
    assert (await state(api, id_))["state"] == "delivered"
    assert await waiting(api) == 0


async def test_rolled_back_transaction_leaves_nothing(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1)
    transaction = crm.transaction()
    await transaction.start()
    lost = await crm.fetchval(POST, json.dumps(custom(1)))
    await transaction.rollback()
    kept = await crm.fetchval(POST, json.dumps(custom(1)))
    await reaches(lambda: api.ids(1), [str(kept)])
    assert (await api.as_service("GET", f"/events/{lost}")).status_code == 404
    assert await api.app_state.database.value("select count(*) from jobs") == 0


async def test_rolled_back_savepoint_leaves_the_rest(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1)
    async with crm.transaction():
        kept = await crm.fetchval(POST, json.dumps(custom(1)))
        inner = crm.transaction()
        await inner.start()
        await crm.fetchval(POST, json.dumps(custom(1)))
        await inner.rollback()
    await reaches(lambda: api.ids(1), [str(kept)])


@pytest.mark.parametrize(
    ("event", "why"),
    [
        ([1], "must be a JSON object"),
        ({**custom(1), "type": "nonsense"}, "not a type of notification"),
        ({**custom(1), "type": None}, "not a type of notification"),
        ({"type": "custom"}, "notify field must be an object"),
        ({**custom(1), "notify": {}}, "is required"),
        ({**custom(1), "notify": {"users": []}}, "is required"),
        ({**custom(1), "notify": {"users": 1}}, "notify.users field must be an array of ids"),
        ({**custom(1), "notify": {"users": [0]}}, "notify.users field must be an array of ids"),
        ({**custom(1), "notify": {"users": [2**31]}}, "notify.users field must be an array of ids"),
        ({**custom(1), "notify": {"users": [1.5]}}, "notify.users field must be an array of ids"),
        ({**custom(1), "notify": {"users": ["1"]}}, "notify.users field must be an array of ids"),
        ({**custom(1), "notify": {"users": [1], "except": [None]}}, "notify.except field must be an array of ids"),
        ({**custom(1), "notify": {"users": [1] * 10_001}}, "at most 10000 ids"),
        ({**custom(1), "notify": {"users": [1, 404]}}, "notify.users field has unknown ids: 404"),
        ({**custom(1), "notify": {"teams": [404]}}, "notify.teams field has unknown ids: 404"),
        ({**custom(1), "id": "no"}, "id field must be a UUID"),
        ({**custom(1), "params": {"body": "x" * 2**20}}, "at most 1048576 bytes"),
        ("null", "must be a JSON object"),
    ],
)
async def test_what_the_database_knows_is_refused_in_the_transaction(
    api: Api, crm: asyncpg.Connection, event: Any, why: str
) -> None:
    await api.people(1)
    assert api.worker
    assert api.worker.posts
    await api.worker.posts.permit()
    assert why in await said(crm, event)
    assert await waiting(api) == 0


async def test_user_of_another_company_is_unknown_to_a_role_of_one(
    api: Api, crm: asyncpg.Connection, role: str
) -> None:
    await api.people(1)
    await api.people(2, company_id=2)
    assert "unknown ids: 2" in await said(crm, custom(1, 2))
    await posters.permit(api.app_state.database, role, "crm", None)
    id_ = str(await crm.fetchval(POST, json.dumps(custom(1, 2))))
    await reaches(lambda: api.ids(1), [id_])
    await reaches(lambda: api.ids(2), [id_])


async def test_invalid_event_becomes_a_dead_letter_with_its_errors(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1)
    event = {**custom(1), "key": "task:17", "data": {"colour": "red"}, "params": {}}
    id_ = await crm.fetchval(POST, json.dumps(event))
    await reaches(lambda: crm.fetchval("select state from tocsin.own_posts where key = 'task:17'"), "refused")
    row = await crm.fetchrow("select * from tocsin.own_posts where key = 'task:17'")
    answer = await api.as_service("POST", "/events", json=event, company_id=1)
    assert row
    assert json.loads(row["errors"]) == answer.json()["errors"]
    assert row["id"] == id_
    [letter] = await letters(api)
    assert letter["event_id"] == str(id_)
    assert letter["task"] == "post"
    assert "data.colour" in letter["reason"]
    assert await letters(api, company_id=1) == [letter]
    assert await letters(api, company_id=2) == []


async def test_refused_event_can_be_replayed(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1)
    id_ = uuid4()
    event = {"type": "custom", "notify": {"users": [1]}, "data": {"user": 404}, "params": {"body": "Hello"}}
    await crm.fetchval(POST, json.dumps({**event, "id": str(id_)}))
    await reaches(lambda: crm.fetchval("select state from tocsin.own_posts"), "refused")
    await api.people(404)
    body = {"events": [str(id_)]}
    answer = await api.as_service("POST", "/operations/replay", "operations", json=body)
    assert answer.json()["jobs"] == 1, answer.text
    await reaches(lambda: api.ids(1), [str(id_)])
    assert await letters(api) == []
    assert await waiting(api) == 0


async def test_malformed_events_do_not_delay_others(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1)
    deep = custom(1) | {"params": json.loads("[" * 40 + "]" * 40)}
    huge = json.dumps(custom(1)).replace('"Hello"', "1e131000")
    async with crm.transaction():
        for event in (json.dumps(deep), huge, "[" and json.dumps(custom(1) | {"params": 10**300})):
            await crm.fetchval(POST, event)
        kept = await crm.fetchval(POST, json.dumps(custom(1)))
    await reaches(lambda: api.ids(1), [str(kept)])
    await reaches(lambda: crm.fetchval("select count(*) from tocsin.own_posts where state = 'refused'"), 3)


async def test_same_id_is_delivered_once_and_another_body_is_refused(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1)
    event = {**custom(1), "id": str(uuid4())}
    async with crm.transaction():
        for _ in range(3):
            await crm.fetchval(POST, json.dumps(event))
        await crm.fetchval(POST, json.dumps({**event, "params": {"body": "Another"}}))
    await reaches(lambda: waiting(api), 1)
    await reaches(lambda: crm.fetchval("select errors -> 0 ->> 'code' from tocsin.own_posts"), "conflict.id_reused")
    await reaches(lambda: api.ids(1), [event["id"]])
    assert (await api.as_service("POST", "/events", json=event, company_id=1)).json()["id"] == event["id"]


async def test_later_event_of_a_key_replaces_the_earlier_in_the_order_of_commits(
    api: Api, crm: asyncpg.Connection, server: Embedded, role: str
) -> None:
    await api.people(1)
    second = await session_of(url_for(server, "busy"), role)
    held = {"key": "task:17", "deliver_at": in_future(LATER)}
    transaction = crm.transaction()
    await transaction.start()
    earlier = await crm.fetchval(POST, json.dumps(custom(1) | held))
    later = asyncio.create_task(second.fetchval(POST, json.dumps(custom(1, body="Later") | held)))
    await reaches(lambda: blocked_of(api), 1)
    await transaction.commit()
    await reaches(lambda: waiting(api), 0)
    assert (await state(api, earlier))["state"] == "cancelled"
    assert (await state(api, await later))["state"] == "held"
    await second.close()


async def blocked_of(api: Api) -> int:
    connection = await connect(api.app_state.database._url)  # noqa: SLF001 - a session besides those of the service
    try:
        return await blocked(connection)
    finally:
        await connection.close()


async def test_failing_event_of_a_key_keeps_its_turn_and_delays_no_others(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1)
    held = {"key": "task:17", "deliver_at": in_future(LATER)}
    async with failing_for(api, "Broken"):
        async with crm.transaction():
            earlier = await crm.fetchval(POST, json.dumps(custom(1, body="Broken") | held))
            later = await crm.fetchval(POST, json.dumps(custom(1, body="Later") | held))
            other = await crm.fetchval(POST, json.dumps(custom(1, body="Other")))
        await reaches(lambda: api.ids(1), [str(other)])
        await until(lambda: api.app_state.database.value("select true from jobs where task = 'post' and attempts > 1"))
        assert await waiting(api) == 2
    await reaches(lambda: waiting(api), 0)
    assert (await state(api, earlier))["state"] == "cancelled"
    assert (await state(api, later))["state"] == "held"


@contextlib.asynccontextmanager
async def failing_for(api: Api, word: str) -> AsyncIterator[None]:
    """Make the database fail to store events with a word."""
    connection = await connect(api.app_state.database._url)  # noqa: SLF001 - a session besides those of the service
    await connection.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'refused by a test'; end $$;"
        " create trigger refuse before insert on events for each row"
        f" when (new.params like '%{word}%') execute function refuse()"
    )
    try:
        yield
    finally:
        await drop_function(connection, "refuse")
        await connection.close()


async def test_unexpected_failure_leaves_the_event_in_the_queue(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1)
    async with failing_for(api, "Broken"):
        id_ = await crm.fetchval(POST, json.dumps(custom(1, body="Broken")))
        await until(lambda: api.app_state.database.value("select true from jobs where task = 'post' and attempts > 1"))
        assert await crm.fetchval("select state from tocsin.own_posts") == "waiting"
        assert (await api.as_service("GET", f"/events/{id_}")).status_code == 404
    await reaches(lambda: api.ids(1), [str(id_)])


async def test_event_committed_while_no_worker_runs_is_delivered_when_one_starts(
    url: str, catalogue: Catalogue, role: str
) -> None:
    async with serving(url, catalogue, with_worker=False) as idle:
        await idle.people(1)
        await posters.permit(idle.app_state.database, role, "crm", 1)
        crm = await session_of(url, role)
        id_ = await crm.fetchval(POST, json.dumps(custom(1)))
        await crm.close()
        ready = (await idle.call("GET", "/readyz")).json()
        assert ready["queue"]["direct"]["due"] == 1
    async with serving(url, catalogue) as api:
        await reaches(lambda: api.ids(1), [str(id_)])
        await posters.withdraw(api.app_state.database, role)


async def test_user_who_is_erased_before_the_commit_is_left_out(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1, 2)
    async with crm.transaction():
        id_ = await crm.fetchval(POST, json.dumps(custom(1, 2)))
        assert (await api.as_service("DELETE", "/directory/users/2")).status_code == 204
    await reaches(lambda: api.ids(1), [str(id_)])
    assert (await state(api, id_, wait=30))["recipients"] == 1


async def test_event_for_a_user_who_is_erased_before_the_commit_keeps_no_words(
    api: Api, crm: asyncpg.Connection
) -> None:
    await api.people(1, 424_242)
    async with crm.transaction():
        for event in ({**custom(424_242, body="for your eyes only"), "key": "birthday"}, custom(424_242, 1)):
            await crm.fetchval(POST, json.dumps({**event, "about": ["order:7"]}))
        assert (await api.as_service("DELETE", "/directory/users/424242")).status_code == 204
    await reaches(lambda: api.app_state.database.value("select count(*) from jobs"), 0)
    tables = await everything(api)
    del tables["audit_entries"]
    for table, text in tables.items():
        for trace in ("for your eyes only", "424242", "birthday"):
            assert trace not in text, f"{trace} in {table}: {text}"
    assert await api.app_state.database.value("select count(*) from subjects where subject = 'order:7'") == 1
    assert len(await api.ids(1)) == 1


@pytest.mark.parametrize(
    "named",
    [
        {"notify": {"users": [1, 2]}},
        {"notify": {"users": [1], "except": [2]}},
        {"notify": {"users": [1, 2.0], "unknown": "skip"}},
        {"data": {"user": 2, "colour": "red"}},
        {"data": {"user": {"id": 2, "first_name": "Zebulon"}}},
    ],
)
async def test_erasure_of_a_user_deletes_the_refused_events_that_name_them(
    api: Api, crm: asyncpg.Connection, named: dict[str, Any]
) -> None:
    await api.people(1, 2)
    await crm.fetchval(POST, json.dumps(custom(1) | {"params": {}}))
    await crm.fetchval(POST, json.dumps(custom(1) | {"params": {}} | named))
    await reaches(lambda: crm.fetchval("select count(*) from tocsin.own_posts where state = 'refused'"), 2)
    assert (await api.as_service("DELETE", "/directory/users/2")).status_code == 204
    assert len(await letters(api)) == await waiting(api) == 1
    assert await api.app_state.database.value("select array_agg(user_id) from posted_people") == [1]


async def test_refused_event_is_deleted_with_its_dead_letter(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1)
    await crm.fetchval(POST, json.dumps(custom(1) | {"params": {}}))
    await reaches(lambda: crm.fetchval("select state from tocsin.own_posts"), "refused")
    await api.app_state.database.value("update dead_letters set died_at = now() - interval '31 days'")
    await retention.run_once(api.app_state.database, None)
    for table in ("posted", "posted_people", "dead_letters"):
        assert await api.app_state.database.value(f"select count(*) from {table}") == 0


async def test_too_many_waiting_events_are_refused(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1)
    assert api.worker
    assert api.worker.posts
    await api.worker.posts.permit()
    await crm.fetchval(POST, json.dumps(custom(1)))
    await api.app_state.database.value("update posted_limit set number = 0")
    assert "Too many posted events wait" in await said(crm, custom(1))
    await api.worker.posts.permit()
    await crm.fetchval(POST, json.dumps(custom(1)))


async def test_poster_may_do_nothing_else(api: Api, crm: asyncpg.Connection) -> None:
    for table in await api.app_state.database.rows("select tablename from pg_tables where schemaname = 'tocsin'"):
        for statement in ("select from tocsin.{}", "delete from tocsin.{}", "insert into tocsin.{} default values"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await crm.execute(statement.format(table["tablename"]))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await crm.execute("create table tocsin.own (id int)")


async def test_poster_sees_its_own_events_only(api: Api, crm: asyncpg.Connection, server: Embedded) -> None:
    await api.people(1)
    admin = await connect(server.url)
    await admin.execute("create role another_application")
    try:
        await posters.permit(api.app_state.database, "another_application", "crm", 1)
        other = await session_of(url_for(server, "busy"), "another_application")
        await other.fetchval(POST, json.dumps(custom(1) | {"params": {}}))
        await reaches(lambda: other.fetchval("select state from tocsin.own_posts"), "refused")
        assert await crm.fetch("select * from tocsin.own_posts") == []
        await other.close()
        await posters.withdraw(api.app_state.database, "another_application")
    finally:
        await admin.execute("drop role another_application")
        await admin.close()


async def test_role_without_permission_may_not_post(api: Api, crm: asyncpg.Connection, role: str) -> None:
    database = api.app_state.database
    await api.people(1)
    await posters.withdraw(database, role)
    assert "permission denied" in await said(crm, custom(1))
    with pytest.raises(Refusal, match="may not post"):
        await posters.withdraw(database, role)
    await posters.permit(database, role, "crm", 1)
    await database.value("delete from posters")
    assert "may not post events" in await said(crm, custom(1))
    await posters.permit(database, role, "crm", 1)
    with pytest.raises(Refusal, match="no role nobody"):
        await posters.permit(database, "nobody", "crm", 1)


async def test_search_path_of_the_caller_changes_nothing(api: Api, crm: asyncpg.Connection) -> None:
    await api.people(1)
    await crm.execute("create temp table posters (role text, service text, company_id int)")
    await crm.execute("create temp table jobs (id int)")
    await crm.execute("set search_path = pg_temp, public")
    id_ = await crm.fetchval(POST, json.dumps(custom(1)))
    await reaches(lambda: api.ids(1), [str(id_)])


@pytest.mark.processes
async def test_command_lets_a_role_post_and_takes_the_right_away(
    api: Api, role: str, server: Embedded, tmp_path: Path
) -> None:
    url = url_for(server, "busy")
    settings = {"TOCSIN_DATABASE_URL": url, "TOCSIN_JWT_SECRET": SECRET}
    await api.people(1)

    async def post_role(*arguments: str) -> str:
        done = await asyncio.to_thread(run, "post-role", role, *arguments, cwd=tmp_path, **settings)
        return done.stdout.strip()

    assert await post_role("--company-id", "1") == f"The role {role} may post events for company 1 as {role}."
    crm = await session_of(url, role)
    await reaches(lambda: api.ids(1), [str(await crm.fetchval(POST, json.dumps(custom(1))))])
    assert (
        await post_role("--all-companies", "--service", "crm")
        == f"The role {role} may post events for all companies as crm."
    )
    assert await post_role("--remove") == f"The role {role} may no longer post events."
    assert "permission denied" in await said(crm, custom(1))
    await crm.close()
    for wrong, why in (
        ((), "Use one of"),
        (("--company-id", "1", "--service", "7"), "cannot be the name"),
        (("--remove",), "nothing to remove"),
    ):
        assert why in await asyncio.to_thread(refusal, "post-role", role, *wrong, cwd=tmp_path, **settings)
