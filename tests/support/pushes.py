"""Test phones, and waiting for pushes."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx

from tests.support.events import state
from tests.support.service import Api
from tests.support.waiting import until
from tocsin.push import deliveries
from tocsin_phones import Phones

IPHONE, OTHER_IPHONE = "aa" * 32, "bb" * 32


ANDROID = "android-token-of-thirty-two-characters:1"


Pushes = list[dict[str, Any]]


async def register(api: Api, user: int, token: str, **more: Any) -> None:
    answer = await api.as_user(user, "POST", f"/notifications/devices/{token}", json=more)
    assert answer.status_code == 204, answer.text


def shown(phones: Phones, token: str) -> Pushes:
    """Return the pushes that show a notification, without clears."""
    return [push for push in phones.pushes(token=token) if push["visible"] or "alert" in str(push["payload"])]


async def pushes_of(api: Api, id_: str | UUID, wait: int = 30) -> dict[str, int]:
    """Count the pushes of an event by state, after waiting up to this number of seconds for its delivery."""
    found: dict[str, int] = (await state(api, id_, wait))["pushes"]
    return {name: count for name, count in found.items() if count}


async def becomes(api: Api, id_: str | UUID, due: dict[str, int]) -> None:
    """Wait until the pushes of an event are in these states."""

    async def found() -> bool:
        return await pushes_of(api, id_, 0) == due

    await until(found)


async def push_report(api: Api, id_: str, user: int = 1) -> list[str]:
    answer = await api.as_service("GET", f"/events/{id_}/recipients/{user}")
    return [f"{device['state']}: {device['what']}" for device in answer.json()["devices"]]


async def hurry(api: Api) -> None:
    """Make all waiting deliveries due."""
    waiting = (
        "select exists (select from deliveries where worker_id is null and due_at > now())"
        " or not exists (select from deliveries where state in ('queued', 'later', 'held'))"
    )
    await until(lambda: api.app_state.database.value(waiting))
    await api.app_state.database.value(
        "update deliveries set due_at = now() where state in ('queued', 'later', 'held') and worker_id is null"
    )
    api.app_state.pubsub.publish("push")


async def until_stopped(api: Api) -> dict[str, Any]:
    """Return the first lane that has stopped."""

    async def stopped() -> list[dict[str, Any]]:
        answer = await api.as_service("GET", "/operations/lanes", "operations")
        return [lane for lane in answer.json()["data"] if lane["stopped_at"]]

    return next(iter(await until(stopped)))


async def prefer(api: Api, **changes: Any) -> httpx.Response:
    answer = await api.as_user(1, "PATCH", "/notifications/preferences", json=changes)
    assert answer.status_code == 200, answer.text
    return answer


async def due_in(api: Api, since: datetime, attempts: int) -> tuple[timedelta, timedelta]:
    """Wait until the only delivery waits after this number of attempts; return its minimum and maximum delay."""

    async def waiting() -> Any:
        return await api.app_state.database.row(
            "select due_at from deliveries where state = 'later' and worker_id is null and attempts = $1", attempts
        )

    row = await until(waiting)
    return row["due_at"] - datetime.now(UTC), row["due_at"] - since


async def comes_to(api: Api, id_: str, due: dict[str, int]) -> None:
    """Wait until the pushes of an event are in these states and none is under way; those that wait count too."""

    async def found() -> bool:
        counts = await deliveries.counts(api.app_state.database, UUID(id_))
        under_way = await api.app_state.database.value("select count(*) from deliveries where worker_id is not null")
        return not under_way and {name: count for name, count in counts.items() if count} == due

    await until(found)
