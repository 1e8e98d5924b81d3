"""Routes for operators: health, readiness, metrics, lanes, dead letters, explanations."""

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tocsin import dead_letters, devices, events, explain, readiness
from tocsin.api import assets
from tocsin.api.auth import service_of
from tocsin.api.body import body_of
from tocsin.api.directory import DEFAULT_LIST_LIMIT, MAX_LIST_LIMIT
from tocsin.api.openapi import document
from tocsin.api.requests import known_id, number_of, uuids_of
from tocsin.api.routes import guarded_by
from tocsin.api.state import app_state_of, watched_of
from tocsin.auth.claims import ServiceCaller
from tocsin.errors import FieldError, Invalid, NotFound
from tocsin.events import Viewer
from tocsin.explain import DEFAULT_EXPLAINED, MAX_EXPLAINED
from tocsin.ids import MAX_ID, parsed_uuid
from tocsin.metrics import CONTENT_TYPE
from tocsin.notifications import moment_of, time_of, to_json, with_times
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

MIN_SEARCH_LENGTH, MAX_SEARCH_LENGTH = 2, 255
"""Characters of what users are searched for by."""

watching = APIRouter(tags=["operations"])
"""What every process answers to everybody."""

guarded = APIRouter(tags=["operations"])
"""What is open at a port of its own, and takes a token at the main one."""


def _operator_of(request: Request) -> ServiceCaller:
    return service_of(request, "operations")


router = APIRouter(route_class=guarded_by(_operator_of), tags=["operations"])


@watching.get("/healthz")
async def healthz() -> Response:
    """Whether this process answers."""
    return Response('{"status":"ok"}', media_type="application/json")


@watching.get("/readyz")
async def readyz(request: Request) -> Response:
    """Whether requests can be served: the database takes writes, and its schema is this release's; and what waits."""
    answer = await watched_of(request).readiness.answer()
    return Response(to_json(answer), media_type="application/json")


@guarded.get("/metrics")
async def metrics(request: Request) -> Response:
    """What this process did and what waits, for Prometheus."""
    service_of(request, "operations")
    return await open_metrics(request)


async def open_metrics(request: Request) -> Response:
    """The same, at a port of its own, where nobody else can call."""
    watched = watched_of(request)
    return Response(await watched.metrics.text(watched.database), media_type=CONTENT_TYPE)


@router.get("/operations/lanes")
async def list_lanes(request: Request) -> Response:
    """The lanes that pushes go by, and whether they do."""
    service_of(request, "operations")
    database = app_state_of(request).database
    problems = await readiness.problems(database)
    refusing = [with_times(dict(service), "refused_at") for service in await deliveries.refusing(database)]
    found = [
        {
            **with_times(dict(lane), "delivered_at", "stopped_at"),
            "problem": readiness.problem_of_lane(lane["name"], problems),
            "refused_by": [
                {"service": service["origin"], "since": service["refused_at"], "reason": service["reason"]}
                for service in refusing
                if service["lane"] == lane["name"]
            ],
        }
        for lane in await deliveries.lanes(database)
    ]
    return Response(to_json({"data": found}), media_type="application/json")


@router.get("/operations/dead-letters")
async def list_dead_letters(request: Request) -> Response:
    """What was given up, events and pushes, the latest first."""
    service = service_of(request, "operations")
    before, limit = _moment_and_limit(request, "before", datetime.now(UTC), DEFAULT_LIST_LIMIT, MAX_LIST_LIMIT)
    found = await dead_letters.listed(app_state_of(request).database, before, limit, service.company_id)
    return Response(to_json({"data": found}), media_type="application/json")


@router.post("/operations/replay")
async def replay(request: Request) -> Response:
    """Set going once more what was given up: these events, or the pushes of a lane."""
    service, app_state = service_of(request, "operations"), app_state_of(request)
    body = await body_of(request)
    field_errors: list[FieldError] = []
    ids = uuids_of(body, "events", MAX_LIST_LIMIT, field_errors)
    lane = body.get("lane")
    if lane is not None and not isinstance(lane, str):
        field_errors.append(field_error("lane", "string", "must be a string"))
    if ids is None and lane is None:
        field_errors.append(field_error("events", "required_without", "is required where lane is absent"))
    if field_errors:
        raise Invalid(field_errors)
    since = datetime.now(UTC) - dead_letters.KEPT
    done = await dead_letters.replay(app_state.database, app_state.pubsub, ids, since, lane, service.company_id)
    return Response(to_json({"jobs": done.jobs, "pushes": done.pushes}), media_type="application/json")


@router.get("/operations/users")
async def find_users(request: Request) -> Response:
    """Users whose name, last name or e-mail address begins with what is searched for."""
    service, field_errors = service_of(request, "operations"), list[FieldError]()
    words = " ".join(request.query_params.get("search", "").split())
    limit = number_of(request.query_params, "limit", (1, MAX_EXPLAINED), DEFAULT_EXPLAINED, field_errors)
    if not MIN_SEARCH_LENGTH <= len(words) <= MAX_SEARCH_LENGTH:
        field_errors.append(
            field_error("search", "string_between", f"must have {MIN_SEARCH_LENGTH} to {MAX_SEARCH_LENGTH} characters")
        )
    if field_errors:
        raise Invalid(field_errors)
    found = await explain.find(app_state_of(request).database, words, limit, service.company_id)
    return Response(to_json({"data": found}), media_type="application/json")


@router.get("/operations/events/{event_id}/recipients")
async def list_recipients(request: Request, event_id: str) -> Response:
    """Those whom an event reached, by their ids; or of them only those for whom a push did not go, or not yet."""
    service, field_errors = service_of(request, "operations"), list[FieldError]()
    after = number_of(request.query_params, "after", (0, MAX_ID), 0, field_errors)
    limit = number_of(request.query_params, "limit", (1, MAX_LIST_LIMIT), DEFAULT_LIST_LIMIT, field_errors)
    pushed = request.query_params.get("pushed")
    if pushed not in {None, "no"}:
        field_errors.append(field_error("pushed", "in", "must be no"))
    if field_errors:
        raise Invalid(field_errors)
    id_ = parsed_uuid(event_id)
    if id_ is None:
        raise NotFound
    reader = Viewer(None, service.company_id)
    found = await explain.recipients(app_state_of(request).database, id_, reader, after, limit, missed=pushed == "no")
    return Response(to_json({"data": found}), media_type="application/json")


@router.get("/operations/users/{user_id}")
async def get_person(request: Request, user_id: str) -> Response:
    """Who a user is to those who are asked why nothing came: active or not, and the state of their devices."""
    service = service_of(request, "operations")
    found = await explain.person(app_state_of(request).database, known_id(user_id), service.company_id)
    return Response(to_json(found), media_type="application/json")


@router.get("/operations/users/{user_id}/events")
async def list_events_of_person(request: Request, user_id: str) -> Response:
    """What concerned a user of late, the latest first: what came, what did not, and why."""
    service, database = service_of(request, "operations"), app_state_of(request).database
    yesterday = datetime.now(UTC) - timedelta(days=1)
    since, limit = _moment_and_limit(request, "since", yesterday, DEFAULT_EXPLAINED, MAX_EXPLAINED)
    id_ = known_id(user_id)
    await explain.person(database, id_, service.company_id)
    found = await explain.of_late(database, id_, since, limit, service.company_id)
    answer = {"data": found.events, "looked_back_to": time_of(found.looked_back_to)}
    return Response(to_json(answer), media_type="application/json")


@router.get("/operations/devices")
async def find_devices(request: Request) -> Response:
    """Whose devices these are: those whose tokens end with six characters."""
    service, ending = service_of(request, "operations"), request.query_params.get("ending", "")
    if len(ending) != devices.ENDING or "\0" in ending:
        raise Invalid(
            [field_error("ending", "string_between", f"must be the last {devices.ENDING} characters of a token")]
        )
    found = [
        with_times(device, "registered_at", "last_delivered_at")
        for device in await devices.by_ending(app_state_of(request).database, ending, service.company_id, MAX_EXPLAINED)
    ]
    return Response(to_json({"data": found}), media_type="application/json")


@router.get("/operations/custom-notifications")
async def list_customs(request: Request) -> Response:
    """Who sent custom notifications, when and to how many, the latest first; never what they say."""
    service = service_of(request, "operations")
    before, limit = _moment_and_limit(request, "before", datetime.now(UTC), DEFAULT_LIST_LIMIT, MAX_LIST_LIMIT)
    found = await events.customs(app_state_of(request).database, before, limit, service.company_id)
    return Response(to_json({"data": found}), media_type="application/json")


def _moment_and_limit(request: Request, name: str, default: datetime, usual: int, most: int) -> tuple[datetime, int]:
    """Return from or up to when something is listed, and how much of it; raises `Invalid`."""
    field_errors: list[FieldError] = []
    limit = number_of(request.query_params, "limit", (1, most), usual, field_errors)
    given = request.query_params.get(name)
    moment = moment_of(given) if given else default
    if moment is None:
        field_errors.append(field_error(name, "date", "must be a time in UTC, such as 2030-01-31 08:00:00"))
    if field_errors or moment is None:
        raise Invalid(field_errors)
    return moment, limit


async def openapi(request: Request) -> Response:
    """Answer this document, which is made once: writing it anew would cost ten times what another request does."""
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
