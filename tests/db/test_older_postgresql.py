"""Support of PostgreSQL from version 15, tested on a server of the machine if it has one."""

import asyncio
import os
import pwd
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.events import custom, note
from tests.support.places import short_path
from tests.support.service import serving
from tests.support.waiting import bounded
from tocsin import invariants
from tocsin.catalogue import Catalogue
from tocsin.db.connections import connect
from tocsin.db.errors import DRIVER_ERRORS
from tocsin.db.migrate import migrate
from tocsin.db.planner_statistics import correct_with
from tocsin.errors import Refusal

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
USABLE = [path.parent for path in INSTALLED if int(path.parts[-3]) >= 15]

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not USABLE, reason="this machine has no PostgreSQL of its own: apt-get install postgresql"),
]


def unprivileged() -> dict[str, Any]:
    if os.geteuid():
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@pytest.fixture(params=[(), ("-c", "fsync=off")], ids=["durable", "undurable"])
async def older(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of the oldest supported server of the machine."""
    with short_path() as folder:
        if not os.geteuid():
            os.chown(folder, unprivileged()["user"], unprivileged()["group"])
        run = {"cwd": folder, "env": {"LC_ALL": "C"}, "stdout": subprocess.DEVNULL, **unprivileged()}
        subprocess.run(
            [USABLE[0] / "initdb", "-D", folder / "data", "-U", "tocsin", "-E", "UTF8", "-A", "trust"],
            check=True,
            **run,
        )
        with subprocess.Popen(
            [USABLE[0] / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", *request.param],
            stderr=subprocess.DEVNULL,
            **run,
        ) as server:
            url = f"postgresql:///postgres?host={folder}&user=tocsin"
            await until_it_answers(url)
            yield url
            server.terminate()
            await asyncio.to_thread(server.wait, 20)


async def test_deep_checks_use_amcheck_if_it_is_installed(older: str) -> None:
    await migrate(older, accept_undurable=True)
    connection = await invariants.open_session(older, may_write=True)
    try:
        await connection.execute("create extension amcheck schema public")
        await connection.execute("insert into teams select n, 1, 'Team' from generate_series(1, 100) n")
        assert [found async for found in invariants.check_indexes(connection) if found] == []
        for statement in (
            "update pg_index set indisready = false where indexrelid = 'teams_pkey'::regclass",
            "insert into teams values (101, 1, 'Team')",
            "update pg_index set indisready = true where indexrelid = 'teams_pkey'::regclass",
        ):
            await connection.execute(statement)
        [found] = [found async for found in invariants.check_indexes(connection) if found]
        assert "teams_pkey" in found.what
        assert "lacks matching index tuple" in found.found[0]
        assert [found async for found in invariants.check_rows(connection) if found] == []
    finally:
        await connection.close()


async def until_it_answers(url: str) -> None:
    async with bounded():
        while True:
            try:
                return await (await connect(url)).close()
            except DRIVER_ERRORS:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("older", [()], indirect=True, ids=["durable"])
async def test_notifications_work_on_older_postgresql(older: str, catalogue: Catalogue) -> None:
    assert await migrate(older)
    async with serving(older, catalogue) as api:
        await api.people(1, 2, 4)
        await api.team(7, 1, 2, 4)
        first = await api.post(note(teams=(7,)))
        second = await api.post(custom(1))
        assert await api.ids(1) == [second, first]
        assert await api.ids(4) == []
        await api.as_user(1, "PUT", f"/notifications/{first}/read")
        assert await api.ids(1, "?show=unread") == [second]
        await api.as_user(1, "PUT", "/notifications/read")
        assert (await api.inbox(1))["pagination"]["unread"] == 0
        assert (await api.as_service("GET", f"/events/{first}")).json()["read"] == 1


@pytest.mark.parametrize("older", [("-c", "fsync=off")], indirect=True, ids=["undurable"])
async def test_server_without_fsync_is_rejected_unless_accepted(older: str) -> None:
    with pytest.raises(Refusal, match="fsync must be on"):
        await migrate(older)
    assert await migrate(older, accept_undurable=True)


@pytest.mark.parametrize("older", [()], indirect=True)
async def test_empty_table_is_analyzed_once_it_is_large(older: str) -> None:
    await migrate(older)
    connection = await connect(older)
    await connection.execute("vacuum tocsin.jobs")
    assert await correct_with(connection) == []
    await connection.execute(
        "insert into jobs (id, task, lane) select gen_random_uuid(), 'deliver', 'direct' from generate_series(1, 50000)"
    )
    assert await correct_with(connection) == ["jobs"]
    known = await connection.fetchval("select reltuples from pg_class where oid = 'tocsin.jobs'::regclass")
    assert known > 25_000
    assert await correct_with(connection) == []
    await connection.close()
