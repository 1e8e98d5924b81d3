"""Events for several companies, and those that wait or have failed, follow their users."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from asyncpg import PostgresError

from tests.support.events import custom, in_future, message_event, state
from tests.support.moves import (
    COMPANY,
    OTHER,
    after_copy,
    assert_sound,
    die,
    fill,
    in_schemas,
    interrupt,
    of_company,
    state_of,
)
from tests.support.service import Api
from tests.support.waiting import reaches
from tocsin import moving
from tocsin.db.connections import connect
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Refusal


async def test_companies_that_share_an_event_can_move_one_after_the_other(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    held = message_event("held", 3, 101, deliver_at=in_future())
    id_ = (await cells[0].as_service("POST", "/events", json=held)).json()["id"]
    before = [await of_company(pools[0], each) for each in (COMPANY, OTHER)]
    for company in (COMPANY, OTHER):
        await moving.move(*pools, company, "a", "b")
    assert [await of_company(pools[1], each) for each in (COMPANY, OTHER)] == before
    assert sorted(await pools[1].value("select users from events where id = $1", id_)) == [3, 101]
    assert await pools[1].value("select count(*) from jobs") == 1
    await assert_sound(*urls)


@in_schemas
async def test_waiting_event_of_a_service_of_all_companies_leaves_with_its_users(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    """Then it can be cancelled in the cell that delivers it."""
    await fill(cells[0])
    held = message_event("held", 3, deliver_at=in_future())
    id_ = (await cells[0].as_service("POST", "/events", json=held)).json()["id"]
    await moving.move(*pools, COMPANY, "a", "b")
    assert await pools[0].value("select count(*) from events where id = $1", id_) == 0
    assert await pools[0].value("select count(*) from jobs") == 0
    assert (await state(cells[1], id_))["state"] == "held"


async def assert_together_after_return(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], id_: str
) -> None:
    """Move the company back: user 3 of it and user 101 of the other have got the event last, in the same cell."""
    await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    for user in (3, 101):
        assert (await cells[0].ids(user))[0] == id_
    await assert_sound(*urls)


@in_schemas
async def test_parts_of_a_shared_event_come_together_when_delivered(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    held = message_event("held", 3, 101, deliver_at=in_future())
    id_ = (await cells[0].as_service("POST", "/events", json=held)).json()["id"]
    await moving.move(*pools, COMPANY, "a", "b")
    await pools[0].rows("update jobs set due_at = now()")
    await reaches(partial(state_of, cells[0], id_), "delivered")
    with pytest.raises(Refusal, match=id_):
        await moving.move(*pools, OTHER, "a", "b")
    with pytest.raises(Refusal, match=id_):
        await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    await pools[1].rows("update jobs set due_at = now()")
    await reaches(partial(state_of, cells[1], id_), "delivered")
    await moving.move(*pools, OTHER, "a", "b")
    for user in (3, 101):
        assert (await cells[1].ids(user))[0] == id_
    await assert_sound(*urls)


@in_schemas
async def test_parts_of_a_shared_event_in_different_languages_come_together(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    await cells[0].people(101, company_id=OTHER, locale="da")
    held = message_event("held", 3, 101, deliver_at=in_future())
    id_ = (await cells[0].as_service("POST", "/events", json=held)).json()["id"]
    await moving.move(*pools, COMPANY, "a", "b")
    for cell, pool in zip(cells, pools, strict=True):
        await pool.rows("update jobs set due_at = now()")
        await reaches(partial(state_of, cell, id_), "delivered")
    await assert_together_after_return(cells, pools, urls, id_)


@in_schemas
async def test_dropped_recipients_of_an_event_are_counted_once_after_moves(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    await cells[0].people(13, company_id=COMPANY, active=False)
    ids = [UUID(await cells[0].post(custom(*users, 13))) for users in ((3,), (3, 101))]

    async def counted() -> list[list[int]]:
        count = "select coalesce(sum(dropped), 0)::int from recipients where event_id = $1"
        return [[await pool.value(count, id_) for pool in pools] for id_ in ids]

    assert await counted() == [[1, 0], [1, 0]]
    await moving.move(*pools, COMPANY, "a", "b")
    assert await counted() == [[0, 1], [1, 0]]
    await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    assert await counted() == [[1, 0], [1, 0]]


@in_schemas
async def test_dead_letters_move_and_replayed_ones_are_delivered(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    ids = []
    for company in (COMPANY, None, COMPANY, None):
        held = message_event("held", 3, deliver_at=in_future())
        ids.append((await cells[0].as_service("POST", "/events", json=held, company_id=company)).json()["id"])
    await die(pools[0], *ids)

    async def replay() -> None:
        await pools[0].rows(queries("jobs")["requeue"], ids[:2], *[None] * 4)
        await pools[0].rows("update jobs set due_at = now() + interval '1 hour' where id = any($1)", ids[:2])

    after_copy(monkeypatch, replay)
    await moving.move(*pools, COMPANY, "a", "b")
    assert [str(row["id"]) for row in await pools[1].rows("select id from dead_letters order by id")] == sorted(ids[2:])
    assert await pools[0].value("select count(*) from dead_letters") == 0
    await pools[1].rows("update jobs set due_at = now()")
    for id_ in ids[:2]:
        await reaches(partial(state_of, cells[1], id_), "delivered")
    await assert_sound(*urls)


@in_schemas
async def test_posted_events_that_wait_reach_the_users_of_both_cells(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    post = partial(post_in_transaction, urls[0])
    skipping = {"notify": {"users": [4], "unknown": "skip"}}
    shared, own, skips = await post(custom(3, 101)), await post(custom(3)), await post(custom(4) | skipping, COMPANY)
    other = await post(custom(101))
    await moving.move(*pools, COMPANY, "a", "b")
    for event in (custom(4) | skipping, custom(4)):
        with pytest.raises(PostgresError, match=r"has moved|unknown"):
            await post(event, COMPANY)
    for pool in pools:
        await pool.rows("update jobs set due_at = now() where task = 'post'")
        await reaches(partial(pool.value, "select count(*) from posted"), 0)
    assert await pools[0].value("select count(*) from dead_letters") == 0
    for cell, user, ids in ((cells[1], 3, [own, shared]), (cells[1], 4, [skips]), (cells[0], 101, [other, shared])):
        await reaches(partial(latest, cell, user, len(ids)), sorted(ids))


@in_schemas
async def test_posted_event_that_each_cell_accepted_comes_together(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    id_ = await post_in_transaction(urls[0], custom(3, 101))
    await moving.move(*pools, COMPANY, "a", "b")
    for cell, pool in zip(cells, pools, strict=True):
        await pool.rows("update jobs set due_at = now() where task = 'post'")
        await reaches(partial(pool.value, "select count(*) from posted"), 0)
        await reaches(partial(state_of, cell, id_), "delivered")
    await assert_together_after_return(cells, pools, urls, id_)


@in_schemas
@pytest.mark.parametrize("end", [moving.move, moving.give_up])
async def test_no_event_is_posted_in_the_new_cell_while_its_company_is_copied(
    cells: tuple[Api, Api],
    pools: tuple[Database, Database],
    urls: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[..., Awaitable[object]],
) -> None:
    """The copy would replace what its users have got. Others get theirs."""
    await fill(cells[0])
    await cells[1].people(201, company_id=9)
    post = partial(post_in_transaction, urls[1])
    await interrupt(pools, "ab", monkeypatch, "_switch")
    for event, company in ((custom(3, 201), None), (custom(teams=(7,)), None), (custom(4), COMPANY)):
        with pytest.raises(PostgresError, match="is moving to this database"):
            await post(event, company)
    ids = [await post(custom(201))]
    await end(*pools, COMPANY, "a", "b")
    if end is moving.move:
        ids.append(await post(custom(3), COMPANY))
    await pools[1].rows("update jobs set due_at = now() where task = 'post'")
    for user, id_ in zip((201, 3), ids, strict=False):
        await reaches(partial(latest, cells[1], user, 1), [id_])
    assert await pools[1].value("select bool_or(is_awaited) from moves") is False


@in_schemas
@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
@pytest.mark.parametrize("in_new_cell", [False, True])
async def test_no_event_is_posted_in_a_snapshot_from_before_the_move(  # noqa: PLR0913 - fixtures
    cells: tuple[Api, Api],
    pools: tuple[Database, Database],
    urls: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    isolation: Any,
    *,
    in_new_cell: bool,
) -> None:
    await fill(cells[0])
    session = await connect(urls[in_new_cell])
    await session.execute("insert into posters values (session_user::text, 'crm', $1)", COMPANY)
    async with session.transaction(isolation=isolation):
        await session.fetchval("select count(*) from posters")
        if in_new_cell:
            await interrupt(pools, "ab", monkeypatch, "_switch")
        else:
            await moving.move(*pools, COMPANY, "a", "b")
        with pytest.raises(PostgresError, match=r"has moved|is moving|could not serialize"):
            await session.fetchval(
                "select post($1)", json.dumps(custom(3) | {"notify": {"users": [3], "unknown": "skip"}})
            )
    await session.close()


@in_schemas
async def test_posted_event_with_an_id_that_is_refused_holds_up_no_move(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    await post_in_transaction(urls[0], custom(101) | {"notify": {"users": [101.0], "unknown": "skip"}}, OTHER)
    await moving.move(*pools, COMPANY, "a", "b")


async def post_in_transaction(url: str, event: dict[str, Any], company_id: int | None = None) -> str:
    """Post an event as an application does in its own transaction. A worker accepts it when its job is due."""
    session = await connect(url)
    try:
        await session.execute("delete from posters")
        await session.execute("insert into posters values (session_user::text, 'crm', $1)", company_id)
        async with session.transaction():
            id_ = await session.fetchval("select post($1)", json.dumps(event))
            await session.execute("update jobs set due_at = now() + interval '1 hour' where task = 'post'")
    finally:
        await session.close()
    return str(id_)


async def latest(api: Api, user: int, count: int) -> list[str]:
    return sorted((await api.ids(user))[:count])
