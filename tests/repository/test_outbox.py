"""The outbox of docs/guides/outbox.md posts committed events once and no rolled back ones."""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from tests.support.database import url_for
from tests.support.service import SECRET, Api
from tests.support.waiting import reaches, until
from tocsin.auth.minting import mint_service
from tocsin.postgres.supervisor import Embedded

PAGE = (Path(__file__).parents[2] / "docs/guides/outbox.md").read_text("utf-8")

pytestmark = pytest.mark.processes


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
async def crm(server: Embedded) -> AsyncIterator[asyncpg.Connection]:
    """The application's database, with the table of the page in it."""
    connection = await asyncpg.connect(server.url)
    await connection.execute("drop database if exists crm with (force)")
    await connection.execute("create database crm")
    await connection.close()
    connection = await asyncpg.connect(url_for(server, "crm"))
    await connection.execute(blocks("sql")[0])
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def relaying(api: Api, server: Embedded, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the relay of the page; it is killed in the end."""
    (folder / "relay.py").write_text(blocks("python")[0])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        folder / "relay.py",
        env={
            "PATH": os.defpath,
            "NOTIFY_URL": str(api.http.base_url),
            "NOTIFY_TOKEN": mint_service(SECRET, "crm", ["events:write"], timedelta(hours=1)),
            "OUTBOX_DATABASE_URL": url_for(server, "crm"),
        },
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def waiting(crm: asyncpg.Connection) -> int:
    return int(await crm.fetchval("select count(*) from notifications_outbox where refused is null"))


async def until_empty(crm: asyncpg.Connection) -> None:
    await reaches(lambda: waiting(crm), 0)


async def delivered_ids(api: Api, ids: list[str]) -> list[str]:
    """Return the ids in the inbox of user 1 once these events are settled."""
    for id_ in ids:
        assert (await api.as_service("GET", f"/events/{id_}?wait=30")).json()["state"] == "delivered"
    return await api.ids(1)


async def test_outbox_posts_committed_events_and_no_rolled_back_ones(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    write = blocks("sql")[1]
    async with relaying(api, server, tmp_path):
        with contextlib.suppress(ZeroDivisionError):
            async with crm.transaction():
                await crm.execute(write)
                raise ZeroDivisionError
        async with crm.transaction():
            kept = str(await crm.fetchval(f"{write.strip().removesuffix(';')} returning id"))
        await until_empty(crm)
        assert await delivered_ids(api, [kept]) == [kept]


async def test_killed_outbox_relay_posts_each_event_once(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    write = blocks("sql")[1].strip().removesuffix(";")
    ids = [str(await crm.fetchval(f"{write} returning id")) for _ in range(60)]
    for _ in range(3):
        async with relaying(api, server, tmp_path):
            await until(lambda: api.ids(1))  # killed as soon as a part has arrived, at an arbitrary step
        await crm.execute(f"{write.replace('The contract', 'Another contract')}")
    ids += [str(row["id"]) for row in await crm.fetch("select id from notifications_outbox order by number")]
    async with relaying(api, server, tmp_path):
        await until_empty(crm)
    found = await delivered_ids(api, sorted(set(ids)))
    assert len(found) == len(set(found))
    assert set(ids) <= set(found)
    assert (await api.inbox(1))["pagination"]["total"] == len(found) == 63


async def test_outbox_keeps_rejected_event_with_reason_and_continues(
    api: Api, server: Embedded, crm: asyncpg.Connection, tmp_path: Path
) -> None:
    await api.people(1)
    write = blocks("sql")[1].strip().removesuffix(";")
    await crm.execute("""insert into notifications_outbox (event) values ('{"type": "nonsense"}')""")
    good = str(await crm.fetchval(f"{write} returning id"))
    async with relaying(api, server, tmp_path):
        await until_empty(crm)
    assert await delivered_ids(api, [good]) == [good]
    assert await crm.fetchval("select refused from notifications_outbox") != ""
    assert await crm.fetchval("select count(*) from notifications_outbox") == 1
