"""Deliveries of pushes: once, in time, by the preferences of the user, and explained."""

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from tests.support.database import slow
from tests.support.events import CASE, custom, in_future, note, post
from tests.support.pushes import (
    ANDROID,
    IPHONE,
    OTHER_IPHONE,
    becomes,
    comes_to,
    hurry,
    prefer,
    push_report,
    pushes_of,
    register,
    shown,
    until_stopped,
)
from tests.support.service import Api, serving
from tests.support.waiting import reaches, until
from tocsin.catalogue import Catalogue
from tocsin.db.admission import KIND
from tocsin.db.connections import Connection
from tocsin.errors import Unavailable
from tocsin.explain import of_event
from tocsin.push import deliveries, dispatcher, results
from tocsin.push.apps import reload_keys
from tocsin.store import pool
from tocsin_phones import Phones


@pytest.fixture
def api(pushing: Api) -> Api:
    return pushing


async def test_iphone_and_android_receive_the_notification(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    await register(api, 1, ANDROID, type="Android")
    event = {**note(1), "data": {**note(1)["data"], "user": 2}}
    id_ = await api.post(event)
    assert await pushes_of(api, id_) == {"delivered": 2}
    [apple] = phones.pushes("apns", IPHONE)
    entry = (await api.inbox(1))["data"][0]
    aps = apple["payload"]["aps"]
    assert aps["alert"] == {"title": "Mention", "body": entry["message"].replace(" <br> ", "\n")}
    assert (aps["badge"], aps["sound"], aps["thread-id"], aps["category"]) == (1, "default", CASE, "case")
    assert apple["payload"]["notification"] == {"id": id_, "type": "note", "data": entry["data"], "link": None}
    assert apple["headers"]["apns-id"] == apple["headers"]["apns-collapse-id"] == id_
    [google] = phones.pushes("fcm", ANDROID)
    assert google["payload"]["message"]["notification"]["title"] == "Mention"
    assert google["payload"]["message"]["data"]["id"] == id_
    devices = (await api.as_user(1, "GET", "/notifications/devices")).json()["data"]
    assert all(device["last_delivered_at"] for device in devices)
    assert await push_report(api, id_) == ["delivered: delivered"] * 2


async def test_browser_receives_encrypted_push_and_clears(api: Api, phones: Phones) -> None:
    key = (await api.as_user(1, "GET", "/notifications/web-push/key")).json()["key"]
    subscription = phones.subscribe(key)
    answer = await api.as_user(1, "POST", "/notifications/web-push", json=subscription)
    assert answer.status_code == 204, answer.text
    first = await api.post(custom(1, body="One"))
    assert await pushes_of(api, first) == {"delivered": 1}
    await api.as_user(1, "PUT", f"/notifications/{first}/read")
    second = await api.post(custom(1, body="Two"))
    assert await pushes_of(api, second) == {"delivered": 1}
    one, two = (push["payload"] for push in phones.pushes("browser"))
    assert (one["title"], one["body"], one["tag"], one["badge"], one["clear"]) == ("Message", "One", first, 1, [])
    assert (two["body"], two["badge"], two["clear"]) == ("Two", 1, [first])
    [device] = (await api.as_user(1, "GET", "/notifications/devices")).json()["data"]
    assert (device["type"], device["token_ending"]) == ("Web", subscription["endpoint"][-6:])
    left = await api.as_user(1, "DELETE", "/notifications/web-push", json={"endpoint": subscription["endpoint"]})
    assert left.status_code == 204
    assert (await api.as_user(1, "GET", "/notifications/devices")).json()["data"] == []


async def test_subscription_to_unknown_host_is_rejected(api: Api, phones: Phones) -> None:
    good = phones.subscribe("")
    for change, due in (
        ({"endpoint": "https://example.com/push"}, [("endpoint", "url")]),
        ({"endpoint": "http://169.254.169.254/latest"}, [("endpoint", "url")]),
        ({"endpoint": 7}, [("endpoint", "string")]),
        ({"keys": {"p256dh": "x", "auth": "y"}}, [("keys.p256dh", "regex"), ("keys.auth", "regex")]),
        ({"keys": {}}, [("keys.p256dh", "required"), ("keys.auth", "required")]),
        ({"keys": None}, [("keys", "required")]),
        ({"expirationTime": {}}, [("expirationTime", "numeric_between")]),
        ({"expirationTime": True}, [("expirationTime", "numeric_between")]),
    ):
        answer = await api.as_user(1, "POST", "/notifications/web-push", json={**good, **change})
        found = [
            (field_error["field"], field_error["code"].removeprefix("validation."))
            for field_error in answer.json()["errors"]
        ]
        assert (answer.status_code, found) == (422, due), change


@pytest.mark.parametrize(
    ("locale", "name", "title"),
    [
        ("en", "Jane", "Message from Jane Doe"),
        ("da", "Jane", "Besked fra Jane Doe"),
        ("de", "Jane", "Nachricht von Jane Doe"),
        ("en", "{title}{sender}", "Message from {title}{sender} Doe"),
        ("en", "\u0644\u064a\u0644\u0649", "Message from \u2068\u0644\u064a\u0644\u0649 Doe\u2069"),
    ],
)
async def test_push_of_custom_notification_names_its_sender(
    api: Api, phones: Phones, locale: str, name: str, title: str
) -> None:
    await api.people(1, locale=locale)
    await api.people(2, first_name=name, last_name="Doe")
    await register(api, 1, IPHONE)
    answer = await api.as_user(2, "POST", "/notifications", json={"message": "Hi", "notify": {"users": [1]}})
    assert answer.status_code == 202
    [push] = await until(lambda: phones.pushes("apns", IPHONE))
    assert push["payload"]["aps"]["alert"] == {"title": title, "body": "Hi"}


async def test_equivalent_endpoint_urls_are_one_browser(api: Api, phones: Phones) -> None:
    subscription = phones.subscribe("")
    for endpoint in (subscription["endpoint"], subscription["endpoint"].replace("https", "HTTPS")):
        answer = await api.as_user(1, "POST", "/notifications/web-push", json={**subscription, "endpoint": endpoint})
        assert answer.status_code == 204
    assert len((await api.as_user(1, "GET", "/notifications/devices")).json()["data"]) == 1
    shouted = {"endpoint": subscription["endpoint"].replace("https", "HTTPS")}
    trial = await api.as_user(1, "POST", "/notifications/web-push/test", json=shouted)
    assert trial.json()["state"] == "delivered"
    assert (await api.as_user(1, "DELETE", "/notifications/web-push", json=shouted)).status_code == 204
    assert (await api.as_user(1, "GET", "/notifications/devices")).json()["data"] == []


async def test_read_notifications_are_cleared_on_all_devices_in_one_burst(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    await register(api, 1, ANDROID, type="Android")
    ids = [await api.post(custom(1)) for _ in range(3)]
    for id_ in ids:
        await pushes_of(api, id_)
    phones.forget()
    for id_ in ids[:2]:
        await api.as_user(1, "PUT", f"/notifications/{id_}/read")
    [apple] = await until(lambda: phones.pushes("apns", IPHONE))
    assert apple["payload"]["aps"] == {"badge": 1, "content-available": 1}
    assert sorted(apple["payload"]["clear"]) == sorted(ids[:2])
    assert (apple["headers"]["apns-push-type"], apple["headers"]["apns-priority"]) == ("alert", "5")
    [google] = await until(lambda: phones.pushes("fcm", ANDROID))
    assert google["payload"]["message"]["data"]["badge"] == "1"
    phones.forget()
    await api.as_user(1, "PUT", "/notifications/read")
    [apple] = await until(lambda: phones.pushes("apns", IPHONE))
    assert (apple["payload"]["clear"], apple["payload"]["aps"]["badge"]) == ("all", 0)


async def test_clear_of_more_than_fit_clears_all_if_nothing_is_unread(api: Api, phones: Phones) -> None:
    ids = [await api.post(custom(1)) for _ in range(91)]
    await until(lambda: api.app_state.database.value("select 1 from heads where user_id = 1 and unread = 91"))
    await register(api, 1, IPHONE)
    await register(api, 1, ANDROID, type="Android")
    await api.as_user(1, "PUT", "/notifications/read", json={"ids": ids})
    [apple] = await until(lambda: phones.pushes("apns", IPHONE))
    [google] = await until(lambda: phones.pushes("fcm", ANDROID))
    assert (apple["payload"]["clear"], google["payload"]["message"]["data"]["clear"]) == ("all", '"all"')


async def test_clear_keeps_newer_notifications_on_phones(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    ids = [await api.post(custom(1)) for _ in range(3)]
    for id_ in ids:
        await pushes_of(api, id_)
    phones.forget()
    answer = await api.as_user(1, "PUT", "/notifications/read", json={"up_to": ids[1]})
    assert answer.status_code == 204
    [apple] = await until(lambda: phones.pushes("apns", IPHONE))
    assert sorted(apple["payload"]["clear"]) == sorted(ids[:2])
    assert apple["payload"]["aps"]["badge"] == 1


async def test_transferred_phone_gets_no_push_of_previous_owner(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    phones.answer("apns", status=503, reason="ServiceUnavailable", times=1)
    id_ = (await post(api, custom(1))).json()["id"]
    await until(lambda: phones.pushes("apns", IPHONE))
    await register(api, 2, IPHONE)
    await hurry(api)
    assert await pushes_of(api, id_) == {"skipped": 1}
    assert (await push_report(api, id_)) == [
        "skipped: not sent: the device was detached, or belongs to another user now"
    ]
    assert len(phones.pushes("apns", IPHONE)) == 1


async def test_push_retry_has_the_same_ids(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    phones.answer("apns", status=503, reason="ServiceUnavailable", times=1)
    id_ = (await post(api, custom(1))).json()["id"]
    await until(lambda: phones.pushes("apns", IPHONE))
    await hurry(api)
    assert await pushes_of(api, id_) == {"delivered": 1}
    first, second = phones.pushes("apns", IPHONE)
    assert first["headers"]["apns-id"] == second["headers"]["apns-id"] == id_


@pytest.mark.parametrize("step", ["lane_works", "settle"])
async def test_push_result_is_stored_later_if_the_database_fails(
    api: Api, phones: Phones, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await register(api, 1, IPHONE)
    write, failures = getattr(deliveries, step), iter([Unavailable(), Unavailable()])

    async def fails_at_first(*what: Any) -> None:
        if failure := next(failures, None):
            raise failure
        await write(*what)

    monkeypatch.setattr(deliveries, step, fails_at_first)
    id_ = await api.post(custom(1))
    assert await pushes_of(api, id_) == {"delivered": 1}
    assert len(phones.pushes("apns", IPHONE)) == 1


async def test_unregistered_device_is_deleted_and_others_are_kept(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    await register(api, 1, OTHER_IPHONE)
    phones.answer("apns", token=IPHONE, status=410, reason="Unregistered", times=1)
    id_ = await api.post(custom(1))
    assert await pushes_of(api, id_) == {"delivered": 1, "gone": 1}
    devices = (await api.as_user(1, "GET", "/notifications/devices")).json()["data"]
    assert [device["token_ending"] for device in devices] == [OTHER_IPHONE[-6:]]


async def test_device_that_is_gone_without_a_timestamp_is_deleted(api: Api, phones: Phones) -> None:
    await register(api, 1, ANDROID, type="Android")
    phones.answer("fcm", status=404, reason="UNREGISTERED", times=1)
    assert await pushes_of(api, await api.post(custom(1))) == {"gone": 1}
    assert (await api.as_user(1, "GET", "/notifications/devices")).json()["data"] == []


async def test_sandbox_token_registered_for_production_is_detected(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    phones.answer("apns", status=400, reason="BadDeviceToken", times=1)
    id_ = await api.post(custom(1))
    assert await pushes_of(api, id_) == {"delivered": 1}
    [device] = (await api.as_user(1, "GET", "/notifications/devices")).json()["data"]
    assert device["environment"] == "sandbox"


async def register_in_sandbox(api: Api) -> None:
    await register(api, 1, IPHONE, environment="sandbox")


async def import_in_sandbox(api: Api) -> None:
    device = {"user_id": 1, "token": IPHONE, "environment": "sandbox"}  # registered now
    headers = {"Content-Type": "application/x-ndjson"}
    content = json.dumps({"device": device})
    answer = await api.as_service("POST", "/directory/import", content=content, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("token", "body"), [(OTHER_IPHONE, {}), (OTHER_IPHONE, {"environment": "sandbox"}), (ANDROID, {"provider": "fcm"})]
)
async def test_push_that_waits_for_a_token_is_sent_to_the_one_that_replaces_it(
    api: Api, phones: Phones, token: str, body: dict[str, str]
) -> None:
    await prefer(api, paused_until=in_future())
    await register(api, 1, IPHONE)
    id_ = (await post(api, custom(1))).json()["id"]
    await comes_to(api, id_, {"held": 1})
    await register(api, 2, token, **body)
    await register(api, 1, token, replaces=IPHONE, **body)
    await register(api, 2, IPHONE)
    await prefer(api, paused_until=None)
    await comes_to(api, id_, {"delivered": 1})
    assert [push["token"] for push in phones.pushes()] == [token]


@pytest.mark.parametrize("register_again", [register_in_sandbox, import_in_sandbox])
async def test_push_that_waits_goes_through_the_lane_of_the_last_registration(
    api: Api, phones: Phones, register_again: Callable[[Api], Awaitable[None]]
) -> None:
    await register(api, 1, OTHER_IPHONE)
    assert await pushes_of(api, await api.post(custom(1))) == {"delivered": 1}  # the lane works
    await prefer(api, paused_until=in_future())
    await register(api, 1, IPHONE)
    id_ = (await post(api, custom(1))).json()["id"]
    await comes_to(api, id_, {"held": 2})
    await register_again(api)
    phones.answer("apns", token=IPHONE, status=400, reason="DeviceTokenNotForTopic", times=9)
    await prefer(api, paused_until=None)
    await comes_to(api, id_, {"delivered": 2})
    assert len(phones.pushes("apns-sandbox", IPHONE)) == 1
    devices = (await api.as_user(1, "GET", "/notifications/devices")).json()["data"]
    assert [device["environment"] for device in devices] == ["sandbox", "production"]


async def test_pushes_that_wait_follow_the_environment_in_which_a_token_is_known(api: Api, phones: Phones) -> None:
    await prefer(api, paused_until=in_future())
    await register(api, 1, IPHONE)
    ids = [(await post(api, custom(1))).json()["id"] for _ in range(2)]
    for id_ in ids:
        await comes_to(api, id_, {"held": 1})
    phones.answer("apns", token=IPHONE, status=400, reason="BadDeviceToken", times=9)
    await prefer(api, paused_until=None)
    for id_ in ids:
        await comes_to(api, id_, {"delivered": 1})
    assert len(phones.pushes("apns", IPHONE)) == 1
    [device] = (await api.as_user(1, "GET", "/notifications/devices")).json()["data"]
    assert device["environment"] == "sandbox"


async def test_bad_token_is_not_tried_in_a_stopped_lane_of_the_other_environment(api: Api, phones: Phones) -> None:
    await register(api, 2, OTHER_IPHONE, environment="sandbox")
    phones.answer("apns-sandbox", status=403, reason="InvalidProviderToken")
    await post(api, custom(2))
    assert (await until_stopped(api))["name"] == "apns/default/sandbox"
    await register(api, 1, IPHONE)
    phones.answer("apns", status=400, reason="BadDeviceToken", times=1)
    id_ = (await post(api, custom(1))).json()["id"]

    async def set_aside() -> bool:
        return any("set aside until its lane has delivered" in line for line in await push_report(api, id_))

    await until(set_aside)
    assert phones.pushes("apns-sandbox", IPHONE) == []


async def test_wrong_key_of_the_other_environment_does_not_stop_the_lane(api: Api, phones: Phones) -> None:
    await register(api, 2, OTHER_IPHONE)
    assert await pushes_of(api, await api.post(custom(2))) == {"delivered": 1}
    phones.answer("apns", token=IPHONE, status=400, reason="BadDeviceToken", times=1)
    phones.answer("apns-sandbox", status=403, reason="BadEnvironmentKeyIdInToken")
    await register(api, 1, IPHONE)
    assert await pushes_of(api, await api.post(custom(1))) == {"gone": 1}
    assert len(phones.pushes("apns-sandbox", IPHONE)) == 1
    assert await pushes_of(api, await api.post(custom(2))) == {"delivered": 1}
    assert [lane["stopped_at"] for lane in await deliveries.lanes(api.app_state.database)] == [None] * 4


async def test_results_of_each_lane_have_a_share_of_database_connections(
    api: Api, phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: set[str] = set()
    settle = deliveries.settle

    async def watched(*arguments: Any) -> None:
        kinds.add(KIND.get())
        await settle(*arguments)

    monkeypatch.setattr(deliveries, "settle", watched)
    await register(api, 1, IPHONE)
    await register(api, 1, ANDROID, type="Android")
    assert await pushes_of(api, await api.post(custom(1))) == {"delivered": 2}
    assert phones.pushes()
    assert kinds == {"answers of apns/default", "answers of fcm/default"}


async def test_bad_token_is_set_aside_until_its_lane_delivers_then_deleted(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    for provider in ("apns", "apns-sandbox"):
        phones.answer(provider, token=IPHONE, status=400, reason="BadDeviceToken", times=9)
    id_ = (await post(api, custom(1))).json()["id"]
    await until(lambda: phones.pushes("apns-sandbox", IPHONE))

    async def set_aside() -> bool:
        return any(
            line.startswith("later: set aside until its lane has delivered: ") for line in await push_report(api, id_)
        )

    await until(set_aside)
    assert len((await api.as_user(1, "GET", "/notifications/devices")).json()["data"]) == 1
    await register(api, 2, OTHER_IPHONE)
    assert await pushes_of(api, await api.post(custom(2))) == {"delivered": 1}
    await hurry(api)
    assert await pushes_of(api, id_) == {"gone": 1}
    assert (await api.as_user(1, "GET", "/notifications/devices")).json()["data"] == []


async def test_wrong_push_settings_stop_the_lane_without_losing_pushes(
    api: Api, phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PROBE_INTERVAL", 0.3)
    await register(api, 1, IPHONE)
    await register(api, 1, ANDROID, type="Android")
    phones.answer("apns", status=403, reason="InvalidProviderToken", times=2)
    with capture_logs() as logs:
        ids = [(await post(api, custom(1))).json()["id"] for _ in range(3)]
        stopped = await until_stopped(api)
        assert (stopped["name"], "InvalidProviderToken" in stopped["reason"]) == ("apns/default", True)
        for id_ in ids:
            assert await pushes_of(api, id_) == {"delivered": 2}
    said = [each["event"] for each in logs if each.get("lane") == "apns/default"]
    assert said == ["lane stopped: the provider refused its settings", "lane resumed"]
    lanes = await deliveries.lanes(api.app_state.database)
    assert [lane["stopped_at"] for lane in lanes] == [None] * len(lanes)


async def test_push_waiting_for_a_stopped_lane_is_explained(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    phones.answer("apns", status=403, reason="InvalidProviderToken")
    id_ = (await post(api, custom(1))).json()["id"]
    since = (await until_stopped(api))["stopped_at"]
    assert await push_report(api, id_) == [
        f"queued: apns/default has stopped since {since} UTC: 403 InvalidProviderToken"
    ]
    lines = [line async for line in of_event(api.app_state.database, UUID(id_), 1)]
    assert lines[0].endswith(": named in notify.users")
    assert "apns/default has stopped since" in lines[1]


async def test_report_explains_missing_devices_and_users(api: Api) -> None:
    id_ = UUID(await api.post(custom(1)))
    lines = [line async for line in of_event(api.app_state.database, id_, 1)]
    assert lines[1:] == ["not pushed: at delivery, no device had a push service with a key"]
    lines = [line async for line in of_event(api.app_state.database, id_, 4242)]
    assert lines == ["not delivered: there is no such user in the directory"]


async def test_report_names_devices_without_a_key(api: Api) -> None:
    await api.people(2)
    await register(api, 1, ANDROID, type="Android")
    await register(api, 1, IPHONE, app="other")
    id_ = (await post(api, custom(1))).json()["id"]
    assert await pushes_of(api, id_) == {"delivered": 1}
    found = (await api.as_service("GET", f"/events/{id_}/recipients/1")).json()["devices"]
    assert [(each["type"], each["token_ending"], each["lane"], each["state"]) for each in found] == [
        ("Android", ANDROID[-6:], "fcm/default", "delivered"),
        ("iOS", IPHONE[-6:], "apns/other", "unserved"),
    ]
    assert found[1] | {"attempts": 0, "settled_at": None} == found[1]
    assert found[1]["what"] == "not sent: no key is set for this provider and app"
    await register(api, 2, IPHONE, app="other")
    assert (await api.as_service("GET", f"/events/{id_}/recipients/2")).json()["devices"] == []


@pytest.mark.parametrize("provider", ["apns", "oauth"])
async def test_key_reload_retries_a_stopped_lane_with_the_same_key(api: Api, phones: Phones, provider: str) -> None:
    if provider == "apns":
        await register(api, 1, IPHONE)
        phones.answer("apns", status=403, reason="InvalidProviderToken")
    else:
        await register(api, 1, ANDROID, type="Android")
        phones.answer("oauth", status=400, reason="invalid_grant")
        phones.answer("fcm", status=401, reason="UNAUTHENTICATED", times=1)  # the token that there may be already
    await post(api, custom(1))
    assert (await until_stopped(api))["name"] == ("apns/default" if provider == "apns" else "fcm/default")
    id_ = (await post(api, custom(1))).json()["id"]
    phones.forget()
    assert api.worker
    assert api.worker.dispatcher
    assert not reload_keys(api.app_state.lanes, api.app_state.settings)
    await api.worker.dispatcher.keys_reloaded()
    assert await pushes_of(api, id_) == {"delivered": 1}


async def test_push_respects_and_explains_preferences(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    await prefer(api, kinds={"custom": {"push": False}})
    id_ = await api.post(custom(1))
    assert await pushes_of(api, id_) == {"muted": 1}
    assert await push_report(api, id_) == ["muted: not sent: push switched off for custom"]
    await prefer(api, kinds={"custom": None}, paused_until=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    held = await api.post(custom(1))
    await becomes(api, held, {"held": 1})
    urgent = {**api.app_state.catalogue.samples["lead_escalated"]["event"], "notify": {"users": [1]}}
    assert await pushes_of(api, await api.post(urgent)) == {"delivered": 1}
    await api.as_user(1, "PUT", f"/notifications/{held}/read")
    await prefer(api, paused_until=None)
    await hurry(api)
    await becomes(api, held, {"skipped": 1})
    assert [push["payload"]["notification"]["type"] for push in shown(phones, IPHONE)] == ["lead_escalated"]


def quiet_now() -> str:
    """An operator's file with quiet hours that include the current time in all of Europe."""
    hours = [f"{datetime.now(UTC) + timedelta(hours=hours):%H:%M}" for hours in (-6, 9)]
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    return f"[defaults]\nquiet_hours = [{{ days = {days}, from = '{hours[0]}', to = '{hours[1]}' }}]\n"


WRITTEN = "select array_agg(ctid::text || due_at order by event_id, device_id) from deliveries where event_id = any($1)"
"""The versions of all rows; a new version means that a row was written."""


async def test_held_pushes_are_reevaluated_after_operator_rules_change(
    url: str, catalogue: Catalogue, phones: Phones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "RELEASE_BATCH_SIZE", 2)
    more: dict[str, Any] = {"environment": phones.credentials(tmp_path), "preferences_file": tmp_path / "rules.toml"}
    more["preferences_file"].write_text(quiet_now(), "utf-8")
    changed = "preference policy changed; held pushes are evaluated again"
    with capture_logs() as first:
        async with serving(url, catalogue, **more) as api:
            await reaches(lambda: api.app_state.database.value("select count(*) from operator_rules"), 1)
    assert changed not in [line["event"] for line in first]
    async with serving(url, catalogue, **more) as api:
        await api.people(1, 2)
        await register(api, 1, IPHONE)
        await register(api, 2, OTHER_IPHONE)
        paused = {"paused_until": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
        assert (await api.as_user(2, "PATCH", "/notifications/preferences", json=paused)).status_code == 200
        ids = [await api.post({**custom(1), "notify": {"users": [1, 2]}}) for _ in range(5)]
        for id_ in ids:
            await becomes(api, id_, {"held": 2})
        written = await api.app_state.database.value(WRITTEN, ids)
    async with serving(url, catalogue, **more) as api:  # by the same rules
        await becomes(api, await api.post(custom(1)), {"held": 1})
    async with serving(url, catalogue, with_worker=False, **more) as api:
        assert await api.app_state.database.value(WRITTEN, ids) == written
    more["preferences_file"].write_text("", "utf-8")
    with capture_logs() as last:
        async with serving(url, catalogue, **more) as api:
            for id_ in ids:
                await becomes(api, id_, {"delivered": 1, "held": 1})  # the user's choices are unchanged
    assert changed in [line["event"] for line in last]
    assert shown(phones, IPHONE)
    assert not shown(phones, OTHER_IPHONE)


@pytest.mark.parametrize("count", [3, 4, 5])
async def test_more_than_three_held_pushes_become_one_summary(api: Api, phones: Phones, count: int) -> None:
    await register(api, 1, IPHONE)
    await prefer(api, paused_until=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    ids = [await api.post(custom(1, body=f"Number {number}")) for number in range(count)]
    held = "select count(*) from deliveries where state = 'held'"
    await reaches(lambda: api.app_state.database.value(held), count)
    await prefer(api, paused_until=None)
    await hurry(api)
    for id_ in ids:
        await becomes(api, id_, {"delivered": 1})
    alerts = [push["payload"]["aps"]["alert"] for push in phones.pushes("apns", IPHONE)]
    if count > 3:
        assert [alert["title"] for alert in alerts] == [f"{count} new notifications"]
    else:
        assert sorted(alert["body"] for alert in alerts) == [f"Number {number}" for number in range(count)]


async def test_very_many_held_pushes_are_claimed_and_bundled_in_parts(
    api: Api, phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "MAX_BUNDLED", 5)
    await register(api, 1, IPHONE)
    await prefer(api, paused_until=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    ids = [await api.post(custom(1, body=f"Number {number}")) for number in range(14)]
    held = "select count(*) from deliveries where state = 'held'"
    await reaches(lambda: api.app_state.database.value(held), len(ids))
    await prefer(api, paused_until=None)
    await hurry(api)
    for id_ in ids:
        await becomes(api, id_, {"delivered": 1})
    alerts = [push["payload"]["aps"]["alert"]["title"] for push in phones.pushes("apns", IPHONE)]
    assert alerts == ["5 new notifications", "5 new notifications", "4 new notifications"]


async def test_dead_push_is_listed_and_can_be_requeued(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    phones.answer("apns", status=503, reason="ServiceUnavailable", times=2)
    id_ = (await post(api, custom(1))).json()["id"]
    await until(lambda: phones.pushes("apns", IPHONE))
    await api.app_state.database.value("update deliveries set made_at = now() - interval '25 hours'")
    await hurry(api)
    assert await pushes_of(api, id_) == {"dead": 1}
    answer = await api.as_service("GET", "/operations/dead-letters", "operations")
    [letter] = answer.json()["data"]
    assert (letter["what"], letter["event_id"], letter["lane"]) == ("push", id_, "apns/default")
    replayed = await api.as_service("POST", "/operations/replay", "operations", json={"events": [id_]})
    assert replayed.json() == {"jobs": 0, "pushes": 1}


async def test_replay_of_an_event_has_more_time_than_other_statements(api: Api, url: str, dba: Connection) -> None:
    await register(api, 1, IPHONE)
    id_ = await api.post(custom(1))
    await becomes(api, id_, {"delivered": 1})
    await api.app_state.database.value("update deliveries set state = 'dead'")
    async with (
        slow(dba, "update", "deliveries"),
        pool(url, 1, patience=2.0) as database,
        database.transaction() as connection,
    ):
        assert await deliveries.replay(connection, [UUID(id_)]) == 1
    await becomes(api, id_, {"delivered": 1})


async def test_replay_of_an_event_and_a_lane_leaves_other_lanes(api: Api) -> None:
    await register(api, 1, IPHONE)
    id_ = await api.post(custom(1))
    await becomes(api, id_, {"delivered": 1})
    await api.app_state.database.value("update deliveries set state = 'dead', settled_at = now()")
    for lane, pushes in (("fcm/default", 0), ("", 0), ("apns/default", 1)):
        body = {"events": [id_], "lane": lane}
        replayed = await api.as_service("POST", "/operations/replay", "operations", json=body)
        assert replayed.json() == {"jobs": 0, "pushes": pushes}
    await becomes(api, id_, {"delivered": 1})


async def test_event_reaches_each_of_many_devices_once(api: Api, phones: Phones) -> None:
    people = range(1, 151)
    await api.people(*people)
    await api.team(7, *people)
    for user in people:
        await register(api, user, f"{user:064x}")
    id_ = await api.post(custom(teams=(7,)))
    await becomes(api, id_, {"delivered": 150})
    tokens = [push["token"] for push in phones.pushes("apns")]
    assert sorted(tokens) == [f"{user:064x}" for user in people]


async def test_push_metrics_are_counted(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    await pushes_of(api, await api.post(custom(1)))
    phones.answer("apns", status=400, reason="BadTopic")
    await pushes_of(api, await api.post(custom(1)))
    text = (await api.as_service("GET", "/metrics", "operations")).text
    for waiting in ("due", "oldest_seconds"):
        assert f'tocsin_pushes_{waiting}{{lane="apns/default"}} 0.0' in text
    for outcome, reason in (("delivered", ""), ("refused", "400 BadTopic")):
        said = f'tocsin_push_answers_total{{lane="apns/default",outcome="{outcome}",reason="{reason}"}} 1.0'
        assert said in text
