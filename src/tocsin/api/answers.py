"""What the routes answer: each answer is declared once, for the code that makes it and for the OpenAPI document.

Answers are open: fields, and values of a field, may be added in a later release.
"""

from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

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
"""A moment; it may be given as a `datetime`."""

Lane = Annotated[str, Field(description="the provider, app and environment that the device is reached by")]
TokenEnding = Annotated[str, Field(description="the last 6 characters of the token")]
PlainObject = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "additionalProperties": True})]


class AnswerModel(BaseModel):
    """An answer, or a part of one. A field with a default may be absent."""

    model_config = ConfigDict(from_attributes=True)


def _codes(family: type[Problem] = Problem) -> Iterator[str]:
    """Return the codes of all problems of a family."""
    for problem in family.__subclasses__():
        if problem is Invalid:
            yield from (f"{problem.code}.{code}" for code in sorted(VALIDATION_CODES))
        else:
            yield from _codes(problem) if problem.__subclasses__() else [problem.code]


class ErrorEntry(AnswerModel):
    """One thing that is wrong with a request."""

    message: Annotated[str, Field(description="for the developer")]
    code: Annotated[
        str,
        Field(
            description="for the machine; today one of " + ", ".join(f"`{code}`" for code in dict.fromkeys(_codes()))
        ),
    ]
    field: Annotated[str, Field(description="dotted path of the value, of validation errors only")] = ""
    id: Annotated[str, Field(description="of a 500: the request id to look for in the log")] = ""


class Errors(AnswerModel):
    """Every answer that is not a success."""

    errors: Annotated[list[ErrorEntry], Field(min_length=1, max_length=MAX_FIELD_ERRORS)]
    more: Annotated[int, Field(ge=1, description="number of further errors that are not listed")] = 0


class Notification(AnswerModel):
    """A notification in a user's inbox."""

    id: UUID
    type: Annotated[str, Field(description="open: kinds may be added")]
    data: Annotated[
        PlainObject,
        Field(description="the kind's own fields; `NoteNotification` and so on describe those of each kind today"),
    ]
    message: Annotated[str, Field(description="plain text; ` <br> ` stands before quoted text")]
    message_formatted: Annotated[str, Field(description="safe HTML: `p`, `strong`, `em`, `br`")]
    read: bool
    read_at: Time | None
    created_at: Time


class PageUrls(AnswerModel):
    """Absolute urls of the pages beside this one; null at the ends."""

    previous: str | None
    next: Annotated[str | None, Field(description="carries a cursor: follow it, and nothing is shown twice or skipped")]


class Pagination(AnswerModel):
    """Where a page is in the list."""

    total: Annotated[int, Field(description="of all pages")]
    page: int
    per_page: int
    urls: PageUrls
    unread: Annotated[int, Field(description="of the whole inbox")]


class PageAnswer(AnswerModel):
    """A page of the inbox, newest first."""

    model_config = ConfigDict(title="Page")

    data: list[Notification]
    pagination: Pagination


class InboxChange(AnswerModel):
    """One change of the inbox."""

    event: Annotated[str, Field(description="`notification`, `read`, `unread` or `deleted`; open")]
    data: Annotated[
        PlainObject, Field(description="a notification; else `id`, `ids`, or `all` up to the entry `up_to`")
    ]


class ChangesAnswer(AnswerModel):
    """What happened in the inbox. Without `since`, and with `resync`, only `cursor` is present."""

    model_config = ConfigDict(title="Changes")

    cursor: Annotated[str, Field(description="where the next changes begin")]
    data: list[InboxChange] = []
    unread: Annotated[int, Field(description="of the whole inbox")] = 0
    more: Annotated[bool, Field(description="true: continue from the cursor at once")] = False
    resync: Annotated[bool, Field(description="true: what happened since is no longer known; fetch the list")] = False


class Links(AnswerModel):
    """Where notifications lead."""

    data: Annotated[
        dict[str, str | None],
        Field(description="by notification id; null where the kind has no link; ids of others are left out"),
    ]


class KindAnswer(AnswerModel):
    """A kind of notification, for a screen of preferences."""

    model_config = ConfigDict(title="Kind")

    name: Annotated[str, Field(description="as in preferences: `note`, `gamification/new_level`")]
    label: Annotated[str, Field(description="in the caller's language")]
    group: str
    group_label: Annotated[str, Field(description="in the caller's language")]
    channels: list[str]
    default: dict[str, bool]
    locked: Annotated[dict[str, bool], Field(description="true: the operator does not let users change it")]


class Kinds(AnswerModel):
    """All kinds of notification, group by group."""

    data: list[KindAnswer]


class KindPreferences(AnswerModel):
    """What a user chose for one kind."""

    push: Annotated[bool, Field(description="whether it is pushed to phones")]
    web_push: Annotated[bool, Field(description="whether it is pushed to browsers")]
    urgent: Annotated[bool, Field(description="whether it breaks through quiet hours and pauses")]


class QuietWindow(AnswerModel):
    """A window of quiet hours."""

    days: Annotated[list[str], Field(description="on which it starts")]
    from_: Annotated[str, Field(alias="from", description="a time of day, `20:00`")]
    to: Annotated[str, Field(description="of the next day where it is earlier than `from`")]


class PreferencesAnswer(AnswerModel):
    """A user's preferences, with the defaults of what they did not choose."""

    model_config = ConfigDict(title="Preferences")

    kinds: Annotated[dict[str, KindPreferences], Field(description="all kinds by name")]
    quiet_hours: list[QuietWindow]
    paused_until: Time | None
    time_zone: Annotated[str, Field(description="an IANA name; quiet hours are in this time zone")]


class Queued(AnswerModel):
    """The work is stored and will be done."""

    queued: bool


class Skipped(AnswerModel):
    """The unknown ids that were skipped."""

    users: list[int]
    teams: list[int]


_NONE_SKIPPED = Skipped(users=[], teams=[])


class QueuedEvent(AnswerModel):
    """The event is stored."""

    queued: bool
    id: Annotated[UUID, Field(description="the notification's id in every inbox")]
    skipped: Skipped = Field(
        default_factory=lambda: _NONE_SKIPPED,
        description="present where `notify.unknown` is `skip`: the unknown ids",
    )


class SkippedOfEvent(AnswerModel):
    """The unknown ids that were skipped, of one event."""

    id: UUID
    users: list[int]
    teams: list[int]


class QueuedBatch(AnswerModel):
    """The events are stored."""

    queued: bool
    ids: Annotated[list[UUID], Field(description="in the order of the events")]
    skipped: Annotated[
        list[SkippedOfEvent],
        Field(description="present where `notify.unknown` is `skip`: the unknown ids, by event"),
    ] = []


class PushCounts(AnswerModel):
    """Pushes to devices by state."""

    queued: int
    delivered: int
    gone: Annotated[int, Field(description="the device was gone, and is removed")]
    later: Annotated[int, Field(description="failed for now, and retried")]
    held: Annotated[int, Field(description="wait for the end of quiet hours or of a pause")]
    refused: Annotated[int, Field(description="the provider does not accept the push as it is")]
    dead: Annotated[int, Field(description="given up")]
    muted: Annotated[int, Field(description="the user switched the kind off")]
    skipped: Annotated[int, Field(description="read, deleted, cancelled or moved before it was sent")]


class Event(AnswerModel):
    """What became of an event."""

    id: UUID
    type: str
    state: Annotated[
        str, Field(description="`held`, `queued`, `delivering`, `delivered`, `cancelled` or `failed`; open")
    ]
    recipients: Annotated[int, Field(description="inboxes that it reached so far")]
    read: Annotated[int, Field(description="of these, how many have read it")]
    dropped: Annotated[int, Field(description="recipients who were erased or inactive at delivery")]
    pushes: PushCounts
    reason: Annotated[str, Field(description="why it failed, or which operator cancelled it")] = ""
    replaced_by: Annotated[
        str, Field(description="the event that took its key", json_schema_extra={"format": "uuid"})
    ] = ""


class PushToDevice(AnswerModel):
    """What was decided about one device, and what the provider answered."""

    type: str
    token_ending: TokenEnding
    lane: Lane
    state: Annotated[str, Field(description="open")]
    attempts: int
    settled_at: Time | None
    what: Annotated[str | None, Field(description="what was decided or answered, in words")]


class Recipient(AnswerModel):
    """Whether and why one person was a recipient of an event."""

    event_id: UUID
    user_id: int
    recipient: Annotated[bool, Field(description="whether it came into their inbox")]
    why: Annotated[str, Field(description="in words: named, by which team, left out, dropped ...")]
    team_id: Annotated[int | None, Field(description="the team through which they were a recipient")]
    delivered_at: Time | None
    read_at: Time | None
    deleted_at: Time | None
    devices: list[PushToDevice]


class DeviceAnswer(AnswerModel):
    """A registered device."""

    model_config = ConfigDict(title="RegisteredDevice")

    type: Annotated[str, Field(description="`iOS`, `Android` or `Web` (a browser); open")]
    environment: str
    app: str
    token_ending: TokenEnding
    registered_at: Time
    last_delivered_at: Time | None


class Devices(AnswerModel):
    """A user's devices, the last registered first."""

    data: list[DeviceAnswer]


class PushOutcome(AnswerModel):
    """What the push service answered to a test push."""

    lane: Annotated[str, Field(description="the provider, app and environment that it was sent by")]
    state: Annotated[
        str,
        Field(description="`delivered`, `gone`, `later`, `refused` or `stopped` (the service is misconfigured); open"),
    ]
    reason: Annotated[str, Field(description="in the provider's words")]


class WebPushKey(AnswerModel):
    """The key that browsers subscribe with."""

    key: Annotated[str, Field(description="the `applicationServerKey` of a subscription, in base64url")]


class Users(AnswerModel):
    """Users by id, ascending."""

    data: list[User]
    next: Annotated[int | None, Field(description="`after` of the next page; null at the end")]


class TeamAnswer(AnswerModel):
    """A team and its members."""

    model_config = ConfigDict(title="Team")

    id: int
    company_id: int
    name: str
    users: Annotated[list[int], Field(description="ids of its members, ascending")]


class TeamListed(AnswerModel):
    """A team in a list."""

    id: int
    company_id: int
    name: str
    size: Annotated[int, Field(description="number of members")]


class Teams(AnswerModel):
    """Teams by id, ascending."""

    data: list[TeamListed]
    next: Annotated[int | None, Field(description="`after` of the next page; null at the end")]


class Imported(AnswerModel):
    """How many lines of each sort were applied."""

    users: int
    teams: int
    devices: int
    notifications: int


class Health(AnswerModel):
    """The process answers."""

    status: str


class QueueDepth(AnswerModel):
    """What waits in one queue."""

    due: Annotated[int, Field(description="jobs that are due, counted up to 1,000 or so")]
    oldest: Annotated[float, Field(description="seconds that the oldest of them has been due")]
    stalled: Annotated[bool, Field(description="true: longer than in a queue that makes progress")]


class PushesWaiting(AnswerModel):
    """How long pushes wait, over all lanes."""

    oldest: Annotated[float, Field(description="seconds that the oldest has been due")]
    stalled: Annotated[bool, Field(description="true: longer than in a lane that makes progress")]


class ReadinessAnswer(AnswerModel):
    """The process can serve requests; and what waits."""

    model_config = ConfigDict(title="Readiness")

    status: str
    database: str
    migrations: str
    queue: Annotated[dict[str, QueueDepth], Field(description="by name: `direct`, `bulk`")]
    pushes: PushesWaiting
    problems: Annotated[list[str], Field(description="what workers currently fail at, and why")]


class RefusingService(AnswerModel):
    """A push service of browsers that refuses this server's authentication."""

    service: str
    since: Time
    reason: str


class LaneAnswer(AnswerModel):
    """A lane: one provider, app and environment."""

    model_config = ConfigDict(title="Lane")

    name: str
    due: Annotated[int, Field(description="pushes that wait")]
    oldest: Annotated[float, Field(description="seconds that the oldest of them has waited")]
    delivered_at: Annotated[Time | None, Field(description="when a push was last delivered")]
    stopped_at: Time | None
    reason: Annotated[str | None, Field(description="why it stopped")]
    problem: Annotated[str | None, Field(description="what currently keeps it from going on")]
    refused_by: list[RefusingService]


class Lanes(AnswerModel):
    """The lanes that pushes are sent by."""

    data: list[LaneAnswer]


class DeadLetter(AnswerModel):
    """An event or a push that was given up."""

    what: Annotated[str, Field(description="`job` or `push`; open")]
    task: str
    event_id: UUID
    user_id: int | None
    lane: str
    attempts: int
    reason: str | None
    at: Time


class DeadLetters(AnswerModel):
    """What was given up, the latest first."""

    data: list[DeadLetter]


class ReplayedAnswer(AnswerModel):
    """How much was queued again."""

    model_config = ConfigDict(title="Replayed")

    jobs: int
    pushes: int


class PersonFound(AnswerModel):
    """A user whom a search found."""

    id: int
    company_id: int
    first_name: str
    last_name: str
    email: str | None
    active: bool


class PeopleFound(AnswerModel):
    """The users whom a search found."""

    data: list[PersonFound]


class DeviceOfPerson(DeviceAnswer):
    """A device, and the state of its last push."""

    model_config = ConfigDict(title="DeviceOfPerson")

    lane: Lane
    state: Annotated[
        str,
        Field(
            description="of its last push; `stopped` where its lane has stopped, `unserved` where no key is set for it,"
            " `untried` where nothing was pushed to it lately; open"
        ),
    ]
    what: Annotated[str | None, Field(description="why, in words")]


class Person(AnswerModel):
    """A user, for operators: active or not, and the state of their devices."""

    id: int
    company_id: int
    first_name: str
    last_name: str
    active: Annotated[bool, Field(description="false: nothing is delivered")]
    total: Annotated[int, Field(description="notifications in the inbox")]
    unread: Annotated[int, Field(description="of these")]
    time_zone: str
    devices: list[DeviceOfPerson]


class EventOfPerson(Recipient):
    """An event, and what became of it for one person."""

    type: str
    accepted_at: Time


class EventsOfPerson(AnswerModel):
    """What concerned a user lately, the latest first."""

    data: list[EventOfPerson]
    looked_back_to: Annotated[Time, Field(description="events that did not reach them are listed from this time on")]


class PersonReached(AnswerModel):
    """A recipient of an event."""

    user_id: int
    first_name: Annotated[str | None, Field(description="null where they were erased")]
    last_name: str | None
    read_at: Time | None
    pushes: Annotated[list[str], Field(description="states of the pushes to them, each once")]


class RecipientsOfEvent(AnswerModel):
    """Recipients of an event by user id, ascending."""

    data: list[PersonReached]


class DeviceFound(DeviceAnswer):
    """A device, and whose it is."""

    model_config = ConfigDict(title="DeviceFound")

    user_id: int
    lane: Lane


class DevicesFound(AnswerModel):
    """The devices whose tokens end with what was searched for."""

    data: list[DeviceFound]


class CustomSender(AnswerModel):
    """The user who sent a custom notification; the names are null where they were erased."""

    id: int
    first_name: str | None
    last_name: str | None


class CustomSent(AnswerModel):
    """A custom notification, without what it says."""

    id: UUID
    accepted_at: Time
    service: Annotated[str | None, Field(description="that posted it; null where a user did")]
    sender: CustomSender | None
    users: Annotated[int, Field(description="number of users that it names")]
    teams: Annotated[int, Field(description="number of teams that it names")]
    recipients: Annotated[int, Field(description="inboxes that it reached so far")]
    dropped: Annotated[int, Field(description="recipients who were erased or inactive at delivery")]


class CustomNotifications(AnswerModel):
    """Custom notifications, the latest first."""

    data: list[CustomSent]
