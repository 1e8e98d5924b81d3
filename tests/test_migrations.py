"""The migrations: all of them together are schema.sql, once, whoever runs them at the same time."""

import asyncio
import re
import subprocess
from pathlib import Path

import pytest

from conftest import url_for
from tocsin import migrate
from tocsin.database import connect
from tocsin.embedded import Embedded
from tocsin.errors import Refusal

SCHEMA = Path(__file__).parent.parent / "src/tocsin/schema.sql"


@pytest.fixture
async def empty(server: Embedded) -> str:
    connection = await connect(server.url)
    await connection.execute("drop database if exists empty with (force)")
    await connection.execute("create database empty")
    await connection.close()
    return url_for(server, "empty")


def dump(server: Embedded, url: str) -> str:
    """Return the schema as pg_dump writes it, without what differs from run to run."""
    command = [str(server.binaries / "bin/pg_dump"), "--schema-only", "--no-owner", "--schema=tocsin", url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line for line in text.splitlines() if not re.match(r"--|SET |SELECT pg_catalog|\\(un)?restrict", line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


async def test_all_migrations_together_are_the_schema_that_is_checked_in(
    server: Embedded, url: str, pytestconfig: pytest.Config
) -> None:
    found = dump(server, url)
    if pytestconfig.getoption("--write-schema"):
        SCHEMA.write_text(found, "utf-8")
    assert found == SCHEMA.read_text("utf-8")


async def test_steps_are_numbered_without_gaps() -> None:
    numbers = [step.number for step in migrate.steps()]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_processes_that_start_at_once_take_each_step_once(empty: str) -> None:
    taken = await asyncio.gather(*(migrate.migrate(empty) for _ in range(5)))
    assert sorted(step.number for steps in taken for step in steps) == [step.number for step in migrate.steps()]


async def test_a_schema_of_a_newer_release_is_accepted(empty: str) -> None:
    await migrate.migrate(empty)
    connection = await connect(empty)
    await connection.execute("insert into migrations (number, name) values (9999, 'of_next_year')")
    await connection.close()
    assert await migrate.migrate(empty) == []


async def test_a_step_that_fails_leaves_nothing_behind(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
async def test_a_database_that_is_not_durable_is_refused(empty: str, setting: str, said: str) -> None:
    connection = await connect(empty)
    await connection.execute(f"alter database empty set {setting} = off")
    await connection.close()
    with pytest.raises(Refusal, match=said):
        await migrate.migrate(empty)
