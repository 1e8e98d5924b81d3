"""Retries of pushes: schedule, Retry-After, expiry, and leases."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from tests.support.events import custom, post
from tests.support.pushes import ANDROID, IPHONE, becomes, due_in, hurry, push_report, pushes_of, register
from tests.support.service import Api
from tests.support.waiting import until
from tocsin.push import deliveries
from tocsin.push.channels.apns import Apns
from tocsin.push.channels.fcm import Fcm
from tocsin.push.channels.web_push import WebPush
from tocsin.push.deliveries import DeliveryKey, Settled, next_try
from tocsin_phones import Phones

SCHEDULE = [5, 30, 120, 600, 1800, 3600, 3600, 3600]
DAY = timedelta(hours=24)
SLACK = timedelta(milliseconds=1)


@pytest.fixture
def api(pushing: Api) -> Api:
    return pushing


def waits(attempts: int, after: float | None, min_retry: float, times: int = 300) -> tuple[float, float]:
    """Return the shortest and the longest of this number of delays, in seconds."""
    found = []
    for _ in range(times):
        now = datetime.now(UTC)
        due_at = next_try(attempts, after, min_retry, now, now + 2 * DAY)
        assert due_at
        found.append((due_at - now).total_seconds())
    return min(found), max(found)


@pytest.mark.parametrize("attempts", range(1, 9))
@pytest.mark.parametrize("channel", [Apns, Fcm, WebPush])
def test_retry_steps_are_5s_30s_2m_10m_30m_1h_and_fcm_starts_at_10s(
    attempts: int, channel: type[Apns | Fcm | WebPush]
) -> None:
    step = max(SCHEDULE[attempts - 1], 10 if channel is Fcm else 0)
    shortest, longest = waits(attempts, None, channel.min_retry_delay)
    assert step <= shortest
    assert longest <= step * 1.1 + 0.1


def test_retry_jitter_adds_up_to_10_percent() -> None:
    shortest, longest = waits(3, None, 0.0)
    assert 120 <= shortest < 122
    assert 130 < longest < 132.1


@pytest.mark.parametrize("attempts", [1, 5, 9])
@pytest.mark.parametrize(
    ("after", "min_retry", "step"), [(2.0, 0.0, 2), (90.0, 0.0, 90), (2.0, 10.0, 10), (90.0, 10.0, 90)]
)
def test_retry_after_replaces_the_retry_step(attempts: int, after: float, min_retry: float, step: float) -> None:
    shortest, longest = waits(attempts, after, min_retry)
    assert step <= shortest
    assert longest <= step * 1.1 + 0.1


def test_no_retry_is_scheduled_after_expiry() -> None:
    now = datetime.now(UTC)
    assert next_try(1, None, 0.0, now, now + timedelta(seconds=4)) is None
    assert next_try(1, None, 0.0, now, now + timedelta(seconds=7)) is not None


@pytest.mark.parametrize(
    ("provider", "steps"), [("apns", [5, 30, 120, 600]), ("fcm", [10, 30, 120, 600])], ids=["apns", "fcm"]
)
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "77"}], ids=["on its own", "Retry-After"])
async def test_failing_provider_gets_exponential_backoff(
    api: Api, phones: Phones, provider: str, steps: list[float], headers: dict[str, str]
) -> None:
    await register(
        api,
        1,
        *((IPHONE,) if provider == "apns" else (ANDROID,)),
        **({} if provider == "apns" else {"type": "Android"}),
    )
    phones.answer(provider, status=503, headers=headers, times=len(steps))
    for attempt, step in enumerate(steps, 1):
        since = datetime.now(UTC)
        if attempt == 1:
            await post(api, custom(1))
        else:
            await hurry(api)
        least, most = await due_in(api, since, attempt)
        wait = timedelta(seconds=77 if headers else step)
        assert most >= wait - SLACK
        assert least <= wait * 1.1 + SLACK


async def test_lane_waits_as_long_as_its_provider_asks(api: Api, phones: Phones) -> None:
    await register(api, 1, ANDROID, type="Android")
    await register(api, 2, IPHONE)
    phones.answer("fcm", status=429, reason="QUOTA_EXCEEDED", headers={"Retry-After": "300"}, times=1)
    await post(api, custom(1))
    lane = next(lane for lane in api.app_state.lanes if lane.name == "fcm/default")
    await until(lambda: lane.remaining)
    assert 200 < lane.remaining <= 300
    assert lane.waits_because.startswith("429")
    await hurry(api)
    await pushes_of(api, await api.post(custom(2)))  # another lane does not wait
    assert len(phones.pushes("apns", IPHONE)) == 1
    assert len(phones.pushes("fcm", ANDROID)) == 1


async def test_push_expires_after_24_hours_at_the_provider_too(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    await register(api, 1, ANDROID, type="Android")
    before = datetime.now(UTC)
    assert await pushes_of(api, await api.post(custom(1))) == {"delivered": 2}
    [apple] = phones.pushes("apns", IPHONE)
    expires = datetime.fromtimestamp(int(apple["headers"]["apns-expiration"]), UTC)
    assert before + DAY - timedelta(seconds=1) <= expires <= datetime.now(UTC) + DAY
    [google] = phones.pushes("fcm", ANDROID)
    ttl = int(google["payload"]["message"]["android"]["ttl"].removesuffix("s"))
    assert DAY.total_seconds() - 60 <= ttl <= DAY.total_seconds()


async def made_ago(api: Api, ago: timedelta) -> None:
    """Set the age of all waiting deliveries."""
    await until(
        lambda: api.app_state.database.value("select 1 from deliveries where state = 'later' and worker_id is null")
    )
    await api.app_state.database.value("update deliveries set made_at = now() - $1::interval", ago)


@pytest.mark.parametrize(
    ("ago", "state", "count"),
    [(timedelta(hours=23, minutes=59), "delivered", 2), (timedelta(hours=24, seconds=1), "dead", 1)],
)
async def test_expired_push_is_not_sent(api: Api, phones: Phones, ago: timedelta, state: str, count: int) -> None:
    await register(api, 1, IPHONE)
    phones.answer("apns", status=503, times=1)
    id_ = (await post(api, custom(1))).json()["id"]
    await made_ago(api, ago)
    await hurry(api)
    await becomes(api, id_, {state: 1})
    assert len(phones.pushes("apns", IPHONE)) == count


async def test_push_is_dead_when_its_next_retry_would_be_after_its_expiry(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    phones.answer("apns", status=503, reason="ServiceUnavailable", headers={"Retry-After": "7200"}, times=2)
    id_ = (await post(api, custom(1))).json()["id"]
    await made_ago(api, timedelta(hours=23))
    await hurry(api)
    await becomes(api, id_, {"dead": 1})
    assert await push_report(api, id_) == ["dead: given up: 503 ServiceUnavailable"]
    assert len(phones.pushes("apns", IPHONE)) == 2


async def test_push_set_aside_for_bad_token_is_dead_after_24_hours(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    for provider in ("apns", "apns-sandbox"):
        phones.answer(provider, status=400, reason="BadDeviceToken")
    id_ = (await post(api, custom(1))).json()["id"]
    await made_ago(api, timedelta(hours=23, minutes=55))
    await hurry(api)
    await becomes(api, id_, {"dead": 1})
    assert await push_report(api, id_) == ["dead: given up: 400 BadDeviceToken"]
    assert len(phones.pushes("apns", IPHONE)) == 2


@pytest.mark.parametrize("ago", [timedelta(hours=1), timedelta(hours=-1)], ids=["gone before", "gone after"])
async def test_device_registered_after_unregistered_timestamp_is_kept(api: Api, phones: Phones, ago: timedelta) -> None:
    await register(api, 1, IPHONE)
    milliseconds = int((datetime.now(UTC) - ago).timestamp() * 1000)
    phones.answer("apns", status=410, reason="Unregistered", timestamp=milliseconds, times=1)
    id_ = await api.post(custom(1))
    assert await pushes_of(api, id_) == {"gone": 1}
    devices = (await api.as_user(1, "GET", "/notifications/devices")).json()["data"]
    assert len(devices) == (1 if ago > timedelta() else 0)


async def test_registration_during_a_push_keeps_the_device(api: Api, phones: Phones) -> None:
    await register(api, 1, ANDROID, type="Android")
    phones.answer("fcm", status=404, reason="UNREGISTERED", after_ms=400, times=1)
    id_ = (await post(api, custom(1))).json()["id"]
    await until(lambda: phones.pushes("fcm", ANDROID))
    await register(api, 1, ANDROID, type="Android")
    await becomes(api, id_, {"gone": 1})
    assert len((await api.as_user(1, "GET", "/notifications/devices")).json()["data"]) == 1


async def test_only_the_lease_holder_can_settle_or_release_a_delivery(api: Api, phones: Phones) -> None:
    await register(api, 1, IPHONE)
    phones.answer("apns", status=503, times=1)
    id_ = UUID((await post(api, custom(1))).json()["id"])
    database = api.app_state.database
    await until(lambda: database.value("select 1 from deliveries where state = 'later' and worker_id is null"))
    device, owner, other = await database.value("select id from devices"), uuid4(), uuid4()
    await database.value("update deliveries set worker_id = $1", owner)
    settled = Settled(DeliveryKey(id_, device), "delivered", None, "delivered")
    await deliveries.settle(database, other, [settled])
    await deliveries.put_back(database, other, [settled.key])
    row = await database.row("select state, worker_id from deliveries")
    assert row is not None
    assert (row["state"], row["worker_id"]) == ("later", owner)
    await deliveries.settle(database, owner, [settled])
    row = await database.row("select state, worker_id from deliveries")
    assert row is not None
    assert (row["state"], row["worker_id"]) == ("delivered", None)
