"""Routes for operators: health, readiness, metrics, lanes, dead letters, explanations."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from tocsin import dead_letters, devices, event_status, explain, readiness
from tocsin.api import assets
from tocsin.api.answers import (
    CustomNotifications,
    DeadLetters,
    DevicesFound,
    EventsOfPerson,
    Health,
    Lanes,
    PeopleFound,
    Person,
    ReadinessAnswer,
    RecipientsOfEvent,
    ReplayedAnswer,
)
from tocsin.api.auth import Operator
from tocsin.api.directory import LIMITS
from tocsin.api.documented import problems, text
from tocsin.api.openapi import document
from tocsin.api.requests import (
    DEFAULT_LIST_LIMIT,
    MAX_SEARCH_LENGTH,
    MIN_SEARCH_LENGTH,
    After,
    Before,
    Ending,
    EventId,
    Explained,
    Limit,
    Moment,
    Replay,
    Search,
    UserId,
)
from tocsin.api.routes import router
from tocsin.api.state import State, WatchedState, app_state_of, watched_of
from tocsin.errors import NotFound
from tocsin.events import Viewer
from tocsin.explain import DEFAULT_EXPLAINED
from tocsin.metrics import CONTENT_TYPE
from tocsin.notifications import to_json
from tocsin.push import deliveries
from tocsin.validation import field_error

ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tocsin: the HTTP API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
"""
START = """SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null})
const dark = matchMedia("(prefers-color-scheme: dark)")
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches)
dark.addEventListener("change", follow)
follow()
"""
POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'"

watching = router("operations")
"""The routes that every process serves without a token."""

guarded = router("operations")
"""What is open at a port of its own, and takes a token at the main one."""

routes = router("operations")


@watching.get("/healthz")
async def healthz() -> Health:
    """Check that the process is alive."""
    return Health(status="ok")


@watching.get("/readyz")
async def readyz(watched: WatchedState) -> ReadinessAnswer:
    """Check that requests can be served.

    Whether the database accepts writes and its schema is that of this release; and what waits. Else 503.
    """
    return ReadinessAnswer.model_validate(await watched.readiness.answer())


@guarded.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=text("text/plain", "The text format of Prometheus.", some='tocsin_jobs_due{lane="direct"} 0.0\n'),
)
async def metrics(service: Operator, watched: WatchedState) -> Response:  # noqa: ARG001 - any operator may ask
    """Get metrics.

    What this process did and what waits, for Prometheus.
    """
    return Response(await watched.metrics.text(watched.database), media_type=CONTENT_TYPE)


async def open_metrics(request: Request) -> Response:
    """Return the metrics without a token, on the port for operations."""
    watched = watched_of(request)
    return Response(await watched.metrics.text(watched.database), media_type=CONTENT_TYPE)


@routes.get("/operations/lanes")
async def list_lanes(service: Operator, app_state: State) -> Lanes:  # noqa: ARG001 - any operator may ask
    """List lanes.

    The lanes that pushes are sent by, and whether they work.
    """
    problems_of_workers = await readiness.problems(app_state.database)
    refusing = await deliveries.refusing(app_state.database)
    found = [
        {
            **lane,
            "problem": readiness.problem_of_lane(lane["name"], problems_of_workers),
            "refused_by": [
                {"service": service["origin"], "since": service["refused_at"], "reason": service["reason"]}
                for service in refusing
                if service["lane"] == lane["name"]
            ],
        }
        for lane in await deliveries.lanes(app_state.database)
    ]
    return Lanes.model_validate({"data": found})


@routes.get("/operations/dead-letters", responses=problems(LIMITS))
async def list_dead_letters(
    service: Operator, app_state: State, before: Before = None, limit: Limit = DEFAULT_LIST_LIMIT
) -> DeadLetters:
    """List dead letters.

    Events and pushes that were given up, the latest first. They are kept for 30 days.
    """
    found = await dead_letters.listed(app_state.database, before or datetime.now(UTC), limit, service.company_id)
    return DeadLetters.model_validate({"data": found})


@routes.post(
    "/operations/replay",
    responses=problems(field_error("events", "required_without", "is required where lane is absent")),
)
async def replay(service: Operator, app_state: State, body: Replay) -> ReplayedAnswer:
    """Queue dead letters again.

    Events by their ids, or up to 10,000 pushes of a lane, the oldest first.
    """
    since = datetime.now(UTC) - dead_letters.KEPT
    done = await dead_letters.replay(
        app_state.database, app_state.pubsub, body.events, since, body.lane, service.company_id
    )
    return ReplayedAnswer.model_validate(done)


@routes.get(
    "/operations/users",
    responses=problems(
        field_error("search", "string_between", f"must have {MIN_SEARCH_LENGTH} to {MAX_SEARCH_LENGTH} characters")
    ),
)
async def find_users(
    service: Operator, app_state: State, search: Search, limit: Explained = DEFAULT_EXPLAINED
) -> PeopleFound:
    """Find users.

    By the beginning of the whole name, the last name or the e-mail address, case-insensitive. Of each, the first 1,000
    matches are looked at, those of other companies among them.
    """
    found = await explain.find(app_state.database, search, limit, service.company_id)
    return PeopleFound.model_validate({"data": found})


@routes.get(
    "/operations/events/{event_id}/recipients",
    responses=problems(NotFound, LIMITS, field_error("pushed", "in", "must be no")),
)
async def list_recipients(  # noqa: PLR0913, PLR0917 - the parameters of the operation
    service: Operator,
    app_state: State,
    event_id: EventId,
    after: After = 0,
    limit: Limit = DEFAULT_LIST_LIMIT,
    pushed: Annotated[
        Literal["no"] | None, Query(description="only recipients for whom a push was not delivered, or not yet")
    ] = None,
) -> RecipientsOfEvent:
    """List recipients of an event.

    By user id, ascending. Continue with `after` set to the last `user_id`. `pushes` are the states of the pushes to
    that person, each once.
    """
    viewer = Viewer(None, service.company_id)
    found = await explain.recipients(app_state.database, event_id, viewer, after, limit, missed=pushed == "no")
    return RecipientsOfEvent.model_validate({"data": found})


@routes.get("/operations/users/{user_id}", responses=problems(NotFound))
async def get_person(service: Operator, app_state: State, user_id: UserId) -> Person:
    """Get a user's state.

    Whether they are active, and the state of their devices: to find out why nothing was delivered.
    """
    return Person.model_validate(await explain.person(app_state.database, user_id, service.company_id))


@routes.get(
    "/operations/users/{user_id}/events",
    responses=problems(NotFound, field_error("since", "date", "must be a time in UTC, such as 2030-01-31 08:00:00")),
)
async def list_events_of_person(
    service: Operator,
    app_state: State,
    user_id: UserId,
    since: Annotated[Moment, Query(description="only those since this moment; default: 24 hours ago")] = None,
    limit: Explained = DEFAULT_EXPLAINED,
) -> EventsOfPerson:
    """List events of a user.

    What concerned a user lately, the latest first: what was delivered, what was not, and why.
    """
    since = since or datetime.now(UTC) - timedelta(days=1)
    await explain.person(app_state.database, user_id, service.company_id)
    found = await explain.of_late(app_state.database, user_id, since, limit, service.company_id)
    return EventsOfPerson.model_validate({"data": found.events, "looked_back_to": found.looked_back_to})


@routes.get(
    "/operations/devices",
    responses=problems(
        field_error("ending", "string_between", f"must be the last {devices.ENDING} characters of a token")
    ),
)
async def find_devices(service: Operator, app_state: State, ending: Ending) -> DevicesFound:
    """Find devices by the end of their token."""
    found = await devices.by_ending(app_state.database, ending, service.company_id, explain.MAX_EXPLAINED)
    return DevicesFound.model_validate({"data": found})


@routes.get("/operations/custom-notifications", responses=problems(LIMITS))
async def list_custom_notifications(
    service: Operator, app_state: State, before: Before = None, limit: Limit = DEFAULT_LIST_LIMIT
) -> CustomNotifications:
    """List custom notifications.

    Who sent them, when and to how many, the latest first; never what they say.
    """
    found = await event_status.customs(app_state.database, before or datetime.now(UTC), limit, service.company_id)
    return CustomNotifications.model_validate({"data": found})


async def openapi(request: Request) -> Response:
    """Return the OpenAPI document, which is made once, because that costs ten times as much as another request."""
    state = request.app.state
    if not hasattr(state, "document"):
        app_state = app_state_of(request)
        found = document(request.app, app_state.catalogue, app_state.settings.base_url or app_state.settings.root_path)
        state.document = to_json(found).encode()
    return Response(state.document, media_type="application/json")


async def docs(_request: Request) -> Response:
    """Answer the page that shows the API document; everything that it loads comes from here."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})


async def docs_asset(request: Request) -> Response:
    """Answer a file of that page."""
    name = request.path_params["name"]
    if name == "start.js":
        return Response(START, media_type="text/javascript")
    if name not in ASSETS:
        raise NotFound
    found = assets.asset(f"resources/{name}", "fastapi_swagger")
    return Response(found.content, media_type=found.media_type)
