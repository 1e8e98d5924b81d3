"""What phones and browsers get: the payloads of pushes, as the `webhooks` of the API document."""

from typing import Any

from tocsin.api.examples import Examples, uuid
from tocsin.api.schemas import Schema, ref
from tocsin.catalogue import Catalogue
from tocsin.notifications import to_json

MAX_WEB_PUSH_BYTES = 3_000
"""Bytes of the largest payload that a browser gets."""

STRING: Schema = {"type": "string"}
UUID: Schema = {"type": "string", "format": "uuid"}
_BADGE: Schema = {"type": "integer", "description": "unread notifications of the whole inbox"}
_ANYTHING: Schema = {"type": "object", "additionalProperties": True}
_LINK: Schema = {"type": ["string", "null"], "description": "where it leads; null where the kind leads nowhere"}
_TEXT_LINK: Schema = {"type": "string", "description": "where it leads; empty where the kind leads nowhere"}

PUSHES: dict[str, Schema] = {
    "PushedNotification": {
        "type": "object",
        "description": "The notification that a push is about; `type` is open.",
        "required": ["id", "type", "data"],
        "properties": {"id": UUID, "type": STRING, "data": _ANYTHING, "link": _LINK},
    },
    "ApnsPush": {
        "type": "object",
        "description": "Either it shows `notification`, or it takes away what `clear` names.",
        "required": ["aps"],
        "properties": {
            "aps": {
                "type": "object",
                "properties": {
                    "alert": {
                        "type": "object",
                        "required": ["title", "body"],
                        "properties": {"title": STRING, "body": STRING},
                    },
                    "badge": _BADGE,
                    "sound": STRING,
                    "thread-id": {"type": "string", "description": "groups notifications of one case, say"},
                    "category": {"type": "string", "description": "which buttons it has"},
                    "interruption-level": {"type": "string", "description": "`passive`, `active`, `time-sensitive`"},
                    "mutable-content": {"type": "integer", "description": "1: the app's extension may change it"},
                    "content-available": {"type": "integer", "description": "1: it wakes the app and shows nothing"},
                },
            },
            "notification": ref("PushedNotification"),
            "clear": {
                "description": "ids of notifications that are read or deleted, or the word `all`",
                "anyOf": [{"type": "array", "items": UUID}, STRING],
            },
        },
    },
    "FcmPush": {
        "type": "object",
        "description": "Either it shows a notification, or it takes away what `clear` names, and shows nothing.",
        "required": ["data"],
        "properties": {
            "notification": {
                "type": "object",
                "required": ["title", "body"],
                "properties": {"title": STRING, "body": STRING},
            },
            "data": {
                "type": "object",
                "description": "Strings alone, as Firebase has it.",
                "properties": {
                    "id": UUID,
                    "type": {"type": "string", "description": "open"},
                    "data": {"type": "string", "description": "the notification's data, as JSON text"},
                    "link": _TEXT_LINK,
                    "clear": {"type": "string", "description": 'JSON text: a list of ids, or `"all"`'},
                    "badge": {"type": "string", "description": "unread notifications of the whole inbox, in digits"},
                },
            },
        },
    },
    "WebPush": {
        "type": "object",
        "description": f"What the service worker finds when it is decrypted: at most {MAX_WEB_PUSH_BYTES:,} bytes.",
        "properties": {
            "title": STRING,
            "body": STRING,
            "tag": {"type": "string", "description": "one that is shown is replaced by the next with its tag"},
            "badge": _BADGE,
            "clear": {"type": "array", "items": UUID, "description": "of notifications that are read or deleted"},
            "notification": ref("PushedNotification"),
        },
    },
}


def pushes(catalogue: Catalogue) -> dict[str, Any]:
    """Return the webhooks, one of each provider, with a sample of the catalogue."""
    name, sample = next(iter(catalogue.samples.items()))
    kind, told = catalogue.kinds[name], sample["notification"]
    words = {"title": kind.title, "body": told["message"]}
    shown = {"id": uuid(1), "type": kind.type, "data": told["data"], "link": "https://crm.example.com/cases/6"}
    return {
        name: {"post": operation}
        for name, operation in (
            ("apns", _apns(words, shown, kind.category)),
            ("fcm", _fcm(words, shown)),
            ("web_push", _web_push(words, shown)),
        )
    }


def _apns(words: Examples, shown: Examples, category: str) -> dict[str, Any]:
    aps = {
        "alert": words,
        "badge": 3,
        "sound": "default",
        "thread-id": "65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88",
        "category": category,
        "interruption-level": "active",
    }
    return _push(
        "push_by_apns",
        "What an iPhone gets",
        "Apple's push service delivers it to the app: no HTTP call of the service reaches you.",
        "ApnsPush",
        {
            "shown": {"aps": aps, "notification": shown},
            "clear_one": {"aps": {"badge": 2, "content-available": 1}, "clear": [uuid(1)]},
            "clear_all": {"aps": {"badge": 0, "content-available": 1}, "clear": "all"},
        },
    )


def _fcm(words: Examples, shown: Examples) -> dict[str, Any]:
    return _push(
        "push_by_fcm",
        "What an Android phone gets",
        "Firebase Cloud Messaging delivers it to the app: no HTTP call of the service reaches you.",
        "FcmPush",
        {
            "shown": {"notification": words, "data": {**shown, "data": to_json(shown["data"]), "badge": "3"}},
            "clear_one": {"data": {"clear": to_json([uuid(1)]), "badge": "2"}},
            "clear_all": {"data": {"clear": '"all"', "badge": "0"}},
        },
    )


def _web_push(words: Examples, shown: Examples) -> dict[str, Any]:
    return _push(
        "push_by_web_push",
        "What a browser gets",
        "The browser's own push service delivers it, encrypted, to your service worker: no HTTP call of the service"
        f" reaches you. Decrypted it has at most {MAX_WEB_PUSH_BYTES:,} bytes.",
        "WebPush",
        {
            "shown": {**words, "tag": shown["id"], "badge": 3, "notification": shown},
            "clear": {"badge": 2, "clear": [uuid(1)]},
        },
    )


def _push(name: str, summary: str, description: str, schema: str, values: Examples) -> dict[str, Any]:
    named = {example: {"value": value} for example, value in values.items()}
    return {
        "operationId": name,
        "tags": ["pushes"],
        "summary": summary,
        "description": description,
        "security": [],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref(schema), "examples": named}},
        },
        "responses": {"200": {"description": "The provider's own affair: the service makes no such call"}},
    }
