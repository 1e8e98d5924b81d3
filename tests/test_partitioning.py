"""`tocsin partition`: tables that have rows get partitions under load, and nothing is lost or changed."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from itertools import count

import asyncpg
import pytest

from tests.support.built_in import CATALOGUE
from tests.support.commands import TOCSIN
from tests.support.events import custom, note, post
from tests.support.partitions import whole_database
from tests.support.service import SECRET, Api, serving
from tests.support.waiting import bounded, until
from tocsin import invariants, partitioning, retention
from tocsin.background import end
from tocsin.cli.doctor.database import check_database
from tocsin.db.connections import Connection, connect
from tocsin.errors import Refusal
from tocsin.ids import new_id
from tocsin.postgres.supervisor import Embedded
from tocsin.settings import Settings

TABLES = ("events", "contents", "recipients", "subjects", "inbox", "changes")
USERS = range(1, 21)
LAYOUT = """
select c.relname, c.relkind::text, pg_get_partkeydef(c.oid), pg_get_indexdef(c.oid), obj_description(c.oid)
from pg_class c left join pg_index i on i.indexrelid = c.oid
where c.relnamespace = 'tocsin'::regnamespace and not c.relispartition and c.relkind <> 't'
union all
select proname, 'f', null, null, null from pg_proc where pronamespace = 'tocsin'::regnamespace
union all
select tgname, 't', tgrelid::regclass::text, null, null from pg_trigger where not tgisinternal
order by 1, 2, 3, 4
"""


@pytest.fixture
async def whole(server: Embedded) -> str:
    return await whole_database(server, "whole")


@pytest.fixture
async def filled(whole: str) -> AsyncIterator[Api]:
    """A service whose tables have no partitions and some rows."""
    async with serving(whole, CATALOGUE) as api:
        await api.people(*USERS)
        for number in range(30):
            await api.post(note(*USERS[number % 15 : number % 15 + 5]))
        await api.as_user(1, "PUT", "/notifications/read")
        yield api


@pytest.fixture
async def admin(whole: str) -> AsyncIterator[Connection]:
    connection = await connect(whole)
    yield connection
    await connection.close()


def quiet(_: str) -> None:
    """Say nothing."""


async def marks(connection: Connection) -> dict[str, int]:
    """Return a mark of all rows of each table, independent of their order."""
    return {
        table: await connection.fetchval(f"select coalesce(sum(hashtextextended(t::text, 0)), 0)::text from {table} t")
        for table in TABLES
    }


async def is_partitioned(connection: Connection) -> list[str]:
    rows = await connection.fetch(
        "select relname from pg_class where relkind = 'p' and relnamespace = 'tocsin'::regnamespace"
    )
    return sorted(row["relname"] for row in rows)


async def violations(connection: Connection) -> list[str]:
    return [str(found) async for found in invariants.check_rows(connection) if found]


async def test_partitioned_installation_is_like_a_new_one(whole: str, filled: Api, admin: Connection, url: str) -> None:
    before = await marks(admin)
    said: list[str] = []
    await partitioning.partition(whole, said.append)
    assert await marks(admin) == before
    assert await is_partitioned(admin) == sorted(TABLES)
    assert said[-1].startswith("changes has partitions now: ")
    new = await connect(url)
    assert await admin.fetch(LAYOUT) == await new.fetch(LAYOUT)
    await new.close()
    assert await violations(admin) == []
    assert await retention.run_once(filled.app_state.database, 30) == {}
    await partitioning.partition(whole, said.append)
    assert said[-6:] == [f"{table} has partitions." for table in TABLES]


async def post_some(filled: Api, first: int, posted: dict[str, set[int]], is_over: asyncio.Event) -> None:
    for number in count(first, 2):
        users = {1 + (number + step) % len(USERS) for step in (0, 3, 7)}
        answer = await post(filled, {**note(*users), "about": [f"order:{number % 7}"]})
        posted[answer.json()["id"]] = users
        if is_over.is_set():
            return


async def mark_some(filled: Api, first: int, deleted: set[tuple[int, str]], is_over: asyncio.Event) -> None:
    for number in count(first, 2):
        user = 1 + number % len(USERS)
        for place, id_ in enumerate((await filled.ids(user))[:4]):
            if place % 2:
                await filled.as_user(user, "PUT", f"/notifications/{id_}/read")
            else:
                deleted.add((user, id_))
                await filled.as_user(user, "DELETE", f"/notifications/{id_}")
        if is_over.is_set():
            return


async def test_partition_under_load_loses_nothing(
    whole: str, filled: Api, admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitioning, "PAGES", 1)
    monkeypatch.setattr(partitioning, "LOCK_INTERVAL", 0.01)
    posted: dict[str, set[int]] = {}
    deleted: set[tuple[int, str]] = set()
    is_over = asyncio.Event()
    before = {user: await filled.ids(user) for user in USERS}
    posting = (post_some(filled, first, posted, is_over) for first in (0, 1))
    marking = (mark_some(filled, first, deleted, is_over) for first in (0, 1))
    load = asyncio.gather(*posting, *marking)
    await partitioning.partition(whole, quiet)
    assert not load.done()
    is_over.set()
    await load
    for id_ in posted:
        await filled.as_service("GET", f"/events/{id_}?wait=30")
    assert await is_partitioned(admin) == sorted(TABLES)
    for user in USERS:
        due = {*before[user], *(id_ for id_, users in posted.items() if user in users)}
        found = await filled.ids(user)
        assert len(found) == len(set(found))
        assert due - {id_ for whose, id_ in deleted if whose == user} <= set(found) <= due
    assert posted
    assert deleted
    assert await violations(admin) == []


async def test_killed_partition_continues(whole: str, filled: Api, admin: Connection) -> None:
    before = await marks(admin)
    environment = {"TOCSIN_DATABASE_URL": whole, "TOCSIN_DATABASE_DURABLE": "yes"}
    process = await asyncio.create_subprocess_exec(TOCSIN, "partition", env=environment, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    while b"contents: copied" not in await process.stdout.readline():
        pass
    process.kill()
    await process.wait()
    id_ = await filled.post(custom(1))
    await partitioning.partition(whole, quiet)
    assert await is_partitioned(admin) == sorted(TABLES)
    assert id_ in await filled.ids(1)
    assert await violations(admin) == []
    assert (await marks(admin)).keys() == before.keys()


async def test_two_runs_at_a_time_are_refused(whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitioning, "TURN_TIMEOUT", 0)
    other = await partitioning._session(whole)  # noqa: SLF001 - another process
    with pytest.raises(Refusal, match="Another `tocsin partition` is running"):
        await partitioning.partition(whole, quiet)
    await other.close()


async def test_partition_waits_for_the_session_of_a_killed_one(whole: str) -> None:
    killed = await partitioning._session(whole)  # noqa: SLF001 - another process
    statement = asyncio.create_task(killed.execute("select pg_sleep(300)"))
    await asyncio.sleep(0.1)
    killed.terminate()
    await asyncio.gather(statement, return_exceptions=True)
    await partitioning.partition(whole, quiet)


async def test_partition_that_hangs_after_a_step_holds_no_lock(
    whole: str, filled: Api, admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, hung = asyncpg.Connection.fetch, asyncio.Event()

    async def and_hang(connection: Connection, statement: str, *arguments: str | int) -> object:
        found = await fetch(connection, statement, *arguments)
        if "finish_partitions" in statement:
            hung.set()
            await asyncio.Event().wait()
        return found

    monkeypatch.setattr(asyncpg.Connection, "fetch", and_hang)
    running = asyncio.create_task(partitioning.partition(whole, quiet))
    async with bounded():
        await hung.wait()
    assert await filled.post(custom(1)) in await filled.ids(1)
    assert await is_partitioned(admin) == ["events"]
    await end([running])


async def test_partition_that_waits_for_a_lock_says_who_holds_it(
    whole: str, admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitioning, "FIRST_SAY", 0)
    monkeypatch.setattr(partitioning, "LOCK_INTERVAL", 0.01)
    said: list[str] = []
    await admin.execute("set application_name = 'dump'; begin; lock table events in access share mode")
    running = asyncio.create_task(partitioning.partition(whole, said.append))
    await until(lambda: said[-1:] and said[-1].startswith("Waiting"))
    assert re.fullmatch(r"Waiting for a lock. The session with .*: process \d+, \w+, dump, for \d+ s.", said[-1])
    settings = Settings.model_validate({"database_url": whole, "jwt_secret": SECRET})
    [warned] = [str(each) async for each in check_database(settings) if each.what == "partitions"]
    assert warned.startswith(
        "warn partitions: `tocsin partition` has not ended, and each write to events is done twice"
    )
    await admin.execute("rollback")
    await running
    assert [str(each) async for each in check_database(settings) if each.what == "partitions"] == []
    await partitioning.abandon(whole, said.append)
    assert said[-1] == "There is no copy to delete."


async def test_partition_by_a_role_that_does_not_own_the_tables_is_refused(whole: str, admin: Connection) -> None:
    name = f"writer_{new_id().hex}"
    await admin.execute(f"create role {name}; grant usage, create on schema tocsin to {name}")
    await admin.execute(f"grant all on all tables in schema tocsin to {name}")
    owner = await admin.fetchval("select current_user")
    with pytest.raises(Refusal, match=f"^Run this command as {owner}, the role that owns the tables.$"):
        await partitioning.partition(f"{whole}&role={name}", quiet)
    await admin.execute(f"drop owned by {name}; drop role {name}")


async def test_partition_whose_session_ends_says_that_it_can_continue(
    whole: str, filled: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = asyncpg.Connection.fetch

    async def or_end(connection: Connection, statement: str, *arguments: str | int) -> object:
        if "copy_to_partitions" in statement:
            connection.terminate()
        return await fetch(connection, statement, *arguments)

    monkeypatch.setattr(asyncpg.Connection, "fetch", or_end)
    with pytest.raises(Refusal, match=r"cannot be used: .* closed.* What is copied stays; run the command"):
        await partitioning.partition(whole, quiet)
    monkeypatch.undo()
    await partitioning.partition(whole, quiet)
    assert await filled.ids(1)


async def test_partition_gives_way_to_work_and_gives_up_in_the_end(
    whole: str, filled: Api, admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitioning, "WAIT_TIMEOUT", 0)
    reading = admin.transaction()
    await reading.start()
    await admin.fetch("select from events limit 1")
    with pytest.raises(Refusal, match="could not be locked"):
        await partitioning.partition(whole, quiet)
    assert await filled.post(custom(1)) in await filled.ids(1)
    await reading.rollback()
    await partitioning.partition(whole, quiet)
    assert await is_partitioned(admin) == sorted(TABLES)


async def test_copy_that_differs_does_not_replace_its_table(
    whole: str, filled: Api, admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, patiently = await marks(admin), partitioning._patiently  # noqa: SLF001 - rows get lost when it ends

    async def and_lose(connection: Connection, say: partitioning.Say, statement: str, *arguments: str | int) -> object:
        found = await patiently(connection, say, statement, *arguments)
        with contextlib.suppress(Exception):
            await admin.execute("delete from contents_next")
        return found

    monkeypatch.setattr(partitioning, "_patiently", and_lose)
    with pytest.raises(Refusal, match=r"The copy of contents has 0 rows .* Run `tocsin partition --abandon`"):
        await partitioning.partition(whole, quiet)
    monkeypatch.undo()
    assert await is_partitioned(admin) == ["contents_next", "events"]
    said: list[str] = []
    await partitioning.abandon(whole, said.append)
    assert said == ["Deleted the copy of contents."]
    assert await marks(admin) == before
    assert await filled.post(custom(1)) in await filled.ids(1)
    await partitioning.partition(whole, quiet)
    assert await is_partitioned(admin) == sorted(TABLES)
