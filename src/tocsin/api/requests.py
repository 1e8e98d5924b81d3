"""The models of request bodies, which validate them and describe them in the OpenAPI document."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from tocsin.api.body import JSON, MAX_BODY_BYTES, MERGE_PATCH
from tocsin.catalogue import MAX_SUBJECT_LENGTH
from tocsin.catalogue.fields import Message
from tocsin.errors import FieldError, Invalid
from tocsin.formats import Given, Ids, Uuid
from tocsin.notifications import future_of
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

_SUBJECT = re.compile(rf"[a-z][a-z0-9_]{{0,31}}:\S(.{{0,{MAX_SUBJECT_LENGTH - 2}}}\S)?")


def subject_of(text: Any) -> str | None:
    """Return a subject in stored form, or None if it is invalid. Only keys are case-sensitive."""
    if not isinstance(text, str):
        return None
    if text.startswith(KEY):
        return text if 1 <= len(text) - len(KEY) <= MAX_KEY_LENGTH else None
    return text.lower() if _SUBJECT.fullmatch(text) else None


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
