"""The order in which pushes are sent."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Self
from uuid import UUID

import pytest

from tests.support.events import accepted
from tests.support.pushes import IPHONE, becomes, pushes_of
from tests.support.service import Api
from tests.support.waiting import until
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.push import deliveries, dispatcher, lanes
from tocsin.push.deliveries import Delivery
from tocsin_phones import Phones


async def test_single_push_does_not_wait_for_unanswered_bulk_pushes(
    pushing: Api, phones: Phones, dba: Connection
) -> None:
    lane = next(lane for lane in pushing.app_state.lanes if lane.name == "apns/default")
    lane.channel.window = 8
    await pushing.people(*range(10, 40))
    for user in range(10, 40):
        await pushing.as_user(user, "POST", f"/notifications/devices/{user:064x}")
        phones.answer("apns", after_ms=60_000, token=f"{user:064x}")
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    await becomes(
        pushing, await accepted(pushing, 1), {"delivered": 1}
    )  # until then a connection carries one push alone
    lane.pause(3600)
    many = await accepted(pushing, *range(10, 40))
    await until(lambda: _are_bulk(dba, many))
    lane.waits_until = None
    await until(lambda: _is_full(dba))
    single = await accepted(pushing, 1)
    await becomes(pushing, single, {"delivered": 1})
    assert await pushes_of(pushing, many, 0) == {"queued": 30}  # none of them was dropped


async def _are_bulk(dba: Connection, event_id: UUID) -> bool:
    done: str = await dba.execute("update deliveries set is_bulk = true where event_id = $1", event_id)
    return done == "UPDATE 30"


async def _is_full(dba: Connection) -> bool:
    return bool(await dba.fetchval("select count(*) >= 6 from deliveries where worker_id is not null"))


async def test_results_that_are_recorded_during_a_claim_wake_the_lane(
    pushing: Api, phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = next(lane for lane in pushing.app_state.lanes if lane.name == "apns/default")
    claim = deliveries.claim

    async def slow_claim(database: Database, worker: UUID, name: str, limit: int, *, bulk: bool) -> list[Delivery]:
        found = await claim(database, worker, name, limit, bulk=bulk)
        if name == lane.name and not found:
            await until(lambda: not lane.under_way)
        return found

    monkeypatch.setattr(deliveries, "claim", slow_claim)
    monkeypatch.setattr(dispatcher, "wait", asyncio.Event.wait)  # no lane looks for pushes by itself
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    lane.pause(3600)
    ids = [await accepted(pushing, 1) for _ in range(3)]
    await until(lambda: _are_queued(pushing, ids))
    lane.waits_until = None
    pushing.app_state.pubsub.publish("push")
    for id_ in ids:
        await becomes(pushing, id_, {"delivered": 1})
    assert len(phones.pushes("apns")) == len(ids)


async def _are_queued(api: Api, ids: Sequence[UUID]) -> bool:
    return all([await pushes_of(api, id_, 0) == {"queued": 1} for id_ in ids])


class _Ahead(datetime):
    """A clock that is an hour ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(hours=1)


async def test_a_lane_waits_no_longer_when_the_clock_is_set_back(pushing: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = next(lane for lane in pushing.app_state.lanes if lane.name == "apns/default")
    with monkeypatch.context() as patched:
        patched.setattr(lanes, "datetime", _Ahead)
        lane.wait(30, "the provider asked for it")
    assert lane.problem == ""  # 30 s are none; an hour would be
    assert 0 < lane.remaining <= 30


async def test_a_lane_that_fails_is_reported_when_the_clock_is_set_back(
    pushing: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = next(lane for lane in pushing.app_state.lanes if lane.name == "apns/default")
    with monkeypatch.context() as patched:
        patched.setattr(lanes, "datetime", _Ahead)
        lane.fail(timedelta(seconds=5), "503")
    assert lane.problem == ""  # for less than ten seconds
    monkeypatch.setattr(lanes, "MIN_FAILING", 0.0)
    assert lane.problem.startswith("pushes of apns/default fail since")
