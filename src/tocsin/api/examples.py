"""Examples of request and response bodies for the API document, by the names of their schemas."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from tocsin.api.preferences import shown as shown_kind
from tocsin.catalogue import ENGLISH, Catalogue
from tocsin.preferences import Operator
from tocsin.push.deliveries import STATES

Examples = dict[str, Any]

CREATED = "2026-03-02 09:30:00"

EXAMPLES: dict[str, Examples] = json.loads((files("tocsin.api") / "examples.json").read_text("utf-8"))
"""The named examples of the schemas that do not depend on the catalogue."""

_INBOX = "https://notify.example.com/notifications"
_CURSOR = "64c1a3f2b8e40-17"


def examples(catalogue: Catalogue) -> dict[str, Examples]:
    """Return the named examples of each schema. Examples of kinds are the samples of the catalogue."""
    shown = {
        name: notification(sample, position) for position, (name, sample) in enumerate(catalogue.samples.items(), 1)
    }
    operator, kind = Operator(catalogue), next(iter(catalogue.kinds.values()))
    events = {name: sample["event"] for name, sample in catalogue.samples.items()}
    return {
        "NewEvent": {**events, "with_everything": _with_everything(next(iter(events.values())))},
        "NewBatch": {"two": {"events": [*events.values()][:2]}},
        "Notification": shown,
        "Page": {"two": _page([*shown.values()][:2])},
        "Changes": _changes(next(iter(shown.values()))),
        "EventStatus": _events(next(iter(events.values()))["type"]),
        "Kinds": {"one": {"data": [shown_kind(catalogue, operator, kind, ENGLISH)]}},
        "PreferencesPatch": _changes_of_preferences(kind.name),
        "Preferences": {"some": operator.preferences(_chosen(kind.name), "UTC").shown(datetime.now(UTC))},
        **EXAMPLES,
    }


def notification(sample: Mapping[str, Any], position: int = 1) -> dict[str, Any]:
    """Return the notification of a sample as in an inbox."""
    return {"id": uuid(position), **sample["notification"], "read": False, "read_at": None, "created_at": CREATED}


def uuid(position: int) -> str:
    """Return the id of an event and its notification."""
    return f"0195d3f0-4c00-7000-8000-{position:012x}"


def _page(shown: list[dict[str, Any]]) -> dict[str, Any]:
    urls = {"previous": None, "next": f"{_INBOX}?per_page=2&page=2&cursor=17"}
    return {"data": shown, "pagination": {"total": 5, "page": 1, "per_page": 2, "urls": urls, "unread": 3}}


def _changes(shown: dict[str, Any]) -> Examples:
    return {
        "some": {
            "data": [
                {"event": "notification", "data": shown},
                {"event": "read", "data": {"id": uuid(2)}},
                {"event": "read", "data": {"all": True, "up_to": uuid(3)}},
            ],
            "unread": 3,
            "cursor": _CURSOR,
            "more": False,
        },
        "without_since": {"cursor": _CURSOR},
        "too_long_ago": {"resync": True, "cursor": _CURSOR},
    }


def _events(type_: str) -> Examples:
    pushes = {**dict.fromkeys(STATES, 0), "delivered": 2, "muted": 1}
    delivered = {"id": uuid(1), "type": type_, "state": "delivered", "recipients": 2, "read": 1, "dropped": 0}
    delivered["pushes"] = pushes
    failed = {**delivered, "state": "failed", "recipients": 0, "read": 0, "pushes": dict.fromkeys(STATES, 0)}
    return {
        "delivered": delivered,
        "failed": {**failed, "reason": f"the catalogue has no kind {type_} any more"},
        "cancelled": {**failed, "state": "cancelled", "reason": "cancelled by an operator: console"},
    }


def _changes_of_preferences(kind: str) -> Examples:
    return {
        "some": _chosen(kind),
        "every_night": {"quiet_hours": [{"from": "22:00", "to": "07:00"}]},
        "pause": {"paused_until": "2026-03-02T10:30:00+01:00"},
        "back_to_the_defaults": {"kinds": {kind: None}, "quiet_hours": None, "paused_until": None, "time_zone": None},
    }


def _chosen(kind: str) -> dict[str, Any]:
    return {
        "kinds": {kind: {"push": False, "urgent": True}},
        "quiet_hours": [{"days": ["mon", "sun"], "from": "20:00", "to": "07:30"}],
        "time_zone": "Europe/Copenhagen",
    }


def _with_everything(event: dict[str, Any]) -> dict[str, Any]:
    return {
        **event,
        "notify": {"users": [2], "teams": [7], "except": [3], "unknown": "skip"},
        "id": uuid(1),
        "key": "order-42-reminder",
        "deliver_at": "2026-03-02T10:30:00+01:00",
        "about": ["order:42"],
    }
