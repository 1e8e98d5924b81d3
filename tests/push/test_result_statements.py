"""The statements that record the results of pushes: of deliveries, devices, lanes and push services."""

import asyncio
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.database import blocked
from tests.support.deliveries import LANE, ORIGIN, WORKER, delivery, device, insert, states
from tests.support.waiting import bounded, until
from tocsin.db.connections import Connection, connect
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.push import deliveries
from tocsin.push.channels import Address
from tocsin.push.deliveries import Settled, State

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
OTHER = uuid4()


@pytest.fixture
async def now(dba: Connection) -> datetime:
    """The time by the clock of the database, before anything is recorded."""
    await dba.execute(
        "insert into users (id, company_id, first_name, last_name, time_zone) values (1, 1, '', '', 'UTC')"
    )
    found: datetime = await dba.fetchval("select clock_timestamp()")
    return found


async def used(dba: Connection) -> dict[UUID, datetime | None]:
    """Return when each device last got a push."""
    rows = await dba.fetch("select id, last_delivered_at from devices order by id")
    return {row["id"]: row["last_delivered_at"] for row in rows}


async def tokens(dba: Connection) -> set[str]:
    return {row["token"] for row in await dba.fetch("select token from devices")}


@pytest.mark.parametrize("state", ["held", "dead"])
async def test_pushes_that_another_session_locks_are_skipped(
    database: Database, dba: Connection, now: datetime, state: State
) -> None:
    """Each session may lock them in another order, so that they would wait for each other."""
    phone = await device(dba, 1)
    keys = [
        await delivery(dba, number, phone, state=state, worker_id=None, due_at=now, settled_at=now)
        for number in (1, 2, 3)
    ]
    async with bounded(), dba.transaction():
        await dba.execute("select from deliveries where event_id = $1 for update", keys[1].event_id)
        if state == "held":
            claimed = await deliveries.claim(database, WORKER, LANE, 1, bulk=False)
            assert {found.key for found in claimed} == {keys[0], keys[2]}
        else:
            async with database.transaction() as connection:
                assert await deliveries.replay(connection, [key.event_id for key in keys]) == 2
            dead = await states(dba, "state")
            assert [dead[key] for key in keys] == [("queued",), ("dead",), ("queued",)]


class TestDeliveries:
    @pytest.mark.parametrize(
        "state", ["queued", "later", "held", "delivered", "gone", "refused", "dead", "muted", "skipped"]
    )
    async def test_result_is_recorded_and_the_lease_ends(
        self, database: Database, dba: Connection, now: datetime, state: State
    ) -> None:
        due_at = now + HOUR
        key = await delivery(dba, 1, await device(dba, 1), attempts=3)
        await deliveries.settle(database, WORKER, [Settled(key, state, due_at, "because")])
        [(found, reason, due, worker, attempts, settled_at)] = (
            await states(dba, "state", "reason", "due_at", "worker_id", "attempts", "settled_at")
        ).values()
        assert (found, reason, due, worker) == (state, "because", due_at, None)
        assert attempts == (2 if state == "held" else 3)  # it was checked, not attempted
        if state in {"queued", "later", "held"}:
            assert settled_at is None
        else:
            assert now <= settled_at <= await dba.fetchval("select clock_timestamp()")

    async def test_result_without_a_time_keeps_the_time_when_it_was_due(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        key = await delivery(dba, 1, await device(dba, 1), due_at=now - HOUR)
        await deliveries.settle(database, WORKER, [Settled(key, "dead")])
        assert await states(dba, "state", "due_at", "reason") == {key: ("dead", now - HOUR, None)}

    async def test_results_are_of_their_own_event_and_device(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        devices = [await device(dba, number) for number in (1, 2)]
        keys = [await delivery(dba, event, each, due_at=now) for event in (1, 2) for each in devices]
        await deliveries.settle(database, WORKER, [Settled(keys[0], "delivered"), Settled(keys[3], "dead")])
        assert {key: state for key, (state,) in (await states(dba, "state")).items()} == dict(
            zip(keys, ("delivered", "queued", "queued", "dead"), strict=True)
        )

    @pytest.mark.parametrize("holder", [OTHER, None])
    async def test_result_of_a_lost_lease_changes_nothing(
        self, database: Database, dba: Connection, now: datetime, holder: UUID | None
    ) -> None:
        used_before = {await device(dba, 1): None}
        key = await delivery(dba, 1, UUID(int=1), worker_id=holder, attempts=1, due_at=now)
        await deliveries.settle(database, WORKER, [Settled(key, "delivered")])
        await deliveries.put_back(database, WORKER, [key])
        assert await states(dba, "state", "worker_id", "attempts") == {key: ("queued", holder, 1)}
        assert await used(dba) == used_before

    @pytest.mark.parametrize(("attempts", "due"), [(3, 2), (1, 0), (0, 0)])
    async def test_delivery_that_is_put_back_is_as_before_its_claim(
        self, database: Database, dba: Connection, now: datetime, attempts: int, due: int
    ) -> None:
        devices = [await device(dba, number) for number in (1, 2)]
        keys = [await delivery(dba, event, each, attempts=attempts, due_at=now) for event in (1, 2) for each in devices]
        await deliveries.put_back(database, WORKER, [keys[0], keys[3]])
        back, stays = (None, due, "queued", now), (WORKER, attempts, "queued", now)
        assert await states(dba, "worker_id", "attempts", "state", "due_at") == dict(
            zip(keys, (back, stays, stays, back), strict=True)
        )

    async def test_leases_of_a_worker_that_leaves_are_released_except_locked_ones(
        self, url: str, database: Database, dba: Connection, now: datetime
    ) -> None:
        locked, free, other = [
            await delivery(dba, event, await device(dba, event), worker_id=worker, attempts=1, due_at=now)
            for event, worker in ((1, WORKER), (2, WORKER), (3, OTHER))
        ]
        locking = await connect(url)
        async with locking.transaction():
            await locking.execute("select from deliveries where event_id = $1 for update", locked.event_id)
            await deliveries.release(database, WORKER)
        await locking.close()
        assert await states(dba, "worker_id", "attempts") == {locked: (WORKER, 1), free: (None, 0), other: (OTHER, 1)}


class TestDevices:
    async def test_devices_of_delivered_pushes_were_used_now(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        ids = [await device(dba, number) for number in (1, 2, 3)]
        keys = [await delivery(dba, 1, id_) for id_ in ids]
        await deliveries.settle(database, WORKER, [Settled(keys[0], "delivered"), Settled(keys[1], "gone")])
        first, *others = (await used(dba)).values()
        assert first
        assert now <= first <= await dba.fetchval("select clock_timestamp()")
        assert others == [None, None]

    async def test_use_of_a_device_is_recorded_once_a_minute(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        before = {await device(dba, n, last_delivered_at=now - ago): now - ago for n, ago in enumerate((HOUR, SECOND))}
        settled = [Settled(await delivery(dba, 1, id_), "delivered") for id_ in before]
        await deliveries.settle(database, WORKER, settled)
        (old, recent), (kept_old, kept_recent) = before.values(), (await used(dba)).values()
        assert kept_recent == recent
        assert kept_old
        assert kept_old > old

    async def test_later_use_that_another_worker_records_is_kept(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        id_ = await device(dba, 1)
        settled = [Settled(await delivery(dba, 1, id_), "delivered")]
        async with asyncio.TaskGroup() as group, dba.transaction():
            await dba.execute("update devices set last_delivered_at = $1", now + HOUR)
            group.create_task(deliveries.settle(database, WORKER, settled))
            await until(lambda: blocked(dba))
        assert await used(dba) == {id_: now + HOUR}

    @pytest.mark.parametrize("statement", ["settle", "drop"])
    async def test_devices_are_locked_in_the_order_of_tokens(
        self, database: Database, dba: Connection, now: datetime, statement: str
    ) -> None:
        ids = [await device(dba, number, token) for number, token in ((1, "b"), (2, "a"))]  # stored in another order
        settled = [Settled(await delivery(dba, 1, id_), "delivered") for id_ in ids]
        steps: dict[str, Any] = {
            "settle": lambda: deliveries.settle(database, WORKER, settled),
            "drop": lambda: deliveries.drop(database, dict.fromkeys(ids, now + HOUR)),
        }
        async with asyncio.TaskGroup() as group, dba.transaction():
            await dba.execute("select from devices where token = 'a' for update")
            group.create_task(steps[statement]())
            await until(lambda: blocked(dba))
            free = await dba.fetchval("select token from devices where token = 'b' for update skip locked")
        assert free == "b"

    @pytest.mark.parametrize(("since", "is_kept"), [(-SECOND, False), (timedelta(), False), (SECOND, True)])
    async def test_device_that_is_gone_is_removed_unless_it_was_registered_since(
        self, database: Database, dba: Connection, now: datetime, since: timedelta, *, is_kept: bool
    ) -> None:
        ids = [await device(dba, n, t, registered_at=now + since) for n, t in enumerate(("gone", "other"))]
        await deliveries.drop(database, {ids[0]: now})
        assert await tokens(dba) == ({"gone", "other"} if is_kept else {"other"})

    async def test_device_that_is_registered_during_its_removal_is_kept(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        id_ = await device(dba, 1, registered_at=now - HOUR)
        async with asyncio.TaskGroup() as group, dba.transaction():
            await dba.execute("update devices set registered_at = $1", now + HOUR)
            group.create_task(deliveries.drop(database, {id_: now}))
            await until(lambda: blocked(dba))
        assert len(await tokens(dba)) == 1

    async def test_browser_knows_what_to_close_up_to_the_highest_position(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        ids = [await device(dba, number) for number in (1, 2)]
        for position, due in ((5, 5), (3, 5), (7, 7)):
            await deliveries.note_closed(database, ids[0], position)
            rows = await dba.fetch("select told_up_to from devices order by id")
            assert [row["told_up_to"] for row in rows] == [due, None], now

    async def test_device_keeps_the_environment_and_key_that_reached_it(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        ids = [await device(dba, number) for number in (1, 2)]
        for key, stored in (("new key", "new key"), ("", None)):
            await deliveries.found_as(database, ids[0], Address("", "iOS", "sandbox", "", now, server_key=key))
            rows = await dba.fetch("select environment, server_key from devices order by id")
            assert [tuple(row) for row in rows] == [("sandbox", stored), ("production", None)]


class TestLanes:
    async def lanes(self, dba: Connection, now: datetime, **columns: Any) -> None:
        for name in (LANE, "apns/default"):
            await insert(dba, "lanes", name=name, configuration="", **columns)
        assert now

    async def of(self, dba: Connection, name: str = LANE) -> tuple[Any, ...]:
        row = await dba.fetchrow("select delivered_at, stopped_at, reason from lanes where name = $1", name)
        assert row
        return tuple(row)

    async def test_lane_has_stopped_since_its_first_failure_for_the_latest_reason(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        await self.lanes(dba, now, delivered_at=now - HOUR)
        await deliveries.lane_stops(database, LANE, "first")
        delivered, stopped, reason = await self.of(dba)
        assert (delivered, reason) == (now - HOUR, "first")
        assert now <= stopped
        await deliveries.lane_stops(database, LANE, "second")
        assert await self.of(dba) == (delivered, stopped, "second")
        assert await self.of(dba, "apns/default") == (now - HOUR, None, None)

    async def test_lane_that_delivers_is_no_longer_stopped(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        await self.lanes(dba, now, delivered_at=now - SECOND, stopped_at=now - HOUR, reason="wrong key")
        assert await deliveries.lane_works(database, LANE) == now - HOUR
        delivered, stopped, reason = await self.of(dba)
        assert (stopped, reason) == (None, None)
        assert delivered >= now
        assert await deliveries.lane_works(database, LANE) is None
        assert await self.of(dba, "apns/default") == (now - SECOND, now - HOUR, "wrong key")

    @pytest.mark.parametrize(("ago", "is_recorded"), [(HOUR, True), (SECOND, False), (None, True)])
    async def test_delivery_of_a_lane_is_recorded_once_a_minute(
        self, database: Database, dba: Connection, now: datetime, ago: timedelta | None, *, is_recorded: bool
    ) -> None:
        before = ago and now - ago
        await self.lanes(dba, now, delivered_at=before)
        assert await deliveries.lane_has_delivered(database, LANE) is (ago is not None)
        assert await deliveries.lane_works(database, LANE) is None
        delivered, *_ = await self.of(dba)
        assert (delivered >= now) if is_recorded else (delivered == before)
        assert await deliveries.lane_has_delivered(database, LANE)
        assert await self.of(dba, "apns/default") == (before, None, None)
        assert await deliveries.lane_has_delivered(database, "apns/default") is (ago is not None)

    async def test_end_of_a_stop_is_reported_by_one_of_two_workers(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        await self.lanes(dba, now, stopped_at=now - HOUR)
        async with asyncio.TaskGroup() as group, dba.transaction():
            await dba.execute("select from lanes for update")
            works = [group.create_task(deliveries.lane_works(database, LANE)) for _ in range(2)]
            await until(lambda: all_blocked(dba, 2))
        assert sorted([work.result() for work in works], key=bool) == [None, now - HOUR]


async def all_blocked(dba: Connection, count: int) -> bool:
    return await blocked(dba) == count


class TestPushServices:
    async def of(self, dba: Connection, lane: str = LANE, origin: str = ORIGIN) -> tuple[Any, ...]:
        row = await dba.fetchrow(
            "select delivered_at, refused_at, last_refused_at, reason from push_services"
            " where lane = $1 and origin = $2",
            lane,
            origin,
        )
        assert row
        return tuple(row)

    async def others(self, dba: Connection, **columns: Any) -> None:
        """Insert a service of another lane and of another origin."""
        await insert(dba, "push_services", lane="web/other", origin=ORIGIN, **columns)
        await insert(dba, "push_services", lane=LANE, origin="https://other.example.com", **columns)

    async def test_service_refuses_since_its_first_refusal_for_the_latest_reason(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        await self.others(dba)
        await deliveries.service_refuses(database, LANE, ORIGIN, "first")
        delivered, since, last, reason = await self.of(dba)
        assert (delivered, last, reason) == (None, since, "first")
        assert now <= since
        await deliveries.service_refuses(database, LANE, ORIGIN, "second")
        delivered, still_since, last, reason = await self.of(dba)
        assert (delivered, still_since, reason) == (None, since, "second")
        assert last > since
        assert await self.of(dba, "web/other") == (None, None, None, None)

    async def test_service_that_accepted_before_refuses_since_its_refusal(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        assert await deliveries.service_delivers(database, LANE, ORIGIN) is None
        await deliveries.service_refuses(database, LANE, ORIGIN, "reason")
        delivered, since, last, reason = await self.of(dba)
        assert (last, reason) == (since, "reason")
        assert now <= delivered <= since

    async def test_service_that_accepts_no_longer_refuses(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        refusal = {"refused_at": now - HOUR, "last_refused_at": now - MINUTE, "reason": "reason"}
        await self.others(dba, **refusal)
        await insert(dba, "push_services", lane=LANE, origin=ORIGIN, **refusal)
        assert await deliveries.service_delivers(database, LANE, ORIGIN) == now - HOUR
        delivered, *rest = await self.of(dba)
        assert delivered >= now
        assert rest == [None, now - MINUTE, None]
        assert await deliveries.service_delivers(database, LANE, ORIGIN) is None
        assert (await self.of(dba))[0] > delivered
        for place in (("web/other", ORIGIN), (LANE, "https://other.example.com")):
            assert await self.of(dba, *place) == (None, *refusal.values())

    async def test_service_has_delivered_only_after_a_time(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        await self.others(dba, delivered_at=now + HOUR)
        assert not await deliveries.service_has_delivered(database, LANE, ORIGIN, now - HOUR)
        await insert(dba, "push_services", lane=LANE, origin=ORIGIN, delivered_at=now)
        for since, has_delivered in ((-SECOND, True), (timedelta(), False), (SECOND, False)):
            found = await deliveries.service_has_delivered(database, LANE, ORIGIN, now + since)
            assert found is has_delivered, since
        await dba.execute("update push_services set delivered_at = null where lane = $1 and origin = $2", LANE, ORIGIN)
        assert await deliveries.service_has_delivered(database, LANE, ORIGIN, now - HOUR) is False

    async def test_pushes_that_wait_for_a_service_are_due_once_it_accepts_one(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        later, due = now + HOUR, now - HOUR
        here, elsewhere = await device(dba, 1), await device(dba, 2, f"{ORIGIN}.evil/2")
        waiting: dict[str, Any] = {"state": "later", "due_at": later, "worker_id": None}
        released = await delivery(dba, 1, here, **waiting)
        kept: Iterable[tuple[UUID, dict[str, Any]]] = (
            (elsewhere, {}),
            (here, {"lane": "web/other"}),
            (here, {"state": "held"}),
            (here, {"worker_id": OTHER}),
            (here, {"due_at": due}),
        )
        keys = [await delivery(dba, 2 + n, id_, **{**waiting, **more}) for n, (id_, more) in enumerate(kept)]
        await insert(dba, "push_services", lane=LANE, origin=ORIGIN, refused_at=now - 2 * MINUTE)
        await deliveries.service_delivers(database, LANE, ORIGIN)
        found = {key: due_at for key, (due_at,) in (await states(dba, "due_at")).items()}
        assert now <= found.pop(released) < later
        assert found == dict(zip(keys, [*[later] * 4, due], strict=True))

    @pytest.mark.parametrize(
        "refused", [None, timedelta(seconds=30)], ids=["it refused none", "it refused one just now"]
    )
    async def test_pushes_of_a_service_that_accepts_others_follow_their_schedule(
        self, database: Database, dba: Connection, now: datetime, refused: timedelta | None
    ) -> None:
        later = now + HOUR
        key = await delivery(dba, 1, await device(dba, 1), state="later", due_at=later, worker_id=None)
        await self.others(dba, refused_at=now - HOUR)
        await insert(dba, "push_services", lane=LANE, origin=ORIGIN, refused_at=refused and now - refused)
        await deliveries.service_delivers(database, LANE, ORIGIN)
        assert await states(dba, "due_at") == {key: (later,)}

    async def test_at_most_20000_waiting_pushes_become_due_at_once(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        await dba.execute(
            "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending, state, due_at)"
            " select gen_random_uuid(), $1, 1, $2, false, 'Web', 'ending', 'later', $3 from generate_series(1, 20001)",
            await device(dba, 1),
            LANE,
            now + HOUR,
        )
        await insert(dba, "push_services", lane=LANE, origin=ORIGIN, refused_at=now - HOUR)
        await deliveries.service_delivers(database, LANE, ORIGIN)
        assert await dba.fetchval("select count(*) from deliveries where due_at > $1", now + MINUTE) == 1

    async def test_end_of_a_refusal_is_reported_by_one_of_two_workers(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        await insert(dba, "push_services", lane=LANE, origin=ORIGIN, refused_at=now - HOUR)
        async with asyncio.TaskGroup() as group, dba.transaction():
            await dba.execute("select from push_services for update")
            delivers = [group.create_task(deliveries.service_delivers(database, LANE, ORIGIN)) for _ in range(2)]
            await until(lambda: all_blocked(dba, 2))
        assert sorted([each.result() for each in delivers], key=bool) == [None, now - HOUR]

    async def test_released_deliveries_are_locked_in_the_order_of_keys(
        self, database: Database, dba: Connection, now: datetime
    ) -> None:
        id_ = await device(dba, 1)
        waiting: dict[str, Any] = {"state": "later", "worker_id": None}
        for event, wait in ((2, HOUR), (1, 2 * HOUR)):  # stored and due in another order
            await delivery(dba, event, id_, due_at=now + wait, **waiting)
        await insert(dba, "push_services", lane=LANE, origin=ORIGIN, refused_at=now - HOUR)
        async with asyncio.TaskGroup() as group, dba.transaction():
            await dba.execute("select from deliveries where event_id = $1 for update", UUID(int=1))
            group.create_task(deliveries.service_delivers(database, LANE, ORIGIN))
            await until(lambda: blocked(dba))
            free = await dba.fetch("select event_id from deliveries for update skip locked")
        assert len(free) == 2  # that of this session, and the next

    async def test_due_pushes_of_a_lane_are_counted_up_to_a_limit(
        self, database: Database, dba: Connection, now: datetime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await insert(dba, "lanes", name=LANE, configuration="")
        id_ = await device(dba, 1)
        for event, (state, waits) in enumerate([("queued", 1), ("later", 3), ("held", 2), ("held", -1), ("dead", 4)]):
            await delivery(dba, event, id_, state=state, due_at=now - waits * HOUR, worker_id=None)
        for limit, due in ((2, 2), (3, 3), (4, 3)):
            monkeypatch.setattr(deliveries, "MAX_COUNTED", limit)
            [lane] = await deliveries.lanes(database)
            assert (lane["due"], lane["oldest"] // 3600) == (due, 3)

    @pytest.mark.parametrize("is_analyzed", [True, False])
    @pytest.mark.parametrize("name", ["service_delivers", "enter_lane"])
    async def test_end_of_a_refusal_reads_a_bounded_number_of_deliveries(
        self, dba: Connection, now: datetime, name: str, *, is_analyzed: bool
    ) -> None:
        """Settled ones are kept for 30 days, and many may be held: a recovery that reads all fails, and is repeated."""
        await dba.execute("truncate deliveries")  # dead rows of tests before would be read, too
        await dba.execute("analyze deliveries")
        for number in range(1, 41):
            await device(dba, number)
        await dba.execute(
            "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending, state, due_at)"
            " select gen_random_uuid(), v.id, 1, $1, false, 'Web', '', s, $2::timestamptz + make_interval(mins => n)"
            " from devices v, unnest('{delivered,held}'::text[]) s, generate_series(1, 500) n",
            LANE,
            now + HOUR,
        )
        await delivery(dba, 1, UUID(int=1), state="later", due_at=now + HOUR, worker_id=None)
        if is_analyzed:
            await dba.execute("analyze deliveries")
        await insert(dba, "push_services", lane=LANE, origin=ORIGIN, refused_at=now - HOUR)
        await insert(dba, "lanes", name=LANE, configuration="old")
        statement = re.sub(r"limit \d\d000\n", "limit 100\n", queries("deliveries")[name])
        explained = f"explain (analyze, buffers, format json) {statement}"
        plan = await dba.fetchval(explained, LANE, ORIGIN)
        assert await dba.fetchval("select count(*) from deliveries where state = 'later' and due_at <= now()") == 1
        assert max(map(int, re.findall(r'"Shared Hit Blocks": (\d+)', plan))) < 1000
