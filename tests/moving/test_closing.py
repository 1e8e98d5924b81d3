"""A company is closed for seconds when it leaves its cell, and others are held up by nothing."""

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from tests.support.database import value
from tests.support.events import custom, note, state
from tests.support.moves import (
    COMPANY,
    OTHER,
    OTHERS,
    before_switch,
    die,
    fill,
    in_schemas,
    interrupt,
    post_held,
)
from tests.support.resolutions import resolve
from tests.support.service import Api
from tests.support.waiting import reaches
from tocsin import dead_letters, jobs, moving
from tocsin.audit import actor_of_command
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Locked, Refusal
from tocsin.whereabouts import whereabouts


async def test_closed_company_gets_no_user_and_team_and_others_do(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await pools[0].rows("insert into moves (company_id, turn, state, other) values (1, 1, 'copying', 'b')")
    await cells[0].people(1, company_id=COMPANY)
    await pools[0].rows("update moves set closed_until = now() + interval '1 minute'")
    with pytest.raises(Locked):
        await cells[0].people(2, company_id=COMPANY)
    with pytest.raises(Locked):
        await cells[0].team(1, 1, company_id=COMPANY)
    await cells[0].people(3, company_id=OTHER)
    assert (await whereabouts(pools[0]))[COMPANY].is_closed
    await pools[0].rows("update moves set closed_until = now() - interval '1 second'")
    await cells[0].people(2, company_id=COMPANY)
    assert not (await whereabouts(pools[0]))[COMPANY].is_closed


async def test_event_that_a_locked_company_gets_is_delivered_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is accepted while the rows of the company are locked, and moves with its job."""
    await fill(cells[0])
    accepted: list[str] = []
    bring = moving._Move._stash  # noqa: SLF001

    async def stash(self: Any, source: Connection, pending: Any) -> None:
        if not accepted:
            answer = await cells[0].as_service("POST", "/events", json=note(5, 6), company_id=COMPANY)
            accepted.append(answer.json()["id"])
        await bring(self, source, pending)

    monkeypatch.setattr(moving._Move, "_stash", stash)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    await reaches(lambda: pools[1].value("select count(*) from jobs"), 0)
    assert (await cells[1].ids(5))[0] == accepted[0]
    assert await pools[0].value("select count(*) from jobs") == 0


@in_schemas
async def test_event_that_fails_while_the_company_is_locked_is_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    id_ = await post_held(cells[0])
    other = uuid4()
    await jobs.enrol(pools[0], other, "host:0")  # a worker has its job, so that the move does not lock it
    await pools[0].rows("update jobs set worker_id = $2 where id = $1", id_, other)
    before_switch(monkeypatch, partial(die, pools[0], id_), "stash_rest")
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await state(cells[1], id_))["state"] == "failed"
    await jobs.leave(pools[0], other)


async def test_target_that_is_away_leaves_the_company_open_in_its_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    copy = moving._Move._copy  # noqa: SLF001

    async def copy_and_lose(self: Any) -> None:
        await copy(self)
        await pools[1].close()

    monkeypatch.setattr(moving._Move, "_copy", copy_and_lose)  # noqa: SLF001
    with pytest.raises(Refusal, match="It stays in its cell"):
        await moving.move(*pools, COMPANY, "a", "b")
    assert not (await whereabouts(pools[0]))[COMPANY].is_closed
    assert (await cells[0].as_user(3, "PUT", "/notifications/read")).status_code == 204
    await cells[0].post(note(3), company_id=COMPANY)


async def test_move_continues_when_a_database_comes_back_within_the_pauses(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    monkeypatch.setattr(moving, "PAUSE", 1.0)
    copy, begin, said, begun = moving._Move._copy, moving._Move._wait_until_idle, list[str](), list[int]()  # noqa: SLF001

    async def copy_and_lose(self: Any) -> None:
        await copy(self)
        await pools[1].close()

    async def begin_and_find(self: Any) -> None:
        begun.append(1)
        if len(begun) == 3:
            await pools[1].open()
        await begin(self)

    monkeypatch.setattr(moving._Move, "_copy", copy_and_lose)  # noqa: SLF001
    monkeypatch.setattr(moving._Move, "_wait_until_idle", begin_and_find)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b", said.append)
    attempts = [line.rpartition("; ")[2] for line in said if line.startswith("attempt")]
    assert attempts == ["the next one begins in 1 s", "the next one begins in 2 s"]
    assert (await whereabouts(pools[0]))[COMPANY].state == "moved"


@in_schemas
async def test_command_that_hangs_at_the_switch_holds_up_no_event_for_long(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    monkeypatch.setattr(moving, "EVENTS_HELD_FOR", 0.5)
    hanging, going_on = asyncio.Event(), asyncio.Event()

    async def hang(_: Any, source: Connection) -> None:
        if await source.fetchval(
            "select exists (select from pg_locks where pid = pg_backend_pid() and relation = 'imports'::regclass"
            " and mode = 'ShareLock')"
        ):
            monkeypatch.setattr(moving, "EVENTS_HELD_FOR", 60.0)  # a later attempt may be slow
            hanging.set()
            await going_on.wait()

    monkeypatch.setattr(moving._Move, "_check_idle", hang)  # noqa: SLF001
    said: list[str] = []
    move = asyncio.create_task(moving.move(*pools, COMPANY, "a", "b", said.append))
    await hanging.wait()
    await cells[0].post(custom(*OTHERS), company_id=OTHER)
    going_on.set()
    await move
    assert [each for each in said if each.startswith("attempt 1")]
    assert (await whereabouts(pools[0]))[COMPANY].state == "moved"


async def test_command_that_hangs_holds_up_the_retention_of_no_cell_for_long(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    monkeypatch.setattr(moving, "COMPANY_HELD_FOR", 0.5)
    lock, held = moving._Move._lock, list[int]()  # noqa: SLF001

    async def hang(self: Any, source: Connection) -> None:
        if not held:
            time.sleep(2)  # noqa: ASYNC251 - as if it were suspended
            locks = (
                "select count(*) from pg_locks where locktype = 'advisory' and mode = 'ShareLock'"
                " and database = (select oid from pg_database where datname = current_database())"
            )
            held.extend([await value(url, locks) for url in urls])
            monkeypatch.setattr(moving, "COMPANY_HELD_FOR", 60.0)  # a later attempt may be slow
        await lock(self, source)

    monkeypatch.setattr(moving._Move, "_lock", hang)  # noqa: SLF001
    said: list[str] = []
    await moving.move(*pools, COMPANY, "a", "b", said.append)
    assert held == [0, 0]
    assert [each for each in said if each.startswith("attempt 1")]
    assert (await whereabouts(pools[0]))[COMPANY].state == "moved"


async def test_switch_that_takes_long_keeps_the_transaction_of_the_target(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    monkeypatch.setattr(moving, "COMPANY_HELD_FOR", 3.0)
    lock = moving._Move._lock  # noqa: SLF001

    async def slow(self: Any, source: Connection) -> None:
        await source.execute("select pg_sleep(4)")
        await lock(self, source)

    monkeypatch.setattr(moving._Move, "_lock", slow)  # noqa: SLF001
    said: list[str] = []
    await moving.move(*pools, COMPANY, "a", "b", said.append)
    assert not [each for each in said if each.startswith("attempt")]


async def test_switch_prepares_no_statement_while_all_events_wait(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    seen: dict[str, bool] = {}

    async def look(_: Any, source: Connection) -> None:
        began = await source.fetchval("select current_setting('test.began', true)")
        statement = "select statement, prepare_time < $1::text::timestamptz as is_earlier from pg_prepared_statements"
        found = await source.fetch(f"{statement} where statement not like '%test.began%'", began)
        seen.update((row["statement"], row["is_earlier"]) for row in found)

    async def begin(source: Connection, seconds: float) -> None:
        if seconds == moving.EVENTS_HELD_FOR:
            await source.fetchval("select set_config('test.began', clock_timestamp()::text, true)")

    monkeypatch.setattr(moving._Move, "_check_idle", look)  # noqa: SLF001
    monkeypatch.setattr(moving, "limit_idleness", begin)
    await moving.move(*pools, COMPANY, "a", "b")
    assert {queries("moving")[name] for name in ("stash_posts", "stash_keys", "switch")} <= seen.keys()
    assert [statement for statement, is_earlier in seen.items() if not is_earlier] == []


@in_schemas
async def test_event_reaches_users_in_the_new_cell_at_once_after_the_switch(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users who are made after an erasure are younger than the events before it. The new cell counts erasures, too."""
    await cells[0].people(90)
    await cells[0].as_service("DELETE", "/directory/users/90")
    await fill(cells[0])
    await reaches(partial(pools[0].value, "select count(*) from erasures"), 0)
    await interrupt(pools, "ab", monkeypatch, "_carry")
    new = await cells[1].post(note(3), company_id=COMPANY)
    assert (await cells[1].ids(3))[0] == new


@in_schemas
async def test_user_who_comes_while_the_closing_lapses_is_not_lost(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])

    async def lapse() -> None:
        await pools[0].rows("update moves set closed_until = now() - interval '1 s'")
        await cells[0].people(40, company_id=COMPANY)
        await asyncio.sleep(0.3)

    monkeypatch.setattr(moving, "RENEW_INTERVAL", 0.05)
    before_switch(monkeypatch, lapse)
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await cells[1].as_service("GET", "/directory/users/40")).status_code == 200


@in_schemas
async def test_resolution_accepted_while_the_company_is_closed_is_applied(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    await cells[0].post(note(3), company_id=COMPANY)
    unread = await cells[0].unread(3)
    about = await pools[0].value("select subject from subjects limit 1")

    async def accept() -> None:
        await resolve(cells[0], about, company_id=COMPANY)

    before_switch(monkeypatch, accept)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await cells[1].unread(3) < unread


@in_schemas
async def test_erasure_that_begins_before_the_locks_is_waited_for(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could change events that are compared, and be over before the switch."""
    await fill(cells[0])
    erasure = uuid4()

    async def begin() -> None:
        await pools[0].rows("insert into erasures (id, user_id, event_ids) values ($1, 999, '{}')", erasure)

    async def finish() -> None:
        await pools[0].rows("delete from erasures where id = $1", erasure)

    said, finishing = list[str](), list[asyncio.Task[None]]()

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("attempt"):
            finishing.append(asyncio.create_task(finish()))

    before_switch(monkeypatch, begin, "lock_users")
    before_switch(monkeypatch, finish, "stash_rest")
    await moving.move(*pools, COMPANY, "a", "b", say)
    assert "attempt 1: an import, erasure or resolution began" in said
    await asyncio.gather(*finishing)


@in_schemas
async def test_erasure_during_the_closing_does_not_end_the_move(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    answers: list[asyncio.Task[Any]] = []

    async def erase() -> None:
        answers.append(asyncio.create_task(cells[0].as_service("DELETE", "/directory/users/1")))
        await asyncio.sleep(0.3)

    before_switch(monkeypatch, erase, "lock_users")
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await answers[0]).status_code in {204, 404, 503}


@in_schemas
async def test_work_that_began_while_the_company_closed_ends_first(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The company is closed once, not again and again until nothing happens to be under way."""
    await fill(cells[0])
    follow, ending = moving._Move._follow, list[asyncio.Task[Any]]()  # noqa: SLF001

    async def end() -> None:
        await asyncio.sleep(1)
        await pools[0].rows("delete from resolutions")

    async def follow_as_one_begins(self: Any, source: Connection | None = None) -> int:
        closing = await pools[0].value("select closed_until is not null from moves where company_id = $1", COMPANY)
        if closing and not ending:
            await pools[0].rows(
                "insert into resolutions (id, how, company_id, event_ids, rewritten)"
                " values ($1, 'read', $2, '{}', false)",
                uuid4(),
                COMPANY,
            )
            ending.append(asyncio.create_task(end()))
        return await follow(self, source)

    monkeypatch.setattr(moving, "ATTEMPTS", 1)
    monkeypatch.setattr(moving._Move, "_follow", follow_as_one_begins)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    assert [task.done() for task in ending] == [True]


@in_schemas
async def test_failed_erasure_is_named_and_can_be_repeated(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    """A failed import of the company does not hold it up, and stays in its cell."""
    await fill(cells[0])
    failed = [uuid4() for _ in range(2)]
    for id_, task in zip(failed, ("erase", "import"), strict=True):
        await pools[0].rows(
            "insert into dead_letters (id, task, lane, attempts, progress, reason)"
            " values ($1, $2, 'bulk', 8, 0, 'an error')",
            id_,
            task,
        )
    await pools[0].rows("insert into erasures (id, user_id, event_ids) values ($1, 999, '{}')", failed[0])
    await pools[0].rows("insert into imports (id, state, company_id) values ($1, 'applying', $2)", failed[1], COMPANY)
    with pytest.raises(Refusal, match=f"the erasure {failed[0]}: an error.*`tocsin replay {failed[0]} --cell a`"):
        await moving.move(*pools, COMPANY, "a", "b")
    pubsub = cells[0].app_state.pubsub
    done = await dead_letters.replay(
        pools[0], pubsub, [failed[0]], datetime.now(UTC), actor_of_command("tocsin replay")
    )
    assert done.jobs == 1
    await reaches(partial(pools[0].value, "select count(*) from erasures"), 0)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await pools[0].value("select count(*) from imports") == 1
