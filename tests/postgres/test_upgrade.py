"""A data folder of PostgreSQL 16 is upgraded with all its rows, and stays as it was if any step fails."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.backups import noted, nothing
from tests.support.commands import TOCSIN, refusal
from tests.support.commands import run as run_command
from tests.support.database import value
from tests.support.places import short_path
from tests.support.processes import postgres_of
from tests.support.waiting import until
from tocsin.db.migrate import migrate
from tocsin.errors import Refusal
from tocsin.invariants import check_indexes, open_session
from tocsin.postgres import upgrade as module
from tocsin.postgres.binaries import programs_for
from tocsin.postgres.data_dir import claim
from tocsin.postgres.process import end, run, this_user
from tocsin.postgres.supervisor import Embedded, launch
from tocsin.postgres.upgrade import upgrade

pytestmark = pytest.mark.processes

CONFIGURATION = """\
listen_addresses = ''
unix_socket_directories = '{run}'
log_directory = '{log}'
logging_collector = on
shared_buffers = 16MB
"""
"""What a release with PostgreSQL 16 would have written."""


async def make(data: Path) -> None:
    """Make a data folder as a release with PostgreSQL 16 would have left it."""
    user, lock = await claim(data)
    programs, database = await programs_for(user, data, "16"), data / "postgres"
    for folder in (data / "run", data / "log"):
        folder.mkdir()
        shutil.chown(folder, user.pw_uid, user.pw_gid)
        folder.chmod(0o700)
    database.mkdir()
    shutil.chown(database, user.pw_uid, user.pw_gid)
    options = ("--username", "tocsin", "--encoding", "UTF8", "--data-checksums", "--locale", "C", "--auth", "peer")
    assert (await run((programs / "initdb", *options, "-D", database), user))[0] == 0
    (database / "postgresql.conf").write_text(CONFIGURATION.format(run=data / "run", log=data / "log"))
    (database / "pg_hba.conf").write_text("local all tocsin peer map=tocsin\n")
    (database / "pg_ident.conf").write_text(f'tocsin "{this_user().pw_name}" tocsin\n')
    single = (programs / "postgres", "--single", "-D", database, "postgres")
    assert (await run(single, user, b"create database tocsin;\n"))[0] == 0
    launched = await launch(programs, data, database, user)
    await launched.answers()
    await migrate(launched.url)
    await value(launched.url, "create table noted as select n as number from generate_series(1, 1000) n")
    await end(launched.process)
    os.close(lock)


@pytest.fixture(scope="module")
async def made() -> AsyncIterator[Path]:
    with short_path() as place:
        await make(place / "data")
        yield place / "data"


@pytest.fixture
def older(made: Path, place: Path) -> Path:
    """A copy of a data folder of PostgreSQL 16."""
    subprocess.run(["cp", "-a", made, place], check=True)
    conf = place / "data/postgres/postgresql.conf"
    conf.write_text(CONFIGURATION.format(run=place / "data/run", log=place / "data/log"))
    return place / "data"


async def is_usable(data: Path) -> bool:
    """Whether the folder has its database of PostgreSQL 16 with all rows, and nothing of an upgrade."""
    user, lock = await claim(data, to_upgrade=True)
    launched = await launch(await programs_for(user, data, "16"), data, data / "postgres", user)
    await launched.answers()
    rows = await noted(launched.url)
    await end(launched.process)
    os.close(lock)
    left = [path.name for path in data.glob("postgres*")]
    return len(rows) == 1000 and left == ["postgres"] and (data / "postgres/PG_VERSION").read_text() == "16\n"


async def test_older_database_is_refused_with_the_command_that_upgrades_it(older: Path) -> None:
    with pytest.raises(Refusal, match=r"was made by PostgreSQL 16, .* back it up and run `tocsin upgrade`"):
        await Embedded(older).start()
    assert await is_usable(older)


async def test_older_database_is_upgraded_with_all_rows_and_kept(older: Path) -> None:
    done = run_command("upgrade", cwd=older.parent, TOCSIN_DATA_DIR=str(older))
    assert done.returncode == 0, done.stderr
    assert (older / "postgres.16/PG_VERSION").read_text() == "16\n"
    async with Embedded(older) as server:
        assert await value(server.url, "show server_version_num") >= "180000"
        assert await noted(server.url) == list(range(1, 1001))
        assert await value(server.url, "show data_checksums") == "on"
        connection = await open_session(server.url)
        assert [found async for found in check_indexes(connection) if found] == []
        await connection.close()
    assert "is of PostgreSQL 18 already" in refusal("upgrade", cwd=older.parent, TOCSIN_DATA_DIR=str(older))


async def test_database_whose_server_was_killed_is_recovered_first(older: Path) -> None:
    user, lock = await claim(older, to_upgrade=True)
    launched = await launch(await programs_for(user, older, "16"), older, older / "postgres", user)
    await launched.answers()
    await value(launched.url, "insert into noted values (1001)")
    launched.process.kill()
    launched.process.wait()
    os.close(lock)
    await upgrade(older, nothing)
    async with Embedded(older) as server:
        assert await noted(server.url) == list(range(1, 1002))


@pytest.mark.parametrize("step", ["_upgraded", "_put_in_place", "_start"])
async def test_failure_of_a_step_leaves_the_old_database(
    older: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(module, step)

    def fail(*arguments: object) -> object:
        if step == "_put_in_place":
            whole(*arguments)
        raise OSError(step)

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(OSError, match=step):
        await upgrade(older, nothing)
    assert await is_usable(older)


async def test_upgraded_server_that_is_not_confirmed_is_given_up(older: Path) -> None:
    async def refuse(url: str) -> None:
        assert len(await noted(url)) == 1000
        raise Refusal("not confirmed")

    with pytest.raises(Refusal, match="not confirmed"):
        await upgrade(older, refuse)
    assert await is_usable(older)


async def test_failing_pg_upgrade_leaves_the_old_database(older: Path) -> None:
    (older / "postgres/global/pg_filenode.map").rename(older / "map")
    with pytest.raises(Refusal, match="the old database is as before: "):
        await upgrade(older, nothing)
    (older / "map").rename(older / "postgres/global/pg_filenode.map")
    assert await is_usable(older)


async def test_upgrade_that_is_killed_leaves_the_old_database_and_no_server(older: Path) -> None:
    command = await asyncio.create_subprocess_exec(
        TOCSIN, "upgrade", env={"TOCSIN_DATA_DIR": str(older)}, cwd=older.parent, stderr=asyncio.subprocess.DEVNULL
    )
    await until(lambda: any(path.name == "pg_upgrade_output.d" for path in older.glob("postgres.new-*/*")))
    command.send_signal(signal.SIGKILL)
    await command.wait()
    with pytest.raises(Refusal, match="run `tocsin upgrade`"):
        await Embedded(older).start()
    await upgrade(older, nothing)
    assert {path.name for path in older.glob("postgres*")} == {"postgres", "postgres.16"}
    await until(lambda: postgres_of(older) == [])
    async with Embedded(older) as server:
        assert len(await noted(server.url)) == 1000


@pytest.mark.parametrize("is_swapped", [False, True])
async def test_interrupted_upgrade_is_undone_at_the_next_start(older: Path, is_swapped: bool) -> None:  # noqa: FBT001 - a parameter
    (older / "postgres").rename(older / "postgres.before-upgrade")
    if is_swapped:
        (older / "postgres").mkdir()
    with pytest.raises(Refusal, match="run `tocsin upgrade`"):
        await Embedded(older).start()
    assert (older / "postgres/PG_VERSION").read_text() == "16\n"
    await upgrade(older, nothing)
    assert {path.name for path in older.glob("postgres*")} == {"postgres", "postgres.16"}
