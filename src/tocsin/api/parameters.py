"""The parameters of paths and queries, which are validated and described in the OpenAPI document."""

import re
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query
from pydantic import BeforeValidator, PlainValidator, WithJsonSchema

from tocsin.devices import ENDING
from tocsin.errors import NotFound
from tocsin.explain import MAX_EXPLAINED
from tocsin.ids import MAX_ID, parsed_id, parsed_uuid
from tocsin.notifications import moment_of
from tocsin.validation import Between, refusal, refusals

MAX_LINKS = 100
"""Maximum ids per request for links."""

MAX_LIST_LIMIT = 1_000
DEFAULT_LIST_LIMIT = 100

MAX_CALLER_LENGTH = 200
"""Maximum characters of a caller in the audit log."""

MIN_SEARCH_LENGTH, MAX_SEARCH_LENGTH = 2, 255
"""Minimum and maximum characters of a search."""

_INTEGER = re.compile(r"-?[0-9]+")
_MAX_DIGITS = 20
_BEYOND_ALL = 10**_MAX_DIGITS


def integer(text: str) -> int:
    """Parse an integer in a query or a path."""
    if not _INTEGER.fullmatch(text):
        raise refusal("integer", "must be an integer")
    return int(text) if len(text) <= _MAX_DIGITS else _BEYOND_ALL


def _given_id(text: str) -> int | str:
    return integer(text) if _INTEGER.fullmatch(text) else text


def _known_id(text: str) -> int:
    if (found := parsed_id(text)) is None:
        raise NotFound
    return found


def _known_uuid(text: str) -> UUID:
    if (found := parsed_uuid(text)) is None:
        raise NotFound
    return found


def _moment(text: str) -> datetime | None:
    moment = moment_of(text) if text else None
    if text and moment is None:
        raise refusal("date", "must be a time in UTC, such as 2030-01-31 08:00:00")
    return moment


def _cursor(text: str) -> UUID | None:
    if text and parsed_uuid(text) is None:
        raise refusal("uuid", "must be a UUID")
    return parsed_uuid(text)


def _characters(text: str, least: int, most: int) -> str:
    """Return a text of this length without NUL, which PostgreSQL does not accept."""
    if not least <= len(text) <= most or "\0" in text:
        raise refusal("string_between", f"must have {least} to {most} characters, none of them NUL")
    return text


def _caller(text: str) -> str | None:
    return _characters(text, 1, MAX_CALLER_LENGTH) if text else None


def _searched(text: str) -> str:
    return _characters(" ".join(text.split()), MIN_SEARCH_LENGTH, MAX_SEARCH_LENGTH)


def _ending(text: str) -> str:
    if len(text) != ENDING or "\0" in text:
        raise refusal("string_between", f"must be the last {ENDING} characters of a token")
    return text


def _listed_ids(text: str) -> list[UUID]:
    if not text:
        raise refusal("required", "is required")
    given = text.split(",")
    if len(given) > MAX_LINKS:
        raise refusal("array_between", f"must have 1 to {MAX_LINKS} entries")
    found = [parsed_uuid(each) for each in given]
    if None in found:
        raise refusals([(place, "uuid", "must be a UUID") for place, id_ in enumerate(found) if id_ is None])
    return [id_ for id_ in found if id_]


_AN_ID = WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_ID})
_A_UUID = WithJsonSchema({"type": "string", "format": "uuid"})

NewId = Annotated[int, Between(1, MAX_ID), BeforeValidator(integer)]
"""The id in a path of a user or team that may not exist."""

NewUserId = Annotated[int | str, PlainValidator(_given_id), _AN_ID, Path(title="id", description="id of a user")]
NewTeamId = Annotated[int | str, PlainValidator(_given_id), _AN_ID, Path(title="id", description="id of a team")]
"""The same, to be validated with the body: text if it is not an integer."""

UserId = Annotated[int, PlainValidator(_known_id), _AN_ID, Path(description="id of a user")]
TeamId = Annotated[int, PlainValidator(_known_id), _AN_ID, Path(description="id of a team")]
NotificationId = Annotated[UUID, PlainValidator(_known_uuid), _A_UUID, Path(description="id of a notification")]
EventId = Annotated[
    UUID, PlainValidator(_known_uuid), _A_UUID, Path(description="id of an event and its notifications")
]
DeviceId = Annotated[
    UUID, PlainValidator(_known_uuid), _A_UUID, Path(description="id of a device, as in the state of its user")
]
Token = Annotated[str, Path(min_length=1, description="the token of the phone from its push service")]

After = Annotated[int, Between(0, MAX_ID), BeforeValidator(integer), Query(description="only entries with greater ids")]
CompanyId = Annotated[NewId | None, Query(description="only entries of this company")]
Limit = Annotated[
    int, Between(1, MAX_LIST_LIMIT), BeforeValidator(integer), Query(description="maximum number of entries")
]
Explained = Annotated[
    int, Between(1, MAX_EXPLAINED), BeforeValidator(integer), Query(description="maximum number of entries")
]
Moment = Annotated[datetime | None, PlainValidator(_moment), WithJsonSchema({"type": "string"})]
Cursor = Annotated[
    UUID | None,
    PlainValidator(_cursor),
    WithJsonSchema({"type": "string", "format": "uuid"}),
    Query(description="only entries before this one: `next` of the last page"),
]
Caller = Annotated[
    str | None,
    PlainValidator(_caller),
    WithJsonSchema({"type": "string", "maxLength": MAX_CALLER_LENGTH}),
    Query(description="only entries of this caller, such as `user 4` or `service crm`"),
]
Before = Annotated[Moment, Query(description="only entries before this time; default: now")]
Search = Annotated[
    str,
    PlainValidator(_searched),
    WithJsonSchema({"type": "string", "minLength": MIN_SEARCH_LENGTH, "maxLength": MAX_SEARCH_LENGTH}),
    Query(description="the beginning of the name or the e-mail address"),
]
Ending = Annotated[
    str,
    PlainValidator(_ending),
    WithJsonSchema({"type": "string", "minLength": ENDING, "maxLength": ENDING}),
    Query(description="the last characters of the token"),
]
ListedIds = Annotated[
    list[UUID],
    PlainValidator(_listed_ids),
    WithJsonSchema({"type": "string"}),
    Query(description=f"ids, separated by commas, at most {MAX_LINKS}"),
]
