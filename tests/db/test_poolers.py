"""External poolers: session mode works; transaction mode is rejected before any write."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.support.events import custom
from tests.support.servers import OwnServer, own_server, pgbouncer
from tests.support.service import SECRET, serving
from tocsin.background import end
from tocsin.catalogue import Catalogue
from tocsin.cli import doctor
from tocsin.db import connections, migrate
from tocsin.db.connections import connect
from tocsin.db.errors import NoConnectionError, sentence_on
from tocsin.db.poolers import refuse_shared_sessions
from tocsin.errors import Refusal
from tocsin.relay import Relay

pytestmark = pytest.mark.skipif(
    not shutil.which("pgbouncer"), reason="this machine has no PgBouncer: apt-get install pgbouncer"
)


@pytest.fixture(scope="module")
async def own() -> AsyncIterator[OwnServer]:
    async with own_server() as server:
        await server.role("app")
        yield server


async def tables_outside(own: OwnServer, database: str) -> int:
    connection = await asyncpg.connect(own.url(database=database))
    found = await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'")
    await connection.close()
    return int(found)


async def test_pgbouncer_in_session_mode_works_without_ignored_startup_parameters(
    own: OwnServer, catalogue: Catalogue
) -> None:
    database = await own.fresh("by_session", owner="app")
    async with pgbouncer(own, "session") as port:
        url = own.url("app", database).replace(str(own.port), str(port))
        assert len(await migrate.migrate(url, accept_undurable=True)) == len(migrate.steps())
        assert await migrate.migrate(url, accept_undurable=True) == []
        async with serving(url, catalogue) as api:
            await api.people(1, 2)
            posted = await api.post(custom(1))
            assert await api.ids(1) == [posted]
    assert await tables_outside(own, database) == 0


async def shown(url: str, *settings: str) -> list[str]:
    """Return settings as another client of a pooler sees them."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    found = [await connection.fetchval("select current_setting($1)", name) for name in settings]
    await connection.close()
    return found


async def keep_busy(url: str) -> None:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        while True:
            await connection.execute("select pg_sleep(0.001)")
    finally:
        connection.terminate()


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_transaction_pooler_is_rejected_before_any_write(
    own: OwnServer, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await own.fresh(f"by_{mode}", owner="app")
    async with pgbouncer(own, mode) as port:
        url = own.url("app", database).replace(str(own.port), str(port))
        with pytest.raises(Refusal, match="set it to session mode") as refused:
            await migrate.migrate(url, accept_undurable=True)
        assert str(refused.value).count(".") == 1
        monkeypatch.setenv("TOCSIN_DATABASE_URL", url)
        monkeypatch.setenv("TOCSIN_JWT_SECRET", SECRET)
        told = [str(finding) for finding in await doctor.examine(Path("/nonexistent")) if finding.what == "database"]
        assert [line[:4] for line in told] == ["FAIL"]
        assert "session mode" in told[0]
        relay = Relay(url, "public.notifications_outbox", "http://127.0.0.1:1", str)
        with pytest.raises(Refusal, match="set it to session mode, or name the server itself in the url of the outbox"):
            await relay.run()
        assert await shown(url, "search_path", "enable_seqscan") == ['"$user", public', "on"]
    connection = await asyncpg.connect(own.url(database=database))
    assert await connection.fetchval("select to_regnamespace('tocsin')") is None
    await connection.close()
    assert await tables_outside(own, database) == 0


async def test_sessions_that_other_clients_of_a_pooler_use_are_found(own: OwnServer) -> None:
    async with pgbouncer(own, "transaction", size=4) as port:
        url = own.url(database=await own.fresh("busy")).replace(str(own.port), str(port))
        others = [asyncio.create_task(keep_busy(url)) for _ in range(4)]
        for _ in range(5):
            with pytest.raises(Refusal, match="session mode"):
                await refuse_shared_sessions(url)
        await end(others)


async def test_pooler_without_connections_left_is_named(own: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 1)
    async with pgbouncer(own, "session", size=1) as port:
        with pytest.raises(NoConnectionError) as raised:
            await refuse_shared_sessions(own.url().replace(str(own.port), str(port)))
    assert sentence_on(raised.value) == (
        "The database cannot be used: no connection within 1 s; see that it runs, that TOCSIN_DATABASE_URL leads there,"
        " and that a pooler in front of it has connections left."
    )


async def test_session_settings_include_those_of_the_url(own: OwnServer) -> None:
    async with pgbouncer(own, "session") as port:
        url = own.url(application_name="crm", work_mem="7MB", enable_seqscan="on")
        connection = await connect(url.replace(str(own.port), str(port)))
        names = ("search_path", "enable_seqscan", "timezone", "application_name", "work_mem")
        shown = {name: await connection.fetchval(f"show {name}") for name in names}
        await connection.close()
    due = {"search_path": "tocsin", "enable_seqscan": "off", "timezone": "UTC"}
    assert shown == {**due, "application_name": "crm", "work_mem": "7MB"}
