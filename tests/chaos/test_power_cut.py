"""What a 202 promised outlives a power cut, which throws away all that was not forced to the disk.

To kill processes proves nothing of the kind: what they wrote stays with the kernel. So the data folder is a file system
of its own, in a file, and is shut down under the running service as if its power were cut.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.disks import Disk, data_disk
from tests.support.ledger import Ledger, Load, Population, compare, compare_pages, drained
from tests.support.processes import Program, kill_postgres, random_source
from tests.support.properties import rounds
from tocsin.postgres.supervisor import url_of

ROUNDS = rounds(3, soak=20)


@pytest.fixture
async def disk() -> AsyncIterator[Disk]:
    async with data_disk() as disk:
        yield disk


async def test_accepted_events_survive_power_cuts(disk: Disk) -> None:
    dice = random_source()
    population, ledger = Population.of(dice), Ledger()
    async with Program(disk.folder, "serve") as service:
        await population.fill(url_of(disk.folder))
        async with Load(ledger, population, dice, lambda: service.address) as load:
            for _ in range(ROUNDS):
                await load.more(dice.randint(100, 1000))
                disk.cut()
                await asyncio.sleep(dice.uniform(0, 0.5))
                await service.kill()
                await kill_postgres(disk.folder)
                await disk.unmount()
                await disk.mount()
                assert disk.was_cut()
                await service.start()
            await load.more(100)
        await drained(url_of(disk.folder))
        await compare(ledger, population, url_of(disk.folder))
        await compare_pages(ledger, population, url_of(disk.folder), service.address)
        assert ledger.unsure
        assert "500" not in ledger.answers
