"""Examples of request and response bodies for the API document, by the names of their schemas."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tocsin.api.preferences import shown as shown_kind
from tocsin.catalogue import ENGLISH, Catalogue
from tocsin.formats import User
from tocsin.preferences import Operator
from tocsin.push.deliveries import STATES

Examples = dict[str, Any]

CREATED = "2026-03-02 09:30:00"
READ = "2026-03-02 09:41:17"
TOKEN = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"  # noqa: S105 - not a secret

_INBOX = "https://notify.example.com/notifications"
_CURSOR = "64c1a3f2b8e40-17"
_USER = {"first_name": "Bernita", "last_name": "Kilback", "profile_picture": None, "email": "bernita@example.com"}
_PLACE = {"company_id": 1, "locale": "da-DK", "time_zone": "Europe/Copenhagen", "active": True}
_BERNITA = User.model_validate({"id": 4, **_USER, **_PLACE}).model_dump()
_TEAM = {"name": "Sales", "company_id": 1}


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
        "Event": _events(next(iter(events.values()))["type"]),
        "Kinds": {"one": {"data": [shown_kind(catalogue, operator, kind, ENGLISH)]}},
        "PreferencesPatch": _changes_of_preferences(kind.name),
        "Preferences": {"some": operator.preferences(_chosen(kind.name), "UTC").shown(datetime.now(UTC))},
        **OF_THE_REST,
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


_DEVICE_FOUND = {
    "type": "iOS",
    "environment": "production",
    "app": "default",
    "lane": "apns/default",
    "token_ending": TOKEN[-6:],
    "registered_at": CREATED,
    "last_delivered_at": None,
}
_RECIPIENT = {
    "event_id": uuid(1),
    "user_id": 4,
    "recipient": True,
    "why": "a member of team 7",
    "team_id": 7,
    "delivered_at": CREATED,
    "read_at": READ,
    "deleted_at": None,
    "devices": [
        {
            "type": "iOS",
            "token_ending": TOKEN[-6:],
            "lane": "apns/default",
            "state": "held",
            "attempts": 1,
            "settled_at": None,
            "what": "held until 2026-03-03 06:30 UTC: quiet hours until 07:30",
        }
    ],
}

OF_THE_REST: dict[str, Examples] = {
    "Links": {"two": {"data": {uuid(1): "https://crm.example.com/cases/7", uuid(2): None}}},
    "NewCustom": {"custom": {"message": "This is a custom notification", "notify": {"users": [1, 54, 23]}}},
    "Marks": {"all": {}, "up_to": {"up_to": uuid(3)}, "some": {"ids": [uuid(1), uuid(2)]}},
    "DeviceBody": {
        "iphone": {},
        "android": {"type": "Android"},
        "with_everything": {
            "type": "iOS",
            "environment": "sandbox",
            "app": "crm",
            "provider": "apns",
            "replaces": TOKEN[::-1],
        },
    },
    "DeviceWithToken": {"iphone": {"token": TOKEN}},
    "Devices": {
        "one": {
            "data": [
                {
                    "type": "iOS",
                    "environment": "production",
                    "app": "default",
                    "token_ending": TOKEN[-6:],
                    "registered_at": CREATED,
                    "last_delivered_at": None,
                }
            ]
        }
    },
    "PushOutcome": {
        "delivered": {"lane": "apns/default", "state": "delivered", "reason": "delivered"},
        "gone": {"lane": "apns/default", "state": "gone", "reason": "the device is gone: 410 Unregistered"},
    },
    "Subscription": {
        "chromium": {
            "endpoint": "https://fcm.googleapis.com/fcm/send/c0ffee",
            "expirationTime": None,
            "keys": {
                "p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
                "auth": "BTBZMqHH6r4Tts7J_aSIgg",
            },
        }
    },
    "Endpoint": {"chromium": {"endpoint": "https://fcm.googleapis.com/fcm/send/c0ffee"}},
    "WebPushKey": {
        "key": {"key": "BDd3_hVL9fZi9Ybo2UUzA284WG5FZR30_95YeZJsiApwXKpNcF1rRPF3foIiBHXRdJI2Qhumhf6_LFTeZaNndIo"}
    },
    "Queued": {"queued": {"queued": True}},
    "QueuedEvent": {
        "queued": {"queued": True, "id": uuid(1)},
        "skipped": {"queued": True, "id": uuid(1), "skipped": {"users": [99], "teams": []}},
    },
    "QueuedBatch": {
        "queued": {"queued": True, "ids": [uuid(1), uuid(2)]},
        "skipped": {
            "queued": True,
            "ids": [uuid(1), uuid(2)],
            "skipped": [{"id": uuid(2), "users": [99], "teams": []}],
        },
    },
    "Recipient": {"read": _RECIPIENT},
    "Resolution": {
        "accepted": {"about": "lead:220f5f6e-e30f-4c5f-8db5-44e345f8e568", "as": "gone", "users": [1, 54]},
        "erased": {"about": "contact:c2ccbb7e-d174-4894-ba5a-1828d0f09128", "as": "erased"},
    },
    "Imported": {"two": {"users": 1, "teams": 1, "devices": 0, "notifications": 0}},
    "UserBody": {"least": {"first_name": "John", "last_name": "Doe"}, "with_everything": {**_USER, **_PLACE}},
    "User": {"bernita": _BERNITA},
    "Users": {"one": {"data": [_BERNITA], "next": 4}},
    "TeamBody": {"least": {"name": "Sales"}, "with_members": {**_TEAM, "users": [1, 4]}},
    "Team": {"sales": {"id": 7, **_TEAM, "users": [1, 4]}},
    "Teams": {"one": {"data": [{"id": 7, **_TEAM, "size": 2}], "next": None}},
    "Lanes": {
        "stopped": {
            "data": [
                {
                    "name": "apns/default",
                    "delivered_at": None,
                    "stopped_at": CREATED,
                    "reason": "InvalidProviderToken",
                    "due": 12,
                    "oldest": 41.5,
                    "problem": None,
                    "refused_by": [],
                }
            ]
        }
    },
    "DeadLetters": {
        "one": {
            "data": [
                {
                    "what": "push",
                    "task": "push",
                    "event_id": uuid(1),
                    "user_id": 4,
                    "lane": "apns/default",
                    "attempts": 26,
                    "reason": "given up: no answer",
                    "at": CREATED,
                }
            ]
        }
    },
    "Person": {
        "bernita": {
            "id": 4,
            "company_id": 1,
            "first_name": "Bernita",
            "last_name": "Kilback",
            "active": True,
            "total": 17,
            "unread": 3,
            "time_zone": "Europe/Copenhagen",
            "devices": [{**_DEVICE_FOUND, "state": "stopped", "what": "InvalidProviderToken"}],
        }
    },
    "EventsOfPerson": {
        "read": {
            "data": [{"type": "custom", "accepted_at": CREATED, **_RECIPIENT}],
            "looked_back_to": "2026-03-01 10:00:00",
        }
    },
    "PeopleFound": {
        "one": {
            "data": [
                {
                    "id": 4,
                    "company_id": 1,
                    "first_name": "Bernita",
                    "last_name": "Kilback",
                    "email": "bernita@example.com",
                    "active": True,
                }
            ]
        }
    },
    "RecipientsOfEvent": {
        "one": {
            "data": [
                {
                    "user_id": 4,
                    "first_name": "Bernita",
                    "last_name": "Kilback",
                    "read_at": None,
                    "pushes": ["dead", "delivered"],
                }
            ]
        }
    },
    "DevicesFound": {"one": {"data": [{"user_id": 4, **_DEVICE_FOUND}]}},
    "CustomNotifications": {
        "one": {
            "data": [
                {
                    "id": uuid(1),
                    "accepted_at": CREATED,
                    "service": None,
                    "sender": {"id": 4, "first_name": "Bernita", "last_name": "Kilback"},
                    "users": 0,
                    "teams": 1,
                    "recipients": 12,
                    "dropped": 0,
                }
            ]
        }
    },
    "Replay": {"events": {"events": [uuid(1)]}, "lane": {"lane": "apns/default"}},
    "Replayed": {"some": {"jobs": 0, "pushes": 1}},
    "Health": {"ok": {"status": "ok"}},
    "Readiness": {
        "ready": {
            "status": "ready",
            "database": "ok",
            "migrations": "ok",
            "queue": {
                "direct": {"due": 0, "oldest": 0.0, "stalled": False},
                "bulk": {"due": 1, "oldest": 0.214, "stalled": False},
            },
            "pushes": {"oldest": 0.0, "stalled": False},
            "problems": [],
        }
    },
}
