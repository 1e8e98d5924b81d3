"""A rolling upgrade from the previous release, under load."""

import asyncio
import io
import os
import subprocess
import sys
import tarfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.chaos import TIME_UNDER_WAY, ChaosRun, scenario
from tests.support.processes import Program, data_folder
from tocsin.db.migrate import migrate
from tocsin.postgres.supervisor import Embedded

ROOT = Path(__file__).parents[2]
PREVIOUS = "1ac06c7548e91c51d2becbdc33504311b29c2cb7"
"""The commit of the previous release: it lacks migrations, and its dependencies are those of today."""

COMMAND = (sys.executable, "-m", "tocsin")

KINDS = (("serve", "--no-worker"), ("serve", "--no-worker"), ("worker",), ("worker",))


@scenario(
    "rolling-upgrade",
    "two API processes and two workers of the previous release upgraded in turns",
    long=True,
    nothing_waits="each process of the new release works before one of the previous release ends",
)
async def test_a_rolling_upgrade_loses_nothing(run: ChaosRun, tmp_path: Path) -> None:
    source = await asyncio.to_thread(previous_release, tmp_path)
    old = {"PYTHONPATH": str(source / "src")}
    async with data_folder() as data, Embedded(data) as server, AsyncExitStack() as stack:
        variables = {**run.variables, "TOCSIN_DATABASE_URL": server.url}

        async def started(*arguments: str, **more: str) -> Program:
            program = Program(data, *arguments, variables={**variables, **more}, command=COMMAND)
            return await stack.enter_async_context(program)

        await migrate_by(old, server.url)
        programs = [await started(*arguments, **old) for arguments in KINDS]
        open_ones = programs[:2]
        run.phones.answer("apns", after_ms=TIME_UNDER_WAY)
        async with run.under_load(server.url, lambda: run.dice.choice(open_ones).address):
            assert await migrate(server.url), "the previous release lacks no migration"
            await run.load.more(100)
            for number, arguments in enumerate(KINDS):
                async with run.failure():
                    following = await started(*arguments)
                    if number < len(open_ones):
                        open_ones[number] = following
                        await programs[number].stop()
                    else:
                        await run.stop_worker(programs[number])


def previous_release(folder: Path) -> Path:
    """Write the source of the previous release into a folder."""
    got = subprocess.run(["git", "-C", ROOT, "archive", PREVIOUS, "src"], capture_output=True, check=False)
    if got.returncode:
        pytest.skip("the clone has no history")
    with tarfile.open(fileobj=io.BytesIO(got.stdout)) as archive:
        archive.extractall(folder)  # noqa: S202 - git made it
    return folder


async def migrate_by(release: dict[str, str], url: str) -> None:
    """Migrate a database by the command of a release."""
    environment = {**os.environ, **release, "TOCSIN_DATABASE_URL": url}
    migrating = await asyncio.create_subprocess_exec(*COMMAND, "migrate", env=environment)
    assert await migrating.wait() == 0
