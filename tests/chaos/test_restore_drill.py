"""A restore drill: a backup under load, a power cut that takes the disk with it, and restores to other folders.

Restored to a moment at rest, the inboxes are exactly what clients were promised until then. Restored to the end of the
archive, nothing is missing that was accepted before its last segment, and every invariant of the database holds.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.backups import archived
from tests.support.database import value
from tests.support.disks import Disk, data_disk
from tests.support.ledger import Ledger, Load, Population, compare, compare_pages, drained
from tests.support.processes import TOCSIN, Program, kill_postgres, random_source
from tocsin import invariants
from tocsin.postgres.supervisor import url_of


@pytest.fixture
async def disk() -> AsyncIterator[Disk]:
    async with data_disk() as disk:
        yield disk


async def tocsin(place: Path, data: Path, *arguments: str | Path) -> None:
    """Run a command on a data folder, with the archive of this test."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("TOCSIN_")}
    command = await asyncio.create_subprocess_exec(
        *(TOCSIN, *arguments),
        env={**own, "TOCSIN_DATA_DIR": str(data), "TOCSIN_ARCHIVE_DIR": str(place / "archive")},
        cwd=place,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await command.communicate()
    assert command.returncode == 0, said.decode()


@asynccontextmanager
async def restored(place: Path, name: str, *options: str) -> AsyncIterator[Program]:
    """Restore the newest fitting backup into a new data folder, and serve it."""
    data = place / name
    try:
        await tocsin(place, data, "restore", place / "backups", *options)
        async with Program(data, "serve") as service:
            await drained(url_of(data))
            yield service
    finally:
        await kill_postgres(data)


async def violations(data: Path) -> list[str]:
    connection = await invariants.open_session(url_of(data))
    found = [str(violation) async for violation in invariants.check_rows(connection) if violation]
    found += [str(violation) async for violation in invariants.check_indexes(connection) if violation]
    await connection.close()
    return found


async def under_load(disk: Disk, ledger: Ledger, later: Ledger, population: Population) -> tuple[datetime, set[str]]:
    """Back up under load, and lose the disk under more. Return a moment between, and what was archived after it."""
    place, url, dice = disk.folder.parent, url_of(disk.folder), random_source()
    archive = {"TOCSIN_ARCHIVE_DIR": str(place / "archive")}
    async with Program(disk.folder, "serve", variables=archive) as service:
        await population.fill(url)
        async with Load(ledger, population, dice, lambda: service.address) as load:
            await load.more(200)
            await tocsin(place, disk.folder, "backup", place / "backups")
            await load.more(200)
            assert await violations(disk.folder) == []  # beside the load
        await drained(url)
        moment: datetime = await value(url, "select clock_timestamp()")
        async with Load(later, population, dice, lambda: service.address) as load:
            await load.more(200)
            certain = set(later.accepted)
            await archived(url)
            await load.more(100)
            disk.cut()
            await service.kill()
            await kill_postgres(disk.folder)
    return moment, certain


async def test_what_was_accepted_before_the_last_archived_segment_is_restored(disk: Disk) -> None:
    place, population = disk.folder.parent, Population.of(random_source())
    ledger, later = Ledger(), Ledger()
    moment, certain = await under_load(disk, ledger, later, population)
    async with restored(place, "second", "--to-time", moment.isoformat(" ")) as service:
        url = url_of(service.data)
        await compare(ledger, population, url)
        await compare_pages(ledger, population, url, service.address)
        assert await violations(service.data) == []
    async with restored(place, "third") as service:
        stored = set(await value(url_of(service.data), "select array_agg(id::text) from events"))
        assert certain
        assert ledger.accepted.keys() | certain <= stored
        assert await violations(service.data) == []
