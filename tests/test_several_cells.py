"""One process that serves several cells: two schemas of one server, and a second server that goes away."""

import asyncio
import json
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from asyncpg import UndefinedTableError

from tests.support.answers import field_errors
from tests.support.built_in import CATALOGUE
from tests.support.database import blocked, locked, make_database, url_for, value
from tests.support.events import custom, in_future
from tests.support.processes import Program, children_of
from tests.support.second_cell import routing_of
from tests.support.servers import OwnServer, own_server
from tests.support.service import HOUR, SECRET, Api
from tests.support.streams import watching
from tests.support.waiting import reaches, until
from tocsin import directory, jobs, moving
from tocsin.api.cell_lookups import WATCH_INTERVAL
from tocsin.api.cell_readiness import ReadinessOfCells
from tocsin.api.drafts import draft_of
from tocsin.auth.minting import mint_service, mint_user
from tocsin.db.connections import connect
from tocsin.db.migrate import migrate
from tocsin.db.pool import Database
from tocsin.db.url import in_schema
from tocsin.disk_guard import DiskGuard
from tocsin.errors import Unavailable
from tocsin.events import Intake
from tocsin.formats import User
from tocsin.ids import new_id
from tocsin.metrics import Metrics
from tocsin.moving import CONNECTIONS
from tocsin.postgres.supervisor import Embedded
from tocsin.pubsub import PubSub
from tocsin.store import API_STATEMENT_TIMEOUT, pool

T = TypeVar("T")

MAIN, NORTH, SOUTH = 1, 2, 3
"""A company of each cell, and a user with the same id."""


@dataclass
class Service:
    """A service of several cells as clients see it, and the urls of its cells."""

    http: httpx.AsyncClient
    urls: dict[int, str]

    async def as_user(self, user: int, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {mint_user(SECRET, user, HOUR)}", **more.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **more)

    async def as_service(
        self, method: str, path: str, *, company_id: int | None = None, scopes: tuple[str, ...] = (), **more: Any
    ) -> httpx.Response:
        token = mint_service(SECRET, "crm", scopes or ("events:write", "directory:write"), HOUR, company_id)
        headers = {"Authorization": f"Bearer {token}", **more.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **more)

    async def put(self, user: int, company_id: int | None = None) -> httpx.Response:
        body = {"first_name": "A", "last_name": "B", "company_id": company_id or user}
        return await self.as_service("PUT", f"/directory/users/{user}", json=body)

    async def total(self, user: int) -> int:
        answer = await self.as_user(user, "GET", "/notifications")
        assert answer.status_code == 200, answer.text
        total: int = answer.json()["pagination"]["total"]
        return total

    async def status(self, user: int) -> int:
        return (await self.as_user(user, "GET", "/notifications")).status_code

    async def problems(self) -> list[str]:
        answer = await self.http.get("/readyz")
        assert answer.status_code == 200, answer.text
        found: list[str] = answer.json()["problems"]
        return [problem for problem in found if problem.startswith("cell")]


@dataclass
class WithSouth(Service):
    """A process that serves three cells; `south` is on a server of its own."""

    south: OwnServer


def serving_cells(folder: Path, url: str, *command: str, **more: str) -> Program:
    """Return `tocsin serve`, or another command, with the cells of a file in the folder."""
    variables = {
        "TOCSIN_DATABASE_URL": url,
        "TOCSIN_DATABASE_DURABLE": "yes",
        "TOCSIN_JWT_SECRET": SECRET,
        "TOCSIN_CELLS_FILE": str(folder / "cells.toml"),
        **more,
    }
    return Program(folder / "data", *(command or ("serve",)), variables=variables)


@pytest.fixture
async def service(request: pytest.FixtureRequest, server: Embedded, tmp_path: Path) -> AsyncIterator[WithSouth]:
    """The parameter, if there is one, are further settings."""
    here = await make_database(server, f"cells_{tmp_path.name[-20:].replace('-', '_')}".lower())
    async with AsyncExitStack() as stack:
        south = await stack.enter_async_context(own_server())
        there = south.url("dba", await south.fresh("south"))
        (tmp_path / "cells.toml").write_text(
            f"[main]\ndefault = true\n\n[north]\nschema = 'tocsin_north'\ncompanies = [{NORTH}]\n\n"
            f"[south]\nurl = {json.dumps(there)}\ncompanies = [{SOUTH}]\n"
        )
        program = await stack.enter_async_context(serving_cells(tmp_path, here, **getattr(request, "param", {})))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=program.greeting["url"], timeout=60))
        urls = {MAIN: here, NORTH: in_schema(here, "tocsin_north"), SOUTH: there}
        found = WithSouth(http, urls, south)
        await reaches(found.problems, [])
        yield found


async def test_each_company_is_served_from_its_own_cell(service: WithSouth) -> None:
    for user in (MAIN, NORTH, SOUTH):
        assert (await service.put(user)).status_code == 204
        answer = await service.as_service("POST", "/events", json=custom(user))
        assert answer.status_code == 202, answer.text
        found = await service.as_service("GET", f"/events/{answer.json()['id']}?wait=30")
        assert found.json()["state"] == "delivered"
        assert await service.total(user) == 1
        assert await value(service.urls[user], "select count(*) from users") == 1
    batch = {"events": [custom(NORTH), custom(NORTH)]}
    headers = {"Idempotency-Key": "twice"}
    for _ in range(2):
        assert (await service.as_service("POST", "/events/batch", json=batch, headers=headers)).status_code == 202
    await reaches(partial(service.total, NORTH), 3)
    own = await service.as_service("POST", "/events", json=custom(SOUTH), company_id=SOUTH)
    assert own.status_code == 202
    await reaches(partial(service.total, SOUTH), 2)
    foreign = await service.as_service("POST", "/events", json=custom(SOUTH), company_id=NORTH)
    assert foreign.status_code == 422


async def test_what_would_be_in_several_cells_is_refused(service: WithSouth) -> None:
    for user in (MAIN, NORTH):
        assert (await service.put(user)).status_code == 204
    for body, path in ((custom(MAIN, NORTH), "/events"), ({"events": [custom(MAIN), custom(NORTH)]}, "/events/batch")):
        answer = await service.as_service("POST", path, json=body)
        assert answer.status_code == 422
        assert "recipients of the cells main and north, which cannot accept an event together" in answer.text
    moved = await service.put(NORTH, MAIN)
    assert moved.status_code == 422
    assert "another cell" in moved.text
    for method, path in (("GET", "/directory/users"), ("DELETE", "/events/by-key/k")):
        answer = await service.as_service(method, path)
        assert answer.status_code == 422, path
        assert "cell" in answer.text
    for method, path, field in (("PUT", "/directory/users/x", "id"), ("POST", "/events/batch", "events")):
        answer = await service.as_service(method, path, json={"name": "x"})
        assert answer.status_code == 422, path
        assert field in {each["field"] for each in answer.json()["errors"]}, answer.text
    users = await service.as_service("GET", "/directory/users?cell=north")
    assert [each["id"] for each in users.json()["data"]] == [NORTH]
    unknown = await service.as_service("GET", "/directory/users?cell=west")
    assert "must be one of main, north, south" in unknown.text
    assert (await service.as_service("GET", f"/directory/users/{NORTH}")).json()["company_id"] == NORTH
    assert (await service.as_service("GET", "/directory/users/77")).status_code == 404
    assert (await service.as_user(77, "GET", "/notifications")).status_code == 401


async def test_service_of_a_company_takes_no_user_or_team_of_another_cell(service: WithSouth) -> None:
    assert (await service.put(NORTH)).status_code == 204
    user, team = {"first_name": "A", "last_name": "B"}, {"name": "x"}
    theirs = await service.as_service("PUT", "/directory/teams/7", json={**team, "users": [NORTH]}, company_id=NORTH)
    assert theirs.status_code == 204
    for path, body in ((f"/directory/users/{NORTH}", user), ("/directory/teams/7", team)):
        taken = await service.as_service("PUT", path, json=body, company_id=MAIN)
        assert taken.status_code == 404, path
    lines = [{"user": {"id": 8, **user}}, {"user": {"id": NORTH, **user}}, {"team": {"id": 7, **team}}]
    text, headers = "\n".join(map(json.dumps, lines)), {"Content-Type": "application/x-ndjson"}
    for code, more in (("unknown", {"company_id": MAIN}), ("prohibited", {"params": {"cell": "main"}})):
        imported = await service.as_service("POST", "/directory/import", content=text, headers=headers, **more)
        assert field_errors(imported) == [("lines.2.user.id", code), ("lines.3.team.id", code)]
    assert await value(service.urls[MAIN], "select count(*) from users") == 0
    posted = await service.as_service("POST", "/events", json=custom(teams=(7,)))
    assert posted.status_code == 202, posted.text
    await reaches(partial(service.total, NORTH), 1)


async def test_id_that_is_no_number_finds_no_cell(service: WithSouth) -> None:
    for text, path in (("²", "/directory/users/²"), ("9" * 5_000, "/directory/users")):
        answer = await service.as_service("GET", path, params={"company_id": text})
        assert answer.status_code in {404, 422}, answer.text


async def test_erased_user_can_come_to_a_company_in_another_cell(service: WithSouth) -> None:
    assert (await service.put(50, MAIN)).status_code == 204
    assert await service.status(50) == 200
    assert (await service.as_service("DELETE", "/directory/users/50")).status_code == 204
    assert await service.status(50) == 401
    assert (await service.put(50, NORTH)).status_code == 204
    assert await service.status(50) == 200
    assert (await service.as_service("POST", "/events", json=custom(50))).status_code == 202


async def test_users_stay_remembered_when_a_cell_opens(idle: Api) -> None:
    await idle.people(1)
    routing = routing_of(idle.app_state, idle.app_state)
    key = ("users", 1)
    assert len(await routing._cells_of([key])) == 1  # noqa: SLF001 - what is remembered is not seen from outside
    for name in routing.names:
        await routing.look(name)
    assert key in routing._remembered  # noqa: SLF001


async def test_users_of_a_company_that_is_copied_are_found_by_few_statements(
    idle: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in both cells."""
    await idle.people(*range(1, 1001))
    await idle.team(7, 1)
    await idle.app_state.database.rows(
        "insert into moves (company_id, turn, state, other) values (1, 1, 'copying', 'first')"
    )
    routing = routing_of(idle.app_state, idle.app_state)
    for name in routing.names:
        await routing.look(name)
    asked, rows = list[str](), Database.rows

    async def counting(self: Database, statement: str, *arguments: Any) -> list[Any]:
        asked.append(statement)
        return await rows(self, statement, *arguments)

    monkeypatch.setattr(Database, "rows", counting)
    keys = [*(("users", id_) for id_ in range(1, 1002)), ("teams", 7)]
    assert await routing._cells_of(keys) == {"second"}  # noqa: SLF001 - statements are not seen from outside
    assert len(asked) < 10


async def test_document_offers_the_cells_to_services(service: WithSouth) -> None:
    document = (await service.http.get("/openapi.json")).json()
    offering = {
        operation["operationId"]: each["schema"]["enum"]
        for path in document["paths"].values()
        for operation in path.values()
        for each in operation.get("parameters", ())
        if each["name"] == "cell"
    }
    assert {"list_users", "post_event", "list_lanes", "resolve_subject"} <= offering.keys()
    assert offering["list_users"] == ["main", "north", "south"]
    assert not {"list_notifications", "register_device", "metrics"} & offering.keys()


async def test_metrics_and_readiness_count_what_waits_in_all_cells(idle: Api) -> None:
    idle.app_state.intake.at_once = None
    await idle.people(1)
    for _ in range(2):
        assert (await idle.as_service("POST", "/events", json=custom(1))).status_code == 202
    here = idle.app_state.database
    metrics, away = Metrics(), Database("postgresql://127.0.0.1:1/x", 1)
    metrics.databases_of_cells = lambda: {"main": here, "north": here, "away": away}
    assert 'tocsin_jobs_due{lane="direct"} 4.0' in (await metrics.text(here)).decode()
    assert (await metrics.waiting(here)).direct == 4
    routing = routing_of(idle.app_state, idle.app_state)
    idle.app_state.capacity.refuse("GET /notifications")
    ready = await ReadinessOfCells(routing.cells, routing.states).answer()
    assert ready["queue"]["direct"]["due"] == 4
    assert ready["queue"]["bulk"] == {"due": 0, "oldest": 0.0, "stalled": False}
    assert ready["pushes"] == {"oldest": 0.0, "stalled": False}
    names = " and ".join(routing.states)
    assert [each for each in ready["problems"] if "refused" in each] == [
        f"cells {names}: requests are refused: more arrive than can be processed"
    ]
    alone = Metrics()
    alone.databases_of_cells = lambda: {"away": away}
    with pytest.raises(Unavailable):
        await alone.waiting(away)


async def test_cell_that_is_away_is_missed_by_its_own_users_alone(service: WithSouth) -> None:
    for user in (MAIN, NORTH, SOUTH):
        assert (await service.put(user)).status_code == 204
        assert await service.status(user) == 200
    service.south.kill()
    away = await service.as_user(SOUTH, "GET", "/notifications")
    assert away.status_code == 503
    assert int(away.headers["Retry-After"]) >= 1
    for user in (MAIN, NORTH):
        assert (await service.as_service("POST", "/events", json=custom(user))).status_code == 202
        await reaches(partial(service.total, user), 1)
    assert (await service.as_service("POST", "/events", json=custom(SOUTH))).status_code == 503
    assert (await service.put(SOUTH)).status_code == 503

    async def named() -> list[str]:
        return [problem.partition(":")[0] for problem in await service.problems()]

    await reaches(named, ["cell south"])


async def test_cell_that_comes_back_serves_its_users_again_without_a_restart(service: WithSouth) -> None:
    """Accepted events reach their inboxes, and an open stream continues."""
    for user in (MAIN, SOUTH):
        assert (await service.put(user)).status_code == 204
    assert (await service.as_service("POST", "/events", json=custom(SOUTH))).status_code == 202
    await reaches(partial(service.total, SOUTH), 1)
    async with watching(service, SOUTH) as stream:
        later = {**custom(SOUTH), "deliver_at": (datetime.now(UTC) + timedelta(seconds=3)).isoformat()}
        assert (await service.as_service("POST", "/events", json=later)).status_code == 202
        service.south.kill()
        for path, method in (("/notifications", "GET"), ("/notifications/read", "PUT")):
            away = await service.as_user(SOUTH, method, path)
            assert away.status_code == 503
            assert int(away.headers["Retry-After"]) >= 1
        refused = await service.as_service("POST", "/events", json=custom(SOUTH))
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert await service.status(MAIN) == 200
        await service.south.start()
        await reaches(partial(service.status, SOUTH), 200)
        await reaches(partial(service.total, SOUTH), 2)
        await reaches(service.problems, [])
        assert (await service.as_service("POST", "/events", json=custom(SOUTH))).status_code == 202
        await reaches(partial(service.total, SOUTH), 3)
        assert not stream.ended
        received = await stream.until_received("notification", 2)
    assert len({each["id"] for each in received}) == 2


async def move_to_south(service: WithSouth, company_id: int, source: int = MAIN) -> None:
    """Move a company, and wait until the process knows its new cell."""
    async with pool(service.urls[source], CONNECTIONS) as here, pool(service.urls[SOUTH], CONNECTIONS) as there:
        await moving.move(here, there, company_id, {MAIN: "main", NORTH: "north"}[source], "south")
    await reaches(partial(service.status, company_id), 200)


async def test_company_that_moves_is_missed_for_seconds_and_loses_nothing(service: WithSouth) -> None:
    for user in (MAIN, NORTH):
        assert (await service.put(user)).status_code == 204
    is_over, statuses, accepted = asyncio.Event(), {MAIN: Counter[int](), NORTH: Counter[int]()}, Counter[int]()

    async def use(user: int) -> None:
        while not is_over.is_set():
            posted = await service.as_service("POST", "/events", json=custom(user))
            accepted[user] += posted.status_code == 202
            statuses[user][posted.status_code] += 1
            statuses[user][await service.status(user)] += 1
            await asyncio.sleep(0.02)

    using = [asyncio.create_task(use(user)) for user in (MAIN, NORTH)]
    await move_to_south(service, NORTH, NORTH)
    before = accepted[NORTH]
    await until(lambda: accepted[NORTH] > before)
    is_over.set()
    await asyncio.gather(*using)
    assert set(statuses[MAIN]) == {200, 202}
    assert {200, 202} <= set(statuses[NORTH]) <= {200, 202, 503}
    for user in (MAIN, NORTH):
        await reaches(partial(service.total, user), accepted[user])
    assert await value(service.urls[NORTH], "select count(*) from users") == 0
    assert await value(service.urls[SOUTH], "select count(*) from users") == 1
    listed = await service.as_service("GET", f"/directory/users?company_id={NORTH}")
    assert [each["id"] for each in listed.json()["data"]] == [NORTH]


async def copy_only(monkeypatch: pytest.MonkeyPatch, *move: Any, until_step: str = "_switch") -> None:
    """Begin a move, as a command that is killed before a step: if none is named, when all is copied."""

    async def end(_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(moving._Move, until_step, end)  # noqa: SLF001
        with pytest.raises(KeyboardInterrupt):
            await moving.move(*move)


async def test_copy_is_not_used_while_the_cell_that_a_company_leaves_is_away(
    service: WithSouth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that was accepted for a copy would be lost when the move continues."""
    assert (await service.put(SOUTH)).status_code == 204
    async with pool(service.urls[SOUTH], CONNECTIONS) as here, pool(service.urls[NORTH], CONNECTIONS) as there:
        move = here, there, SOUTH, "south", "north"
        await copy_only(monkeypatch, *move)
        assert await value(service.urls[NORTH], "select count(*) from users") == 1
        service.south.kill()
        for _ in range(2):
            refused = await service.as_service("POST", "/events", json=custom(SOUTH))
            assert (refused.status_code, await service.status(SOUTH)) == (503, 503), refused.text
        await service.south.start()
        await reaches(partial(service.status, SOUTH), 200)
        assert (await service.as_service("POST", "/events", json=custom(SOUTH))).status_code == 202
        await reaches(partial(service.total, SOUTH), 1)
        await moving.move(*move)
    await reaches(partial(service.status, SOUTH), 200)
    assert await service.total(SOUTH) == 1


def skipping(*users: int) -> dict[str, Any]:
    return {**custom(*users), "notify": {"users": list(users), "unknown": "skip"}}


async def test_late_request_of_a_company_that_moved_is_asked_to_try_again(service: WithSouth) -> None:
    """Its users are gone from the cell in which it was placed: they are neither unknown nor skipped."""
    assert (await service.put(NORTH)).status_code == 204
    requests = [
        ("/events", custom(NORTH), None),
        ("/events", skipping(NORTH), None),
        ("/events/batch", {"events": [skipping(NORTH)] * 2}, None),
        ("/events/resolve", {"about": "order:1", "as": "read"}, NORTH),
        ("/notifications/devices", {"token": "a" * 64, "platform": "ios"}, None),
    ]

    async def send(number: int) -> httpx.Response:
        path, body, company_id = requests[number]
        headers = {"Idempotency-Key": f"late-{number}"}
        if path.startswith("/events"):
            return await service.as_service("POST", path, company_id=company_id, json=body, headers=headers)
        return await service.as_user(NORTH, "POST", path, json=body, headers=headers)

    callers = ["service crm"] * 3 + [f"service crm of company {NORTH}", f"user {NORTH}"]
    async with pool(service.urls[NORTH], 1) as holding, pool(service.urls[NORTH], 1) as looking:
        async with holding.transaction() as connection:
            for number, caller in enumerate(callers):
                await connection.execute(
                    "insert into idempotency_keys (caller, method, path, key, digest, status, body)"
                    " values ($1, 'POST', $2, $3, '', 0, '')",
                    *(caller, requests[number][0], f"late-{number}"),
                )
            late = [asyncio.create_task(send(number)) for number in range(len(requests))]
            async with looking.connection() as dba:
                await reaches(partial(blocked, dba), len(requests))
            await move_to_south(service, NORTH, NORTH)
            await connection.execute("delete from idempotency_keys")
        answers = await asyncio.gather(*late)
    assert [answer.status_code for answer in answers] == [503] * len(requests), [answer.text for answer in answers]
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)

    async def repeated(number: int) -> int:
        return (await send(number)).status_code

    for number, status in enumerate([202, 202, 202, 202, 204]):
        await reaches(partial(repeated, number), status)
    await reaches(partial(service.total, NORTH), 4)


@pytest.mark.parametrize("service", [{"TOCSIN_LIMIT_SERVICE_REQUESTS": "99/minute"}], indirect=True)
async def test_late_list_of_a_company_that_moved_is_not_answered_as_empty(service: WithSouth) -> None:
    """The requests wait for the rate limit, between their place and the list."""
    assert (await service.put(NORTH)).status_code == 204
    assert (await service.as_service("PUT", "/directory/teams/7", json={"name": "T", "company_id": NORTH})).is_success
    assert (await register(service, NORTH)).status_code == 204
    paths = "/directory/users", "/directory/teams", "/operations/devices?ending=ababab", "/operations/users?search=A+B"

    async def read(path: str) -> httpx.Response:
        return await service.as_service("GET", path, company_id=NORTH, scopes=("directory:write", "operations"))

    async with pool(service.urls[NORTH], 1) as holding, pool(service.urls[NORTH], 1) as looking:
        async with holding.connection() as dba, locked(dba, "rate_limits"):
            late = [asyncio.create_task(read(path)) for path in paths]
            async with looking.connection() as watching_them:
                await reaches(partial(blocked, watching_them), 1)
            await move_to_south(service, NORTH, NORTH)
        answers = await asyncio.gather(*late)
    assert [answer.status_code for answer in answers] == [503] * len(paths), [answer.text for answer in answers]
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)

    async def listed(path: str) -> int:
        return len((await read(path)).json().get("data", ()))

    for path in paths:
        await reaches(partial(listed, path), 1)


HOLD_DETACHING = """
create function hold_detaching() returns trigger language plpgsql as $$
begin
    if current_setting('statement_timeout')::interval < interval '10 s' then perform pg_advisory_xact_lock(77); end if;
    return null;
end $$;
create trigger hold_detaching before delete on devices for each statement execute function hold_detaching()
"""
"""Has the service wait for a lock before it deletes a device. A move does not wait: its statements may take longer."""


async def test_late_detaching_of_a_phone_that_moved_is_asked_to_try_again(service: WithSouth) -> None:
    assert (await service.put(NORTH)).status_code == 204
    assert (await register(service, NORTH)).status_code == 204
    path = f"/notifications/devices/{'ab' * 32}"
    async with pool(service.urls[NORTH], 2) as north:
        async with north.connection() as dba:
            await dba.execute(HOLD_DETACHING)
            await dba.execute("select pg_advisory_lock(77)")
            late = asyncio.create_task(service.as_user(NORTH, "DELETE", path))
            await reaches(partial(blocked, dba), 1)
            moving_on = asyncio.create_task(move_to_south(service, NORTH, NORTH))
            await reaches(partial(dba.fetchval, "select count(*) from moves where state = 'moved'"), 1)
            await dba.execute("select pg_advisory_unlock(77)")
            answer = await late
            await moving_on
        assert (answer.status_code, "moving" in answer.text) == (503, True), answer.text
    assert await value(service.urls[SOUTH], "select count(*) from devices") == 1
    assert (await service.as_user(NORTH, "DELETE", path)).status_code == 204
    assert await value(service.urls[SOUTH], "select count(*) from devices") == 0


SOON = 0.7 * API_STATEMENT_TIMEOUT
"""Seconds, less than a look takes that waits for a lock."""


@asynccontextmanager
async def hanging(url: str) -> AsyncIterator[None]:
    """Let a cell not answer which companies have moved."""
    async with pool(url, 1) as database, database.transaction() as connection:
        await connection.execute("lock table moves in access exclusive mode")
        await until(partial(blocked, connection))
        yield


async def close_company(url: str, company: int) -> None:
    await value(
        url,
        "insert into moves (company_id, turn, state, other, closed_until)"
        f" values ({company}, 1, 'copying', 'main', now() + interval '1 minute') returning 1",
    )


async def test_cell_that_hangs_does_not_delay_the_closing_in_another_one(service: WithSouth) -> None:
    assert (await service.put(NORTH)).status_code == 204
    assert await service.status(NORTH) == 200
    async with hanging(service.urls[SOUTH]):
        await close_company(service.urls[NORTH], NORTH)
        async with asyncio.timeout(SOON):
            await reaches(partial(service.status, NORTH), 503)


async def others_are_served_while_one_is_closed(service: Service) -> None:
    """Also if they name unknown users, who could have just left with the company."""
    closed = 4
    for user in (closed, MAIN):
        assert (await service.put(user)).status_code == 204
    await close_company(service.urls[MAIN], closed)
    await reaches(partial(service.status, closed), 503)
    assert await service.status(77) == 401
    events = custom(77), custom(MAIN, 77), skipping(MAIN, 77), custom(closed), skipping(closed, 77)
    answers = [await service.as_service("POST", "/events", json=event) for event in events]
    assert [answer.status_code for answer in answers] == [422, 422, 202, 503, 503]


async def test_other_companies_are_served_while_one_is_closed(service: WithSouth) -> None:
    await others_are_served_while_one_is_closed(service)


async def test_late_event_that_skips_users_is_accepted_if_another_company_moves(
    service: WithSouth,
) -> None:
    assert (await service.put(MAIN)).status_code == 204
    async with pool(service.urls[MAIN], 1) as holding, pool(service.urls[MAIN], 1) as looking:
        async with holding.transaction() as connection:
            await connection.execute("lock table events in exclusive mode")
            late = asyncio.create_task(service.as_service("POST", "/events", json=skipping(MAIN, 77)))
            async with looking.connection() as dba:
                await reaches(partial(blocked, dba), 1)
            await close_company(service.urls[MAIN], 4)
            await asyncio.sleep(2 * WATCH_INTERVAL)
        answer = await late
    assert answer.status_code == 202, answer.text
    assert answer.json()["skipped"]["users"] == [77]


async def test_divided_event_is_cancelled_in_all_cells(service: WithSouth) -> None:
    other = 4
    for user in (MAIN, other):
        assert (await service.put(user)).status_code == 204
    event = {**custom(MAIN, other), "deliver_at": in_future()}
    kept, divided = [(await service.as_service("POST", "/events", json=event)).json()["id"] for _ in range(2)]
    await move_to_south(service, other)

    async def states(id_: str) -> list[str]:
        paths = [f"/events/{id_}?cell={cell}" for cell in ("main", "south")]
        return [(await service.as_service("GET", path)).json()["state"] for path in paths]

    assert await states(divided) == ["held", "held"]
    for _ in range(2):
        assert (await service.as_service("DELETE", f"/events/{divided}")).status_code == 204
    assert await states(divided) == ["cancelled", "cancelled"]
    await value(service.urls[SOUTH], "update jobs set due_at = now() returning id")
    await reaches(partial(states, kept), ["held", "delivered"])
    assert (await service.as_service("DELETE", f"/events/{kept}")).status_code == 204
    assert await states(kept) == ["cancelled", "delivered"]
    assert (await service.as_service("DELETE", f"/events/{new_id()}")).status_code == 404
    service.south.kill()
    assert (await service.as_service("DELETE", f"/events/{divided}")).status_code == 503


async def test_resolution_without_users_is_done_in_all_cells(service: WithSouth) -> None:
    users = (MAIN, NORTH, SOUTH)
    for user in users:
        assert (await service.put(user)).status_code == 204

    async def post(about: str) -> None:
        for user in users:
            accepted = await service.as_service("POST", "/events", json={**custom(user), "about": [about]})
            assert accepted.status_code == 202

    async def resolve(about: str, query: str = "", **headers: str) -> int:
        body = {"about": about, "as": "read"}
        return (await service.as_service("POST", f"/events/resolve{query}", json=body, headers=headers)).status_code

    async def unread() -> list[int]:
        answers = [await service.as_user(user, "GET", "/notifications") for user in users]
        return [answer.json()["pagination"]["unread"] for answer in answers]

    for number in range(1, 4):
        await post(f"order:{number}")
    await reaches(unread, [3, 3, 3])
    assert await resolve("order:1", "?cell=north") == 202
    await reaches(unread, [3, 2, 3])
    assert await resolve("order:2") == 202
    await reaches(unread, [2, 1, 2])
    assert await resolve("order:3", **{"Idempotency-Key": "k"}) == 202
    await reaches(unread, [1, 0, 1])
    await close_company(service.urls[NORTH], NORTH)
    await reaches(partial(resolve, "order:1"), 503)
    await value(service.urls[NORTH], "delete from moves returning 1")
    await reaches(partial(resolve, "order:1"), 202)
    await reaches(unread, [0, 0, 0])
    service.south.kill()
    assert await resolve("order:1") == 503


async def test_status_of_a_divided_event_is_the_sum_of_its_parts(service: WithSouth) -> None:
    other = 4
    for user in (MAIN, other):
        assert (await service.put(user)).status_code == 204
    event = custom(MAIN, other)
    delivered = (await service.as_service("POST", "/events", json=event)).json()["id"]
    held = (await service.as_service("POST", "/events", json={**event, "deliver_at": in_future()})).json()["id"]

    async def status(id_: str, query: str = "") -> tuple[str, int, int]:
        found = (await service.as_service("GET", f"/events/{id_}{query}")).json()
        return found["state"], found["recipients"], found["read"]

    await reaches(partial(status, delivered), ("delivered", 2, 0))
    await move_to_south(service, other)
    await value(
        service.urls[SOUTH], f"update inbox set read_at = now() where event_id = '{delivered}' returning user_id"
    )
    await value(service.urls[SOUTH], "update jobs set due_at = now() returning id")
    await reaches(partial(status, held, "?cell=south"), ("delivered", 1, 0))
    assert await status(held) == ("held", 1, 0)
    assert await status(delivered) == ("delivered", 2, 1)
    assert await status(delivered, "?cell=south") == ("delivered", 1, 1)
    assert (await service.as_service("GET", f"/events/{new_id()}")).status_code == 404
    service.south.kill()
    assert await status(delivered) == ("delivered", 1, 0)


async def test_status_counts_users_of_a_company_that_moves_once(
    service: WithSouth, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = 4
    for user in (MAIN, other):
        assert (await service.put(user)).status_code == 204
    posted = await service.as_service("POST", "/events", json=custom(MAIN, other))
    push = (
        "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending, state, settled_at)"
        " select event_id, gen_random_uuid(), user_id, '', false, 'iOS', '', 'delivered', now() from inbox returning 1"
    )

    async def status() -> tuple[int, int, int]:
        found = (await service.as_service("GET", f"/events/{posted.json()['id']}")).json()
        return found["recipients"], found["read"], found["pushes"]["delivered"]

    await reaches(partial(service.total, other), 1)
    await service.as_user(other, "PUT", "/notifications/read")
    await value(service.urls[MAIN], push)
    assert await status() == (2, 1, 2)
    async with pool(service.urls[MAIN], CONNECTIONS) as here, pool(service.urls[SOUTH], CONNECTIONS) as there:
        for step in ("_switch", "_clean"):
            await copy_only(monkeypatch, here, there, other, "main", "south", until_step=step)
            assert await value(service.urls[SOUTH], "select count(*) from recipients") == 1
            await asyncio.sleep(2 * WATCH_INTERVAL)
            assert await status() == (2, 1, 2)
        await moving.move(here, there, other, "main", "south")
    assert await status() == (2, 1, 2)


@pytest.fixture
async def pair(server: Embedded, tmp_path: Path) -> AsyncIterator[dict[int, Service]]:
    """A process for each of two cells."""
    here = await make_database(server, f"alone_{tmp_path.name[-20:].replace('-', '_')}".lower())
    (tmp_path / "cells.toml").write_text(
        f"[main]\ndefault = true\n\n[north]\nschema = 'tocsin_north'\ncompanies = [{NORTH}]\n"
    )
    urls = {MAIN: here, NORTH: in_schema(here, "tocsin_north")}
    async with AsyncExitStack() as stack:
        found = {}
        for company, name in ((MAIN, "main"), (NORTH, "north")):
            program = serving_cells(tmp_path, here, "serve", "--cell", name)
            await stack.enter_async_context(program)
            http = httpx.AsyncClient(base_url=program.greeting["url"], timeout=60)
            found[company] = Service(await stack.enter_async_context(http), urls)
        yield found


async def test_process_of_one_cell_refuses_a_company_of_another_cell(
    pair: dict[int, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves, stays = 5, MAIN
    main, north = pair[MAIN], pair[NORTH]
    for user in (moves, stays):
        assert (await main.put(user)).status_code == 204

    async def seen(user: int) -> list[int]:
        found = [await each.status(user) for each in (main, north)]
        return found + [
            (await each.as_service("POST", "/events", json=custom(user))).status_code for each in (main, north)
        ]

    async def listed() -> tuple[int, bool]:
        answer = await main.as_service("GET", "/directory/users", company_id=moves)
        return answer.status_code, "The cell north serves the company." in answer.text

    assert await seen(moves) == [200, 401, 202, 422]
    async with AsyncExitStack() as stack:
        here, there = [await stack.enter_async_context(pool(url, CONNECTIONS)) for url in main.urls.values()]
        await copy_only(monkeypatch, here, there, moves, "main", "north")
        await reaches(partial(seen, moves), [200, 503, 202, 503])
        assert (await north.put(moves)).status_code == 503
        own = await north.as_service("POST", "/events", json=custom(moves), company_id=moves)
        assert own.status_code == 503
        await moving.give_up(here, there, moves, "main", "north")
        await reaches(partial(seen, moves), [200, 401, 202, 422])
        await moving.move(here, there, moves, "main", "north")
        await reaches(partial(seen, moves), [503, 200, 503, 202])
        assert await seen(stays) == [200, 401, 202, 422]
        await reaches(listed, (503, True))
        for path in ("/directory/users", f"/directory/users/{moves}"):
            answers = [await each.as_service("GET", path, company_id=moves) for each in (main, north)]
            assert [answer.status_code for answer in answers] == [503, 200]
        own = await main.as_service("POST", "/events", json=skipping(moves), company_id=moves)
        assert own.status_code == 503
        await reaches(partial(main.status, 77), 401)
        await copy_only(monkeypatch, there, here, moves, "north", "main")
        await asyncio.sleep(2 * WATCH_INTERVAL)
        assert await seen(moves) == [503, 200, 503, 202]
        await moving.give_up(there, here, moves, "north", "main")
        await asyncio.sleep(2 * WATCH_INTERVAL)
        assert await seen(moves) == [503, 200, 503, 202]
        assert await listed() == (503, True)
        await moving.move(there, here, moves, "north", "main")
        await reaches(partial(seen, moves), [200, 503, 202, 503])
        await reaches(listed, (200, False))


async def test_process_of_one_cell_serves_a_company_that_returns_from_a_third_cell(
    server: Embedded, tmp_path: Path
) -> None:
    names, company = ("main", "north", "east"), 5
    here = await make_database(server, f"round_{tmp_path.name[-20:].replace('-', '_')}".lower())
    urls = [here, *(in_schema(here, f"tocsin_{name}") for name in names[1:])]
    (tmp_path / "cells.toml").write_text(
        "[main]\ndefault = true\n\n[north]\nschema = 'tocsin_north'\n\n[east]\nschema = 'tocsin_east'\n"
    )
    for url in urls:
        await migrate(url, accept_undurable=True)
    async with AsyncExitStack() as stack:
        program = await stack.enter_async_context(serving_cells(tmp_path, here, "serve", "--cell", "main"))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=program.greeting["url"], timeout=60))
        main = Service(http, {})
        assert (await main.put(company)).status_code == 204
        pools = [await stack.enter_async_context(pool(url, CONNECTIONS)) for url in urls]
        for source, target in ((0, 1), (1, 2), (2, 0)):
            await moving.move(pools[source], pools[target], company, names[source], names[target])
        await reaches(partial(main.status, company), 200, 20)
        assert (await main.as_service("POST", "/events", json=custom(company))).status_code == 202


async def test_process_of_one_cell_serves_other_companies_while_one_is_closed(pair: dict[int, Service]) -> None:
    await others_are_served_while_one_is_closed(pair[MAIN])


async def test_process_of_one_cell_refuses_ids_that_are_no_numbers(pair: dict[int, Service]) -> None:
    companies: list[tuple[str, Any]] = [(f"?company_id={'9' * 5_000}", 1), ("?company_id=²", 1), ("", []), ("", {})]
    for query, given in companies:
        body = {"first_name": "A", "last_name": "B", "company_id": given}
        answer = await pair[MAIN].as_service("PUT", f"/directory/users/{MAIN}{query}", json=body)
        assert answer.status_code in {204, 422}, answer.text
    events: list[Any] = [None, {"notify": None}, {"notify": {"users": {}}}, {"notify": {"users": [[]]}}]
    for event in events:
        answer = await pair[MAIN].as_service("POST", "/events/batch", json={"events": [event]})
        assert answer.status_code == 422, answer.text


async def test_other_cell_that_hangs_does_not_delay_the_closing_in_ones_own(pair: dict[int, Service]) -> None:
    main, moves, comes = pair[MAIN], 5, 6
    for service, user in ((main, moves), (pair[NORTH], comes)):
        assert (await service.put(user)).status_code == 204
    async with pool(main.urls[NORTH], CONNECTIONS) as source, pool(main.urls[MAIN], CONNECTIONS) as target:
        await moving.move(source, target, comes, "north", "main")
    await reaches(partial(main.status, comes), 200)
    async with hanging(main.urls[NORTH]):
        await close_company(main.urls[MAIN], moves)
        async with asyncio.timeout(SOON):
            await reaches(partial(main.status, moves), 503)


async def test_processes_of_one_cell_each_release_phones(pair: dict[int, Service]) -> None:
    for user in (MAIN, NORTH):
        assert (await pair[user].put(user)).status_code == 204
        assert (await register(pair[user], user)).status_code == 204
    await reaches(lambda: value(pair[MAIN].urls[MAIN], "select count(*) from devices"), 0)
    assert await value(pair[MAIN].urls[NORTH], "select count(*) from devices") == 1


async def test_worker_process_works_all_cells(server: Embedded, tmp_path: Path) -> None:
    here = await make_database(server, "cells_of_workers")
    (tmp_path / "cells.toml").write_text(
        f"[main]\ndefault = true\n\n[north]\nschema = 'tocsin_north'\ncompanies = [{NORTH}]\n\n"
        "[away]\nurl = 'postgresql://127.0.0.1:1/x'\n"
    )
    urls = {MAIN: here, NORTH: in_schema(here, "tocsin_north")}
    async with serving_cells(tmp_path, here, "worker") as worker:
        for user, url in urls.items():
            await reaches(partial(workers_of, url), 1)
            async with pool(url, 2) as database:
                person = User(id=user, company_id=user, first_name="A", last_name="B")
                await directory.put_user(database, person, None)
                draft = draft_of(json.dumps(custom(user)), "crm", None, CATALOGUE)
                await Intake(database, PubSub(url, database), DiskGuard(None, None)).accept(draft)
            await reaches(lambda url=url: value(url, "select count(*) from inbox"), 1)  # type: ignore[misc]
        await worker.stop()
    assert worker.status == 0
    assert [await workers_of(url) for url in urls.values()] == [0, 0]


async def test_processes_serve_all_cells_also_while_one_is_killed(server: Embedded, tmp_path: Path) -> None:
    here = await make_database(server, "cells_of_processes")
    (tmp_path / "cells.toml").write_text(
        f"[main]\ndefault = true\n\n[north]\nschema = 'tocsin_north'\ncompanies = [{NORTH}]\n"
    )
    users = MAIN, NORTH
    async with AsyncExitStack() as stack:
        program = await stack.enter_async_context(serving_cells(tmp_path, here, "serve", "--processes", "2"))
        # each request has a connection of its own, which the kernel gives to either of the processes
        alone = httpx.Limits(max_keepalive_connections=0)
        http = httpx.AsyncClient(base_url=program.greeting["url"], timeout=60, limits=alone)
        service = Service(await stack.enter_async_context(http), {})
        await reaches(lambda: gathered(20, service.problems), [[]] * 20)
        for user in users:
            assert (await service.put(user)).status_code == 204
        streams = {user: [await stack.enter_async_context(watching(service, user)) for _ in range(6)] for user in users}
        accepted = dict.fromkeys(users, 0)
        for user in users * 10:
            accepted[user] += (await service.as_service("POST", "/events", json=custom(user))).status_code == 202
        assert accepted == dict.fromkeys(users, 10)
        for user in users:
            await reaches(partial(gathered, 8, partial(service.total, user)), [10] * 8)
            assert (await service.as_user(user, "PUT", "/notifications/read")).status_code == 204
            for stream in streams[user]:
                assert len({each["id"] for each in await stream.until_received("notification", 10)}) == 10
                await reaches(lambda stream=stream: stream.names("count")[-1], {"unread": 0})  # type: ignore[misc]

        killed, _ = children = children_of(program)
        os.kill(killed, signal.SIGKILL)
        for user in users * 10:
            with suppress(httpx.TransportError):
                accepted[user] += (await service.as_service("POST", "/events", json=custom(user))).status_code == 202
        assert min(accepted.values()) > 10
        for user in users:
            for stream in streams[user]:
                if not stream.ended:
                    await stream.until_received("notification", accepted[user])
        assert any(stream.ended for user in users for stream in streams[user])
        assert not all(stream.ended for user in users for stream in streams[user])
        await until(lambda: len(set(children_of(program)) - set(children)) == 1)
        await reaches(lambda: gathered(20, service.problems), [[]] * 20)
        for user in users:
            await reaches(partial(gathered, 8, partial(service.total, user)), [accepted[user]] * 8)
        await program.stop()
        assert program.status == 0


async def gathered(times: int, ask: Callable[[], Awaitable[T]]) -> list[T]:
    return [await ask() for _ in range(times)]


async def workers_of(url: str) -> int:
    return len(await names_of_workers(url))


async def names_of_workers(url: str) -> set[str]:
    """Return the processes whose workers run in a cell."""
    try:
        found: list[str] = await value(
            url, "select coalesce(array_agg(name), '{}') from workers where seen_at > now() - interval '15 s'"
        )
    except UndefinedTableError:  # not yet migrated
        return set()
    return set(found or ())


@pytest.mark.parametrize("command", ["worker", "serve"])
async def test_processes_divide_the_cells_and_take_those_of_a_lost_one(
    server: Embedded, tmp_path: Path, port: int, command: str
) -> None:
    here = await make_database(server, f"cells_of_leases_of_{command}")
    (tmp_path / "cells.toml").write_text(
        f"[main]\ndefault = true\n\n[north]\nschema = 'tocsin_north'\ncompanies = [{NORTH}]\n"
    )
    urls = here, in_schema(here, "tocsin_north")

    async def owners() -> list[set[int]]:
        return [{int(name.rpartition(":")[2]) for name in await names_of_workers(url)} for url in urls]

    async with AsyncExitStack() as stack:
        first, second = serving_cells(tmp_path, here, command), serving_cells(tmp_path, here, command)
        first.change(TOCSIN_OPERATIONS_PORT=str(port))
        await stack.enter_async_context(first)
        await reaches(owners, [{first.pid}, {first.pid}])
        await stack.enter_async_context(second)
        await reaches(owners, [{first.pid}, {second.pid}])
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60))
        assert await worked_by(http) == {"main": 1, "north": 0}
        async with job_of_another_worker(urls[1]):
            await reaches(lambda: waiting(http), 1)
        await second.kill()
        await reaches(lambda: worked_by(http), {"main": 1, "north": 1})
        await reaches(owners, [{first.pid}, {first.pid}])
        await first.stop()
        assert first.status == 0
        assert await owners() == [set(), set()]


@asynccontextmanager
async def job_of_another_worker(url: str) -> AsyncIterator[None]:
    """Add a job that a worker has leased which does nothing."""
    async with pool(url, 1) as database:
        other = new_id()
        await jobs.enrol(database, other, "host:0")
        columns = "id, task, lane, due_at, wanted_at, worker_id"
        await database.rows(
            f"insert into jobs ({columns}) values (gen_random_uuid(), 'deliver', 'bulk', now(), now(), $1)",
            other,
        )
        yield
        await database.rows("delete from jobs where worker_id = $1", other)
        await jobs.leave(database, other)


async def waiting(http: httpx.AsyncClient) -> int:
    """Return how many jobs wait, by the readiness of a process and its metrics, which count those of all cells."""
    ready = (await http.get("/readyz")).json()["queue"]["bulk"]["due"]
    found = re.search(r'tocsin_jobs_due\{lane="bulk"\} (\S+)', (await http.get("/metrics")).text)
    return ready if found and int(float(found[1])) == ready else -1


async def worked_by(http: httpx.AsyncClient) -> dict[str, int]:
    """Return which cells a process works, by its metrics."""
    text = (await http.get("/metrics")).text
    return {cell: int(float(number)) for cell, number in re.findall(r'tocsin_cell_worked\{cell="(\w+)"\} (\S+)', text)}


async def test_start_does_not_wait_for_a_cell_that_is_away(server: Embedded, tmp_path: Path) -> None:
    """It is opened when it is there."""
    here = await make_database(server, "cells_without_south")
    there = url_for(server, "south_of_later")
    (tmp_path / "cells.toml").write_text(
        f"[main]\ndefault = true\n\n[south]\nurl = {json.dumps(there)}\ncompanies = [{SOUTH}]\n"
    )
    async with (
        serving_cells(tmp_path, here) as program,
        httpx.AsyncClient(base_url=program.greeting["url"], timeout=60) as http,
    ):
        ready = await http.get("/readyz")
        assert ready.status_code == 200
        assert "cell south: it is not available" in ready.json()["problems"]
        headers = {"Authorization": f"Bearer {mint_service(SECRET, 'crm', ['directory:write'], HOUR)}"}

        async def put() -> tuple[int, bool]:
            body = {"first_name": "A", "last_name": "B", "company_id": SOUTH}
            answer = await http.put("/directory/users/3", json=body, headers=headers)
            return answer.status_code, "south is not available" in answer.text

        assert await put() == (503, True)
        connection = await connect(server.url)
        await connection.execute("create database south_of_later template template_of_tests")
        await connection.close()
        await reaches(put, (204, False))


async def test_company_that_left_a_cell_is_not_looked_for_there_after_a_start(server: Embedded, tmp_path: Path) -> None:
    here = await make_database(server, "cells_started_again")
    (tmp_path / "cells.toml").write_text(
        f"[main]\ndefault = true\n\n[north]\nschema = 'tocsin_north'\ncompanies = [{NORTH}]\n"
    )
    urls = {MAIN: here, NORTH: in_schema(here, "tocsin_north")}
    for is_first in (True, False):
        async with (
            serving_cells(tmp_path, here) as program,
            httpx.AsyncClient(base_url=program.greeting["url"], timeout=60) as http,
        ):
            service = Service(http, urls)
            if is_first:
                await reaches(service.problems, [])
                assert (await service.put(NORTH)).status_code == 204
                async with pool(urls[NORTH], CONNECTIONS) as source, pool(here, CONNECTIONS) as target:
                    await moving.move(source, target, NORTH, "north", "main")
                continue
            statuses = set[int]()
            while 202 not in statuses:
                answer = await service.as_service("POST", "/events", json=custom(NORTH), company_id=NORTH)
                statuses.add(answer.status_code)
            assert statuses <= {202, 503}


async def test_phone_leaves_its_user_when_it_registers_in_another_cell(service: WithSouth) -> None:
    for user in (MAIN, NORTH):
        assert (await service.put(user)).status_code == 204
        answer = await register(service, user)
        assert answer.status_code == 204, answer.text
    phones = "select count(*) from devices"
    await reaches(lambda: value(service.urls[MAIN], phones), 0)
    assert await value(service.urls[NORTH], phones) == 1


async def register(service: Service, user: int) -> httpx.Response:
    """Register the same phone for a user."""
    phone = {"type": "iOS", "environment": "production"}
    return await service.as_user(user, "POST", f"/notifications/devices/{'ab' * 32}", json=phone)
