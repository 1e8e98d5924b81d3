"""An erased id that is used again inherits no token, stream, device, preference, key or cursor."""

import asyncio
import json
import time
from collections.abc import Awaitable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.support.events import accepted, custom, in_future
from tests.support.service import HOUR, SECRET, STREAM, Api
from tests.support.tokens import signed
from tests.support.waiting import bounded, reaches, until
from tests.support.workers import work
from tocsin import inbox, marks, pages
from tocsin.auth.claims import CLOCK_SKEW, UserCaller
from tocsin.auth.minting import mint_user
from tocsin.errors import NotFound, Unauthenticated
from tocsin.streams import Stream

PERSON = 50
PHONE = "ab" * 32
NAMES = {"first_name": "Somebody", "last_name": "Else"}
KEY = {"Idempotency-Key": "the same"}
MESSAGE = {"message": "Hello", "notify": {"users": [1]}}


def token(issued: float | None, id_: int = PERSON) -> str:
    claims = {"sub": str(id_), "iat": issued, "exp": int(time.time()) + 3600}
    return signed({"alg": "HS256"}, {name: value for name, value in claims.items() if value is not None}, SECRET)


async def put(api: Api, id_: int = PERSON, **more: Any) -> None:
    answer = await api.as_service("PUT", f"/directory/users/{id_}", json={**NAMES, **more})
    assert answer.status_code == 204


async def erase(api: Api) -> None:
    assert (await api.as_service("DELETE", f"/directory/users/{PERSON}")).status_code == 204


async def by_import(api: Api) -> None:
    line = json.dumps({"user": {"id": PERSON, **NAMES}})
    answer = await api.as_service(
        "POST", "/directory/import", content=line, headers={"Content-Type": "application/x-ndjson"}
    )
    assert answer.status_code == 200, answer.text


async def words(api: Api, token: str, path: str = "/notifications", **headers: str) -> tuple[int, str]:
    answer = await api.call("GET", path, token, headers=headers)
    return answer.status_code, "" if answer.is_success else answer.json()["errors"][0]["message"]


CREATED = f"The token was issued before user {PERSON} was created."
WITHOUT_IAT = f"The token does not say when it was issued (iat), and user {PERSON} has the id of an erased user."
OPEN = (200, "")


class TestTokens:
    @pytest.mark.parametrize("path", ["", "/changes", "/changes?since=1-1", "/preferences"])
    async def test_token_issued_before_the_user_was_created_is_401(self, api: Api, path: str) -> None:
        await put(api)
        now = time.time()
        for issued, due in (
            (now, OPEN),
            (now - 20, OPEN),
            (now - 60, (401, CREATED)),
            (1, (401, CREATED)),
            (None, OPEN),
        ):
            assert await words(api, token(issued), f"/notifications{path}") == due, issued

    @pytest.mark.parametrize("create", [put, by_import])
    async def test_tokens_of_the_previous_user_are_rejected_immediately(self, api: Api, create: Any) -> None:
        for _ in range(3):
            await put(api)
            former = mint_user(SECRET, PERSON, HOUR)
            assert await words(api, former) == OPEN
            tag = (await api.call("GET", "/notifications", former)).headers["etag"]
            await erase(api)
            await create(api)
            assert await words(api, former) == (401, CREATED)
            assert await words(api, former, **{"If-None-Match": tag}) == (401, CREATED)
            assert await words(api, token(None)) == (401, WITHOUT_IAT)
            assert await words(api, token(time.time() + 1)) == OPEN

    @pytest.mark.parametrize(("after", "is_admitted"), [(-0.25, False), (0, True)])
    async def test_token_may_be_30_seconds_older_than_its_user_for_clocks_that_differ(
        self, idle: Api, after: float, *, is_admitted: bool
    ) -> None:
        assert CLOCK_SKEW == 30
        await put(idle)
        database = idle.app_state.database
        created = datetime(2026, 1, 2, 3, 4, 5, 500_000, UTC)
        await database.value("update heads set made_at = $1", created)
        caller = UserCaller(PERSON, 2**31, created.timestamp() - CLOCK_SKEW + after)
        for call in (lambda: inbox.owner(database, caller), lambda: inbox.changes(database, caller, "0-0")):
            with nullcontext() if is_admitted else pytest.raises(Unauthenticated, match="issued before"):
                await call()

    async def test_refusal_says_that_the_token_is_invalid(self, idle: Api) -> None:
        await put(idle)
        await erase(idle)
        await put(idle)
        for issued, message in ((None, WITHOUT_IAT), (1, CREATED)):
            answer = await idle.call("GET", "/notifications", token(issued))
            assert answer.json()["errors"][0]["message"] == message
            assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'

    async def test_tokens_of_the_new_user_are_accepted_immediately(self, api: Api) -> None:
        for _ in range(3):
            await put(api)
            await erase(api)
            await put(api)
            assert await words(api, mint_user(SECRET, PERSON, HOUR)) == OPEN

    async def test_tokens_of_a_changed_user_stay_valid(self, api: Api) -> None:
        await put(api)
        good = mint_user(SECRET, PERSON, HOUR)
        for more in ({"active": False}, {"active": True}, {"company_id": 2}, {"first_name": "Jane"}):
            await put(api, **more)
        assert await words(api, good) == OPEN

    async def test_clock_set_back_logs_no_user_out(self, api: Api) -> None:
        await put(api)
        await api.app_state.database.value("update heads set made_at = made_at + interval '1 hour'")
        assert await words(api, token(time.time() - 300)) == OPEN

    async def test_unknown_or_inactive_user_is_reported_with_the_id(self, api: Api) -> None:
        unknown = f"The token is valid, but user {PERSON} is not in the directory."
        for path in ("/notifications", "/notifications/changes", "/notifications/preferences", STREAM):
            assert await words(api, token(time.time()), path) == (401, unknown)
        await put(api, active=False)
        assert await words(api, token(time.time())) == (401, f"The token is valid, but user {PERSON} is not active.")


async def test_reused_id_inherits_nothing(api: Api) -> None:
    await api.people(1)
    await put(api)
    choice = {"time_zone": "Asia/Tokyo", "kinds": {"custom": {"push": False}}}

    async def call(method: str, path: str, **more: Any) -> httpx.Response:
        answer = await api.as_user(PERSON, method, path, **more)
        assert answer.is_success, answer.text
        return answer

    usual = (await call("GET", "/notifications/preferences")).json()
    await call("PATCH", "/notifications/preferences", json=choice)
    await call("POST", f"/notifications/devices/{PHONE}")
    await call("POST", "/notifications", json=MESSAGE, headers=KEY)
    await api.post(custom(PERSON))
    cursor = (await call("GET", "/notifications/changes")).json()["cursor"]
    await erase(api)
    await put(api)
    assert (await call("GET", "/notifications/preferences")).json() == usual
    assert (await call("GET", "/notifications/devices")).json() == {"data": []}
    assert (await call("GET", f"/notifications/changes?since={cursor}")).json()["resync"] is True
    assert await api.ids(PERSON) == []
    await call("POST", "/notifications", json=MESSAGE, headers=KEY)

    async def count() -> int:
        return len(await api.ids(1))

    await reaches(count, 2)  # the same key is another's: this was posted, too


async def test_event_waiting_for_previous_user_skips_the_new_one(api: Api) -> None:
    await put(api)
    event = {**custom(PERSON), "deliver_at": in_future()}
    id_ = (await api.as_service("POST", "/events", json=event)).json()["id"]
    await erase(api)
    await put(api)
    explained = await api.as_service("GET", f"/events/{id_}/recipients/{PERSON}")
    assert explained.json()["why"] == "left out: the id was another user's when the event was posted"
    found = await api.as_service("GET", f"/operations/users/{PERSON}/events", "operations")
    assert found.json()["data"] == []
    own = (await api.as_service("POST", "/events", json=event)).json()["id"]
    found = await api.as_service("GET", f"/operations/users/{PERSON}/events", "operations")
    assert [each["event_id"] for each in found.json()["data"]] == [own]
    explained = await api.as_service("GET", f"/events/{own}/recipients/{PERSON}")
    assert explained.json()["why"].startswith("not delivered yet")


async def test_event_accepted_for_the_previous_user_skips_the_new_one(idle: Api) -> None:
    await put(idle)
    await idle.people(1)
    former = str(await accepted(idle, PERSON, 1))
    await erase(idle)
    await put(idle)
    own = str(await accepted(idle, PERSON))
    await work(idle)
    assert (await idle.ids(PERSON), await idle.ids(1)) == ([own], [former])


HEADS = {
    "made now": "update heads set tokens_from = null, made_at = $2",
    "tokens from now": "update heads set tokens_from = $2, made_at = $2",
    "made before the clock was put back": "update heads set tokens_from = null, made_at = $2::timestamptz + '1 h'",
    "inactive": "update heads set active = false, tokens_from = null, made_at = $2",
}


@pytest.mark.parametrize("state", HEADS)
async def test_marks_admit_exactly_the_tokens_that_pages_admit(idle: Api, state: str) -> None:
    await put(idle)
    database, moment = idle.app_state.database, datetime.now(UTC)
    await database.rows(f"{HEADS[state]} where user_id = $1", PERSON, moment)
    now, unknown, seen = moment.timestamp(), UUID(int=1), set()
    for issued in (None, now - 30.001, now - 30, now - 29, now - 0.000_001, now, now + 0.000_001, now + 60, now + 7200):
        user = UserCaller(PERSON, 0, issued)
        refused = await said(pages.Pages(database).of(user, unread=False, limit=1))
        seen.add(refused == "")
        single = marks.SingleMarks(database)
        calls = single.read(user, unknown), single.unread(user, unknown), single.delete(user, unknown)
        for call in (*calls, inbox.one(database, user, unknown)):
            assert await said(call) == (refused or "not found"), issued
        for call in (marks.read_all(database, user), marks.read_some(database, user, [unknown])):
            assert await said(call) == refused, issued
    assert seen == ({False} if state == "inactive" else {True} if "clock" in state else {True, False})


async def said(call: Awaitable[object]) -> str:
    """Return why a call was refused."""
    try:
        await call
    except Unauthenticated as error:
        return str(error)
    except NotFound:
        return "not found"
    return ""


async def test_stream_of_previous_user_never_shows_the_new_inbox(api: Api) -> None:
    """Both may follow so fast that no reader saw the id without a user."""
    await put(api)
    issued = time.time()
    reader = Stream(PERSON, issued + 3600, issued=issued)
    told: list[bytes] = []

    async def take(lines: bytes) -> None:
        told.append(lines)

    api.app_state.streams.join(reader)
    running = asyncio.create_task(reader.run(take))
    async with bounded():
        await until(lambda: reader.made)
        await api.app_state.database.rows(
            "with gone as (delete from heads where user_id = $1) update users set first_name = 'Next' where id = $1",
            PERSON,
        )
        await api.app_state.database.rows(
            "insert into heads (user_id, locale, active, tokens_from) values ($1, 'en', true, now() + interval '1 s')",
            PERSON,
        )
        [head] = (await inbox.heads(api.app_state.database, [PERSON])).values()
        assert head[0] != reader.made
        api.app_state.streams.changed([PERSON])
        await running
    api.app_state.streams.leave(reader)
    assert b"resync" not in b"".join(told)
