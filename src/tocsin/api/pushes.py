"""The payloads of pushes to phones and browsers, as `webhooks` of the API document."""

import json
from importlib.resources import files
from typing import Any

from tocsin.api.examples import Examples, uuid
from tocsin.api.schemas import Schema, ref
from tocsin.catalogue import Catalogue
from tocsin.notifications import to_json

MAX_WEB_PUSH_BYTES = 3_000
"""Maximum bytes of the payload for a browser."""

PUSHES: dict[str, Schema] = json.loads((files("tocsin.api") / "push_schemas.json").read_text("utf-8"))


def pushes(catalogue: Catalogue) -> dict[str, Any]:
    """Return the webhooks, one for each provider, with a sample of the catalogue."""
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
        "The push to an iPhone",
        "Apple's push service delivers it to the app. The service sends no HTTP request to you.",
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
        "The push to an Android phone",
        "Firebase Cloud Messaging delivers it to the app. The service sends no HTTP request to you.",
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
        "The push to a browser",
        "The push service of the browser delivers it, encrypted, to your service worker. The service sends no HTTP"
        f" request to you. The decrypted payload has at most {MAX_WEB_PUSH_BYTES:,} bytes.",
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
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref(schema), "examples": named}}},
        "responses": {"200": {"description": "Not applicable: the provider delivers the push"}},
    }
