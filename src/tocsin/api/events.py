"""Routes of events: post and cancel them, and get their status."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import BeforeValidator
from starlette.requests import Request

from tocsin import cancellation, event_status
from tocsin.acceptance import Accepted, Draft
from tocsin.api.answers import EventStatus, Queued, QueuedBatch, QueuedEvent, Recipient, Skipped, SkippedOfEvent
from tocsin.api.auth import (
    DIRECTORY_WRITER,
    EVENTS_WRITER,
    Acting,
    EventsCanceller,
    EventsViewer,
    EventsWriter,
    Resolver,
)
from tocsin.api.cells import Routing
from tocsin.api.documented import declared, links, problems
from tocsin.api.drafts import Posted, posted
from tocsin.api.limiting import counted
from tocsin.api.parameters import EventId, UserId, integer
from tocsin.api.requests import MAX_RECIPIENTS, NewBatch, NewEvent, ResolutionRequest
from tocsin.api.routes import Given, router
from tocsin.api.slots import leave_early
from tocsin.api.state import AppState, State, refuse_moved
from tocsin.auth.claims import ServiceCaller
from tocsin.directory import unknown_recipients
from tocsin.errors import FieldError, IdReused, Invalid, NotFound, TooLate
from tocsin.event_status import Viewer
from tocsin.resolutions import Resolution, resolve
from tocsin.validation import Between, field_error, reported_count, up_to_limit

MAX_WAIT_SECONDS = 30
"""Maximum seconds that a request waits for the final state of an event."""

CHECK_SECONDS = 0.002
"""Maximum seconds for which the validation of a batch blocks the event loop."""

writing = router("events")
routes = router("events")
"""Routes that are also served on the port for operations."""


@writing.post(
    "/events",
    status_code=202,
    responses=declared(
        problems(
            IdReused,
            field_error("data.case.id", "required", "is required"),
            field_error("data.colour", "prohibited", "is not allowed here"),
            field_error("notify.users.1", "unknown", "is not a known user"),
            field_error("notify.users.2", "integer", "must be an integer"),
        ),
        links(202, "event_id", "$response.body#/id", "get_event", "cancel_event"),
    ),
)
async def post_event(request: Request, service: EventsWriter, app_state: State, body: Given[NewEvent]) -> QueuedEvent:
    """Post an event.

    Returns 202 when the event is stored on disk. It is then delivered to every recipient exactly once. The `id` is also
    the id of the notification in every inbox.

    `notify` contains ids of users and teams, at most 10,000 in total. Each user is notified once. The acting user
    (`data.user`) is not notified as a member of a team. `data` becomes the `data` of the notification, and `params` are
    further values for its text. Their fields depend on the kind.

    Optional fields: `id` (a UUID) makes it safe to repeat the request. `key` is your name for the event: a later event
    with the same key replaces it, as far as it is not delivered yet. `deliver_at` delays the delivery, at most by a
    year. `about` adds subjects, such as `order:42`, by which notifications can be resolved. `notify.except` excludes
    users. With `notify.unknown` set to `skip`, unknown ids are ignored.
    """
    event = posted(body.given, service, app_state.catalogue)
    [draft] = await _all_or_none(app_state, service, [event], [""])
    async with counted(request, "service-events", service.account):
        accepted = await app_state.intake.accept(draft)
    await _refuse_skipped(request, [accepted])
    answer = QueuedEvent(queued=True, id=accepted.id)
    if draft.skips:
        answer.skipped = Skipped(users=list(accepted.skipped_users), teams=list(accepted.skipped_teams))
    return answer


@writing.post(
    "/events/batch",
    status_code=202,
    responses=problems(IdReused, field_error("events.17.data.case.id", "required", "is required")),
)
async def post_batch(request: Request, service: EventsWriter, app_state: State, body: Given[NewBatch]) -> QueuedBatch:
    """Post a batch of events.

    Accepts up to 1,000 events in at most 8 MiB, all or none. They are delivered in their order. The fields of errors
    begin with the position of the event: `events.17.data.case.id`.
    """
    given = NewBatch.events_in(body.given)
    prefixes = [f"events.{position}." for position in range(len(given))]
    checked, reported, began = list[Posted](), 0, time.monotonic()
    for event, prefix in zip(given, prefixes, strict=True):
        one = posted(event, service, app_state.catalogue, prefix)
        checked.append(replace(one, field_errors=up_to_limit(one.field_errors, reported)) if one.field_errors else one)
        reported += reported_count(checked[-1].field_errors)
        if time.monotonic() - began > CHECK_SECONDS:
            await asyncio.sleep(0)
            began = time.monotonic()
    drafts = await _all_or_none(app_state, service, checked, prefixes)
    async with counted(request, "service-events", service.account, len(drafts)):
        accepted = await app_state.intake.accept_batch(drafts)
    await _refuse_skipped(request, accepted)
    answer = QueuedBatch(queued=True, ids=[event.id for event in accepted])
    if any(draft.skips for draft in drafts):
        answer.skipped = [_skipped(event) for event in accepted if event.skipped_users or event.skipped_teams]
    return answer


@writing.post(
    "/events/resolve",
    status_code=202,
    responses=problems(
        field_error("about", "regex", "must be a subject such as lead:220f5f6e-e30f-4c5f-8db5-44e345f8e568"),
        field_error("as", "in", "must be read, gone or erased"),
        field_error("users.0", "unknown", "is not a known user"),
    ),
)
async def resolve_subject(
    request: Request, service: Resolver, actor: Acting, app_state: State, body: Given[ResolutionRequest]
) -> Queued:
    """Resolve a subject.

    Resolves the notifications about a subject, for all users or for `users`: marks them as read, deletes them, or
    removes names and texts. Requires the scope `directory:write` if `as` is `erased`, otherwise `events:write`.
    """
    field_errors: list[FieldError] = []
    asked = ResolutionRequest.checked(body.given, field_errors)
    users = body.given.get("users")
    if isinstance(users, list) and len(users) <= MAX_RECIPIENTS:
        unknown = await unknown_recipients(app_state.database, users, [], service.company_id)
        field_errors += unknown.field_errors(users, [])
    if field_errors or asked is None:
        raise Invalid(field_errors)
    (DIRECTORY_WRITER if asked.how == "erased" else EVENTS_WRITER).require(service)
    resolution = Resolution(asked.about, asked.how, asked.users, service.name, service.company_id)

    async def accept(in_cell: AppState) -> None:
        await resolve(in_cell.database, in_cell.pubsub, resolution, actor)

    routing = request.scope["app"].routing
    if isinstance(routing, Routing) and service.company_id is None and asked.users is None:
        await routing.do_in_all(request, app_state, accept)
    else:
        await accept(app_state)
    await refuse_moved(request.scope)
    return Queued(queued=True)


@routes.get(
    "/events/{event_id}",
    responses=problems(NotFound, field_error("wait", "numeric_between", f"must be between 0 and {MAX_WAIT_SECONDS}")),
)
async def get_event(
    request: Request,
    service: EventsViewer,
    app_state: State,
    event_id: EventId,
    wait: Annotated[
        int,
        Between(0, MAX_WAIT_SECONDS),
        BeforeValidator(integer),
        Query(description="maximum seconds to wait for the final state"),
    ] = 0,
) -> EventStatus:
    """Get the status of an event.

    With `wait`, the response is delayed until the state of the event is final and all pushes are settled or held.
    """
    viewer = _viewer(service)
    if wait:
        leave_early(request.scope["state"])

    async def ask(in_cell: AppState, but: Sequence[int] = ()) -> dict[str, Any]:
        return await event_status.state(in_cell.database, in_cell.pubsub, event_id, viewer, seconds=wait, but=but)

    routing = request.scope["app"].routing
    if isinstance(routing, Routing) and service.company_id is None:
        found = event_status.together(await routing.parts(request, ask))
    else:
        found = await ask(app_state)
    return EventStatus.model_validate(found)


@routes.get("/events/{event_id}/recipients/{user_id}", responses=problems(NotFound))
async def get_recipient(service: EventsViewer, app_state: State, event_id: EventId, user_id: UserId) -> Recipient:
    """Explain the delivery to one user.

    Returns whether and why the user was a recipient, when the notification was delivered and read, and the state of the
    push to each device.
    """
    return Recipient.model_validate(await event_status.explain(app_state.database, event_id, user_id, _viewer(service)))


@writing.delete("/events/by-key/{key:path}", status_code=204, responses=problems(NotFound, TooLate))
async def cancel_event_by_key(
    service: EventsWriter,
    actor: Acting,
    app_state: State,
    key: Annotated[
        str,  # a blank one is not refused, but names no event
        Path(description="the key of an event; may contain slashes", json_schema_extra={"minLength": 1}),
    ],
) -> None:
    """Cancel an event by its key.

    Like `DELETE /events/{event_id}`, with the key that the service gave the event.
    """
    viewer = Viewer(service.name, service.company_id)
    await cancellation.cancel_by_key(app_state.database, app_state.pubsub, key, viewer, actor)


@routes.delete("/events/{event_id}", status_code=204, responses=problems(NotFound, TooLate))
async def cancel_event(
    request: Request, service: EventsCanceller, actor: Acting, app_state: State, event_id: EventId
) -> None:
    """Cancel an event.

    No further recipients are notified. Returns 204, also for a cancelled event, and 409 if the event is delivered. A
    service can cancel its own events, and with the scope `operations` all events; then `reason` names the service.
    """
    operator = service.name if "operations" in service.scopes else None
    viewer = Viewer(None if operator else service.name, service.company_id)

    async def cancel(in_cell: AppState) -> None:
        await cancellation.cancel(in_cell.database, in_cell.pubsub, event_id, viewer, actor, operator)

    routing = request.scope["app"].routing
    if isinstance(routing, Routing) and service.company_id is None:
        await routing.cancel(request, cancel)
    else:
        await cancel(app_state)


async def _all_or_none(
    app_state: AppState, service: ServiceCaller, checked: Sequence[Posted], prefixes: Sequence[str]
) -> list[Draft]:
    """Return the drafts of valid events. Raises `Invalid` with all errors if any event is invalid."""
    drafts = [event.draft for event in checked if event.draft]
    if len(drafts) == len(checked):
        return drafts
    users = [id_ for event in checked for id_ in (*event.users, *event.unfilled.values())]
    teams = [id_ for event in checked for id_ in event.teams]
    unknown = await unknown_recipients(app_state.database, users, teams, service.company_id)
    field_errors, reported = list[FieldError](), 0
    for event, prefix in zip(checked, prefixes, strict=True):
        of_data = [
            field_error(f"{prefix}data.{name}", "unknown", "is not a known user")
            for name, id_ in event.unfilled.items()
            if id_ in unknown.users
        ]
        of_notify = unknown.field_errors(event.users, event.teams, f"{prefix}notify.")
        found = up_to_limit([*event.field_errors, *of_data, *of_notify], reported)
        field_errors += found
        reported += reported_count(found)
    raise Invalid(field_errors)


async def _refuse_skipped(request: Request, accepted: Sequence[Accepted]) -> None:
    """Raise `Unavailable` if recipients were skipped because their company has just moved."""
    if any(event.skipped_users or event.skipped_teams for event in accepted):
        await refuse_moved(request.scope)


def _viewer(service: ServiceCaller) -> Viewer:
    sees_all = not service.scopes.isdisjoint({"operations", "operations:support"})
    return Viewer(None if sees_all else service.name, service.company_id)


def _skipped(event: Accepted) -> SkippedOfEvent:
    return SkippedOfEvent(id=event.id, users=list(event.skipped_users), teams=list(event.skipped_teams))
