"""Pushes and phones of a company that moves."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from tests.support.moves import COMPANY, OTHER, after_copy, fill, in_schemas
from tests.support.service import Api
from tocsin import moving, registrations
from tocsin.db.pool import Database
from tocsin.push import deliveries


@in_schemas
async def test_push_that_settles_after_the_copy_is_settled_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No head of an inbox shows it."""
    await fill(cells[0])
    await pools[0].rows(
        "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending, state)"
        " select i.event_id, d.id, d.user_id, d.lane, false, 'iOS', '', 'held'"
        " from devices d join inbox i on i.user_id = d.user_id where d.user_id = 1 limit 1"
    )

    async def settle() -> None:
        await pools[0].rows("update deliveries set state = 'dead', settled_at = clock_timestamp() where user_id = 1")

    after_copy(monkeypatch, settle)
    await moving.move(*pools, COMPANY, "a", "b")
    assert [row["state"] for row in await pools[1].rows("select state from deliveries")] == ["dead"]


@contextlib.asynccontextmanager
async def switched(pools: tuple[Database, Database]) -> AsyncIterator[None]:
    """Move the company, as a command that is killed after the switch, and after the block by one that continues."""

    class Killed(moving._Move):  # noqa: SLF001
        async def _carry(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await Killed(*pools, COMPANY, "a", "b", moving.nothing).run()
    yield
    await moving.move(*pools, COMPANY, "a", "b")


async def push(database: Database, state: str, *, due_in: float = 3600) -> None:
    """Store a push of the oldest notification of user 1."""
    await database.rows(
        "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending, state, due_at)"
        " select i.event_id, d.id, d.user_id, d.lane, false, 'iOS', '', $1, now() + make_interval(secs => $2)"
        " from devices d join inbox i on i.user_id = d.user_id where d.user_id = 1 order by i.position limit 1",
        state,
        due_in,
    )


@in_schemas
async def test_push_that_comes_after_a_phone_registered_goes_through_its_lane(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    await push(pools[0], "later")
    async with switched(pools):
        answer = await cells[1].as_user(1, "POST", f"/notifications/devices/{1:064x}", json={"environment": "sandbox"})
        assert answer.status_code == 204
    assert await pools[1].value("select lane from deliveries") == "apns/default/sandbox"


@in_schemas
async def test_held_push_that_comes_after_preferences_changed_is_decided_again(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    await push(pools[0], "held")
    async with switched(pools):
        answer = await cells[1].as_user(1, "PATCH", "/notifications/preferences", json={"paused_until": None})
        assert answer.status_code == 200
    assert await pools[1].value("select state = 'held' and due_at <= now() from deliveries")


@in_schemas
async def test_clear_that_comes_after_another_one_is_part_of_it(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    since = "select since from clears where user_id = 1"
    before = await pools[0].value(since)
    async with switched(pools):
        await cells[1].as_user(1, "PUT", "/notifications/read")
        assert await pools[1].value(since) > before
    assert await pools[1].value(since) == before


@in_schemas
async def test_push_that_is_replayed_after_the_copy_expires_a_day_later(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    await push(pools[0], "dead")
    await pools[0].rows("update deliveries set made_at = made_at - interval '2 days', settled_at = now()")

    async def replay() -> None:
        async with pools[0].transaction() as connection:
            ids = [row["event_id"] for row in await connection.fetch("select event_id from deliveries")]
            assert await deliveries.replay(connection, ids) == 1

    after_copy(monkeypatch, replay)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await pools[1].value("select state = 'queued' and made_at > now() - interval '1 hour' from deliveries")


@in_schemas
async def test_phone_that_another_user_had_during_the_copy_does_not_come(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    await cells[1].people(201, company_id=OTHER)
    phone, release = f"/notifications/devices/{1:064x}", registrations.release_phones

    async def use(own: Database, others: Mapping[str, Database]) -> int:
        released = await release(own, others)
        if not statuses and own is pools[0]:
            statuses.extend([(await cells[1].as_user(201, method, phone)).status_code for method in ("POST", "DELETE")])
        return released

    statuses: list[int] = []
    monkeypatch.setattr(registrations, "release_phones", use)
    await moving.move(*pools, COMPANY, "a", "b")
    assert statuses == [204, 204]
    assert await pools[1].value("select count(*) from devices where token = $1", f"{1:064x}") == 0


@in_schemas
async def test_phone_that_leaves_before_the_locks_does_not_end_the_move(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    await cells[1].people(201, company_id=OTHER)
    leave = moving._Move._leave  # noqa: SLF001

    async def leaving(self: Any) -> None:
        answer = await cells[1].as_user(201, "POST", f"/notifications/devices/{1:064x}")
        assert answer.status_code == 204
        await leave(self)

    monkeypatch.setattr(moving._Move, "_leave", leaving)  # noqa: SLF001
    monkeypatch.setattr(moving, "ATTEMPTS", 1)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await pools[1].value("select user_id from devices where token = $1", f"{1:064x}") == 201
