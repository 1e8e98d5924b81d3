"""Devices: a token belongs to the user who registered it last, and no user learns of another."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.support.service import Api

IPHONE = "AB" * 32
ANDROID = "fcm_Token:" + "x-9" * 40
INSTALLATION = "d" + "A_-9" * 5 + "z"


async def register(api: Api, user: int, token: str, **body: Any) -> httpx.Response:
    more = {"json": body} if body else {}
    return await api.as_user(user, "POST", f"/notifications/devices/{token}", **more)


async def listed(api: Api, user: int) -> list[dict[str, Any]]:
    answer = await api.as_user(user, "GET", "/notifications/devices")
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


async def test_device_registration_is_idempotent_in_both_forms(api: Api) -> None:
    await api.people(1)
    assert (await register(api, 1, IPHONE)).status_code == 204
    again = await api.as_user(1, "POST", "/notifications/devices", json={"token": IPHONE.lower(), "app": "sales"})
    assert (again.status_code, again.content) == (204, b"")
    [device] = await listed(api, 1)
    assert list(device) == ["type", "environment", "app", "token_ending", "registered_at", "last_delivered_at"]
    assert (device["type"], device["environment"], device["app"]) == ("iOS", "production", "sales")
    assert (device["token_ending"], device["last_delivered_at"]) == ("ababab", None)


@pytest.mark.parametrize(
    ("token", "body"),
    [
        (IPHONE, {"type": "iOS", "environment": "sandbox"}),
        (ANDROID, {"type": "Android"}),
        (INSTALLATION, {"type": "Android", "provider": "fcm"}),
        (INSTALLATION, {"type": "iOS", "provider": "fcm"}),
        ("0f" * 256, {}),
    ],
)
async def test_device_tokens_of_both_providers_are_accepted(api: Api, token: str, body: dict[str, str]) -> None:
    await api.people(1)
    assert (await register(api, 1, token, **body)).status_code == 204
    [device] = await listed(api, 1)
    assert device["token_ending"] == (token if "provider" in body or "Android" in body.values() else token.lower())[-6:]


@pytest.mark.parametrize(
    ("token", "body", "expected"),
    [
        ("xyz", {}, ("token", "regex")),
        ("abc", {}, ("token", "regex")),
        ("ab" * 257, {}, ("token", "regex")),
        ("a" * 31, {}, ("token", "regex")),
        (ANDROID, {}, ("token", "regex")),
        ("b" + "A" * 21, {"type": "Android"}, ("token", "regex")),
        (f"{IPHONE}%2F", {}, ("token", "regex")),
        ("a%2fb", {"type": "Android"}, ("token", "regex")),
        (f"{ANDROID}%00", {"type": "Android"}, ("token", "regex")),
        ("%00", {}, ("token", "regex")),
        ("%ff", {}, ("token", "regex")),
        ("a%2Ftest", {}, ("token", "regex")),
        (f"{IPHONE}/", {}, None),
        (IPHONE, {"type": "ios"}, ("type", "in")),
        (IPHONE, {"type": 7}, ("type", "in")),
        (IPHONE, {"environment": "test"}, ("environment", "in")),
        (ANDROID, {"type": "Android", "provider": "apns"}, ("provider", "in")),
        (ANDROID, {"type": "Android", "provider": ["fcm"]}, ("provider", "in")),
        (IPHONE, {"provider": 7}, ("provider", "in")),
        (IPHONE, {"provider": "web"}, ("provider", "in")),
        (IPHONE, {"app": "a b"}, ("app", "regex")),
        (IPHONE, {"app": 7}, ("app", "string")),
        (IPHONE, {"replaces": 7}, ("replaces", "string")),
    ],
)
async def test_invalid_device_registration_is_reported(
    api: Api, token: str, body: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    await api.people(1)
    answer = await register(api, 1, token, **body)
    if expected is None:
        assert answer.status_code == 404
    else:
        assert [(each["field"], each["code"]) for each in answer.json()["errors"]] == [
            (expected[0], f"validation.{expected[1]}")
        ]
    assert await listed(api, 1) == []


@pytest.mark.parametrize("token", ["a%2Fb", "%00", f"{IPHONE}%2f", f"{IPHONE}%00", f"{IPHONE}%252F"])
async def test_token_with_an_encoded_slash_or_nul_names_no_device(api: Api, token: str) -> None:
    await api.people(1)
    await register(api, 1, IPHONE)
    assert (await api.as_user(1, "DELETE", f"/notifications/devices/{token}")).status_code == 204
    assert (await api.as_service("DELETE", f"/directory/users/1/devices/{token}")).status_code == 204
    once = {"Idempotency-Key": "a"}
    assert (await api.as_user(1, "POST", f"/notifications/devices/{token}/test", headers=once)).status_code == 404
    assert (await api.as_user(1, "PATCH", f"/notifications/devices/{token}")).status_code == 405
    assert len(await listed(api, 1)) == 1


async def test_token_is_decoded_once(api: Api) -> None:
    await api.people(1)
    encoded = "".join(f"%{ord(character):02x}" for character in ANDROID)
    assert (await register(api, 1, encoded, type="Android")).status_code == 204
    assert (await register(api, 1, encoded.replace("%", "%25"), type="Android")).status_code == 422
    assert [device["token_ending"] for device in await listed(api, 1)] == [ANDROID[-6:]]


async def test_registered_phone_belongs_to_its_latest_user_only(api: Api) -> None:
    await api.people(1, 2)
    await register(api, 1, IPHONE)
    assert (await register(api, 2, IPHONE)).content == b""
    assert await listed(api, 1) == []
    assert (await api.as_user(1, "DELETE", f"/notifications/devices/{IPHONE}")).status_code == 204
    assert len(await listed(api, 2)) == 1
    assert (await api.as_user(2, "DELETE", f"/notifications/devices/{IPHONE}")).status_code == 204
    assert await listed(api, 2) == []


async def test_device_token_replaces_only_own_tokens(api: Api) -> None:
    await api.people(1, 2)
    await register(api, 1, "aa" * 32)
    await register(api, 2, "bb" * 32)
    await register(api, 1, "cc" * 32, replaces="AA" * 32)
    await register(api, 1, "dd" * 32, replaces="bb" * 32)
    assert [device["token_ending"] for device in await listed(api, 1)] == ["dddddd", "cccccc"]
    assert [device["token_ending"] for device in await listed(api, 2)] == ["bbbbbb"]


FIREBASE = "c" * 11 + "_:" + "x" * 100


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((FIREBASE, {"provider": "fcm"}), (IPHONE, {})),
        ((IPHONE, {}), (FIREBASE, {"provider": "fcm"})),
        ((IPHONE.lower(), {}), (FIREBASE, {"provider": "fcm"})),
    ],
)
async def test_device_token_replaces_one_of_another_provider(api: Api, before: Any, after: Any) -> None:
    await api.people(1)
    await register(api, 1, before[0], **before[1])
    await register(api, 1, after[0], **after[1], replaces=before[0])
    assert [device["token_ending"].lower() for device in await listed(api, 1)] == [after[0][-6:].lower()]


async def test_device_limit_of_50_evicts_the_longest_unused(api: Api) -> None:
    await api.people(1)
    for number in range(50):
        await register(api, 1, f"{number:064x}")
    await api.app_state.database.value("update devices set last_delivered_at = now() where token = $1", f"{0:064x}")
    await register(api, 1, f"{50:064x}")
    endings = {device["token_ending"] for device in await listed(api, 1)}
    assert endings == {f"{number:06x}" for number in range(51)} - {"000001"}


async def test_concurrent_registrations_leave_a_phone_with_one_user(api: Api) -> None:
    await api.people(1, 2)
    tokens = ["ab" * 32, "cd" * 32]
    calls = [register(api, user, token) for _ in range(6) for user in (1, 2) for token in tokens]
    assert {answer.status_code for answer in await asyncio.gather(*calls)} == {204}
    assert len(await listed(api, 1)) + len(await listed(api, 2)) == 2


@pytest.mark.usefixtures("unlimited")
async def test_concurrent_token_exchanges_do_not_deadlock(api: Api) -> None:
    await api.people(1, 2)
    tokens = ["ab" * 32, "cd" * 32]
    for _ in range(30):
        for user, token in zip((1, 2), tokens, strict=True):
            await register(api, user, token)
        calls = [register(api, user, tokens[2 - user], replaces=tokens[user - 1]) for user in (1, 2)]
        assert {answer.status_code for answer in await asyncio.gather(*calls)} == {204}
        owned = [device["token_ending"] for user in (1, 2) for device in await listed(api, user)]
        assert sorted(owned) == ["ababab", "cdcdcd"]


@pytest.mark.usefixtures("unlimited")
async def test_erasure_and_device_registration_do_not_deadlock(api: Api) -> None:
    tokens = [f"{number:064x}" for number in range(4)]
    await api.people(2)
    for person in range(10, 25):  # a new one each time: an id that was erased returns a second later at the earliest
        await api.people(person)
        for token in tokens:
            await register(api, person, token)
        calls = [register(api, person, token, replaces=tokens[number - 1]) for number, token in enumerate(tokens)]
        calls.insert(2, api.as_service("DELETE", f"/directory/users/{person}"))
        calls += [register(api, 2, token, replaces=tokens[number - 1]) for number, token in enumerate(tokens)]
        answers = await asyncio.gather(*calls)
        assert answers[2].status_code == 204
        assert {answer.status_code for answer in answers} <= {204, 401}, [answer.text for answer in answers]
        owners = await api.app_state.database.rows("select distinct user_id from devices")
        assert {row["user_id"] for row in owners} <= {2}  # none if the erasure came last
        assert (await register(api, 2, tokens[0])).status_code == 204
        assert await listed(api, 2)


async def test_service_detaches_a_lost_device(api: Api) -> None:
    await api.people(1)
    await api.people(2, company_id=2)
    for token in ("aa" * 32, "bb" * 32, "cc" * 32):
        await register(api, 1, token)
    path = "/directory/users/1/devices"
    assert (await api.as_service("DELETE", f"{path}/{'AA' * 32}")).status_code == 204
    assert len(await listed(api, 1)) == 2
    assert (await api.as_service("DELETE", path, company_id=2)).status_code == 404
    assert (await api.as_service("DELETE", path)).status_code == 204
    assert await listed(api, 1) == []


async def test_device_registration_rejects_trailing_comma(api: Api) -> None:
    await api.people(1)
    headers = {"Content-Type": "application/json"}
    path = f"/notifications/devices/{IPHONE}"
    answer = await api.as_user(1, "POST", path, content=b'{"type": "iOS",}', headers=headers)
    assert answer.status_code == 400


async def test_erased_or_inactive_user_cannot_register_devices(api: Api) -> None:
    await api.people(1)
    await register(api, 1, IPHONE)
    await api.people(1, active=False)
    assert (await register(api, 1, "ee" * 32)).status_code == 401
    await api.as_service("DELETE", "/directory/users/1")
    assert await api.app_state.database.value("select count(*) from devices") == 0
