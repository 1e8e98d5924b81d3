"""The JSON of notifications: eight keys in the order of the API document, made once per event and language."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic_core

from tocsin.catalogue import Catalogue
from tocsin.validation import refusal

IMPORTED = "imported-"
"""The prefix of the language of imported notifications; a digest of the text follows."""

FURTHEST_AHEAD = timedelta(days=366)
"""Maximum time in the future for which something can be scheduled."""

_HOUR = r"([01]\d|2[0-3])"
"""Matches an hour. `fromisoformat` accepts 24 in later versions of Python, and minutes of an offset up to 99."""

_MOMENT = re.compile(
    rf"\d{{4}}-\d\d-\d\d[Tt ]{_HOUR}:[0-5]\d:[0-5]\d(\.\d{{1,9}})?([Zz]|[+-]{_HOUR}:[0-5]\d)?", re.ASCII
)
_WITH_OFFSET = re.compile(r"([Zz]|[+-]\d{2}:\d{2})$")


def to_json(value: Any) -> str:
    """Return JSON in UTF-8, without white space, with keys in their given order."""
    return str(pydantic_core.to_json(value), "utf-8")


def time_of(moment: datetime | None) -> str | None:
    """Return a time in UTC as in resources: `YYYY-MM-DD HH:MM:SS`."""
    return None if moment is None else moment.replace(tzinfo=None).isoformat(" ", "seconds")


def moment_of(text: str) -> datetime | None:
    """Return the time of a string in RFC 3339, in UTC if it has no offset; None if it is invalid."""
    if not _MOMENT.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text.upper())
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def future_of(given: Any) -> datetime | None:
    """Return a future time, at most a year ahead, or None if it has passed. Raises `PydanticCustomError`."""
    now = datetime.now(UTC)
    moment = moment_of(given) if isinstance(given, str) and _WITH_OFFSET.search(given) else None
    if moment is None:
        raise refusal("date", "must be an RFC 3339 time with an offset, such as 2030-01-31T08:00:00+01:00")
    if moment > now + FURTHEST_AHEAD:
        raise refusal("date", "must be at most a year ahead")
    return moment if moment > now else None


def body_of(catalogue: Catalogue, event: Mapping[str, Any], language: str) -> str:
    """Return the first five keys of a notification as JSON without braces.

    `event` has `id`, `kind`, `erased`, and `data` and `params` as JSON. The other keys, `read`, `read_at` and
    `created_at`, differ by user and are added by the database. Raises `LookupError` for an unknown kind.
    """
    data, params = json.loads(event["data"]), json.loads(event["params"])
    words = catalogue.render(event["kind"], language, data, params, erased=event["erased"])
    type_ = catalogue.kinds[event["kind"]].type
    return body_with(str(event["id"]), type_, event["data"], words.message, words.message_formatted)


def body_with(id_: str, type_: str, data: str, message: str, message_formatted: str) -> str:
    """Return the first five keys of a notification; `data` is JSON."""
    return (
        f'"id":"{id_}","type":{to_json(type_)},"data":{data},'
        f'"message":{to_json(message)},"message_formatted":{to_json(message_formatted)}'
    )


def is_imported(language: str) -> bool:
    """Return whether the text of a notification in this language was imported."""
    return language.startswith(IMPORTED)


def erased_body(catalogue: Catalogue, body: str, language: str) -> str:
    """Return the first five keys of a notification that cannot be rendered again, without personal data.

    The phrase that replaces its text is in English if the language is not one of the catalogue.
    """
    found = json.loads(f"{{{body}}}")
    data, _ = catalogue.erase(catalogue.name_of(found["type"], found["data"]), found["data"], {})
    phrase = catalogue.phrase("erased", language)
    return body_with(found["id"], found["type"], to_json(data), phrase, f"<p>{phrase}</p>")
