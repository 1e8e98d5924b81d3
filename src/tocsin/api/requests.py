"""The models of parameters and request bodies, which validate them and describe them in the OpenAPI document."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self
from uuid import UUID

from fastapi import Path, Query
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from tocsin.api.body import JSON, MAX_BODY_BYTES, MERGE_PATCH
from tocsin.catalogue.fields import Message
from tocsin.devices import ENDING
from tocsin.errors import FieldError, Invalid, NotFound
from tocsin.explain import MAX_EXPLAINED
from tocsin.formats import Given, Ids, Uuid
from tocsin.ids import MAX_ID, parsed_id, parsed_uuid
from tocsin.notifications import future_of, moment_of
from tocsin.push.channels.web_push import MAX_ENDPOINT_LENGTH, check_subscription
from tocsin.resolutions import KEY, How
from tocsin.validation import Between, NotNull, RequestModel, refusal, refusals

MAX_RECIPIENTS = 10_000
"""Maximum ids in `notify`."""

MAX_KEY_LENGTH = 255
"""Maximum characters of a key of a service."""

MAX_SUBJECTS = 20
"""Maximum subjects in `about`."""

MAX_BATCH_EVENTS = 1_000
"""Maximum events per request."""

MAX_BATCH_BODY_BYTES = 8 * 2**20
"""Maximum bytes of the body of a batch."""

MAX_IDS = 1_000
"""Maximum ids of notifications to mark, or of events to requeue, per request."""

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
_SUBJECT = re.compile(r"[a-z][a-z0-9_]{0,31}:\S(.{0,253}\S)?")


def subject_of(text: Any) -> str | None:
    """Return a subject in stored form, or None if it is invalid. Only keys are case-sensitive."""
    if not isinstance(text, str):
        return None
    if text.startswith(KEY):
        return text if 1 <= len(text) - len(KEY) <= MAX_KEY_LENGTH else None
    return text.lower() if _SUBJECT.fullmatch(text) else None


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


class RequestBody(RequestModel):
    """A JSON body."""

    MAX_BYTES: ClassVar[int] = MAX_BODY_BYTES
    MEDIA_TYPES: ClassVar[tuple[str, ...]] = JSON


class Recipients(RequestModel, json_schema_extra={"minProperties": 1}):
    """The users and teams to notify: at least one id, and at most 10,000 in total."""

    NAMES: ClassVar[tuple[str, ...]] = ("users", "teams")

    users: Ids = Field(default_factory=list, json_schema_extra={"maxItems": MAX_RECIPIENTS})
    teams: Ids = Field(default_factory=list, json_schema_extra={"maxItems": MAX_RECIPIENTS})

    @model_validator(mode="before")
    @classmethod
    def _not_too_many(cls, given: Any) -> Any:
        if isinstance(given, dict) and _size(given, cls.NAMES) > MAX_RECIPIENTS:
            raise refusal("array_between", f"may have at most {MAX_RECIPIENTS} ids in {', '.join(cls.NAMES)}")
        return given

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if not self.users and not self.teams:
            both = (("users", "teams"), ("teams", "users"))
            raise refusals(
                [
                    (name, "required_without", f"is required if {{field}}{other} is absent or empty")
                    for name, other in both
                ]
            )
        return self


def named_in(given: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return the ids of users and teams in `notify` of a body that may be invalid; empty if there are too many."""
    notify = given.get("notify")
    if not isinstance(notify, dict) or _size(notify, Notify.NAMES) > MAX_RECIPIENTS:
        return [], []
    users, teams = (notify.get(name) for name in ("users", "teams"))
    return users if isinstance(users, list) else [], teams if isinstance(teams, list) else []


def _size(given: Mapping[str, Any], names: Sequence[str]) -> int:
    return sum(len(given[name]) for name in names if isinstance(given.get(name), list))


class Notify(Recipients):
    """The users and teams to notify: at least one id, and at most 10,000 in total, including `except`."""

    NAMES = ("users", "teams", "except")

    except_: Ids = Field(default_factory=list, alias="except", json_schema_extra={"maxItems": MAX_RECIPIENTS})
    """users who are not notified"""
    unknown: Literal["refuse", "skip"] | None = None
    """how to handle unknown ids: `refuse` the request or `skip` the ids; left out: `refuse`"""


class Addressed(RequestBody):
    """A body with recipients. A missing `notify` is reported like an empty one."""

    @model_validator(mode="before")
    @classmethod
    def _without_recipients(cls, given: Any) -> Any:
        return {"notify": {}, **given} if isinstance(given, dict) and "notify" not in given else given


class NewCustom(Addressed):
    """A message to colleagues."""

    message: Annotated[Message, Given]
    """plain text"""
    notify: Recipients


def _subject(text: str) -> str:
    subject = subject_of(text)
    if subject is None or subject.startswith(KEY):
        raise refusal("regex", "must be a subject such as order:42; `key` is taken")
    return subject


Subject = Annotated[
    str,
    AfterValidator(_subject),
    Field(json_schema_extra={"pattern": r"^(?!key:)[a-z][a-z0-9_]{0,31}:\S(.{0,253}\S)?$"}),
]
Future = Annotated[
    datetime | None, PlainValidator(future_of), WithJsonSchema({"type": "string", "format": "date-time"})
]


class NewEvent(Addressed):
    """An event. The catalogue validates `data` and `params`."""

    type: Any = None
    data: Any = None
    params: Any = None
    about: Annotated[list[Subject], Between(0, MAX_SUBJECTS)] | None = None
    """further subjects, such as `order:42`"""
    key: Annotated[str, Between(1, MAX_KEY_LENGTH)] | None = None
    """a name for the event; a later event with the same key replaces it, if not delivered yet"""
    deliver_at: Future | None = None
    """the time until which the event is held; at most a year ahead"""
    id: Uuid | None = None
    """chosen by the caller; a repeated request with the same id has no effect"""
    notify: Notify


class NewBatch(RequestBody):
    """Events, which are delivered in their order."""

    MAX_BYTES = MAX_BATCH_BODY_BYTES

    events: Annotated[list[NewEvent], Between(1, MAX_BATCH_EVENTS), Given]

    @classmethod
    def events_in(cls, given: Mapping[str, Any]) -> list[Any]:
        """Return the events, which must still be validated. Raises `Invalid`."""
        field_errors: list[FieldError] = []
        found = _Events.checked(given, field_errors)
        if found is None:
            raise Invalid(field_errors)
        return found.events


class _Events(RequestModel):
    events: Annotated[list[Any], Between(1, MAX_BATCH_EVENTS), Given]


def _settled(text: str) -> str:
    if (subject := subject_of(text)) is None:
        raise refusal("regex", "must be a subject such as lead:220f5f6e-e30f-4c5f-8db5-44e345f8e568")
    return subject


class ResolutionRequest(RequestBody, title="Resolution"):
    """A subject, and how to resolve its notifications."""

    about: Annotated[
        str, Given, AfterValidator(_settled), Field(json_schema_extra={"pattern": r"^[a-z][a-z0-9_]{0,31}:"})
    ]
    """the subject: `lead:220f5f6e-...`, `order:42`, or `key:` and a key of the service"""
    how: Annotated[
        How,
        Given,
        Field(
            alias="as",
            description="`read` marks the notifications as read, `gone` deletes them, `erased` removes names and texts"
            " (requires the scope `directory:write`, and applies to all users)",
        ),
    ]
    users: Annotated[Annotated[Ids, Between(0, MAX_RECIPIENTS)] | None, NotNull()] = None
    """only notifications of these users"""

    @model_validator(mode="after")
    def _erased_for_everyone(self) -> Self:
        if self.how == "erased" and self.users is not None:
            raise refusals([("users", "prohibited", "cannot be combined with erased")])
        return self


class Marks(RequestBody):
    """The notifications to mark as read. Without fields, all."""

    up_to: Annotated[Uuid | None, NotNull()] = None
    """this notification and all older ones"""
    ids: Annotated[Annotated[list[Uuid], Between(1, MAX_IDS)] | None, NotNull()] = None
    """only these notifications; cannot be combined with `up_to`"""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.up_to and self.ids:
            raise refusals([("ids", "prohibited", "cannot be combined with up_to")])
        return self


class Endpoint(RequestBody):
    """The endpoint of a browser's subscription."""

    endpoint: Annotated[str, Given]


def _is_refused(field: str, info: ValidationInfo, endpoint: str = "", p256dh: str = "", auth: str = "") -> bool:
    """Return whether a part of a subscription is invalid. The context is the state of the application."""
    origins = info.context.settings.web_push_origins if info.context else ()
    return any(name == field for name, _ in check_subscription(endpoint, p256dh, auth, origins))


def _of_push_service(endpoint: str, info: ValidationInfo) -> str:
    if _is_refused("endpoint", info, endpoint=endpoint):
        raise refusal("url", "must be the https url of an allowed push service")
    return endpoint


def _subscription_key(key: str, info: ValidationInfo) -> str:
    if _is_refused(f"keys.{info.field_name}", info, **{str(info.field_name): key}):
        raise refusal("regex", "must be a key of the subscription, in base64url")
    return key


def _expiration(given: Any) -> Any:
    if isinstance(given, bool) or not isinstance(given, int | float | None):
        raise refusal("numeric_between", "must be a number of milliseconds since 1970, or null")
    return given


class SubscriptionKeys(RequestModel):
    """The keys of a subscription, in base64url."""

    p256dh: Annotated[str, Given, AfterValidator(_subscription_key)]
    """a point on P-256"""
    auth: Annotated[str, Given, AfterValidator(_subscription_key)]
    """16 bytes"""


class SubscriptionBody(RequestBody, title="Subscription"):
    """A `PushSubscription` as serialized by the browser."""

    endpoint: Annotated[
        str, Given, AfterValidator(_of_push_service), Field(json_schema_extra={"maxLength": MAX_ENDPOINT_LENGTH})
    ]
    """a url of an allowed push service"""
    keys: Annotated[SubscriptionKeys, Given]
    expiration_time: Annotated[
        float | None,
        PlainValidator(_expiration),
        WithJsonSchema({"type": ["number", "null"]}),
        Field(alias="expirationTime"),
    ] = None


class Replay(RequestBody):
    """The dead letters to requeue: those of these events, or the pushes of a lane."""

    events: Annotated[Annotated[list[Uuid], Between(1, MAX_IDS)] | None, NotNull()] = None
    """ids of events"""
    lane: Annotated[str | None, NotNull()] = None
    """the name of a lane, such as `apns/default`"""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.events is None and self.lane is None:
            raise refusals([("events", "required_without", "is required if lane is absent")])
        return self


class PreferencesPatch(RequestBody):
    """Changes of preferences (RFC 7396). Missing fields do not change, null restores the default."""

    MEDIA_TYPES = MERGE_PATCH
