"""Preferences, and quiet hours for property tests."""

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from tests.support.built_in import CATALOGUE
from tocsin.preferences import Operator, Preferences
from tocsin.quiet_hours import DAYS

OPERATOR = Operator(CATALOGUE)


ZONES = [
    *("Europe/Copenhagen", "Europe/Dublin", "America/New_York", "America/St_Johns", "America/Santiago"),
    *("Australia/Lord_Howe", "Antarctica/Troll", "Pacific/Chatham", "Pacific/Apia", "Pacific/Kiritimati"),
    *("America/Havana", "Asia/Beirut", "Africa/Cairo", "Africa/Casablanca", "Africa/El_Aaiun", "Asia/Gaza"),
    *("Asia/Tehran", "Asia/Amman", "America/Sao_Paulo", "America/Nuuk", "Asia/Kolkata", "Asia/Kathmandu", "UTC"),
]
"""Zones whose offset changes by an hour, half an hour or two hours, at midnight, for a month, no longer, or never."""


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def window(start: str, end: str, *days: str) -> dict[str, Any]:
    return {"days": list(days or DAYS), "from": start, "to": end}


def choosing(zone: str = "Europe/Copenhagen", **chosen: Any) -> Preferences:
    return OPERATOR.preferences(chosen, zone)


TIMES = st.one_of(
    st.times().map(lambda found: f"{found:%H:%M}"),
    st.sampled_from(["00:00", "00:30", "01:00", "01:30", "02:00", "02:15", "02:30", "03:00", "23:30", "23:59"]),
)


WINDOWS = st.lists(
    st.builds(
        lambda days, start, end: window(start, end, *(day for day in DAYS if day in days)),
        st.one_of(st.just(set(DAYS)), st.sets(st.sampled_from(DAYS), min_size=1)),
        TIMES,
        TIMES,
    ).filter(lambda found: found["from"] != found["to"]),
    max_size=4,
)
