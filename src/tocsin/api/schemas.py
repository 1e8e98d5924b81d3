"""What the API document's operations take and answer, as JSON Schemas: requests strict, answers open."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from tocsin.api.drafts import MAX_KEY_LENGTH, MAX_SUBJECTS
from tocsin.api.events import MAX_BATCH_EVENTS
from tocsin.api.notifications import MAX_IDS
from tocsin.api.requests import MAX_MESSAGE_LENGTH, MAX_RECIPIENTS
from tocsin.catalogue import Catalogue, Kind
from tocsin.devices import TYPES
from tocsin.errors import MAX_FIELD_ERRORS, Invalid, Problem
from tocsin.formats import NotificationLine, TeamBody, UserBody
from tocsin.ids import MAX_ID
from tocsin.preferences import SWITCHES
from tocsin.push.deliveries import STATES
from tocsin.quiet_hours import DAYS, MAX_WINDOWS, TIME_OF_DAY
from tocsin.resolutions import How
from tocsin.validation import OURS

Schema = dict[str, Any]

UUID: Schema = {"type": "string", "format": "uuid"}
ID: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_ID}
STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
TIME: Schema = {
    "type": "string",
    "pattern": r"^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}$",
    "description": "UTC, `YYYY-MM-DD HH:MM:SS`",
}

_NO_NAME = re.compile(r"[^A-Za-z0-9]+")

_PARTS = ("Data", "Params", "Event", "Notification")
"""The schemas of each kind."""

_STRICT = {"additionalProperties", "const", "default", "enum", "maxItems", "maxLength", "maximum", "minItems"} | {
    "minLength",
    "minimum",
    "pattern",
}


def schemas(catalogue: Catalogue) -> dict[str, Schema]:
    """Return all schemas by their names in the document."""
    names = names_of(catalogue)
    return {
        **REQUESTS,
        **ANSWERS,
        **dict(_of_kinds(catalogue, names)),
        "NewEvent": {"oneOf": [ref(f"{names[kind]}Event") for kind in catalogue.kinds]},
        "PreferencesPatch": _preferences_patch(catalogue),
    }


def names_of(catalogue: Catalogue) -> dict[str, str]:
    """Return what the names of each kind's schemas begin with: `GamificationNewLevel` of `gamification/new_level`.

    Generators make names of classes and modules of them, so they hold letters and digits alone.
    """
    taken = {*REQUESTS, *ANSWERS, "NewEvent", "PushedNotification"}
    found: dict[str, str] = {}
    for kind in catalogue.kinds:
        name = "".join(word[:1].upper() + word[1:] for word in _NO_NAME.split(kind))
        while taken.intersection(f"{name}{part}" for part in _PARTS):
            name += "Kind"
        taken.update(f"{name}{part}" for part in _PARTS)
        found[kind] = name
    return found


def ref(name: str) -> Schema:
    """Return the reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def _of_kinds(catalogue: Catalogue, names: Mapping[str, str]) -> Iterator[tuple[str, Schema]]:
    """Return per kind the schemas `NoteData` and `NoteParams`, the event that has them, and its notification."""
    parts = {
        kind: {part: {key: of for key, of in schema.items() if key != "title"} for part, schema in of_kind.items()}
        for kind, of_kind in catalogue.schemas().items()
    }
    for kind in catalogue.kinds.values():
        name = names[kind.name]
        yield from ((f"{name}{part.capitalize()}", schema) for part, schema in parts[kind.name].items())
        yield f"{name}Event", _event_of(kind, name)
        yield (
            f"{name}Notification",
            {
                "description": f"{kind.title}: a notification whose `data` is that of `{kind.name}`",
                "allOf": [ref("Notification"), _object({"data": _opened(parts[kind.name]["data"])})],
            },
        )


def _event_of(kind: Kind, name: str) -> Schema:
    """Return what a producer posts of one kind, in one object: generators drop what stands beside `oneOf`."""
    required = kind.event.model_json_schema().get("required", [])
    parts = {part: ref(f"{name}{part.capitalize()}") for part in ("data", "params")}
    found = _object(
        {
            "type": {"type": "string", "const": kind.type},
            "notify": ref("Notify"),
            **{part: of if part in required else _or_null(of) for part, of in parts.items()},
            **_ENVELOPE,
        }
    )
    return {**found, "required": ["type", "notify", *required], "description": kind.title}


def _opened(schema: Any) -> Any:
    """Return a part of a request's schema as an answer has it: open, and with a user in the place of a user's id."""
    if isinstance(schema, list):
        return [_opened(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "oneOf" in schema:
        return _opened(next(choice for choice in schema["oneOf"] if choice["type"] == "object"))
    found = {key: _opened(part) for key, part in schema.items() if key not in {"properties", *_STRICT}}
    if "properties" in schema:
        found["properties"] = {name: _opened(part) for name, part in schema["properties"].items()}
    return found


def _preferences_patch(catalogue: Catalogue) -> Schema:
    """Return what a user changes of their preferences: any part, and nothing that there is not."""
    switches = _told(_changes(dict.fromkeys(SWITCHES, _CHANGED)), "null: as by default")
    return {
        **_changes(
            {
                "kinds": _changes(dict.fromkeys(catalogue.kinds, switches)),
                "quiet_hours": {
                    "type": ["array", "null"],
                    "maxItems": MAX_WINDOWS,
                    "items": _WINDOW,
                    "description": "all windows anew; null: as by default",
                },
                "paused_until": {
                    "type": ["string", "null"],
                    "format": "date-time",
                    "description": "with an offset; at most a year ahead",
                },
                "time_zone": {"type": ["string", "null"], "description": "an IANA name; null: as in the directory"},
            }
        ),
        "type": "object",
        "description": "What is to change (RFC 7396): what is left out stays, null puts back what is so by default.",
    }


def _changes(properties: dict[str, Schema]) -> Schema:
    """Return the schema of an object of a merge patch, which has no fields but these."""
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}


def _object(properties: dict[str, Schema], *optional: str) -> Schema:
    """Return the schema of an open object that has all of these but the optional ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", **({"required": required} if required else {}), "properties": properties}


def _list_of(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _told(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def _choice(*values: str, left_out: str) -> Schema:
    """Return the schema of a field with fixed values.

    What it means to leave it out is said in words: generators take a field with a `default` for a required one.
    """
    return {"type": ["string", "null"], "enum": [*values, None], "description": f"left out: {left_out}"}


def _of_model(schema: Schema) -> Schema:
    """Return the schema of a model of the framework's, likewise with its defaults in words, and without its own title.

    Generators name classes by titles, which may be those of other schemas.
    """
    found = {key: value for key, value in schema.items() if key != "title"}
    return {**found, "properties": {name: _without_default(of) for name, of in schema["properties"].items()}}


def _without_default(schema: Schema) -> Schema:
    found = {key: value for key, value in schema.items() if key not in {"default", "title"}}
    default = schema.get("default")
    return found if default is None else {"description": f"left out: `{json.dumps(default)}`", **found}


def _page_of(item: Schema) -> Schema:
    """Return the schema of a list that goes on after an id."""
    following = {"type": ["integer", "null"], "description": "`after` of the next page; null at the end"}
    return _object({"data": _list_of(item), "next": following})


def _codes(family: type[Problem] = Problem) -> Iterator[str]:
    """Return the codes of all problems of a family."""
    for problem in family.__subclasses__():
        if problem is Invalid:
            yield from (f"{problem.code}.{code}" for code in sorted(OURS))
        else:
            yield from _codes(problem) if problem.__subclasses__() else [problem.code]


_ENVELOPE: dict[str, Schema] = {
    "id": _or_null({**UUID, "description": "your own: the same event again does nothing"}),
    "key": {
        "type": ["string", "null"],
        "minLength": 1,
        "maxLength": MAX_KEY_LENGTH,
        "description": "your own name for it: posted again, it replaces what is not delivered",
    },
    "deliver_at": {
        "type": ["string", "null"],
        "format": "date-time",
        "description": "held until then; at most a year ahead",
    },
    "about": {
        "type": ["array", "null"],
        "maxItems": MAX_SUBJECTS,
        "items": {"type": "string", "pattern": r"^(?!key:)[a-z][a-z0-9_]{0,31}:\S(.{0,253}\S)?$"},
        "description": "further subjects, such as `order:42`",
    },
}
"""What an event of any kind may have."""

_RECIPIENTS = {**_list_of(ID), "maxItems": MAX_RECIPIENTS}
_MESSAGE = {"type": "string", "minLength": 1, "maxLength": MAX_MESSAGE_LENGTH, "pattern": r"\S"}
_SKIPPED = {"users": _list_of(INTEGER), "teams": _list_of(INTEGER)}

_CHANGED: Schema = {"type": ["boolean", "null"]}
_TIME_OF_DAY: Schema = {"type": "string", "pattern": TIME_OF_DAY}
_WINDOW: Schema = {
    "type": "object",
    "required": ["from", "to"],
    "properties": {
        "days": {
            "type": ["array", "null"],
            "items": {"type": "string", "enum": list(DAYS)},
            "minItems": 1,
            "maxItems": len(DAYS),
            "description": "on which it starts; left out: all",
        },
        "from": _TIME_OF_DAY,
        "to": _told(_TIME_OF_DAY, "of the next day where it is earlier than `from`; never the same"),
    },
    "additionalProperties": False,
}

_NOTIFY: dict[str, Schema] = {
    "users": _RECIPIENTS,
    "teams": _RECIPIENTS,
    "except": _told(_RECIPIENTS, "users who are left out, named or not"),
    "unknown": _choice("refuse", "skip", left_out="`refuse` ids that nobody knows, rather than go on without them"),
}

_DEVICE: dict[str, Schema] = {
    "type": _choice(*TYPES, left_out="`iOS`"),
    "environment": _choice("production", "sandbox", left_out="`production`"),
    "app": {
        "type": ["string", "null"],
        "pattern": r"^[A-Za-z0-9._-]{1,100}$",
        "description": "which of several apps; left out: `default`",
    },
    "provider": _choice("apns", "fcm", left_out="the type's own; `Android` has `fcm` alone"),
    "replaces": {
        "type": ["string", "null"],
        "description": "the token of the caller's that this one takes the place of",
    },
}

REQUESTS: dict[str, Schema] = {
    "Notify": {
        **_object(_NOTIFY, *_NOTIFY),
        "minProperties": 1,
        "description": f"Whom to notify: at least one user or team, together at most {MAX_RECIPIENTS}.",
    },
    "NewCustom": _object({"message": _MESSAGE, "notify": ref("Notify")}),
    "NewBatch": _object({"events": {**_list_of(ref("NewEvent")), "minItems": 1, "maxItems": MAX_BATCH_EVENTS}}),
    "Marks": {
        **_object(
            {
                "up_to": _or_null(_told(UUID, "this one and everything older")),
                "ids": {
                    "type": ["array", "null"],
                    "items": UUID,
                    "minItems": 1,
                    "maxItems": MAX_IDS,
                    "description": "just these; not together with `up_to`",
                },
            },
            "up_to",
            "ids",
        ),
        "description": "What to mark as read; nothing means all.",
    },
    "Device": _object(_DEVICE, *_DEVICE),
    "DeviceWithToken": _object({"token": {"type": "string", "minLength": 1}, **_DEVICE}, *_DEVICE),
    "Subscription": _object(
        {
            "endpoint": {"type": "string", "maxLength": 2048, "description": "of a push service that is known here"},
            "expirationTime": {"type": ["number", "null"]},
            "keys": _object(
                {
                    "p256dh": _told(STRING, "a point on P-256, in base64url"),
                    "auth": _told(STRING, "16 bytes, in base64url"),
                }
            ),
        },
        "expirationTime",
    ),
    "Endpoint": _object({"endpoint": STRING}),
    "Replay": {
        **_object(
            {
                "events": {"type": ["array", "null"], "items": UUID, "minItems": 1, "maxItems": 1000},
                "lane": _or_null(STRING),
            },
            "events",
            "lane",
        ),
        "description": "of these events all, or the pushes of a lane such as `apns/default`",
    },
    "Resolution": _object(
        {
            "about": {
                "type": "string",
                "pattern": r"^[a-z][a-z0-9_]{0,31}:",
                "description": "the subject: `lead:220f5f6e-...`, `order:42`, or `key:` and a key of the service's own",
            },
            "as": {
                "type": "string",
                "enum": list(get_args(How)),
                "description": "marked read, taken away like a deletion, or rewritten without names and texts"
                " (scope `directory:write`, and for everyone)",
            },
            "users": {**_told(_RECIPIENTS, "for these alone"), "type": ["array", "null"]},
        },
        "users",
    ),
    "Import": {
        "type": "string",
        "description": "lines, each an object with one key: `user` (as `UserBody`, and its `id`), `team` (as"
        " `TeamBody`, and its `id`), `device` (as `DeviceWithToken`, and `user_id`) or `notification` (as"
        " `OldNotification`)",
    },
    "OldNotification": _of_model(NotificationLine.model_json_schema()),
    "UserBody": _of_model(UserBody.model_json_schema()),
    "TeamBody": _of_model(TeamBody.model_json_schema()),
}

_DEVICE_FOUND = {
    "type": STRING,
    "environment": STRING,
    "app": STRING,
    "lane": _told(STRING, "the provider, app and environment that it is reached by"),
    "token_ending": _told(STRING, "its last 6 characters"),
    "registered_at": TIME,
    "last_delivered_at": _or_null(TIME),
}

ANSWERS: dict[str, Schema] = {
    "Errors": _object(
        {
            "errors": {
                **_list_of(
                    _object(
                        {
                            "message": _told(STRING, "for the developer"),
                            "code": _told(
                                STRING,
                                "for the machine; today one of " + ", ".join(f"`{code}`" for code in _codes()),
                            ),
                            "field": _told(STRING, "dotted path, of validation errors only"),
                            "id": _told(STRING, "of a 500: what to look for in the log"),
                        },
                        "field",
                        "id",
                    )
                ),
                "minItems": 1,
                "maxItems": MAX_FIELD_ERRORS,
            },
            "more": _told({"type": "integer", "minimum": 1}, "how many other faults there are, where not all are told"),
        },
        "more",
    ),
    "Notification": _object(
        {
            "id": UUID,
            "type": _told(STRING, "open: kinds may be added"),
            "data": {
                "type": "object",
                "additionalProperties": True,
                "description": "the kind's own; that of each kind today stands in `NoteNotification` and so on",
            },
            "message": _told(STRING, "plain text; ` <br> ` stands before quoted text"),
            "message_formatted": _told(STRING, "safe HTML: `p`, `strong`, `em`, `br`"),
            "read": BOOLEAN,
            "read_at": _or_null(TIME),
            "created_at": TIME,
        }
    ),
    "Page": _object(
        {
            "data": _list_of(ref("Notification")),
            "pagination": _object(
                {
                    "total": _told(INTEGER, "of all pages"),
                    "page": INTEGER,
                    "per_page": INTEGER,
                    "urls": _object(
                        {
                            "previous": {"type": ["string", "null"]},
                            "next": {
                                "type": ["string", "null"],
                                "description": "carries a cursor: follow it, and nothing is shown twice or skipped",
                            },
                        }
                    ),
                    "unread": _told(INTEGER, "of the whole inbox"),
                }
            ),
        }
    ),
    "Changes": {
        **_object(
            {
                "data": _list_of(
                    _object(
                        {
                            "event": _told(STRING, "`notification`, `read`, `unread` or `deleted`; open"),
                            "data": {
                                "type": "object",
                                "additionalProperties": True,
                                "description": "a notification; else `id`, `ids`, or `all` up to the entry `up_to`",
                            },
                        }
                    )
                ),
                "unread": _told(INTEGER, "of the whole inbox"),
                "cursor": _told(STRING, "where the next changes begin"),
                "more": _told(BOOLEAN, "go on from the cursor at once"),
                "resync": _told(BOOLEAN, "true: what happened since is no longer known; fetch the list"),
            },
            "data",
            "unread",
            "more",
            "resync",
        ),
        "description": "Without `since`, and with `resync`, the cursor stands alone.",
    },
    "Devices": _object(
        {
            "data": _list_of(
                _object(
                    {
                        "type": STRING,
                        "environment": STRING,
                        "app": STRING,
                        "token_ending": _told(STRING, "its last 6 characters"),
                        "registered_at": TIME,
                        "last_delivered_at": _or_null(TIME),
                    }
                )
            )
        }
    ),
    "Said": _object(
        {
            "lane": _told(STRING, "the provider, app and environment that it went by"),
            "state": {
                "type": "string",
                "description": "open; `stopped`: not the device, but the service's own settings are wrong",
            },
            "reason": _told(STRING, "in the provider's words"),
        }
    ),
    "Queued": _object({"queued": BOOLEAN}),
    "QueuedEvent": _object(
        {
            "queued": BOOLEAN,
            "id": _told(UUID, "the notification's id in every inbox"),
            "skipped": _told(_object(_SKIPPED), "where `notify.unknown` is `skip`: the ids that nobody knows"),
        },
        "skipped",
    ),
    "QueuedBatch": _object(
        {
            "queued": BOOLEAN,
            "ids": _told(_list_of(UUID), "in the order of the events"),
            "skipped": _told(
                _list_of(_object({"id": UUID, **_SKIPPED})),
                "where `notify.unknown` is `skip`: the ids that nobody knows, by event",
            ),
        },
        "skipped",
    ),
    "Event": _object(
        {
            "id": UUID,
            "type": STRING,
            "state": _told(STRING, "`held`, `queued`, `delivering`, `delivered`, `cancelled` or `failed`; open"),
            "recipients": _told(INTEGER, "inboxes that it reached so far"),
            "read": _told(INTEGER, "of these, how many have read it"),
            "dropped": _told(INTEGER, "recipients who were erased or inactive at delivery"),
            "pushes": _told(
                _object(dict.fromkeys(STATES, INTEGER)),
                "pushes to devices by state; `skipped` was read, deleted, cancelled or moved before its turn",
            ),
            "reason": _told(STRING, "why it failed, or which operator cancelled it"),
            "replaced_by": _told(UUID, "the event that took its key"),
        },
        "reason",
        "replaced_by",
    ),
    "Recipient": _object(
        {
            "event_id": UUID,
            "user_id": INTEGER,
            "recipient": _told(BOOLEAN, "whether it came into their inbox"),
            "why": _told(STRING, "in words: named, by which team, left out, dropped ..."),
            "team_id": {"type": ["integer", "null"], "description": "the team that they were told as a member of"},
            "delivered_at": _or_null(TIME),
            "read_at": _or_null(TIME),
            "deleted_at": _or_null(TIME),
            "devices": _told(
                _list_of(
                    _object(
                        {
                            "type": STRING,
                            "token_ending": STRING,
                            "lane": _told(STRING, "the provider, app and environment that the device is reached by"),
                            "state": STRING,
                            "attempts": INTEGER,
                            "settled_at": _or_null(TIME),
                            "what": _told({"type": ["string", "null"]}, "what was decided or answered, in words"),
                        }
                    )
                ),
                "per device what was decided, and what the provider answered",
            ),
        }
    ),
    "User": _object(
        {
            "id": INTEGER,
            "first_name": STRING,
            "last_name": STRING,
            "profile_picture": {"type": ["string", "null"]},
            "email": {"type": ["string", "null"]},
            "company_id": INTEGER,
            "locale": STRING,
            "time_zone": STRING,
            "active": BOOLEAN,
        }
    ),
    "Links": _object(
        {
            "data": {
                "type": "object",
                "description": "by the notification's id; null where its kind leads nowhere; others' are not there",
                "additionalProperties": {"type": ["string", "null"]},
            }
        }
    ),
    "Stream": _told(
        STRING,
        'Events `count` (`{"unread": 3}`, also the first), `notification` (as in the list), `read` (`id`, `ids`, or '
        "`all` up to the entry `up_to`), `unread` (`id`), `deleted` (`id` or `ids`), `resync`: fetch the list. Open.",
    ),
    "Kinds": _object(
        {
            "data": _list_of(
                _object(
                    {
                        "name": _told(STRING, "as in preferences: `note`, `gamification/new_level`"),
                        "label": _told(STRING, "in the caller's language"),
                        "group": STRING,
                        "group_label": STRING,
                        "channels": _list_of(STRING),
                        "default": {"type": "object", "additionalProperties": BOOLEAN},
                        "locked": {"type": "object", "additionalProperties": BOOLEAN},
                    }
                )
            )
        }
    ),
    "WebPushKey": _object({"key": _told(STRING, "the `applicationServerKey` of a subscription, in base64url")}),
    "Preferences": _object(
        {
            "kinds": {
                "type": "object",
                "additionalProperties": _object(dict.fromkeys(SWITCHES, BOOLEAN)),
                "description": "all kinds by name",
            },
            "quiet_hours": _list_of(_object({"days": _list_of(STRING), "from": STRING, "to": STRING})),
            "paused_until": _or_null(TIME),
            "time_zone": _told(STRING, "whose clock the quiet hours go by"),
        }
    ),
    "Imported": _object(dict.fromkeys(("users", "teams", "devices", "notifications"), _told(INTEGER, "lines of them"))),
    "Users": _page_of(ref("User")),
    "Team": _object({"id": INTEGER, "company_id": INTEGER, "name": STRING, "users": _list_of(INTEGER)}),
    "Teams": _page_of(
        _object(
            {
                "id": INTEGER,
                "company_id": INTEGER,
                "name": STRING,
                "size": _told(INTEGER, "how many are in it"),
            }
        )
    ),
    "Lanes": _object(
        {
            "data": _list_of(
                _object(
                    {
                        "name": STRING,
                        "due": _told(INTEGER, "pushes that wait"),
                        "oldest": _told(NUMBER, "seconds that the oldest of them waits"),
                        "delivered_at": _or_null(TIME),
                        "stopped_at": _or_null(TIME),
                        "reason": _told({"type": ["string", "null"]}, "why it has stopped"),
                        "problem": _told({"type": ["string", "null"]}, "why it cannot go on now, where it cannot"),
                        "refused_by": _told(
                            _list_of(_object({"service": STRING, "since": TIME, "reason": STRING})),
                            "push services of browsers that refuse this server's authentication",
                        ),
                    }
                )
            )
        }
    ),
    "DeadLetters": _object(
        {
            "data": _list_of(
                _object(
                    {
                        "what": _told(STRING, "`job` or `push`; open"),
                        "task": STRING,
                        "event_id": UUID,
                        "user_id": {"type": ["integer", "null"]},
                        "lane": STRING,
                        "attempts": INTEGER,
                        "reason": {"type": ["string", "null"]},
                        "at": TIME,
                    }
                )
            )
        }
    ),
    "Person": _object(
        {
            "id": INTEGER,
            "company_id": INTEGER,
            "first_name": STRING,
            "last_name": STRING,
            "active": _told(BOOLEAN, "where not, nothing is delivered"),
            "total": _told(INTEGER, "notifications in the inbox"),
            "unread": _told(INTEGER, "of these"),
            "time_zone": STRING,
            "devices": _list_of(
                _object(
                    {
                        **_DEVICE_FOUND,
                        "state": _told(
                            STRING,
                            "of its last push; `stopped` where its lane has, `unserved` where no key is set for it,"
                            " `untried` where nothing was pushed to it of late; open",
                        ),
                        "what": _told({"type": ["string", "null"]}, "why, in words"),
                    }
                )
            ),
        }
    ),
    "EventsOfPerson": _object(
        {
            "data": _list_of({"allOf": [ref("Recipient"), _object({"type": STRING, "accepted_at": TIME})]}),
            "looked_back_to": _told(TIME, "what did not come is told since then"),
        }
    ),
    "PeopleFound": _object(
        {
            "data": _list_of(
                _object(
                    {
                        "id": INTEGER,
                        "company_id": INTEGER,
                        "first_name": STRING,
                        "last_name": STRING,
                        "email": {"type": ["string", "null"]},
                        "active": BOOLEAN,
                    }
                )
            )
        }
    ),
    "RecipientsOfEvent": _object(
        {
            "data": _list_of(
                _object(
                    {
                        "user_id": INTEGER,
                        "first_name": _told({"type": ["string", "null"]}, "null where they were erased"),
                        "last_name": {"type": ["string", "null"]},
                        "read_at": {"type": ["string", "null"]},
                        "pushes": _told(_list_of(STRING), "states of the pushes to them, each once"),
                    }
                )
            )
        }
    ),
    "DevicesFound": _object({"data": _list_of(_object({"user_id": INTEGER, **_DEVICE_FOUND}))}),
    "CustomNotifications": _object(
        {
            "data": _list_of(
                _object(
                    {
                        "id": UUID,
                        "accepted_at": TIME,
                        "service": _told({"type": ["string", "null"]}, "that posted it; a user did where it is null"),
                        "sender": {
                            **_object(
                                {
                                    "id": INTEGER,
                                    "first_name": {"type": ["string", "null"]},
                                    "last_name": {"type": ["string", "null"]},
                                }
                            ),
                            "type": ["object", "null"],
                            "description": "the user who sent it; without names where they were erased",
                        },
                        "users": _told(INTEGER, "users that it names"),
                        "teams": _told(INTEGER, "teams that it names"),
                        "recipients": _told(INTEGER, "inboxes that it reached so far"),
                        "dropped": _told(INTEGER, "recipients who were erased or inactive at delivery"),
                    }
                )
            )
        }
    ),
    "Replayed": _object({"jobs": INTEGER, "pushes": INTEGER}),
    "Metrics": _told(STRING, "the text format of Prometheus"),
    "Health": _object({"status": STRING}),
    "Readiness": _object(
        {
            "status": STRING,
            "database": STRING,
            "migrations": STRING,
            "queue": {
                "type": "object",
                "description": "by lane: how many jobs are due, counted up to 1,000 or so, for how many seconds the"
                " oldest has been, and whether that is longer than in a lane that makes progress",
                "additionalProperties": _object({"due": INTEGER, "oldest": {"type": "number"}, "stalled": BOOLEAN}),
            },
            "pushes": _told(
                _object({"oldest": {"type": "number"}, "stalled": BOOLEAN}), "the same of pushes, over all lanes"
            ),
            "problems": _told(_list_of(STRING), "why workers cannot go on with something, if they cannot"),
        }
    ),
}
