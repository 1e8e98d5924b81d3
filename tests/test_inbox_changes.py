"""Actions of users in their inbox: unread, delete, partial read; and the changes that other clients get."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.answers import UNKNOWN, mine
from tests.support.events import custom, note
from tests.support.kinds import ORDER, OURS, folder_of
from tests.support.service import Api, serving
from tests.support.waiting import reaches
from tocsin import inbox
from tocsin.auth.claims import UserCaller
from tocsin.catalogue import Catalogue


async def filled(api: Api, count: int) -> list[str]:
    """Post this number of notifications to user 1; return their ids, oldest first."""
    await api.people(1, 2)
    answer = await api.as_service("POST", "/events/batch", json={"events": [custom(1) for _ in range(count)]})
    ids: list[str] = answer.json()["ids"]
    await api.as_service("GET", f"/events/{ids[-1]}?wait=30")
    return ids


async def counts(api: Api) -> tuple[int, int]:
    found = (await api.inbox(1))["pagination"]
    return found["total"], found["unread"]


async def cursor(api: Api) -> str:
    found: str = (await mine(api, "GET", "/changes")).json()["cursor"]
    return found


async def since(api: Api, mark: str) -> list[tuple[str, Any]]:
    answer = (await mine(api, "GET", f"/changes?since={mark}")).json()
    return [(each["event"], each["data"]) for each in answer["data"]]


async def test_marking_unread_counts_once(api: Api) -> None:
    ids = await filled(api, 2)
    await mine(api, "PUT", f"/{ids[0]}/read")
    assert await counts(api) == (2, 1)
    for _ in range(2):
        assert (await mine(api, "PUT", f"/{ids[0]}/unread")).status_code == 204
    assert await counts(api) == (2, 2)
    entry = (await mine(api, "GET", f"/{ids[0]}")).json()
    assert (entry["read"], entry["read_at"]) == (False, None)


async def test_deleting_removes_a_notification_for_its_owner_only(api: Api) -> None:
    await api.people(1, 2)
    id_ = await api.post(custom(1, 2))
    for _ in range(2):
        assert (await mine(api, "DELETE", f"/{id_}")).status_code == 204
    assert await counts(api) == (0, 0)
    for method, path in (("GET", ""), ("PUT", "/read"), ("PUT", "/unread")):
        answer = await mine(api, method, f"/{id_}{path}")
        assert answer.status_code == 410
        assert answer.json()["errors"][0]["code"] == "missing"
    assert await api.ids(2) == [id_]
    assert (await mine(api, "DELETE", f"/{uuid4()}")).status_code == 404


async def test_deleting_a_read_notification_keeps_the_unread_count(api: Api) -> None:
    ids = await filled(api, 3)
    await mine(api, "PUT", f"/{ids[1]}/read")
    await mine(api, "DELETE", f"/{ids[1]}")
    assert await counts(api) == (2, 2)
    await mine(api, "DELETE", f"/{ids[0]}")
    assert await counts(api) == (1, 1)


async def test_read_up_to_marks_it_and_everything_older(api: Api) -> None:
    ids = await filled(api, 5)
    mark = await cursor(api)
    assert (await mine(api, "PUT", "/read", json={"up_to": ids[2].upper()})).status_code == 204
    assert await api.ids(1, "?show=unread") == [ids[4], ids[3]]
    assert await since(api, mark) == [("read", {"all": True, "up_to": ids[2]})]
    await mine(api, "DELETE", f"/{ids[3]}")
    assert (await mine(api, "PUT", "/read", json={"up_to": ids[3]})).status_code == 204
    assert await counts(api) == (4, 1)


async def test_read_by_ids_marks_those_and_ignores_others(api: Api) -> None:
    ids = await filled(api, 4)
    theirs = await api.post(custom(2))
    await mine(api, "DELETE", f"/{ids[3]}")
    mark = await cursor(api)
    answer = await mine(api, "PUT", "/read", json={"ids": [ids[0], ids[1], ids[1], ids[3], theirs, str(uuid4())]})
    assert answer.status_code == 204
    assert await counts(api) == (3, 1)
    [(event, data)] = await since(api, mark)
    assert (event, sorted(data["ids"])) == ("read", sorted(ids[:2]))
    assert (await api.inbox(2))["pagination"]["unread"] == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"up_to": "x"}, ("up_to", "uuid")),
        ({"up_to": str(uuid4())}, ("up_to", "unknown")),
        ({"ids": "x"}, ("ids", "array")),
        ({"ids": []}, ("ids", "array_between")),
        ({"ids": [str(uuid4())] * 1001}, ("ids", "array_between")),
        ({"ids": [str(uuid4()), 7]}, ("ids.1", "uuid")),
        ({"ids": [str(uuid4())], "up_to": str(uuid4())}, ("ids", "prohibited")),
    ],
)
async def test_invalid_read_request_is_reported(api: Api, body: Any, expected: tuple[str, str]) -> None:
    await filled(api, 1)
    answer = await mine(api, "PUT", "/read", json=body)
    assert answer.status_code == 422
    assert [(each["field"], each["code"]) for each in answer.json()["errors"]] == [
        (expected[0], f"validation.{expected[1]}")
    ]
    assert await counts(api) == (1, 1)


async def test_changes_list_deliveries_and_actions_in_order(api: Api) -> None:
    first = (await filled(api, 1))[0]
    mark = await cursor(api)
    assert await since(api, mark) == []
    second, third = await api.post(custom(1)), await api.post(custom(1))
    await mine(api, "PUT", f"/{second}/read")
    await mine(api, "PUT", f"/{second}/unread")
    await mine(api, "DELETE", f"/{third}")
    await mine(api, "PUT", "/read")
    found = await since(api, mark)
    assert [event for event, _ in found] == ["notification", "read", "unread", "deleted", "read"]
    assert found[0][1] == (await mine(api, "GET", f"/{second}")).json()
    assert [data for _, data in found[1:]] == [
        {"id": second},
        {"id": second},
        {"id": third},
        {"all": True, "up_to": second},
    ]
    assert first in await api.ids(1)
    answer = (await mine(api, "GET", f"/changes?since={mark}")).json()
    assert (answer["unread"], answer["more"]) == (0, False)
    assert await since(api, answer["cursor"]) == []


async def test_changes_are_paginated_without_gaps_or_repeats(api: Api) -> None:
    await filled(api, 1)
    mark = await cursor(api)
    ids = []
    for _ in range(2):
        ids += await filled(api, 600)
    for id_ in ids[:20]:
        await mine(api, "PUT", f"/{id_}/read")
    events: list[tuple[str, Any]] = []
    sizes = []
    more = True
    while more:
        answer = (await mine(api, "GET", f"/changes?since={mark}")).json()
        events += [(each["event"], each["data"]["id"]) for each in answer["data"]]
        sizes.append(len(answer["data"]))
        mark, more = answer["cursor"], answer["more"]
    assert sizes == [500, 500, 220]
    assert events == [("notification", id_) for id_ in ids] + [("read", id_) for id_ in ids[:20]]


async def test_changes_with_much_content_are_divided_without_gaps(api: Api) -> None:
    await api.people(1, 4)
    mark = await cursor(api)
    events = [note(1, params={"contact": "Jane Doe", "body": "&" * 9_000}) for _ in range(20)]
    ids = (await api.as_service("POST", "/events/batch", json={"events": events})).json()["ids"]
    await api.as_service("GET", f"/events/{ids[-1]}?wait=30")
    await mine(api, "PUT", "/read", json={"ids": ids})
    found, more, answers = list[Any](), True, 0
    while more:
        answer = await mine(api, "GET", f"/changes?since={mark}")
        assert len(answer.content) < 2 * inbox.MAX_CHANGES_BYTES
        found += answer.json()["data"]
        mark, more, answers = answer.json()["cursor"], answer.json()["more"], answers + 1
    assert answers > 2
    assert [each["data"]["id"] for each in found[:-1]] == ids
    assert (found[-1]["event"], sorted(found[-1]["data"]["ids"])) == ("read", sorted(ids))


@pytest.mark.parametrize(("limit", "more"), [(1, True), (2, True), (3, False), (4, False)])
async def test_changes_say_whether_others_follow(api: Api, limit: int, *, more: bool) -> None:
    await filled(api, 3)
    made, _ = inbox.position_in(await cursor(api))
    found = await inbox.changes(api.app_state.database, UserCaller(1, 2**31), inbox.cursor_of(made, 0), limit)
    assert (found.more, found.cursor) == (more, inbox.cursor_of(made, min(limit, 3)))


async def test_invalid_or_expired_cursor_requires_resync(api: Api) -> None:
    ids = await filled(api, 3)
    mark = await cursor(api)
    made, position = mark.split("-")
    for strange in ("", "x", f"{made}-999", f"{int(made, 16) + 1:x}-{position}", "1-1", f"{made}-{'9' * 30}", "%00"):
        answer = (await mine(api, "GET", f"/changes?since={strange}")).json()
        assert answer == {"resync": True, "cursor": mark}, strange
    await mine(api, "DELETE", f"/{ids[0]}")
    await api.app_state.database.value("update heads set forgotten = position")
    assert (await mine(api, "GET", f"/changes?since={mark}")).json()["resync"] is True
    assert await since(api, await cursor(api)) == []


async def test_concurrent_deletes_and_reads_keep_counts_exact(api: Api) -> None:
    ids = await filled(api, 12)
    calls = [mine(api, "DELETE", f"/{id_}") for id_ in ids[:6]]
    calls += [mine(api, "PUT", f"/{id_}/read") for id_ in ids[3:9]]
    calls += [mine(api, "PUT", f"/{id_}/unread") for id_ in ids[6:]]
    calls += [mine(api, "DELETE", f"/{id_}") for id_ in ids[:6]]
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} <= {204, 410}
    listed = (await api.inbox(1, "?per_page=100"))["data"]
    assert (
        await counts(api)
        == (len(listed), sum(not entry["read"] for entry in listed))
        == (6, len(await api.ids(1, "?show=unread")))
    )


async def test_etag_returns_304_for_unchanged_page_only(api: Api) -> None:
    ids = await filled(api, 2)
    tag = (await mine(api, "GET", "")).headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = await mine(api, "GET", "", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b""), known
        assert answer.headers["etag"] == tag
        assert answer.headers["cache-control"] == "private, no-cache"
        assert "Authorization" in answer.headers["vary"]
    seen = {tag}
    for method, path in (("PUT", "/read"), ("PUT", "/unread"), ("DELETE", "")):
        await mine(api, method, f"/{ids[0]}{path}")
        answer = await mine(api, "GET", "", headers={"If-None-Match": ", ".join(seen)})
        assert answer.status_code == 200
        assert answer.headers["etag"] not in seen
        seen.add(answer.headers["etag"])
    for garbage in ("", "x", '"', "W/", ",,,"):
        assert (await mine(api, "GET", "", headers={"If-None-Match": garbage})).status_code == 200


async def test_etag_is_valid_for_its_own_page_only(api: Api) -> None:
    await filled(api, 3)
    tag = (await mine(api, "GET", "?per_page=1")).headers["etag"]
    for query in ("", "?per_page=1&page=2", "?per_page=1&show=unread", "?per_page=2"):
        assert (await mine(api, "GET", query, headers={"If-None-Match": tag})).status_code == 200, query
    elsewhere = {"If-None-Match": tag, "Host": "crm.example.com"}  # where urls are others
    assert (await mine(api, "GET", "?per_page=1", headers=elsewhere)).status_code == 200
    assert (await mine(api, "GET", "?per_page=1", headers={"If-None-Match": tag})).status_code == 304


async def test_links_are_returned_for_own_notifications_only(api: Api) -> None:
    await api.people(1, 2, 4)
    ours = await api.post(note(1))
    plain = await api.post(custom(1))
    others = await api.post(note(2))
    deleted = await api.post(note(1))
    await mine(api, "DELETE", f"/{deleted}")
    answer = await mine(api, "GET", f"/links?ids={ours},{plain},{others},{deleted},{UNKNOWN}")
    assert answer.json() == {"data": {ours: None, plain: None}}  # no built-in kind has a link
    for query, field, code in (
        ("", "ids", "required"),
        ("?ids=", "ids", "required"),
        ("?ids=x", "ids.0", "uuid"),
        (f"?ids={','.join([ours] * 101)}", "ids", "array_between"),
    ):
        answer = await mine(api, "GET", f"/links{query}")
        assert answer.status_code == 422
        [field_error] = answer.json()["errors"]
        assert (field_error["field"], field_error["code"]) == (field, f"validation.{code}"), query


async def test_link_of_custom_kind_is_filled_in(url: str, tmp_path: Path) -> None:
    async with serving(url, Catalogue.load(folder_of(tmp_path / "own", kinds=OURS))) as api:
        await api.people(1, 2)
        data = {"user": 2, "order": ORDER, "days": 3}
        id_ = await api.post({"type": "order_moved", "notify": {"users": [1]}, "data": data})
        answer = await mine(api, "GET", f"/links?ids={id_}")
        assert answer.json() == {"data": {id_: f"https://shop.example.com/{ORDER['id']}"}}


async def test_notification_of_a_removed_kind_has_no_link(api: Api) -> None:
    await api.people(1)
    id_ = await api.post(custom(1))
    await api.app_state.database.value("update events set kind = 'of_yore' where id = $1", id_)
    answer = await mine(api, "GET", f"/links?ids={id_}")
    assert (answer.status_code, answer.json()) == (200, {"data": {id_: None}})


async def test_erased_notifications_hide_no_later_changes(api: Api) -> None:
    await api.people(1, 2)
    mark = await api.app_state.database.value("select position from heads where user_id = 1")
    ids = [await api.post({**custom(1), "about": [f"order:{number}"]}) for number in range(3)]
    for number in range(3):
        await api.as_service("POST", "/events/resolve", json={"about": f"order:{number}", "as": "erased"})
        await reaches(lambda: api.app_state.database.value("select count(*) from jobs"), 0)
    for id_ in ids:
        await mine(api, "DELETE", f"/{id_}")
    told = (await inbox.changes_since(api.app_state.database, {1: mark}, 2))[1]
    assert [(entry.event, entry.data) for entry in told.entries] == [
        ("deleted", f'{{"id":"{id_}"}}') for id_ in ids[:2]
    ]
    assert told.more


async def test_etag_of_another_or_previous_user_is_not_304(api: Api) -> None:
    await api.people(1, 2)
    await api.post(custom(1, 2))
    tag = (await mine(api, "GET", "")).headers["etag"]
    assert (await api.as_user(2, "GET", "/notifications", headers={"If-None-Match": tag})).status_code == 200
    wrong = await mine(api, "GET", "?page=0", headers={"If-None-Match": tag})
    assert wrong.status_code == 422
    await api.people(1, active=False)
    assert (await mine(api, "GET", "", headers={"If-None-Match": tag})).status_code == 401
