"""The notification itself: eight keys, in the order of the API document, made into JSON once per event and language."""

import json
from typing import Any
from uuid import UUID

from tocsin.catalogue import Catalogue


def to_json(value: Any) -> str:
    """Return JSON as we write it everywhere: UTF-8, no white space, keys as they come."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def body_of(catalogue: Catalogue, id_: UUID, kind: str, language: str, data: str, params: str) -> str:
    """Return the first five keys of a notification as JSON without braces.

    `data` and `params` are JSON, as the event keeps them. What follows, `read`, `read_at` and `created_at`, is each
    reader's own, and is added by the database. Raises `LookupError` for a kind that the catalogue does not have.
    """
    words = catalogue.render(kind, language, json.loads(data), json.loads(params))
    return (
        f'"id":"{id_}","type":{to_json(catalogue.kinds[kind].type)},"data":{data},'
        f'"message":{to_json(words.message)},"message_formatted":{to_json(words.message_formatted)}'
    )
