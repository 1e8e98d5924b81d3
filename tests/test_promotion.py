"""The promotion of a standby that lacks the last changes: their positions are taken by other changes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import asyncpg
import pytest

from tests.support.database import value
from tests.support.events import message_event
from tests.support.imports import CONTACT, NDJSON, notification, text_of
from tests.support.servers import OwnServer, own_server, standby_of
from tests.support.service import Api, serving
from tests.support.streams import watching
from tests.support.waiting import reaches, until
from tocsin.catalogue import Catalogue
from tocsin.db import migrate
from tocsin.invariants import check_rows, open_session
from tocsin.store import pool

pytestmark = pytest.mark.processes

DATABASE = "tocsin"
ABOUT = f"contact:{CONTACT}"
ENDS_WAIT = (  # An import is not over while a session holds the lock.
    """create function tocsin.wait() returns trigger language plpgsql as $$
    begin perform pg_advisory_xact_lock(1); return old; end $$""",
    "create trigger waits before delete on tocsin.imports for each row execute function tocsin.wait()",
)
LOST, NEW = "What the standby lacks", "What comes after the promotion"


@dataclass(frozen=True)
class Late:
    """A primary, a standby that is promoted without the last changes, and another one that has them."""

    primary: OwnServer
    standby: OwnServer
    other: OwnServer

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in (self.primary, self.standby))
        return f"postgresql://dba:geheim@{hosts}/{DATABASE}?target_session_attrs=primary"

    async def cut(self) -> None:
        """Disconnect the standby from the primary when it has all changes so far."""
        await self._replays(self.standby)
        await self.standby.run("alter system set primary_conninfo = ''", "select pg_reload_conf()")
        await until(lambda: value(self.standby.url(), "select not exists (select from pg_stat_wal_receiver)"))

    async def promote(self) -> None:
        await self._replays(self.other)
        self.primary.kill()
        await value(self.standby.url(), "select pg_promote(true)")

    async def _replays(self, standby: OwnServer) -> None:
        written = await value(self.primary.url(), "select pg_current_wal_flush_lsn()::text")
        replayed = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
        await until(lambda: value(standby.url(), replayed, written))


@pytest.fixture
async def late() -> AsyncIterator[Late]:
    async with AsyncExitStack() as stack:
        primary = await stack.enter_async_context(own_server(wal_keep_size="1GB"))
        await primary.fresh(DATABASE)
        await migrate.migrate(primary.url(database=DATABASE), accept_undurable=True)
        standbys = [await stack.enter_async_context(standby_of(primary)) for _ in range(2)]
        yield Late(primary, *standbys)


async def messages(api: Api) -> list[str]:
    return [entry["message"] for entry in (await api.inbox(1))["data"]]


async def posted_again(api: Api, event: dict[str, Any]) -> None:
    """Post until the service has found the new primary."""

    async def is_accepted() -> bool:
        return (await api.as_service("POST", "/events", json=event)).status_code == 202

    await until(is_accepted)


async def test_clients_load_their_lists_again_after_changes_were_lost(late: Late, catalogue: Catalogue) -> None:
    async with serving(late.url, catalogue) as api:
        await api.people(1)
        await api.post(message_event("Before", 1))
        await late.cut()
        await api.post(message_event(LOST, 1))
        page = await api.as_user(1, "GET", "/notifications")
        known = {"Authorization": page.request.headers["authorization"], "If-None-Match": page.headers["etag"]}
        for _ in range(2):  # the second one is remembered, byte by byte
            assert (await api.http.get("/notifications", headers=known)).status_code == 304
        cursor = (await api.as_user(1, "GET", "/notifications/changes")).json()["cursor"]
        async with watching(api) as watch:
            await late.promote()
            await posted_again(api, message_event(NEW, 1))
            await watch.until_received("resync")
        again = await api.http.get("/notifications", headers=known)
        assert (again.status_code, await messages(api)) == (200, [NEW, "Before"])
        changes = await api.as_user(1, "GET", f"/notifications/changes?since={cursor}")
        assert json.loads(changes.text)["resync"] is True
        async with watching(api, mark=cursor) as resumed:
            await resumed.until_received("resync")
        cursor = (await api.as_user(1, "GET", "/notifications/changes")).json()["cursor"]
        await api.post(message_event("Later", 1))
        following = (await api.as_user(1, "GET", f"/notifications/changes?since={cursor}")).json()
        assert [change["data"]["message"] for change in following["data"]] == ["Later"]


async def test_streams_and_changes_continue_if_nothing_was_lost(late: Late, catalogue: Catalogue) -> None:
    async with serving(late.url, catalogue) as api:
        await api.people(1, 2)
        for message in ("One", "Two"):
            await api.post(message_event(message, 1))
        [two, one] = await api.ids(1)
        await api.as_user(1, "DELETE", f"/notifications/{one}")
        cursor = (await api.as_user(1, "GET", "/notifications/changes")).json()["cursor"]
        await api.as_user(1, "PUT", f"/notifications/{two}/read")
        async with watching(api) as watch, watching(api, 2) as empty:
            await late.cut()
            await late.promote()
            await posted_again(api, message_event(NEW, 1, 2))
            for stream in (watch, empty):
                [received] = await stream.until_received("notification")
                assert (received["message"], stream.names("resync")) == (NEW, [])
        found = (await api.as_user(1, "GET", f"/notifications/changes?since={cursor}")).json()
        assert [change["event"] for change in found["data"]] == ["read", "notification"]
        async with watching(api, mark=cursor) as resumed:
            await resumed.until_received("notification")
            assert [event for event, _ in resumed.received] == ["count", "read", "notification", "count"]


async def test_replica_with_lost_changes_is_not_read_at_their_positions(late: Late, catalogue: Catalogue) -> None:
    async with serving(late.url, catalogue) as api:
        await api.people(1)
        await late.cut()
        await api.post(message_event(LOST, 1))
        await late.promote()
        await posted_again(api, message_event(NEW, 1))
        fill = "select pg_logical_emit_message(false, '', repeat('.', 100000))"
        await value(late.standby.url(), fill)  # else the replica is known to be ahead
        replica = late.other.url(database=DATABASE)
        async with serving(late.url, catalogue, with_worker=False, replica_url=replica) as reading:
            await reaches(lambda: problems(reading), [])
            assert await messages(reading) == [NEW]


async def test_sessions_from_before_the_promotion_of_their_server_do_not_write(late: Late) -> None:
    async with pool(late.primary.url(database=DATABASE), 1) as before:
        await before.value("select salt from timelines")
    async with pool(late.standby.url(database=DATABASE), 1) as database:
        await late.cut()
        assert await database.value("select salt from timelines") == 0
        await late.promote()
        assert await database.value("update timelines set salt = salt where salt > 0 returning true")


async def problems(api: Api) -> list[str]:
    found: list[str] = (await api.call("GET", "/readyz")).json()["problems"]
    return [each for each in found if "worker" not in each]


async def test_inboxes_are_read_after_a_promotion_while_commits_wait_for_a_standby(
    late: Late, catalogue: Catalogue
) -> None:
    async with serving(late.url, catalogue) as api:
        await api.people(1)
        await api.post(message_event("Before", 1))
        await late.cut()
        await late.standby.run("alter system set synchronous_standby_names = '*'", "select pg_reload_conf()")
        await late.promote()

        async def is_read() -> bool:
            return (await api.as_user(1, "GET", "/notifications")).status_code == 200

        await until(is_read, 10)


async def test_imports_erasures_and_resolutions_end_after_a_promotion_amid_them(catalogue: Catalogue) -> None:
    async with own_server(wal_keep_size="1GB") as primary:
        await primary.fresh(DATABASE)
        await migrate.migrate(primary.url(database=DATABASE), accept_undurable=True)
        async with standby_of(primary) as standby:
            await primary.run("alter system set synchronous_standby_names = '*'", "select pg_reload_conf()")
            url = Late(primary, standby, standby).url
            async with serving(url, catalogue) as api:
                await api.people(*range(1, 21))
                for _ in range(5):
                    events = [{**message_event("Resolved", 1, 2, 3, 4), "about": [ABOUT]} for _ in range(100)]
                    assert (await api.as_service("POST", "/events/batch", json={"events": events})).status_code == 202
                imports = [[notification(5 + n % 16) for n in range(2_000)] for _ in range(4)]
                await primary.run(*ENDS_WAIT, database=DATABASE)
                holding = await asyncpg.connect(primary.url(database=DATABASE))
                await holding.execute("select pg_advisory_lock(1)")
                working = asyncio.gather(
                    *(insist_on_import(api, lines, str(key)) for key, lines in enumerate(imports)),
                    *(insist(api, "DELETE", f"/directory/users/{user}") for user in (1, 2)),
                    insist(api, "POST", "/events/resolve", json={"about": ABOUT, "as": "gone"}),
                )
                await until(lambda: value(url, "select exists (select from imports where applied > 0)"))
                primary.kill()
                holding.terminate()
                await value(standby.url(), "select pg_promote(true)")
                await working
                await until(lambda: value(url, "select not exists (select from jobs)"))
            due = sorted((line["notification"]["user_id"], line["notification"]["id"]) for line in chain(*imports))
            connection = await open_session(url)
            rows = await connection.fetch("select user_id, event_id::text from inbox where deleted_at is null")
            assert sorted(map(tuple, rows)) == due
            assert not await connection.fetch("select from recipients where user_ids && '{1,2}'")
            assert not await connection.fetch("select from dead_letters")
            assert [str(violation) async for violation in check_rows(connection) if violation] == []
            await connection.close()


async def insist_on_import(api: Api, lines: list[Any], key: str) -> None:
    headers = {**NDJSON, "Idempotency-Key": key}
    await insist(api, "POST", "/directory/import", content=text_of(lines), headers=headers)


async def insist(api: Api, method: str, path: str, **more: Any) -> None:
    """Repeat a request while it is answered 503."""

    async def is_done() -> bool:
        status = (await api.as_service(method, path, **more)).status_code
        assert status in {200, 202, 204, 404, 503}
        return status != 503

    await until(is_done)


async def test_server_that_hides_its_timeline_is_used() -> None:
    async with own_server() as server:
        await server.role("app")
        await server.fresh(DATABASE)
        await migrate.migrate(server.url(database=DATABASE), accept_undurable=True)
        await server.run(
            "grant usage on schema tocsin to app",
            "grant all on all tables in schema tocsin to app",
            "revoke execute on function pg_walfile_name(pg_lsn) from public",
            database=DATABASE,
        )
        async with pool(server.url("app", DATABASE), 2) as database:
            assert await database.value("select timeline from timelines") is None
            assert await database.value("select salt from timelines") == 0
