"""Imports: validated as a whole, applied in steps, and equal to what an export returns."""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.answers import field_errors, raw
from tests.support.built_in import CATALOGUE
from tests.support.commands import TOCSIN, run
from tests.support.database import everything, locked, make_database, slow, value, waiting_at
from tests.support.events import custom, post
from tests.support.imports import (
    CONTACT,
    NDJSON,
    device,
    import_lines,
    notification,
    send,
    team,
    text_of,
    user,
)
from tests.support.resolutions import NAMES, resolve, settled, traces
from tests.support.servers import own_server
from tests.support.service import HOUR, SECRET, Api, serving
from tests.support.waiting import LONGEST_WAIT, bounded, reaches, until
from tocsin import inbox, jobs, retention
from tocsin.audit import Actor
from tocsin.auth.minting import mint_service
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection, connect
from tocsin.db.migrate import migrate
from tocsin.db.pool import Borrowed
from tocsin.db.statements import queries
from tocsin.errors import Overrun, Unavailable
from tocsin.formats import MAX_TEAM_MEMBERS
from tocsin.ids import MAX_ID, new_id
from tocsin.postgres.supervisor import Embedded
from tocsin.store import pool
from tocsin.transfer import imports
from tocsin.transfer.exports import export
from tocsin.worker import Worker

SLOWLY = """
create function wait() returns trigger language plpgsql as 'begin perform pg_sleep(3.2); return null; end';
create trigger slowly before insert on import_lines for each statement execute function wait();
"""


async def exported(api: Api) -> list[Any]:
    return [json.loads(line) async for line in export(api.app_state.database, Actor("test"))]


async def entries(api: Api, user_id: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.inbox(user_id, "?per_page=100"))["data"]
    return found


async def test_import_preserves_history(api: Api) -> None:
    old, new = (
        notification(1, 2, read=True),
        notification(1, 5, message_formatted=None, message="1 < 2 <br> a\nb <br> c"),
    )
    counts = await import_lines(api, user(1, locale="da"), old, new, team(7, 1), device(1))
    assert counts == {"users": 1, "teams": 1, "devices": 1, "notifications": 2}
    page = await api.inbox(1)
    assert page["pagination"]["total"], page["pagination"]["unread"] == (2, 1)
    assert [entry["id"] for entry in page["data"]] == [new["notification"]["id"], old["notification"]["id"]]
    assert page["data"][1] == {
        "id": old["notification"]["id"],
        "type": "task_assigned",
        "data": old["notification"]["data"],
        "message": old["notification"]["message"],
        "message_formatted": old["notification"]["message_formatted"],
        "read": True,
        "read_at": "2015-04-01 08:00:00",
        "created_at": "2015-03-02 10:25:50",
    }
    assert list(page["data"][1]["data"]["user"]) == ["id", "last", "first"]
    assert page["data"][0]["message_formatted"] == "<p>1 &lt; 2</p><br><p><em>a<br>b &lt;br&gt; c</em></p>"
    assert (await api.as_user(1, "GET", "/notifications/devices")).json()["data"][0]["token_ending"] == "ababab"
    assert await api.app_state.database.value("select count(*) from import_lines") == 0
    assert await api.app_state.database.value("select count(*) from imports") == 0


async def test_new_notifications_precede_imported_history(api: Api) -> None:
    await api.people(1)
    first = await api.post(custom(1))
    history = [notification(1, day) for day in range(1, 29)]
    await import_lines(api, *history)
    later = await api.post(custom(1))
    due = [later, first, *(line["notification"]["id"] for line in reversed(history))]
    found, url = [], "/notifications?per_page=4"
    while url:
        page = (await api.as_user(1, "GET", url)).json()
        found += [entry["id"] for entry in page["data"]]
        url = page["pagination"]["urls"]["next"]
    assert found == due
    by_number = [id_ for number in range(1, 9) for id_ in await api.ids(1, f"?per_page=4&page={number}")]
    assert by_number == due
    assert await api.ids(1, "?per_page=4&page=9") == []


async def test_imported_notifications_support_every_operation(api: Api) -> None:
    lines = [notification(1, day) for day in range(1, 7)]
    await import_lines(api, user(1), *lines)
    ids = [line["notification"]["id"] for line in lines]
    for method, path in (
        ("PUT", f"/notifications/{ids[0]}/read"),
        ("PUT", f"/notifications/{ids[0]}/unread"),
        ("DELETE", f"/notifications/{ids[1]}"),
    ):
        assert (await api.as_user(1, method, path)).status_code == 204
    assert (await api.as_user(1, "GET", f"/notifications/{ids[1]}")).status_code == 410
    assert (await api.as_user(1, "PUT", "/notifications/read", json={"up_to": ids[2]})).status_code == 204
    assert [entry["read"] for entry in await entries(api, 1)] == [False, False, False, True, True]
    await resolve(api, f"case:{CONTACT}", "gone")
    await settled(api)
    assert await entries(api, 1) == []
    assert (await api.inbox(1))["pagination"]["unread"] == 0


async def test_import_pads_three_digit_years(api: Api) -> None:
    entry = notification(1, created_at="0999-03-01 10:25:50", read_at="0999-03-02 10:25:50")
    await import_lines(api, user(1), entry)
    times = {"created_at": "0999-03-01 10:25:50", "read_at": "0999-03-02 10:25:50"}
    [found] = await entries(api, 1)
    assert {name: found[name] for name in times} == times
    id_ = entry["notification"]["id"]
    recipient = (await api.as_service("GET", f"/events/{id_}/recipients/1", "operations")).json()
    assert (recipient["delivered_at"], recipient["read_at"]) == (times["created_at"], times["read_at"])


async def test_import_is_idempotent_and_keeps_later_changes(api: Api) -> None:
    lines = [user(1), team(7, 1), device(1), *(notification(1, day) for day in range(1, 6))]
    await import_lines(api, *lines)
    gone, read = (line["notification"]["id"] for line in lines[3:5])
    await api.as_user(1, "DELETE", f"/notifications/{gone}")
    await api.as_user(1, "PUT", f"/notifications/{read}/read")
    before = await entries(api, 1)
    await import_lines(api, *lines)
    assert await entries(api, 1) == before
    assert (await api.inbox(1))["pagination"] | {"urls": None} == {
        "total": 4,
        "page": 1,
        "per_page": 15,
        "urls": None,
        "unread": 3,
    }


async def test_import_accepts_lines_in_any_order_and_last_one_wins(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "APPLY_BATCH_SIZE", 3)
    monkeypatch.setattr(imports, "STAGE_BATCH_SIZE", 2)
    people = range(1, 9)
    lines = [
        *(user(id_, company_id=1 + id_ % 2) for id_ in people),
        *(team(id_, *(person for person in people if person % 2 == id_ % 2), company_id=1 + id_ % 2) for id_ in (7, 8)),
        *(device(id_, f"{id_:02x}" * 32) for id_ in people),
        *(notification(id_, day) for id_ in people for day in (3, 1, 2)),
    ]
    random.Random(7).shuffle(lines)  # noqa: S311 - the same order each time
    await import_lines(api, *lines, user(1, company_id=2, first_name="Last one"), team(8, 2, 4))
    assert (await api.as_service("GET", "/directory/users/1")).json()["first_name"] == "Last one"
    assert (await api.as_service("GET", "/directory/teams/8")).json()["users"] == [2, 4]
    assert (await api.as_service("GET", "/directory/teams/7")).json()["users"] == [1, 3, 5, 7]
    for id_ in people:
        created = [entry["created_at"] for entry in await entries(api, id_)]
        assert created == [f"2015-03-0{day} 10:25:50" for day in (3, 2, 1)]


@pytest.mark.parametrize("size", [1, 2, 3, 2_500])
async def test_two_imports_are_merged_in_chronological_order(
    api: Api, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(imports, "APPLY_BATCH_SIZE", size)
    await api.people(1)
    live = await api.post(custom(1))
    known = [notification(1, day) for day in (1, 3, 5)]
    await import_lines(api, *known)
    before = (await api.inbox(1))["pagination"]["total"]
    await import_lines(api, *(notification(1, day) for day in (2, 4, 6)), known[0])
    found = await entries(api, 1)
    assert found[0]["id"] == live
    assert [int(entry["created_at"][8:10]) for entry in found[1:]] == [6, 5, 4, 3, 2, 1]
    assert (await api.inbox(1))["pagination"]["total"] == before + 3


async def test_notifications_of_two_imports_are_sorted_once_for_each_user(
    idle: Api, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "APPLY_BATCH_SIZE", 4)
    await idle.people(1)
    database, worker, sorts = idle.app_state.database, new_id(), []
    moved = "select sum(n_tup_upd)::int from pg_stat_xact_user_tables where relname like 'inbox%'"
    for first in (1, 2):
        incoming = imports.Import(database, idle.app_state.pubsub, catalogue, Actor("test"))
        await incoming.open()
        await incoming.feed(text_of([notification(1, day) for day in range(first, 31, 2)]))
        await incoming.close()
        while leased := await jobs.claim(database, worker, "bulk", 1):
            async with database.transaction() as connection:
                before = await connection.fetchval(moved)
                await imports.apply(Borrowed(connection), worker, leased[0])
                sorts.append(await connection.fetchval(moved) - before)
    assert [int(entry["created_at"][8:10]) for entry in await entries(idle, 1)] == list(range(30, 0, -1))
    assert len([count for count in sorts if count]) == 1, sorts


async def test_import_that_sorts_waits_for_no_erasure_that_waits_for_it(api: Api) -> None:
    """An erasure locks the user first, and then the inbox."""
    await import_lines(api, user(1), notification(1, 2))
    async with api.app_state.database.transaction() as erasure, bounded():
        await erasure.execute("select from users where id = 1 for update")
        await import_lines(api, notification(1, 1), notification(1, 3))
    assert [int(entry["created_at"][8:10]) for entry in await entries(api, 1)] == [3, 2, 1]


async def test_import_leaves_out_users_who_come_after_it_has_locked_inboxes(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.people(1, 2)
    lock = inbox.lock

    async def lock_as_one_comes(connection: Connection, users: Collection[int]) -> set[int]:
        monkeypatch.undo()
        await api.as_service("DELETE", "/directory/users/2")
        found = await lock(connection, users)
        await api.people(2)
        return found

    monkeypatch.setattr(inbox, "lock", lock_as_one_comes)
    await import_lines(api, notification(2), notification(1))
    assert [len(await entries(api, each)) for each in (1, 2)] == [1, 0]


async def test_import_may_give_one_id_different_texts_per_user(api: Api) -> None:
    id_ = str(uuid4())
    lines = [notification(user_id, id=id_, message=f"Hello {user_id}") for user_id in (1, 2)]
    await import_lines(api, user(1), user(2), *lines)
    assert [(await entries(api, user_id))[0]["message"] for user_id in (1, 2)] == ["Hello 1", "Hello 2"]
    again = await api.as_service("POST", "/events", json={**custom(1), "id": id_})
    assert again.json()["errors"][0]["code"] == "conflict.id_reused"


async def test_event_of_several_users_is_completed_by_later_steps(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "APPLY_BATCH_SIZE", 1)
    id_ = str(uuid4())
    texts = {1: "Hello", 2: "Hello", 3: "Hej"}
    lines = [notification(user_id, id=id_, message=text) for user_id, text in texts.items()]
    await import_lines(api, *map(user, texts), *lines)
    await import_lines(api, user(4), notification(4, id=id_, message="Hello"), *lines)
    for user_id, text in {**texts, 4: "Hello"}.items():
        assert [entry["message"] for entry in await entries(api, user_id)] == [text]
        about = (await api.as_service("GET", f"/events/{id_}/recipients/{user_id}", "operations")).json()
        assert about["delivered_at"] == "2015-03-01 10:25:50"
    await resolve(api, f"case:{CONTACT}", "gone")
    await settled(api)
    assert [await entries(api, user_id) for user_id in (1, 2, 3, 4)] == [[]] * 4


async def test_import_makes_its_users_recipients_of_events_that_others_have(api: Api) -> None:
    """The record of the recipients of an event begins with its first user, whom the import adds."""
    await api.people(1, 2, 3)
    id_ = await api.post(custom(2, 3))
    await import_lines(api, notification(1, id=id_, data={"case": {"id": CONTACT}}))
    await api.as_service("DELETE", "/directory/users/1")
    await settled(api)
    await api.people(1)
    await import_lines(api, notification(1, id=id_))
    about = (await api.as_service("GET", f"/events/{id_}/recipients/1", "operations")).json()
    assert about["recipient"] is True
    await resolve(api, f"case:{CONTACT}", "gone")
    await settled(api)
    assert await entries(api, 1) == []
    assert await retention.run_once(api.app_state.database, 0) == {"notifications": 1}
    assert [row["found"] for row in await api.app_state.database.rows("select event_id as found from inbox")] == []


async def test_import_adds_no_users_to_an_event_that_failed(idle: Api) -> None:
    """It can be replayed, and reaches them then."""
    await idle.people(1, 2)
    database, worker = idle.app_state.database, new_id()
    id_ = UUID((await post(idle, custom(1, 2))).json()["id"])
    await jobs.claim(database, worker, "direct", 1)
    await jobs.move_to_dead_letters(database, worker, id_, "it failed")
    incoming = imports.Import(database, idle.app_state.pubsub, CATALOGUE, Actor("test"))
    await incoming.open()
    await incoming.feed(text_of([notification(1, id=str(id_)), notification(1)]))
    await incoming.close()
    [leased] = await jobs.claim(database, worker, "bulk", 1)
    await imports.apply(database, worker, leased)
    assert await database.value("select array_agg(event_id <> $1) from inbox", id_) == [True]


SPECIAL_TEXTS = (
    *("\\", "\\N", "\\.", "a\\tb", "a\tb", "a\nb", "a\r\nb", "\x01\x1f\x7f", "\u2028"),
    *('"', '{"a",b}', "{}", "NULL", "", " ", "'", "$1", "æ😀"),
)
"""Texts that the formats of COPY or of arrays write in another way."""


@pytest.mark.parametrize("text", SPECIAL_TEXTS)
async def test_import_preserves_every_character(api: Api, text: str) -> None:
    data = {"case": {"id": text, text: text}}
    await import_lines(api, user(1, profile_picture=text), notification(1, data=data, message=text))
    [found] = await entries(api, 1)
    assert (found["data"], found["message"]) == (data, text)
    assert (await api.as_service("GET", "/directory/users/1")).json()["profile_picture"] == text
    [event] = await api.app_state.database.rows("select subjects, data from events")
    assert (event["subjects"], json.loads(event["data"])) == ([f"case:{text.lower()}"], data)


async def test_event_has_the_subjects_of_all_its_imported_lines(api: Api) -> None:
    """Retention and erasure find the subjects of an event by its row; other subjects would never be deleted."""
    await api.people(1, 2, 3)
    id_, database = str(new_id()), api.app_state.database

    def about(user_id: int, case_id: str) -> Any:
        return notification(user_id, id=id_, data={"case": {"id": case_id}})

    await import_lines(api, about(1, "6"), about(2, "7"))
    await import_lines(api, about(3, "8"))
    rows = await database.rows("select subject from subjects where event_id = $1 order by subject", UUID(id_))
    assert [row["subject"] for row in rows] == ["case:6", "case:7", "case:8"]
    assert sorted(await database.value("select subjects from events where id = $1", UUID(id_))) == [
        row["subject"] for row in rows
    ]


async def test_import_requires_resync_of_existing_clients(api: Api) -> None:
    await api.people(1)
    cursor = (await api.as_user(1, "GET", "/notifications/changes")).json()["cursor"]
    await import_lines(api, notification(1))
    answer = (await api.as_user(1, "GET", f"/notifications/changes?since={cursor}")).json()
    assert answer["resync"] is True
    id_ = await api.post(custom(1))
    changes = (await api.as_user(1, "GET", f"/notifications/changes?since={answer['cursor']}")).json()
    assert [change["data"]["id"] for change in changes["data"]] == [id_]


BAD: dict[str, tuple[Any, list[tuple[str, str]]]] = {
    "no json": (b"{", [("", "object")]),
    "no object": (b"[]", [("", "object")]),
    "two keys": (b'{"user": 1, "user": 2}', [("", "object")]),
    "nan": (b'{"user": NaN}', [("", "object")]),
    "nothing": ({}, [("", "in")]),
    "two parts": ({**user(1), **team(1)}, [("", "in")]),
    "another part": ({"case": {}}, [("", "in")]),
    "no user": ({"user": 1}, [(".user", "object")]),
    "a user of nothing": (
        {"user": {}},
        [(".user.first_name", "required"), (".user.last_name", "required"), (".user.id", "required")],
    ),
    "an odd user": (
        user(0, first_name=7, locale="danish!", time_zone="Mars"),
        [
            (".user.first_name", "string"),
            (".user.locale", "regex"),
            (".user.time_zone", "in"),
            (".user.id", "numeric_between"),
        ],
    ),
    "a team of strangers": (team(7, 1, 99), [(".team.users.1", "unknown")]),
    "a team of two companies": (team(7, 1, company_id=2), [(".team.users.0", "unknown")]),
    "a device of nobody": (device(99), [(".device.user_id", "unknown")]),
    "an odd device": (
        {"device": {"token": "x", "type": "ios"}},
        [(".device.user_id", "required"), (".device.type", "in"), (".device.token", "regex")],
    ),
    "a notification of nobody": (notification(99), [(".notification.user_id", "unknown")]),
    "an odd notification": (
        notification(1, id="x", type="no type", data=[], created_at="yesterday", read_at=7),
        [
            (".notification.id", "uuid"),
            (".notification.type", "regex"),
            (".notification.data", "object"),
            (".notification.read_at", "string"),
            (".notification.created_at", "date"),
        ],
    ),
    "of tomorrow": (notification(1, created_at="2999-01-01 00:00:00"), [(".notification.created_at", "date")]),
    "a script": (
        notification(1, message_formatted="<p><script>x</script></p>"),
        [(".notification.message_formatted", "regex")],
    ),
    "an attribute": (
        notification(1, message_formatted="<p class='x'>x</p>"),
        [(".notification.message_formatted", "regex")],
    ),
    "a long integer": (
        notification(1, data={"a": [{"b": -(10**41)}], "c": "1" + "0" * 41}),
        [(".notification.data", "numeric_between")],
    ),
    "not closed": (
        notification(1, message_formatted="<p>x</p"),
        [(".notification.message_formatted", "regex")],
    ),
    "crossed": (
        notification(1, message_formatted="<p><em>x</p></em>"),
        [(".notification.message_formatted", "regex")],
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_invalid_import_line_is_reported_by_number_and_nothing_applied(api: Api, name: str) -> None:
    bad, due = BAD[name]
    await api.people(1)
    before = await everything(api)
    lines = [user(1, first_name="Other"), user(2), notification(2), device(2)]
    raw = bad if isinstance(bad, bytes) else text_of([bad])
    answer = await send(api, text_of(lines) + b"\n\n" + raw + b"\n" + text_of([team(9)]))
    assert field_errors(answer) == [(f"lines.6{path}", code) for path, code in due]
    assert await everything(api) == before


@pytest.mark.slow
async def test_invalid_line_of_a_large_import_leaves_nothing(api: Api) -> None:
    async def lines() -> AsyncIterator[bytes]:
        for number in range(1, 300_001, 1_000):
            yield b"\n".join(json.dumps(user(id_)).encode() for id_ in range(number, number + 1_000)) + b"\n"
            if number == 250_001:
                yield text_of([team(7, 1, 999_999)]) + b"\n"

    answer = await api.as_service("POST", "/directory/import", content=lines(), headers=NDJSON, timeout=120)
    assert field_errors(answer) == [("lines.251001.team.users.1", "unknown")]
    assert (await api.as_service("GET", "/directory/users")).json()["data"] == []
    assert await api.app_state.database.value("select count(*) from import_lines") == 0


async def test_import_reports_a_limited_number_of_errors(api: Api) -> None:
    answer = await send(api, [{"user": {"id": number}} for number in range(1000)])
    assert len(field_errors(answer)) == imports.MAX_FIELD_ERRORS


MANY_ERRORS: list[tuple[list[bytes], int]] = [
    ([b'{"user": {}}'] * 50, 150),
    ([b"x"] * 99 + [b'{"user": {}}', b"", b"x", json.dumps(user(1)).encode(), b'{"notification": {}}'], 109),
    (
        [b"x"] * 100
        + [
            b'{"team": {"id": 7, "name": "", "users": [0, 0, "x"]}}',
            b"[" * 20,
            b'{"a": {"id": 1}}',
            b'{"user": [1, 2]}',
        ],
        106,
    ),
    ([b'{"team": {"id": 7, "name": "x", "users": [%s0]}}' % (b"0, " * 249)], 250),
    ([json.dumps(device(number, f"{number:064x}")).encode() for number in range(1, 151)], 150),
    ([json.dumps(team(7, *range(2, 132))).encode(), *[json.dumps(device(9)).encode()] * 20], 150),
    ([json.dumps(device(9)).encode()] * 70 + [b'{"user": {}}'] * 30, 160),
]


@pytest.mark.parametrize(("lines", "due"), MANY_ERRORS)
async def test_errors_of_an_import_beyond_100_are_counted(
    api: Api, monkeypatch: pytest.MonkeyPatch, lines: list[bytes], due: int
) -> None:
    monkeypatch.setattr(imports, "CHECK_BATCH_SIZE", 60)
    answer = (await send(api, b"\n".join(lines))).json()
    assert (len(answer["errors"]), answer["more"]) == (100, due - 100)


async def test_unknown_users_of_all_parts_of_a_large_import_are_reported(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "CHECK_BATCH_SIZE", 3)
    lines = [device(9), user(1), notification(1), team(7, 1, 8), notification(7), user(2), device(2), device(6)]
    faults = ["1.device.user_id", "4.team.users.1", "5.notification.user_id", "8.device.user_id"]
    assert field_errors(await send(api, lines)) == [(f"lines.{fault}", "unknown") for fault in faults]
    assert await api.app_state.database.rows("select id from imports") == []
    assert await api.app_state.database.rows("select number from import_lines") == []
    monkeypatch.setattr(imports, "MAX_FIELD_ERRORS", 3)
    assert field_errors(await send(api, lines)) == [(f"lines.{fault}", "unknown") for fault in faults[:3]]


async def test_import_reports_unknown_users_with_other_errors_by_line(api: Api) -> None:
    lines = [
        device(9),
        user(1, locale="danish!"),
        team(7, 1, 8),
        device(1, "x"),
        notification(7),
        {"user": {"id": 2}},
        device(2),
    ]
    faults = ["1.device.user_id", "2.user.locale", "3.team.users.1", "4.device.token", "5.notification.user_id"]
    faults += ["6.user.first_name", "6.user.last_name"]
    assert [field for field, _ in field_errors(await send(api, lines))] == [f"lines.{fault}" for fault in faults]
    assert await api.app_state.database.rows("select number from import_lines") == []


async def test_check_of_a_part_of_an_import_reads_no_lines_of_other_parts(url: str) -> None:
    connection = await connect(url)
    id_ = new_id()
    await connection.execute("insert into imports (id, state) values ($1, 'checking')", id_)
    await connection.execute(
        "insert into import_lines (import_id, number, part, user_id, body)"
        " select $1, n, 'device', 1 + n % 10, '{}' from generate_series(1, 20000) n",
        id_,
    )
    await connection.execute("analyze import_lines")
    explained = f"explain (analyze, buffers, format json) {queries('imports')['unknown']}"
    [plan] = json.loads(await connection.fetchval(explained, id_, None, 100, 2001, 2100))
    await connection.close()
    assert plan["Plan"]["Actual Rows"] == 100
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 100


async def test_first_unknown_members_of_a_team_are_reported_in_their_order(api: Api) -> None:
    answer = await send(api, [user(1), team(7, 1, *range(2, 132))])
    assert field_errors(answer) == [(f"lines.2.team.users.{position}", "unknown") for position in range(1, 101)]


async def test_user_of_an_import_is_known_to_lines_far_before(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "CHECK_BATCH_SIZE", 1)
    await import_lines(api, team(7, 1, 2), notification(2), device(1), user(1), user(2))
    assert (await api.as_service("GET", "/directory/teams/7")).json()["users"] == [1, 2]


async def test_line_that_is_too_long_is_reported_by_number(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "MAX_LINE_BYTES", 10_000)

    async def parts() -> AsyncIterator[bytes]:
        line = text_of([user(1, profile_picture="x" * 30_000)])
        yield text_of([user(1)]) + b"\n"
        for start in range(0, len(line), 4_000):
            yield line[start : start + 4_000]
        yield b"\n" + text_of([team(7, 99)])

    answer = await api.as_service("POST", "/directory/import", content=parts(), headers=NDJSON)
    assert field_errors(answer) == [("lines.2", "string_between"), ("lines.3.team.users.0", "unknown")]
    assert await api.app_state.database.value("select count(*) from import_lines") == 0


@pytest.mark.processes
def test_file_without_an_end_of_a_line_is_refused(url: str, tmp_path: Path) -> None:
    done = run("import", "/dev/zero", cwd=tmp_path, TOCSIN_DATABASE_URL=url)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        [
            "tocsin: Nothing was imported from /dev/zero:",
            f"The lines.1 field must have at most {imports.MAX_LINE_BYTES} bytes.",
        ],
    )


@pytest.mark.processes
@pytest.mark.parametrize("source", ["named pipe", "standard input"])
async def test_import_that_waits_for_lines_is_ended_by_a_signal(url: str, tmp_path: Path, source: str) -> None:
    os.mkfifo(tmp_path / "lines")
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'trap "" HUP; exec "$@"', "sh", TOCSIN, "import"),  # as nohup does
        "-" if source == "standard input" else "lines",
        env={"TOCSIN_DATABASE_URL": url},
        cwd=tmp_path,
        stdin=asyncio.subprocess.PIPE,
    )
    async with bounded():
        while not await value(url, "select count(*) from tocsin.imports"):
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.2)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == -signal.SIGTERM
    assert await value(url, "select count(*) from tocsin.imports") == 0


async def test_numbers_in_imported_data_are_kept(api: Api) -> None:
    await api.people(1)
    data = {"a": 10**41 - 1, "b": [1 - 10**40, 0.1, 1e300], "c": str(10**41), "d": 2**64}
    await import_lines(api, notification(1, data=data))
    [entry] = await entries(api, 1)
    assert entry["data"] == data


def test_largest_team_fits_into_a_line() -> None:
    members = [MAX_ID] * MAX_TEAM_MEMBERS
    assert len(json.dumps(team(MAX_ID, *members, company_id=MAX_ID)["team"])) + 10_000 < imports.MAX_LINE_BYTES


async def test_long_lines_do_not_gather_in_memory(
    api: Api, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "STAGE_BATCH_BYTES", 30_000)
    database = api.app_state.database
    incoming = imports.Import(database, api.app_state.pubsub, catalogue, Actor("test"))
    await incoming.open()
    for id_ in range(1, 10):
        await incoming.feed(text_of([notification(id_, message="x" * 10_000)]) + b"\n")
    await until(lambda: database.value("select count(*) = 9 from import_lines"))
    await incoming.discard()
    assert await database.value("select count(*) from import_lines") == 0


async def test_other_work_gets_its_turns_while_lines_are_parsed(api: Api, catalogue: Catalogue) -> None:
    incoming = imports.Import(api.app_state.database, api.app_state.pubsub, catalogue, Actor("test"))
    await incoming.open()
    lines = text_of([user(id_) for id_ in range(1, 1_001)])
    seen = list[int]()

    async def look() -> None:
        while True:
            seen.append(incoming.lines)
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    await incoming.feed(lines)
    looking.cancel()
    await incoming.discard()
    shortest = min(map(len, lines.splitlines()))
    assert 0 < max(after - before for before, after in pairwise(seen)) <= imports.BYTES_PER_TURN // shortest + 1


async def test_company_bound_service_imports_into_its_company_only(api: Api) -> None:
    await api.people(1)
    await api.team(7, 1)
    before = await everything(api)
    lines = [user(1), user(2, company_id=1), team(7), team(8, 1), device(1), notification(1)]
    answer = await send(api, lines, company_id=2)
    due = ["1.user.id", "2.user.company_id", "3.team.id"]
    assert field_errors(answer) == [(f"lines.{each}", "unknown") for each in due]
    wrong = [user(1, first_name=1, company_id=1), device(1, company_id=1)]
    assert field_errors(await send(api, wrong, company_id=2)) == [
        ("lines.1.user.first_name", "string"),
        ("lines.1.user.company_id", "unknown"),
        ("lines.1.user.id", "unknown"),
        ("lines.2.device.user_id", "unknown"),
    ]
    assert (await send(api, wrong * 60, company_id=2)).json()["more"] == 20
    answer = await send(api, [line for line in lines if line != lines[1]], company_id=2)
    assert field_errors(answer) == [
        ("lines.1.user.id", "unknown"),
        ("lines.2.team.id", "unknown"),
    ]
    assert answer.json()["errors"][1]["message"] == "The lines.2.team.id field is not a known team."
    assert await everything(api) == before
    await import_lines(api, user(2), team(8, 2), notification(2), company_id=2)
    assert (await api.as_service("GET", "/directory/users/2")).json()["company_id"] == 2


async def test_imported_device_is_not_registered_in_the_future(api: Api) -> None:
    """Or it would win over each later registration of the phone in another cell."""
    await api.people(1)
    await import_lines(api, device(1, registered_at="2999-01-01 00:00:00"))
    assert await api.app_state.database.value("select registered_at <= now() from devices")


@pytest.mark.parametrize("type_", ["note", "unknown"])
async def test_notification_about_an_endless_id_is_imported(api: Api, type_: str) -> None:
    chance = random.Random(1)  # noqa: S311 - what cannot be compressed
    id_ = "".join(chance.choices("0123456789abcdef", k=20_000))
    line = notification(1, type=type_, data={"case": {"id": id_}, "contact": {"id": str(CONTACT)}})
    await import_lines(api, user(1), line)
    assert [row["type"] for row in (await api.inbox(1))["data"]] == [type_]
    subjects = await api.app_state.database.rows("select subject from subjects")
    assert {row["subject"] for row in subjects} <= {f"contact:{CONTACT}"}


async def test_import_does_not_move_a_newer_device_registration(api: Api) -> None:
    await api.people(1, 2)
    await api.as_user(2, "POST", f"/notifications/devices/{'ab' * 32}")
    await import_lines(api, device(1, registered_at="2015-01-01 00:00:00"))
    assert [len((await api.as_user(id_, "GET", "/notifications/devices")).json()["data"]) for id_ in (1, 2)] == [0, 1]


async def test_interrupted_import_leaves_nothing(api: Api) -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield text_of([user(id_) for id_ in range(1, 5000)]) + b"\n"
        raise ConnectionError("the plug was pulled")

    before = await everything(api)
    with pytest.raises(ConnectionError):
        await api.as_service("POST", "/directory/import", content=cut(), headers=NDJSON)
    await reaches(lambda: everything(api), before)


async def test_import_is_refused_if_the_process_that_stores_its_lines_hangs(
    api: Api, url: str, dba: Connection, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "STAGE_TIMEOUT", 5.0)
    async with pool(url, 1) as database:
        incoming = imports.Import(database, api.app_state.pubsub, catalogue, Actor("test"))
        await incoming.open()
        pid = await database.value("select pg_backend_pid()")
        async with bounded(), locked(dba, "import_lines"):
            await incoming.feed(text_of([notification(1, message="x" * 10_000) for _ in range(300)]) + b"\n")
            await until(lambda: waiting_at(dba, "import_lines"))
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises((Unavailable, Overrun)):
                    await incoming.end()
            finally:
                os.kill(pid, signal.SIGCONT)
        await incoming.discard()
        assert await database.value("select count(*) from import_lines") == 0
        assert await database.value("select count(*) from imports") == 0


@pytest.mark.slow
async def test_lines_of_an_import_have_more_time_than_other_statements(server: Embedded, catalogue: Catalogue) -> None:
    url = await make_database(server, f"slow_{new_id().hex}")
    async with serving(url, catalogue) as api, pool(url, 1, patience=3.0) as database:
        async with database.connection() as connection:
            await connection.execute(SLOWLY)
        incoming = imports.Import(database, api.app_state.pubsub, catalogue, Actor("test"))
        await incoming.open()
        await incoming.feed(text_of([user(1)]))
        assert (await incoming.close())["users"] == 1


async def test_import_resumes_after_its_worker_dies(idle: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "APPLY_BATCH_SIZE", 3)
    lines = [
        *(user(id_) for id_ in range(1, 11)),
        *(team(id_, id_, id_ + 1) for id_ in (9, 7, 5)),
        *(device(id_, f"{id_:02x}" * 32) for id_ in range(1, 11)),
        *(notification(id_, day) for id_ in range(1, 11) for day in (1, 2)),
    ]
    sending = asyncio.create_task(import_lines(idle, *lines))
    database = idle.app_state.database
    await until(lambda: database.value("select count(*) from jobs"))
    steps = 0
    while not sending.done():
        worker = new_id()
        for job in await jobs.claim(database, worker, "bulk", 1):
            steps += 1
            await imports.apply(database, worker, job)
            await jobs.claim(database, new_id(), "bulk", 1)  # a worker that dies with the lease
            await database.value("update jobs set worker_id = null")
        await asyncio.sleep(0.01)
    assert steps > 10
    assert (await sending)["notifications"] == 20
    assert [(await idle.inbox(id_))["pagination"]["unread"] for id_ in range(1, 11)] == [2] * 10
    teams = "select array_agg((team_id, user_id)::text order by team_id, user_id) from members"
    assert await database.value(teams) == ["(5,5)", "(5,6)", "(7,7)", "(7,8)", "(9,9)", "(9,10)"]
    assert await database.value("select count(distinct user_id) from devices") == 10


async def test_steps_of_an_import_do_not_read_the_lines_of_the_steps_before(
    idle: Api, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Deleted lines stay in the index while a transaction is open that could see them, such as that of a backup.
    monkeypatch.setattr(imports, "APPLY_BATCH_SIZE", 10)
    database = idle.app_state.database
    incoming = imports.Import(database, idle.app_state.pubsub, catalogue, Actor("test"))
    await incoming.open()
    await incoming.feed(text_of([line for id_ in range(1, 201) for line in (user(id_), notification(id_))]))
    await incoming.close()
    worker, reads = new_id(), []
    read = "select pg_stat_get_xact_tuples_returned('import_lines_by_part'::regclass)"
    async with database.connection() as backup, backup.transaction(isolation="repeatable_read"):
        await backup.fetch("select count(*) from import_lines")
        while leased := await jobs.claim(database, worker, "bulk", 1):
            async with database.transaction() as connection:
                before = await connection.fetchval(read)
                await imports.apply(Borrowed(connection), worker, leased[0])
                reads.append(await connection.fetchval(read) - before)
    assert len(reads) == 42
    assert max(reads[:-1]) < 100, reads


@pytest.mark.parametrize(
    ("earlier", "later", "waits"), [(None, None, True), (1, 1, True), (1, None, True), (None, 1, True), (2, 1, False)]
)
async def test_import_waits_for_earlier_ones_of_its_company(
    idle: Api, catalogue: Catalogue, *, earlier: int | None, later: int | None, waits: bool
) -> None:
    database, worker, leased = idle.app_state.database, new_id(), []
    for company, name in ((earlier, "Earlier"), (later, "Later")):
        incoming = imports.Import(database, idle.app_state.pubsub, catalogue, Actor("test", company))
        await incoming.open()
        await incoming.feed(text_of([user(company or 1, first_name=name)]))
        await incoming.close()
        leased += await jobs.claim(database, worker, "bulk", 1)
    names = "select array_agg(first_name order by id) from users"
    await imports.apply(database, worker, leased[1])
    assert await database.value(names) == (None if waits else ["Later"])
    await imports.apply(database, worker, leased[0])
    while due := await jobs.claim(database, worker, "bulk", 1):  # the later one is due when the earlier one ends
        await imports.apply(database, worker, due[0])
    assert not await database.value("select array_agg(id) from jobs")
    assert await database.value(names) == (["Later"] if waits else ["Later", "Earlier"])


SPOILED = {
    "a user that is no JSON": ("user", "'{'", "InvalidTextRepresentationError"),
    "a user without a name": ("user", "(body::jsonb - 'first_name')::text", "NotNullViolationError"),
    "a user whose id is too large": (
        "user",
        "jsonb_set(body::jsonb, '{id}', '99999999999')::text",
        "NumericValueOutOfRangeError",
    ),
    "a team that is no JSON": ("team", "'{'", "not a team"),
    "a team that lacks its name": ("team", "(body::jsonb - 'name')::text", "not a team"),
    "a team of texts": ("team", """jsonb_set(body::jsonb, '{users}', '["x"]')::text""", "DataError"),
    "a device that was registered at no time": (
        "device",
        """jsonb_set(body::jsonb, '{registered_at}', '"never"')::text""",
        "InvalidDatetimeFormatError",
    ),
    "a device of a type that there is not": (
        "device",
        """jsonb_set(body::jsonb, '{type}', '"Pager"')::text""",
        "CheckViolationError",
    ),
    "a notification without a time": ("notification", "body", "NotNullViolationError"),
}
"""The changed field of the stored line, and the reason of the dead letter."""


@pytest.mark.parametrize("spoiled", SPOILED)
async def test_import_with_unappliable_line_fails_immediately_with_reason(
    idle: Api, catalogue: Catalogue, spoiled: str
) -> None:
    part, body, reason = SPOILED[spoiled]
    sending = asyncio.create_task(send(idle, [user(1), team(7, 1), device(1), notification(1)]))
    database = idle.app_state.database
    await until(lambda: database.value("select count(*) from jobs"))
    time = "null" if part == "notification" else "happened_at"
    await database.value(f"update import_lines set body = {body}, happened_at = {time} where part = $1", part)
    async with working(idle, catalogue):
        answer = await asyncio.wait_for(sending, LONGEST_WAIT)
    [dead] = (await idle.as_service("GET", "/operations/dead-letters", "operations")).json()["data"]
    assert reason in dead["reason"]
    id_ = await database.value("select id from dead_letters where attempts = 1")
    assert (answer.status_code, answer.json()["errors"][0]["id"]) == (500, str(id_))


async def test_import_is_retried_after_a_unique_violation(
    idle: Api, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RETRY_DELAYS", (0.01,))
    database = idle.app_state.database
    await database.value("create sequence tries")
    await database.value(
        "create function fail_once() returns trigger language plpgsql as $$ begin"
        " if nextval('tries') = 1 then raise unique_violation; end if; return new; end $$"
    )
    await database.value("create trigger once before insert on users for each row execute function fail_once()")
    sending = asyncio.create_task(import_lines(idle, user(1)))
    try:
        async with working(idle, catalogue):
            assert (await asyncio.wait_for(sending, LONGEST_WAIT))["users"] == 1
        assert await database.value("select last_value from tries") == 2
    finally:
        await database.value("drop function fail_once cascade")
        await database.value("drop sequence tries")


@asynccontextmanager
async def working(api: Api, catalogue: Catalogue) -> AsyncIterator[None]:
    worker = Worker(api.app_state.database, catalogue, api.app_state.pubsub)
    running = asyncio.create_task(worker.run())
    yield
    worker.stop()
    await running


async def test_import_body_must_be_bounded_json_lines(api: Api) -> None:
    for content_type in ("application/json", "text/plain", ""):
        answer = await api.as_service(
            "POST", "/directory/import", content=b"{}", headers={"Content-Type": content_type}
        )
        assert answer.status_code == 415, content_type
    token = mint_service(SECRET, "crm", ["directory:write"], HOUR)
    head = f"Authorization: Bearer {token}\nContent-Type: application/x-ndjson\nContent-Length: {300 * 2**20}\n"
    assert (await raw(api, f"POST /directory/import HTTP/1.1\n{head}")).status_code == 413
    assert await import_lines(api) == {"users": 0, "teams": 0, "devices": 0, "notifications": 0}


async def test_export_and_import_round_trip(api: Api) -> None:
    await api.people(1, 2, locale="da-DK")
    await api.people(3, company_id=2, profile_picture="https://example.com/x.png", active=False)
    await api.team(7, 1, 2)
    await api.as_user(1, "POST", f"/notifications/devices/{'ab' * 32}", json={"environment": "sandbox"})
    ids = [await api.post(custom(1, 2, body=f'"{n}" <b> & \\ æ')) for n in range(4)]
    await api.as_user(1, "PUT", f"/notifications/{ids[1]}/read")
    await api.as_user(1, "DELETE", f"/notifications/{ids[2]}")
    lines, inboxes = await exported(api), [await entries(api, user_id) for user_id in (1, 2)]
    assert [next(iter(line)) for line in lines] == [*["user"] * 3, "team", "device", *["notification"] * 7]
    for id_ in (1, 2, 3):
        await api.as_service("DELETE", f"/directory/users/{id_}")
    await api.as_service("DELETE", "/directory/teams/7")
    await reaches(lambda: api.app_state.database.value("select count(*) from jobs"), 0)
    for table in ("subjects", "contents", "recipients", "events"):
        await api.app_state.database.value(f"delete from {table}")
    await import_lines(api, *lines)
    assert [await entries(api, user_id) for user_id in (1, 2)] == inboxes
    again = await exported(api)
    assert again == lines


@pytest.mark.parametrize("kind", ["note", "incoming_email", "high_fived/activity_created"])
async def test_longest_notifications_are_imported_as_they_are_exported(
    api: Api, catalogue: Catalogue, kind: str
) -> None:
    await api.people(1)
    event = catalogue.samples[kind]["event"] | {"notify": {"users": [1]}}
    properties = catalogue.schemas()[kind]["params"]["properties"]
    longest = {name: longest_of(properties[name]) for name in event["params"]}
    data = {name: (value * 100)[:100] if isinstance(value, list) else value for name, value in event["data"].items()}
    await api.post({**event, "data": data, "params": {**event["params"], **longest}})
    lines = await exported(api)
    await api.as_service("DELETE", "/directory/users/1")
    await reaches(lambda: api.app_state.database.value("select count(*) from jobs"), 0)
    await import_lines(api, *lines)
    assert await exported(api) == lines


def longest_of(schema: Any) -> Any:
    """Return the longest value of texts that become longest as HTML."""
    if schema["type"] == "array":
        return [longest_of(schema["items"])] * schema["maxItems"]
    return "&" * schema["maxLength"]


@pytest.mark.parametrize("kind", ["incoming_email", "of_yesterday"])
async def test_contact_erasure_applies_to_imported_history(api: Api, kind: str) -> None:
    sample = api.app_state.catalogue.samples["incoming_email"]["notification"]
    contact = {"id": CONTACT, "first_name": NAMES[0], "last_name": NAMES[1], "account_id": None}
    data = {**sample["data"], "contact": contact, "email": {**sample["data"]["email"], "subject": NAMES[2]}}
    line = notification(1, type=kind, data=data, message=f"{NAMES[0]}: {NAMES[3]}", message_formatted=None)
    await import_lines(api, user(1), line)
    await resolve(api, f"contact:{CONTACT}", "erased")
    await settled(api)
    assert traces(await everything(api)) == []
    assert (await entries(api, 1))[0]["message"] == "(deleted)"


@pytest.mark.processes
async def test_command_imports_everything_across_a_restart_of_the_database(tmp_path: Path) -> None:
    count = 40_000
    lines = (f'{{"user": {{"id": {n}, "first_name": "A", "last_name": "B"}}}}\n' for n in range(1, count + 1))
    (tmp_path / "users").write_text("".join(lines))
    async with own_server(fsync="on") as own:
        url = own.url(database=await own.fresh("tocsin"))
        await migrate(url, accept_undurable=True)
        environment = {"TOCSIN_DATABASE_URL": url, "TOCSIN_DATABASE_DURABLE": "yes"}
        process = await asyncio.create_subprocess_exec(
            TOCSIN, "import", tmp_path / "users", env=environment, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr
        async with bounded():
            while b"applied 5,000 of" not in await process.stderr.readline():
                pass
            own.kill()
            await own.start()
            _, said = await process.communicate()
        assert process.returncode == 0, said
        assert await value(url, "select count(*) from tocsin.users") == count
        assert await value(url, "select count(*) from tocsin.imports") == 0


@pytest.mark.processes
async def test_interrupted_command_says_that_a_later_one_continues(tmp_path: Path) -> None:
    (tmp_path / "users").write_bytes(text_of([user(id_) for id_ in range(1, 20_001)]))
    (tmp_path / "later").write_bytes(text_of([user(1, first_name="Later")]))
    async with own_server() as own:
        url = own.url(database=await own.fresh("tocsin"))
        await migrate(url, accept_undurable=True)
        environment = {"TOCSIN_DATABASE_URL": url, "TOCSIN_DATABASE_DURABLE": "yes"}

        async def start(file: str) -> asyncio.subprocess.Process:
            return await asyncio.create_subprocess_exec(
                TOCSIN, "import", file, env=environment, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
            )

        dba = await connect(url)
        async with bounded():
            async with slow(dba, "insert", "users"):
                # The command would ignore the signal, as one in the background does, if this process does.
                before = signal.signal(signal.SIGINT, signal.default_int_handler)
                process = await start("users")
                signal.signal(signal.SIGINT, before)
                assert process.stderr
                while b"applied 2,500 of" not in await process.stderr.readline():
                    pass
                process.send_signal(signal.SIGINT)
                _, said = await process.communicate()
            assert said.decode().splitlines()[-1] == (
                "The import is stored, and continues when a worker runs, such as that of the next import."
            )
            assert process.returncode == 130
            assert await (await start("later")).wait() == 0
        assert await dba.fetchval("select count(*) from users") == 20_000
        assert await dba.fetchval("select first_name from users where id = 1") == "Later"
        await dba.close()
