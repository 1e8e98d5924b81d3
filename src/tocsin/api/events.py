"""The doors of events: the host application posts what happened, and asks what became of it."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import events
from tocsin.api.doors import body_of, door, house_of, id_of, service_of
from tocsin.api.requests import notify_of, number_of, refuse_unserved
from tocsin.catalogue import Checked
from tocsin.errors import Fault, Invalid
from tocsin.events import Draft, Reader
from tocsin.notifications import to_json
from tocsin.tokens import Service

LONGEST_WAIT = 30
"""Seconds that a caller may wait for an event to settle."""


def _reader_of(request: Request) -> Service:
    return service_of(request, "events:write", "operations")


router = APIRouter(route_class=door(_reader_of), tags=["events"])


async def post_event(request: Request) -> Response:
    """Accept an event: 202 once it is durable. On the hot path: the framework's models stay outside."""
    service, house = service_of(request, "events:write"), house_of(request)
    body = await body_of(request)
    faults: list[Fault] = []
    checked: Checked | None = None
    try:
        checked = house.catalogue.check(body.get("type"), body.get("data"), body.get("params"))
    except Invalid as invalid:
        faults += invalid.faults
    refuse_unserved(body, ("id", "deliver_at", "key", "about"), faults)
    notify = notify_of(body, faults)
    if faults or checked is None:
        faults += await events.unknown_recipients(house.database, notify.users, notify.teams, service.company_id)
        raise Invalid(faults)
    draft = Draft(checked, notify.users, notify.teams, service.name, service.company_id)
    id_ = await house.intake.accept(draft)
    return Response(f'{{"queued":true,"id":"{id_}"}}', status_code=202, media_type="application/json")


@router.get("/events/{event_id}")
async def get_event(request: Request, event_id: str) -> Response:
    """What became of an event; with `wait`, as soon as that is settled."""
    caller, house = _reader_of(request), house_of(request)
    faults: list[Fault] = []
    seconds = number_of(request.query_params, "wait", (0, LONGEST_WAIT), 0, faults)
    if faults:
        raise Invalid(faults)
    reader = Reader(None if "operations" in caller.scopes else caller.name, caller.company_id)
    answer = await events.state(house.database, house.doorbell, id_of(event_id), reader, seconds=seconds)
    return Response(to_json(answer), media_type="application/json")
