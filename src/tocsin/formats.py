"""The forms of what the host application says of its users and teams, and of notifications of former times."""

import zoneinfo
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from tocsin.catalogue.rendering import has_only_our_marks, one_line
from tocsin.errors import MAX_FIELD_ERRORS
from tocsin.ids import MAX_ID, parsed_uuid
from tocsin.notifications import moment_of
from tocsin.validation import ENTRIES

MAX_TEAM_MEMBERS = 1_000_000
MAX_TEXT_LENGTH = 20_000

SKEW = timedelta(minutes=5)
"""How far the clock of another system may be ahead of ours."""


_NO_PLACES = frozenset({"localtime", "Factory", "posixrules"})
"""Files beside the time zones of a system: what they hold is that of the server."""


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones()) - _NO_PLACES


def is_time_zone(name: str) -> bool:
    """Tell whether a name is that of an IANA time zone."""
    return name in _time_zones()


def _known_zone(name: str) -> str:
    if not is_time_zone(name):
        raise PydanticCustomError("in", "must be an IANA time zone such as Europe/Copenhagen")
    return name


def _known_uuid(given: Any) -> UUID:
    if (found := parsed_uuid(given)) is None:
        raise PydanticCustomError("uuid", "must be a UUID")
    return found


def _safe_html(html: str) -> str:
    if not has_only_our_marks(html):
        raise PydanticCustomError("regex", "may contain only the tags p, strong, em and br, all closed")
    return html


def _past(given: Any) -> datetime:
    if not isinstance(given, str):
        raise PydanticCustomError("string", "must be a string")
    moment = moment_of(given)
    if moment is None:
        raise PydanticCustomError("date", "must be a time in UTC, such as 2030-01-31 08:00:00")
    if moment > datetime.now(UTC) + SKEW:
        raise PydanticCustomError("date", "must not be in the future")
    return moment


_NO_INTEGER = ("integer", "must be an integer")
_NO_ID = ("numeric_between", f"must be between 1 and {MAX_ID}")


def wrong_ids(ids: Iterable[Any]) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield the positions of what is no id of a user or team, each with what is wrong with it."""
    for position, id_ in enumerate(ids):
        if type(id_) is not int:
            yield position, _NO_INTEGER
        elif not 1 <= id_ <= MAX_ID:
            yield position, _NO_ID


def _only_ids(given: Any) -> Any:
    """Find what is wrong with the ids of a list without a finding of pydantic's for each."""
    if not isinstance(given, list):
        return given
    first = list(islice(wrong := wrong_ids(given), MAX_FIELD_ERRORS))
    if not first:
        return given
    more = sum(1 for _ in wrong)
    found = [(position, *field_error) for position, field_error in first]
    raise PydanticCustomError(ENTRIES, "has entries that are not ids", {"first": found, "more": more})


Id = Annotated[int, Field(ge=1, le=MAX_ID)]
Name = Annotated[str, Field(max_length=255), AfterValidator(one_line)]
Locale = Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8}){0,3}$")]
Past = Annotated[datetime, PlainValidator(_past), WithJsonSchema({"type": "string"})]
TimeZone = Annotated[str, AfterValidator(_known_zone)]


class UserBody(BaseModel):
    """A user; what is left out takes its default."""

    model_config = ConfigDict(strict=True, title="User")

    first_name: Name
    last_name: Name
    profile_picture: Annotated[str, Field(max_length=1000)] | None = None
    email: Annotated[str, Field(max_length=320)] | None = None
    company_id: Annotated[Id | None, Field(description="left out: 1, or the one that the token is bound to")] = None
    locale: Locale = "en"
    time_zone: TimeZone = "UTC"
    active: bool = True


class TeamBody(BaseModel):
    """A team; `users` replaces its members."""

    model_config = ConfigDict(strict=True, title="Team")

    name: Name
    company_id: Annotated[Id | None, Field(description="left out: 1, or the one that the token is bound to")] = None
    users: Annotated[list[Id], Field(max_length=MAX_TEAM_MEMBERS), BeforeValidator(_only_ids)] = []


class UserLine(UserBody):
    """A user as a line of an import has it."""

    id: Id


class TeamLine(TeamBody):
    """A team as a line of an import has it."""

    id: Id


class NotificationLine(BaseModel):
    """A notification of former times, as it was; its HTML has no marks but ours."""

    model_config = ConfigDict(strict=True)

    user_id: Id
    id: Annotated[UUID, PlainValidator(_known_uuid), WithJsonSchema({"type": "string", "format": "uuid"})]
    type: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,99}$")]
    data: dict[str, Any]
    message: Annotated[str, Field(max_length=MAX_TEXT_LENGTH)]
    message_formatted: Annotated[str, Field(max_length=2 * MAX_TEXT_LENGTH), AfterValidator(_safe_html)] | None = None
    read_at: Past | None = None
    created_at: Past
