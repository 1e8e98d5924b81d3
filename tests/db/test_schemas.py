"""Another schema than `tocsin`: the same tables and functions beside it, and neither sees the other."""

import json
import re
from collections.abc import AsyncIterator
from functools import partial

import pytest

from tests.support.events import custom
from tests.support.partitions import new_database
from tests.support.service import serving
from tests.support.waiting import reaches
from tocsin import posters
from tocsin.catalogue import Catalogue
from tocsin.db import migrate
from tocsin.db.connections import Connection, connect
from tocsin.db.url import in_schema, read_only, schema_of
from tocsin.postgres.supervisor import Embedded
from tocsin.pubsub import PubSub

OTHER = "tocsin_b"


@pytest.fixture(scope="module")
async def both(server: Embedded) -> tuple[str, str]:
    """Two schemas of one database."""
    here = await new_database(server, "two_schemas")
    there = in_schema(here, OTHER)
    assert len(await migrate.migrate(there)) == len(migrate.steps())
    return here, there


@pytest.fixture
async def dba(both: tuple[str, str]) -> AsyncIterator[Connection]:
    connection = await connect(both[0])
    yield connection
    await connection.close()


async def rows_of(dba: Connection, schema: str, *tables: str) -> list[int]:
    return [await dba.fetchval(f"select count(*) from {schema}.{table}") for table in tables]


def test_url_names_its_schema() -> None:
    url = "postgresql://u:p@h/d"
    assert schema_of(url) == "tocsin"
    assert in_schema(url, "tocsin") == url
    assert schema_of(in_schema(url, OTHER)) == OTHER
    assert schema_of(read_only(in_schema(url + "?sslmode=require", OTHER))) == OTHER


async def test_second_schema_has_what_the_first_has(dba: Connection) -> None:
    """Every table, column, constraint, index, function, trigger and view, with nothing that refers to the first."""
    statement = """
        with own as (select * from pg_class where relnamespace = $1::text::regnamespace)
        select c.relkind::text || ' ' || c.relname as what from own c
        union all select concat_ws(' ', 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
            pg_get_expr(d.adbin, d.adrelid))
            from own c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
            left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
            where not a.attisdropped
        union all select 'index ' || pg_get_indexdef(i.indexrelid) from pg_index i
            join own c on c.oid = i.indexrelid
        union all select 'constraint ' || conrelid::regclass || ' ' || pg_get_constraintdef(oid) from pg_constraint
            where connamespace = $1::text::regnamespace
        union all select 'trigger ' || pg_get_triggerdef(t.oid) from pg_trigger t join own c on c.oid = t.tgrelid
            where not t.tgisinternal
        union all select 'function ' || pg_get_functiondef(oid) from pg_proc where pronamespace = $1::text::regnamespace
        union all select 'view ' || pg_get_viewdef(c.oid) from own c where c.relkind = 'v'
    """
    await dba.execute("set search_path = pg_catalog")
    first = sorted(row["what"] for row in await dba.fetch(statement, "tocsin"))
    second = sorted(row["what"] for row in await dba.fetch(statement, OTHER))
    named = re.compile(r"\btocsin\.(?!audit_retention|receiving)|search_path TO '?tocsin'?,|'tocsin_work'")
    assert not [what for what in second if named.search(what)]
    assert [re.sub(rf"'?\b{OTHER}\b'?", "tocsin", what) for what in second] == [
        what.replace("'tocsin', 'pg_temp'", "tocsin, 'pg_temp'") for what in first
    ]


async def test_notification_passes_through_its_own_schema_alone(
    both: tuple[str, str], catalogue: Catalogue, dba: Connection
) -> None:
    tables = ("users", "events", "inbox", "heads", "devices", "changes", "jobs", "idempotency_keys")
    before = await rows_of(dba, "tocsin", *tables)
    async with serving(both[1], catalogue) as api:
        await api.people(1, 2)
        await api.team(7, 1, 2)
        headers = {"Idempotency-Key": "only-here"}
        answer = await api.as_service("POST", "/events", json=custom(1), headers=headers)
        assert answer.status_code == 202, answer.text
        await api.post(custom(teams=(7,)))
        await reaches(partial(api.unread, 1), 2)
        [newest, _] = await api.ids(1)
        assert (await api.as_user(1, "PUT", f"/notifications/{newest}/read")).status_code < 300
        await reaches(partial(api.unread, 1), 1)
        ready = await api.call("GET", "/readyz")
        assert ready.status_code == 200, ready.text
    assert await rows_of(dba, "tocsin", *tables) == before
    assert await rows_of(dba, OTHER, "users", "inbox") == [2, 3]


async def test_messages_of_one_schema_do_not_wake_the_other(both: tuple[str, str], dba: Connection) -> None:
    heard: list[str] = []
    await dba.add_listener("tocsin_work", lambda *said: heard.append(str(said[-1])))
    await dba.add_listener(f"{OTHER}_work", lambda *said: heard.append(f"other: {said[-1]}"))
    for url in (both[1], both[0]):
        connection = await connect(url)
        pubsub = PubSub(url, _Single(url, connection))  # type: ignore[arg-type]
        pubsub.publish("direct")
        await pubsub.close()
        await connection.close()
    await reaches(lambda: heard, ["other: direct", "direct"])


class _Single:
    """A pool of one connection."""

    is_read_only = False

    def __init__(self, url: str, connection: Connection) -> None:
        self.schema, self._connection = schema_of(url), connection

    async def value(self, statement: str, *arguments: object) -> object:
        return await self._connection.fetchval(statement, *arguments)


async def test_application_posts_into_the_schema_whose_function_it_calls(
    both: tuple[str, str], catalogue: Catalogue, dba: Connection
) -> None:
    await dba.execute("create role of_schema_b login")
    try:
        async with serving(both[1], catalogue) as api:
            await api.people(11)
            await posters.permit(api.app_state.database, "of_schema_b", "shop", None)
            await dba.execute("set session authorization of_schema_b")
            try:
                await dba.fetchval(f"select {OTHER}.post($1::text::jsonb)", json.dumps(custom(11)))
            finally:
                await dba.execute("reset session authorization")
            await reaches(lambda: rows_of(dba, OTHER, "posted"), [0])
            await posters.withdraw(api.app_state.database, "of_schema_b")
        assert await rows_of(dba, "tocsin", "posted") == [0]
    finally:
        await dba.execute("drop role of_schema_b")


async def test_migrations_of_two_schemas_do_not_wait_for_each_other(both: tuple[str, str], dba: Connection) -> None:
    await dba.execute(f"select pg_advisory_lock({migrate.LOCK})")
    assert await migrate.migrate(both[1]) == []


def test_no_migration_names_the_schema() -> None:
    """A cell may have another one: a function takes its search path from the transaction of the migration."""
    named = re.compile(
        r"search_path\s*(=|to)\s*'?tocsin|(?<![\w'])tocsin\.(?!\w+', )\w+|'tocsin_work'|'tocsin'::regnamespace"
    )
    found = {
        step.name: hits
        for step in migrate.steps()
        if (hits := [line for line in step.sql.splitlines() if named.search(line) and not line.startswith("--")])
    }
    assert found == {}
