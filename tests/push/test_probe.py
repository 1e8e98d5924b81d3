"""Test pushes report the response of the push service."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.pushes import ANDROID, IPHONE, OTHER_IPHONE, register, shown
from tests.support.service import Api, serving
from tocsin.catalogue import Catalogue
from tocsin.cli import doctor
from tocsin.push import probe
from tocsin.push.channels import Stopped
from tocsin.push.content import Composer
from tocsin_phones import Phones


@pytest.fixture
def api(pushing: Api) -> Api:
    return pushing


async def send_test(api: Api, user: int, token: str) -> httpx.Response:
    return await api.as_user(user, "POST", f"/notifications/devices/{token}/test")


async def probe_result(api: Api, token: str = IPHONE) -> tuple[str, str]:
    answer = await send_test(api, 1, token)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found["state"], found["reason"]


@pytest.mark.parametrize(
    ("token", "type_", "lane"), [(IPHONE, "iOS", "apns/default"), (ANDROID, "Android", "fcm/default")]
)
async def test_test_push_reaches_own_phone_and_no_inbox(
    api: Api,
    phones: Phones,
    token: str,
    type_: str,
    lane: str,
) -> None:
    await register(api, 1, token, type=type_)
    answer = await send_test(api, 1, token.upper() if type_ == "iOS" else token)
    assert answer.json() == {"lane": lane, "state": "delivered", "reason": "delivered"}
    [push] = phones.pushes(token=token)
    assert "Test: notifications reach this device" in str(push["payload"])
    assert (await api.inbox(1))["data"] == []


async def test_test_push_reaches_own_browser(api: Api, phones: Phones) -> None:
    key = (await api.as_user(1, "GET", "/notifications/web-push/key")).json()["key"]
    subscription = phones.subscribe(key)
    await api.as_user(1, "POST", "/notifications/web-push", json=subscription)
    answer = await api.as_user(1, "POST", "/notifications/web-push/test", json={"endpoint": subscription["endpoint"]})
    assert answer.json() == {"lane": "web/default", "state": "delivered", "reason": "delivered"}
    [push] = phones.pushes("browser")
    assert push["payload"]["title"] == "Test: notifications reach this device"


async def test_test_push_to_another_users_phone_is_rejected(api: Api, phones: Phones) -> None:
    await register(api, 2, IPHONE)
    for token in (IPHONE, OTHER_IPHONE, "x"):
        answer = await send_test(api, 1, token)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "not_found")
    assert shown(phones, IPHONE) == []


async def test_test_push_rate_limit_is_five_per_minute(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    await register(api, 2, OTHER_IPHONE)
    answers = await asyncio.gather(*(send_test(api, 1, IPHONE) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 3
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["errors"][0]["code"] == "rate_limited"
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit-policy"].endswith('"test-pushes";q=5;w=60')
    assert '"test-pushes";r=0;t=' in refused.headers["ratelimit"]
    assert len(phones.pushes(token=IPHONE)) == 5
    assert (await send_test(api, 2, OTHER_IPHONE)).status_code == 200, "another's tests are not counted"


async def test_test_push_reports_and_deletes_unregistered_phone(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    phones.answer("apns", token=IPHONE, status=410, reason="Unregistered", times=1)
    assert await probe_result(api) == ("gone", "the device is gone: 410 Unregistered")
    assert (await api.as_user(1, "GET", "/notifications/devices")).json()["data"] == []


@pytest.mark.parametrize(
    ("status", "reason", "due"),
    [
        (503, "ServiceUnavailable", "later"),
        (400, "BadDeviceToken", "refused"),
        (403, "InvalidProviderToken", "stopped"),
    ],
)
async def test_test_push_reports_provider_error_and_keeps_the_phone(
    api: Api,
    phones: Phones,
    status: int,
    reason: str,
    due: str,
) -> None:
    await register(api, 1, IPHONE)
    phones.answer("apns", status=status, reason=reason, times=1)
    state, why = await probe_result(api)
    assert state == due
    assert reason in why
    assert len((await api.as_user(1, "GET", "/notifications/devices")).json()["data"]) == 1


async def test_test_push_reports_app_without_a_key(api: Api) -> None:
    await register(api, 1, IPHONE, app="another")
    assert await probe_result(api) == ("stopped", "no key is set for this provider and app")


async def test_support_sends_a_test_push_to_a_device_of_a_user(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    await register(api, 1, ANDROID, type="Android")
    answers = [await send_by_support(api, 1, device) for device in await devices_of(api, 1)]
    assert {answer.json()["lane"]: answer.json()["state"] for answer in answers} == {
        "apns/default": "delivered",
        "fcm/default": "delivered",
    }
    for token in (IPHONE, ANDROID):
        [push] = phones.pushes(token=token)
        assert "Test: notifications reach this device" in str(push["payload"])
    assert (await api.inbox(1))["data"] == []


async def test_support_sends_no_test_push_to_inactive_users_or_moved_devices(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    [device] = await devices_of(api, 1)
    for company_id, user in ((2, 1), (None, 2)):
        assert (await send_by_support(api, user, device, company_id)).status_code == 404
    await api.people(1, active=False)
    assert (await send_by_support(api, 1, device)).json() == {
        "lane": "apns/default",
        "state": "skipped",
        "reason": "the user is not active: nothing is delivered",
    }
    await register(api, 2, IPHONE)
    for user in (1, 2):
        assert (await send_by_support(api, user, device)).status_code == 404, "another user has the phone now"
    assert shown(phones, IPHONE) == []


async def test_support_and_user_share_the_limit_of_test_pushes(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    [device] = await devices_of(api, 1)
    for _ in range(3):
        assert (await send_test(api, 1, IPHONE)).status_code == 200
    answers = [await send_by_support(api, 1, device) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert len(phones.pushes(token=IPHONE)) == 5


async def devices_of(api: Api, user: int) -> list[str]:
    answer = await api.as_service("GET", f"/operations/users/{user}", "operations:support")
    return [device["id"] for device in answer.json()["devices"]]


async def send_by_support(api: Api, user: int, device: str, company_id: int | None = None) -> httpx.Response:
    path = f"/operations/users/{user}/devices/{device}/test"
    return await api.as_service("POST", path, "operations:support", company_id=company_id)


async def test_test_push_works_without_a_worker(url: str, catalogue: Catalogue, tmp_path: Path) -> None:
    async with (
        Phones() as stands_in,
        serving(url, catalogue, with_worker=False, environment=stands_in.credentials(tmp_path)) as api,
    ):
        await api.people(1)
        await register(api, 1, IPHONE)
        assert await probe_result(api) == ("delivered", "delivered")


@pytest.mark.slow
async def test_doctor_tests_the_credentials_of_each_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOCSIN_DATA_DIR", str(tmp_path / "data"))
    async with Phones() as stands_in:
        for name, value in stands_in.credentials(tmp_path).items():
            monkeypatch.setenv(name, value)

        async def found() -> dict[str, str]:
            return {each.what: each.level for each in await doctor.examine() if each.what.startswith("push ")}

        lanes = ("push apns/default", "push apns/default/sandbox", "push fcm/default")
        assert await found() == dict.fromkeys(lanes, "ok")
        monkeypatch.setenv("TOCSIN_APNS_KEY_ID", "WRONGKEYID")
        assert (await found())["push apns/default"] == "FAIL"
    assert set((await found()).values()) == {"warn"}, "a provider that can't be reached is no wrong key"


async def test_doctor_distinguishes_fcm_token_rejection_from_network_errors(api: Api, phones: Phones) -> None:
    phones.answer("fcm", status=401, reason="UNAUTHENTICATED")
    [lane] = [lane for lane in api.app_state.lanes if lane.name == "fcm/default"]
    wrong = await probe.credentials(lane, Composer(api.app_state.catalogue), "Android")
    assert wrong == Stopped("401 UNAUTHENTICATED")
