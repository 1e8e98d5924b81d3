"""The contract, operation by operation: what each takes, answers and refuses. A new route gets its entry here."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tocsin.api.body import MERGE_PATCH
from tocsin.api.directory import DEFAULT_LIST_LIMIT, MAX_LIST_LIMIT
from tocsin.api.events import MAX_WAIT_SECONDS
from tocsin.api.imports import NDJSON
from tocsin.api.notifications import DEFAULT_PER_PAGE, MAX_LINKS, PAGES, PER_PAGE
from tocsin.api.requests import MAX_MESSAGE_LENGTH
from tocsin.api.schemas import ID, UUID
from tocsin.devices import ENDING
from tocsin.errors import (
    ContentType,
    FieldError,
    HeadTooLarge,
    IdReused,
    InternalError,
    Malformed,
    Missing,
    NotFound,
    Problem,
    RateLimited,
    Timeout,
    TooLarge,
    TooLate,
    Unauthenticated,
    Unauthorized,
    Unavailable,
)
from tocsin.explain import DEFAULT_EXPLAINED, MAX_EXPLAINED
from tocsin.idempotency import MAX_KEY_LENGTH
from tocsin.ids import MAX_ID
from tocsin.inbox import NEWEST, OLDEST
from tocsin.validation import field_error

Parameter = dict[str, Any]

JSON = "application/json"


def query(name: str, schema: dict[str, Any], description: str) -> Parameter:
    """Return a parameter of the query, which may be left out."""
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def header(name: str, schema: dict[str, Any], description: str) -> Parameter:
    """Return a header of the request, which may be left out."""
    return {**query(name, schema, description), "in": "header"}


def _number(least: int, most: int, default: int | None = None) -> dict[str, Any]:
    limits = {"type": "integer", "minimum": least, "maximum": most}
    return limits if default is None else {**limits, "default": default}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, beside what its path says.

    `takes` and `answers` are the names of schemas, each with its examples; an answer without one is 204. `problems`
    are those that not every operation has, `field_errors` examples of what a 422 says; where there are none, it is
    never 422. A body is of the type `media`, or of one that it may `also` be of, an answer of `answer_media`.
    `summary` is left out where the docstring of its handler says it; `scopes` where they are those of its tag.
    """

    id: str
    takes: str = ""
    answers: str = ""
    status: int = 200
    summary: str = ""
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[type[Problem], ...] = ()
    field_errors: tuple[FieldError, ...] = ()
    optional_body: bool = False
    media: str = JSON
    answer_media: str = JSON
    also: tuple[str, ...] = ()
    is_open: bool = False
    scopes: str = ""

    def all_problems(self) -> Iterator[type[Problem]]:
        """Return all that it can answer but 422, and what has to do with its method."""
        yield HeadTooLarge
        yield from () if self.is_open else (Unauthenticated, Unauthorized)
        yield from (TooLarge, ContentType, Timeout) if self.takes else ()
        yield from (Malformed,) if self.takes and self.media == JSON else ()
        yield from (*self.problems, InternalError, Unavailable)


LINKS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "list_notifications": (
        "notification_id",
        "$response.body#/data/0/id",
        ("get_notification", "mark_read", "mark_unread", "delete_notification"),
    ),
    "post_event": ("event_id", "$response.body#/id", ("get_event", "cancel_event")),
    "list_users": ("user_id", "$response.body#/data/0/id", ("get_user", "erase_user")),
    "list_teams": ("team_id", "$response.body#/data/0/id", ("get_team", "delete_team")),
    "put_user": ("user_id", "$request.path.user_id", ("get_user",)),
    "put_team": ("team_id", "$request.path.team_id", ("get_team",)),
}
"""Where an operation leads: the parameter that it gives a value, where that stands, and the operations that take it."""

IN_PATHS: dict[str, Parameter] = {
    "notification_id": {"schema": UUID, "description": "of a notification"},
    "event_id": {"schema": UUID, "description": "of an event: the id of its notifications too"},
    "user_id": {"schema": ID, "description": "of a user"},
    "team_id": {"schema": ID, "description": "of a team"},
    "token": {"schema": {"type": "string", "minLength": 1}, "description": "that the push service gave the phone"},
    "key": {"schema": {"type": "string", "minLength": 1}, "description": "of the service's own; may hold slashes"},
}
"""The parameters that stand in paths."""

ONCE = header(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
    "a repeat under the same key does nothing and is answered as the first time, for 24 hours",
)
NO_KEY = field_error("Idempotency-Key", "string_between", f"must have 1 to {MAX_KEY_LENGTH} characters")
IF_NONE_MATCH = header("If-None-Match", {"type": "string"}, "the `ETag` of the page that is there")

_A_NUMBER = f"must be between 1 and {MAX_ID}"
_NO_ID = (field_error("id", "numeric_between", _A_NUMBER),)
_NO_MEMBER = (field_error("user_id", "unknown", "is not a user of the team's company"),)
_NO_USER = (
    *_NO_ID,
    field_error("first_name", "required", "is required"),
    field_error("active", "boolean", "must be true or false"),
)
_NO_TEAM = (*_NO_ID, field_error("users.1", "unknown", "is not a known user"))
_NO_RANGE = (field_error("limit", "numeric_between", f"must be between 1 and {MAX_LIST_LIMIT}"),)
_NO_PHONE = (
    field_error("type", "in", "must be iOS or Android"),
    field_error("app", "regex", "must have 1 to 100 letters, digits, dots, dashes and underscores"),
    field_error("token", "regex", "is not a valid apns token"),
)
_NOBODY = tuple(
    field_error(f"notify.{name}", "required_without", f"is required where notify.{other} is absent or empty")
    for name, other in (("users", "teams"), ("teams", "users"))
)
_NO_EVENT = (
    field_error("data.case.id", "required", "is required"),
    field_error("data.colour", "prohibited", "is not allowed here"),
    field_error("notify.users.1", "unknown", "is not a known user"),
    field_error("notify.users.2", "integer", "must be an integer"),
)
_RANGE = (
    query("after", _number(0, MAX_ID, 0), "those with greater ids"),
    query("company_id", ID, "of one company"),
    query("limit", _number(1, MAX_LIST_LIMIT, DEFAULT_LIST_LIMIT), "how many"),
)

_BEFORE = (
    query("before", {"type": "string"}, "those before this moment"),
    query("limit", _number(1, MAX_LIST_LIMIT, DEFAULT_LIST_LIMIT), "how many"),
)

CONTRACT: dict[str, dict[str, Operation]] = {
    "notifications": {
        "GET /notifications": Operation(
            "list_notifications",
            answers="Page",
            summary="The caller's notifications, newest first",
            parameters=(
                query("show", {"type": "string", "enum": ["unread"]}, "only the unread ones"),
                query("page", _number(*PAGES, 1), "which"),
                query("per_page", _number(*PER_PAGE, DEFAULT_PER_PAGE), "how many"),
                query("cursor", _number(OLDEST, NEWEST), "as found in `urls.next`"),
                IF_NONE_MATCH,
            ),
            field_errors=(
                field_error("per_page", "numeric_between", f"must be between {PER_PAGE[0]} and {PER_PAGE[1]}"),
                field_error("show", "in", "can only be unread"),
            ),
        ),
        "POST /notifications": Operation(
            "create_custom",
            takes="NewCustom",
            answers="Queued",
            status=202,
            summary="Create a custom notification",
            field_errors=(
                field_error("message", "string_between", f"must have 1 to {MAX_MESSAGE_LENGTH} characters"),
                *_NOBODY,
            ),
        ),
        "GET /notifications/changes": Operation(
            "list_changes",
            answers="Changes",
            parameters=(query("since", {"type": "string"}, "a cursor; left out: the answer is only that of now"),),
        ),
        "GET /notifications/links": Operation(
            "list_links",
            answers="Links",
            parameters=(
                {
                    **query("ids", {"type": "string"}, f"ids, separated by commas, at most {MAX_LINKS}"),
                    "required": True,
                },
            ),
            field_errors=(field_error("ids.0", "uuid", "must be a UUID"),),
        ),
        "GET /notifications/stream": Operation(
            "stream_notifications",
            answers="Stream",
            answer_media="text/event-stream",
            summary="All that happens in the caller's inbox, as it happens (server-sent events)",
            parameters=(
                header("Last-Event-ID", {"type": "string"}, "the `id` of the last event that came: goes on after it"),
            ),
        ),
        "GET /notifications/kinds": Operation("list_kinds", answers="Kinds"),
        "GET /notifications/preferences": Operation("get_preferences", answers="Preferences"),
        "PATCH /notifications/preferences": Operation(
            "patch_preferences",
            takes="PreferencesPatch",
            answers="Preferences",
            optional_body=True,
            also=MERGE_PATCH[1:],
            field_errors=(
                field_error("kinds.note.push", "boolean", "must be true or false"),
                field_error("kinds.nothing", "prohibited", "is not a known kind"),
                field_error("quiet_hours.0.to", "in", "must not be the same as from"),
            ),
        ),
        "PUT /notifications/read": Operation(
            "mark_all_read",
            takes="Marks",
            optional_body=True,
            field_errors=(
                field_error("up_to", "uuid", "must be a UUID"),
                field_error("ids", "array_between", "must have 1 to 1000 entries"),
            ),
        ),
        "GET /notifications/{notification_id}": Operation(
            "get_notification", answers="Notification", problems=(NotFound, Missing)
        ),
        "DELETE /notifications/{notification_id}": Operation("delete_notification", problems=(NotFound,)),
        "PUT /notifications/{notification_id}/read": Operation("mark_read", problems=(NotFound, Missing)),
        "PUT /notifications/{notification_id}/unread": Operation("mark_unread", problems=(NotFound, Missing)),
    },
    "devices": {
        "GET /notifications/devices": Operation("list_devices", answers="Devices"),
        "POST /notifications/devices": Operation(
            "register_device_by_body",
            takes="DeviceWithToken",
            field_errors=_NO_PHONE,
        ),
        "POST /notifications/devices/{token}": Operation(
            "register_device",
            takes="Device",
            optional_body=True,
            field_errors=_NO_PHONE,
        ),
        "DELETE /notifications/devices/{token}": Operation("detach_device"),
        "POST /notifications/devices/{token}/test": Operation(
            "test_device", answers="Said", problems=(NotFound, RateLimited)
        ),
        "GET /notifications/web-push/key": Operation("get_web_push_key", answers="WebPushKey", problems=(NotFound,)),
        "POST /notifications/web-push": Operation(
            "subscribe_browser",
            takes="Subscription",
            field_errors=(
                field_error("endpoint", "url", "must be the https url of an allowed push service"),
                field_error("keys.auth", "regex", "must be a key of the subscription, in base64url"),
            ),
        ),
        "DELETE /notifications/web-push": Operation(
            "unsubscribe_browser", takes="Endpoint", field_errors=(field_error("endpoint", "required", "is required"),)
        ),
        "POST /notifications/web-push/test": Operation(
            "test_subscription",
            takes="Endpoint",
            answers="Said",
            problems=(NotFound, RateLimited),
            field_errors=(field_error("endpoint", "required", "is required"),),
        ),
    },
    "events": {
        "POST /events": Operation(
            "post_event",
            takes="NewEvent",
            answers="QueuedEvent",
            status=202,
            summary="Post an event: what happened, and whom it concerns",
            problems=(IdReused,),
            field_errors=_NO_EVENT,
        ),
        "POST /events/batch": Operation(
            "post_batch",
            takes="NewBatch",
            answers="QueuedBatch",
            status=202,
            summary="Post up to 1,000 events, all or none, to be delivered in their order",
            problems=(IdReused,),
            field_errors=(field_error("events.17.data.case.id", "required", "is required"),),
        ),
        "POST /events/resolve": Operation(
            "resolve_subject",
            scopes="`events:write`, or `directory:write` where `as` is `erased`",
            takes="Resolution",
            answers="Queued",
            status=202,
            summary="Settle what is still open about a subject",
            field_errors=(
                field_error("about", "regex", "must be a subject such as lead:220f5f6e-e30f-4c5f-8db5-44e345f8e568"),
                field_error("as", "in", "must be read, gone, erased"),
                field_error("users.0", "unknown", "is not a known user"),
            ),
        ),
        "GET /events/{event_id}": Operation(
            "get_event",
            scopes="`events:write` or `operations`",
            answers="Event",
            parameters=(
                query(
                    "wait",
                    _number(0, MAX_WAIT_SECONDS, 0),
                    "answer as soon as it is settled, at the latest after so many seconds",
                ),
            ),
            problems=(NotFound,),
            field_errors=(field_error("wait", "numeric_between", f"must be between 0 and {MAX_WAIT_SECONDS}"),),
        ),
        "GET /events/{event_id}/recipients/{user_id}": Operation(
            "get_recipient", scopes="`events:write` or `operations`", answers="Recipient", problems=(NotFound,)
        ),
        "DELETE /events/{event_id}": Operation(
            "cancel_event", scopes="`events:write` or `operations`", problems=(NotFound, TooLate)
        ),
        "DELETE /events/by-key/{key}": Operation("cancel_event_by_key", problems=(NotFound, TooLate)),
    },
    "directory": {
        "GET /directory/users": Operation("list_users", answers="Users", parameters=_RANGE, field_errors=_NO_RANGE),
        "GET /directory/users/{user_id}": Operation("get_user", answers="User", problems=(NotFound,)),
        "PUT /directory/users/{user_id}": Operation(
            "put_user", takes="UserBody", problems=(NotFound,), field_errors=_NO_USER
        ),
        "DELETE /directory/users/{user_id}": Operation("erase_user", problems=(NotFound,)),
        "DELETE /directory/users/{user_id}/devices": Operation("detach_devices_of_user", problems=(NotFound,)),
        "DELETE /directory/users/{user_id}/devices/{token}": Operation("detach_device_of_user", problems=(NotFound,)),
        "POST /directory/import": Operation(
            "import_lines",
            takes="Import",
            answers="Imported",
            media=NDJSON,
            field_errors=(
                field_error("lines.2.team.users.1", "unknown", "is not a known user"),
                field_error("lines.17.user.first_name", "required", "is required"),
            ),
        ),
        "GET /directory/teams": Operation("list_teams", answers="Teams", parameters=_RANGE, field_errors=_NO_RANGE),
        "GET /directory/teams/{team_id}": Operation("get_team", answers="Team", problems=(NotFound,)),
        "PUT /directory/teams/{team_id}": Operation(
            "put_team", takes="TeamBody", problems=(NotFound,), field_errors=_NO_TEAM
        ),
        "DELETE /directory/teams/{team_id}": Operation("delete_team", problems=(NotFound,)),
        "PUT /directory/teams/{team_id}/users/{user_id}": Operation(
            "put_member", problems=(NotFound,), field_errors=_NO_MEMBER
        ),
        "DELETE /directory/teams/{team_id}/users/{user_id}": Operation(
            "delete_member", problems=(NotFound,), field_errors=(field_error("user_id", "numeric_between", _A_NUMBER),)
        ),
    },
    "operations": {
        "GET /healthz": Operation("healthz", answers="Health", is_open=True),
        "GET /readyz": Operation("readyz", answers="Readiness", is_open=True),
        "GET /operations/lanes": Operation("list_lanes", answers="Lanes"),
        "GET /operations/dead-letters": Operation(
            "list_dead_letters", answers="DeadLetters", parameters=_BEFORE, field_errors=_NO_RANGE
        ),
        "GET /operations/users": Operation(
            "find_users",
            answers="PeopleFound",
            parameters=(
                {
                    **query("search", {"type": "string", "minLength": 2, "maxLength": 255}, "how the name begins"),
                    "required": True,
                },
                query("limit", _number(1, MAX_EXPLAINED, DEFAULT_EXPLAINED), "how many"),
            ),
            field_errors=(field_error("search", "string_between", "must have 2 to 255 characters"),),
        ),
        "GET /operations/events/{event_id}/recipients": Operation(
            "list_recipients",
            answers="RecipientsOfEvent",
            parameters=(
                query("after", _number(0, MAX_ID, 0), "those with greater ids"),
                query("limit", _number(1, MAX_LIST_LIMIT, DEFAULT_LIST_LIMIT), "how many"),
                query("pushed", {"type": "string", "enum": ["no"]}, "only those for whom a push did not go"),
            ),
            problems=(NotFound,),
            field_errors=(*_NO_RANGE, field_error("pushed", "in", "must be no")),
        ),
        "GET /operations/users/{user_id}": Operation("get_person", answers="Person", problems=(NotFound,)),
        "GET /operations/users/{user_id}/events": Operation(
            "list_events_of_person",
            answers="EventsOfPerson",
            parameters=(
                query("since", {"type": "string"}, "those since this moment; usually of the last 24 hours"),
                query("limit", _number(1, MAX_EXPLAINED, DEFAULT_EXPLAINED), "how many"),
            ),
            problems=(NotFound,),
            field_errors=(field_error("since", "date", "must be a time in UTC, such as 2030-01-31 08:00:00"),),
        ),
        "GET /operations/devices": Operation(
            "find_devices",
            answers="DevicesFound",
            parameters=(
                {
                    **query("ending", {"type": "string", "minLength": ENDING, "maxLength": ENDING}, "of the token"),
                    "required": True,
                },
            ),
            field_errors=(field_error("ending", "string_between", f"must be the last {ENDING} characters of a token"),),
        ),
        "GET /operations/custom-notifications": Operation(
            "list_custom_notifications", answers="CustomNotifications", parameters=_BEFORE, field_errors=_NO_RANGE
        ),
        "POST /operations/replay": Operation(
            "replay",
            takes="Replay",
            answers="Replayed",
            field_errors=(field_error("events", "required_without", "is required where lane is absent"),),
        ),
        "GET /metrics": Operation("metrics", answers="Metrics", answer_media="text/plain"),
    },
}
"""All operations by tag, method and path."""

DESCRIPTIONS = {
    "list_notifications": "Follow `urls.next`: it carries a cursor, shows nothing twice and skips nothing while"
    " notifications arrive or are read. `pagination.total` counts what the query selects, `unread` the whole inbox.",
    "create_custom": "A text of the caller's to colleagues: users and teams of the caller's company, each told once.",
    "list_changes": "For apps that were offline. Without `since` it answers only a cursor; with one, what happened"
    " since, at most 500 at once (`more`). `resync` says that the past is no longer kept: fetch the list.",
    "list_links": "Null where a notification's kind has no link. Ids that are not the caller's are left out.",
    "stream_notifications": "Each event has an `id`: with it as `Last-Event-ID` the stream goes on with nothing lost,"
    " for 7 days. At most 8 streams a user: a ninth closes the oldest.",
    "patch_preferences": "A merge patch (RFC 7396): `null` puts a setting back to its default.",
    "mark_all_read": "Without a body, all that the inbox held when the request began. `up_to` names the newest to mark,"
    " `ids` just some; those of others are passed over.",
    "delete_notification": "Any other call on it is 410 from then on.",
    "mark_read": "The first `read_at` stays.",
    "register_device": "A token belongs to one user at a time: registered under another login it moves there. At most"
    " 50 devices a user: the longest unused one goes.",
    "register_device_by_body": "As `POST /notifications/devices/{token}`, for those whose proxies log paths.",
    "detach_device": "204 also where there is none; another user's token is left alone.",
    "test_device": "Sends one push now and answers what the provider said. At most 5 a minute.",
    "test_subscription": "Sends one push now and answers what the push service said. At most 5 a minute.",
    "subscribe_browser": "Takes a `PushSubscription` as the browser serialises it.",
    "post_event": "202 once the event is on disk: from then on it reaches every recipient exactly once. Its `id` is the"
    " notification's id in every inbox.\n\n`notify` names users and teams, together at most 10,000 ids; each person is"
    " told once, and who did it (`data.user`) is left out of teams. `data` is what the notification's `data` will be,"
    " `params` the words that its sentence needs beside it; each kind has fields of its own.\n\nOptional: `id` (a UUID)"
    " makes posting safe to repeat; `key` is your name for the event, and posting it again replaces what is not"
    " delivered; `deliver_at` holds it back, at most a year; `about` adds subjects (`order:42`) by which it can be"
    " resolved; `notify.except` leaves users out; `notify.unknown` set to `skip` goes on without unknown ids.",
    "post_batch": "One transaction, within 8 MiB. Faults begin with the event's place: `events.17.data.case.id`.",
    "resolve_subject": "Settles everything that is open about a subject, for everyone or these `users`: marks it as"
    " read, takes it away, or erases names and texts.",
    "get_event": "With `wait`, as soon as all is settled. `pushes` counts the event's pushes by state.",
    "get_recipient": "Whether and why one person was a recipient, when it came and was read, and per device what was"
    " decided and what the provider answered.",
    "cancel_event": "204, again 204; 409 once it is delivered. A service cancels its own; `operations` any, and the"
    " event's `reason` says so.",
    "cancel_event_by_key": "As `DELETE /events/{event_id}`, by the service's own key.",
    "list_users": "By id, ascending. Go on with `after` set to the last id.",
    "list_teams": "By id, ascending. Go on with `after` set to the last id.",
    "put_user": "Replaces the user: a field that is left out takes its default. An inactive user gets nothing.",
    "erase_user": "With inbox, devices and preferences; for good.",
    "put_team": "Replaces the team and its members, who must be of its company.",
    "import_lines": "All lines are checked first: where one is wrong, nothing is applied.",
    "readyz": "503 where requests cannot be served.",
    "find_users": "By the beginning of the whole name, the last name or the e-mail address, in capitals or not. Of each"
    " the first 1,000 matches are looked at, those of other companies among them.",
    "list_recipients": "By user id, ascending. Go on with `after` set to the last `user_id`. `pushes` are the states of"
    " the pushes to that person, each once.",
    "list_dead_letters": "Kept for 30 days.",
    "replay": "Events by their ids, or up to 10,000 pushes of a lane, the oldest first.",
    "list_custom_notifications": "What they say is not shown.",
}
"""What is to be said of an operation beside its summary, by its id."""

CALLERS = {
    "events": "`events:write`",
    "directory": "`directory:write`",
    "operations": "`operations`",
}
"""The scopes that a service's token needs for the operations of a tag; the others take a user's token."""

TAGS = {
    "events": "What happens and whom it concerns, with a service's token of the scope `events:write`;"
    " one with `operations` sees all events.",
    "directory": "Who the users and teams are, with a service's token of the scope `directory:write`.",
    "notifications": "The caller's own inbox, with a user's token.",
    "devices": "The caller's own phones, with a user's token.",
    "operations": "Whether the service is alive and ready, without a token;"
    " what it did, with a token of the scope `operations`.",
}
"""The tags in the order in which an application meets them."""
