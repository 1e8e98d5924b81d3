"""The notification itself: eight keys, in the order of the API document, made into JSON once per event and language."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tocsin.catalogue import Catalogue

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_json(value: Any) -> str:
    """Return JSON as we write it everywhere: UTF-8, no white space, keys as they come."""
    return _ENCODER.encode(value)


def time_of(moment: datetime | None) -> str | None:
    """Return a moment in UTC as resources show it: `YYYY-MM-DD HH:MM:SS`."""
    return None if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S")


def body_of(catalogue: Catalogue, event: Mapping[str, Any], language: str) -> str:
    """Return the first five keys of a notification as JSON without braces.

    `event` has `id`, `kind`, and `data` and `params` as JSON, as the event keeps them. What follows, `read`,
    `read_at` and `created_at`, is each reader's own, and is added by the database. Raises `LookupError` for a kind
    that the catalogue does not have.
    """
    words = catalogue.render(event["kind"], language, json.loads(event["data"]), json.loads(event["params"]))
    return (
        f'"id":"{event["id"]}","type":{to_json(catalogue.kinds[event["kind"]].type)},"data":{event["data"]},'
        f'"message":{to_json(words.message)},"message_formatted":{to_json(words.message_formatted)}'
    )
