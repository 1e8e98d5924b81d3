"""Partitions: new installations have them, retention makes those of months ahead and drops those of old months."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from structlog.testing import capture_logs

from tests.support.database import make_database, waiting_at
from tests.support.events import custom, id_made, in_future, message_event, post, state
from tests.support.imports import import_lines, notification
from tests.support.partitions import new_database, whole_database
from tests.support.servers import OwnServer, own_server
from tests.support.service import Api, serving
from tests.support.waiting import reaches, until
from tocsin import invariants, retention
from tocsin.catalogue import Catalogue
from tocsin.db import migrate
from tocsin.db.connections import connect
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.ids import new_id
from tocsin.postgres.supervisor import Embedded
from tocsin.store import pool

BY_MONTH = ("events", "contents", "recipients", "subjects")
BY_USER = ("inbox", "changes")
OLD = "2020_01"
LOW, HIGH = "016f5e66-e800-0000-0000-000000000000", "016ffe0c-0c00-0000-0000-000000000000"
PARTITIONS = """
select p.relname as parent, c.relname as name
from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_class p on p.oid = i.inhparent
where p.relkind = 'p' order by 1, 2
"""
DEPENDENTS = ("contents", "recipients", "subjects", "cancellations", "deliveries", "event_keys")


def old_id() -> str:
    """Return an id of version 7 of January 2020."""
    return id_made(datetime(2020, 1, 15, tzinfo=UTC))


def months() -> list[str]:
    """Return the names of this month and of the next one."""
    first = datetime.now(UTC).replace(day=1)
    return [f"{month:%Y_%m}" for month in (first, first + timedelta(days=31))]


async def partitions(database: Database) -> dict[str, list[str]]:
    """Return the names of all partitions by table."""
    found: dict[str, list[str]] = {}
    for parent, name in await database.rows(PARTITIONS):
        found.setdefault(parent, []).append(name.removeprefix(f"{parent}_"))
    return found


@pytest.fixture
async def aged(server: Embedded, catalogue: Catalogue) -> AsyncIterator[Api]:
    """A service whose tables have partitions of January 2020, and of this month and the next, if one has just begun."""
    connection = await connect(server.url)
    await connection.execute("drop database if exists months with (force)")
    await connection.close()
    url = await make_database(server, "months")
    connection = await connect(url)
    for table in BY_MONTH:
        await connection.execute(f"drop table {table}_past")
        await connection.execute(
            f"create table {table}_past partition of {table} for values from (minvalue) to ('{LOW}')"
        )
        await connection.execute(
            f"create table {table}_{OLD} partition of {table} for values from ('{LOW}') to ('{HIGH}')"
        )
    await connection.close()
    async with serving(url, catalogue) as api:
        await retention.run_once(api.app_state.database, None)
        await api.people(1, 2, 3)
        yield api


async def old_events(api: Api) -> list[str]:
    """Post events of January 2020: to one, to many about a subject, with a key, cancelled, and with a push."""
    await api.as_user(1, "POST", f"/notifications/devices/{'ab' * 32}")
    ids = [old_id() for _ in range(4)]
    await api.post({**custom(1, body="geheim"), "id": ids[0]})
    await api.post({**custom(1, 2, 3, body="geheim"), "id": ids[1], "about": ["order:7"]})
    await api.post({**custom(2, body="geheim"), "id": ids[2], "key": "k"})
    await post(api, {**message_event("geheim", 3, deliver_at=in_future()), "id": ids[3]})
    await reaches(lambda: api.app_state.database.value("select count(*) from jobs"), 1)
    await api.as_service("DELETE", f"/events/{ids[3]}")
    await api.app_state.database.value("update events set accepted_at = '2020-01-15'")
    await api.app_state.database.value("update recipients set delivered_at = '2020-01-15'")
    return ids


async def rows_of(api: Api, ids: list[str]) -> dict[str, int]:
    """Return the number of rows that belong to these events in each table, without zeros."""
    database = api.app_state.database
    found = {"events": await database.value("select count(*) from events where id = any($1::text[]::uuid[])", ids)}
    for table in (*DEPENDENTS, "inbox"):
        found[table] = await database.value(
            f"select count(*) from {table} where event_id = any($1::text[]::uuid[])", ids
        )
    return {table: n for table, n in found.items() if n}


async def violations(api: Api) -> list[str]:
    async with api.app_state.database.connection() as connection:
        return [str(found) async for found in invariants.check_rows(connection) if found]


async def test_new_installation_has_partitions_for_this_month_and_the_next(server: Embedded) -> None:
    async with pool(await new_database(server, "installed"), 1) as database:
        found = await partitions(database)
    assert found == {
        **{table: sorted([*months(), "past", "random", "rest"]) for table in BY_MONTH},
        **{table: [str(n) for n in range(4)] for table in BY_USER},
    }


async def test_event_is_stored_in_the_partition_of_its_id(api: Api) -> None:
    await api.people(1)
    ids = [str(new_id()), old_id(), str(UUID(int=uuid4().int | 1 << 127)), f"0fffffff{str(uuid4())[8:]}"]
    ids[3] = f"01ffffff{ids[3][8:]}"
    for id_ in ids:
        await api.post({**custom(1), "id": id_, "about": ["order:1"]})
    assert await api.ids(1) == ids[::-1]
    for table in BY_MONTH:
        key = "id" if table == "events" else "event_id"
        rows = await api.app_state.database.rows(
            f"select tableoid::regclass::text as name, {key}::text as id from {table}"
        )
        there = {row["id"]: row["name"].removeprefix(f"{table}_") for row in rows}
        assert [there[id_] for id_ in ids] == [months()[0], "past", "random", "rest"]


async def test_event_posted_by_function_gets_an_id_of_this_month(api: Api) -> None:
    made = [await api.app_state.database.value("select new_event_id()") for _ in range(3)]
    assert {(id_.version, id_.variant) for id_ in made} == {(7, "specified in RFC 4122")}
    assert all(abs((id_.int >> 80) / 1000 - datetime.now(UTC).timestamp()) < 60 for id_ in made)


async def test_retention_makes_missing_months_and_moves_their_rows(aged: Api) -> None:
    database = aged.app_state.database
    for table in BY_MONTH:
        await database.value(f"drop table {table}_{months()[0]}")
        await database.value(f"drop table {table}_{months()[1]}")
    id_ = await aged.post({**custom(1), "about": ["order:1"]})
    assert await database.value("select count(*) from events_rest") == 1
    assert await retention.run_once(database, None) == {"partitions": 8}
    assert months()[1] in (await partitions(database))["subjects"]
    for table in BY_MONTH:
        assert await database.value(f"select count(*) from {table}_{months()[0]}") == 1
        assert await database.value(f"select count(*) from {table}_rest") == 0
    assert await aged.ids(1) == [id_]
    assert await violations(aged) == []
    assert await retention.run_once(database, None) == {}


async def test_month_is_not_made_out_of_a_large_rest(aged: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MAX_REST_BYTES", 0)
    database = aged.app_state.database
    await database.value(f"drop table events_{months()[0]}")
    id_ = await aged.post(custom(1))
    assert await retention.run_once(database, None) == {}
    assert await aged.ids(1) == [id_]


async def test_making_a_month_gives_way_to_work_and_is_repeated(aged: Api) -> None:
    database = aged.app_state.database
    await database.value(f"drop table events_{months()[1]}")
    async with database.transaction() as other:
        await other.fetch("select from events_rest")
        with capture_logs() as logs:
            assert await retention.run_once(database, None) == {}
        assert not [line for line in logs if line["event"] == "work failed; it will be retried"]
    assert await retention.run_once(database, None) == {"partitions": 1}


@contextlib.asynccontextmanager
async def month_in_the_making(api: Api, table: str) -> AsyncIterator[None]:
    """Make the missing partition of this month after the block, when a statement waits for it."""
    await api.app_state.database.value(f"drop table {table}_{months()[0]}")
    async with api.app_state.database.transaction() as other:
        assert await other.fetchval("select make_partition(1000000000)") == f"{table}_{months()[0]}"
        yield
        await until(lambda: waiting_at(other, f"{table}_rest"))


@pytest.mark.parametrize("table", BY_MONTH)
async def test_event_that_waits_for_its_partition_is_accepted(aged: Api, table: str) -> None:
    async with month_in_the_making(aged, table):
        posting = asyncio.create_task(aged.post({**custom(1), "about": ["order:1"]}))
    id_ = await posting
    assert await aged.ids(1) == [id_]
    assert await aged.app_state.database.value(f"select count(*) from {table}_{months()[0]}") == 1


@pytest.mark.parametrize("table", ["events", "contents", "subjects"])
async def test_import_that_waits_for_a_partition_is_applied(aged: Api, table: str) -> None:
    line = notification(1, id=str(new_id()))
    async with month_in_the_making(aged, table):
        importing = asyncio.create_task(import_lines(aged, line))
    await importing
    assert await aged.ids(1) == [line["notification"]["id"]]


@pytest.mark.parametrize(("name", "others"), [("page", "9, 15, false"), ("changes_of_one", "0, 500, 1000")])
async def test_statement_for_one_inbox_opens_one_of_its_partitions(aged: Api, name: str, others: str) -> None:
    opened = set()
    async with aged.app_state.database.connection() as connection:
        await connection.execute(f"prepare looked as {queries('inbox')[name]}")
        for user_id in range(1, 41):
            rows = await connection.fetch(f"explain execute looked ({user_id}, {others})")
            opened.add(frozenset(re.findall(r" on (inbox_\d)", "\n".join(row[0] for row in rows))))
        assert await connection.fetchval("select generic_plans from pg_prepared_statements where name = 'looked'") > 30
        await connection.execute("deallocate looked")
    assert opened == {frozenset({f"inbox_{n}"}) for n in range(4)}


async def test_retention_drops_an_old_month_with_all_that_belongs_to_it(
    aged: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_SIZE", 2)
    ids = await old_events(aged)
    kept = await aged.post(custom(1, 2))
    found = await retention.run_once(aged.app_state.database, 30)
    assert found == {"months": 1}
    assert OLD not in (await partitions(aged.app_state.database))["events"]
    assert await rows_of(aged, ids) == {}
    assert await aged.ids(1) == await aged.ids(2) == [kept]
    assert await aged.ids(3) == []
    for id_ in ids:
        assert (await aged.as_service("GET", f"/events/{id_}")).status_code == 404
    assert await violations(aged) == []


async def test_month_stays_as_long_as_an_event_of_it_waits(aged: Api) -> None:
    ids = await old_events(aged)
    held = old_id()
    await post(aged, {**message_event("later", 1, deliver_at=in_future()), "id": held})
    await aged.app_state.database.value("update events set accepted_at = '2020-01-15'")
    await retention.run_once(aged.app_state.database, 30)
    assert OLD in (await partitions(aged.app_state.database))["events"]
    assert await rows_of(aged, ids) == {}
    assert (await state(aged, held))["state"] == "held"
    await aged.as_service("DELETE", f"/events/{held}")
    assert (await retention.run_once(aged.app_state.database, 30))["months"] == 1
    assert await rows_of(aged, [held]) == {}


@pytest.mark.parametrize("what", ["events", "recipients"])
async def test_month_stays_as_long_as_its_events_are_young(aged: Api, what: str) -> None:
    ids = await old_events(aged)
    young = old_id()
    await aged.post({**custom(1), "id": young})
    if what == "recipients":
        await aged.app_state.database.value("update events set accepted_at = '2020-01-15'")
    await retention.run_once(aged.app_state.database, 30)
    assert OLD in (await partitions(aged.app_state.database))["events"]
    assert await rows_of(aged, ids) == {}
    assert await aged.ids(1) == [young]
    assert await violations(aged) == []


async def test_event_that_comes_during_the_deletion_of_its_month_stays(
    aged: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, late = await old_events(aged), old_id()
    empty_month = retention._empty_month  # noqa: SLF001 - events are posted when it ends

    async def and_post(*given: Any) -> None:
        await empty_month(*given)
        await post(aged, {**custom(1), "id": late})
        assert await violations(aged) == []

    monkeypatch.setattr(retention, "_empty_month", and_post)
    await retention.run_once(aged.app_state.database, 30)
    monkeypatch.undo()
    await retention.run_once(aged.app_state.database, 30)
    assert await rows_of(aged, ids) == {}
    assert await aged.ids(1) == [late]
    assert await violations(aged) == []


async def test_drop_gives_way_to_work_and_is_repeated(aged: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "DROP_INTERVAL", 0)
    ids, database = await old_events(aged), aged.app_state.database
    async with database.transaction() as other:
        await other.fetch("select from events")
        await retention.run_once(database, 30)
        assert set(await rows_of(aged, ids)) == {"events", "contents", "subjects"}
        assert await violations(aged) == []
        kept = await aged.post(custom(1))
    assert await retention.run_once(database, 30) == {"months": 1}
    assert await rows_of(aged, ids) == {}
    assert await aged.ids(1) == [kept]


async def test_installation_with_events_keeps_its_tables(server: Embedded, catalogue: Catalogue) -> None:
    url = await whole_database(server, "whole")
    async with serving(url, catalogue) as api:
        database = api.app_state.database
        assert await partitions(database) == {}
        await database.value("update events set accepted_at = now() - interval '40 days'")
        await api.people(1, 2)
        old, kept = await api.post(custom(1, 2)), await api.post(custom(1))
        by_id = await api.post({**custom(1, 2), "id": old_id(), "key": "k"})
        await database.value("update events set accepted_at = '2020-01-15' where id = $1", by_id)
        await database.value(
            "update recipients set delivered_at = '2020-01-15' where event_id = any($1::text[]::uuid[])", [old, by_id]
        )
        assert await retention.run_once(database, 30) == {"notifications": 2, "events": 1}
        assert await api.ids(1) == [kept]
        assert await violations(api) == []


@pytest.fixture(scope="module")
async def own() -> AsyncIterator[OwnServer]:
    async with own_server() as server:
        for role in ("owner", "app", "poster"):
            await server.role(role)
        yield server


async def test_role_without_ownership_makes_and_drops_months(own: OwnServer) -> None:
    name = await own.fresh("of_another", owner="owner")
    await migrate.migrate(own.url("owner", name), accept_undurable=True)
    rights = "select, insert, update, delete on all tables in schema tocsin to app"
    await own.run("grant usage on schema tocsin to app, poster", f"grant {rights}", database=name)
    await own.run(
        f"drop table tocsin.events_{months()[1]}",
        *(
            f"drop table tocsin.{table}_past;"
            f" create table tocsin.{table}_past partition of tocsin.{table} for values from (minvalue) to ('{LOW}');"
            f" create table tocsin.{table}_{OLD} partition of tocsin.{table} for values from ('{LOW}') to ('{HIGH}')"
            for table in BY_MONTH
        ),
        database=name,
    )
    database = Database(own.url("app", name), 2)
    await database.open()
    assert await retention.run_once(database, 30) == {"partitions": 1, "months": 1}
    assert await database.rows(f"select from events_{months()[1]}") == []  # so that a dump by that role is complete
    await database.close()
    poster = await asyncpg.connect(own.url("poster", name))
    for call in ("make_partition(0)", f"drop_month('{OLD}', 1)"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="may not delete events"):
            await poster.execute(f"select tocsin.{call}")
    await poster.close()


async def test_grants_on_an_empty_installation_are_kept(own: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await own.fresh("granted", owner="owner")
    steps = migrate.steps()
    monkeypatch.setattr(migrate, "steps", lambda: [step for step in steps if step.name != "partitions"])
    await migrate.migrate(own.url("owner", name), accept_undurable=True)
    rights = "select, insert, update, delete on all tables in schema tocsin to app"
    await own.run("grant usage on schema tocsin to app", f"grant {rights}", database=name)
    monkeypatch.undo()
    await migrate.migrate(own.url("owner", name), accept_undurable=True)
    app = await asyncpg.connect(own.url("app", name))
    for table in ("inbox", "inbox_3", "events", "events_rest", f"events_{months()[0]}"):
        assert await app.fetch(f"select from tocsin.{table}") == []
    await app.close()
