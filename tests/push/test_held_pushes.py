"""Held pushes are sent when their pause or quiet hours end, in inbox order."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.database import blocked, drop_function, slow
from tests.support.events import custom, post
from tests.support.pushes import IPHONE, comes_to, due_in, hurry, prefer, push_report, register, shown
from tests.support.service import Api
from tests.support.waiting import until
from tocsin import preferences
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.push import deliveries
from tocsin.push.deliveries import Settled
from tocsin.store import pool
from tocsin_phones import Phones


@pytest.fixture
def api(pushing: Api) -> Api:
    return pushing


def later(**ahead: float) -> str:
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat()


def hours_around(now: datetime, zone_hours: int = 0) -> list[dict[str, Any]]:
    """Return a window of six hours around a moment, by a clock so many hours ahead of UTC."""
    wall = now + timedelta(hours=zone_hours)
    return [{"from": f"{wall - timedelta(hours=3):%H:%M}", "to": f"{wall + timedelta(hours=3):%H:%M}"}]


async def hold(api: Api, count: int = 1, **held_by: Any) -> list[str]:
    """Hold this number of notifications for a phone of user 1, and return their ids."""
    await register(api, 1, IPHONE)
    await prefer(api, **held_by)
    ids = []
    for number in range(count):
        ids.append((await post(api, {**custom(1, body=f"Number {number}"), "id": str(uuid4())})).json()["id"])
        await comes_to(api, ids[-1], {"held": 1})
    return ids


def bodies(phones: Phones) -> list[str]:
    return [push["payload"]["aps"]["alert"]["body"] for push in shown(phones, IPHONE)]


PAUSE: dict[str, Any] = {"paused_until": later(days=3)}
QUIET: dict[str, Any] = {"quiet_hours": hours_around(datetime.now(UTC)), "time_zone": "UTC"}
ENDINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pause ended": (PAUSE, {"paused_until": None}),
    "quiet hours ended": (QUIET, {"quiet_hours": None}),
    "quiet hours at another time": (QUIET, {"quiet_hours": hours_around(datetime.now(UTC), 12)}),
    "in a time zone where it is day": (QUIET, {"time_zone": "Pacific/Auckland"}),
    "urgent now": (PAUSE, {"kinds": {"custom": {"urgent": True}}}),
}


@pytest.mark.parametrize(("held_by", "change"), ENDINGS.values(), ids=ENDINGS)
async def test_held_push_is_sent_when_pause_or_quiet_hours_end_early(
    api: Api, phones: Phones, held_by: dict[str, Any], change: dict[str, Any]
) -> None:
    [id_] = await hold(api, **held_by)
    await prefer(api, **change)
    await comes_to(api, id_, {"delivered": 1})
    assert bodies(phones) == ["Number 0"]


async def test_release_of_held_pushes_has_more_time_than_other_statements(api: Api, url: str, dba: Connection) -> None:
    [id_] = await hold(api, **PAUSE)
    async with slow(dba, "update", "deliveries"), pool(url, 1, patience=2.0) as database:
        state = api.app_state
        await preferences.patch(database, state.pubsub, state.operator, 1, {"paused_until": None})
    await comes_to(api, id_, {"delivered": 1})


async def test_held_push_is_muted_when_its_kind_is_switched_off(api: Api) -> None:
    [id_] = await hold(api, **PAUSE)
    await prefer(api, kinds={"custom": {"push": False}})
    await comes_to(api, id_, {"muted": 1})


async def test_changed_pause_end_is_reported_and_consumes_no_attempt(api: Api, phones: Phones) -> None:
    [id_] = await hold(api, **PAUSE)
    for ahead in (timedelta(hours=2), timedelta(hours=30), timedelta(hours=1)):
        end = datetime.now(UTC) + ahead
        await prefer(api, paused_until=end.isoformat())
        words = f"held: held until {end:%Y-%m-%d %H:%M} UTC"
        await until(partial(_is_reported, api, id_, words))
    phones.answer("apns", status=503, times=1)
    since = datetime.now(UTC)
    await prefer(api, paused_until=None)
    least, most = await due_in(api, since, 1)
    assert least <= timedelta(seconds=5.5)
    assert most >= timedelta(seconds=5)


async def _is_reported(api: Api, id_: str, words: str) -> bool:
    return all(line.startswith(words) for line in await push_report(api, id_))


async def move(api: Api) -> None:
    """Change the time zone of the user in the directory."""
    user = {"first_name": "First1", "last_name": "Last1", "company_id": 1, "time_zone": "Pacific/Auckland"}
    answer = await api.as_service("PUT", "/directory/users/1", json=user)
    assert answer.status_code == 204, answer.text


async def move_by_import(api: Api) -> None:
    user = {"id": 1, "first_name": "First1", "last_name": "Last1", "company_id": 1, "time_zone": "Pacific/Auckland"}
    headers = {"Content-Type": "application/x-ndjson"}
    content = json.dumps({"user": user})
    answer = await api.as_service("POST", "/directory/import", content=content, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("move", [move, move_by_import])
async def test_held_push_is_reevaluated_when_the_time_zone_changes(
    api: Api, move: Callable[[Api], Awaitable[None]]
) -> None:
    [id_] = await hold(api, quiet_hours=hours_around(datetime.now(UTC)))
    await move(api)
    await comes_to(api, id_, {"delivered": 1})


@pytest.mark.parametrize("end", ["early", "in time"])
async def test_released_pushes_are_sent_in_inbox_order(api: Api, phones: Phones, end: str) -> None:
    ids = await hold(api, 3, **PAUSE)
    if end == "early":
        await prefer(api, paused_until=None)
    else:
        # The pause expires: the stored preferences agree, and everything held is due at the same moment.
        database = api.app_state.database
        await database.value("update preferences set chosen = '{}'")
        await hurry(api)
    for id_ in ids:
        await comes_to(api, id_, {"delivered": 1})
    assert bodies(phones) == ["Number 0", "Number 1", "Number 2"]


@pytest.mark.parametrize(("count", "said"), [(1, "Number 0"), (5, "5 new notifications")])
async def test_push_that_was_held_for_days_is_sent_when_the_hold_ends(
    api: Api, phones: Phones, count: int, said: str
) -> None:
    ids = await hold(api, count, **PAUSE)
    await api.app_state.database.value("update deliveries set made_at = made_at - interval '3 days'")
    await prefer(api, paused_until=None)
    for id_ in ids:
        await comes_to(api, id_, {"delivered": 1})
    [push] = shown(phones, IPHONE)
    assert said in push["payload"]["aps"]["alert"].values()
    left = int(push["headers"]["apns-expiration"]) - datetime.now(UTC).timestamp()
    assert timedelta(hours=23) < timedelta(seconds=left) < timedelta(hours=25)


async def test_bundle_of_held_pushes_that_is_retried_stays_one_push(api: Api, phones: Phones) -> None:
    ids = await hold(api, 5, **PAUSE)
    for failures in (1, 2):
        phones.answer("apns", status=503, times=1)
        await (prefer(api, paused_until=None) if failures == 1 else hurry(api))
        await due_in(api, datetime.now(UTC), failures)
        await comes_to(api, ids[0], {"later": 1})
    assert await _is_reported(api, ids[4], "held: again at")
    await hurry(api)
    for id_ in ids:
        await comes_to(api, id_, {"delivered": 1})
    [push] = [each for each in shown(phones, IPHONE) if each["status"] == 200]
    assert push["payload"]["aps"]["alert"]["title"] == "5 new notifications"


async def test_held_pushes_of_other_users_stay_held(api: Api) -> None:
    await register(api, 2, "cc" * 32)
    assert (await api.as_user(2, "PATCH", "/notifications/preferences", json=PAUSE)).status_code == 200
    other = (await post(api, custom(2))).json()["id"]
    await comes_to(api, other, {"held": 1})
    [id_] = await hold(api, **PAUSE)
    due_at = "select due_at from deliveries where user_id = 2"
    before = await api.app_state.database.value(due_at)
    await prefer(api, paused_until=None)
    await comes_to(api, id_, {"delivered": 1})
    assert await api.app_state.database.value(due_at) == before


async def test_pause_ending_while_a_push_is_held_releases_it(
    api: Api, phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, changes = deliveries.settle, iter([None])

    async def settle_after_a_change(database: Database, worker: UUID, settled: Sequence[Settled]) -> None:
        if [each.state for each in settled] == ["held"] and next(changes, "none") is None:
            changing = asyncio.create_task(prefer(api, paused_until=None))
            await until(lambda: _is_ended(api))
            await settle(database, worker, settled)
            await changing
        else:
            await settle(database, worker, settled)

    await register(api, 1, IPHONE)
    await prefer(api, **PAUSE)
    monkeypatch.setattr(deliveries, "settle", settle_after_a_change)
    id_ = (await post(api, custom(1))).json()["id"]
    await comes_to(api, id_, {"delivered": 1})
    assert len(bodies(phones)) == 1


LATE = """
create function wait_for_the_test() returns trigger language plpgsql as
    'begin perform pg_advisory_xact_lock(7); return null; end';
create constraint trigger late after insert or update or delete on {table} deferrable initially deferred
    for each row execute function wait_for_the_test()
"""


async def end_pause(api: Api) -> None:
    await prefer(api, paused_until=None)


@pytest.mark.parametrize(
    ("held_by", "change", "table"),
    [
        (PAUSE, end_pause, "preferences"),
        ({"quiet_hours": hours_around(datetime.now(UTC))}, move, "users"),
        ({"quiet_hours": hours_around(datetime.now(UTC))}, move_by_import, "users"),
    ],
)
async def test_push_held_while_preferences_are_committed_is_decided_again(  # noqa: PLR0913, PLR0917 - its cases
    api: Api,
    phones: Phones,
    dba: Connection,
    held_by: dict[str, Any],
    change: Callable[[Api], Coroutine[Any, Any, None]],
    table: str,
) -> None:
    await register(api, 1, IPHONE)
    phones.answer("apns", status=503, times=1)
    id_ = (await post(api, custom(1))).json()["id"]
    await comes_to(api, id_, {"later": 1})
    await prefer(api, **held_by)
    await dba.execute(LATE.format(table=table))
    try:
        async with asyncio.TaskGroup() as group, dba.transaction():
            await dba.execute("select pg_advisory_xact_lock(7)")
            group.create_task(change(api))
            await until(lambda: blocked(dba))  # all but the commit is done
            await hurry(api)
            await comes_to(api, id_, {"held": 1})
        await comes_to(api, id_, {"delivered": 1})
    finally:
        await drop_function(dba, "wait_for_the_test")


async def _is_ended(api: Api) -> bool:
    return not await api.app_state.database.value("select count(*) from preferences")
