"""A company moves from one database to another: all of it, once, with its streams and requests, and nothing else."""

import asyncio
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from httpx_sse import aconnect_sse

from tests.support.commands import refusal, run
from tests.support.events import in_future, message_event, note
from tests.support.moves import (
    COMPANY,
    OTHER,
    USERS,
    assert_sound,
    empty,
    fill,
    in_schemas,
    interrupt,
    nothing_of,
    of_company,
    opened,
)
from tests.support.service import SECRET, Api, standing_token
from tests.support.waiting import until
from tocsin import moving
from tocsin.db.connections import Connection
from tocsin.db.migrate import migrate
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.db.url import in_schema
from tocsin.errors import Refusal
from tocsin.whereabouts import cell_of, origin_of, whereabouts


async def test_all_of_a_company_moves_and_nothing_of_another(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    held = await cells[0].as_service("POST", "/events", json=message_event("later", 3, 101, deliver_at=in_future()))
    own = await cells[0].as_service(
        "POST", "/events", json=message_event("own", 4, key="k", deliver_at=in_future()), company_id=COMPANY
    )
    assert (held.status_code, own.status_code) == (202, 202)
    before, others = await of_company(pools[0], COMPANY), await of_company(pools[0], OTHER)
    done = await moving.move(*pools, COMPANY, "a", "b")

    assert await of_company(pools[1], COMPANY) == before
    assert await of_company(pools[0], OTHER) == others
    assert done.compared["inbox"] == len(before["inbox"])
    await nothing_of(pools[0], COMPANY)
    assert await of_company(pools[1], OTHER) == {name: [] for name in others}
    waiting = [{str(row[0]) for row in await each.rows("select id from jobs")} for each in pools]
    assert waiting == [{held.json()["id"]}, {held.json()["id"], own.json()["id"]}]
    users = [await each.value("select users from events where id = $1", held.json()["id"]) for each in pools]
    assert users == [[3, 101], [3]]
    await assert_sound(*urls)


async def test_moved_company_goes_on_in_its_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    inbox = await cells[0].ids(3)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await cells[1].ids(3) == inbox
    new = await cells[1].post(note(3, 4), company_id=COMPANY)
    await cells[1].as_user(3, "PUT", "/notifications/read")
    assert await cells[1].ids(3) == [new, *inbox]
    assert (await cells[0].as_user(3, "GET", "/notifications")).status_code == 401
    assert (await cells[0].as_service("POST", "/events", json=note(3), company_id=COMPANY)).status_code == 422
    await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    assert await cells[0].ids(3) == [new, *inbox]
    said = [await whereabouts(each) for each in pools]
    assert cell_of(COMPANY, said) == "a"
    await assert_sound(*urls)


@in_schemas
async def test_company_without_users_moves(cells: tuple[Api, Api], pools: tuple[Database, Database]) -> None:
    await cells[0].team(70, company_id=7)
    await moving.move(*pools, 7, "a", "b")
    assert (await cells[1].as_service("GET", "/directory/teams/70")).status_code == 200
    assert (await cells[0].as_service("GET", "/directory/teams/70")).status_code == 404
    await moving.move(*pools, 71, "a", "b")
    assert cell_of(71, [await whereabouts(each) for each in pools]) == "b"


@in_schemas
async def test_company_moves_through_three_cells_in_any_order(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    third = in_schema(urls[0], "tocsin_c")
    await migrate(third)
    await empty(third)
    await fill(cells[0])
    before = await of_company(pools[0], COMPANY)
    async with opened((third, third)) as (last, _):
        databases = {"a": pools[0], "b": pools[1], "c": last}
        for origin, destination in itertools.pairwise("abcabacba"):
            await moving.move(databases[origin], databases[destination], COMPANY, origin, destination)
            said = {name: await whereabouts(each) for name, each in databases.items()}
            assert cell_of(COMPANY, said.values()) == destination
            for other in databases.keys() - {destination}:
                assert origin_of(COMPANY, other, said, "a") == destination
        assert await of_company(databases["a"], COMPANY) == before
    await assert_sound(*urls, third)


@in_schemas
async def test_company_comes_back_only_after_all_of_it_has_left(
    cells: tuple[Api, Api],
    pools: tuple[Database, Database],
    urls: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await fill(cells[0])
    before = await of_company(pools[0], COMPANY)
    for step in ("_carry", "_clean"):
        await interrupt(pools, "ab", monkeypatch, step)
        with pytest.raises(Refusal, match="has not ended"):
            await moving.move(pools[1], pools[0], COMPANY, "b", "a")
        said = {name: await whereabouts(each) for name, each in zip("ab", pools, strict=True)}
        with pytest.raises(Refusal, match="--to b"):
            origin_of(COMPANY, "c", said, "a")
        assert origin_of(COMPANY, "b", said, "a") == "a"
        await moving.move(*pools, COMPANY, "a", "b")
        await moving.move(pools[1], pools[0], COMPANY, "b", "a")
        assert await of_company(pools[0], COMPANY) == before
    await assert_sound(*urls)


@in_schemas
async def test_user_who_changed_the_company_keeps_earlier_notifications(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    await cells[0].post(message_event("before", 12, 1), company_id=COMPANY)
    await cells[0].people(12, company_id=OTHER)
    before = await cells[0].inbox(12)
    assert before["data"]
    await moving.move(*pools, COMPANY, "a", "b")
    assert await cells[0].inbox(12) == before
    await assert_sound(urls[0])
    await moving.move(*pools, OTHER, "a", "b")
    assert await cells[1].inbox(12) == before
    assert await pools[0].value("select count(*) from events") == 0
    await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    assert await cells[1].inbox(12) == before
    await assert_sound(*urls)


async def test_company_whose_ids_are_taken_stays_in_its_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    await cells[1].people(5, company_id=9)
    before = await of_company(pools[0], COMPANY)
    with pytest.raises(Refusal, match="has other users with the ids 5"):
        await moving.move(*pools, COMPANY, "a", "b")
    assert await of_company(pools[0], COMPANY) == before
    assert not (await whereabouts(pools[0]))[COMPANY].is_closed


@in_schemas
async def test_move_does_not_change_an_event_of_another_company_with_the_same_id(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    await cells[1].people(201, company_id=9)
    id_, late = str(uuid4()), str(uuid4())
    await cells[0].post(message_event("secret words", 1, id=id_), company_id=COMPANY)
    await cells[1].post(message_event("other words", 201, id=id_), company_id=9)
    before = await cells[1].inbox(201)
    with pytest.raises(Refusal, match=f"has other events with the ids {id_}"):
        await moving.move(*pools, COMPANY, "a", "b")
    assert await cells[1].inbox(201) == before
    assert await pools[1].value("select count(*) from contents where body like '%secret words%'") == 0
    await pools[0].rows("delete from inbox where event_id = $1", id_)
    await pools[0].rows("update heads set total = total - 1, unread = unread - 1 where user_id = 1")
    await pools[0].rows("delete from events where id = $1", id_)
    await cells[0].post(message_event("secret words", 1, id=late), company_id=COMPANY)
    held = message_event("other words", 201, id=late, deliver_at=in_future())
    assert (await cells[1].as_service("POST", "/events", json=held, company_id=9)).status_code == 202
    with pytest.raises(Refusal, match=f"has other events with the ids {late}"):
        await moving.move(*pools, COMPANY, "a", "b")
    assert await pools[1].value("select company_id from events where id = $1", late) == 9


async def test_stream_continues_in_the_new_cell_after_the_last_event_it_saw(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])

    async def events_of(api: Api, mark: str, until_id: str) -> list[str]:
        headers = {"Authorization": f"Bearer {standing_token(3)}", **({"Last-Event-ID": mark} if mark else {})}
        seen = []
        async with aconnect_sse(api.http, "GET", "/notifications/stream", headers=headers) as source:
            async for event in source.aiter_sse():
                marks.append(event.id or marks[-1])
                assert event.event != "resync"
                if event.event == "notification":
                    seen.append(json.loads(event.data)["id"])
                    if seen[-1] == until_id:
                        return seen
        return seen

    marks = [""]
    following = asyncio.create_task(events_of(cells[0], "", "nothing"))
    await until(lambda: asyncio.sleep(0, len(marks) > 1))
    first = await cells[0].post(note(3), company_id=COMPANY)
    await until(lambda: asyncio.sleep(0, len(marks) > 2))
    await moving.move(*pools, COMPANY, "a", "b")
    assert await following == [first]  # the stream of the old cell ends
    second = await cells[1].post(note(3), company_id=COMPANY)
    third = await cells[1].post(note(3), company_id=COMPANY)
    assert await events_of(cells[1], marks[-1], third) == [second, third]


@in_schemas
async def test_request_with_an_idempotency_key_can_be_repeated_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    for company in (COMPANY, None):
        keys = {"Idempotency-Key": str(uuid4())}
        first = await cells[0].as_service("POST", "/events", json=note(3), company_id=company, headers=keys)
        assert first.status_code == 202
        await moving.move(*pools, COMPANY, "a", "b")
        again = await cells[1].as_service("POST", "/events", json=note(3), company_id=company, headers=keys)
        assert again.json() == first.json()
        await moving.move(pools[1], pools[0], COMPANY, "b", "a")


@pytest.mark.usefixtures("cells")
async def test_two_moves_out_of_a_cell_do_not_run_at_once(
    pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "TURN_TIMEOUT", 0.2)
    async with pools[0].connection() as other:
        assert await other.fetchval(queries("moving")["turn"], moving._TURN)  # noqa: SLF001
        with pytest.raises(Refusal, match="Another"):
            await moving.move(*pools, COMPANY, "a", "b")
        await other.execute("select pg_advisory_unlock_all()")
    await moving.move(*pools, COMPANY, "a", "b")


@in_schemas
async def test_command_that_lost_its_turn_changes_nothing(
    cells: tuple[Api, Api],
    pools: tuple[Database, Database],
    urls: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await fill(cells[0])
    began, moved = asyncio.Event(), asyncio.Event()
    receive = moving._Move._receive  # noqa: SLF001

    async def waiting(self: Any, target: Connection) -> None:
        if not began.is_set():
            began.set()
            await moved.wait()
        await receive(self, target)

    monkeypatch.setattr(moving._Move, "_receive", waiting)  # noqa: SLF001
    first = asyncio.create_task(moving.move(*pools, COMPANY, "a", "b"))
    await began.wait()
    await pools[0].rows(
        "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock'"
        " and database = (select oid from pg_database where datname = current_database())"
    )
    async with opened(urls) as others:
        await moving.move(*others, COMPANY, "a", "b")
    new = await cells[1].post(note(3), company_id=COMPANY)
    moved.set()
    with pytest.raises(Refusal, match="Another"):
        await first
    assert (await cells[1].ids(3))[0] == new


@pytest.mark.processes
async def test_command_moves_a_company_and_says_how_long_it_was_closed(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], tmp_path: Path
) -> None:
    await fill(cells[0])
    before = await of_company(pools[0], COMPANY)
    file = tmp_path / "cells.toml"
    tables = (f'[{name}]\nurl = "{url.partition("&tocsin.schema")[0]}"\n' for name, url in zip("ab", urls, strict=True))
    schema = 'schema = "tocsin_b"\n' if "tocsin_b" in urls[1] else ""
    file.write_text(f"{next(tables)}default = true\n{next(tables)}{schema}", "utf-8")
    command = partial(run, cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, TOCSIN_CELLS_FILE=str(file))
    done = await asyncio.to_thread(command, "cell", "move", "1", "--to", "b")
    assert f"Compared {len(before['inbox'])} notifications; closed for " in done.stdout
    assert await of_company(pools[1], COMPANY) == before
    again = await asyncio.to_thread(command, "cell", "move", "1", "--to", "b")
    assert again.stdout == "Company 1 is in cell b.\n"
    refused = partial(refusal, cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, TOCSIN_CELLS_FILE=str(file))
    assert "is in cell a already" in await asyncio.to_thread(refused, "cell", "move", "2", "--to", "a")
    await pools[0].rows("insert into moves (company_id, turn, state, other) values (2, 1, 'copying', 'b')")
    given_up = await asyncio.to_thread(command, "cell", "move", "2", "--to", "a")
    assert given_up.stdout == "The move to cell b is given up. Company 2 stays in cell a.\n"
    gone = "cell c, or is being copied there, and TOCSIN_CELLS_FILE does not name that cell. Add it again"
    await pools[0].rows("insert into moves (company_id, turn, state, other) values (3, 1, 'copying', 'c')")
    assert gone in await asyncio.to_thread(refused, "cell", "move", "3", "--to", "a")
    await pools[0].rows("update moves set state = 'moved' where company_id = 3")
    assert gone in await asyncio.to_thread(refused, "cell", "move", "3", "--to", "b")


@in_schemas
async def test_copy_of_a_move_that_is_given_up_is_deleted(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    await cells[1].people(201, company_id=9)
    await cells[1].post(note(201), company_id=9)
    before, other = await of_company(pools[0], COMPANY), await of_company(pools[1], 9)
    await interrupt(pools, "ab", monkeypatch, "_switch")
    assert await pools[1].value("select count(*) from users where company_id = $1", COMPANY) == len(USERS)
    with pytest.raises(Refusal, match="is being copied to cell b"):
        await moving.move(*pools, COMPANY, "a", "c")
    said = {name: await whereabouts(each) for name, each in zip("ab", pools, strict=True)}
    assert origin_of(COMPANY, "a", said, "a") == "a"
    await moving.give_up(*pools, COMPANY, "a", "b")
    await nothing_of(pools[1], COMPANY)
    assert await pools[1].value("select count(*) from events") == 1
    assert (await of_company(pools[0], COMPANY), await of_company(pools[1], 9)) == (before, other)
    said = {name: await whereabouts(each) for name, each in zip("ab", pools, strict=True)}
    with pytest.raises(Refusal, match="is in cell a already"):
        origin_of(COMPANY, "a", said, "a")
    await assert_sound(*urls)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await of_company(pools[1], COMPANY) == before
    with pytest.raises(Refusal, match="is in cell b"):
        await moving.give_up(*pools, COMPANY, "a", "b")
