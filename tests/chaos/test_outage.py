"""Database outages: every call reports the outage immediately and accepts nothing."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.database import wipe
from tests.support.imports import NDJSON
from tests.support.ledger import Ledger, Load, Population, compare, compare_pages, drained
from tests.support.processes import data_folder, postgres_of, random_source, send
from tests.support.service import Api, serving
from tests.support.waiting import until
from tocsin import readiness
from tocsin.catalogue import Catalogue
from tocsin.db.connections import connect
from tocsin.db.migrate import migrate
from tocsin.postgres.supervisor import Embedded

PATIENCE = 15.0
"""Seconds within which a call is answered despite the outage."""

ID = "01900000-0000-7000-8000-000000000000"
EVENT = {"type": "custom", "notify": {"users": [1]}, "params": {"body": "Hello"}}
CALLS: Mapping[tuple[str, str], Any] = {
    ("GET", "/notifications"): None,
    ("POST", "/notifications"): {"message": "Hello", "notify": {"users": [1]}},
    ("GET", "/notifications/{notification_id}"): None,
    ("GET", "/notifications/kinds"): None,
    ("GET", "/notifications/changes"): None,
    ("GET", "/notifications/links"): None,
    ("GET", "/notifications/stream"): None,
    ("GET", "/notifications/preferences"): None,
    ("PATCH", "/notifications/preferences"): {"time_zone": "Asia/Tokyo"},
    ("DELETE", "/notifications/{notification_id}"): None,
    ("PUT", "/notifications/{notification_id}/unread"): None,
    ("PUT", "/notifications/read"): None,
    ("PUT", "/notifications/{notification_id}/read"): None,
    ("POST", "/events"): EVENT,
    ("POST", "/events/batch"): {"events": [EVENT]},
    ("GET", "/events/{event_id}"): None,
    ("POST", "/events/resolve"): {"about": "order:1", "as": "read"},
    ("DELETE", "/events/{event_id}"): None,
    ("DELETE", "/events/by-key/{key}"): None,
    ("GET", "/events/{event_id}/recipients/{user_id}"): None,
    ("GET", "/notifications/devices"): None,
    ("POST", "/notifications/devices"): {"token": "ab" * 32},
    ("POST", "/notifications/devices/{token}"): None,
    ("DELETE", "/notifications/devices/{token}"): None,
    ("DELETE", "/directory/users/{user_id}/devices"): None,
    ("DELETE", "/directory/users/{user_id}/devices/{token}"): None,
    ("GET", "/operations/lanes"): None,
    ("GET", "/operations/dead-letters"): None,
    ("GET", "/operations/users"): None,
    ("GET", "/operations/events/{event_id}/recipients"): None,
    ("GET", "/operations/users/{user_id}"): None,
    ("GET", "/operations/users/{user_id}/events"): None,
    ("POST", "/operations/users/{user_id}/devices/{device_id}/test"): None,
    ("GET", "/operations/devices"): None,
    ("GET", "/operations/custom-notifications"): None,
    ("GET", "/operations/audit"): None,
    ("GET", "/operations/history"): None,
    ("POST", "/operations/console"): None,
    ("POST", "/operations/replay"): {"lane": "apns/default"},
    ("GET", "/notifications/web-push/key"): None,
    ("POST", "/notifications/web-push"): {},
    ("POST", "/notifications/devices/{token}/test"): None,
    ("POST", "/notifications/web-push/test"): {"endpoint": "https://x/y"},
    ("DELETE", "/notifications/web-push"): {"endpoint": "https://x/y"},
    ("GET", "/directory/users"): None,
    ("POST", "/directory/import"): b'{"team": {"id": 1, "name": "Sales"}}',
    ("GET", "/directory/teams"): None,
    ("DELETE", "/directory/users/{user_id}"): None,
    ("DELETE", "/directory/teams/{team_id}"): None,
    ("PUT", "/directory/teams/{team_id}/users/{user_id}"): None,
    ("DELETE", "/directory/teams/{team_id}/users/{user_id}"): None,
    ("PUT", "/directory/users/{user_id}"): {"first_name": "John", "last_name": "Doe"},
    ("GET", "/directory/users/{user_id}"): None,
    ("PUT", "/directory/teams/{team_id}"): {"name": "Sales", "users": [1]},
    ("GET", "/directory/teams/{team_id}"): None,
    ("GET", "/readyz"): None,
}
"""Every call that needs the database, with a body that it takes."""

WITHOUT = {("GET", "/healthz"), ("GET", "/metrics")}
"""Calls that do not need the database."""

AT_ONCE = 6
"""As many as the service of these tests has connections."""

PLACES = {
    "notification_id": ID,
    "event_id": ID,
    "device_id": ID,
    "user_id": "1",
    "team_id": "1",
    "key": "none",
    "token": "ab" * 32,
}

QUERIES = {"/operations/devices": "?ending=ababab", "/operations/users": "?search=john"}


@pytest.fixture
async def data() -> AsyncIterator[Path]:
    async with data_folder() as path:
        yield path


@pytest.fixture
async def mortal(data: Path) -> AsyncIterator[Embedded]:
    """A separate server with the schema and user 1 only."""
    async with Embedded(data) as server:
        await migrate(server.url)
        connection = await connect(server.url)
        await connection.execute("insert into users values (1, 1, 'John', 'Doe', null, null, 'UTC')")
        await connection.execute("insert into heads (user_id, locale, active) values (1, 'en', true)")
        await connection.close()
        yield server


@pytest.fixture
async def shaky(mortal: Embedded, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """The service on that server, without caching of its readiness."""
    monkeypatch.setattr(readiness, "FRESH", 0.0)
    async with serving(mortal.url, catalogue) as api:
        yield api


async def call(api: Api, method: str, path: str, body: Any) -> httpx.Response:
    place = path.format_map(PLACES) + QUERIES.get(path, "")
    more = {} if body is None else {"content": body, "headers": NDJSON} if isinstance(body, bytes) else {"json": body}
    if path.startswith("/notifications"):
        return await api.as_user(1, method, place, timeout=60, **more)
    return await api.as_service(method, place, "events:write", "directory:write", "operations", timeout=60, **more)


async def assert_unavailable(api: Api, method: str, path: str, body: Any) -> None:
    began = time.monotonic()
    answer = await call(api, method, path, body)
    assert answer.status_code == 503, f"{method} {path}: {answer.status_code} {answer.text}"
    assert answer.json() == {
        "errors": [{"message": "The database cannot be reached. Please try again.", "code": "unavailable"}]
    }
    assert int(answer.headers["Retry-After"]) > 0
    assert time.monotonic() - began < PATIENCE, f"{method} {path} took {time.monotonic() - began:.1f} s"


async def assert_all_unavailable(api: Api) -> None:
    await asyncio.gather(*(assert_unavailable(api, method, path, body) for (method, path), body in CALLS.items()))
    assert (await api.call("GET", "/healthz")).json() == {"status": "ok"}
    shown = (await api.as_service("GET", "/metrics", "operations")).text
    assert {"tocsin_ready 0.0", 'tocsin_problem{reason="The database cannot be reached"} 1.0'} <= set(
        shown.splitlines()
    )


async def assert_all_answered(api: Api) -> None:
    for (method, path), body in CALLS.items():
        answer = await call(api, method, path, body)
        assert answer.status_code < 500, f"{method} {path}: {answer.status_code} {answer.text}"


async def count_of_events(server: Embedded) -> int:
    connection = await connect(server.url)
    count: int = await connection.fetchval("select count(*) from events")
    await connection.close()
    return count


async def test_outage_tests_cover_every_api_call(idle: Api) -> None:
    paths = (await idle.call("GET", "/openapi.json")).json()["paths"]
    calls = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert calls == CALLS.keys() | WITHOUT


async def test_every_call_reports_the_outage_and_works_after_it(shaky: Api, mortal: Embedded) -> None:
    await assert_all_answered(shaky)
    before = await count_of_events(mortal)
    await mortal.stop()
    for _ in range(3):
        await assert_all_unavailable(shaky)
    await mortal.start()
    assert await count_of_events(mortal) == before
    await assert_all_answered(shaky)
    assert (await shaky.as_service("GET", "/readyz")).json()["status"] == "ready"
    assert "\ntocsin_ready 1.0\n" in (await shaky.as_service("GET", "/metrics", "operations")).text
    assert await shaky.post(EVENT) in await shaky.ids(1)


async def test_interrupted_delivery_completes_after_outage(shaky: Api, mortal: Embedded) -> None:
    blocker = await connect(mortal.url)
    await blocker.execute("begin")
    await blocker.execute("select from heads where user_id = 1 for update")
    id_ = (await shaky.as_service("POST", "/events", json=EVENT)).json()["id"]
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    await until(lambda: blocker.fetchval(waiting))
    await mortal.stop()
    blocker.terminate()
    await mortal.start()
    assert (await shaky.as_service("GET", f"/events/{id_}?wait=30")).json()["state"] == "delivered"
    assert await shaky.ids(1) == [id_]


async def test_events_accepted_around_outages_are_delivered_once(shaky: Api, mortal: Embedded) -> None:
    dice = random_source()
    population, ledger = Population.of(dice, size=6_000), Ledger()
    await wipe(mortal.url)
    await population.fill(mortal.url)
    address = (shaky.http.base_url.host, shaky.http.base_url.port or 0)
    async with Load(ledger, population, dice, lambda: address) as load:
        for _ in range(3):
            await load.more(dice.randint(50, 200))
            await mortal.stop()
            await load.refused(20)  # so what was on its way is here
            accepted = len(ledger.accepted)
            await load.refused(dice.randint(20, 200))
            assert len(ledger.accepted) == accepted, "accepted while there was no database"
            await mortal.start()
        await load.more(50)
        while not ledger.cancelled:  # which chance decides
            await load.more(20)
    await drained(mortal.url)
    await compare(ledger, population, mortal.url)
    await compare_pages(ledger, population, mortal.url, address)
    assert {"202", "503"} <= ledger.answers.keys() <= {"202", "204", "409", "503"}


async def test_hanging_database_is_reported_without_waiting(shaky: Api, mortal: Embedded, data: Path) -> None:
    hanging = set(postgres_of(data))
    send(signal.SIGSTOP, hanging)
    try:
        calls = list(CALLS.items())[::4][:AT_ONCE]
        assert len(calls) == AT_ONCE
        await asyncio.gather(*(assert_unavailable(shaky, *route, body) for route, body in calls))
    finally:
        send(signal.SIGCONT, hanging)
    assert await count_of_events(mortal) == 0
    assert await shaky.post(EVENT) in await shaky.ids(1)
