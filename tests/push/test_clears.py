"""Clears: erased text, deleted users and unread marks on phones."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from tests.support.events import accepted, custom, post, state
from tests.support.pushes import ANDROID, IPHONE, becomes, pushes_of, register, until_stopped
from tests.support.resolutions import resolve, settled
from tests.support.service import Api
from tests.support.waiting import until
from tocsin.db.connections import Connection
from tocsin.db.statements import queries
from tocsin_phones import Phones

CONTACT = "contact:220f5f6e-7307-3ad3-9fc1-9ec7e6dc0a88"
OTHER = "dd" * 32


@pytest.fixture
def api(pushing: Api) -> Api:
    return pushing


async def show(api: Api, phones: Phones, user: int = 1, iphone: str = IPHONE, **more: Any) -> str:
    """Have an iPhone and an Android phone show a notification, and return its id."""
    await register(api, user, iphone)
    if iphone == IPHONE:
        await register(api, user, ANDROID, type="Android")
    id_ = await api.post({**custom(user, body="Jane Doe called"), **more})
    await pushes_of(api, id_)
    assert [banner["body"] for banner in phones.screen(iphone)["banners"]] == ["Jane Doe called"]
    return id_


def cleared(phones: Phones, token: str) -> Any:
    """Return what the last clear of a phone named, and its badge; None without a clear."""
    pushes = [push for push in phones.pushes(token=token) if "clear" in str(push["payload"])]
    if not pushes:
        return None
    [push] = pushes
    if push["provider"] == "fcm":
        data = push["payload"]["message"]["data"]
        return data["clear"], data["badge"]
    return push["payload"]["clear"], push["payload"]["aps"]["badge"]


async def test_contact_erasure_clears_pushes_and_keeps_entry_unread(api: Api, phones: Phones) -> None:
    id_ = await show(api, phones, about=[CONTACT])
    kept = await api.post(custom(1, body="of somebody else"))
    await pushes_of(api, kept)
    resolution = {"about": CONTACT, "as": "erased"}
    answer = await api.as_service("POST", "/events/resolve", json=resolution)
    assert answer.status_code == 202, answer.text
    assert await until(lambda: cleared(phones, IPHONE)) == ([id_], 2)
    assert await until(lambda: cleared(phones, ANDROID)) == (f'["{id_}"]', "2")
    assert [banner["body"] for banner in phones.screen(IPHONE)["banners"]] == ["of somebody else"]
    assert (await api.inbox(1))["pagination"]["unread"] == 2


async def test_contact_erasure_clears_browsers_with_the_next_push(api: Api, phones: Phones) -> None:
    key = (await api.as_user(1, "GET", "/notifications/web-push/key")).json()["key"]
    await api.as_user(1, "POST", "/notifications/web-push", json=phones.subscribe(key))
    id_ = await api.post({**custom(1), "about": [CONTACT]})
    await pushes_of(api, id_)
    await api.as_service("POST", "/events/resolve", json={"about": CONTACT, "as": "erased"})
    await until(lambda: api.app_state.database.value("select 1 from changes where change = 'rewritten'"))
    await pushes_of(api, await api.post(custom(1)))
    assert phones.pushes("browser")[-1]["payload"]["clear"] == [id_]


@pytest.mark.parametrize("up_to", [1, None])
async def test_read_up_to_an_entry_closes_on_browsers_with_the_next_push(
    api: Api, phones: Phones, up_to: int | None
) -> None:
    key = (await api.as_user(1, "GET", "/notifications/web-push/key")).json()["key"]
    await api.as_user(1, "POST", "/notifications/web-push", json=phones.subscribe(key))
    ids = [await api.post(custom(1)) for _ in range(3)]
    for id_ in ids:
        await pushes_of(api, id_)
    body = {} if up_to is None else {"json": {"up_to": ids[up_to]}}
    assert (await api.as_user(1, "PUT", "/notifications/read", **body)).status_code == 204
    for expected in (ids[2 if up_to is None else up_to :: -1], []):
        await pushes_of(api, await api.post(custom(1)))
        assert phones.pushes("browser")[-1]["payload"]["clear"] == expected


async def test_deleted_notification_is_cleared_from_phones(api: Api, phones: Phones) -> None:
    id_ = await show(api, phones)
    await api.as_user(1, "DELETE", f"/notifications/{id_}")
    assert await until(lambda: cleared(phones, IPHONE)) == ([id_], 0)
    assert await until(lambda: cleared(phones, ANDROID)) == (f'["{id_}"]', "0")


async def test_clear_after_a_resolution_names_only_what_it_resolved(api: Api, phones: Phones) -> None:
    read = await show(api, phones)
    resolved, unread = await api.post({**custom(1), "about": [CONTACT]}), await api.post(custom(1))
    for id_ in (resolved, unread):
        await pushes_of(api, id_)
    await api.as_user(1, "PUT", f"/notifications/{read}/read")
    assert await until(lambda: cleared(phones, IPHONE)) == ([read], 2)
    phones.forget()
    await resolve(api, CONTACT)
    assert await until(lambda: cleared(phones, IPHONE)) == ([resolved], 1)


async def test_resolution_joins_the_clear_that_waits_for_its_user(api: Api, phones: Phones) -> None:
    read = await show(api, phones)
    resolved, unread = await api.post({**custom(1), "about": [CONTACT]}), await api.post(custom(1))
    for id_ in (resolved, unread):
        await pushes_of(api, id_)
    database = api.app_state.database
    async with database.transaction() as connection:  # a clear that becomes due only when the test says so
        await connection.execute(
            "insert into clears (user_id, since, due_at) select user_id, position, 'infinity' from heads"
            " where user_id = 1"
        )
    await api.as_user(1, "PUT", f"/notifications/{read}/read")
    await resolve(api, CONTACT)
    await settled(api)
    await database.value("update clears set due_at = now()")
    ids, badge = await until(lambda: cleared(phones, IPHONE))
    assert (sorted(ids), badge) == (sorted([read, resolved]), 1)


async def test_mark_that_is_committed_after_a_claim_is_cleared_later(api: Api, phones: Phones, dba: Connection) -> None:
    first = await show(api, phones)
    second = await api.post(custom(1))
    await pushes_of(api, second)
    await api.as_user(1, "PUT", f"/notifications/{first}/read")
    async with dba.transaction():
        await dba.fetch(queries("inbox")["marks"], [1], [None], [UUID(second)], ["read"])
        await asyncio.sleep(3)  # the clear of the first is due after 2 s
    await until(lambda: phones.screen(IPHONE) == {"badge": 0, "banners": []})
    await until(lambda: phones.screen(ANDROID)["banners"] == [])


async def test_clear_after_very_many_changes_reads_only_the_latest(idle: Api, dba: Connection) -> None:
    await idle.people(1)
    await dba.execute(
        "insert into changes (user_id, position, change, event_ids)"
        " select 1, n, (array['read', 'deleted', 'unread'])[1 + n % 3], array[gen_random_uuid()]"
        " from generate_series(1, 3000) n"
    )
    await dba.execute("analyze changes")
    async with dba.transaction():
        [row] = await dba.fetch(queries("deliveries")["cleared"], [1], [0])
        read = await dba.fetchval(
            "select sum(idx_tup_fetch)::int from pg_stat_xact_user_tables where relname ~ '^changes'"
        )
    latest = "select array(select event_ids[1] from changes where change <> 'unread' and position > 2900)"
    assert (set(row["ids"]), row["raised"]) == (set(await dba.fetchval(latest)), True)
    assert read < 1000


async def test_clear_that_is_taken_while_the_database_fails_is_sent_later(
    api: Api, phones: Phones, dba: Connection
) -> None:
    id_ = await show(api, phones)
    await api.as_user(1, "PUT", f"/notifications/{id_}/read")

    async def cancelled() -> bool:
        waiting = "select pg_cancel_backend(pid) from pg_locks where relation = 'devices'::regclass and not granted"
        return bool(await dba.fetch(waiting))

    async with dba.transaction():
        await dba.execute("lock table devices in access exclusive mode")
        await until(lambda: dba.fetchval("select due_at < clock_timestamp() from clears where user_id = 1"))
        await until(cancelled)
        await until(cancelled)  # the first one had begun before the clear was due
    assert await until(lambda: cleared(phones, IPHONE)) == ([id_], 0)


async def erase(api: Api) -> None:
    assert (await api.as_service("DELETE", "/directory/users/1")).status_code == 204


async def deactivate(api: Api) -> None:
    user = {"first_name": "First1", "last_name": "Last1", "company_id": 1, "active": False}
    for _ in range(2):
        assert (await api.as_service("PUT", "/directory/users/1", json=user)).status_code == 204


async def deactivate_by_import(api: Api) -> None:
    line = '{"user": {"id": 1, "first_name": "First1", "last_name": "Last1", "company_id": 1, "active": false}}'
    headers = {"Content-Type": "application/x-ndjson"}
    assert (await api.as_service("POST", "/directory/import", content=line, headers=headers)).status_code == 200


async def detach_all(api: Api) -> None:
    assert (await api.as_service("DELETE", "/directory/users/1/devices")).status_code == 204


async def detach_each(api: Api) -> None:
    for token in (IPHONE.upper(), ANDROID):
        assert (await api.as_service("DELETE", f"/directory/users/1/devices/{token}")).status_code == 204


@pytest.mark.parametrize("leave", [erase, deactivate, deactivate_by_import, detach_all, detach_each])
async def test_user_erasure_clears_only_their_phones_once(
    api: Api, phones: Phones, leave: Callable[[Api], Awaitable[None]]
) -> None:
    await show(api, phones, 2, OTHER)
    await show(api, phones)
    await leave(api)
    assert await until(lambda: cleared(phones, IPHONE)) == ("all", 0)
    assert await until(lambda: cleared(phones, ANDROID)) == ('"all"', "0")
    assert phones.screen(IPHONE) == {"badge": 0, "banners": []}
    assert len(phones.screen(OTHER)["banners"]) == 1
    assert await api.app_state.database.value("select count(*) from last_clears") == 0


async def test_phone_with_a_new_owner_is_not_cleared(api: Api, phones: Phones) -> None:
    await show(api, phones)
    database = api.app_state.database
    async with database.transaction() as connection:
        await connection.execute(
            "insert into last_clears (token, type, environment, app, registered_at, lane)"
            " select token, type, environment, app, registered_at, lane from devices where type = 'iOS'"
        )
        await connection.execute("update devices set user_id = 2, id = gen_random_uuid() where type = 'iOS'")
    await until(lambda: database.value("select count(*) = 0 from last_clears"))
    id_ = await api.post(custom(1, 2))
    await state(api, id_, 8)
    assert cleared(phones, IPHONE) is None


async def test_clears_for_unknown_app_are_not_stored(api: Api) -> None:
    await register(api, 1, IPHONE, app="unknown")
    await erase(api)
    assert await api.app_state.database.value("select count(*) from last_clears") == 0


async def test_marking_unread_raises_the_phone_badge(api: Api, phones: Phones) -> None:
    id_ = await show(api, phones)
    await api.as_user(1, "PUT", f"/notifications/{id_}/read")
    await until(lambda: phones.screen(IPHONE)["badge"] == 0)
    await api.as_user(1, "PUT", f"/notifications/{id_}/unread")
    await until(lambda: phones.screen(IPHONE)["badge"] == 1)
    await until(lambda: phones.screen(ANDROID)["badge"] == 1)


async def test_clear_is_not_sent_through_a_stopped_lane(api: Api, phones: Phones) -> None:
    id_ = await show(api, phones)
    phones.answer("apns", status=403, reason="InvalidProviderToken")
    await post(api, custom(1))
    await until_stopped(api)
    await until(lambda: len(phones.pushes("apns")) == 2)
    await api.as_user(1, "PUT", f"/notifications/{id_}/read")
    assert await until(lambda: cleared(phones, ANDROID)) == (f'["{id_}"]', "1")
    assert cleared(phones, IPHONE) is None


async def test_stopped_lane_sends_no_clears(pushing: Api, phones: Phones) -> None:
    android = "android-token-of-thirty-two-characters:1"
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    await pushing.as_user(1, "POST", f"/notifications/devices/{android}", json={"type": "Android"})
    id_ = await accepted(pushing, 1)
    await becomes(pushing, id_, {"delivered": 2})
    next(lane for lane in pushing.app_state.lanes if lane.name == "apns/default").stopped = "403 InvalidProviderToken"
    phones.forget()
    await pushing.as_user(1, "PUT", "/notifications/read")
    await until(lambda: _is_pushed(phones, android))
    assert not phones.pushes("apns", IPHONE)


async def _is_pushed(phones: Phones, token: str) -> bool:
    return bool(phones.pushes("fcm", token))
