"""Rate limits: all processes share the units of a limit, and most requests ask nothing of the database."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from tests.support.database import locked
from tests.support.logs import own_logs
from tocsin import rate_limits, retention
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.errors import Unavailable
from tocsin.rate_limits import Limit, RateLimits
from tocsin.setting_types import Rate
from tocsin.settings import Settings


class Counted(Database):
    """A pool that counts its statements."""

    statements = 0

    async def rows(self, statement: str, *arguments: Any) -> list[Any]:
        self.statements += 1
        return await super().rows(statement, *arguments)


class Clock:
    """A clock that tests set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def counting(url: str) -> AsyncIterator[Counted]:
    database = Counted(url, 1, 5)
    await database.open()
    yield database
    await database.close()


def process(database: Database, **more: Any) -> RateLimits:
    """Return the limits of one more process."""
    return RateLimits(database, Settings(), **more)


def exact(quota: int) -> Limit:
    return Limit("exact", Rate(quota, "minute"), "units")


def in_advance(quota: int) -> Limit:
    return Limit.in_advance("advance", Rate(quota, "minute"), "units")


async def taken(processes: Sequence[RateLimits], limit: Limit, key: str = "4") -> int:
    """Take single units by turns until every process refuses; return how many were taken."""
    total, open_ = 0, list(processes)
    while open_:
        for each in list(open_):
            _, refusal = await each.take(limit, key)
            if refusal:
                open_.remove(each)
            else:
                total += 1
    return total


@pytest.mark.parametrize("quota", [1, 5, 60])
async def test_processes_share_the_units_of_an_exact_limit(counting: Counted, quota: int) -> None:
    assert await taken([process(counting) for _ in range(3)], exact(quota)) == quota


async def test_processes_exceed_a_large_limit_only_by_their_free_units(counting: Counted) -> None:
    limit, processes = in_advance(1000), [process(counting) for _ in range(3)]
    assert limit.free == 10
    assert 1000 <= await taken(processes, limit) <= 1000 + 3 * limit.free


async def test_small_limits_have_no_free_units_and_nothing_in_advance(counting: Counted) -> None:
    assert (in_advance(19).free, in_advance(19).advance) == (0, 0)
    assert await taken([process(counting) for _ in range(3)], in_advance(19)) == 19


async def test_killed_process_gets_no_second_budget(counting: Counted) -> None:
    limit = in_advance(1000)
    before = await taken([process(counting)], limit)
    after = await taken([process(counting)], limit)
    assert before == 1000
    assert after <= limit.free


async def test_stopped_process_reports_what_it_used_and_returns_the_rest(counting: Counted) -> None:
    limit, stopped, short = in_advance(1000), process(counting), process(counting)
    for _ in range(limit.free + 1):
        await stopped.take(limit, "4")
    stopped._limits[limit.name] = short._limits[limit.name] = limit  # noqa: SLF001 - not one of the settings
    for _ in range(limit.free):
        await short.take(limit, "4")
    await stopped.close()
    await short.close()
    assert await counting.value("select used from rate_limits") == 2 * limit.free + 1


async def test_most_requests_ask_nothing_of_the_database(counting: Counted) -> None:
    limit, limits = in_advance(3000), process(counting)
    for _ in range(limit.free):
        await limits.take(limit, "4")
    assert counting.statements == 0
    assert await taken([limits], limit) == 3000 - limit.free
    assert counting.statements <= 40
    before = counting.statements
    for _ in range(100):
        _, refusal = await limits.take(limit, "4")
        assert refusal
    assert counting.statements == before, "a limit that is used up is known until its window ends"


async def test_concurrent_requests_share_a_statement_and_take_no_unit_twice(counting: Counted) -> None:
    limit, processes = exact(50), [process(counting) for _ in range(4)]
    for most in (30, 200):  # fewer than there are, and more
        outcomes = await asyncio.gather(*(processes[i % 4].take(limit, str(most)) for i in range(most)))
        assert sum(refusal is None for _, refusal in outcomes) == min(most, 50)
    counting.statements = 0
    [limits, *_] = processes
    await asyncio.gather(*(limits.take(in_advance(100), str(user)) for user in range(100) for _ in range(3)))
    assert counting.statements <= 4, "the keys of many callers are asked for together"


async def test_processes_that_begin_a_window_at_once_share_it(url: str) -> None:
    pools = [Database(url, 1, 5) for _ in range(6)]
    for pool in pools:
        await pool.open()
        await pool.value("select 1")
    for key in map(str, range(20)):
        found = await asyncio.gather(*(process(pool).take(exact(2), key) for pool in pools))
        assert sum(refusal is None for _, refusal in found) == 2
    for pool in pools:
        await pool.close()


async def test_all_units_are_there_again_when_the_window_has_ended(counting: Counted) -> None:
    clock = Clock()
    limit, limits = exact(3), process(counting, clock=clock)
    assert await taken([limits], limit) == 3
    standing, refusal = await limits.take(limit, "4")
    assert (standing.left, standing.seconds) == (0, 60)
    assert refusal
    assert refusal.headers == {"Retry-After": "60"}
    clock.now += 30
    standing, _ = await limits.take(limit, "4")
    assert standing.seconds == 30
    clock.now += 31
    await counting.value("update rate_limits set ends_at = now() - interval '1 second'")
    assert await taken([limits], limit) == 3


async def test_window_of_a_clock_that_was_ahead_has_ended(counting: Counted) -> None:
    assert await taken([process(counting)], exact(3)) == 3
    await counting.value("update rate_limits set ends_at = ends_at + interval '1 hour'")
    limits = process(counting)
    standing, _ = await limits.take(exact(3), "4")
    assert (standing.left, standing.seconds) == (2, 60)
    assert await taken([limits, process(counting)], exact(3)) == 2


async def test_request_that_needs_too_many_units_uses_none(counting: Counted) -> None:
    limits = process(counting)
    _, refusal = await limits.take(exact(10), "4", 11)
    assert str(refusal) == (
        "Rate limit exceeded: at most 10 units per minute. This request needs at least 11, and 10 are left."
    )
    assert (await limits.take(exact(10), "4", 10))[1] is None


async def test_units_without_effect_are_given_back(counting: Counted) -> None:
    limits = process(counting)
    for limit in (exact(10), in_advance(200)):
        standing, _ = await limits.take(limit, "4", 10)
        limits.give_back(standing, 10)
        assert await taken([limits], limit) == limit.rate.quota


async def test_memory_for_many_addresses_is_bounded(counting: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_WINDOWS", 100)
    limits, limit = process(counting), in_advance(600)
    for address in range(1000):
        await limits.take(limit, str(address))
    assert len(limits._windows[limit.name]) == 100  # noqa: SLF001 - its memory
    assert counting.statements == 0, "single requests of many addresses ask nothing of the database"


async def test_windows_that_have_ended_are_deleted(database: Database) -> None:
    limits = process(database)
    for key in ("4", "5"):
        await limits.take(exact(3), key)
    await database.value("update rate_limits set ends_at = now() - interval '1 second' where key = '4'")
    assert (await retention.run_once(database, None))["rate_limits"] == 1
    assert await database.value("select array_agg(key) from rate_limits") == ["5"]


async def test_outage_is_reported_and_forgets_nothing(counting: Counted, dba: Connection) -> None:
    limit, limits = in_advance(300), process(counting)
    for _ in range(limit.free):
        await limits.take(limit, "4")
    async with locked(dba, "rate_limits"):
        with pytest.raises(Unavailable):
            await limits.take(limit, "4")
    assert await taken([limits], limit) == 300 - limit.free


async def test_refusals_are_counted_by_limit_and_logged_once(counting: Counted) -> None:
    refused: list[str] = []
    limits = process(counting, refused=refused.append)
    with own_logs() as lines:
        await taken([limits], exact(1))
        await limits.take(exact(1), "4")
    assert refused == ["exact", "exact"]
    assert [(line["event"], line["limit"], line["key"]) for line in lines] == [("rate limit exceeded", "exact", "4")]
