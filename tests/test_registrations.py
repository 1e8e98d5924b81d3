"""A phone belongs to one user over all cells: the one who registered it last."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import cast

import pytest

from tests.support.database import blocked, make_database, wipe
from tests.support.waiting import reaches, until
from tocsin import devices, directory, registrations
from tocsin.background import end
from tocsin.db.connections import Connection, connect
from tocsin.db.pool import Database
from tocsin.devices import Device
from tocsin.errors import Unavailable
from tocsin.formats import User
from tocsin.postgres.supervisor import Embedded

PHONE, OTHER_PHONE = "a" * 64, "b" * 64
HOUR = 3600.0


@pytest.fixture(scope="module")
async def urls(server: Embedded) -> tuple[str, str]:
    return await make_database(server, "phones_a"), await make_database(server, "phones_b")


@pytest.fixture
async def cells(urls: tuple[str, str]) -> AsyncIterator[tuple[Database, Database]]:
    """Two databases with a user each: 1 and 101."""
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for url, user in zip(urls, (1, 101), strict=True):
            await wipe(url)
            database = Database(url, 3)
            await database.open()
            stack.push_async_callback(database.close)
            person = User(
                id=user, company_id=user, first_name="A", last_name="B", profile_picture=None, email=None, locale="en",
                time_zone="UTC", active=True,
            )  # fmt: skip
            await directory.put_user(database, person, None)
            opened.append(database)
        yield opened[0], opened[1]


@pytest.fixture
async def session(urls: tuple[str, str]) -> AsyncIterator[Connection]:
    connection = await connect(urls[0])
    yield connection
    await connection.close()


async def register(database: Database, user: int, token: str = PHONE) -> None:
    await devices.register(database, user, Device(token, "iOS", "apns", "production", "default"))


async def owners(cells: tuple[Database, Database], token: str = PHONE) -> list[int | None]:
    return [await each.value("select user_id from devices where token = $1", token) for each in cells]


async def look(cells: tuple[Database, Database]) -> tuple[int, int]:
    a, b = cells
    return await registrations.release_phones(a, {"b": b}), await registrations.release_phones(b, {"a": a})


async def test_phone_that_registers_in_another_cell_leaves_its_user(cells: tuple[Database, Database]) -> None:
    await register(cells[0], 1)
    await register(cells[0], 1, OTHER_PHONE)
    assert await look(cells) == (0, 0)
    await register(cells[1], 101)
    assert await owners(cells) == [1, 101]
    assert await look(cells) == (1, 0)
    assert await owners(cells) == [None, 101]
    assert await owners(cells, OTHER_PHONE) == [1, None]
    await register(cells[0], 1)
    assert await look(cells) == (0, 1)
    assert await owners(cells) == [1, None]


async def test_phone_leaves_also_if_it_was_removed_from_the_other_cell_since(cells: tuple[Database, Database]) -> None:
    await register(cells[0], 1)
    await register(cells[1], 101)
    await devices.detach(cells[1], 101, PHONE)
    assert await look(cells) == (1, 0)
    assert await owners(cells) == [None, None]


async def test_cell_that_was_away_makes_up_for_it(cells: tuple[Database, Database]) -> None:
    await register(cells[0], 1)
    await look(cells)
    await cells[1].close()
    with pytest.raises(Unavailable):
        await registrations.release_phones(cells[0], {"b": cells[1]})
    await cells[1].open()
    await register(cells[1], 101)
    assert await look(cells) == (1, 0)


async def test_phone_is_released_if_its_new_registration_commits_after_the_look(
    cells: tuple[Database, Database],
) -> None:
    await register(cells[0], 1)
    async with cells[1].transaction() as late:
        await late.execute(
            "insert into devices (token, user_id, type, provider, environment, app)"
            " values ($1, 101, 'iOS', 'apns', 'production', 'default')",
            PHONE,
        )
        await register(cells[1], 101, OTHER_PHONE)
        assert await look(cells) == (0, 0)
    assert await look(cells) == (1, 0)
    assert await owners(cells) == [None, 101]


async def test_phone_that_comes_with_an_earlier_registration_is_released(
    cells: tuple[Database, Database], session: Connection
) -> None:
    """By an import or the move of a company. The other user keeps it, also if the phone has left that one since."""
    for removed in (False, True):
        await register(cells[1], 101)
        if removed:
            await devices.detach(cells[1], 101, PHONE)
        await look(cells)
        await cells[1].rows("update registrations set noted_at = noted_at - interval '1 hour'")
        await session.execute(
            "insert into devices (token, user_id, type, provider, environment, app, registered_at)"
            " values ($1, 1, 'iOS', 'apns', 'production', 'default', now() - interval '1 day')",
            PHONE,
        )
        assert await look(cells) == (0, 0)
        assert await look(cells) == (1, 0)
        assert await owners(cells) == [None, None if removed else 101]


async def test_phone_that_registers_again_during_the_look_stays(
    cells: tuple[Database, Database], session: Connection
) -> None:
    await register(cells[0], 1)
    await look(cells)
    await register(cells[1], 101)
    async with session.transaction():
        await session.execute("update devices set registered_at = clock_timestamp() where token = $1", PHONE)
        looking = asyncio.create_task(look(cells))
        await until(lambda: blocked(session))
    assert await looking == (0, 1)
    assert await owners(cells) == [1, None]


async def test_phones_of_before_registrations_were_remembered_are_released(
    cells: tuple[Database, Database], session: Connection
) -> None:
    await register(cells[0], 1)
    await session.execute("delete from registrations")
    await register(cells[1], 101)
    assert await look(cells) == (1, 0)


async def test_more_phones_than_one_step_takes_are_released(
    cells: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrations, "BATCH_SIZE", 2)
    tokens = [f"{number:064x}" for number in range(5)]
    for token in tokens:
        await register(cells[0], 1, token)
    for token in tokens:
        await register(cells[1], 101, token)
    assert await look(cells) == (5, 0)
    assert await look(cells) == (0, 0)


async def test_tokens_that_have_left_are_forgotten_after_thirty_days(
    cells: tuple[Database, Database], session: Connection
) -> None:
    await register(cells[0], 1)
    await devices.detach(cells[0], 1, PHONE)
    await register(cells[0], 1, OTHER_PHONE)
    assert await session.fetchval("select count(*) from registrations") == 2
    await session.execute("update registrations set left_at = left_at - interval '31 days'")
    await register(cells[0], 1, OTHER_PHONE)
    assert await session.fetchval("select count(*) from registrations") == 1


async def test_process_of_several_cells_releases_phones_again_after_one_was_away(
    cells: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrations, "INTERVAL", 0.01)
    watching = asyncio.create_task(registrations.watch(lambda: dict(zip("ab", cells, strict=True))))
    await register(cells[0], 1)
    await register(cells[1], 101)
    await reaches(lambda: owners(cells), [None, 101])
    await cells[1].close()
    await asyncio.sleep(0.05)
    assert not watching.done()
    await cells[1].open()
    await register(cells[0], 1)
    await reaches(lambda: owners(cells), [1, None])
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_phones_are_released_at_once_when_a_cell_opens_or_comes_back(
    cells: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_older, is_away, opened = registrations._add_older, asyncio.Event(), {"a": cells[0]}  # noqa: SLF001

    async def looks(own: Database) -> None:
        try:
            await add_older(own)
        except Unavailable:
            is_away.set()
            raise

    monkeypatch.setattr(registrations, "_add_older", looks)
    monkeypatch.setattr(registrations, "INTERVAL", HOUR)
    watching = asyncio.create_task(registrations.watch(lambda: opened))
    await register(cells[0], 1)
    await register(cells[1], 101)
    opened["b"] = cells[1]
    await reaches(lambda: owners(cells), [None, 101])
    await register(cells[0], 1)
    await cells[0].close()
    await is_away.wait()
    await register(cells[1], 101)
    await cells[0].open()
    await reaches(lambda: owners(cells), [None, 101])
    await end([watching])


class Cell:
    """A database that has no registrations, or answers nothing."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs, self.asking = hangs, 0

    async def value(self, *_: object) -> datetime:
        return (await self._answered())[0]

    async def rows(self, *_: object) -> list[datetime]:
        return (await self._answered())[1:]

    async def _answered(self) -> list[datetime]:
        self.asking += 1
        if self.hangs:
            await asyncio.Event().wait()
        return [datetime.now(UTC)]


async def test_cells_wait_for_one_that_hangs_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrations, "INTERVAL", 0)
    cells = {"a": Cell(), "b": Cell(hangs=True), "c": Cell(), "d": Cell()}
    watching = asyncio.create_task(registrations.watch(lambda: cast("dict[str, Database]", cells)))
    await until(lambda: cells["b"].asking == len(cells))
    await end([watching])
