"""`tocsin explain` says what a user received, what not, and why."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from tests.support.events import accepted, custom
from tests.support.pushes import IPHONE, register
from tests.support.service import Api
from tocsin import explain
from tocsin.errors import Refusal

HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)


async def lines_of(api: Api, user: int, since: datetime = HOUR_AGO) -> list[str]:
    return [line async for line in explain.of_user(api.app_state.database, user, since)]


async def test_unknown_events_and_users_are_named(api: Api) -> None:
    unknown = uuid4()
    with pytest.raises(Refusal, match=f"There is no event {unknown}"):
        await anext(explain.of_event(api.app_state.database, unknown, 1))
    with pytest.raises(Refusal, match="There is no user 99"):
        await lines_of(api, 99)


async def test_explanation_distinguishes_no_device_from_a_device_without_key(api: Api) -> None:
    await api.people(1, 2)
    await register(api, 2, IPHONE)
    await api.post(custom(1, 2))
    first, none, event, delivered, pushed = await lines_of(api, 1)
    assert first == "user 1, First1 Last1: active; 1 unread"
    assert none == "no devices: nothing is pushed"
    assert " custom " in event
    assert delivered.startswith("    delivered to the inbox at ")
    assert pushed == "    not pushed: at delivery, no device had a push service with a key"
    _, device, *_, unserved = await lines_of(api, 2)
    assert unserved == f"    iOS ...{IPHONE[-6:]}: unserved; not sent: no key is set for this provider and app"
    assert device.startswith(f"device iOS ...{IPHONE[-6:]} by apns/default: never delivered; last push: unserved")


async def test_events_are_explained_with_the_oldest_first(api: Api) -> None:
    await api.people(1)
    ids = [await api.post(custom(1, body=str(number))) for number in range(3)]
    told = [line.split()[-1] for line in await lines_of(api, 1) if " custom " in line]
    assert told == ids


async def test_inactive_users_and_deleted_notifications_are_explained(api: Api) -> None:
    await api.people(1)
    id_ = await api.post(custom(1))
    await api.as_user(1, "DELETE", f"/notifications/{id_}")
    await api.people(1, active=False)
    told = await lines_of(api, 1)
    assert told[0] == "user 1, First1 Last1: NOT ACTIVE: nothing is delivered; 0 unread"
    assert told[-1].startswith("    deleted at ") or told[-2].startswith("    deleted at ")


async def test_it_says_how_far_back_undelivered_events_are_listed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "MAX_EVENTS_SCANNED", 2)
    await api.people(1, 2)
    for _ in range(4):
        await accepted(api, 2)
    told = await lines_of(api, 1)
    assert [line.rpartition(" from ")[0] for line in told[2:]] == ["undelivered events are listed only"]
