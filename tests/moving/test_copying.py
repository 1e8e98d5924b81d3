"""What changes while a company is copied is in the new cell as it is in the old one."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from tests.support.built_in import CATALOGUE
from tests.support.events import CASE as CONTACT
from tests.support.events import message_event, note, state
from tests.support.imports import import_lines, notification
from tests.support.moves import COMPANY, USERS, after_copy, assert_sound, fill, in_schemas, of_company, post_held
from tests.support.resolutions import resolve, settled
from tests.support.service import Api
from tests.support.waiting import reaches, until
from tocsin import copying, moving, retention
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.db.statements import queries


async def test_no_statement_of_a_move_writes_all_rows_of_a_large_range(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    before = await of_company(pools[0], COMPANY)
    sizes: list[tuple[int, int]] = []

    def as_json(rows: Sequence[str]) -> str:
        sizes.append((len(rows), sum(map(len, rows))))
        return f"[{','.join(rows)}]"

    monkeypatch.setattr(copying, "PUT_CHARACTERS", 1_000)
    monkeypatch.setattr(copying, "as_json", as_json)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await of_company(pools[1], COMPANY) == before
    assert [each for each in sizes if each[0] > 1]
    assert [each for each in sizes if each[0] > 1 and each[1] > 1_000] == []


@in_schemas
async def test_user_who_comes_during_the_copy_is_in_their_team_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The users have been copied when the user comes, and the teams have not."""
    await fill(cells[0])
    bring = moving._Move._bring  # noqa: SLF001
    newcomer = USERS[-1] + 1

    async def bring_as_one_comes(self: Any, part: Any, source: Connection | None = None) -> Any:
        if part.of == "teams" and not await pools[0].value("select count(*) from users where id = $1", newcomer):
            await cells[0].people(newcomer, company_id=COMPANY)
            await cells[0].team(7, 1, newcomer, company_id=COMPANY)
        return await bring(self, part, source)

    monkeypatch.setattr(moving._Move, "_bring", bring_as_one_comes)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await of_company(pools[1], COMPANY))["members"] == [(7, 1), (7, newcomer)]


@in_schemas
async def test_event_after_the_copy_is_brought_without_others_of_its_user(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what is brought while the company is closed is as little as what has changed."""
    await fill(cells[0])
    before, new, brought = {*await cells[0].ids(3)}, set[str](), set[str]()
    put = moving._Move._put  # noqa: SLF001

    async def putting(self: Any, target: Connection, tables: Mapping[str, Sequence[str]]) -> None:
        brought.update(json.loads(row)["id"] for row in tables.get("events", []))
        await put(self, target, tables)

    async def post() -> None:
        brought.clear()
        new.add(await cells[0].post(note(3), company_id=COMPANY))

    monkeypatch.setattr(moving._Move, "_put", putting)  # noqa: SLF001
    after_copy(monkeypatch, post)
    await moving.move(*pools, COMPANY, "a", "b")
    assert brought & (before | new) == new
    assert {*await cells[1].ids(3)} == before | new


@in_schemas
async def test_event_for_many_is_compared_once_in_a_move(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records name all recipients: a large company has many ranges of users."""
    await fill(cells[0])
    id_ = await cells[0].post(note(*USERS), company_id=COMPANY)
    compared = list[str]()
    bring = moving._Move._bring  # noqa: SLF001

    async def bringing(self: Any, part: Any, source: Connection | None = None) -> list[copying.Digest]:
        found = await bring(self, part, source)
        if source:
            compared.extend(str(event_id) for table, *_, event_id in found if table == "events")
        return found

    monkeypatch.setattr(copying, "ENTRIES", 1)
    monkeypatch.setattr(moving._Move, "_bring", bringing)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    assert compared.count(id_) == 1
    assert id_ in await cells[1].ids(12)


@in_schemas
async def test_event_that_gets_recipients_during_the_copy_is_compared_again(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    id_ = await cells[0].post(note(1, 2, 3), company_id=COMPANY)
    bring, imported = moving._Move._bring, list[str]()  # noqa: SLF001

    async def bringing(self: Any, part: Any, *source: Any) -> Any:
        found = await bring(self, part, *source)
        if not imported and not source and part.of == "users":
            imported.append(id_)
            assert part.ids == [1]
            await import_lines(cells[0], notification(12, id=id_), company_id=COMPANY)
        return found

    monkeypatch.setattr(copying, "ENTRIES", 1)
    monkeypatch.setattr(moving._Move, "_bring", bringing)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    users = await pools[1].value(
        "select array_agg(id order by id) from recipients r cross join unnest(r.user_ids) id where event_id = $1", id_
    )
    assert (imported, users) == ([id_], [1, 2, 3, 12])
    assert id_ in await cells[1].ids(12)


@in_schemas
async def test_event_that_the_target_deleted_during_the_move_is_brought_again(
    cells: tuple[Api, Api],
    pools: tuple[Database, Database],
    urls: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Retention of the two cells deletes what is old at different times."""
    await fill(cells[0])
    id_ = await cells[0].post(note(1, 2, 3), company_id=COMPANY)
    before = await of_company(pools[0], COMPANY)

    async def expire() -> None:
        await until(lambda: retention.run_once(pools[1], 0))  # a worker may run it, too
        assert await pools[1].value("select count(*) from events where id = $1", id_) == 0

    after_copy(monkeypatch, expire)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await of_company(pools[1], COMPANY) == before
    await assert_sound(urls[1])


@in_schemas
async def test_retention_of_the_target_deletes_nothing_while_rows_are_written(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes changes of inboxes, at the positions of those that come."""
    await fill(cells[0])
    put, turns = moving._Move._put, set[bool]()  # noqa: SLF001

    async def putting(self: Any, target: Connection, tables: Mapping[str, Sequence[str]]) -> None:
        turns.add(await pools[1].value(queries("retention")["turn"], retention._LOCK))  # noqa: SLF001
        await put(self, target, tables)

    monkeypatch.setattr(moving._Move, "_put", putting)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    assert turns == {False}


@in_schemas
async def test_record_of_recipients_that_replaces_another_is_brought(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention deletes one, and an import adds one for as many users."""
    await fill(cells[0])
    id_ = str(uuid4())
    await import_lines(cells[0], *(notification(user, id=id_) for user in (1, 2, 3)), company_id=COMPANY)

    async def replace() -> None:
        await pools[0].value(
            "update recipients set delivered_at = '2001-01-01' where event_id = $1 and after_user = 0", id_
        )
        days = (datetime.now(UTC) - datetime(2010, 1, 1, tzinfo=UTC)).days
        await reaches(lambda: retention.run_once(pools[0], days), {"notifications": 1})  # a worker may run it, too
        await import_lines(cells[0], notification(12, id=id_), company_id=COMPANY)

    after_copy(monkeypatch, replace)
    await moving.move(*pools, COMPANY, "a", "b")
    users = await pools[1].value(
        "select array_agg(id order by id) from recipients r cross join unnest(r.user_ids) id where event_id = $1", id_
    )
    assert users == [2, 3, 12]


@in_schemas
async def test_event_that_is_cancelled_after_the_copy_is_cancelled_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited during the copy, and was accepted long before."""
    await fill(cells[0])
    id_ = await post_held(cells[0])
    await pools[0].rows("update events set accepted_at = accepted_at - interval '1 day' where id = $1", id_)

    async def cancel() -> None:
        assert (await cells[0].as_service("DELETE", f"/events/{id_}", company_id=COMPANY)).status_code == 204

    after_copy(monkeypatch, cancel)
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await state(cells[1], id_))["state"] == "cancelled"


async def test_user_who_is_erased_after_the_copy_leaves_nothing_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    alone = await cells[0].post(message_event("secret words", 5), company_id=COMPANY)

    async def erase() -> None:
        assert (await cells[0].as_service("DELETE", "/directory/users/5")).status_code == 204
        await reaches(partial(pools[0].value, "select count(*) from erasures"), 0)

    after_copy(monkeypatch, erase)
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await cells[1].as_user(5, "GET", "/notifications")).status_code == 401
    for statement in (
        "select count(*) from inbox where user_id = 5",
        "select count(*) from recipients where 5 = any(user_ids)",
        "select count(*) from events where 5 = any(users)",
        "select count(*) from contents where body like '%secret words%'",
        "select count(*) from events where params like '%secret words%'",
    ):
        assert [await each.value(statement) for each in pools] == [0, 0], statement
    assert await pools[1].value("select count(*) from events where id = $1", alone) == 1
    await assert_sound(*urls)


@in_schemas
async def test_words_erased_during_the_copy_are_not_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of an event that all have deleted: no inbox changes then."""
    await fill(cells[0])
    email = deepcopy(CATALOGUE.samples["incoming_email"]["event"])
    email["data"]["contact"] |= {"id": CONTACT, "first_name": "Zebulon"}
    id_ = await cells[0].post({**email, "notify": {"users": [1]}})
    await cells[0].as_user(1, "DELETE", f"/notifications/{id_}")

    async def erase() -> None:
        assert "Zebulon" in str(await pools[1].rows("select data from events"))
        await resolve(cells[0], f"contact:{CONTACT}", "erased")
        await settled(cells[0])

    after_copy(monkeypatch, erase)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await pools[1].value("select erased from events where id = $1", id_)
    for table in ("events", "contents", "moved_rows"):
        assert "Zebulon" not in str(await pools[1].rows(f"select t::text from {table} t"))
