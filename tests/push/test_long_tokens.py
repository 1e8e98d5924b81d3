"""Device tokens of up to 4,096 characters, which an index of PostgreSQL cannot hold."""

import json
import secrets
from typing import Any

import pytest

from tests.support.events import custom, post
from tests.support.pushes import becomes, pushes_of, register
from tests.support.service import Api
from tests.support.waiting import until
from tocsin.audit import Actor
from tocsin.transfer.exports import export
from tocsin_phones import Phones

LENGTHS = [32, 2047, 2048, 2049, 2704, 4096]


def token_of(length: int) -> str:
    """Return a token that no compression makes shorter."""
    return secrets.token_urlsafe(length)[:length]


@pytest.fixture
def api(pushing: Api) -> Api:
    return pushing


async def devices_of(api: Api, user: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.as_user(user, "GET", "/notifications/devices")).json()["data"]
    return found


@pytest.mark.parametrize("length", LENGTHS)
async def test_token_of_any_length_is_registered_reached_moved_and_detached(
    api: Api, phones: Phones, length: int
) -> None:
    token = token_of(length)
    await register(api, 1, token, type="Android")
    await register(api, 1, token, type="Android")
    [device] = await devices_of(api, 1)
    assert device["token_ending"] == token[-6:]
    assert await pushes_of(api, await api.post(custom(1, body="x" * 512))) == {"delivered": 1}
    [push] = phones.pushes("fcm")
    assert push["payload"]["message"]["token"] == token
    trial = await api.as_user(1, "POST", f"/notifications/devices/{token}/test")
    assert trial.json()["state"] == "delivered"
    [found] = (await api.as_service("GET", f"/operations/devices?ending={token[-6:]}", "operations")).json()["data"]
    assert found["user_id"] == 1
    await register(api, 2, token, type="Android")
    assert await devices_of(api, 1) == []
    assert len(await devices_of(api, 2)) == 1
    assert (await api.as_user(1, "DELETE", f"/notifications/devices/{token}")).status_code == 204
    assert len(await devices_of(api, 2)) == 1
    assert (await api.as_user(2, "DELETE", f"/notifications/devices/{token}")).status_code == 204
    assert await devices_of(api, 2) == []


async def test_long_tokens_replace_each_other_and_stay_distinct(api: Api, phones: Phones) -> None:
    first, second = token_of(4090), token_of(4090)
    both = [first + "ending", second + "ending"]
    for token in both:
        await register(api, 1, token, type="Android")
    assert len(await devices_of(api, 1)) == 2
    await register(api, 1, both[1], type="Android", replaces=both[0])
    assert len(await devices_of(api, 1)) == 1
    await pushes_of(api, await api.post(custom(1)))
    assert [push["token"] for push in phones.pushes("fcm")] == [both[1]]


async def test_unregistered_long_token_is_deleted_and_waiting_one_cleared(api: Api, phones: Phones) -> None:
    token = token_of(4096)
    await register(api, 1, token, type="Android")
    id_ = await api.post(custom(1))
    await becomes(api, id_, {"delivered": 1})
    await api.as_user(1, "PUT", f"/notifications/{id_}/read")
    [clear] = await until(lambda: [push for push in phones.pushes("fcm") if "clear" in str(push["payload"])])
    assert clear["token"] == token
    phones.answer("fcm", status=404, reason="UNREGISTERED", times=1)
    gone = (await post(api, custom(1))).json()["id"]
    await becomes(api, gone, {"gone": 1})
    assert await devices_of(api, 1) == []


async def test_token_over_4096_characters_is_rejected(api: Api) -> None:
    body = {"type": "Android", "token": token_of(4097)}
    answer = await api.as_user(1, "POST", "/notifications/devices", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "validation.regex")


async def test_long_tokens_are_imported_and_exported(api: Api, phones: Phones) -> None:
    token = token_of(4096)
    line = json.dumps({"device": {"user_id": 1, "token": token, "type": "Android"}})
    headers = {"Content-Type": "application/x-ndjson"}
    for _ in range(2):
        answer = await api.as_service("POST", "/directory/import", content=line, headers=headers)
        assert (answer.status_code, answer.json().get("devices")) == (200, 1), answer.text
    assert await pushes_of(api, await api.post(custom(1))) == {"delivered": 1}
    assert [push["token"] for push in phones.pushes("fcm")] == [token]
    lines = [json.loads(line) async for line in export(api.app_state.database, Actor("test"))]
    assert [each["device"]["token"] for each in lines if "device" in each] == [token]
