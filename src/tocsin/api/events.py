"""Routes of events: post, cancel, and ask for the status."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import events
from tocsin.api.auth import service_of
from tocsin.api.body import body_of
from tocsin.api.drafts import Posted, posted, resolution_of
from tocsin.api.requests import id_of, known_id, number_of
from tocsin.api.routes import guarded_by
from tocsin.api.state import app_state_of
from tocsin.auth.claims import ServiceCaller
from tocsin.directory import unknown_recipients
from tocsin.errors import FieldError, Invalid
from tocsin.events import Accepted, Draft, Viewer
from tocsin.notifications import to_json
from tocsin.resolutions import resolve
from tocsin.validation import counted, field_error, told_of

MAX_WAIT_SECONDS = 30
"""Seconds that a caller may wait for an event to settle."""

MAX_BATCH_EVENTS = 1_000
"""How many events one request may hold."""

CHECK_SECONDS = 0.002
"""How long they are checked between two steps of the event loop."""

MAX_BATCH_BODY_BYTES = 8 * 2**20
"""Bytes of the largest body of a batch."""


def _reader_of(request: Request) -> ServiceCaller:
    return service_of(request, "events:write", "operations")


def writer_of(request: Request) -> ServiceCaller:
    """Return the service that posts events."""
    return service_of(request, "events:write")


def resolver_of(request: Request) -> ServiceCaller:
    """Return the service that settles subjects; which scope it needs depends on how."""
    return service_of(request, "events:write", "directory:write")


router = APIRouter(route_class=guarded_by(_reader_of), tags=["events"])
writing = APIRouter(route_class=guarded_by(writer_of), tags=["events"])


async def post_event(request: Request) -> Response:
    """Accept an event: 202 once it is durable. On the hot path: the framework's models stay outside."""
    service, app_state = writer_of(request), app_state_of(request)
    event = posted(await body_of(request), service, app_state.catalogue)
    drafts = await _all_or_none(request, service, [event], [""])
    accepted = await app_state.intake.accept(drafts[0])
    skipped = f',"skipped":{to_json(_skipped(accepted))}' if drafts[0].skips else ""
    return _queued(f'"id":"{accepted.id}"{skipped}')


async def post_batch(request: Request) -> Response:
    """Accept up to 1,000 events, all or none, to be delivered in their order."""
    service, app_state = writer_of(request), app_state_of(request)
    body = await body_of(request, MAX_BATCH_BODY_BYTES)
    given = _events_of(body)
    prefixes = [f"events.{position}." for position in range(len(given))]
    checked, told, began = list[Posted](), 0, time.monotonic()
    for event, prefix in zip(given, prefixes, strict=True):
        one = posted(event, service, app_state.catalogue, prefix)
        checked.append(replace(one, field_errors=counted(one.field_errors, told)) if one.field_errors else one)
        told += told_of(checked[-1].field_errors)
        if time.monotonic() - began > CHECK_SECONDS:
            await asyncio.sleep(0)
            began = time.monotonic()
    drafts = await _all_or_none(request, service, checked, prefixes)
    accepted = await app_state.intake.accept_batch(drafts)
    more: dict[str, Any] = {"ids": [str(event.id) for event in accepted]}
    if any(draft.skips for draft in drafts):
        some = [event for event in accepted if event.skipped_users or event.skipped_teams]
        more["skipped"] = [{"id": str(event.id), **_skipped(event)} for event in some]
    return _queued(to_json(more)[1:-1])


async def post_resolution(request: Request) -> Response:
    """Accept that what is still open about a subject is settled: read, taken away, or its words erased."""
    service, app_state = resolver_of(request), app_state_of(request)
    body = await body_of(request)
    field_errors: list[FieldError] = []
    resolution = resolution_of(body, service, field_errors)
    users = body.get("users") if isinstance(body.get("users"), list) else []
    unknown = await unknown_recipients(app_state.database, users or [], [], service.company_id)
    field_errors += unknown.field_errors(users or [], [])
    if field_errors or resolution is None:
        raise Invalid(field_errors)
    service_of(request, "directory:write" if resolution.how == "erased" else "events:write")
    await resolve(app_state.database, app_state.pubsub, resolution)
    return Response('{"queued":true}', status_code=202, media_type="application/json")


@router.get("/events/{event_id}")
async def get_event(request: Request, event_id: str) -> Response:
    """What became of an event; with `wait`, as soon as that is settled."""
    app_state = app_state_of(request)
    field_errors: list[FieldError] = []
    seconds = number_of(request.query_params, "wait", (0, MAX_WAIT_SECONDS), 0, field_errors)
    if field_errors:
        raise Invalid(field_errors)
    answer = await events.state(
        app_state.database, app_state.pubsub, id_of(event_id), _asking(request), seconds=seconds
    )
    return Response(to_json(answer), media_type="application/json")


@router.get("/events/{event_id}/recipients/{user_id}")
async def get_recipient(request: Request, event_id: str, user_id: str) -> Response:
    """Whether and why one person was a recipient of an event, and what became of it."""
    database = app_state_of(request).database
    answer = await events.explain(database, id_of(event_id), known_id(user_id), _asking(request))
    return Response(to_json(answer), media_type="application/json")


@writing.delete("/events/by-key/{key:path}", status_code=204)
async def cancel_by_key(request: Request, key: str) -> Response:
    """Cancel the event that the service's own key names, unless it is delivered."""
    service, app_state = writer_of(request), app_state_of(request)
    await events.cancel_by_key(app_state.database, app_state.pubsub, key, Viewer(service.name, service.company_id))
    return Response(status_code=204)


@router.delete("/events/{event_id}", status_code=204)
async def cancel(request: Request, event_id: str) -> Response:
    """Cancel an event that is not delivered yet; one that is on its way goes no further."""
    app_state, caller, owner = app_state_of(request), _reader_of(request), _asking(request)
    operator = caller.name if "operations" in caller.scopes else None
    await events.cancel(app_state.database, app_state.pubsub, id_of(event_id), owner, operator)
    return Response(status_code=204)


async def _all_or_none(
    request: Request, service: ServiceCaller, checked: Sequence[Posted], prefixes: Sequence[str]
) -> list[Draft]:
    """Return the drafts where nothing is wrong with any; else raise `Invalid` with all that is."""
    drafts = [event.draft for event in checked if event.draft]
    if len(drafts) == len(checked):
        return drafts
    asked = [event.notify for event in checked if not event.notify.skips]
    users, teams = ([id_ for notify in asked for id_ in getattr(notify, name)] for name in ("users", "teams"))
    unknown = await unknown_recipients(app_state_of(request).database, users, teams, service.company_id)
    field_errors, told = list[FieldError](), 0
    for event, prefix in zip(checked, prefixes, strict=True):
        users, teams = ([], []) if event.notify.skips else (event.notify.users, event.notify.teams)
        found = counted([*event.field_errors, *unknown.field_errors(users, teams, f"{prefix}notify.")], told)
        field_errors += found
        told += told_of(found)
    raise Invalid(field_errors)


def _events_of(body: Mapping[str, Any]) -> list[Any]:
    given = body.get("events")
    if given is None:
        raise Invalid([field_error("events", "required", "is required")])
    if not isinstance(given, list):
        raise Invalid([field_error("events", "array", "must be an array")])
    if not 1 <= len(given) <= MAX_BATCH_EVENTS:
        raise Invalid([field_error("events", "array_between", f"must have 1 to {MAX_BATCH_EVENTS} entries")])
    return given


def _asking(request: Request) -> Viewer:
    caller = _reader_of(request)
    return Viewer(None if "operations" in caller.scopes else caller.name, caller.company_id)


def _skipped(event: Accepted) -> dict[str, list[int]]:
    return {"users": list(event.skipped_users), "teams": list(event.skipped_teams)}


def _queued(more: str) -> Response:
    return Response(f'{{"queued":true,{more}}}', status_code=202, media_type="application/json")
