"""What the API document's operations take and answer, as JSON Schemas."""

from typing import Any

from tocsin.api.drafts import LONGEST_KEY, MOST_SUBJECTS
from tocsin.api.requests import MOST_RECIPIENTS
from tocsin.catalogue import Catalogue
from tocsin.directory import LARGEST_ID

TIME = {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}$", "description": "UTC"}
WITH_ID = {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer", "minimum": 1}}}
IDS = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": LARGEST_ID}}

UUID = {"type": "string", "format": "uuid"}
SKIPPED: dict[str, Any] = {
    "type": "object",
    "description": "where `notify.unknown` is `skip`: the ids that nobody knows",
    "properties": {"users": IDS, "teams": IDS},
}


def _listed(item: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a list that goes on after an id."""
    return {
        "type": "object",
        "required": ["data", "next"],
        "properties": {
            "data": {"type": "array", "items": item},
            "next": {"type": ["integer", "null"], "description": "`after` of the next page; null at the end"},
        },
    }


SCHEMAS: dict[str, Any] = {
    "Errors": {
        "type": "object",
        "required": ["errors"],
        "properties": {
            "errors": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["message", "code"],
                    "properties": {
                        "message": {"type": "string", "description": "for the developer"},
                        "code": {"type": "string", "description": "for the machine"},
                        "field": {"type": "string", "description": "dotted path, of validation errors only"},
                        "id": {"type": "string", "description": "of a 500: what to look for in the log"},
                    },
                },
            }
        },
    },
    "Notification": {
        "type": "object",
        "required": ["id", "type", "data", "message", "message_formatted", "read", "read_at", "created_at"],
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "type": {"type": "string", "description": "open: kinds may be added"},
            "data": {"type": "object", "additionalProperties": True},
            "message": {"type": "string", "description": "plain text; ` <br> ` stands before quoted text"},
            "message_formatted": {"type": "string", "description": "safe HTML: `p`, `strong`, `em`, `br`"},
            "read": {"type": "boolean"},
            "read_at": {"anyOf": [TIME, {"type": "null"}]},
            "created_at": TIME,
        },
    },
    "Page": {
        "type": "object",
        "required": ["data", "pagination"],
        "properties": {
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Notification"}},
            "pagination": {
                "type": "object",
                "required": ["total", "page", "per_page", "urls", "unread"],
                "properties": {
                    "total": {"type": "integer", "description": "of all pages"},
                    "page": {"type": "integer"},
                    "per_page": {"type": "integer"},
                    "urls": {
                        "type": "object",
                        "required": ["previous", "next"],
                        "properties": {
                            "previous": {"type": ["string", "null"]},
                            "next": {
                                "type": ["string", "null"],
                                "description": "carries a cursor: follow it, and nothing is shown twice or skipped",
                            },
                        },
                    },
                    "unread": {"type": "integer", "description": "of the whole inbox"},
                },
            },
        },
    },
    "Changes": {
        "type": "object",
        "description": "with `resync`, what happened since is no longer known: fetch the list",
        "required": ["cursor"],
        "properties": {
            "data": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["event", "data"],
                    "properties": {
                        "event": {
                            "type": "string",
                            "description": "`notification`, `read`, `unread` or `deleted`",
                        },
                        "data": {
                            "type": "object",
                            "description": "a notification; else `id`, `ids`, or `all` up to the entry `up_to`",
                        },
                    },
                },
            },
            "unread": {"type": "integer", "description": "of the whole inbox"},
            "cursor": {"type": "string", "description": "where the next changes begin"},
            "more": {"type": "boolean", "description": "go on from the cursor at once"},
            "resync": {"type": "boolean", "const": True},
        },
    },
    "Device": {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["iOS", "Android"], "default": "iOS"},
            "environment": {"type": "string", "enum": ["production", "sandbox"], "default": "production"},
            "app": {"type": "string", "default": "default", "description": "which of several apps"},
            "provider": {"type": "string", "enum": ["apns", "fcm"], "description": "left out: the type's own"},
            "replaces": {"type": "string", "description": "the token of the caller's that this one takes the place of"},
        },
    },
    "Devices": {
        "type": "object",
        "required": ["data"],
        "properties": {
            "data": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": [
                        "type",
                        "environment",
                        "app",
                        "token_ending",
                        "registered_at",
                        "last_delivered_at",
                    ],
                    "properties": {
                        "type": {"type": "string"},
                        "environment": {"type": "string"},
                        "app": {"type": "string"},
                        "token_ending": {"type": "string", "description": "its last 6 characters"},
                        "registered_at": TIME,
                        "last_delivered_at": {"anyOf": [TIME, {"type": "null"}]},
                    },
                },
            }
        },
    },
    "Notify": {
        "type": "object",
        "description": f"Whom to notify: at least one user or team, together at most {MOST_RECIPIENTS}.",
        "properties": {
            "users": IDS,
            "teams": IDS,
            "except": {**IDS, "description": "users who are left out, named or not"},
            "unknown": {
                "type": "string",
                "enum": ["refuse", "skip"],
                "default": "refuse",
                "description": "what becomes of ids that nobody knows",
            },
        },
    },
    "Recipient": {
        "type": "object",
        "required": ["event_id", "user_id", "recipient", "why", "team_id", "delivered_at", "read_at", "deleted_at"],
        "properties": {
            "event_id": {"type": "string", "format": "uuid"},
            "user_id": {"type": "integer"},
            "recipient": {"type": "boolean", "description": "whether it came into their inbox"},
            "why": {"type": "string", "description": "in words: named, by which team, left out, dropped ..."},
            "team_id": {"type": ["integer", "null"], "description": "the team that they were told as a member of"},
            "delivered_at": {"anyOf": [TIME, {"type": "null"}]},
            "read_at": {"anyOf": [TIME, {"type": "null"}]},
            "deleted_at": {"anyOf": [TIME, {"type": "null"}]},
            "devices": {"type": "array", "items": {"type": "object"}, "description": "per device what was decided"},
        },
    },
    "Event": {
        "type": "object",
        "required": ["id", "type", "state", "recipients", "read"],
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "type": {"type": "string"},
            "state": {
                "type": "string",
                "description": "`held`, `queued`, `delivering`, `delivered`, `cancelled` or `failed`",
            },
            "recipients": {"type": "integer", "description": "inboxes that it reached so far"},
            "read": {"type": "integer", "description": "of these, how many have read it"},
            "dropped": {"type": "integer", "description": "recipients who were erased or inactive at delivery"},
            "reason": {"type": "string", "description": "why it failed"},
            "replaced_by": {"type": "string", "format": "uuid", "description": "the event that took its key"},
        },
    },
    "Users": _listed({"$ref": "#/components/schemas/User"}),
    "Teams": _listed(
        {
            "type": "object",
            "required": ["id", "company_id", "name", "size"],
            "properties": {
                "id": {"type": "integer"},
                "company_id": {"type": "integer"},
                "name": {"type": "string"},
                "size": {"type": "integer", "description": "how many are in it"},
            },
        }
    ),
    "User": {"allOf": [{"$ref": "#/components/schemas/UserBody"}, WITH_ID]},
    "Team": {"allOf": [{"$ref": "#/components/schemas/TeamBody"}, WITH_ID]},
}


def new_event(catalogue: Catalogue) -> dict[str, Any]:
    """Return what a producer posts; the fields of each kind's `data` and `params` have schemas of their own."""
    return {
        "type": "object",
        "required": ["type", "notify"],
        "properties": {
            "type": {"type": "string", "enum": sorted({kind.type for kind in catalogue.kinds.values()})},
            "notify": {"$ref": "#/components/schemas/Notify"},
            "data": {"type": "object", "description": "what the notification's `data` will be"},
            "params": {"type": "object", "description": "further words that the message needs"},
            "id": {**UUID, "description": "your own: the same event again does nothing"},
            "key": {
                "type": "string",
                "minLength": 1,
                "maxLength": LONGEST_KEY,
                "description": "your own name for it: posted again, it replaces what is not delivered",
            },
            "deliver_at": {"type": "string", "format": "date-time", "description": "held until then"},
            "about": {
                "type": "array",
                "maxItems": MOST_SUBJECTS,
                "items": {"type": "string", "pattern": r"^[a-z][a-z0-9_]{0,31}:\S"},
                "description": "further subjects, such as `order:42`",
            },
        },
    }
