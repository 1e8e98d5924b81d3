"""The inbox: pages, counts and marks, also with concurrent changes."""

import asyncio
import gc
import json
from itertools import product
from typing import Any
from uuid import UUID

import pytest

from tests.support.database import blocked, locked, slow, waiting_at
from tests.support.events import custom
from tests.support.service import Api
from tests.support.waiting import bounded, reaches, until
from tests.support.workers import work
from tocsin import inbox, marks, pages
from tocsin.auth.claims import UserCaller
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Missing, NotFound, Overrun, Unauthenticated, Unavailable
from tocsin.invariants import check_rows
from tocsin.store import pool

UNKNOWN = "00000000-0000-4000-8000-000000000000"


async def fill(api: Api, user: int, count: int) -> list[str]:
    """Return the ids of `count` new notifications, newest first."""
    posted = [
        (await api.as_service("POST", "/events", json=custom(user, body=str(n)))).json()["id"] for n in range(count)
    ]
    await api.as_service("GET", f"/events/{posted[-1]}?wait=30")
    return posted[::-1]


async def test_empty_inbox_is_an_empty_page(api: Api) -> None:
    await api.people(1)
    assert await api.inbox(1) == {
        "data": [],
        "pagination": {
            "total": 0,
            "page": 1,
            "per_page": 15,
            "urls": {"previous": None, "next": None},
            "unread": 0,
        },
    }


async def test_inbox_pages_are_newest_first_and_linked(api: Api) -> None:
    await api.people(1)
    ids = await fill(api, 1, 7)
    seen = []
    url: str | None = "/notifications?per_page=3&utm=x%20y"
    numbers = []
    while url:
        page = (await api.as_user(1, "GET", url)).json()
        seen += [entry["id"] for entry in page["data"]]
        numbers.append(page["pagination"]["page"])
        assert (page["pagination"]["total"], page["pagination"]["unread"]) == (7, 7)
        url = page["pagination"]["urls"]["next"]
        assert url is None or ("utm=x%20y" in url and url.startswith(str(api.http.base_url)))
    assert (seen, numbers) == (ids, [1, 2, 3])
    assert page["pagination"]["urls"]["previous"].endswith("/notifications?per_page=3&utm=x%20y&page=2")
    assert [entry["id"] for entry in (await api.inbox(1, "?per_page=3&page=2"))["data"]] == ids[3:6]
    assert (await api.inbox(1, "?page=99"))["data"] == []


async def test_next_pages_neither_repeat_nor_skip_during_changes(
    api: Api,
) -> None:
    await api.people(1)
    ids = await fill(api, 1, 9)
    seen: list[str] = []
    url: str | None = "/notifications?show=unread&per_page=2"
    while url:
        page = (await api.as_user(1, "GET", url)).json()
        seen += [entry["id"] for entry in page["data"]]
        for entry in page["data"]:
            await api.as_user(1, "PUT", f"/notifications/{entry['id']}/read")
        await fill(api, 1, 1)
        url = page["pagination"]["urls"]["next"]
    assert seen == ids


async def test_page_urls_use_the_public_url(url: str, catalogue: Any) -> None:
    from tests.support.service import serving

    async with serving(url, catalogue, public_url="https://crm.example.com/api/") as api:
        await api.people(1)
        await fill(api, 1, 2)
        page = await api.inbox(1, "?per_page=1")
        assert page["pagination"]["urls"]["next"].startswith("https://crm.example.com/api/notifications?per_page=1&")


async def test_show_unread_lists_and_counts_unread_only(api: Api) -> None:
    await api.people(1)
    ids = await fill(api, 1, 5)
    await api.as_user(1, "PUT", f"/notifications/{ids[2]}/read")
    page = await api.inbox(1, "?show=unread")
    assert [entry["id"] for entry in page["data"]] == [*ids[:2], *ids[3:]]
    assert (page["pagination"]["total"], page["pagination"]["unread"]) == (4, 4)
    everything = await api.inbox(1)
    assert (everything["pagination"]["total"], everything["pagination"]["unread"]) == (5, 4)
    assert [entry["read"] for entry in everything["data"]] == [False, False, True, False, False]


async def test_first_read_at_is_kept(api: Api) -> None:
    await api.people(1)
    [id_] = await fill(api, 1, 1)
    assert (await api.as_user(1, "PUT", f"/notifications/{id_}/read")).status_code == 204
    await api.app_state.database.value("update inbox set read_at = '2020-01-02 03:04:05.9+00'")
    again = await api.as_user(1, "PUT", f"/notifications/{id_}/read")
    assert (again.status_code, again.content) == (204, b"")
    [entry] = (await api.inbox(1))["data"]
    assert (entry["read"], entry["read_at"]) == (True, "2020-01-02 03:04:05")
    assert (await api.as_user(1, "PUT", "/notifications/read")).status_code == 204
    assert (await api.inbox(1))["data"][0]["read_at"] == "2020-01-02 03:04:05"


async def test_read_all_marks_everything_read(api: Api) -> None:
    await api.people(1, 2)
    await fill(api, 1, 3)
    [other] = await fill(api, 2, 1)
    assert (await api.as_user(1, "PUT", "/notifications/read")).status_code == 204
    page = await api.inbox(1)
    assert page["pagination"]["unread"] == 0
    assert all(entry["read"] and entry["read_at"] for entry in page["data"])
    assert await api.ids(2, "?show=unread") == [other]


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_notifications_of_other_users_are_404(api: Api, method: str) -> None:
    await api.people(1, 2)
    [id_] = await fill(api, 1, 1)
    path = "/notifications/{}" + ("/read" if method == "PUT" else "")
    others = await api.as_user(2, method, path.format(id_))
    unknown = await api.as_user(2, method, path.format(UNKNOWN))
    malformed = await api.as_user(2, method, path.format("no-uuid"))
    assert {answer.status_code for answer in (others, unknown, malformed)} == {404}
    assert others.json() == unknown.json() == malformed.json()
    assert (await api.inbox(1))["pagination"]["unread"] == 1


async def test_each_change_takes_the_next_position(api: Api) -> None:
    await api.people(1)
    ids = await fill(api, 1, 3)
    await api.as_user(1, "PUT", f"/notifications/{ids[0]}/read")
    await api.as_user(1, "PUT", f"/notifications/{ids[0]}/read")
    await api.as_user(1, "PUT", "/notifications/read")
    await api.as_user(1, "PUT", "/notifications/read")
    await api.as_user(1, "PUT", f"/notifications/{ids[0]}/unread")
    await api.as_user(1, "PUT", f"/notifications/{ids[0]}/unread")
    await api.as_user(1, "DELETE", f"/notifications/{ids[1]}")
    await api.as_user(1, "DELETE", f"/notifications/{ids[1]}")
    for _ in range(2):
        await marks.read_some(api.app_state.database, UserCaller(1, 0), [UUID(ids[0])])
    changes = await api.app_state.database.rows("select position, change, up_to from changes order by position")
    assert [tuple(row) for row in changes] == [
        (4, "read", None),
        (5, "all_read", 4),
        (6, "unread", None),
        (7, "deleted", None),
        (8, "read", None),
    ]
    head = await api.app_state.database.row("select position, total, unread from heads where user_id = 1")
    assert head is not None
    assert tuple(head) == (8, 2, 0)


async def test_marks_have_the_time_at_which_they_were_made(api: Api) -> None:
    await api.people(1)
    one, two, three, four = await fill(api, 1, 4)
    database = api.app_state.database
    before = await database.value("select clock_timestamp()")
    await api.as_user(1, "PUT", f"/notifications/{one}/read")
    await marks.read_some(database, UserCaller(1, 0), [UUID(two)])
    await api.as_user(1, "DELETE", f"/notifications/{three}")
    async with database.transaction() as connection:
        await inbox.lock(connection, [1])
        await inbox.mark(connection, [(UUID(four), 1)], "deleted")
    [five] = await fill(api, 1, 1)
    await api.as_user(1, "PUT", "/notifications/read")
    after = await database.value("select clock_timestamp()")
    rows = await database.rows(
        "select event_id, read_at between $1 and $2 as read, deleted_at between $1 and $2 as deleted from inbox",
        *(before, after),
    )
    assert {str(row["event_id"]): (row["read"], row["deleted"]) for row in rows} == {
        one: (True, None),
        two: (True, None),
        three: (None, True),
        four: (None, True),
        five: (True, None),
    }


async def test_calls_of_a_user_who_was_erased_are_refused(database: Database) -> None:
    id_, caller = UUID(int=1), UserCaller(9, 0)
    calls = (
        marks.SingleMarks(database).read(caller, id_),
        marks.SingleMarks(database).delete(caller, id_),
        marks.read_all(database, caller),
    )
    for call in (*calls, marks.read_some(database, caller, [id_]), inbox.changes(database, caller, "0-0")):
        with pytest.raises(Unauthenticated, match="9"):
            await call


async def test_marks_of_users_without_phones_queue_no_clears(api: Api) -> None:
    await api.people(1, 2, 3)
    for user, token in ((2, "aa"), (3, "bb")):
        await api.as_user(user, "POST", f"/notifications/devices/{token * 32}", json={})
    await api.app_state.database.value("update devices set type = 'Web' where user_id = 3")
    for user in (1, 2, 3):
        await fill(api, user, 1)
        await api.as_user(user, "PUT", "/notifications/read")
    queued = {row["user_id"] for row in await api.app_state.database.rows("select user_id from clears")}
    assert queued <= {2}  # it goes when it is done


@pytest.mark.parametrize("mark", ["read", "unread"])
async def test_deleted_notification_takes_no_mark(api: Api, mark: str) -> None:
    await api.people(1)
    one, _ = await fill(api, 1, 2)
    if mark == "unread":
        await api.as_user(1, "PUT", f"/notifications/{one}/read")
    await api.as_user(1, "DELETE", f"/notifications/{one}")
    head = "select position, total, unread from heads"
    before = await api.app_state.database.row(head)
    assert (await api.as_user(1, "PUT", f"/notifications/{one}/{mark}")).status_code == 410
    assert await api.app_state.database.row(head) == before


async def test_created_at_never_decreases_even_if_the_clock_does(api: Api) -> None:
    await api.people(1)
    await fill(api, 1, 1)
    await api.app_state.database.value("update heads set last_at = '2999-01-01 00:00:00+00'")
    await fill(api, 1, 1)
    assert (await api.inbox(1))["data"][0]["created_at"] == "2999-01-01 00:00:00"


async def test_many_are_marked_read_by_a_statement_that_may_take_longer(
    idle: Api, url: str, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "MANY", 2)
    await idle.people(1, 2)
    for users in ((1, 2), (1, 2), (2,)):
        await idle.as_service("POST", "/events", json=custom(*users))
    await work(idle)
    async with slow(dba, "update", "inbox"), pool(url, 1, patience=2.0) as database:
        with pytest.raises((Overrun, Unavailable)):
            await marks.read_all(database, UserCaller(1, 0))
        await marks.read_all(database, UserCaller(2, 0))
    assert [(await idle.inbox(user))["pagination"]["unread"] for user in (1, 2)] == [2, 0]


async def test_notification_arriving_during_read_all_stays_unread(api: Api) -> None:
    """Both orders: a delivery that locks the inbox before read all, and one that waits for read all."""
    await api.people(1)
    [old] = await fill(api, 1, 1)
    database = api.app_state.database
    async with database.transaction() as other:
        await other.fetchrow("select from heads where user_id = 1 for update")
        reading = asyncio.create_task(marks.read_all(database, UserCaller(1, 0)))
        await until_a_transaction_waits(api)
        new = await deliver_by_hand(other, 1)
    await reading
    assert await api.ids(1, "?show=unread") == [new]
    page = await api.inbox(1)
    assert [entry["id"] for entry in page["data"]] == [new, old]
    assert page["pagination"]["unread"] == 1


async def test_delivery_waiting_for_a_read_comes_after_it(api: Api) -> None:
    await api.people(1)
    [old] = await fill(api, 1, 1)
    database = api.app_state.database
    async with database.transaction() as other:
        await other.fetchrow("select from heads where user_id = 1 for update")
        await other.execute("update inbox set read_at = now() where user_id = 1")
        await other.execute("update heads set position = position + 1, unread = 0 where user_id = 1")
        answer = await api.as_service("POST", "/events", json=custom(1))
        await until_a_transaction_waits(api)
    new = answer.json()["id"]
    await api.as_service("GET", f"/events/{new}?wait=30")
    page = await api.inbox(1)
    assert [(entry["id"], entry["read"]) for entry in page["data"]] == [(new, False), (old, True)]
    assert page["pagination"]["unread"] == 1
    positions = await database.rows("select position from inbox order by position")
    assert [row["position"] for row in positions] == [1, 3]


async def test_concurrent_deliveries_to_one_inbox_are_serialized(api: Api) -> None:
    await api.people(1)
    async with api.app_state.database.transaction() as other:
        await other.fetchrow("select from heads where user_id = 1 for update")
        answer = await api.as_service("POST", "/events", json=custom(1))
        await until_a_transaction_waits(api)
        first = await deliver_by_hand(other, 1)
    second = answer.json()["id"]
    await api.as_service("GET", f"/events/{second}?wait=30")
    assert await api.ids(1) == [second, first]
    rows = await api.app_state.database.rows("select event_id, position from inbox order by position")
    assert [(str(row["event_id"]), row["position"]) for row in rows] == [(first, 1), (second, 2)]
    assert (await api.inbox(1))["pagination"]["total"] == 2


async def until_a_transaction_waits(api: Api) -> None:
    """Wait until a transaction waits for a lock that another one holds."""
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    await until(lambda: api.app_state.database.value(waiting))


async def deliver_by_hand(connection: Any, user: int) -> str:
    """Deliver in a transaction that the test keeps open."""
    id_ = await connection.fetchval(
        """with e as (
               insert into events (id, kind, data, params, users, teams, subjects, service)
               values (gen_random_uuid(), 'custom', '{}', '{}', '{}', '{}', '{}', 'crm') returning id
           ), c as (
               insert into contents
               select id, 'en', '"id":"' || id || '","type":"custom","data":{},"message":"x","message_formatted":"x"'
               from e
           ), h as (
               update heads set position = position + 1, total = total + 1, unread = unread + 1 where user_id = $1
               returning position
           )
           insert into inbox (position, created_at, event_id, user_id, language)
           select h.position, clock_timestamp(), e.id, $1, 'en' from e, h returning event_id""",
        user,
    )
    return str(id_)


async def test_page_holds_what_is_below_a_position_newest_first(api: Api) -> None:
    await api.people(1, 2)
    batch = {"events": [custom(1, 2, body=str(number)) for number in range(9)]}
    ids = (await api.as_service("POST", "/events/batch", json=batch)).json()["ids"]
    await api.as_service("GET", f"/events/{ids[-1]}?wait=30")
    database, user = api.app_state.database, UserCaller(1, 2**31)
    for number in (1, 2, 5, 8):
        await marks.SingleMarks(database).read(user, UUID(ids[number]))
    for number in (4, 5):
        await marks.SingleMarks(database).delete(user, UUID(ids[number]))
    rows = await database.rows(
        "select event_id, position, read_at is null as unread from inbox"
        " where user_id = 1 and deleted_at is null order by position desc"
    )
    assert [str(row["event_id"]) for row in rows] == [ids[number] for number in (8, 7, 6, 3, 2, 1, 0)]
    for unread in (False, True):
        shown = [row for row in rows if row["unread"] or not unread]
        for before, limit in product([pages.NEWEST, *(row["position"] for row in rows)], range(1, 9)):
            below = [row for row in shown if row["position"] < before]
            page = await pages.Pages(database).of(user, unread=unread, before=before, limit=limit)
            found = [entry["id"] for entry in json.loads(f"[{page.data}]")]
            assert found == [str(row["event_id"]) for row in below[:limit]]
            assert page.more == (len(below) > limit)
            assert page.last == (below[:limit][-1]["position"] if below else None)
            assert (page.total, page.unread) == (len(shown), 4)
        for count in range(9):
            last = shown[count - 1]["position"] if count <= len(shown) else pages.OLDEST
            expected = last if count else pages.NEWEST
            assert await pages.skip(database, 1, unread=unread, count=count) == expected


async def test_largest_pages_of_a_large_inbox_are_complete(api: Api) -> None:
    await api.people(1)
    batch = {"events": [custom(1, body=str(number)) for number in range(330)]}
    ids = (await api.as_service("POST", "/events/batch", json=batch)).json()["ids"]
    await api.as_service("GET", f"/events/{ids[-1]}?wait=30")
    await marks.read_some(api.app_state.database, UserCaller(1, 0), [UUID(id_) for id_ in ids[::3]])
    for unread, due in ((False, ids[::-1]), (True, [id_ for id_ in ids if id_ not in set(ids[::3])][::-1])):
        found: list[str] = []
        before: int | None = pages.NEWEST
        while before is not None and len(found) < len(due):
            page = await pages.Pages(api.app_state.database).of(
                UserCaller(1, 2**31), unread=unread, before=before, limit=100
            )
            found += [entry["id"] for entry in json.loads(f"[{page.data}]")]
            assert page.more == (len(found) < len(due))
            before = page.last
        assert found == due


@pytest.mark.parametrize("unread", [False, True])
async def test_page_of_an_inactive_or_unknown_user_is_refused(api: Api, *, unread: bool) -> None:
    await api.people(1, 2)
    await api.people(3, active=False)
    for user in (3, 4):
        with pytest.raises(Unauthenticated):
            await pages.Pages(api.app_state.database).of(UserCaller(user, 2**31), unread=unread, limit=15)
    page = await pages.Pages(api.app_state.database).of(UserCaller(1, 2**31), unread=unread, limit=15)
    assert (page.data, page.total, page.unread, page.more, page.last) == ("", 0, 0, False, None)


@pytest.mark.parametrize(
    ("method", "path", "ids"),
    [
        ("PUT", "/{read}/unread", None),
        ("PUT", "/{unread}/read", None),
        ("DELETE", "/{unread}", None),
        ("PUT", "/read", None),
        ("PUT", "/read", ["{unread}"]),
    ],
)
async def test_mark_locks_the_head_before_entries(api: Api, method: str, path: str, ids: list[str] | None) -> None:
    await api.people(1)
    unread, read = await fill(api, 1, 2)
    await api.as_user(1, "PUT", f"/notifications/{read}/read")
    database = api.app_state.database
    waiting = (
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        " and query not like '%pg_stat_activity%'"
    )
    where = path.format(read=read, unread=unread)
    body = {} if ids is None else {"json": {"ids": [id_.format(unread=unread) for id_ in ids]}}
    async with database.transaction() as connection:
        await connection.execute("select from heads where user_id = 1 for update")
        marking = asyncio.create_task(api.as_user(1, method, f"/notifications{where}", **body))
        await reaches(lambda: database.value(waiting), 1)
        assert len(await connection.fetch("select from inbox where user_id = 1 for update skip locked")) == 2
    assert (await marking).status_code == 204


async def test_pages_that_share_a_statement_are_those_that_each_caller_asked_for(idle: Api, database: Database) -> None:
    users = range(1, 8)
    await idle.people(*users)
    for count, user in enumerate(users):
        for _ in range(count):
            await idle.as_service("POST", "/events", json=custom(user))
    await work(idle)
    for user in users[3:]:
        await idle.as_user(user, "PUT", f"/notifications/{(await idle.ids(user))[1]}/read")
    await idle.people(users[-1], active=False)
    shared_pages = pages.Pages(database)
    asked: list[dict[str, Any]] = [
        {"unread": unread, "before": before, "limit": limit}
        for unread, before, limit in product([True, False], [pages.NEWEST, 3], [1, 2, 40])
    ]
    calls = list(product([*users, 99], asked))
    shared = await asyncio.gather(
        *(shared_pages.of(UserCaller(user, 2**31), **page) for user, page in calls), return_exceptions=True
    )
    for (user, page), found in zip(calls, shared, strict=True):
        if user in {users[-1], 99}:
            assert isinstance(found, Unauthenticated)
        else:
            assert found == await shared_pages.of(UserCaller(user, 2**31), **page)
            ids = [each["id"] for each in json.loads(f"[{found.data}]")]
            mine = "select count(*) from inbox where user_id = $1 and event_id = any($2::uuid[])"
            assert await database.value(mine, user, ids) == len(ids)


async def test_marks_that_share_a_statement_change_what_each_caller_asked_for(idle: Api, database: Database) -> None:
    users = range(1, 7)
    await idle.people(*users)
    ids = {}
    for user in users:
        batch = {"events": [custom(user), custom(user)]}
        ids[user] = [UUID(id_) for id_ in (await idle.as_service("POST", "/events/batch", json=batch)).json()["ids"]]
    await work(idle)
    single = marks.SingleMarks(database)
    await single.read(UserCaller(3, 2**31), ids[3][0])
    await single.delete(UserCaller(4, 2**31), ids[4][0])
    await idle.people(5, active=False)
    before = dict(await dba_positions(database))
    calls = {
        1: single.read(UserCaller(1, 2**31), ids[1][0]),
        2: single.delete(UserCaller(2, 2**31), ids[2][1]),
        3: single.unread(UserCaller(3, 2**31), ids[3][0]),
        4: single.read(UserCaller(4, 2**31), ids[4][0]),
        5: single.read(UserCaller(5, 2**31), ids[5][0]),
        6: single.read(UserCaller(6, 2**31), ids[1][1]),  # another's
        7: single.delete(UserCaller(1, 2**31), ids[1][1]),  # the same user's: by the next statement
    }
    found = await asyncio.gather(*calls.values(), return_exceptions=True)
    assert [type(each) for each in found] == [*[type(None)] * 3, Missing, Unauthenticated, NotFound, type(None)]
    after = dict(await dba_positions(database))
    assert {user: after[user] - before[user] for user in users} == {1: 2, 2: 1, 3: 1, 4: 0, 5: 0, 6: 0}
    counts = await database.rows("select total, unread from heads order by user_id")
    assert [tuple(row) for row in counts] == [(1, 0), (1, 1), (2, 2), (1, 1), (2, 2), (2, 2)]


async def dba_positions(database: Database) -> list[tuple[int, int]]:
    return [tuple(row) for row in await database.rows("select user_id, position from heads")]


async def test_mark_of_a_locked_inbox_delays_no_other_user(idle: Api, database: Database, dba: Connection) -> None:
    await idle.people(1, 2)
    ids = {user: UUID((await idle.as_service("POST", "/events", json=custom(user))).json()["id"]) for user in (1, 2)}
    await work(idle)
    single = marks.SingleMarks(database)
    async with dba.transaction():
        await dba.execute("select from heads where user_id = 1 for update")
        slow, quick = (asyncio.create_task(single.read(UserCaller(user, 2**31), ids[user])) for user in (1, 2))
        async with bounded():
            await quick
        await until(lambda: blocked(dba))
        assert not slow.done()
    await slow
    assert await database.value("select array_agg(unread order by user_id) from heads") == [0, 0]


async def test_failed_look_up_of_cursors_fails_every_request_that_shares_it(
    database: Database, dba: Connection
) -> None:
    gc.collect()  # what other tests left
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    cursors = pages.Cursors(database)
    callers = [asyncio.create_task(cursors.of(UserCaller(id_, 2**31))) for id_ in (1, 1, 2, 3)]
    async with locked(dba, "heads"):
        [pid] = await until(lambda: waiting_at(dba, "heads"))
        callers.pop().cancel()
        await asyncio.sleep(0)
        await dba.execute("select pg_terminate_backend($1)", pid)
        async with bounded():
            failed = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error) for error in failed] == [Unavailable] * 3
    del callers, failed  # their errors keep the futures of the look-up
    gc.collect()
    asyncio.get_running_loop().set_exception_handler(None)
    assert unhandled == []  # the caller that left causes no log line


@pytest.mark.parametrize("first", ["read", "unread", "deleted"])
@pytest.mark.parametrize(("method", "path"), [("PUT", "/read"), ("PUT", "/unread"), ("DELETE", "")])
@pytest.mark.parametrize("is_read", [True, False])
async def test_change_that_waits_for_another_one_sees_what_it_did(  # noqa: PLR0913 - two changes of one entry
    idle: Api, dba: Connection, first: str, method: str, path: str, *, is_read: bool
) -> None:
    await idle.people(1)
    changed, other = [(await idle.as_service("POST", "/events", json=custom(1))).json()["id"] for _ in range(2)]
    await work(idle)
    if is_read:
        await idle.as_user(1, "PUT", f"/notifications/{changed}/read")
    before = await dba.fetchval("select position from heads where user_id = 1")
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.fetchrow(queries("inbox")["marks"], [1], [None], [UUID(changed)], [first])
        later = group.create_task(idle.as_user(1, method, f"/notifications/{changed}{path}"))
        await until(lambda: blocked(dba))
    assert later.result().status_code == (410 if (first, method) == ("deleted", "PUT") else 204)
    [(after, total, unread)] = await dba.fetch("select position, total, unread from heads where user_id = 1")
    entries = await dba.fetch("select read_at, deleted_at from inbox where user_id = 1")
    kept = [row for row in entries if row["deleted_at"] is None]
    assert (total, unread) == (len(kept), sum(row["read_at"] is None for row in kept))
    noted = "select array_agg(position order by position) from changes where user_id = 1 and position > $1"
    assert (await dba.fetchval(noted, before) or []) == list(range(before + 1, after + 1))
    assert [violation async for violation in check_rows(dba) if violation] == []
    assert other in await idle.ids(1)
