"""Accepted events survive killed workers, services and databases."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from tests.support.ledger import Ledger, Load, Population, compare, compare_pages, drained
from tests.support.processes import Program, data_folder, holds_a_lease, kill_postgres, postgres_of, random_source
from tests.support.properties import rounds
from tests.support.servers import answers
from tocsin.db.pool import connect
from tocsin.postgres.supervisor import url_of

ROUNDS = rounds(3, soak=30)
VICTIMS = ("worker", "service", "database")
MOMENTS = (0.2, 1.2)
"""Seconds between two kills."""


@pytest.fixture
async def data() -> AsyncIterator[Path]:
    async with data_folder() as path:
        yield path


@pytest.fixture
def dice() -> Random:
    return random_source()


async def leases_of(data: Path, worker: Program) -> int:
    """The number of jobs that a worker holds or has left."""
    connection = await connect(url_of(data))
    left: int = await connection.fetchval(
        "select count(*) from jobs where worker_id = $1::uuid", worker.greeting["worker"]
    )
    await connection.close()
    return left


async def kill_a_worker(data: Path, worker: Program) -> int:
    """Kill a worker that holds jobs, and return their number."""
    await holds_a_lease(data, worker)
    await worker.kill()
    left = await leases_of(data, worker)
    await worker.start()
    return left


async def kill_the_service(load: Load, service: Program, dice: Random) -> None:
    await load.more(dice.randint(1, 400))
    await service.kill()
    await service.start()


async def kill_the_database(data: Path, load: Load, dice: Random) -> None:
    await load.more(dice.randint(1, 400))
    before = set(postgres_of(data))
    await kill_postgres(data)
    await load.more(1)
    await answers(url_of(data))
    assert before
    assert before.isdisjoint(postgres_of(data))


async def test_crashes_lose_and_duplicate_no_notification(data: Path, dice: Random) -> None:
    population, ledger, left = Population.of(dice), Ledger(), 0
    async with (
        Program(data, "serve", "--no-worker") as service,
        Program(data, "worker") as one,
        Program(data, "worker") as other,
    ):
        await population.fill(url_of(data))
        async with Load(ledger, population, dice, lambda: service.address) as load:
            for victim in dice.sample(VICTIMS * ROUNDS, len(VICTIMS) * ROUNDS):
                await asyncio.sleep(dice.uniform(*MOMENTS))
                match victim:
                    case "worker":
                        left += await kill_a_worker(data, dice.choice((one, other)))
                    case "service":
                        await kill_the_service(load, service, dice)
                    case _:
                        await kill_the_database(data, load, dice)
                        assert service.alive
                        assert one.alive
                        assert other.alive
            await load.more(100)
        await drained(url_of(data))
        await compare(ledger, population, url_of(data))
        await compare_pages(ledger, population, url_of(data), service.address)
        logged = "".join(path.read_text("utf-8", "replace") for path in data.rglob("*.log"))
    assert left > 0, "no worker was killed at work"
    assert ledger.unsure
    assert {"202", "503"} <= {answer for answer in ledger.answers if answer.isdigit()} <= {"202", "204", "409", "503"}
    assert logged
    assert "deadlock detected" not in logged
