"""Routes for operators: health, readiness, metrics, lanes, dead letters and explanations."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import Query
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from tocsin import audit, dead_letters, devices, event_status, explain, history, preferences, readiness
from tocsin.api import operation_answers as answers
from tocsin.api.answers import PushOutcome
from tocsin.api.auth import OPERATOR, Acting, OperationsViewer, Operator, Support
from tocsin.api.directory import LIMITS
from tocsin.api.documented import problems, text
from tocsin.api.limiting import count
from tocsin.api.parameters import (
    DEFAULT_LIST_LIMIT,
    MAX_SEARCH_LENGTH,
    MIN_SEARCH_LENGTH,
    After,
    Before,
    Caller,
    Cursor,
    DeviceId,
    Ending,
    EventId,
    Explained,
    Limit,
    Moment,
    Search,
    UserId,
    integer,
)
from tocsin.api.requests import Replay
from tocsin.api.routes import router
from tocsin.api.state import AppState, State, Watched, WatchedState, watched_of
from tocsin.errors import NotFound
from tocsin.event_status import Viewer
from tocsin.explain import DEFAULT_EXPLAINED
from tocsin.metrics import CONTENT_TYPE
from tocsin.push import deliveries, probe
from tocsin.push.content import Composer
from tocsin.validation import Between, field_error

watching = router("operations")
"""Routes that every process serves without a token."""

guarded = router("operations")
"""Routes that require a token on the main port, and none on the port for operations."""

routes = router("operations")


@watching.get("/healthz")
async def healthz() -> answers.Health:
    """Check that the process is alive."""
    return answers.Health(status="ok")


@watching.get("/readyz")
async def readyz(watched: WatchedState) -> answers.ReadinessAnswer:
    """Check that requests can be served.

    Returns 503 if the database does not accept writes or its schema is not current. Includes the state of the queues.
    The `status` is `ready`, or `read-only` for a process that serves reads only, from a database that may be a standby.
    """
    return answers.ReadinessAnswer.model_validate(await watched.readiness.answer())


@guarded.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=text("text/plain", "The text format of Prometheus.", some='tocsin_jobs_due{lane="direct"} 0.0\n'),
)
async def metrics(service: OperationsViewer, watched: WatchedState) -> Response:  # noqa: ARG001 - any role may ask
    """Get metrics.

    The metrics of this process and of the queues, in the text format of Prometheus.
    """
    return await _metrics_of(watched)


async def open_metrics(request: Request) -> Response:
    """Return the metrics without a token, on the port for operations."""
    return await _metrics_of(watched_of(request))


async def _metrics_of(watched: AppState | Watched) -> Response:
    is_ready, problems_now = await watched.readiness.now()
    found = await watched.metrics.text(watched.database, problems_now, is_ready=is_ready)
    return Response(found, media_type=CONTENT_TYPE)


@routes.get("/operations/lanes")
async def list_lanes(service: OperationsViewer, app_state: State) -> answers.Lanes:  # noqa: ARG001 - any role may ask
    """List lanes.

    Returns the lanes of pushes with their state. A lane is one provider, app and environment.
    """
    problems_of_workers = await readiness.problems(app_state.database)
    refusing = await deliveries.refusing(app_state.database)
    found = [
        {
            **lane,
            "problem": readiness.problem_of_lane(lane["name"], problems_of_workers)
            if lane["is_served"]
            else deliveries.UNSERVED,
            "refused_by": [
                {"service": service["origin"], "since": service["refused_at"], "reason": service["reason"]}
                for service in refusing
                if service["lane"] == lane["name"]
            ],
        }
        for lane in await deliveries.lanes(app_state.database)
    ]
    return answers.Lanes.model_validate({"data": found})


@routes.get(
    "/operations/history",
    responses=problems(field_error("minutes", "numeric_between", f"must be between 1 and {history.MAX_MINUTES}")),
)
async def get_history(
    service: OperationsViewer,  # noqa: ARG001 - any role may ask
    app_state: State,
    minutes: Annotated[
        int,
        Between(1, history.MAX_MINUTES),
        BeforeValidator(integer),
        Query(description="how many minutes back"),
    ] = history.MAX_MINUTES,
) -> answers.History:
    """Get the history of metrics.

    Returns a point for each of the last minutes, the oldest first, at most a day. Counters are those of all processes
    together. A minute in which no process ran has no point.
    """
    return answers.History.model_validate({"data": await history.read(app_state.database, minutes)})


@routes.get("/operations/dead-letters", responses=problems(LIMITS))
async def list_dead_letters(
    service: OperationsViewer, app_state: State, before: Before = None, limit: Limit = DEFAULT_LIST_LIMIT
) -> answers.DeadLetters:
    """List dead letters.

    Returns jobs and pushes that failed permanently, the newest first. They are kept for 30 days. A service of a company
    gets its own among the latest 10,000 jobs and 10,000 pushes of all companies before that time.
    """
    found = await dead_letters.listed(app_state.database, before, limit, service.company_id)
    return answers.DeadLetters.model_validate({"data": found})


@routes.post(
    "/operations/replay", responses=problems(field_error("events", "required_without", "is required if lane is absent"))
)
async def replay(service: Support, actor: Acting, app_state: State, body: Replay) -> answers.ReplayedAnswer:
    """Requeue dead letters.

    Requeues the jobs and pushes of events by their ids, or up to 10,000 pushes of a lane, the oldest first. A lane
    requires the scope `operations`.
    """
    if body.lane is not None:
        OPERATOR.require(service)
    since = datetime.now(UTC) - dead_letters.KEPT
    done = await dead_letters.replay(app_state.database, app_state.pubsub, body.events, since, actor, body.lane)
    return answers.ReplayedAnswer.model_validate(done)


@routes.get(
    "/operations/users",
    responses=problems(
        field_error(
            "search",
            "string_between",
            f"must have {MIN_SEARCH_LENGTH} to {MAX_SEARCH_LENGTH} characters, none of them NUL",
        )
    ),
)
async def find_users(
    service: Support, app_state: State, search: Search, limit: Explained = DEFAULT_EXPLAINED
) -> answers.PeopleFound:
    """Find users.

    Searches for the beginning of the full name, the last name or the e-mail address. The search is case-insensitive. Of
    each, it reads at most 1,000 matches.
    """
    found = await explain.find(app_state.database, search, limit, service.company_id)
    return answers.PeopleFound.model_validate({"data": found})


@routes.get(
    "/operations/events/{event_id}/recipients",
    responses=problems(NotFound, LIMITS, field_error("pushed", "in", "must be no")),
)
async def list_recipients(  # noqa: PLR0913, PLR0917 - the parameters of the operation
    service: Support,
    app_state: State,
    event_id: EventId,
    after: After = 0,
    limit: Limit = DEFAULT_LIST_LIMIT,
    pushed: Annotated[
        Literal["no"] | None, Query(description="only recipients with a push that was not delivered (yet)")
    ] = None,
) -> answers.RecipientsOfEvent:
    """List recipients of an event.

    Returns recipients in ascending order of user ids. For the next page, set `after` to the last `user_id`.
    """
    viewer = Viewer(None, service.company_id)
    found = await explain.recipients(app_state.database, event_id, viewer, after, limit, missed=pushed == "no")
    return answers.RecipientsOfEvent.model_validate({"data": found})


@routes.get("/operations/users/{user_id}", responses=problems(NotFound))
async def get_person(service: Support, app_state: State, user_id: UserId) -> answers.Person:
    """Get the state of a user.

    Returns whether the user is active, their preferences, and the state of each device, to find out why pushes do not
    arrive.
    """
    person = await explain.person(app_state.database, user_id, service.company_id)
    chosen = (await preferences.load(app_state.database, app_state.operator, [user_id])).get(user_id)
    if chosen is None:  # erased since
        raise NotFound
    return answers.Person.model_validate({**person, "preferences": chosen.shown(datetime.now(UTC))})


@routes.post("/operations/users/{user_id}/devices/{device_id}/test", responses=problems(NotFound))
async def test_device_of_person(  # noqa: PLR0913, PLR0917 - the parameters of the operation
    request: Request, service: Support, actor: Acting, app_state: State, user_id: UserId, device_id: DeviceId
) -> PushOutcome:
    """Send a test push to a device of a user.

    Sends one push with a fixed text and returns the response of the provider, to find out why pushes do not arrive. At
    most 5 per minute to one user, including the user's own. The push is in the audit log.
    """
    person = await explain.person(app_state.database, user_id, service.company_id)
    device = await probe.device_of(app_state.database, user_id, device_id=device_id)
    await count(request, "test-pushes", user_id)
    subject, company_id = f"user:{user_id}", person["company_id"]
    await audit.record_alone(
        app_state.database, actor, "test_push_sent", subject=subject, company_id=company_id, lane=device["lane"]
    )
    said = await probe.send(app_state.database, Composer(app_state.catalogue), app_state.lanes, device)
    return PushOutcome.model_validate(asdict(said))


@routes.get(
    "/operations/users/{user_id}/events",
    responses=problems(NotFound, field_error("since", "date", "must be a time in UTC, such as 2030-01-31 08:00:00")),
)
async def list_events_of_person(
    service: Support,
    app_state: State,
    user_id: UserId,
    since: Annotated[Moment, Query(description="only events since this time; default: 24 hours ago")] = None,
    limit: Explained = DEFAULT_EXPLAINED,
) -> answers.EventsOfPerson:
    """List events of a user.

    Returns recent events of a user, the newest first, and why each was or was not delivered.
    """
    since = since or datetime.now(UTC) - timedelta(days=1)
    await explain.person(app_state.database, user_id, service.company_id)
    found = await explain.of_late(app_state.database, user_id, since, limit, service.company_id)
    return answers.EventsOfPerson.model_validate({"data": found.events, "looked_back_to": found.looked_back_to})


@routes.get(
    "/operations/devices",
    responses=problems(
        field_error("ending", "string_between", f"must be the last {devices.ENDING} characters of a token")
    ),
)
async def find_devices(service: Support, app_state: State, ending: Ending) -> answers.DevicesFound:
    """Find devices by the end of their token."""
    found = await devices.by_ending(app_state.database, ending, service.company_id, explain.MAX_EXPLAINED)
    return answers.DevicesFound.model_validate({"data": found})


@routes.get("/operations/custom-notifications", responses=problems(LIMITS))
async def list_custom_notifications(
    service: Support, app_state: State, before: Before = None, limit: Limit = DEFAULT_LIST_LIMIT
) -> answers.CustomNotifications:
    """List custom notifications.

    Returns the sender, the time and the number of recipients, the newest first. The text is not included.
    """
    found = await event_status.customs(app_state.database, before, limit, service.company_id)
    return answers.CustomNotifications.model_validate({"data": found})


@routes.get("/operations/audit", responses=problems(LIMITS, field_error("action", "in", "must be a known action")))
async def list_audit(  # noqa: PLR0913, PLR0917 - the parameters of the operation
    service: Operator,
    app_state: State,
    before: Cursor = None,
    limit: Limit = DEFAULT_LIST_LIMIT,
    caller: Caller = None,
    action: Annotated[audit.Action | None, Query(description="only entries with this action")] = None,
    since: Annotated[Moment, Query(description="only entries since this time")] = None,
    until: Annotated[Moment, Query(description="only entries before this time")] = None,
) -> answers.AuditLog:
    """List the audit log.

    Returns who did what, the newest first. For the next page, set `before` to `next`. With `caller` or `action`, a page
    examines at most 10,000 entries, so that it may have few entries, or none, although `next` is not null.
    """
    wanted = audit.AuditFilter(service.company_id, caller, action, since, until)
    found = await audit.page(app_state.database, wanted, before, limit)
    return answers.AuditLog.model_validate({"data": found.entries, "next": found.next})


@routes.post("/operations/console", status_code=204)
async def open_console(service: OperationsViewer, actor: Acting, app_state: State) -> None:  # noqa: ARG001 - any role may
    """Record that the console was opened.

    The console calls this once for each token. The entry is in the audit log.
    """
    await audit.record_alone(app_state.database, actor, "console_opened")
