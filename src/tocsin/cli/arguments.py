"""Durations, times, ids and numbers of processes as arguments of commands."""

import contextlib
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from tocsin.errors import Refusal
from tocsin.ids import parsed_uuid

MAX_PROCESSES = 64
"""Maximum processes of `tocsin serve`."""

Cell = Annotated[str | None, typer.Option(metavar="NAME", help="The cell. Default: the default cell.")]

_DURATION = re.compile(r"([1-9]\d{0,5})([smhd])")
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_folder(text: str) -> Path:
    """Read the path of a folder. An empty one, as of a variable that is not set, would be the current folder."""
    if not text:
        raise Refusal("The folder is empty: name one; `.` is the current folder.")
    return Path(text)


def parse_duration(text: str) -> timedelta:
    """Read a duration such as 90s, 15m, 1h or 30d. Raises `Refusal`."""
    found = _DURATION.fullmatch(text)
    if not found:
        raise Refusal(f"{text!r} is not a duration: write it like 90s, 15m, 1h or 30d.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def parse_event_id(text: str) -> UUID:
    """Read the id of an event. Raises `Refusal`."""
    found = parsed_uuid(text)
    if found is None:
        raise Refusal(f"{text!r} is not the id of an event.")
    return found


def parse_time(text: str) -> datetime:
    """Read a time of today in UTC (10:00), or a duration before now (12h). Raises `Refusal`."""
    now = datetime.now(UTC)
    clock = _CLOCK.fullmatch(text)
    if clock:
        return now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
    if not _DURATION.fullmatch(text):
        raise Refusal(f"{text!r} is not a time: write it like 10:00 (today, UTC), or 90m, 12h or 3d ago.")
    with contextlib.suppress(OverflowError):
        return now - parse_duration(text)
    raise Refusal(f"{text!r} ago is before the year 1.")


def parse_moment(text: str) -> datetime:
    """Read a date and time such as 2026-11-28 18:05:00, in UTC unless it has an offset. Raises `Refusal`."""
    if _MOMENT.match(text):
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(text)
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    raise Refusal(f"{text!r} is not a time: write it like '2026-11-28 18:05:00' (UTC), or with an offset (+01:00).")


def parse_processes(text: str) -> int:
    """Read a number of processes; `auto` is the number of processors that this one may use. Raises `Refusal`."""
    if text == "auto":
        return min(len(os.sched_getaffinity(0)), MAX_PROCESSES)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= MAX_PROCESSES:
        raise Refusal(f"{text!r} is not a number of processes: use 1 to {MAX_PROCESSES}, or auto.")
    return int(text)
