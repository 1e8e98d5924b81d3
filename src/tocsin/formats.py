"""The formats of users, teams and imported notifications."""

import zoneinfo
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import to_json

from tocsin.catalogue.rendering import has_only_allowed_tags, one_line
from tocsin.errors import MAX_FIELD_ERRORS, FieldError
from tocsin.ids import MAX_ID, is_id, uuid_text
from tocsin.notifications import moment_of
from tocsin.strict_json import HUGE, MAX_INTEGER_LENGTH
from tocsin.validation import Between, RequestModel, field_error, refusal, refusals

MAX_TEAM_MEMBERS = 1_000_000
MAX_TEXT_LENGTH = 120_000
"""Maximum characters of an old message. Those of the catalogue can list a hundred things of a thousand characters."""

MAX_HTML_LENGTH = 6 * MAX_TEXT_LENGTH
"""Maximum characters of its HTML, in which a character of the message takes up to five, and the tags some more."""

DEFAULT_COMPANY = 1
"""The company of users and teams that name none, if the token is not bound to one."""

SKEW = timedelta(minutes=5)
"""Maximum difference by which the clock of a client may be ahead."""


_MACHINE_SPECIFIC = frozenset({"localtime", "Factory", "posixrules"})
"""Files in the zoneinfo folders whose contents depend on the machine."""


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones()) - _MACHINE_SPECIFIC


def is_time_zone(name: str) -> bool:
    """Return whether this is the name of an IANA time zone."""
    return name in _time_zones()


def _known_zone(name: str) -> str:
    if not is_time_zone(name):
        raise refusal("in", "must be an IANA time zone such as Europe/Copenhagen")
    return name


def _known_uuid(given: Any) -> UUID:
    return UUID(_known_uuid_text(given))


def _known_uuid_text(given: Any) -> str:
    if (found := uuid_text(given)) is None:
        raise refusal("uuid", "must be a UUID")
    return found


def _safe_html(html: str) -> str:
    if not has_only_allowed_tags(html):
        raise refusal("regex", "may contain only the tags p, strong, em and br, all closed")
    return html


def _moment(given: Any) -> datetime:
    if not isinstance(given, str):
        raise refusal("string", "must be a string")
    moment = moment_of(given)
    if moment is None:
        raise refusal("date", "must be a time in UTC, such as 2030-01-31 08:00:00")
    return moment


def _past(moment: datetime) -> datetime:
    if moment > datetime.now(UTC) + SKEW:
        raise refusal("date", "must not be in the future")
    return moment


def _given(value: Any) -> Any:
    if value is None:
        raise refusal("required", "is required")
    return value


def _exact(data: dict[str, Any]) -> dict[str, Any]:
    if _DIGITS_OF_HUGE in to_json(data) and _has_huge(data):
        raise refusal("numeric_between", f"has an integer of more than {MAX_INTEGER_LENGTH} characters")
    return data


def _has_huge(value: Any) -> bool:
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        return any(_has_huge(each) for each in value)
    return type(value) is int and abs(value) == HUGE


_DIGITS_OF_HUGE = str(HUGE).encode()
_NO_INTEGER = ("integer", "must be an integer")
_NO_ID = ("numeric_between", f"must be between 1 and {MAX_ID}")


def _wrong_ids(ids: Iterable[Any]) -> Iterator[tuple[int, str, str]]:
    """Yield the position, the code and the text of the error for each value that is not a valid id."""
    for position, id_ in enumerate(ids):
        if type(id_) is not int:
            yield position, *_NO_INTEGER
        elif not 1 <= id_ <= MAX_ID:
            yield position, *_NO_ID


def _ids(given: Any, check: ValidatorFunctionWrapHandler) -> list[int]:
    """Check the ids of a list without a pydantic error for each: the list may be long."""
    try:
        found: list[int] = check(given)
    except ValidationError:
        if not isinstance(given, list):
            raise refusal("array", "must be an array") from None
        first = list(islice(wrong := _wrong_ids(given), MAX_FIELD_ERRORS))
        raise refusals(first, sum(1 for _ in wrong)) from None
    return found


Given = BeforeValidator(_given)
"""Handles null like a missing field."""

Id = Annotated[int, Between(1, MAX_ID)]
Ids = Annotated[list[Annotated[int, Field(strict=True, ge=1, le=MAX_ID)]], Field(fail_fast=True), WrapValidator(_ids)]
Uuid = Annotated[UUID, PlainValidator(_known_uuid), WithJsonSchema({"type": "string", "format": "uuid"})]
UuidText = Annotated[str, PlainValidator(_known_uuid_text), WithJsonSchema({"type": "string", "format": "uuid"})]
Name = Annotated[str, Field(max_length=255), AfterValidator(one_line)]
Locale = Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,8}$")]
Moment = Annotated[datetime, PlainValidator(_moment), WithJsonSchema({"type": "string"})]
Past = Annotated[Moment, AfterValidator(_past)]
TimeZone = Annotated[str, AfterValidator(_known_zone)]


def errors_of_company(given: Mapping[str, Any], company_id: int | None) -> list[FieldError]:
    """Return the error of a user or a team in another company than the one of the token, if it is bound to one."""
    named = given.get("company_id")
    if not is_id(named) or company_id in {None, named}:
        return []
    return [field_error("company_id", "unknown", "must be the company of the token")]


def company_of(given: int | None, company_id: int | None) -> int:
    """Return the company of a valid user or team: its own, that of the token, or the default one."""
    return given or company_id or DEFAULT_COMPANY


class UserBody(RequestModel):
    """A user. Missing fields have their default values."""

    first_name: Name
    last_name: Name
    profile_picture: Annotated[str, Field(max_length=1000)] | None = None
    email: Annotated[str, Field(max_length=320)] | None = None
    company_id: Id | None = None
    """left out: the company of the token, or 1"""
    locale: Locale = "en"
    time_zone: TimeZone = "UTC"
    active: bool = True


class TeamBody(RequestModel):
    """A team; `users` replaces its members."""

    name: Name
    company_id: Id | None = None
    """left out: the company of the token, or 1"""
    users: Annotated[Ids, Between(0, MAX_TEAM_MEMBERS)] = Field(default_factory=list)


class UserLine(UserBody):
    """A user in an import."""

    id: Id


class TeamLine(TeamBody):
    """A team in an import."""

    id: Id


def _as_answered(schema: dict[str, Any]) -> None:
    """Convert the schema to that of a response: all fields are required, without the limits of requests."""
    schema["required"] = list(schema["properties"])
    for of in schema["properties"].values():
        for part in (of, *of.get("anyOf", ())):
            for limit in ("maxLength", "pattern", "minimum", "maximum", "default"):
                part.pop(limit, None)


class User(UserLine, json_schema_extra=_as_answered):
    """A user of the host application. `locale` is a BCP 47 tag, `time_zone` an IANA name."""

    company_id: Id


class NotificationLine(RequestModel, title="OldNotification"):
    """A notification of another system. Its HTML may contain only the tags of the catalogue."""

    user_id: Id
    id: UuidText
    type: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,99}$")]
    data: Annotated[dict[str, Any], AfterValidator(_exact)]
    message: Annotated[str, Field(max_length=MAX_TEXT_LENGTH)]
    message_formatted: Annotated[str, Field(max_length=MAX_HTML_LENGTH), AfterValidator(_safe_html)] | None = None
    read_at: Past | None = None
    created_at: Past
