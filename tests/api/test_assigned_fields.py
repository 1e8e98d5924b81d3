"""Fields that the service assigns cannot be set by a request."""

from typing import Any

from tests.support.answers import UNKNOWN, field_errors
from tests.support.events import custom, post
from tests.support.service import Api, at_rest

TOKEN = "cd" * 32
ASSIGNED: dict[str, Any] = {
    "id": UNKNOWN,
    "type": "note",
    "data": {"user": {"id": 2, "first_name": "Another", "last_name": "Sender"}},
    "message_formatted": "<script>alert(1)</script>",
    "read": True,
    "read_at": "2000-01-01 00:00:00",
    "created_at": "2000-01-01 00:00:00",
    "user_id": 3,
    "sender": 2,
    "company_id": 2,
    "service": "erp",
    "position": 10**6,
    "state": "delivered",
}
"""Values that would be harmful if a request could set them."""


async def test_user_cannot_set_assigned_fields_of_a_notification(api: Api) -> None:
    await api.people(1, 2, 3)
    sent = {"message": "Hello", "notify": {"users": [2]}, **ASSIGNED}
    assert (await api.as_user(1, "POST", "/notifications", json=sent)).status_code == 202
    await at_rest(api)
    [stored] = (await api.as_user(2, "GET", "/notifications")).json()["data"]
    assert set(stored) == {"id", "type", "data", "message", "message_formatted", "read", "read_at", "created_at"}
    assert (stored["type"], stored["read"], stored["read_at"]) == ("custom", False, None)
    assert stored["data"]["user"]["id"] == 1
    assert stored["message_formatted"] == "<p>Hello</p>"
    assert stored["id"] != UNKNOWN
    assert not stored["created_at"].startswith("2000")
    for user in (1, 3):
        assert (await api.as_user(user, "GET", "/notifications")).json()["data"] == []


async def test_user_cannot_register_a_device_for_another_user(api: Api) -> None:
    await api.people(1, 3)
    body = {"token": TOKEN, **{name: value for name, value in ASSIGNED.items() if name != "type"}}
    assert (await api.as_user(1, "POST", "/notifications/devices", json=body)).status_code == 204
    owners = {user: await devices(api, user) for user in (1, 3)}
    assert owners == {1: [TOKEN[-6:]], 3: []}


async def devices(api: Api, user: int) -> list[str]:
    answer = await api.as_user(user, "GET", "/notifications/devices")
    return [device["token_ending"] for device in answer.json()["data"]]


async def test_user_cannot_change_preferences_of_another_user(api: Api) -> None:
    await api.people(1, 3)
    before = (await api.as_user(3, "GET", "/notifications/preferences")).json()
    body = {"user_id": 3, "locked": [], "time_zone": "Asia/Tokyo"}
    answer = await api.as_user(1, "PATCH", "/notifications/preferences", json=body)
    assert (answer.status_code, answer.json()["time_zone"]) == (200, "Asia/Tokyo")
    assert (await api.as_user(3, "GET", "/notifications/preferences")).json() == before


async def test_service_cannot_set_owner_company_or_state_of_an_event(api: Api) -> None:
    await api.people(1)
    await api.people(2, company_id=2)
    kept = {name: value for name, value in ASSIGNED.items() if name not in {"id", "type", "data"}}
    answer = await post(api, {**custom(1), **kept}, company_id=1)
    assert answer.status_code == 202, answer.text
    id_ = answer.json()["id"]
    await at_rest(api)
    found = await api.as_service("GET", f"/events/{id_}", company_id=1)
    assert (found.status_code, found.json()["state"]) == (200, "delivered")
    assert (await api.as_service("GET", f"/events/{id_}", name="erp", company_id=2)).status_code == 404
    [stored] = (await api.as_user(1, "GET", "/notifications")).json()["data"]
    assert (stored["id"], stored["read"]) == (id_, False)
    assert (await api.as_user(2, "GET", "/notifications")).json()["data"] == []
    other = {**custom(2), "company_id": 2}
    assert field_errors(await post(api, other, company_id=1)) == [("notify.users.0", "unknown")]
