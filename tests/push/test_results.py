"""What an answer of a provider means for the delivery, the device and the lane."""

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from tests.support.database import blocked, renamed
from tests.support.deliveries import LANE, ORIGIN, WORKER, delivery, device, insert, states
from tests.support.push_services import answer, phone, push
from tests.support.waiting import until
from tocsin.db.connections import Connection, connect
from tocsin.db.pool import Database
from tocsin.http_client.messages import Answer, Request
from tocsin.metrics import Metrics
from tocsin.pubsub import PubSub
from tocsin.push import deliveries
from tocsin.push.channels import (
    Address,
    Channel,
    Delivered,
    Gone,
    Later,
    Outcome,
    Push,
    Refused,
    Stopped,
    Unauthorised,
)
from tocsin.push.deliveries import Delivery, DeliveryKey
from tocsin.push.lanes import Answered, Lane
from tocsin.push.results import NOTED, PROBE_INTERVAL, ResultWriter

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
TWIN = f"{LANE}/sandbox"
ELSEWHERE = phone("Web", "elsewhere", environment="sandbox", server_key="its key")


class GivenChannel(Channel):
    """A provider for this test: the token of a device and the status of an answer are what an answer `means`."""

    window = 10
    min_retry_delay = 20.0

    def __init__(self) -> None:
        self.means: dict[tuple[str, int], Outcome] = {}
        self.other: Address | None = None
        self.origin = ""
        self.is_too_long = False

    def request(self, push: Push) -> Request | Refused:
        return Refused("too long") if self.is_too_long else Request(push.address.token, (), b"")

    def outcome(self, push: Push, answer: Answer) -> Outcome:
        return self.means[push.address.token, answer.status]

    def service(self, address: Address) -> str:  # noqa: ARG002 - all devices have one
        return self.origin

    def alternative(self, push: Push, answer: Answer) -> Address | None:  # noqa: ARG002 - the same for all
        return None if answer.status == 200 else self.other


class GivenTransport:
    """Sends nothing; every request gets the same answer."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.sent: list[Request] = []

    def submit(self, request: Request) -> Any:
        self.sent.append(request)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.set_result(answer(self.status))
        return future

    async def close(self, grace: float = 0.0) -> None:
        pass


@dataclass
class Results:
    """The writer of results with two lanes of one app, and what it recorded."""

    dba: Connection
    database: Database
    lane: Lane
    twin: Lane
    channel: GivenChannel
    twin_channel: GivenChannel
    writer: ResultWriter
    metrics: Metrics
    pubsub: PubSub
    now: datetime
    events: int = 0
    names: list[str] = field(default_factory=list)

    async def leased(self, name: str = "device", **more: Any) -> Delivery:
        """Insert a leased delivery, with its device if it is new."""
        if name not in self.names:
            await device(self.dba, len(self.names) + 1, name, registered_at=self.now - HOUR)
            self.names.append(name)
        self.events += 1
        values: dict[str, Any] = {"attempts": 1, "made_at": self.now - SECOND, **more}
        key = await delivery(self.dba, self.events, UUID(int=self.names.index(name) + 1), **values)
        told: dict[str, Any] = {"locale": "", "language": "", "kind": "", "params": "", "body": "", "position": 7}
        return Delivery(key, 1, looked_at=self.now, address=phone("Web", name), **told, **values)

    async def got(self, outcome: Outcome, *bundle: Delivery, status: int = 400, **more: Any) -> DeliveryKey:
        """Record an answer to a push of a delivery, and return its key."""
        leased = await self.leased(**more)
        assert leased.address
        self.channel.means[leased.address.token, status] = outcome
        await self.record(Answered(leased, push(leased.address), answer(status), bundle))
        return leased.key

    async def record(self, answered: Answered) -> None:
        self.lane.under_way |= {each.key for each in (answered.delivery, *answered.bundle)}
        self.lane.note(answered)
        await self.writer.settle(self.lane)

    async def state(self, key: DeliveryKey) -> tuple[str, str | None]:
        """Return the state and the reason of a delivery whose lease ended."""
        state, reason, worker = (await states(self.dba, "state", "reason", "worker_id"))[key]
        assert worker is None
        return state, reason

    async def devices(self) -> set[str]:
        return {row["token"] for row in await self.dba.fetch("select token from devices")}

    async def counted(self, *names: str) -> list[str]:
        """Return the metrics with these names, without those of zero."""
        lines = (await self.metrics.text(self.database)).decode().splitlines()
        return [line for line in lines if line.startswith(names) and not line.endswith(" 0.0")]


@pytest.fixture
async def results(url: str, database: Database, dba: Connection) -> Results:
    await insert(dba, "users", id=1, company_id=1, first_name="", last_name="", time_zone="UTC")
    channel, twin_channel, metrics, pubsub = GivenChannel(), GivenChannel(), Metrics(), PubSub(url, database)
    pubsub.handle_locally("settled", "push")
    lane = Lane(LANE, "", channel, GivenTransport(200))
    twin = Lane(TWIN, "", twin_channel, GivenTransport(200))
    for each in (lane, twin):
        await deliveries.enter_lane(database, each.name, "")
    writer = ResultWriter(database, WORKER, {each.name: each for each in (lane, twin)}, pubsub, metrics)
    now = await dba.fetchval("select clock_timestamp()")
    return Results(dba, database, lane, twin, channel, twin_channel, writer, metrics, pubsub, now)


class TestDelivered:
    async def test_delivery_is_recorded_and_counted(self, results: Results) -> None:
        settled = results.pubsub.listen_for("settled")
        key = await results.got(Delivered())
        assert await results.state(key) == ("delivered", "delivered")
        assert results.lane.under_way == set()
        assert results.lane.progress.is_set()
        assert settled.is_set()
        assert await results.counted(
            "tocsin_pushes_total", "tocsin_push_answers_total", "tocsin_push_seconds_count"
        ) == [
            f'tocsin_pushes_total{{lane="{LANE}",state="delivered"}} 1.0',
            f'tocsin_push_seconds_count{{lane="{LANE}"}} 1.0',
            f'tocsin_push_answers_total{{lane="{LANE}",outcome="delivered",reason=""}} 1.0',
        ]
        [took] = await results.counted("tocsin_push_seconds_sum")
        assert 1 <= float(took.split()[-1]) < 60

    async def test_all_deliveries_of_one_push_are_recorded_and_timed_once(self, results: Results) -> None:
        others = [await results.leased() for _ in range(2)]
        key = await results.got(Delivered(), *others)
        assert [await results.state(each) for each in (key, *(other.key for other in others))] == [
            ("delivered", "delivered")
        ] * 3
        assert results.lane.under_way == set()
        assert await results.counted("tocsin_pushes_total", "tocsin_push_seconds_count") == [
            f'tocsin_pushes_total{{lane="{LANE}",state="delivered"}} 3.0',
            f'tocsin_push_seconds_count{{lane="{LANE}"}} 1.0',
        ]

    async def test_lane_resumes_and_that_is_logged(self, results: Results) -> None:
        await results.writer.stop_lane(results.lane, "wrong key")
        results.lane.waits_since = time.monotonic()
        stopped_at = await results.dba.fetchval("select stopped_at from lanes where name = $1", LANE)
        with capture_logs() as logs:
            await results.got(Delivered())
        assert logs == [
            {"event": "lane resumed", "lane": LANE, "stopped_since": stopped_at.isoformat(), "log_level": "info"}
        ]
        assert results.lane.stopped == ""
        assert results.lane.remaining == 0
        assert not results.lane.waits_since
        stopped = await results.dba.fetch("select name from lanes where stopped_at is not null")
        assert stopped == []

    async def test_lane_resumes_although_another_worker_recorded_it(self, results: Results) -> None:
        await results.got(Delivered())
        results.lane.stopped = "wrong key"
        await results.writer.stop_lane(results.lane, "wrong key")
        await results.got(Delivered())
        assert results.lane.stopped == ""
        assert await results.dba.fetchval("select stopped_at from lanes where name = $1", LANE) is None

    async def test_delivery_of_a_lane_is_written_every_30_seconds(self, results: Results) -> None:
        def written() -> Any:
            return results.dba.fetchval("select delivered_at is not null from lanes where name = $1", LANE)

        assert NOTED == 30
        for seconds, is_written in ((0, True), (25, False), (31, True)):
            await results.dba.execute("update lanes set delivered_at = null")
            results.lane.noted -= seconds
            await results.got(Delivered())
            assert await written() is is_written, seconds
            results.lane.noted += seconds * (not is_written)

    @pytest.mark.parametrize("is_silent", [True, False])
    async def test_browser_knows_the_position_up_to_which_notifications_are_closed(
        self, results: Results, *, is_silent: bool
    ) -> None:
        results.channel.accepts_silent_push = is_silent
        await results.got(Delivered())
        assert await results.dba.fetchval("select told_up_to from devices") == (None if is_silent else 7)

    @pytest.mark.parametrize("origin", ["", ORIGIN])
    async def test_push_service_of_the_device_accepts_pushes(self, results: Results, origin: str) -> None:
        results.channel.origin = origin
        await results.got(Delivered())
        found = await results.dba.fetch("select lane, origin from push_services where delivered_at is not null")
        assert [tuple(row) for row in found] == ([(LANE, ORIGIN)] if origin else [])


class TestGone:
    async def test_device_is_removed(self, results: Results) -> None:
        results.lane.waits_since = time.monotonic()
        await results.leased("another")
        key = await results.got(Gone("410 Unregistered"))
        assert await results.state(key) == ("gone", "the device is gone: 410 Unregistered")
        assert await results.devices() == {"another"}
        assert results.lane.waits_since is None  # the provider judges pushes

    @pytest.mark.parametrize(("at", "is_removed"), [(-2 * HOUR, False), (-MINUTE, True)])
    async def test_device_that_was_registered_since_is_kept(
        self, results: Results, at: timedelta, *, is_removed: bool
    ) -> None:
        await results.got(Gone("410 Unregistered", results.now + at))
        assert await results.devices() == (set() if is_removed else {"device"})

    async def test_device_that_was_registered_after_the_look_is_kept(self, results: Results) -> None:
        leased = await results.leased()
        await results.dba.execute("update devices set registered_at = $1", results.now + SECOND)
        results.channel.means["device", 410] = Gone("410 Unregistered")
        await results.record(Answered(leased, push(phone("Web", "device")), answer(410)))
        assert await results.devices() == {"device"}


class TestLater:
    @pytest.mark.parametrize(("after", "delay"), [(None, 20), (60.0, 60)])
    async def test_push_is_retried_after_the_delay_of_the_provider(
        self, results: Results, after: float | None, delay: float
    ) -> None:
        key = await results.got(Later("503 Busy", after))
        state, reason = await results.state(key)
        assert state == "later"
        assert reason
        assert reason.endswith(": 503 Busy")
        due_at = (await states(results.dba, "due_at"))[key][0]
        assert timedelta(seconds=delay) <= due_at - results.now <= timedelta(seconds=1.1 * delay + 5)
        assert not results.lane.remaining

    async def test_lane_waits_if_the_provider_asks(self, results: Results) -> None:
        await results.got(Later("429 TooMany", None, 300.0))
        assert 290 < results.lane.remaining <= 300
        assert results.lane.waits_because == "429 TooMany"

    @pytest.mark.parametrize("after", [None, 5.0])
    async def test_push_is_not_due_before_its_lane_is(self, results: Results, after: float | None) -> None:
        key = await results.got(Later("429 TooMany", after, 300.0))
        due_at = (await states(results.dba, "due_at"))[key][0]
        assert timedelta(seconds=300) <= due_at - results.now <= timedelta(seconds=335)
        assert await results.state(key) == ("later", f"again at {due_at:%Y-%m-%d %H:%M:%S} UTC: 429 TooMany")


class TestRefused:
    async def test_push_is_refused_and_logged(self, results: Results) -> None:
        with capture_logs() as logs:
            key = await results.got(Refused("400 BadTopic"))
        assert await results.state(key) == ("refused", "refused: 400 BadTopic")
        assert logs == [{"event": "push refused", "lane": LANE, "reason": "400 BadTopic", "log_level": "error"}]
        assert await results.devices() == {"device"}

    async def test_push_that_was_not_sent_is_refused_without_another_try(self, results: Results) -> None:
        results.channel.other = ELSEWHERE
        leased = await results.leased()
        await results.record(Answered(leased, push(phone("Web", "device")), answer(0), refused=Refused("too long")))
        assert await results.state(leased.key) == ("refused", "refused: too long")

    async def test_device_of_a_doubtful_push_is_removed_if_its_lane_delivers(self, results: Results) -> None:
        await deliveries.lane_works(results.database, LANE)
        await results.leased("another")
        key = await results.got(Refused("400 BadDeviceToken", doubtful=True))
        assert await results.state(key) == ("gone", "the device is gone: 400 BadDeviceToken")
        assert await results.devices() == {"another"}

    async def test_device_of_a_doubtful_push_is_set_aside_until_its_lane_delivers(self, results: Results) -> None:
        await deliveries.lane_works(results.database, TWIN)
        with capture_logs() as logs:
            key = await results.got(Refused("400 BadDeviceToken", doubtful=True))
        said = "device set aside: its token or the lane's settings are wrong"
        assert logs == [{"event": said, "lane": LANE, "reason": "400 BadDeviceToken", "log_level": "error"}]
        assert await results.state(key) == ("later", "set aside until its lane has delivered: 400 BadDeviceToken")
        due_at = (await states(results.dba, "due_at"))[key][0]
        assert 10 * MINUTE <= due_at - results.now < 11 * MINUTE
        assert await results.devices() == {"device"}

    @pytest.mark.parametrize(("left", "state"), [(9, "dead"), (11, "later")])
    async def test_device_is_not_set_aside_for_longer_than_its_push_is_valid(
        self, results: Results, left: int, state: str
    ) -> None:
        made_at = results.now - timedelta(hours=24) + left * MINUTE
        key = await results.got(Refused("400 BadDeviceToken", doubtful=True), made_at=made_at)
        found, reason = await results.state(key)
        assert found == state
        assert reason
        assert reason.endswith(": 400 BadDeviceToken")
        assert reason.startswith("given up" if state == "dead" else "set aside")


class TestUnauthorised:
    @pytest.mark.parametrize(("attempts", "delivered", "state"), [(5, 1, "refused"), (5, -1, "later"), (4, 1, "later")])
    async def test_push_is_refused_if_its_service_accepts_others(
        self, results: Results, attempts: int, delivered: int, state: str
    ) -> None:
        made_at = results.now - HOUR
        await insert(results.dba, "push_services", lane=LANE, origin=ORIGIN, delivered_at=made_at + delivered * MINUTE)
        results.channel.origin = ORIGIN
        key = await results.got(Unauthorised("403 Forbidden", 7200.0), attempts=attempts, made_at=made_at)
        found, reason = await results.state(key)
        assert found == state
        assert reason
        if state == "refused":
            assert reason == f"refused: 403 Forbidden, while {ORIGIN} takes other pushes"
        else:
            assert reason.endswith(": 403 Forbidden")
            due_at = (await states(results.dba, "due_at"))[key][0]
            assert 2 * HOUR <= due_at - results.now < 2.3 * HOUR
        assert await results.devices() == {"device"}
        found_at = await results.dba.fetchrow("select origin, reason from push_services where refused_at is not null")
        assert found_at
        assert tuple(found_at) == (ORIGIN, "403 Forbidden")

    async def test_push_waits_at_least_as_long_as_the_provider_demands(self, results: Results) -> None:
        key = await results.got(Unauthorised("403 Forbidden"))
        due_at = (await states(results.dba, "due_at"))[key][0]
        assert timedelta(seconds=20) <= due_at - results.now < timedelta(seconds=27)


class TestStopped:
    async def test_lane_stops_for_30_seconds_and_its_pushes_return_to_the_queue(self, results: Results) -> None:
        settled = results.pubsub.listen_for("settled")
        other = await results.leased()
        with capture_logs() as logs:
            key = await results.got(Stopped("403 InvalidProviderToken"), other)
        assert [await results.state(each) for each in (key, other.key)] == [("queued", None)] * 2
        assert {attempts for (attempts,) in (await states(results.dba, "attempts")).values()} == {0}
        assert results.lane.under_way == set()
        assert results.lane.progress.is_set()
        assert not settled.is_set()
        assert results.lane.stopped == "403 InvalidProviderToken"
        assert PROBE_INTERVAL == 30
        assert 29 < results.lane.remaining <= 30
        said = "lane stopped: the provider refused its settings"
        assert logs == [{"event": said, "lane": LANE, "reason": "403 InvalidProviderToken", "log_level": "error"}]
        stopped = await results.dba.fetch("select name, reason from lanes where stopped_at is not null")
        assert [tuple(row) for row in stopped] == [(LANE, "403 InvalidProviderToken")]

    async def test_lane_that_stops_again_is_logged_for_another_reason_only(self, results: Results) -> None:
        with capture_logs() as logs:
            for reason in ("first", "first", "second"):
                await results.got(Stopped(reason))
        assert [each["reason"] for each in logs] == ["first", "second"]

    @pytest.mark.parametrize("outcome", [Stopped("403 InvalidProviderToken"), Unauthorised("403 BadJwtToken")])
    async def test_answer_to_the_previous_keys_is_ignored(self, results: Results, outcome: Outcome) -> None:
        results.lane.renewed_at = datetime.now(UTC) + HOUR
        results.channel.origin = ORIGIN
        key = await results.got(outcome)
        assert await results.state(key) == ("queued", None)
        assert results.lane.stopped == ""
        assert await results.dba.fetch("select from push_services") == []

    async def test_other_answers_to_the_previous_keys_count(self, results: Results) -> None:
        results.lane.renewed_at = datetime.now(UTC) + HOUR
        assert await results.state(await results.got(Delivered())) == ("delivered", "delivered")

    async def test_answers_of_one_batch_are_each_recorded(self, results: Results) -> None:
        stopped = Stopped("no")
        outcomes: list[Outcome] = [Delivered(), stopped, Gone("gone"), Refused("bad"), stopped, Delivered()]
        keys = []
        for status, outcome in enumerate(outcomes, 401):
            leased = await results.leased(f"device {status}")
            keys.append(leased.key)
            results.channel.means[f"device {status}", status] = outcome
            results.lane.under_way.add(leased.key)
            results.lane.note(Answered(leased, push(phone("Web", f"device {status}")), answer(status)))
        await results.writer.settle(results.lane)
        found = [(await results.state(key))[0] for key in keys]
        assert found == ["delivered", "queued", "gone", "refused", "queued", "delivered"]
        assert results.lane.under_way == set()
        assert await results.counted("tocsin_push_answers_total") == [
            f'tocsin_push_answers_total{{lane="{LANE}",outcome="{name}",reason="{reason}"}} {count}.0'
            for name, reason, count in (
                ("delivered", "", 2),
                ("stopped", "no", 2),
                ("gone", "gone", 1),
                ("refused", "bad", 1),
            )
        ]


class TestKept:
    """Results that cannot be recorded now."""

    async def answered(self, results: Results) -> Delivery:
        leased = await results.leased()
        assert leased.address
        results.channel.means[leased.address.token, 200] = Delivered()
        results.lane.under_way.add(leased.key)
        results.lane.note(Answered(leased, push(leased.address), answer(200)))
        return leased

    async def test_result_is_kept_after_any_error_so_that_its_push_is_not_sent_again(self, results: Results) -> None:
        leased = await self.answered(results)
        async with renamed(results.dba, "devices"):
            await results.writer.settle(results.lane)
        assert results.writer.backoffs[LANE].reason == "an error: UndefinedTableError"
        assert results.lane.under_way == {leased.key}
        assert await deliveries.release_others(results.database, WORKER, LANE, results.lane.under_way) == 0
        await results.writer.finish(results.lane)
        assert await results.state(leased.key) == ("delivered", "delivered")
        assert results.lane.under_way == set()

    async def test_reason_is_reported_until_the_result_is_recorded(self, results: Results) -> None:
        leased = await self.answered(results)
        running = asyncio.create_task(results.writer.run(results.lane))
        try:
            async with renamed(results.dba, "devices"):
                await until(lambda: results.lane.kept)
                async with results.writer._writing[LANE]:  # noqa: SLF001 - the batch has ended
                    assert results.writer.backoffs[LANE].reason == "an error: UndefinedTableError"
            results.lane.retry_set_aside()
            await until(lambda: not results.lane.under_way)
            await until(lambda: not results.writer.backoffs[LANE].reason)
        finally:
            running.cancel()
        assert await results.state(leased.key) == ("delivered", "delivered")

    async def test_no_lease_of_a_batch_ends_while_its_removals_of_devices_wait(
        self, url: str, results: Results
    ) -> None:
        later, gone = await results.leased("later"), await results.leased("gone")
        for status, outcome, leased in ((503, Later("busy"), later), (410, Gone("gone"), gone)):
            assert leased.address
            results.channel.means[leased.address.token, status] = outcome
            results.lane.under_way.add(leased.key)
            results.lane.note(Answered(leased, push(leased.address), answer(status)))
        locking = await connect(url)
        async with asyncio.TaskGroup() as group, locking.transaction():
            await locking.execute("select from devices where token = 'gone' for update")
            group.create_task(results.writer.settle(results.lane))
            await until(lambda: blocked(results.dba))
            assert set((await states(results.dba, "worker_id")).values()) == {(WORKER,)}
        await locking.close()
        assert (await results.state(gone.key))[0] == "gone"
        assert (await results.state(later.key))[0] == "later"

    async def test_last_result_is_recorded_after_an_outage(self, results: Results) -> None:
        leased = await self.answered(results)
        name = await results.dba.fetchval("select current_database()")
        await results.database.close()  # so that it opens new sessions
        await results.database.open()
        await results.dba.execute(f"alter database {name} set default_transaction_read_only = on")
        finishing = asyncio.create_task(results.writer.finish(results.lane))
        try:
            await until(lambda: results.writer.backoffs[LANE].reason == "the database is read-only")
        finally:
            await results.dba.execute(f"alter database {name} reset default_transaction_read_only")
        await finishing
        assert await results.state(leased.key) == ("delivered", "delivered")

    async def test_results_that_were_not_recorded_in_time_are_counted_in_the_log(
        self, results: Results, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tocsin.push.results.LAST_TIMEOUT", 0.1)
        await self.answered(results)
        async with results.writer._writing[LANE]:  # noqa: SLF001 - as if a batch hung
            with capture_logs() as logs:
                await results.writer.finish(results.lane)
        assert [(line["event"], line["count"]) for line in logs] == [
            ("pushes will be sent again: no result was recorded", 1)
        ]


class TestSecondTry:
    """The answer may suggest another address of the device, of which the push is sent to one, once."""

    async def tried(self, results: Results, first: Outcome, second: Outcome, other: Address = ELSEWHERE) -> DeliveryKey:
        results.channel.other = other
        by = results.twin_channel if other.environment == "sandbox" else results.channel
        by.means |= {(other.token, status): second for status in (200, 500)}
        key = await results.got(first)
        await asyncio.sleep(0)  # the answer of the transport
        if results.lane.answered:
            assert key in results.lane.under_way
            await results.writer.settle(results.lane)
        assert results.lane.under_way == set()
        return key

    def sent(self, results: Results) -> tuple[list[str], list[str]]:
        """Return the tokens to which the two lanes sent the push."""
        return [sent.url for sent in results.lane.transport.sent], [sent.url for sent in results.twin.transport.sent]  # type: ignore[attr-defined]

    async def test_address_that_was_reached_is_recorded(self, results: Results) -> None:
        await results.leased("another")
        key = await self.tried(results, Refused("bad", doubtful=True), Delivered())
        assert self.sent(results) == ([], ["elsewhere"])
        assert await results.state(key) == ("delivered", "delivered")
        rows = await results.dba.fetch("select environment, server_key from devices order by id desc")
        assert [tuple(row) for row in rows] == [("sandbox", "its key"), ("production", None)]

    async def test_second_try_shows_nothing_about_the_first_lane(self, results: Results) -> None:
        await self.tried(results, Refused("bad", doubtful=True), Delivered())
        assert not await deliveries.lane_has_delivered(results.database, LANE)
        assert await deliveries.lane_has_delivered(results.database, TWIN)

    async def test_only_the_lane_of_the_second_try_waits_if_it_must(self, results: Results) -> None:
        results.twin.transport = GivenTransport(500)
        await self.tried(results, Refused("bad", doubtful=True), Later("busy", lane=60.0))
        assert results.lane.remaining == 0
        assert results.twin.remaining > 0

    async def test_address_of_the_same_environment_is_tried_in_the_same_lane(self, results: Results) -> None:
        await self.tried(results, Refused("bad", doubtful=True), Delivered(), phone("Web", "elsewhere"))
        assert self.sent(results) == (["elsewhere"], [])

    async def test_address_of_a_delivery_that_was_reached_at_once_is_kept(self, results: Results) -> None:
        await results.got(Delivered(), status=200)
        row = await results.dba.fetchrow("select environment, server_key from devices")
        assert row
        assert tuple(row) == ("production", None)

    @pytest.mark.parametrize(
        ("second", "state", "reason"),
        [
            (Refused("second", doubtful=True), "refused", "refused: first"),
            (Stopped("second"), "refused", "refused: first"),
            (Refused("second"), "refused", "refused: second"),
            (Gone("second"), "gone", "the device is gone: second"),
        ],
    )
    async def test_first_answer_counts_if_the_second_does_not_judge_the_device(
        self, results: Results, second: Outcome, state: str, reason: str
    ) -> None:
        results.twin.transport = GivenTransport(500)
        key = await self.tried(results, Refused("first"), second)
        assert self.sent(results) == ([], ["elsewhere"])  # and no third try
        assert await results.state(key) == (state, reason)

    async def test_second_answer_counts_for_a_device_that_was_removed(self, results: Results) -> None:
        await deliveries.lane_works(results.database, TWIN)
        leased = await results.leased()
        removed = replace(leased, address=None)
        results.twin_channel.means["elsewhere", 500] = Refused("second", doubtful=True)
        await results.record(
            Answered(removed, push(ELSEWHERE), answer(500), retry_lane=results.twin, first=answer(400))
        )
        assert await results.state(leased.key) == ("gone", "the device is gone: second")

    @pytest.mark.parametrize("cause", ["no twin", "stopped", "too long"])
    async def test_push_is_not_tried_where_it_cannot_be_sent(self, results: Results, cause: str) -> None:
        if cause == "no twin":
            results.writer._lanes = {LANE: results.lane}  # noqa: SLF001 - an app without a sandbox
        results.twin.stopped = "wrong key" if cause == "stopped" else ""
        results.twin_channel.is_too_long = cause == "too long"
        with capture_logs() as logs:
            key = await self.tried(results, Refused("first"), Delivered())
        assert [each["event"] for each in logs] == ["push refused"]
        assert self.sent(results) == ([], [])
        assert await results.state(key) == ("refused", "refused: first")

    async def test_answer_is_recorded_if_the_second_try_fails(
        self, results: Results, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(results.twin, "transport", None)
        with capture_logs() as logs:
            key = await self.tried(results, Refused("first"), Delivered())
        assert await results.state(key) == ("refused", "refused: first")
        assert (logs[0]["event"], logs[0]["lane"], logs[0]["exc_info"]) == (
            "failed to retry push through another endpoint",
            LANE,
            True,
        )
