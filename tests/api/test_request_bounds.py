"""Requests with countless errors are cheap, and their responses are short."""

import asyncio
import json
import time
import tracemalloc
from typing import Any

import httpx
import pytest

from tests.support.service import Api
from tocsin.errors import MAX_FIELD_ERRORS

MIB = 2**20
LARGEST_ANSWER = 2**16
LONGEST_LAG = 1.0
"""Seconds; each of these took from one to hundreds before they were bounded."""

USER, SERVICE = "a user", "a service"


def many(text: str, size: int = MIB) -> str:
    """Return an array of this value that fills a body."""
    return "[" + ",".join([text] * min((size - 500) // (len(text) + 1), 149_000 * (size // MIB))) + "]"


def keys(value: str, size: int = MIB) -> str:
    """Return an object with this number of arbitrary names."""
    return "{" + ",".join(f'"k{number}":{value}' for number in range(min((size - 500) // 14, 70_000))) + "}"


def event(notify: str, data: str = '{"user": 1}', kind: str = "custom", more: str = "") -> str:
    return f'{{"type": "{kind}", "notify": {notify}, "data": {data}, "params": {{"body": "x"}}{more}}}'


def batch(one: str) -> str:
    return '{"events": [' + ",".join([one] * min(1000, (8 * MIB - 100) // (len(one) + 1))) + "]}"


# fmt: off

BODIES: dict[str, tuple[str, str, str, str]] = {
    "users, zeros": ("POST", "/notifications", USER, f'{{"message": "x", "notify": {{"users": {many("0")}}}}}'),
    "users, texts": (
        "POST",
        "/notifications",
        USER,
        f'{{"message": "x", "notify": {{"users": {many(json.dumps(""))}}}}}',
    ),
    "teams": ("POST", "/notifications", USER, f'{{"message": "x", "notify": {{"teams": {many("0")}}}}}'),
    "10,000 wrong users": (
        "POST",
        "/notifications",
        USER,
        json.dumps({"message": "x", "notify": {"users": [0] * 10_000}}),
    ),
    "10,000 unknown users": ("POST", "/notifications", USER, json.dumps({"notify": {"users": list(range(9, 10_009))}})),
    "except": ("POST", "/events", SERVICE, event(f'{{"users": [1], "except": {many("0")}}}')),
    "10,000 wrong except": ("POST", "/events", SERVICE, event(json.dumps({"users": [1], "except": ["x"] * 9_999}))),
    "preferences, kinds": ("PATCH", "/notifications/preferences", USER, f'{{"kinds": {keys("1")}}}'),
    "preferences, switches": ("PATCH", "/notifications/preferences", USER, f'{{"kinds": {{"note": {keys("1")}}}}}'),
    "a long name": ("PATCH", "/notifications/preferences", USER, json.dumps({"kinds": {"x" * 1_000_000: 1}})),
    "100 long names": (
        "PATCH",
        "/notifications/preferences",
        USER,
        json.dumps({"kinds": {"𝄞" * 600 + str(n): 1 for n in range(100)}}),
    ),
    "quiet hours": ("PATCH", "/notifications/preferences", USER, f'{{"quiet_hours": {many("0")}}}'),
    "quiet hours, names": (
        "PATCH",
        "/notifications/preferences",
        USER,
        f'{{"quiet_hours": [{",".join([keys("1", 52_000)] * 20)}]}}',
    ),
    "members": ("PUT", "/directory/teams/9", SERVICE, f'{{"name": "x", "users": {many(json.dumps(""))}}}'),
    "resolve": ("POST", "/events/resolve", SERVICE, f'{{"about": "a:1", "as": "read", "users": {many("0")}}}'),
    "10,000 resolved": (
        "POST",
        "/events/resolve",
        SERVICE,
        json.dumps({"about": "a:1", "as": "x", "users": [0] * 10_000}),
    ),
    "data": ("POST", "/events", SERVICE, event('{"users": [1]}', keys("1"))),
    "data below": ("POST", "/events", SERVICE, event('{"users": [1]}', f'{{"user": 1, "case": {keys("1")}}}', "note")),
    "about": ("POST", "/events", SERVICE, event('{"users": [1]}', more=f', "about": {many("0")}')),
    "ids": ("PUT", "/notifications/read", USER, f'{{"ids": {many("0")}}}'),
    "replay": ("POST", "/operations/replay", SERVICE, f'{{"events": {many("0")}}}'),
    "nested arrays": ("POST", "/events", SERVICE, f'{{"x": {many("[" * 28 + "]" * 28)}}}'),
    "empty arrays": ("POST", "/events", SERVICE, f'{{"x": {many("[]")}}}'),
    "small objects": ("POST", "/events", SERVICE, f'{{"x": {many(json.dumps({"a": 0}))}}}'),
    "texts of brackets": ("POST", "/events", SERVICE, f'{{"x": {many(json.dumps("[,{"))}}}'),
    "activities": (
        "POST",
        "/events",
        SERVICE,
        event('{"users": [1]}', f'{{"user": 1, "event": "activity_created", "activities": {many("0")}}}', "high_fived"),
    ),
    "batch, zeros": ("POST", "/events/batch", SERVICE, batch(event(f'{{"users": {many("0", 8_000)}}}'))),
    "batch, few with many": ("POST", "/events/batch", SERVICE, batch(event(json.dumps({"users": [0] * 10_000})))),
    "batch, data": (
        "POST",
        "/events/batch",
        SERVICE,
        batch(event('{"users": [1]}', json.dumps({f"k{n}": 1 for n in range(500)}))),
    ),
    "batch, no events": ("POST", "/events/batch", SERVICE, f'{{"events": [{",".join(["0"] * 1000)}]}}'),
}
# fmt: on


async def lag() -> float:
    """Return the most processor time that one turn of the event loop took, until cancelled."""
    longest, last = 0.0, time.thread_time()
    try:
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now
    except asyncio.CancelledError:
        return longest


async def call(api: Api, method: str, path: str, caller: str, body: Any) -> httpx.Response:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    more: dict[str, Any] = {"content": sent, "headers": {"Content-Type": "application/json"}}
    if caller == USER:
        return await api.as_user(1, method, path, **more)
    return await api.as_service(method, path, "events:write", "directory:write", "operations", **more)


@pytest.mark.parametrize("name", BODIES)
async def test_countless_errors_are_reported_briefly_without_delaying_others(idle: Api, name: str) -> None:
    await idle.people(1)
    method, path, caller, text = BODIES[name]
    body = text.encode()
    watching = asyncio.create_task(lag())
    await asyncio.sleep(0)
    answer = await call(idle, method, path, caller, body)
    watching.cancel()
    assert await watching < LONGEST_LAG
    assert answer.status_code in {400, 422}, answer.text[:300]
    assert len(answer.content) <= LARGEST_ANSWER
    assert 1 <= len(answer.json()["errors"]) <= MAX_FIELD_ERRORS
    tracemalloc.start()
    try:
        await call(idle, method, path, caller, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * max(len(body), MIB)


async def test_first_100_errors_are_listed_and_the_others_counted(idle: Api) -> None:
    await idle.people(1)
    body: dict[str, Any] = {"message": "x", "notify": {"users": [0] * 250}}
    answer = (await call(idle, "POST", "/notifications", USER, body)).json()
    assert [error["field"] for error in answer["errors"]] == [f"notify.users.{number}" for number in range(100)]
    assert answer["more"] == 150
    few = (await call(idle, "POST", "/notifications", USER, {"message": "x", "notify": {"users": [1, 99, "a"]}})).json()
    assert [error["field"] for error in few["errors"]] == ["notify.users.1", "notify.users.2"]
    assert "more" not in few
    team = {"name": "x", "users": [0, "a"] * 100}
    answer = (await call(idle, "PUT", "/directory/teams/9", SERVICE, team)).json()
    assert [error["code"] for error in answer["errors"][:2]] == ["validation.numeric_between", "validation.integer"]
    assert (len(answer["errors"]), answer["more"], answer["errors"][99]["field"]) == (100, 100, "users.99")


@pytest.mark.parametrize(("name", "due"), [("ø" * 100, 100), ("🔔" * 60, 100), ("🔔" * 199, 36), ("\x01" * 199, 24)])
async def test_as_many_errors_are_reported_as_fit_into_60000_bytes(idle: Api, name: str, due: int) -> None:
    await idle.people(1)
    kinds: dict[str, Any] = {f"{name[:-2]}{number:02}": {} for number in range(100)}
    answer = await call(idle, "PATCH", "/notifications/preferences", USER, {"kinds": kinds})
    reported = len(answer.json()["errors"])
    assert (reported, reported + answer.json().get("more", 0)) == (due, 100)
    assert due == 100 or 58_000 < len(answer.content) <= 60_100


async def test_batch_lists_errors_of_first_invalid_events_and_counts_all(idle: Api) -> None:
    await idle.people(1)
    one = json.loads(event('{"users": [1, 98, 99]}', '{"user": 1, "a": 1, "b": 2}'))
    right = json.loads(event('{"users": [1]}'))
    answer = (await call(idle, "POST", "/events/batch", SERVICE, {"events": [right, *[one] * 60]})).json()
    fields = [
        f"events.{n}.{name}" for n in range(1, 61) for name in ("data.a", "data.b", "notify.users.1", "notify.users.2")
    ]
    assert [error["field"] for error in answer["errors"]] == fields[:100]
    assert answer["more"] == 140


async def test_recipients_and_exceptions_are_limited_to_10000_together(idle: Api) -> None:
    await idle.people(1)
    for notify in ({"users": [1] * 5_000, "except": [2] * 5_001}, {"users": [1] * 5_000, "teams": [2] * 5_001}):
        posted = {"type": "custom", "data": {"user": 1}, "params": {"body": "x"}, "notify": notify}
        answer = await call(idle, "POST", "/events", SERVICE, posted)
        assert [error["code"] for error in answer.json()["errors"]] == ["validation.array_between"]


async def test_user_cannot_set_except_or_unknown(idle: Api) -> None:
    await idle.people(1, 2)
    body: dict[str, Any] = {"message": "x", "notify": {"users": [2], "except": [2], "unknown": "skip"}}
    assert (await call(idle, "POST", "/notifications", USER, body)).status_code == 202
    assert await idle.app_state.database.value("select cardinality(excepted) from events") == 0
    body["notify"]["users"] = [99]
    assert (await call(idle, "POST", "/notifications", USER, body)).status_code == 422
