"""Accepted pushes survive killed workers: none is lost, few are sent twice, each is shown once."""

import asyncio
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from tests.support.ledger import drained
from tests.support.processes import Program, data_folder, holds_a_lease, random_source
from tests.support.properties import rounds
from tests.support.service import HOUR, SECRET
from tests.support.waiting import reaches
from tocsin.auth.minting import mint_service
from tocsin.db.pool import connect
from tocsin.postgres.supervisor import url_of
from tocsin_phones import Phones

PEOPLE = 400
KILLS = rounds(4, soak=30)


async def fill(url: str) -> None:
    """Create users with one iPhone each."""
    connection = await connect(url)
    await connection.execute(
        "insert into users select n, 1, 'First', 'Last', null, null, 'UTC' from generate_series(1, $1::int) n", PEOPLE
    )
    await connection.execute(
        "insert into heads (user_id, locale, active) select n, 'en', true from generate_series(1, $1::int) n", PEOPLE
    )
    await connection.execute(
        "insert into devices (token, user_id, type, provider, environment, app)"
        " select lpad(to_hex(n), 64, '0'), n, 'iOS', 'apns', 'production', 'default'"
        " from generate_series(1, $1::int) n",
        PEOPLE,
    )
    await connection.close()


async def post(service: Program, dice: Random, accepted: dict[str, list[int]]) -> None:
    """Post events to a few users each until cancelled, and record those answered with 202."""
    import httpx

    token = mint_service(SECRET, "crm", ["events:write"], HOUR)
    headers = {"Authorization": f"Bearer {token}"}
    host, port = service.address
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=headers, timeout=30) as http:
        while True:
            users = dice.sample(range(1, PEOPLE + 1), dice.choice((1, 1, 2, 20)))
            event: dict[str, Any] = {"type": "custom", "notify": {"users": users}, "params": {"body": "x"}}
            answer = await http.post("/events", json=event)
            if answer.status_code == 202:
                accepted[answer.json()["id"]] = users
            await asyncio.sleep(0.002)


async def test_killed_workers_lose_no_push_and_duplicate_few(tmp_path: Path) -> None:
    dice, accepted = random_source(), dict[str, list[int]]()
    async with data_folder() as data, Phones() as phones:
        variables = phones.credentials(tmp_path)
        async with (
            Program(data, "serve", "--no-worker") as service,
            Program(data, "worker", variables=variables) as one,
            Program(data, "worker", variables=variables) as other,
        ):
            await fill(url_of(data))
            under_way = 0
            posting = [asyncio.create_task(post(service, dice, accepted)) for _ in range(3)]
            for _ in range(KILLS):
                await asyncio.sleep(dice.uniform(0.3, 1.0))
                unlucky = dice.choice((one, other))
                await holds_a_lease(data, unlucky)
                await unlucky.kill()
                under_way += await leased(url_of(data), unlucky)
                await unlucky.start()
            await asyncio.sleep(0.5)
            for task in posting:
                task.cancel()
            await asyncio.gather(*posting, return_exceptions=True)
            await drained(url_of(data))
            await settled(url_of(data))
        due = Counter((id_, f"{user:064x}") for id_, users in accepted.items() for user in users)
        sent = Counter((push["id"], push["token"]) for push in phones.pushes("apns") if push["status"] == 200)
        collapsed = {push["headers"]["apns-collapse-id"] == push["id"] for push in phones.pushes("apns")}
    assert due.keys() - sent.keys() == set(), "pushes were lost"
    doubles = sum(count - 1 for key, count in sent.items() if key in due)
    assert doubles <= under_way, f"{doubles} were sent twice, of {under_way} that killed workers had under way"
    assert collapsed == {True}


async def leased(url: str, worker: Program) -> int:
    """Return the number of pushes that a killed worker had under way."""
    connection = await connect(url)
    statement = "select count(*) from deliveries where worker_id = $1::uuid"
    found: int = await connection.fetchval(statement, worker.greeting["worker"])
    await connection.close()
    return found


async def settled(url: str) -> None:
    """Return when no delivery waits."""
    connection = await connect(url)
    left = "select count(*) from deliveries where state in ('queued', 'later')"
    await reaches(lambda: connection.fetchval(left), 0)
    await connection.close()
