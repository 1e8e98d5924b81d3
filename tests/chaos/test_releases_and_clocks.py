"""Rolling restarts under load, clocks that are wrong, and events that cannot be delivered."""

import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from tests.support.chaos import TIME_UNDER_WAY, ChaosRun, scenario
from tests.support.clusters import embedded_cluster
from tests.support.database import value
from tests.support.processes import Program, data_folder
from tests.support.service import HOUR, SECRET
from tests.support.waiting import reaches
from tocsin.auth.minting import mint_service
from tocsin.postgres.supervisor import Embedded

LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
WITHOUT_PARAMETERS = {"overdue_task"}
"""Kinds whose text is the same for every event, so that nothing can damage it."""

SAMPLES = Path(__file__).parents[2] / "src/tocsin/catalogue/samples.json"


@scenario(
    "rolling-restart",
    "two API processes and two workers restarted in turns",
    long=True,
    nothing_waits="the other API process and the other worker do the work meanwhile",
)
async def test_a_rolling_restart_loses_nothing(run: ChaosRun) -> None:
    async with data_folder() as data, Embedded(data) as server, AsyncExitStack() as stack:
        variables = {**run.variables, "TOCSIN_DATABASE_URL": server.url}
        kinds = (("serve", "--no-worker"), ("serve", "--no-worker"), ("worker",), ("worker",))
        programs = [Program(data, *arguments, variables=variables) for arguments in kinds]
        for program in programs:
            await stack.enter_async_context(program)
        open_ones = list(programs[:2])
        run.phones.answer("apns", after_ms=TIME_UNDER_WAY)
        async with run.under_load(server.url, lambda: run.dice.choice(open_ones).address):
            async for number in run.rounds(len(programs)):
                program = programs[number % len(programs)]
                async with run.failure():
                    if program in open_ones:
                        open_ones.remove(program)
                    await program.stop()
                    await program.start()
                    if program in programs[:2]:
                        open_ones.append(program)


@scenario(
    "clock",
    "clock of all processes an hour ahead, and back",
    long=True,
    nothing_waits="all due times are those of the clock of the database",
)
async def test_a_clock_that_jumps_ahead_and_back_loses_nothing(run: ChaosRun, tmp_path: Path) -> None:
    if LIBRARY is None:
        pytest.skip("there is no libfaketime")
    clock = tmp_path / "clock"
    clock.write_text("+0", "utf-8")
    variables = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    async with embedded_cluster(run, variables) as cluster:
        async for _ in run.rounds(1):
            async with run.failure():
                clock.write_text("+3600", "utf-8")
                await run.load.more(150)
                await cluster.doctor_shows("the database's clock differs by -3600")
                clock.write_text("+0", "utf-8")


@scenario(
    "poison",
    "events of each kind whose stored parameters are damaged",
    long=True,
    nothing_waits="they fail at once, and are listed as dead letters with their reasons",
)
async def test_damaged_events_become_dead_letters_and_delay_no_others(run: ChaosRun) -> None:
    token = mint_service(SECRET, "poison", ["events:write"], HOUR)
    async with embedded_cluster(run) as cluster:
        async for _ in run.rounds(1):
            async with run.failure():
                ids = [await _damaged(cluster.url, cluster.service, token, sample) for sample in _samples()]
                dead = "select count(*) from dead_letters where id = any($1::uuid[])"
                await reaches(lambda: value(cluster.url, dead, ids), len(ids))  # noqa: B023 - called at once
                await cluster.doctor_shows(f"{len(ids)} failed")
                assert set(ids) <= await _listed_with_reason(cluster.service)
            for table in ("dead_letters", "events"):
                await value(cluster.url, f"delete from {table} where id = any($1::uuid[])", ids)


def _samples() -> list[dict[str, object]]:
    by_kind = {sample["event"]["type"]: sample["event"] for sample in json.loads(SAMPLES.read_text("utf-8"))}
    return [event for kind, event in by_kind.items() if kind not in WITHOUT_PARAMETERS]


async def _listed_with_reason(service: Program) -> set[str]:
    """Return the dead letters that the console lists, and why."""
    host, port = service.address
    headers = {"Authorization": f"Bearer {mint_service(SECRET, 'operator', ['operations'], HOUR)}"}
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30, headers=headers) as http:
        found = (await http.get("/operations/dead-letters?limit=1000")).json()["data"]
    return {letter["event_id"] for letter in found if letter["reason"]}


async def _damaged(url: str, service: Program, token: str, event: dict[str, object]) -> str:
    """Post an event for later, damage it, make it due, and return its id."""
    host, port = service.address
    body = {**event, "notify": {"users": [7]}, "deliver_at": (datetime.now(UTC) + HOUR).isoformat()}
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30) as http:
        answer = await http.post("/events", json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 202, answer.text
    id_: str = answer.json()["id"]
    await value(url, "update events set params = $2, data = $2 where id = $1", id_, '{"damaged": true}')
    await value(url, "update jobs set due_at = now() where id = $1", id_)
    return id_
