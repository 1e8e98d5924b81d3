"""A POST request with an Idempotency-Key does its work once, however often it is sent."""

import asyncio
from typing import Any

import httpx
import pytest

from conftest import HOUR, SECRET, Api
from test_road import custom
from tocsin.tokens import mint_user

KEY = {"Idempotency-Key": "order-42"}


async def post(api: Api, body: Any = None, key: str = "order-42", **more: Any) -> httpx.Response:
    return await api.as_service("POST", "/events", json=body or custom(1), headers={"Idempotency-Key": key}, **more)


async def events(api: Api) -> int:
    count: int = await api.house.database.value("select count(*) from events")
    return count


async def test_a_repeat_is_answered_as_the_first_time_and_does_nothing(api: Api) -> None:
    await api.people(1)
    first = await post(api)
    again = await post(api)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.content == first.content
    assert again.headers["content-type"] == first.headers["content-type"]
    assert await events(api) == 1
    state = await api.as_service("GET", f"/events/{first.json()['id']}?wait=10")
    assert state.json()["recipients"] == 1


async def test_repeats_at_once_wait_for_the_first(api: Api) -> None:
    await api.people(1)
    answers = await asyncio.gather(*[post(api) for _ in range(5)])
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert await events(api) == 1


async def test_the_key_with_another_body_is_refused(api: Api) -> None:
    await api.people(1)
    await post(api)
    answer = await post(api, custom(1, body="another"))
    assert answer.status_code == 409
    assert answer.json()["errors"][0]["code"] == "conflict.key_reused"
    assert await events(api) == 1


async def test_keys_of_other_callers_companies_and_paths_are_others(api: Api) -> None:
    await api.people(1)
    ids = {(await post(api)).json()["id"], (await post(api, name="erp")).json()["id"]}
    ids.add((await post(api, company_id=1)).json()["id"])
    batch = await api.as_service("POST", "/events/batch", json={"events": [custom(1)]}, headers=KEY)
    ids.update(batch.json()["ids"])
    assert len(ids) == await events(api) == 4


async def test_a_failure_is_not_kept(api: Api) -> None:
    await api.people(1)
    assert (await post(api, custom(1, 2))).status_code == 422
    assert (await post(api, {"type": "none"})).status_code == 422
    assert await api.house.database.value("select count(*) from idempotency_keys") == 0
    await api.people(2)
    assert (await post(api, custom(1, 2))).status_code == 202


async def test_a_batch_and_what_users_write_are_done_once_too(api: Api) -> None:
    await api.people(1, 2)
    batch = {"events": [custom(1), custom(1)]}
    answers = [await api.as_service("POST", "/events/batch", json=batch, headers=KEY) for _ in range(2)]
    assert answers[0].content == answers[1].content
    message = {"message": "Hello", "notify": {"users": [2]}}
    mine = [await api.as_user(1, "POST", "/notifications", json=message, headers=KEY) for _ in range(2)]
    assert [answer.json() for answer in mine] == [{"queued": True}] * 2
    assert await events(api) == 3


async def test_a_key_is_good_for_a_day(api: Api) -> None:
    await api.people(1)
    first = await post(api)
    await api.house.database.value("update idempotency_keys set kept_at = now() - interval '25 hours'")
    second = await post(api, custom(1, body="another"))
    assert second.status_code == 202
    assert second.json()["id"] != first.json()["id"]


async def test_who_may_no_longer_do_it_is_not_answered_from_memory(api: Api) -> None:
    await api.people(1, 2)
    message = {"message": "Hello", "notify": {"users": [2]}}
    assert (await api.as_user(1, "POST", "/notifications", json=message, headers=KEY)).status_code == 202
    await api.people(1, active=False)
    assert (await api.as_user(1, "POST", "/notifications", json=message, headers=KEY)).status_code == 401
    await post(api, custom(2))
    answer = await api.as_service("POST", "/events", "directory:write", json=custom(2), headers=KEY)
    assert answer.status_code == 403


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_key_has_1_to_255_characters(api: Api, key: str) -> None:
    await api.people(1)
    answer = await post(api, key=key)
    assert answer.status_code == 422
    [fault] = answer.json()["errors"]
    assert (fault["field"], fault["code"]) == ("Idempotency-Key", "validation.string_between")


async def test_the_body_may_still_not_be_too_large_nor_malformed(api: Api) -> None:
    await api.people(1)
    large = await api.as_service("POST", "/events", content=b"x" * (2**20 + 1), headers=KEY)
    assert large.status_code == 413
    bad = await api.as_service("POST", "/events", content=b"{", headers={**KEY, "Content-Type": "application/json"})
    assert bad.status_code == 400
    assert await api.house.database.value("select count(*) from idempotency_keys") == 0


async def test_two_keys_of_one_request_are_refused(idle: Api) -> None:
    await idle.people(1)
    keys = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    by = {"Authorization": f"Bearer {mint_user(SECRET, 1, HOUR)}"}
    body = {"message": "x", "notify": {"users": [1]}}
    answer = await idle.http.post("/notifications", headers=[*by.items(), *keys], json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "Idempotency-Key"


@pytest.mark.parametrize(
    "path", ["/operations/replay", "/notifications/web-push/test", "/notifications/devices/x/test"]
)
async def test_every_post_with_a_key_is_checked_for_it(idle: Api, path: str) -> None:
    await idle.people(1)
    key = {"Idempotency-Key": "x" * 256}
    body = {"lane": "x", "endpoint": "x"}
    call = idle.as_user(1, "POST", path, headers=key, json=body)
    answer = await (idle.as_service("POST", path, "operations", headers=key, json=body) if "replay" in path else call)
    call.close()
    assert answer.json()["errors"][0]["field"] == "Idempotency-Key"
