"""The history of metrics: a row per minute and process, and points of all processes together."""

import math
from typing import Any

import pytest

from tests.support.database import renamed
from tests.support.events import custom
from tests.support.service import Api, serving
from tocsin import history
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.history import MAX_MINUTES, Recorder, quantile
from tocsin.metrics import BUCKET_BOUNDS, Metrics
from tocsin.push.channels import Delivered, Later
from tocsin.retention import run_once


def busy(metrics: Metrics, events: int, seconds: float) -> None:
    """Count some of everything."""
    for _ in range(events):
        metrics.inbox(seconds)
    metrics.push("apns/default", "delivered", seconds)
    metrics.push("apns/default", "refused", seconds)
    metrics.answer("apns/default", Delivered())
    metrics.answer("apns/default/sandbox", Later("503"))
    metrics.answer("fcm/default", Later("503"))
    metrics.request("GET", "/notifications", 200, 0.01)
    metrics.request("GET", "/notifications", 503, 0.01)
    metrics.rate_limited("user-requests")


async def last_point(database: Database) -> dict[str, Any]:
    [point] = await history.read(database, MAX_MINUTES)
    return point


async def in_one_minute(database: Database) -> None:
    """Move all rows to one minute, and let each stand for exactly a minute."""
    await database.value("update metric_minutes set minute = date_trunc('minute', now()), seconds = 60")


async def test_history_adds_up_the_processes_of_a_minute(database: Database) -> None:
    one, other = Metrics(), Metrics()
    recorders = [Recorder(database, metrics) for metrics in (one, other)]
    busy(one, 30, 0.002)
    busy(other, 90, 0.002)
    for recorder in recorders:
        await recorder.record()
    await in_one_minute(database)
    point = await last_point(database)
    assert point["processes"] == 2
    assert (point["events"], point["pushes"], point["requests"]) == pytest.approx((2, 2 / 60, 4 / 60))
    assert (point["api_errors"], point["rate_limited"]) == (2, 2)
    assert point["push_errors"] == {"apns": 2, "fcm": 2}
    assert 0.001 < point["inbox_seconds"]["p50"] < point["inbox_seconds"]["p99"] <= 0.0025


async def test_minutes_of_a_clock_that_was_ahead_are_left_out_and_deleted(database: Database) -> None:
    for further in ("9 days", "2 hours", "0 hours"):
        await Recorder(database, Metrics()).record()
        await database.value("update metric_minutes set minute = minute + $1::text::interval", further)
    assert (await last_point(database))["processes"] == 1
    assert (await run_once(database, None))["metric_minutes"] == 2
    assert (await last_point(database))["processes"] == 1


async def test_each_row_has_the_growth_since_the_last_one(database: Database) -> None:
    metrics = Metrics()
    busy(metrics, 7, 0.2)  # before the recorder
    recorder = Recorder(database, metrics)
    busy(metrics, 3, 0.2)
    await recorder.record()
    rows = await database.rows("select events, inbox_buckets from metric_minutes")
    assert [(row["events"], row["inbox_buckets"][-1]) for row in rows] == [(3, 3)]
    await database.value("update metric_minutes set minute = minute - interval '1 hour'")
    await recorder.record()
    assert await database.value("select events from metric_minutes order by minute desc limit 1") == 0


async def test_growth_of_a_minute_whose_row_failed_is_in_the_next_row(database: Database, dba: Connection) -> None:
    metrics = Metrics()
    recorder = Recorder(database, metrics)
    busy(metrics, 5, 0.2)
    async with renamed(dba, "metric_minutes"):
        with pytest.raises(Exception, match="metric_minutes"):
            await recorder.record()
    await recorder.record()
    assert await database.value("select events from metric_minutes") == 5


async def test_two_rows_of_a_process_in_one_minute_are_added_up(database: Database) -> None:
    metrics = Metrics()
    recorder, rows = Recorder(database, metrics), 0
    while rows != 1:  # two, if the minute ends in between
        await database.value("delete from metric_minutes")
        for _ in range(2):
            busy(metrics, 1, 0.2)
            await recorder.record()
        rows = await database.value("select count(*) from metric_minutes")
    row = await database.row("select events, requests from metric_minutes")
    assert row
    assert (row["events"], row["requests"]) == (2, 4)
    assert (await last_point(database))["push_errors"] == {"apns": 2, "fcm": 2}


async def test_history_contains_what_waits_in_the_database(url: str, catalogue: Catalogue) -> None:
    async with serving(url, catalogue, with_worker=False) as api:
        await api.people(1)
        for _ in range(2):
            assert (await api.as_service("POST", "/events", json=custom(1))).status_code == 202
        await Recorder(api.app_state.database, Metrics()).record()
        answer = await api.as_service("GET", "/operations/history", "operations:read")
        [point] = answer.json()["data"]
        assert point["jobs_due"] == {"direct": 2, "bulk": 0}
        assert (point["oldest_job"]["direct"] > 0, point["oldest_job"]["bulk"]) == (True, 0)
        assert point["push_seconds"] == {"p50": None, "p95": None, "p99": None}
        await api.app_state.database.value("delete from jobs")


async def test_history_has_at_most_a_day(api: Api) -> None:
    database = api.app_state.database
    recorder = Recorder(database, Metrics())
    await recorder.record()
    await database.value(
        "insert into metric_minutes select minute - make_interval(mins => nth), process_id, seconds, events, pushes,"
        " requests, api_errors, rate_limited, providers, push_errors, inbox_buckets, push_buckets, direct_due,"
        " bulk_due, pushes_due, direct_oldest, bulk_oldest from metric_minutes cross join generate_series(1, 2000) nth"
    )
    answer = await api.as_service("GET", "/operations/history", "operations:read")
    points = answer.json()["data"]
    assert MAX_MINUTES - 1 <= len(points) <= MAX_MINUTES + 1
    assert [point["at"] for point in points] == sorted(point["at"] for point in points)
    assert len(answer.content) < 1_000_000
    few = await api.as_service("GET", "/operations/history?minutes=10", "operations:read")
    assert few.json()["data"] == points[-len(few.json()["data"]) :]
    for minutes in ("0", "1441", "x", ""):
        refused = await api.as_service("GET", f"/operations/history?minutes={minutes}", "operations:read")
        assert [each["field"] for each in refused.json()["errors"]] == ["minutes"]
    gone = await run_once(database, None)
    assert 550 <= gone["metric_minutes"] <= 570
    kept = (await api.as_service("GET", "/operations/history", "operations:read")).json()["data"]
    assert kept == points[-len(kept) :]
    assert len(kept) >= len(points) - 2, "a minute may have ended since"


async def test_histograms_of_another_release_are_left_out(database: Database) -> None:
    metrics = Metrics()
    recorder = Recorder(database, metrics)
    busy(metrics, 5, 0.2)
    await recorder.record()
    await database.value("update metric_minutes set inbox_buckets = '{1,2}'")
    point = await last_point(database)
    assert (point["inbox_seconds"]["p50"], point["push_errors"]) == (None, {"apns": 1, "fcm": 1})


def test_quantile_is_estimated_between_the_bounds_of_its_bucket() -> None:
    assert BUCKET_BOUNDS[-1] == math.inf
    counts = [0] * len(BUCKET_BOUNDS)
    assert quantile(0.5, counts) is None
    assert quantile(0.5, ()) is None
    counts[1:] = [10] * (len(counts) - 1)  # ten between the first two bounds
    low, high = BUCKET_BOUNDS[:2]
    assert quantile(0.5, counts) == pytest.approx((low + high) / 2)
    assert quantile(1, counts) == pytest.approx(high)
    beyond = [0] * (len(counts) - 1) + [3]
    assert quantile(0.5, beyond) == BUCKET_BOUNDS[-2], "above the last bound there is nothing to estimate"
