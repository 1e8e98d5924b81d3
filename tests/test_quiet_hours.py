"""Quiet hours follow local time, also across daylight saving changes."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.preferences import WINDOWS, ZONES, choosing, utc, window
from tocsin.errors import FieldError
from tocsin.preferences import SEND, Held, Muted
from tocsin.quiet_hours import DAYS, QuietHours, windows_of

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def is_quiet(windows: list[dict[str, Any]], wall: datetime) -> bool:
    """Return by definition whether local time is in a window of today or of yesterday."""
    return any(
        DAYS[day.weekday()] in each["days"] and start_of(day, each) <= wall < end_of(day, each)
        for each in windows
        for day in (wall.date(), wall.date() - DAY)
    )


def start_of(day: date, each: Mapping[str, Any]) -> datetime:
    return datetime.combine(day, time.fromisoformat(each["from"]))


def end_of(day: date, each: Mapping[str, Any]) -> datetime:
    return datetime.combine(day + (DAY if each["to"] < each["from"] else timedelta()), time.fromisoformat(each["to"]))


def minutes_from(moment: datetime) -> Iterator[datetime]:
    """Yield a moment and the full minutes after it, for as long as any quiet hours can last."""
    yield moment
    full = moment.replace(second=0, microsecond=0)
    yield from (full + number * MINUTE for number in range(1, 15 * 24 * 60))


def first_outside(windows: list[dict[str, Any]], moment: datetime, zone: ZoneInfo) -> datetime | None:
    """Return the first minute that is not quiet, by linear search."""
    for each in minutes_from(moment):
        if not is_quiet(windows, each.astimezone(zone).replace(tzinfo=None)):
            return each
    return None


@cache
def changes_of_the_clock(name: str) -> list[datetime]:
    """Return the days on which the offset changes, from 2020 to 2035."""
    zone, days = ZoneInfo(name), [utc("2020-01-01") + number * DAY for number in range(16 * 365)]
    offsets = [day.astimezone(zone).utcoffset() for day in days]
    return [day for day, before, after in zip(days, offsets, offsets[1:], strict=False) if before != after]


SECONDS = st.one_of(st.just(0), st.floats(0, 59.9))


@st.composite
def moments(draw: Callable[..., Any]) -> tuple[str, datetime]:
    """Draw a zone and a moment, half of them near a change of the offset."""
    zone = draw(st.sampled_from(ZONES))
    seconds = timedelta(seconds=draw(SECONDS))
    if (changes := changes_of_the_clock(zone)) and draw(st.booleans()):
        return zone, draw(st.sampled_from(changes)) + draw(st.integers(-24 * 60, 48 * 60)) * MINUTE + seconds
    return zone, utc("2020-01-01") + draw(st.integers(0, 16 * 365 * 24 * 60)) * MINUTE + seconds


@given(WINDOWS, moments())
@example([window("20:00", "02:30")], ("Europe/Copenhagen", utc("2026-03-29 00:10")))
@example([window("20:00", "02:30")], ("Europe/Copenhagen", utc("2026-10-25 00:31")))
@example([window("20:00", "01:45")], ("Australia/Lord_Howe", utc("2026-04-04 14:50")))
@example([window("00:00", "12:00"), window("12:00", "00:00")], ("UTC", utc("2026-03-02 00:00")))
@example([window("20:00", "07:30", "thu"), window("07:30", "12:00", "fri")], ("Pacific/Apia", utc("2011-12-30 08:00")))
def test_quiet_hours_follow_local_time(windows: list[dict[str, Any]], moment: tuple[str, datetime]) -> None:
    zone, now = moment
    decision = choosing(zone, quiet_hours=windows).decide("note", "push", now)
    until = first_outside(windows, now, ZoneInfo(zone))
    if until is None:
        assert decision == Muted("quiet hours all week")
    elif until == now:
        assert decision == SEND
    else:
        assert decision == Held(until, f"quiet hours until {until.astimezone(ZoneInfo(zone)):%H:%M}")
        assert decision.until.tzinfo is UTC


@given(WINDOWS, moments(), st.integers(-60, 20_000))
def test_pause_extends_into_quiet_hours_that_it_ends_in(
    windows: list[dict[str, Any]], moment: tuple[str, datetime], minutes: int
) -> None:
    zone, now = moment
    paused = now.replace(microsecond=0) + minutes * MINUTE
    chosen: dict[str, Any] = {"quiet_hours": windows, "paused_until": f"{paused:%Y-%m-%d %H:%M:%S}"}
    decision = choosing(zone, **chosen).decide("note", "push", now)
    if paused <= now:
        assert decision == choosing(zone, quiet_hours=windows).decide("note", "push", now)
    elif (until := QuietHours.of(windows).end(paused, ZoneInfo(zone))) is None:
        assert isinstance(decision, Muted)
    else:
        assert decision == Held(until, f"paused until {paused:%Y-%m-%d %H:%M:%S}")


@pytest.mark.parametrize(
    ("zone", "windows", "now", "until"),
    [
        ("UTC", [window("20:00", "07:30", "sun")], "2026-03-02 07:00", "2026-03-02 07:30"),  # a Monday
        ("UTC", [window("20:00", "07:30", "sun")], "2026-03-01 07:00", None),
        ("UTC", [window("20:00", "07:30", "mon")], "2026-03-02 07:00", None),
        ("UTC", [window("20:00", "07:30")], "2026-03-02 07:30", None),
        ("UTC", [window("20:00", "07:30")], "2026-03-02 07:30:30", None),
        ("UTC", [window("20:00", "07:30")], "2026-03-02 20:00", "2026-03-03 07:30"),
        ("UTC", [window("20:00", "00:00"), window("00:00", "06:00")], "2026-03-02 21:00", "2026-03-03 06:00"),
        ("UTC", [window("20:00", "07:00"), window("06:00", "09:00")], "2026-03-02 21:00", "2026-03-03 09:00"),
        ("UTC", [window("12:00", "11:59", "sun", "mon")], "2026-03-01 12:00", "2026-03-02 11:59"),
        ("Europe/Copenhagen", [window("20:00", "07:30")], "2026-03-28 20:00", "2026-03-29 05:30"),
        ("Europe/Copenhagen", [window("20:00", "07:30")], "2026-10-24 20:00", "2026-10-25 06:30"),
        ("Europe/Copenhagen", [window("20:00", "02:30")], "2026-03-28 20:00", "2026-03-29 01:00"),
        ("Europe/Dublin", [window("20:00", "07:30")], "2026-03-28 20:00", "2026-03-29 06:30"),
        ("Europe/Copenhagen", [window("02:15", "02:45")], "2026-03-29 01:00", None),
        ("Europe/Copenhagen", [window("02:15", "02:45")], "2026-10-25 00:20", "2026-10-25 00:45"),
        ("Europe/Copenhagen", [window("02:15", "02:45")], "2026-10-25 01:20", "2026-10-25 01:45"),
        ("Australia/Lord_Howe", [window("01:00", "02:15")], "2026-10-03 14:45", "2026-10-03 15:30"),
        ("Pacific/Apia", [window("20:00", "07:30")], "2011-12-30 07:00", "2011-12-30 17:30"),  # a day is skipped
    ],
)
def test_quiet_hours_end_is_exact(zone: str, windows: list[dict[str, Any]], now: str, until: str | None) -> None:
    decision = choosing(zone, quiet_hours=windows).decide("note", "push", utc(now))
    assert (decision.until if isinstance(decision, Held) else None) == (utc(until) if until else None)


EVERY_DAY = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


@pytest.mark.parametrize(
    ("given", "days"),
    [
        ({}, EVERY_DAY),
        ({"days": None}, EVERY_DAY),
        ({"days": ["sun"]}, ["sun"]),
        ({"days": ["sun", "mon", "sun"]}, ["mon", "sun"]),
        ({"days": EVERY_DAY[::-1]}, EVERY_DAY),
    ],
)
def test_window_starts_on_its_days_else_on_all(given: dict[str, Any], days: list[str]) -> None:
    errors: list[FieldError] = []
    times = {"from": "00:00", "to": "23:59"}
    assert windows_of([{**given, **times}], "quiet_hours", errors) == [{"days": days, **times}]
    assert errors == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ["array quiet_hours"]),
        ("at night", ["array quiet_hours"]),
        ([window("20:00", "07:00")] * 21, ["array_between quiet_hours"]),
        ([None, {}], ["object quiet_hours.0", "required quiet_hours.1.from", "required quiet_hours.1.to"]),
        ([window("20:00", "20:00")], ["in quiet_hours.0.to"]),
        ([{"days": [], "from": "20:00", "to": "07:00"}], ["array_between quiet_hours.0.days"]),
        ([{"days": ["mon"] * 8, "from": "20:00", "to": "07:00"}], ["array_between quiet_hours.0.days"]),
        ([{"days": "mon", "from": "20:00", "to": "07:00"}], ["array quiet_hours.0.days"]),
        (
            [{"days": ["mon", 1, "Mon", "sunday"], "from": "20:00", "to": "07:00"}],
            ["in quiet_hours.0.days.1", "in quiet_hours.0.days.2", "in quiet_hours.0.days.3"],
        ),
        ([{"from": "24:00", "to": "24:00"}], ["regex quiet_hours.0.from", "regex quiet_hours.0.to"]),
        ([{"from": "23:60", "to": "7:00"}], ["regex quiet_hours.0.from", "regex quiet_hours.0.to"]),
        ([{"from": 20, "to": "07:00\n"}], ["string quiet_hours.0.from", "regex quiet_hours.0.to"]),
    ],
)
def test_invalid_windows_are_reported_with_code_and_place(given: Any, expected: list[str]) -> None:
    errors: list[FieldError] = []
    windows_of(given, "quiet_hours", errors)
    assert [f"{error.code} {error.field}" for error in errors] == expected


def test_unknown_fields_of_a_window_are_ignored() -> None:
    errors: list[FieldError] = []
    found = windows_of([{**window("20:00", "07:00"), "colour": "red"}], "quiet_hours", errors)
    assert (found, errors) == ([window("20:00", "07:00")], [])


@pytest.mark.parametrize(
    ("windows", "spans"),
    [
        (
            [window("20:00", "07:00", "mon"), window("06:00", "08:00", "tue")],
            [(20 * 60, 1440 + 8 * 60)],
        ),
        ([window("20:00", "00:00", "sun")], [(6 * 1440 + 20 * 60, 7 * 1440)]),
        ([window("20:00", "07:00", "sun")], [(0, 7 * 60), (6 * 1440 + 20 * 60, 7 * 1440)]),
        ([window("18:00", "12:00"), window("12:00", "18:00")], [(0, 7 * 1440)]),
    ],
)
def test_windows_are_joined_to_spans_of_the_week(windows: list[dict[str, Any]], spans: list[tuple[int, int]]) -> None:
    quiet = QuietHours.of(windows)
    assert quiet.windows == windows
    assert quiet.spans == tuple(spans)


def test_end_of_quiet_hours_is_in_utc_whatever_the_moment_is_in() -> None:
    tokyo = ZoneInfo("Asia/Tokyo")
    quiet = QuietHours.of([window("20:00", "07:00")])
    for moment, end in (("2026-03-02 06:30", "2026-03-02 07:00"), ("2026-03-02 12:00", "2026-03-02 12:00")):
        found = quiet.end(utc(moment).astimezone(tokyo), ZoneInfo("UTC"))
        assert found == utc(end)
        assert found.tzinfo is UTC
