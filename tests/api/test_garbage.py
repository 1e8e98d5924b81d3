"""Memory of requests: it is freed without the garbage collector, which would stop the process to find it."""

import gc
import json

import pytest

from tests.support.answers import exchanged
from tests.support.events import custom
from tests.support.service import HOUR, SECRET, Api
from tocsin.auth.minting import mint_service, mint_user

REQUESTS = 20

BODY = json.dumps(custom(1))
HEAD = f"HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n"
SERVICE = mint_service(SECRET, "crm", ["events:write"], HOUR)


@pytest.mark.parametrize(
    "request_",
    [
        f"GET /notifications HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {mint_user(SECRET, 1, HOUR)}\r\n\r\n",
        f"POST /events {HEAD}Authorization: Bearer {SERVICE}\r\n\r\n{BODY}",
        f"POST /events {HEAD}\r\n{BODY}",
    ],
    ids=["a page", "an event", "a request without a token"],
)
async def test_requests_leave_nothing_to_the_garbage_collector(idle: Api, request_: str) -> None:
    await idle.people(1)
    port = int(idle.http.base_url.port or 0)
    last = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    async def left_by(requests: int) -> int:
        gc.collect()
        gc.disable()
        try:
            await exchanged(port, (request_ * requests + last).encode())
            return gc.collect()
        finally:
            gc.enable()

    await left_by(1)
    of_one = await left_by(1)
    assert await left_by(1 + REQUESTS) < of_one + REQUESTS, "the connection and the client leave some, requests none"
