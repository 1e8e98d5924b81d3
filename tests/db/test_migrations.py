"""Migrations: they produce schema.sql and are applied once, also by concurrent processes."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from tests.support.database import url_for
from tests.support.events import custom
from tests.support.logs import own_logs
from tests.support.servers import OwnServer, own_server
from tests.support.service import serving, settings_for
from tests.support.waiting import until
from tocsin import store
from tocsin.catalogue import Catalogue
from tocsin.db import migrate
from tocsin.db.connections import connect
from tocsin.errors import Refusal
from tocsin.postgres.supervisor import Embedded

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "docs/operations/install.md"
ROTATE = ROOT / "docs/operations/rotate-keys.md"
SCHEMA = ROOT / "src/tocsin/db/schema.sql"


@pytest.fixture
async def empty(server: Embedded) -> str:
    connection = await connect(server.url)
    await connection.execute("drop database if exists empty with (force)")
    await connection.execute("create database empty")
    await connection.close()
    return url_for(server, "empty")


def dump(server: Embedded, url: str) -> str:
    """Return the schema as pg_dump writes it, without partitions and without what differs from run to run."""
    command = [str(server.binaries / "bin/pg_dump"), "--schema-only", "--no-owner", "--schema=tocsin", url]
    command += [f"--exclude-table=tocsin.*_{name}" for name in ("past", "rest", "random", "[0-9]*")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line for line in text.splitlines() if not re.match(r"--|SET |SELECT pg_catalog|\\(un)?restrict", line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


async def test_migrations_produce_the_checked_in_schema(
    server: Embedded, empty: str, pytestconfig: pytest.Config
) -> None:
    await migrate.migrate(empty)
    found = dump(server, empty)
    if pytestconfig.getoption("--write-schema"):
        SCHEMA.write_text(found, "utf-8")
    assert found == SCHEMA.read_text("utf-8")


async def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [step.number for step in migrate.steps()]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_concurrent_starts_apply_each_migration_once(empty: str) -> None:
    taken = await asyncio.gather(*(migrate.migrate(empty) for _ in range(5)))
    assert sorted(step.number for steps in taken for step in steps) == [step.number for step in migrate.steps()]


async def test_schema_of_newer_release_is_accepted(empty: str) -> None:
    await migrate.migrate(empty)
    connection = await connect(empty)
    await connection.execute("insert into migrations (number, name) values (9999, 'of_next_year')")
    await connection.close()
    assert await migrate.migrate(empty) == []


async def test_failed_migration_is_rolled_back(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = migrate.Step(1, "broken", "create table half (id int); select 1 / 0")
    monkeypatch.setattr(migrate, "steps", lambda: [broken])
    with pytest.raises(Exception, match="division by zero"):
        await migrate.migrate(empty)
    connection = await connect(empty)
    assert await connection.fetchval("select to_regclass('tocsin.half')") is None
    await connection.close()


@pytest.mark.parametrize(
    ("setting", "said"),
    [("synchronous_commit", "synchronous_commit is off")],
)
async def test_database_that_is_not_durable_is_rejected(empty: str, setting: str, said: str) -> None:
    connection = await connect(empty)
    await connection.execute(f"alter database empty set {setting} = off")
    await connection.close()
    with pytest.raises(Refusal, match=said):
        await migrate.migrate(empty)


async def test_every_table_has_a_primary_key_for_logical_replication(empty: str) -> None:
    await migrate.migrate(empty)
    connection = await connect(empty)
    without = await connection.fetch(
        "select relname from pg_class c where relnamespace = 'tocsin'::regnamespace and relkind in ('r', 'p')"
        " and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)"
    )
    await connection.close()
    assert [row["relname"] for row in without] == []


async def test_import_works_while_a_publication_covers_all_tables(empty: str, catalogue: Catalogue) -> None:
    await migrate.migrate(empty)
    connection = await connect(empty)
    await connection.execute("create publication everything for all tables")
    lines = [
        {"user": {"id": 1, "first_name": "A", "last_name": "B"}},
        {"team": {"id": 7, "name": "Sales", "users": [1]}},
        {"device": {"user_id": 1, "token": "ab" * 32}},
    ]
    async with serving(empty, catalogue) as api:
        content = "".join(json.dumps(line) + "\n" for line in lines)
        headers = {"Content-Type": "application/x-ndjson"}
        answer = await api.as_service("POST", "/directory/import", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        assert (await api.as_service("DELETE", "/directory/users/1")).status_code == 204
    await connection.close()


async def test_migration_yields_to_readers_and_names_the_lock_holder(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate.migrate(empty)
    later = migrate.Step(9999, "of_next_year", "alter table devices add column of_next_year int")
    monkeypatch.setattr(migrate, "steps", lambda: [later])
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", 1)
    dumping, reading = await connect(empty), await connect(empty)
    await dumping.execute("set application_name = 'pg_dump'; begin; lock table devices in access share mode")
    with own_logs() as told:
        migrating = asyncio.create_task(migrate.migrate(empty))
        for tries in (1, 2, 3):  # during the dump, readers never wait for its whole time
            await until(partial(lambda tries: len(told) >= tries, tries))
            await reading.fetchval("select count(*) from devices", timeout=30)
        await until(lambda: told)
        assert not migrating.done()
        await dumping.execute("commit")
        assert await migrating == [later]
    await dumping.close()
    await reading.close()
    waits = [line for line in told if line["event"] == "migration is waiting for a lock"]
    assert "pg_dump" in waits[0]["held_by"]
    assert waits[0]["step"] == "9999 of_next_year"


async def test_process_names_the_session_whose_migration_it_waits_for(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate.migrate(empty)
    migrating = await connect(empty)
    await migrating.execute("set application_name = 'elder'")
    await migrating.execute(f"select pg_advisory_lock({migrate.LOCK})")
    with own_logs() as told:
        waiting = asyncio.create_task(migrate.migrate(empty))
        await until(lambda: told)
        assert not waiting.done()
        monkeypatch.setattr(migrate, "WAIT_TIMEOUT", 0.0)
        with pytest.raises(Refusal, match=r"Another process has been migrating .* elder.*pg_advisory_lock"):
            await waiting
        monkeypatch.undo()
        waiting = asyncio.create_task(migrate.migrate(empty))
        await until(lambda: len(told) > 1)
        await migrating.close()
        assert await waiting == []
    assert [line["event"] for line in told] == ["waiting for another process to migrate the schema"] * 2
    assert "elder" in told[0]["held_by"]


async def test_migration_without_lock_fails_and_names_the_lock_holder(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate.migrate(empty)
    later = migrate.Step(9999, "of_next_year", "alter table devices add column of_next_year int")
    monkeypatch.setattr(migrate, "steps", lambda: [later])
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", 1)
    monkeypatch.setattr(migrate, "WAIT_TIMEOUT", 0)
    dumping = await connect(empty)
    await dumping.execute("set application_name = 'pg_dump'; begin; lock table devices in access share mode")
    with pytest.raises(Refusal, match=r"9999 of_next_year could not lock .* pg_dump"):
        await migrate.migrate(empty)
    await dumping.close()


async def test_role_lock_timeout_does_not_end_waiting_migration(empty: str) -> None:
    await migrate.migrate(empty)
    connection = await connect(empty)
    await connection.execute("alter database empty set lock_timeout = '10ms'")
    first = await connect(empty)
    await first.execute(f"select pg_advisory_lock({migrate.LOCK})")
    with own_logs() as told:
        waiting = asyncio.create_task(migrate.migrate(empty))
        await until(lambda: told)
        await first.close()
        assert await waiting == []
    await connection.close()


async def test_index_is_built_concurrently_and_rebuilt_after_failure(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate.migrate(empty)
    sql = (
        "-- outside a transaction\n"
        "drop index concurrently if exists teams_of_next_year;\n"
        "create unique index concurrently teams_of_next_year on teams (name);\n"
    )
    later = migrate.Step(9999, "of_next_year", sql)
    monkeypatch.setattr(migrate, "steps", lambda: [later])
    connection = await connect(empty)
    await connection.execute("insert into teams (id, company_id, name) values (1, 1, 'Sales'), (2, 1, 'Sales')")
    with pytest.raises(asyncpg.UniqueViolationError):
        await migrate.migrate(empty)
    await connection.execute("delete from teams where id = 2")
    assert await migrate.migrate(empty) == [later]
    valid = "select indisvalid from pg_index where indexrelid = 'teams_of_next_year'::regclass"
    assert await connection.fetchval(valid)
    assert await migrate.migrate(empty) == []
    await connection.close()


OF_NEXT_YEAR = """\
-- outside a transaction
drop index concurrently if exists teams_of_next_year;
create index concurrently teams_of_next_year on teams (name);
"""


async def test_concurrent_index_is_built_once_although_an_older_transaction_lasts(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate.migrate(empty)
    later = migrate.Step(9999, "of_next_year", OF_NEXT_YEAR)
    monkeypatch.setattr(migrate, "steps", lambda: [later])
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", 0.1)
    monkeypatch.setattr(migrate, "MOMENT", 0.1)
    dumping, reading = await connect(empty), await connect(empty)
    await dumping.execute("set application_name = 'dump'")
    await dumping.execute("begin isolation level repeatable read; select 1")
    with own_logs() as told:
        migrating = asyncio.create_task(migrate.migrate(empty))
        waiting = "select count(*) from pg_locks where not granted and locktype = 'virtualxid'"
        await until(partial(_is_positive, reading, waiting))
        first = await reading.fetchval("select to_regclass('teams_of_next_year')::oid")
        await reading.execute("insert into teams (id, company_id, name) values (1, 1, 'Sales')", timeout=30)
        await reading.execute("select pg_sleep(0.5)")  # longer than the timeout of other locks
        await until(lambda: told)
        assert not migrating.done()
        await dumping.execute("commit")
        assert await migrating == [later]
    assert await reading.fetchval("select to_regclass('teams_of_next_year')::oid") == first
    assert [line["event"] for line in told] == ["migration waits for older transactions"]
    assert "dump" in told[0]["held_by"]
    await dumping.close()
    await reading.close()


async def test_log_of_a_migration_names_nothing_that_it_does_not_wait_for(empty: str) -> None:
    with own_logs() as told:
        assert await migrate.migrate(empty)
    assert told == []


async def test_concurrent_index_that_waits_for_an_old_snapshot_names_its_session(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate.migrate(empty)
    later = migrate.Step(9999, "of_next_year", OF_NEXT_YEAR)
    monkeypatch.setattr(migrate, "steps", lambda: [later])
    monkeypatch.setattr(migrate, "WAIT_TIMEOUT", 0.2)
    reporting = await connect(empty)
    await reporting.execute("set application_name = 'report'; begin isolation level repeatable read; select 1")
    with pytest.raises(Refusal, match=r"9999 of_next_year could not lock .* report"):
        await migrate.migrate(empty)
    await reporting.execute("commit")
    assert await migrate.migrate(empty) == [later]
    await reporting.close()


async def _is_positive(connection: asyncpg.Connection, statement: str) -> bool:
    return bool(await connection.fetchval(statement))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("create index teams_of_next_year on teams (name);", "require-concurrent-index-creation"),
        ("alter table teams alter column name type varchar(80);", "changing-column-type"),
        ("alter table teams add constraint named check (name <> '');", "constraint-missing-not-valid"),
        ("alter table teams add column of_next_year int;", ""),
    ],
)
def test_linter_finds_migrations_that_lock_a_table_for_long(tmp_path: Path, sql: str, found: str) -> None:
    (tmp_path / "9999_of_next_year.sql").write_text(sql)
    squawk = Path(sys.executable).with_name("squawk")
    command = (squawk, "--config", ROOT / ".squawk.toml", "--assume-in-transaction", "9999_of_next_year.sql")
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (found in run.stdout, run.returncode) == (True, 1 if found else 0), run.stdout + run.stderr


@pytest.fixture(scope="module")
async def own() -> AsyncIterator[OwnServer]:
    async with own_server() as server:
        await server.role("app")
        await server.role("owner")
        yield server


async def test_schema_created_by_dba_needs_no_create_privilege(own: OwnServer) -> None:
    made = "create schema tocsin authorization app"
    database = await own.fresh("made_by_dba", made, "revoke create on database made_by_dba from public, app")
    assert len(await migrate.migrate(own.url("app", database), accept_undurable=True)) == len(migrate.steps())
    assert await migrate.migrate(own.url("app", database), accept_undurable=True) == []


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ([], "permission denied for database"),
        (["create schema tocsin"], "it may not use the schema tocsin"),
        (["create schema tocsin", "grant usage on schema tocsin to app"], "permission denied for schema"),
        (
            [
                "create schema tocsin",
                "create table tocsin.migrations (number int)",
                "grant all on schema tocsin to app",
            ],
            "permission denied for table",
        ),
    ],
    ids=["no CREATE on the database", "no USAGE", "no CREATE on the schema", "a table of another role"],
)
async def test_missing_privilege_is_reported_with_grant_statements(
    own: OwnServer, before: list[str], said: str
) -> None:
    database = await own.fresh("without_rights", "revoke create on schema public from public", *before)
    with pytest.raises(Refusal, match=f"The role app lacks a right: .*{said}.* grant create, usage on schema") as got:
        await migrate.migrate(own.url("app", database), accept_undurable=True)
    assert "\n" not in str(got.value)
    connection = await asyncpg.connect(own.url(database=database))
    assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
    await connection.close()


async def test_role_without_ownership_serves_with_documented_privileges(own: OwnServer, catalogue: Catalogue) -> None:
    database = await own.fresh("of_the_owner", owner="owner")
    await migrate.migrate(own.url("owner", database), accept_undurable=True)
    named = re.search(r"needs `usage` on the schema and `([^`]+)` on all tables", INSTALL.read_text("utf-8"))
    assert named
    connection = await asyncpg.connect(own.url(database=database))
    await connection.execute("grant usage on schema tocsin to app")
    await connection.execute(f"grant {named[1]} on all tables in schema tocsin to app")
    await connection.close()
    url = own.url("app", database)
    assert await migrate.migrate(url, accept_undurable=True) == []
    async with serving(url, catalogue) as api:
        await api.people(1)
        posted = await api.post(custom(1))
        assert await api.ids(1) == [posted]


async def test_documented_second_role_takes_over_from_the_first(own: OwnServer, catalogue: Catalogue) -> None:
    await own.role("tocsin")
    database = await own.fresh("of_two_roles", owner="tocsin")
    *most, last = migrate.steps()
    with pytest.MonkeyPatch.context() as before:
        before.setattr(migrate, "steps", lambda: most)
        await migrate.migrate(own.url("tocsin", database), accept_undurable=True)
    [statements] = re.findall(r"^```sql\n(.*?)^```", ROTATE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    await own.run(statements.replace("...", "geheim"))
    url = own.url("tocsin_b", database)
    assert await migrate.migrate(url, accept_undurable=True) == [last]
    await own.run("alter role tocsin nologin")
    async with serving(url, catalogue) as api:
        await api.people(1)
        posted = await api.post(custom(1))
        assert await api.ids(1) == [posted]
    owned = "select count(*) from pg_class where relowner = 'tocsin_b'::regrole"
    connection = await asyncpg.connect(own.url(database=database))
    assert await connection.fetchval(owned) == 0
    await connection.close()


async def test_role_connection_limit_is_reported_with_remedy(own: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "START_TIMEOUT", 0)
    await own.role("narrow", "alter role narrow connection limit 1")
    database = await own.fresh("narrow", owner="narrow")
    held = await asyncpg.connect(own.url("narrow", database))
    settings = settings_for(database_url=own.url("narrow", database), database_durable="yes")
    with pytest.raises(Refusal, match=r"too many connections for role .*; raise the limit") as refused:
        async with store.store(settings, alone=True):
            pass
    await held.close()
    assert "geheim" not in str(refused.value)


async def test_database_that_is_away_at_the_start_is_logged_rarely(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(store, "RETRY_INTERVAL", 0.1)
    monkeypatch.setattr(store, "START_TIMEOUT", 3.5)
    with own_logs() as lines, pytest.raises(Refusal, match="Connect call failed"):
        await store.patiently(lambda: asyncpg.connect(f"postgresql://app@127.0.0.1:{port}/app"))
    told = [line["since"] for line in lines if line["event"].startswith("database cannot be reached")]
    assert 2 <= len(told) <= 3, "after 0, 1 and 3 s"
    [since] = set(told)
    assert 3 < (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds() < 30


async def test_new_reason_why_the_database_is_away_is_logged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "RETRY_INTERVAL", 0)
    refused, starting = ConnectionRefusedError(111, "Connection refused"), asyncpg.CannotConnectNowError("starting up")
    coming = iter([refused, refused, starting, starting, refused])

    async def attempt() -> str:
        if error := next(coming, None):
            raise error
        return "connected"

    with own_logs() as lines:
        assert await store.patiently(attempt) == "connected"
    reasons = [line["reason"] for line in lines]
    assert (len(reasons), reasons[0] == reasons[2] != reasons[1]) == (3, True), reasons


async def test_wrong_password_is_reported_immediately(own: OwnServer) -> None:
    settings = settings_for(database_url=own.url("app", password="wrong-geheim"), database_durable="yes")
    with pytest.raises(Refusal, match="correct user or password in TOCSIN_DATABASE_URL") as refused:
        async with store.store(settings, alone=True):
            pass
    assert "geheim" not in str(refused.value)
