"""The models of responses, from which the OpenAPI document is generated.

Responses are open: later releases may add fields, and values of fields.
"""

from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from tocsin.attribute_docs import DescribedModel
from tocsin.errors import MAX_FIELD_ERRORS, Invalid, Problem
from tocsin.formats import User
from tocsin.notifications import time_of
from tocsin.validation import VALIDATION_CODES


def _time(given: Any) -> Any:
    return given if given is None or isinstance(given, str) else time_of(given)


Time = Annotated[
    str,
    BeforeValidator(_time),
    Field(
        description="UTC, `YYYY-MM-DD HH:MM:SS`",
        json_schema_extra={"pattern": r"^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}$"},
    ),
]
"""A time. A `datetime` is converted."""

Lane = Annotated[str, Field(description="the provider, app and environment of the pushes to the device")]
TokenEnding = Annotated[str, Field(description="the last 6 characters of the token")]
PlainObject = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "additionalProperties": True})]


class AnswerModel(DescribedModel, BaseModel, from_attributes=True):
    """A response, or a part of one. A field with a default value may be absent."""


def _codes(family: type[Problem] = Problem) -> Iterator[str]:
    """Return the error codes of all subclasses."""
    for problem in family.__subclasses__():
        if problem is Invalid:
            yield from (f"{problem.code}.{code}" for code in sorted(VALIDATION_CODES))
        else:
            yield from _codes(problem) if problem.__subclasses__() else [problem.code]


class ErrorEntry(AnswerModel):
    """One error of a request."""

    message: str
    """what is wrong, for the developer"""
    code: Annotated[
        str,
        Field(
            description="for programs; currently one of " + ", ".join(f"`{code}`" for code in dict.fromkeys(_codes()))
        ),
    ]
    field: str = ""
    """only validation errors: dotted path of the invalid value"""
    id: str = ""
    """only status 500: the request id, which is also in the log"""


class Errors(AnswerModel):
    """The body of all error responses."""

    errors: Annotated[list[ErrorEntry], Field(min_length=1, max_length=MAX_FIELD_ERRORS)]
    more: Annotated[int, Field(ge=1)] = 0
    """number of further errors, which are not listed"""


class Notification(AnswerModel):
    """A notification in a user's inbox."""

    id: UUID
    type: str
    """open: further kinds may be added"""
    data: PlainObject
    """the fields of the kind, described in `NoteNotification` and so on"""
    message: str
    """plain text; quoted text follows after ` <br> `"""
    message_formatted: str
    """safe HTML, only with the tags `p`, `strong`, `em` and `br`"""
    read: bool
    read_at: Time | None
    created_at: Time


class PageUrls(AnswerModel):
    """Absolute urls of the previous and the next page; null if there is none."""

    previous: str | None
    next: str | None
    """contains a cursor, so that no notification is repeated or skipped"""


class Pagination(AnswerModel):
    """The position of a page in the list."""

    total: int
    """number of notifications on all pages"""
    page: int
    per_page: int
    urls: PageUrls
    unread: int
    """number of unread notifications in the inbox"""


class PageAnswer(AnswerModel, title="Page"):
    """A page of the inbox, newest first."""

    data: list[Notification]
    pagination: Pagination


class InboxChange(AnswerModel):
    """One change of the inbox."""

    event: str
    """`notification`, `read`, `unread` or `deleted`; open"""
    data: PlainObject
    """`notification`: the notification; other events: `id`, `ids`, or `all` with `up_to`"""


class ChangesAnswer(AnswerModel, title="Changes"):
    """Changes of the inbox. Without `since`, only `cursor` is present; with `resync`, only `cursor` and `resync`."""

    cursor: str
    """the end of these changes; send it as `since` in the next request"""
    data: list[InboxChange] = []
    unread: int = 0
    """number of unread notifications in the inbox"""
    more: bool = False
    """true: there are further changes; request them with the cursor"""
    resync: bool = False
    """true: the changes are no longer stored; load the list"""


class Links(AnswerModel):
    """Links of notifications."""

    data: dict[str, str | None]
    """by notification id; null if the kind has no link; unknown ids are left out"""


class KindAnswer(AnswerModel, title="Kind"):
    """A kind of notification, for a preferences page."""

    name: str
    """the name in preferences, such as `note` or `gamification/new_level`"""
    label: str
    """in the caller's language"""
    group: str
    group_label: str
    """in the caller's language"""
    channels: list[str]
    default: dict[str, bool]
    locked: dict[str, bool]
    """true: users cannot change this preference"""


class Kinds(AnswerModel):
    """All kinds of notification, by group."""

    data: list[KindAnswer]


class KindPreferences(AnswerModel):
    """The preferences of a user for one kind."""

    push: bool
    """whether it is pushed to phones"""
    web_push: bool
    """whether it is pushed to browsers"""
    urgent: bool
    """whether it is pushed during quiet hours and pauses"""


class QuietWindow(AnswerModel):
    """A window of quiet hours."""

    days: list[str]
    """the days on which the window starts"""
    from_: Annotated[str, Field(alias="from")]
    """the time of day at which it starts, such as `20:00`"""
    to: str
    """the time of day at which it ends; on the next day if not later than `from`"""


class PreferencesAnswer(AnswerModel, title="Preferences"):
    """The preferences of a user, including defaults."""

    kinds: dict[str, KindPreferences]
    """all kinds by name"""
    quiet_hours: list[QuietWindow]
    paused_until: Time | None
    time_zone: str
    """an IANA name; quiet hours are in this time zone"""


class Queued(AnswerModel):
    """The request is stored and will be processed."""

    queued: bool


class Skipped(AnswerModel):
    """The unknown ids, which were ignored."""

    users: list[int]
    teams: list[int]


_NONE_SKIPPED = Skipped(users=[], teams=[])


class QueuedEvent(AnswerModel):
    """The event is stored."""

    queued: bool
    id: UUID
    """the id of the event and of its notifications"""
    skipped: Skipped = Field(default_factory=lambda: _NONE_SKIPPED)
    """only if `notify.unknown` is `skip`: the unknown ids"""


class SkippedOfEvent(AnswerModel):
    """The unknown ids of one event, which were ignored."""

    id: UUID
    users: list[int]
    teams: list[int]


class QueuedBatch(AnswerModel):
    """The events are stored."""

    queued: bool
    ids: list[UUID]
    """in the order of the events"""
    skipped: list[SkippedOfEvent] = []
    """only if `notify.unknown` is `skip`: the unknown ids of each event"""


class PushCounts(AnswerModel):
    """The number of pushes by state."""

    queued: int
    delivered: int
    """accepted by the provider"""
    gone: int
    """the device no longer exists and was removed"""
    later: int
    """failed, and will be retried"""
    held: int
    """waiting for the end of quiet hours or of a pause"""
    refused: int
    """rejected by the provider"""
    dead: int
    """given up after the last retry"""
    muted: int
    """not sent: the user switched the kind off"""
    skipped: int
    """not sent: read, deleted, cancelled or moved to another user before"""


class EventStatus(AnswerModel):
    """The status of an event."""

    id: UUID
    type: str
    state: str
    """`held`, `queued`, `delivering`, `delivered`, `cancelled` or `failed`; open"""
    recipients: int
    """number of inboxes to which it was delivered so far"""
    read: int
    """number of these recipients who have read it"""
    dropped: int
    """number of recipients who were erased or inactive at delivery"""
    pushes: PushCounts
    reason: str = ""
    """why it failed, or which operator cancelled it"""
    replaced_by: Annotated[str, Field(json_schema_extra={"format": "uuid"})] = ""
    """the id of the event that replaced it"""


class PushToDevice(AnswerModel):
    """The push to one device: its state, and the response of the provider."""

    type: str
    token_ending: TokenEnding
    lane: Lane
    state: str
    """`unserved`: nothing was sent, because no key is set for the lane; open"""
    attempts: int
    settled_at: Time | None
    what: str | None
    """the reason of the state, or the response of the provider"""


class Recipient(AnswerModel):
    """Whether and why a user was a recipient of an event."""

    event_id: UUID
    user_id: int
    recipient: bool
    """whether the notification was delivered to the inbox"""
    why: str
    """the reason: named, member of a team, excluded, dropped ..."""
    team_id: int | None
    """the team through which the user was a recipient"""
    delivered_at: Time | None
    read_at: Time | None
    deleted_at: Time | None
    devices: list[PushToDevice]


class DeviceAnswer(AnswerModel, title="RegisteredDevice"):
    """A registered device."""

    type: str
    """`iOS`, `Android` or `Web` (a browser); open"""
    environment: str
    app: str
    token_ending: TokenEnding
    registered_at: Time
    last_delivered_at: Time | None


class Devices(AnswerModel):
    """The devices of a user, the last registered first."""

    data: list[DeviceAnswer]


class PushOutcome(AnswerModel):
    """The result of a test push."""

    lane: str
    """the provider, app and environment of the push"""
    state: str
    """`delivered`, `gone`, `later`, `refused`, `skipped` or `stopped` (the service is misconfigured); open"""
    reason: str
    """the response of the provider"""


class WebPushKey(AnswerModel):
    """The public VAPID key."""

    key: str
    """the `applicationServerKey` of a subscription, in base64url"""


class Users(AnswerModel):
    """Users in ascending order of ids."""

    data: list[User]
    next: int | None
    """`after` for the next page; null at the end"""


class TeamAnswer(AnswerModel, title="Team"):
    """A team and its members."""

    id: int
    company_id: int
    name: str
    users: list[int]
    """ids of the members, ascending"""


class TeamListed(AnswerModel):
    """A team in a list."""

    id: int
    company_id: int
    name: str
    size: int
    """number of members"""


class Teams(AnswerModel):
    """Teams in ascending order of ids."""

    data: list[TeamListed]
    next: int | None
    """`after` for the next page; null at the end"""


class Imported(AnswerModel):
    """The number of imported lines of each type."""

    users: int
    teams: int
    devices: int
    notifications: int
