"""Quiet hours: windows of the week in a user's local time.

It is quiet whenever the local time is inside a window. An hour that a change of the clock skips has no effect, and one
that it repeats is quiet twice.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from math import ceil
from operator import itemgetter
from typing import Any

from tocsin.errors import FieldError
from tocsin.validation import field_error

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
TIME_OF_DAY = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
MAX_WINDOWS = 20
"""Maximum number of windows."""

FIELDS = ("days", "from", "to")
"""The fields of a window."""

_TIME = re.compile(TIME_OF_DAY)
_DAY = 24 * 60
_WEEK = 7 * _DAY
_STEP = timedelta(days=1)
"""The step of the search for changes of the clock; no clock changes twice within it."""

Window = Mapping[str, Any]
"""The `days` on which it starts, and the times `from` and `to`; `to` is on the next day if it is not later."""


@dataclass(frozen=True, slots=True)
class QuietHours:
    """All windows together. `spans` are the quiet minutes of a week, from Monday, joined and in order."""

    windows: Sequence[Window]
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, windows: Sequence[Window]) -> "QuietHours":
        """Join valid windows that overlap or touch."""
        joined: list[tuple[int, int]] = []
        for start, end in sorted(span for window in windows for span in _spans_of(window)):
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(end, joined[-1][1])
            else:
                joined.append((start, end))
        return cls(windows, tuple(joined))

    def end(self, moment: datetime, zone: tzinfo) -> datetime | None:
        """Return the first time from `moment` that is not quiet, in UTC; None if there is none."""
        if self.spans == ((0, _WEEK),):
            return None
        moment = moment.astimezone(UTC)
        while left := self._left(moment.astimezone(zone)):
            moment = _carried(moment, min(left, _STEP), zone)
        return moment

    def _left(self, wall: datetime) -> timedelta:
        """Return how long it is quiet in local time, without changes of the clock."""
        minute = wall.weekday() * _DAY + wall.hour * 60 + wall.minute
        position = bisect_right(self.spans, minute, key=itemgetter(0)) - 1
        if position < 0 or minute >= self.spans[position][1]:
            return timedelta()
        begun = timedelta(minutes=minute, seconds=wall.second, microseconds=wall.microsecond)
        return timedelta(minutes=self.spans[position][1]) - begun


def windows_of(given: Any, field: str, field_errors: list[FieldError]) -> list[Window]:
    """Return the given windows, each with its days, without unknown fields; add errors to `field_errors`."""
    if not isinstance(given, list):
        field_errors.append(field_error(field, "array", "must be an array"))
    elif len(given) > MAX_WINDOWS:
        field_errors.append(field_error(field, "array_between", f"must have at most {MAX_WINDOWS} entries"))
    else:
        return [_window_of(each, f"{field}.{position}", field_errors) for position, each in enumerate(given)]
    return []


def _window_of(given: Any, field: str, field_errors: list[FieldError]) -> Window:
    if not isinstance(given, dict):
        field_errors.append(field_error(field, "object", "must be an object"))
        return {}
    days = _days_of(given.get("days"), f"{field}.days", field_errors)
    start, end = (_time_of_day(given.get(name), f"{field}.{name}", field_errors) for name in ("from", "to"))
    if start and start == end:
        field_errors.append(field_error(f"{field}.to", "in", "must not be the same as from"))
    return {"days": days, "from": start, "to": end}


def _days_of(given: Any, field: str, field_errors: list[FieldError]) -> list[str]:
    if given is None:
        return list(DAYS)
    if not isinstance(given, list):
        field_errors.append(field_error(field, "array", "must be an array"))
        return []
    if not 1 <= len(given) <= len(DAYS):
        field_errors.append(
            field_error(field, "array_between", f"must have 1 to {len(DAYS)} entries; leave it out for all days")
        )
        return []
    wrong = [position for position, day in enumerate(given) if not isinstance(day, str) or day not in DAYS]
    field_errors += [
        field_error(f"{field}.{position}", "in", f"must be one of {', '.join(DAYS)}") for position in wrong
    ]
    return [] if wrong else [day for day in DAYS if day in given]


def _time_of_day(given: Any, field: str, field_errors: list[FieldError]) -> str:
    if given is None:
        field_errors.append(field_error(field, "required", "is required"))
    elif not isinstance(given, str):
        field_errors.append(field_error(field, "string", "must be a string"))
    elif not _TIME.fullmatch(given):
        field_errors.append(field_error(field, "regex", "must be a time of day from 00:00 to 23:59"))
    else:
        return given
    return ""


def _spans_of(window: Window) -> Iterator[tuple[int, int]]:
    """Yield the minutes of a week in a window, in two parts if it crosses the end of the week."""
    start, end = (int(window[name][:2]) * 60 + int(window[name][3:]) for name in ("from", "to"))
    length = (end - start) % _DAY
    for day in window["days"]:
        begins = DAYS.index(day) * _DAY + start
        yield begins, min(begins + length, _WEEK)
        if begins + length > _WEEK:
            yield 0, begins + length - _WEEK


def _carried(moment: datetime, by: timedelta, zone: tzinfo) -> datetime:
    """Return the time after a duration, or an earlier one at which the clock changes."""
    offset = moment.astimezone(zone).utcoffset()
    if (moment + by).astimezone(zone).utcoffset() == offset:
        return moment + by
    before, after = int(moment.timestamp()), ceil((moment + by).timestamp())
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return datetime.fromtimestamp(after, UTC)
