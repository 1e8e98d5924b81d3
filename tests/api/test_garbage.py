"""Memory of requests: it is freed without the garbage collector, which would stop the process to find it."""

import gc
import json
from collections.abc import Iterator

import pytest

from tests.support.answers import exchanged
from tests.support.database import drop_function
from tests.support.events import custom
from tests.support.service import DAY, HOUR, SECRET, Api
from tocsin.auth.minting import mint_service, mint_user
from tocsin.db.connections import Connection
from tocsin.ids import new_id

REQUESTS = 20
TRIES = 3

LAST = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

BODY = json.dumps(custom(1))
HEAD = f"HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n"
MEET_A_LOCK = """
create function meet_a_lock() returns trigger language plpgsql as $$ begin raise sqlstate '55P03'; end $$;
create trigger meet_a_lock before insert on events for each row execute function meet_a_lock()
"""
"""Has each event fail as if another session had locked what it needs."""

SERVICE = mint_service(SECRET, "crm", ["events:write"], DAY)


@pytest.fixture(autouse=True)
def without_earlier_objects() -> Iterator[None]:
    """The collector looks at what a test makes, and not at all that this process has."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    "request_",
    [
        f"GET /notifications HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {mint_user(SECRET, 1, HOUR)}\r\n\r\n",
        f"POST /events {HEAD}Authorization: Bearer {SERVICE}\r\n\r\n{BODY}",
        f"POST /events {HEAD}\r\n{BODY}",
        f"POST /events {HEAD}Authorization: Bearer {SERVICE[:-4]}AAAA\r\n\r\n{BODY}",
    ],
    ids=["a page", "an event", "a request without a token", "a token of another key"],
)
async def test_requests_leave_nothing_to_the_garbage_collector(idle: Api, request_: str) -> None:
    await idle.people(1)
    await left_by(idle, request_, 1)
    of_one = await least_left_by(idle, request_, 1)
    of_many = await least_left_by(idle, request_, 1 + REQUESTS)
    assert of_many < of_one + REQUESTS, "the connection and the client leave some, requests none"


async def test_requests_over_a_limit_leave_nothing_to_the_garbage_collector(idle: Api) -> None:
    request, limit = f"POST /events {HEAD}\r\n{BODY}", idle.app_state.limits.of("failed-auth")
    assert limit
    await left_by(idle, request, limit.rate.quota)
    of_one = await least_left_by(idle, request, 1)
    assert await least_left_by(idle, request, 1 + REQUESTS) < of_one + REQUESTS


async def test_events_that_are_refused_leave_nothing_to_the_garbage_collector(idle: Api) -> None:
    await idle.people(1)
    id_ = str(new_id())
    assert (await idle.as_service("POST", "/events", json={**custom(1), "id": id_})).status_code == 202
    await leave_nothing(idle, json.dumps({**custom(2), "id": id_}))


async def test_events_behind_a_lock_leave_nothing_to_the_garbage_collector(idle: Api, dba: Connection) -> None:
    await idle.people(1)
    await dba.execute(MEET_A_LOCK)
    try:
        await leave_nothing(idle, BODY)
    finally:
        await drop_function(dba, "meet_a_lock")


async def leave_nothing(api: Api, body: str) -> None:
    """Compare what many requests leave with what one leaves."""
    head = f"HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    request = f"POST /events {head}Authorization: Bearer {SERVICE}\r\n\r\n{body}"
    await left_by(api, request, 1)
    of_one = await least_left_by(api, request, 1)
    assert await least_left_by(api, request, 1 + REQUESTS) < of_one + REQUESTS


async def least_left_by(api: Api, request: str, times: int) -> int:
    """Return the least of some tries: other parts of this process, such as earlier tests, leave some at times."""
    return min([await left_by(api, request, times) for _ in range(TRIES)])


async def left_by(api: Api, request: str, times: int) -> int:
    """Return how many objects are left by one connection with this number of requests."""
    gc.collect()
    gc.disable()
    try:
        await exchanged(int(api.http.base_url.port or 0), (request * times + LAST).encode())
        return gc.collect()
    finally:
        gc.enable()
