"""Commands that run at the same time, without a service."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.support.commands import TOCSIN, run
from tests.support.database import value
from tests.support.processes import postgres_of
from tests.support.waiting import bounded, until
from tocsin.postgres.supervisor import is_served, url_of

pytestmark = pytest.mark.processes


async def imports_in(data: Path, count: int) -> None:
    """Wait until so many imports are read."""
    while await value(url_of(data), "select count(*) from tocsin.imports") != count:
        await asyncio.sleep(0.05)


async def test_server_of_a_command_runs_until_other_commands_have_ended(place: Path) -> None:
    data = place / "data"

    async def start() -> asyncio.subprocess.Process:
        streams = {"stdin": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
        environment = {"TOCSIN_DATA_DIR": str(data)}
        return await asyncio.create_subprocess_exec(TOCSIN, "import", "-", env=environment, cwd=place, **streams)  # type: ignore[arg-type]

    async with bounded():
        first = await start()
        assert first.stderr
        while b"the schema is up to date" not in await first.stderr.readline():
            pass
        await imports_in(data, 1)
        second = await start()
        await imports_in(data, 2)
        assert first.stdin
        first.stdin.close()
        while b"waiting for the end of other commands" not in await first.stderr.readline():
            pass
        _, said = await second.communicate(b'{"user": {"id": 1, "first_name": "A", "last_name": "B"}}\n')
        assert second.returncode == 0, said
        assert await first.wait() == 0
    assert not is_served(data)


@pytest.mark.parametrize("command", [("export", "lines"), ("backup", "--stdout")], ids=" ".join)
async def test_signal_ends_a_command_whose_output_is_not_read(place: Path, command: tuple[str, ...]) -> None:
    os.mkfifo(place / "lines")
    environment = {"TOCSIN_DATA_DIR": str(place / "data")}
    assert run("migrate", cwd=place, **environment).returncode == 0
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        TOCSIN, *command, env=environment, cwd=place, stdout=writing, stderr=asyncio.subprocess.DEVNULL
    )
    os.close(writing)
    await asyncio.sleep(5)
    assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    async with bounded():
        assert await process.wait() in {-signal.SIGTERM, -signal.SIGALRM}
    os.close(reading)
    await until(lambda: postgres_of(place / "data") == [])
