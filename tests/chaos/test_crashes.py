"""What a 202 promised is kept, whatever is killed: a worker, the service, or the database, at any moment."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from tests.support.ledger import Ledger, Load, Town, compare, compare_pages, drained
from tests.support.processes import Program, data_folder, holds_a_lease, kill_postgres, postgres_of, throw_dice
from tocsin.db.pool import connect
from tocsin.postgres.supervisor import url_of

pytestmark = pytest.mark.slow

ROUNDS = 5
MOMENTS = (0.2, 1.2)
"""Seconds between two kills."""


@pytest.fixture
async def data() -> AsyncIterator[Path]:
    async with data_folder() as path:
        yield path


@pytest.fixture
def dice() -> Random:
    return throw_dice()


async def leases_of(data: Path, worker: Program) -> int:
    """How many jobs a worker has, or has left behind."""
    connection = await connect(url_of(data))
    left: int = await connection.fetchval(
        "select count(*) from jobs where worker_id = $1::uuid", worker.greeting["worker"]
    )
    await connection.close()
    return left


async def test_killed_workers_lose_and_double_nothing(data: Path, dice: Random) -> None:
    town, ledger, left = Town.of(dice), Ledger(), 0
    async with (
        Program(data, "serve", "--no-worker") as service,
        Program(data, "worker") as one,
        Program(data, "worker") as other,
    ):
        await town.fill(url_of(data))
        async with Load(ledger, town, dice, lambda: service.address) as load:
            for _ in range(ROUNDS):
                await asyncio.sleep(dice.uniform(*MOMENTS))
                unlucky = dice.choice((one, other))
                await holds_a_lease(data, unlucky)
                await unlucky.kill()
                left += await leases_of(data, unlucky)
                await unlucky.start()
            await load.more(100)
        await drained(url_of(data))
        await compare(ledger, town, url_of(data))
        await compare_pages(ledger, town, url_of(data), service.address)
        assert left > 0, "no worker was killed at work"
        assert ledger.answers.keys() <= {"202", "204", "409"}


async def test_a_killed_service_keeps_its_word(data: Path, dice: Random) -> None:
    town, ledger = Town.of(dice), Ledger()
    async with Program(data, "serve") as service, Program(data, "worker") as worker:
        await town.fill(url_of(data))
        async with Load(ledger, town, dice, lambda: service.address) as load:
            for _ in range(ROUNDS):
                await load.more(dice.randint(1, 400))
                await service.kill()
                await service.start()
            await load.more(100)
        await drained(url_of(data))
        await compare(ledger, town, url_of(data))
        await compare_pages(ledger, town, url_of(data), service.address)
        assert ledger.unsure
        assert "500" not in ledger.answers
        assert worker.alive


async def test_a_killed_database_comes_back_with_all_that_was_accepted(data: Path, dice: Random) -> None:
    town, ledger = Town.of(dice), Ledger()
    async with Program(data, "serve") as service:
        await town.fill(url_of(data))
        async with Load(ledger, town, dice, lambda: service.address) as load:
            for _ in range(ROUNDS):
                await load.more(dice.randint(1, 400))
                before = set(postgres_of(data))
                await kill_postgres(data)
                await load.more(1)
                assert before
                assert before.isdisjoint(postgres_of(data))
            await load.more(100)
        await drained(url_of(data))
        await compare(ledger, town, url_of(data))
        await compare_pages(ledger, town, url_of(data), service.address)
        assert service.alive
        assert ledger.answers["503"]
        assert {"202", "503"} <= ledger.answers.keys() <= {"202", "204", "409", "503"}
